// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! On QEMU's virtio-gpu-gl with Vulkan: blobs of the guest and of the host, jobs, fences.

use virtgpu_client::protocol::virtio_gpu::capset;
use virtgpu_client::{Blob, BlobMap, BlobOptions, Bytes, Device, Exec};

use super::venus_stream::Stream;
use crate::meter::{Meter, Number};
use crate::setup::{wait, Result};

/// The ring whose fences signal when the host has read the commands.
const CPU_RING: u32 = 0;
/// The ring of a queue of the Vulkan device.
const QUEUE_RING: u32 = 1;

pub(super) fn numbers(device: &Device, meter: &mut Meter) -> Result<Vec<Number>> {
    device.context_init_capset(capset::VENUS, 2)?;
    let replies = Replies::new(device)?;
    replies.bind_queue()?;
    Ok(vec![
        meter.number(
            "venus-guest-blob",
            "a guest blob of 64 KiB created and closed",
            |meter| guest_blobs(device, meter),
        )?,
        meter.number(
            "venus-host-blob",
            "a host blob of 64 KiB created, mapped, written, unmapped and closed",
            |meter| host_blobs(device, meter),
        )?,
        meter.number(
            "venus-execbuffer",
            "round trip of a job that does nothing",
            |meter| trips(device, meter),
        )?,
        meter.number(
            "venus-fence",
            "from the job's last write to the return of poll, ring 0",
            |meter| replies.latency(CPU_RING, meter),
        )?,
        meter.number(
            "venus-fence-queue",
            "the same on the ring of a Vulkan queue",
            |meter| replies.latency(QUEUE_RING, meter),
        )?,
    ])
}

/// The host makes shared memory for a blob that names no Vulkan memory.
const SHARED_MEMORY: u64 = 0;

fn settle(device: &Device) -> Result {
    let mut nothing = Stream::default();
    nothing.nothing();
    wait(&Exec::new(nothing.as_bytes()).ring(CPU_RING), device)
}

fn guest_blobs(device: &Device, meter: &mut Meter) -> Result<f64> {
    let create = || {
        device.create_blob(&BlobOptions::guest(64 << 10))?;
        Ok(())
    };
    meter.median(20, |meter| meter.batch(25, create, || settle(device)))
}

fn host_blobs(device: &Device, meter: &mut Meter) -> Result<f64> {
    let create = || {
        let blob = device.create_blob(&BlobOptions::host3d(64 << 10, SHARED_MEMORY))?;
        let map = blob.map()?;
        map.write_u64(0, 1);
        if map.read_u64(0) != 1 {
            return Err("a host blob does not keep what is written".into());
        }
        Ok(())
    };
    meter.median(10, |meter| meter.batch(10, create, || settle(device)))
}

fn trips(device: &Device, meter: &mut Meter) -> Result<f64> {
    let mut nothing = Stream::default();
    nothing.nothing();
    meter.median(200, |meter| {
        meter.trip(&Exec::new(nothing.as_bytes()).ring(CPU_RING), device)
    })
}

/// Memory that the host writes its responses to.
struct Replies<'d> {
    device: &'d Device,
    blob: Blob<'d>,
    map: BlobMap,
}

const SIZE: u64 = 4096;

impl<'d> Replies<'d> {
    fn new(device: &'d Device) -> Result<Self> {
        let blob = device.create_blob(&BlobOptions::host3d(SIZE, SHARED_MEMORY))?;
        let map = blob.map()?;
        Ok(Self { device, blob, map })
    }

    /// Gives [`QUEUE_RING`] a queue. Without one its fences would never signal.
    fn bind_queue(&self) -> Result {
        let mut stream = Stream::default();
        stream.reply_to(self.blob.resource(), SIZE);
        stream.bind_queue(QUEUE_RING);
        self.map.fill(0);
        wait(&Exec::new(stream.as_bytes()).ring(CPU_RING), self.device)?;
        if self.map.read_u32(0) != Stream::LAST_OF_BIND_QUEUE {
            return Err("the host has made no Vulkan queue".into());
        }
        Ok(())
    }

    fn latency(&self, ring: u32, meter: &mut Meter) -> Result<f64> {
        let mut stream = Stream::default();
        stream.reply_to(self.blob.resource(), SIZE);
        // Long enough for the waiter to sleep.
        for _ in 0..200 {
            stream.nothing();
        }
        stream.version();
        meter.median(100, |meter| {
            self.map.write_u32(Stream::VERSION_AT, 0);
            meter.woken(
                || self.map.read_u32(Stream::VERSION_AT) != 0,
                || {
                    Exec::new(stream.as_bytes())
                        .ring(ring)
                        .submit_with_fence(self.device)
                },
            )
        })
    }
}
