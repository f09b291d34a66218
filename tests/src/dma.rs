// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! What the device reaches by DMA addresses, asked of any device: also of QEMU's own with OpenGL,
//! which can have an IOMMU in front of it. There an address that nothing is mapped at is a fault in
//! the kernel's log, and one that something else is mapped at brings other bytes. That all is
//! unmapped, CONFIG_DMA_API_DEBUG says when the driver leaves the device.

use virtgpu_client::protocol::uapi::{self, ResourceCreate};
use virtgpu_client::protocol::virtio_gpu::capset;
use virtgpu_client::protocol::virtio_gpu_image::{format, target};
use virtgpu_client::{BlobOptions, Bytes, Device, Image, Memory, RegisterOptions};

use crate::hostile::given_back;
use crate::ktap::{Driver, Family, Kernel, TestResult};
use crate::support::memory::{small_pages, Malloc};
use crate::support::place::Place;
use crate::support::{gpu, raced, Env, Random, PAGE};
use crate::{cases, check, check_eq, skip};

pub(crate) const FAMILY: Family = Family {
    name: "dma",
    kernel: Kernel::Any,
    driver: Driver::Ours,
    device: "",
    // Only this project's device can be asked; `given_back` asks the kernel.
    leak_check: false,
    cases: cases![
        pictures,
        buffers,
        scattered_backing,
        come_and_go,
        registered,
        in_use_when_unbound: 300,
        given_back,
    ],
};

/// `VIRGL_BIND_SAMPLER_VIEW` and `VIRGL_BIND_VERTEX_BUFFER`: what a host with OpenGL wants to know.
const BIND: [(u32, u32); 2] = [(target::TEXTURE_2D, 1 << 3), (target::BUFFER, 1 << 4)];

/// Opens the device with a context, of OpenGL where it does not compute.
fn open(env: &Env) -> TestResult<Device> {
    let device = env.open()?;
    let capsets = device.getparam(uapi::param::SUPPORTED_CAPSET_IDS)?;
    if capsets & (1 << virtgpu_client::protocol::compute::CAPSET_ID) != 0 {
        device.context_init_compute(1)?;
    } else {
        device.context_init_capset(capset::VIRGL2, 1)?;
    }
    Ok(device)
}

fn image(device: &Device, kind: u32, width: u32, height: u32) -> TestResult<Image<'_>> {
    let (pixel, format) = match kind {
        target::BUFFER => (1, format::R8_UNORM),
        _ => (4, format::B8G8R8A8_UNORM),
    };
    let bind = BIND.iter().find(|(target, _)| *target == kind);
    Ok(device.create_image(&mut ResourceCreate {
        target: kind,
        format,
        bind: bind.map_or(0, |(_, bind)| *bind),
        width,
        height,
        depth: 1,
        array_size: 1,
        size: pixel * width * height,
        ..Default::default()
    })?)
}

/// To the host, other bytes in the guest, and back.
fn there_and_back(image: &Image<'_>, width: u32, height: u32, pixel: u32) -> TestResult {
    let map = image.map()?;
    let bytes = (width * height * pixel) as usize;
    let data = Random(u64::from(width)).bytes(bytes);
    map.write(0, &data);
    let region = virtgpu_client::Region::picture(width, height);
    image.to_host(&region)?;
    map.fill(0x5a);
    image.from_host(&region)?;
    check!(map.to_vec(0, bytes) == data, "{width} x {height} came back");
    Ok(())
}

fn pictures(env: &Env) -> TestResult {
    let device = open(env)?;
    for (width, height) in [(1, 1), (16, 16), (100, 7), (64, 300), (512, 256)] {
        let image = image(&device, target::TEXTURE_2D, width, height)?;
        there_and_back(&image, width, height, 4)?;
    }
    Ok(())
}

fn buffers(env: &Env) -> TestResult {
    let device = open(env)?;
    for bytes in [1, PAGE, PAGE + 1, 33 * PAGE, 300 * PAGE + 5] {
        let image = image(&device, target::BUFFER, bytes as u32, 1)?;
        there_and_back(&image, bytes as u32, 1, 1)?;
    }
    Ok(())
}

/// Pages that hardly have a neighbour, so that there are many addresses.
fn scattered_backing(env: &Env) -> TestResult {
    let device = open(env)?;
    // What is freed in between lies among what is used next.
    let mut others = Vec::new();
    for _ in 0..64 {
        others.push(small_pages(3 * PAGE)?);
        others.push(small_pages(PAGE)?);
    }
    let mut number = 0;
    others.retain(|_| {
        number += 1;
        number % 2 == 0
    });
    let image = image(&device, target::BUFFER, 128 * PAGE as u32, 1)?;
    drop(others);
    there_and_back(&image, 128 * PAGE as u32, 1, 1)
}

/// What is mapped is unmapped, and its addresses are used again.
fn come_and_go(env: &Env) -> TestResult {
    let device = open(env)?;
    let rounds = env.rounds(100);
    for round in 0..rounds {
        let bytes = (1 + round as u32 % 40) * PAGE as u32;
        let image = image(&device, target::BUFFER, bytes, 1)?;
        there_and_back(&image, bytes, 1, 1)?;
    }
    raced("resources", rounds)
}

/// Memory of the process, pinned.
fn registered(env: &Env) -> TestResult {
    let device = open(env)?;
    if device.userptr_modes()? & uapi::USERPTR_MODE_PINNED == 0 {
        skip!("the device has no blobs");
    }
    let malloc = Malloc::new(70 * PAGE);
    let scattered = Place::scattered(300)?;
    for round in 0..10 {
        for memory in [&malloc as &dyn Memory, &scattered] {
            let userptr = device.register(memory, RegisterOptions::pinned())?;
            // The host's response is an error if it cannot reach all of it.
            device.wait(userptr.handle())?;
            check_eq!(
                userptr.query()?.mapped_bytes,
                memory.len() as u64,
                "bytes that the host has, round {round}"
            );
        }
    }
    let blob = device.create_blob(&BlobOptions::guest(5 * PAGE as u64))?;
    device.wait(blob.handle())?;
    Ok(())
}

/// The driver leaves a device that has memory of both kinds, and comes back.
fn in_use_when_unbound(env: &Env) -> TestResult {
    for _ in 0..3 {
        let gpu = gpu::find()?;
        let device = open(env)?;
        let image = image(&device, target::BUFFER, 9 * PAGE as u32, 1)?;
        image.to_host(&virtgpu_client::Region::picture(9 * PAGE as u32, 1))?;
        let memory = small_pages(20 * PAGE)?;
        let userptr = match device.userptr_modes()? & uapi::USERPTR_MODE_PINNED {
            0 => None,
            _ => Some(device.register(&memory, RegisterOptions::pinned())?),
        };
        gpu.unbind()?;
        check!(gpu::wait_for_no_node(env), "the render node goes away");
        drop((image, userptr));
        gpu.bind()?;
        gpu::wait_for_node(env)?;
        buffers(env)?;
    }
    Ok(())
}
