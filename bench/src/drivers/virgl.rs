// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! On QEMU's virtio-gpu-gl with OpenGL: resources, copies between guest and host, jobs, fences.

use virtgpu_client::protocol::uapi::ResourceCreate;
use virtgpu_client::protocol::virtio_gpu::capset;
use virtgpu_client::protocol::virtio_gpu_image::{format, target};
use virtgpu_client::{Bytes, Device, Exec, Image, Region};

use crate::meter::{Meter, Number};
use crate::setup::{wait, Result, MIB};

/// `VIRGL_BIND_VERTEX_BUFFER`: a buffer that has storage of its own on the host.
const BIND_VERTEX_BUFFER: u32 = 1 << 4;
/// `VIRGL_CCMD_NOP`, without operands: a whole job.
const NOP: [u8; 4] = [0; 4];

pub(super) fn numbers(device: &Device, meter: &mut Meter) -> Result<Vec<Number>> {
    device.context_init_capset(capset::VIRGL2, 1)?;
    let copies = Copies::new(device)?;
    Ok(vec![
        meter.number(
            "virgl-create",
            "a host buffer of 64 KiB created and closed",
            |meter| resources(device, meter),
        )?,
        meter.number(
            "virgl-execbuffer",
            "round trip of a job that does nothing",
            |meter| meter.median(1000, |meter| meter.trip(&Exec::new(&NOP), device)),
        )?,
        meter.number(
            "virgl-to-host",
            "1 MiB copied to the host and waited for",
            |meter| copies.upload(meter),
        )?,
        meter.number(
            "virgl-from-host",
            "1 MiB copied from the host and waited for",
            |meter| copies.download(meter),
        )?,
        meter.number(
            "virgl-fence",
            "from the job's last write to the return of poll",
            |meter| copies.latency(meter),
        )?,
    ])
}

fn buffer(device: &Device, size: u32) -> Result<Image<'_>> {
    Ok(device.create_image(&mut ResourceCreate {
        target: target::BUFFER,
        format: format::R8_UNORM,
        bind: BIND_VERTEX_BUFFER,
        width: size,
        height: 1,
        depth: 1,
        array_size: 1,
        size,
        ..Default::default()
    })?)
}

fn resources(device: &Device, meter: &mut Meter) -> Result<f64> {
    let create = || buffer(device, 64 << 10).map(drop);
    meter.median(40, |meter| {
        meter.batch(25, create, || wait(&Exec::new(&NOP), device))
    })
}

/// Copies of a buffer. The last word shows that they have happened.
struct Copies<'d> {
    device: &'d Device,
    buffer: Image<'d>,
    map: virtgpu_client::BlobMap,
}

const SIZE: usize = MIB;
const LAST: usize = SIZE - 8;
const PATTERN: u8 = 0x5a;

impl<'d> Copies<'d> {
    fn new(device: &'d Device) -> Result<Self> {
        let buffer = buffer(device, SIZE as u32)?;
        let map = buffer.map()?;
        map.fill(PATTERN);
        Ok(Self {
            device,
            buffer,
            map,
        })
    }

    fn everything() -> Region {
        Region::bytes(0, SIZE as u32)
    }

    fn upload(&self, meter: &mut Meter) -> Result<f64> {
        let handle = self.buffer.handle();
        let mut count = 0_u64;
        let time = meter.median(200, |meter| {
            count += 1;
            self.map.write_u64(LAST, count);
            meter.round(
                || Ok(self.device.transfer_to_host(handle, &Self::everything())?),
                |()| Ok(self.device.wait(handle)?),
            )
        })?;
        self.map.fill(0);
        self.buffer.from_host(&Self::everything())?;
        let start = self.map.to_vec(0, LAST);
        if self.map.read_u64(LAST) != count || start.iter().any(|byte| *byte != PATTERN) {
            return Err("the host has not got what was copied to it".into());
        }
        Ok(time)
    }

    fn download(&self, meter: &mut Meter) -> Result<f64> {
        let handle = self.buffer.handle();
        meter.median(200, |meter| {
            self.map.write_u64(LAST, 0);
            let time = meter.round(
                || {
                    Ok(self
                        .device
                        .transfer_from_host(handle, &Self::everything())?)
                },
                |()| Ok(self.device.wait(handle)?),
            )?;
            if self.map.read_u64(LAST) == 0 {
                return Err("nothing was copied from the host".into());
            }
            Ok(time)
        })
    }

    fn latency(&self, meter: &mut Meter) -> Result<f64> {
        let job = copy_from_host(self.buffer.resource(), SIZE as u32).repeat(meter.stretch());
        let buffers = [self.buffer.handle()];
        meter.median(200, |meter| {
            self.map.write_u64(LAST, 0);
            meter.woken(
                || self.map.read_u64(LAST) != 0,
                || {
                    Exec::new(&job)
                        .buffers(&buffers)
                        .submit_with_fence(self.device)
                },
            )
        })
    }
}

/// A job that copies the first `size` bytes of a buffer to its guest memory:
/// `VIRGL_CCMD_TRANSFER3D`.
fn copy_from_host(resource: u32, size: u32) -> Vec<u8> {
    const TRANSFER3D: u32 = 43;
    const FROM_HOST: u32 = 2;
    const OPERANDS: u32 = 13;
    let header = TRANSFER3D | (OPERANDS << 16);
    let (level, usage, stride, layer_stride) = (0, 0, 0, 0);
    let (x, y, z, width, height, depth) = (0, 0, 0, size, 1, 1);
    let offset = 0;
    [
        header,
        resource,
        level,
        usage,
        stride,
        layer_stride,
        x,
        y,
        z,
        width,
        height,
        depth,
        offset,
        FROM_HOST,
    ]
    .into_iter()
    .flat_map(u32::to_le_bytes)
    .collect()
}
