// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Resources that are not blobs: RESOURCE_CREATE, TRANSFER_TO_HOST and TRANSFER_FROM_HOST, and what
//! belongs to the host's context. What is read back has been in the storage of the host: the guest's
//! memory is overwritten in between.

use virtgpu_client::protocol::uapi::{self, Box3d};
use virtgpu_client::protocol::virtio_gpu_image::{format, target};
use virtgpu_client::{
    compute, ioctl, BlobMap, BlobOptions, Bytes, Device, Errno, Exec, Region, RegisterOptions,
};

use crate::ktap::{Driver, Family, Kernel, TestResult};
use crate::support::memory::small_pages;
use crate::support::unchanged::Refusing;
use crate::support::{eventually, job, raw, Env, Random, PAGE};
use crate::{cases, check, check_eq, check_err, skip};

pub(crate) const FAMILY: Family = Family {
    name: "transfer",
    kernel: Kernel::Any,
    driver: Driver::Both,
    device: "",
    leak_check: true,
    cases: cases![
        created,
        picture,
        boxes,
        levels,
        layers,
        buffer,
        many_pages,
        formats,
        without_context_init,
        wrong_boxes,
        in_order,
        closed_at_once,
        of_both_kinds_of_memory,
        refused,
        bad_handles,
        refused_by_the_host,
        opened_before_the_context,
        two_handles,
        of_another_context,
    ],
};

/// The device wants DMA addresses, and the driver synchronizes what has to be.
pub(crate) const ACCESS_PLATFORM: Family = Family {
    name: "transfer_access_platform",
    kernel: Kernel::Any,
    driver: Driver::Both,
    device: "--access-platform",
    leak_check: true,
    cases: cases![picture, boxes, buffer, many_pages, in_order, closed_at_once],
};

/// A device without contexts.
pub(crate) const NO_VIRGL: Family = Family {
    name: "no_virgl",
    kernel: Kernel::Any,
    driver: Driver::Both,
    device: "--no-virgl",
    // The device counts what is left in a context only.
    leak_check: false,
    cases: cases![
        no_contexts,
        flat_picture,
        flat_pictures_only,
        flat_one_way,
        flat_refused_by_the_host,
        flat_blobs,
    ],
};

const HALF_SECOND: u64 = 500_000;

/// A picture of 32-bit pixels, to be changed.
fn picture_of(width: u32, height: u32) -> uapi::ResourceCreate {
    uapi::ResourceCreate {
        target: target::TEXTURE_2D,
        format: format::B8G8R8A8_UNORM,
        width,
        height,
        depth: 1,
        array_size: 1,
        size: 4 * width * height,
        ..Default::default()
    }
}

fn cuboid(from: [u32; 3], sides: [u32; 3]) -> Box3d {
    Box3d {
        x: from[0],
        y: from[1],
        z: from[2],
        w: sides[0],
        h: sides[1],
        d: sides[2],
    }
}

pub(crate) fn created(env: &Env) -> TestResult {
    let device = env.compute()?;
    for (size, rounded) in [(0, PAGE), (1, PAGE), (PAGE, PAGE), (PAGE + 1, 2 * PAGE)] {
        let mut create = uapi::ResourceCreate {
            size: size as u32,
            ..picture_of(8, 8)
        };
        let image = device.create_image(&mut create)?;
        check!(
            image.handle() != 0 && image.resource() != 0,
            "size {size}: ids are not 0"
        );
        let mut info = uapi::ResourceInfo {
            bo_handle: image.handle(),
            blob_mem: 77,
            ..Default::default()
        };
        raw::call(&device, uapi::nr::RESOURCE_INFO, &mut info)?;
        check_eq!(info.res_handle, image.resource(), "resource");
        check_eq!(info.size as usize, rounded, "bytes in RESOURCE_INFO");
        check_eq!(
            info.blob_mem,
            77,
            "blob_mem of what is no blob is left alone"
        );
        device.wait(image.handle())?;
        check!(!device.is_busy(image.handle())?, "idle after WAIT");
        let map = image.map()?;
        check!(
            map.to_vec(0, PAGE).iter().all(|&byte| byte == 0),
            "new pages are zero"
        );
        map.fill(0xaa);
    }
    Ok(())
}

/// To the host, other bytes in the guest, and back.
fn there_and_back(
    device: &Device,
    handle: u32,
    map: &BlobMap,
    region: &Region,
    seed: u64,
) -> TestResult<Vec<u8>> {
    let data = Random(seed).bytes(map.len_in_bytes());
    map.write(0, &data);
    device.transfer_to_host(handle, region)?;
    device.wait(handle)?;
    map.fill(0x5a);
    device.transfer_from_host(handle, region)?;
    device.wait(handle)?;
    Ok(data)
}

trait Length {
    fn len_in_bytes(&self) -> usize;
}

impl Length for BlobMap {
    fn len_in_bytes(&self) -> usize {
        virtgpu_client::Memory::len(self)
    }
}

pub(crate) fn picture(env: &Env) -> TestResult {
    let device = env.compute()?;
    for (width, height) in [(1, 1), (16, 16), (100, 7), (64, 300)] {
        let image = device.create_picture(width, height)?;
        let map = image.map()?;
        let region = Region::picture(width, height);
        let data = there_and_back(&device, image.handle(), &map, &region, 1)?;
        let bytes = (4 * width * height) as usize;
        check!(
            map.to_vec(0, bytes) == data[..bytes],
            "{width} x {height} pixels came back"
        );
        check!(
            map.to_vec(bytes, map.len_in_bytes() - bytes)
                .iter()
                .all(|&byte| byte == 0x5a),
            "{width} x {height} pixels, and nothing behind them"
        );
    }
    Ok(())
}

/// Where the pixels of a box lie in guest memory: start and length of each row.
fn rows(region: &Region, stride: u32, layer: u32, pixel: u32) -> Vec<(usize, usize)> {
    let mut rows = Vec::new();
    for z in 0..region.region.d {
        for y in 0..region.region.h {
            let start = region.offset + z * layer + y * stride;
            rows.push((start as usize, (region.region.w * pixel) as usize));
        }
    }
    rows
}

/// A box goes to the host at one place in guest memory, and comes back at another.
fn moved(
    device: &Device,
    handle: u32,
    map: &BlobMap,
    (there, back): (Region, Region),
    (stride, layer, pixel): (u32, u32, u32),
    what: &str,
) -> TestResult {
    let length = map.len_in_bytes();
    let data = Random(u64::from(there.offset) + 3).bytes(length);
    map.write(0, &data);
    device.transfer_to_host(handle, &there)?;
    device.wait(handle)?;
    map.fill(0x5a);
    device.transfer_from_host(handle, &back)?;
    device.wait(handle)?;
    let mut want = vec![0x5a; length];
    let from = rows(&there, stride, layer, pixel);
    let to = rows(&back, stride, layer, pixel);
    for ((from, bytes), (to, _)) in from.into_iter().zip(to) {
        want[to..to + bytes].copy_from_slice(&data[from..from + bytes]);
    }
    let got = map.to_vec(0, length);
    let differs = got.iter().zip(&want).position(|(got, want)| got != want);
    check!(differs.is_none(), "{what}: byte {differs:?} differs");
    Ok(())
}

pub(crate) fn boxes(env: &Env) -> TestResult {
    let device = env.compute()?;
    let image = device.create_picture(32, 32)?;
    let map = image.map()?;
    for (from, sides) in [
        ([0, 0, 0], [1, 1, 1]),
        ([31, 31, 0], [1, 1, 1]),
        ([5, 7, 0], [3, 9, 1]),
        ([0, 31, 0], [32, 1, 1]),
        ([31, 0, 0], [1, 32, 1]),
    ] {
        for offsets in [(0, 4), (64, 0), (12, 12)] {
            let region = |offset| Region {
                region: cuboid(from, sides),
                offset,
                ..Default::default()
            };
            let both = (region(offsets.0), region(offsets.1));
            if both.0.offset.max(both.1.offset) + (sides[1] - 1) * 128 + sides[0] * 4 > 4096 {
                continue;
            }
            let what = format!("{from:?} {sides:?} at {offsets:?}");
            moved(&device, image.handle(), &map, both, (128, 4096, 4), &what)?;
        }
    }
    Ok(())
}

pub(crate) fn levels(env: &Env) -> TestResult {
    let device = env.compute()?;
    let image = device.create_image(&mut uapi::ResourceCreate {
        last_level: 4,
        size: 4 * PAGE as u32,
        ..picture_of(16, 8)
    })?;
    let map = image.map()?;
    // Each level gets its own bytes; then all are read back.
    let mut wanted = Vec::new();
    for level in 0..=4 {
        let sides = [(16 >> level).max(1), (8 >> level).max(1), 1];
        let region = Region {
            region: cuboid([0; 3], sides),
            level,
            ..Default::default()
        };
        let bytes = (4 * sides[0] * sides[1]) as usize;
        let data = Random(u64::from(level)).bytes(bytes);
        map.write(0, &data);
        image.to_host(&region)?;
        wanted.push((region, data));
    }
    for (region, data) in wanted {
        map.fill(0);
        image.from_host(&region)?;
        check!(
            map.to_vec(0, data.len()) == data,
            "level {} came back",
            region.level
        );
    }
    Ok(())
}

pub(crate) fn layers(env: &Env) -> TestResult {
    let device = env.compute()?;
    for (what, create, layers) in [
        (
            "3D",
            uapi::ResourceCreate {
                target: target::TEXTURE_3D,
                depth: 5,
                ..picture_of(8, 4)
            },
            5,
        ),
        (
            "cube",
            uapi::ResourceCreate {
                target: target::TEXTURE_CUBE,
                array_size: 6,
                ..picture_of(4, 4)
            },
            6,
        ),
        (
            "array",
            uapi::ResourceCreate {
                target: target::TEXTURE_2D_ARRAY,
                array_size: 3,
                ..picture_of(8, 8)
            },
            3,
        ),
    ] {
        let mut create = uapi::ResourceCreate {
            size: 4 * PAGE as u32,
            ..create
        };
        let image = device.create_image(&mut create)?;
        let map = image.map()?;
        let (width, height) = (create.width, create.height);
        let (stride, layer) = (4 * width, 4 * width * height);
        let all = cuboid([0; 3], [width, height, layers]);
        let inner = cuboid([1, 1, 1], [width - 2, height - 2, layers - 1]);
        for region in [all, inner] {
            let at = |offset| Region {
                region,
                offset,
                ..Default::default()
            };
            let both = (at(0), at(2048));
            moved(
                &device,
                image.handle(),
                &map,
                both,
                (stride, layer, 4),
                what,
            )?;
        }
    }
    Ok(())
}

pub(crate) fn buffer(env: &Env) -> TestResult {
    let device = env.compute()?;
    let image = device.create_buffer(3 * PAGE as u32)?;
    let map = image.map()?;
    let data = there_and_back(
        &device,
        image.handle(),
        &map,
        &Region::bytes(0, 3 * PAGE as u32),
        5,
    )?;
    check!(map.to_vec(0, 3 * PAGE) == data, "all bytes came back");
    // A part in the middle.
    map.fill(0);
    image.from_host(&Region::bytes(4001, 5003))?;
    check!(
        map.to_vec(4001, 5003) == data[4001..9004],
        "the part came back"
    );
    check_eq!(map.to_vec(4000, 1)[0], 0, "the byte before");
    check_eq!(map.to_vec(9004, 1)[0], 0, "the byte behind");
    Ok(())
}

pub(crate) fn many_pages(env: &Env) -> TestResult {
    let device = env.compute()?;
    let image = device.create_picture(1024, 2048)?;
    let map = image.map()?;
    let region = Region::picture(1024, 2048);
    let data = there_and_back(&device, image.handle(), &map, &region, 6)?;
    let got = map.to_vec(0, data.len());
    check_eq!(
        compute::crc32c(0, &got),
        compute::crc32c(0, &data),
        "CRC32C"
    );
    if env.ours {
        let query = device.query(image.handle())?;
        check_eq!(query.size, 8 << 20, "bytes in BO_QUERY");
        check_eq!(query.mapped_bytes, 8 << 20, "bytes that the host has");
        check_eq!(
            query.memory_model,
            uapi::memory_model::PERMANENT,
            "memory model"
        );
    }
    Ok(())
}

pub(crate) fn formats(env: &Env) -> TestResult {
    let device = env.compute()?;
    for (format, pixel) in [
        (format::R8_UNORM, 1),
        (format::R8G8_UNORM, 2),
        (format::R8G8B8_UNORM, 3),
        (format::R8G8B8A8_UNORM, 4),
        (format::R16G16B16A16_UNORM, 8),
        (format::R32G32B32A32_FLOAT, 16),
    ] {
        let mut create = uapi::ResourceCreate {
            format,
            size: PAGE as u32,
            ..picture_of(5, 6)
        };
        let image = device.create_image(&mut create)?;
        let map = image.map()?;
        let region = Region::picture(5, 6);
        let data = there_and_back(&device, image.handle(), &map, &region, pixel)?;
        let bytes = 5 * 6 * pixel as usize;
        check!(
            map.to_vec(0, bytes) == data[..bytes],
            "format {format}: {bytes} bytes came back"
        );
        check_eq!(
            map.to_vec(bytes, 1)[0],
            0x5a,
            "format {format}: the byte behind"
        );
    }
    Ok(())
}

/// Creating makes a context without capability set, after which there cannot be another.
fn without_context_init(env: &Env) -> TestResult {
    let device = env.open()?;
    let image = device.create_picture(16, 16)?;
    let map = image.map()?;
    let region = Region::picture(16, 16);
    let data = there_and_back(&device, image.handle(), &map, &region, 8)?;
    check!(map.to_vec(0, 1024) == data[..1024], "it came back");
    check_err!(
        device.context_init_compute(1),
        Errno::EXIST,
        "CONTEXT_INIT after a picture"
    );
    Ok(())
}

/// What the host refuses moves nothing.
fn wrong_boxes(env: &Env) -> TestResult {
    let device = env.compute()?;
    let image = device.create_picture(16, 16)?;
    let map = image.map()?;
    let whole = Region::picture(16, 16);
    let data = there_and_back(&device, image.handle(), &map, &whole, 9)?;
    let full = whole.region;
    let wrong = [
        (
            "no pixels",
            Region {
                region: Box3d { w: 0, ..full },
                ..whole
            },
        ),
        (
            "no rows",
            Region {
                region: Box3d { h: 0, ..full },
                ..whole
            },
        ),
        (
            "no slices",
            Region {
                region: Box3d { d: 0, ..full },
                ..whole
            },
        ),
        (
            "a pixel too many",
            Region {
                region: Box3d { w: 17, ..full },
                ..whole
            },
        ),
        (
            "a row too many",
            Region {
                region: Box3d { h: 17, ..full },
                ..whole
            },
        ),
        (
            "a slice too many",
            Region {
                region: Box3d { d: 2, ..full },
                ..whole
            },
        ),
        (
            "beside it",
            Region {
                region: Box3d {
                    x: 16,
                    w: 1,
                    ..full
                },
                ..whole
            },
        ),
        (
            "coordinates that wrap",
            Region {
                region: Box3d {
                    x: u32::MAX,
                    w: 2,
                    ..full
                },
                ..whole
            },
        ),
        (
            "everything at once",
            Region {
                region: cuboid([u32::MAX; 3], [u32::MAX; 3]),
                ..whole
            },
        ),
        ("a level that is not there", Region { level: 1, ..whole }),
        (
            "level 2^32 - 1",
            Region {
                level: u32::MAX,
                ..whole
            },
        ),
        (
            "past the end of the memory",
            Region {
                offset: PAGE as u32 - 1023,
                ..whole
            },
        ),
        (
            "at the very end",
            Region {
                offset: u32::MAX,
                ..whole
            },
        ),
    ];
    map.fill(0x77);
    for (what, region) in &wrong {
        // The host says no, later.
        image.from_host(region)?;
        check!(
            map.to_vec(0, PAGE).iter().all(|&byte| byte == 0x77),
            "from the host: {what}"
        );
        image.to_host(region)?;
    }
    image.from_host(&whole)?;
    check!(
        map.to_vec(0, 1024) == data[..1024],
        "the host's copy is as it was"
    );
    Ok(())
}

/// A transfer comes after the jobs before it, and WAIT waits for it.
pub(crate) fn in_order(env: &Env) -> TestResult {
    let device = env.compute()?;
    let image = device.create_picture(16, 16)?;
    device.wait(image.handle())?;
    let mut stream = compute::Stream::new();
    stream.delay(HALF_SECOND);
    let job = Exec::new(stream.as_bytes()).submit_with_fence(&device)?;
    device.transfer_to_host(image.handle(), &Region::picture(16, 16))?;
    check!(
        device.is_busy(image.handle())?,
        "busy while the job before it runs"
    );
    device.wait(image.handle())?;
    check_eq!(
        job.status()?,
        virtgpu_client::SyncStatus::Signalled,
        "the job before the transfer"
    );
    check!(!device.is_busy(image.handle())?, "idle after WAIT");
    Ok(())
}

pub(crate) fn closed_at_once(env: &Env) -> TestResult {
    let device = env.compute()?;
    for _ in 0..env.iterations(100) {
        let image = device.create_picture(64, 64)?;
        device.transfer_to_host(image.handle(), &Region::picture(64, 64))?;
        device.transfer_from_host(image.handle(), &Region::picture(64, 64))?;
    }
    // The same with the file.
    let other = env.compute()?;
    let image = other.create_picture(64, 64)?;
    other.transfer_from_host(image.handle(), &Region::picture(64, 64))?;
    image.into_handle();
    Ok(())
}

/// A blob with a host's object behind it takes transfers, with strides.
fn of_both_kinds_of_memory(env: &Env) -> TestResult {
    let device = env.compute()?;
    let blob = device.create_blob(&BlobOptions::host3d_guest(4 * PAGE as u64, 1))?;
    let region = Region {
        region: cuboid([0; 3], [64, 1, 1]),
        stride: 128,
        layer_stride: 256,
        ..Default::default()
    };
    device.transfer_to_host(blob.handle(), &region)?;
    device.wait(blob.handle())?;
    device.transfer_from_host(blob.handle(), &region)?;
    device.wait(blob.handle())?;
    Ok(())
}

/// Both ioctls refuse the same.
fn refuse_transfers(
    refusing: &Refusing,
    error: Errno,
    what: &str,
    handle: u32,
    region: &Region,
) -> TestResult {
    refusing.refuse(error, &format!("TRANSFER_TO_HOST, {what}"), |device| {
        device.transfer_to_host(handle, region)
    })?;
    refusing.refuse(error, &format!("TRANSFER_FROM_HOST, {what}"), |device| {
        device.transfer_from_host(handle, region)
    })
}

fn refused(env: &Env) -> TestResult {
    let refusing = Refusing::new(env)?;
    let device = &refusing.device;
    let image = device.create_picture(16, 16)?;
    let whole = Region::picture(16, 16);
    let strided = [
        Region {
            stride: 64,
            ..whole
        },
        Region {
            layer_stride: 1024,
            ..whole
        },
    ];
    for region in &strided {
        refuse_transfers(&refusing, Errno::INVAL, "strides", image.handle(), region)?;
    }
    let guest = device.create_blob(&BlobOptions::guest(PAGE as u64))?;
    refuse_transfers(
        &refusing,
        Errno::INVAL,
        "a guest blob",
        guest.handle(),
        &whole,
    )?;
    if env.ours {
        // Linux's driver leaves it to the host to find that there is nothing to copy.
        let host = device.create_blob(&BlobOptions::host3d(PAGE as u64, 1))?;
        refuse_transfers(
            &refusing,
            Errno::INVAL,
            "a host blob",
            host.handle(),
            &whole,
        )?;
        let memory = small_pages(PAGE)?;
        let userptr = device.register(&memory, RegisterOptions::pinned())?;
        refuse_transfers(
            &refusing,
            Errno::INVAL,
            "user memory",
            userptr.handle(),
            &whole,
        )?;
        let mirrored = device.register(&memory, RegisterOptions::mirrored())?;
        refuse_transfers(
            &refusing,
            Errno::INVAL,
            "mirrored memory",
            mirrored.handle(),
            &whole,
        )?;
    }
    Ok(())
}

fn bad_handles(env: &Env) -> TestResult {
    let refusing = Refusing::new(env)?;
    let other = env.compute()?;
    let of_other: Vec<_> = (0..8)
        .map(|_| other.create_picture(4, 4))
        .collect::<Result<_, _>>()?;
    let region = Region::picture(4, 4);
    for handle in [0, 12345, u32::MAX, of_other[7].handle()] {
        let what = format!("handle {handle}");
        refuse_transfers(&refusing, Errno::NOENT, &what, handle, &region)?;
    }
    if env.ours {
        // More than there is; Linux's driver tries.
        refusing.one_of(&[Errno::NOMEM], "4 GiB", |device| {
            device
                .create_image(&mut uapi::ResourceCreate {
                    size: u32::MAX,
                    ..picture_of(4, 4)
                })
                .map(drop)
        })?;
    }
    Ok(())
}

/// RESOURCE_CREATE does not wait for the host; that it has refused is told by what comes next.
fn refused_by_the_host(env: &Env) -> TestResult {
    if !env.ours {
        skip!("Linux's driver forgets what the host answers");
    }
    let device = env.compute()?;
    for (what, mut create, error) in [
        (
            "a format",
            uapi::ResourceCreate {
                format: 9999,
                ..picture_of(4, 4)
            },
            Errno::INVAL,
        ),
        (
            "a target",
            uapi::ResourceCreate {
                target: 99,
                ..picture_of(4, 4)
            },
            Errno::INVAL,
        ),
        (
            "no rows",
            uapi::ResourceCreate {
                size: PAGE as u32,
                height: 0,
                ..picture_of(4, 4)
            },
            Errno::INVAL,
        ),
        (
            "more than the host has",
            uapi::ResourceCreate {
                target: target::TEXTURE_3D,
                depth: 2048,
                width: 2048,
                height: 2048,
                size: PAGE as u32,
                ..picture_of(4, 4)
            },
            Errno::NOMEM,
        ),
    ] {
        let image = device.create_image(&mut create)?;
        check_err!(device.wait(image.handle()), error, "WAIT, {what}");
        check_err!(
            device.wait_with(image.handle(), uapi::WAIT_NOWAIT),
            error,
            "WAIT with NOWAIT, {what}"
        );
        let region = Region::picture(1, 1);
        check_err!(
            device.transfer_to_host(image.handle(), &region),
            error,
            "TRANSFER_TO_HOST, {what}"
        );
        check_err!(
            device.transfer_from_host(image.handle(), &region),
            error,
            "TRANSFER_FROM_HOST, {what}"
        );
        check_eq!(
            device.query(image.handle())?.mapped_bytes,
            0,
            "what the host has, {what}"
        );
        // The guest's part is there.
        image.map()?.write_u32(0, 1);
    }
    // A blob that the host refuses tells as well: it has no room for this one.
    let blob = device.create_blob(&BlobOptions {
        flags: 0,
        ..BlobOptions::host3d(1 << 40, 1)
    })?;
    check_err!(device.wait(blob.handle()), Errno::NOMEM, "WAIT for a blob");
    Ok(())
}

/// A picture with known pixels, and its dma-buf.
fn shared(device: &Device, seed: u64) -> TestResult<(Vec<u8>, std::os::fd::OwnedFd)> {
    let image = device.create_picture(16, 16)?;
    let map = image.map()?;
    let data = Random(seed).bytes(1024);
    map.write(0, &data);
    image.to_host(&Region::picture(16, 16))?;
    map.fill(0);
    Ok((data, device.prime_export(image.handle())?))
}

/// Reads the picture back through another file's handle.
fn reads_back(device: &Device, handle: u32, data: &[u8], what: &str) -> TestResult {
    let mapping = virtgpu_client::Mapping::file(
        device,
        device.map_offset(handle)?,
        PAGE,
        rustix::mm::ProtFlags::READ | rustix::mm::ProtFlags::WRITE,
        rustix::mm::MapFlags::SHARED,
    )?;
    mapping.fill(0x11);
    device.transfer_from_host(handle, &Region::picture(16, 16))?;
    device.wait(handle)?;
    check!(
        mapping.to_vec(0, data.len()) == data,
        "{what}: the host's copy came back"
    );
    Ok(())
}

/// What a file has handles to before it has a context is attached when it has one.
fn opened_before_the_context(env: &Env) -> TestResult {
    if !env.ours {
        skip!("Linux's driver never attaches what was opened before");
    }
    let first = env.compute()?;
    let (data, dmabuf) = shared(&first, 21)?;
    let (other_data, other) = shared(&first, 22)?;

    let second = env.open()?;
    let handle = second.prime_import(&dmabuf)?;
    let closed = second.prime_import(&other)?;
    second.gem_close(closed)?;
    second.context_init_compute(2)?;
    reads_back(&second, handle, &data, "before CONTEXT_INIT")?;
    let after = second.prime_import(&other)?;
    reads_back(&second, after, &other_data, "after CONTEXT_INIT")?;

    // The transfer itself makes the context.
    let third = env.open()?;
    let handle = third.prime_import(&dmabuf)?;
    reads_back(&third, handle, &data, "without CONTEXT_INIT")
}

/// A context has a resource until the last handle of its file is closed.
fn two_handles(env: &Env) -> TestResult {
    const DROP_MASTER: u32 = ((b'd' as u32) << 8) | 0x1f;
    if !env.ours {
        skip!("Linux's driver detaches with the first handle");
    }
    let Some(path) = crate::handles::card() else {
        skip!("no primary node")
    };
    let device = Device::open_path(&path)?;
    // SAFETY: The ioctl takes no argument.
    let dropped = unsafe { ioctl::call(&device, DROP_MASTER, std::ptr::null_mut()) };
    if let Err(error) = dropped {
        skip!("cannot stop being master: {error}");
    }
    device.context_init_compute(1)?;
    let image = device.create_picture(16, 16)?;
    let map = image.map()?;
    let data = there_and_back(&device, image.handle(), &map, &Region::picture(16, 16), 23)?;
    let name = device.gem_flink(image.handle())?;
    let (second, third) = (device.gem_open(name)?, device.gem_open(name)?);
    device.gem_close(second)?;
    drop(image);
    reads_back(&device, third, &data[..1024], "the last handle")?;
    device.gem_close(third)?;
    Ok(())
}

/// Files see each other's pictures only through a handle of their own.
fn of_another_context(env: &Env) -> TestResult {
    let (first, second) = (env.compute()?, env.compute()?);
    let (data, dmabuf) = shared(&first, 24)?;
    let handle = second.prime_import(&dmabuf)?;
    reads_back(&second, handle, &data, "a second file")?;
    // And the pages of the resource are the same for both.
    let again = first.prime_import(&dmabuf)?;
    reads_back(&first, again, &data, "the first file, again")?;
    first.gem_close(again)?;
    reads_back(&second, handle, &data, "the second file alone")
}

fn no_contexts(env: &Env) -> TestResult {
    let device = env.open()?;
    for param in [
        uapi::param::THREE_D_FEATURES,
        uapi::param::CONTEXT_INIT,
        uapi::param::EXPLICIT_DEBUG_NAME,
    ] {
        check_eq!(device.getparam(param)?, 0, "parameter {param}");
    }
    check_err!(device.context_init_compute(1), Errno::INVAL, "CONTEXT_INIT");
    check_err!(Exec::new(&[]).submit(&device), Errno::NOSYS, "EXECBUFFER");
    check_err!(device.caps(29, 1, &mut [0; 4]), Errno::NOSYS, "GET_CAPS");
    Ok(())
}

fn flat_picture(env: &Env) -> TestResult {
    let device = env.open()?;
    for (width, height) in [(1, 1), (16, 16), (640, 480)] {
        let image = device.create_picture(width, height)?;
        let map = image.map()?;
        map.fill(0x42);
        image.to_host(&Region::picture(width, height))?;
        check!(!device.is_busy(image.handle())?, "idle after WAIT");
        check_eq!(map.to_vec(0, 1)[0], 0x42, "the guest's memory");
    }
    Ok(())
}

fn flat_pictures_only(env: &Env) -> TestResult {
    let device = env.open()?;
    let good = picture_of(16, 16);
    for (what, create) in [
        (
            "a target",
            uapi::ResourceCreate {
                target: target::TEXTURE_3D,
                ..good
            },
        ),
        (
            "target 0",
            uapi::ResourceCreate {
                target: target::BUFFER,
                ..good
            },
        ),
        ("two slices", uapi::ResourceCreate { depth: 2, ..good }),
        (
            "two layers",
            uapi::ResourceCreate {
                array_size: 2,
                ..good
            },
        ),
        (
            "three levels",
            uapi::ResourceCreate {
                last_level: 2,
                ..good
            },
        ),
        (
            "two samples",
            uapi::ResourceCreate {
                nr_samples: 2,
                ..good
            },
        ),
    ] {
        let mut create = create;
        check_err!(
            device.create_image(&mut create).map(drop),
            Errno::INVAL,
            "{what}"
        );
    }
    // What says nothing is taken for one.
    let mut plain = uapi::ResourceCreate {
        depth: 0,
        array_size: 0,
        ..good
    };
    device.create_image(&mut plain)?;
    Ok(())
}

fn flat_one_way(env: &Env) -> TestResult {
    let device = env.open()?;
    let image = device.create_picture(16, 16)?;
    let region = Region::picture(16, 16);
    check_err!(
        device.transfer_from_host(image.handle(), &region),
        Errno::NOSYS,
        "TRANSFER_FROM_HOST"
    );
    check_err!(
        device.transfer_from_host(12345, &region),
        Errno::NOSYS,
        "TRANSFER_FROM_HOST of nothing"
    );
    check_err!(
        device.transfer_to_host(12345, &region),
        Errno::NOENT,
        "TRANSFER_TO_HOST of nothing"
    );
    // What is for contexts only is not looked at.
    image.to_host(&Region {
        level: 3,
        stride: 64,
        layer_stride: 1,
        ..region
    })?;
    Ok(())
}

fn flat_refused_by_the_host(env: &Env) -> TestResult {
    if !env.ours {
        skip!("Linux's driver forgets what the host answers");
    }
    let device = env.open()?;
    // One that only contexts know.
    let mut create = uapi::ResourceCreate {
        format: format::R8_UNORM,
        ..picture_of(4, 4)
    };
    let image = device.create_image(&mut create)?;
    check_err!(device.wait(image.handle()), Errno::INVAL, "WAIT");
    check_err!(
        device.transfer_to_host(image.handle(), &Region::picture(4, 4)),
        Errno::INVAL,
        "TRANSFER_TO_HOST"
    );
    Ok(())
}

fn flat_blobs(env: &Env) -> TestResult {
    let device = env.open()?;
    let blob = device.create_blob(&BlobOptions::guest(PAGE as u64))?;
    blob.map()?.write_u32(0, 1);
    check_err!(
        device.transfer_to_host(blob.handle(), &Region::picture(4, 4)),
        Errno::INVAL,
        "TRANSFER_TO_HOST of a blob"
    );
    for options in [
        BlobOptions::host3d(PAGE as u64, 1),
        BlobOptions::host3d_guest(PAGE as u64, 1),
    ] {
        check_err!(
            device.create_blob(&options).map(drop),
            Errno::INVAL,
            "memory of the host, {options:?}"
        );
    }
    if env.ours {
        // Nobody uses it, but it can be registered.
        let memory = small_pages(PAGE)?;
        device
            .register(&memory, RegisterOptions::pinned())?
            .close()?;
    }
    check!(
        eventually(job::LIMIT, || device.is_busy(blob.handle()) == Ok(false)),
        "the blob is idle"
    );
    Ok(())
}
