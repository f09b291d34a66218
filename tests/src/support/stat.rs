// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! What the device itself says: its response to STAT, for which no driver counts anything.

use virtgpu_client::protocol::compute::Stat;
use virtgpu_client::{compute, Blob, BlobMap, Device, Exec};

use crate::ktap::TestResult;
use crate::support::job;

/// Where the device writes its counts.
pub(crate) struct Oracle<'a> {
    device: &'a Device,
    blob: Blob<'a>,
    map: BlobMap,
}

impl<'a> Oracle<'a> {
    /// One for a device with a compute context.
    pub(crate) fn new(device: &'a Device) -> TestResult<Self> {
        // As large as any device of the tests wants blobs to be.
        let blob = job::shared_blob(device, 65536)?;
        let map = blob.map()?;
        Ok(Self { device, blob, map })
    }

    /// The counts of the device.
    pub(crate) fn read(&self) -> TestResult<Stat> {
        self.read_of(0)
    }

    /// The same, and those of the space of `resource`.
    pub(crate) fn read_of(&self, resource: u32) -> TestResult<Stat> {
        let job = self.job(resource);
        job::run(self.device, &job, &[self.blob.handle()])?;
        Ok(self.result())
    }

    /// [`Self::read_of`] on a ring, so that it does not wait for jobs of others.
    pub(crate) fn read_on(&self, ring: u32, resource: u32) -> TestResult<Stat> {
        Exec::new(self.job(resource).as_bytes())
            .ring(ring)
            .buffers(&[self.blob.handle()])
            .submit_with_fence(self.device)?
            .wait(Some(job::LIMIT))?;
        Ok(self.result())
    }

    fn job(&self, resource: u32) -> compute::Stream {
        let mut job = compute::Stream::new();
        job.stat_of(self.blob.at(0), resource);
        job
    }

    fn result(&self) -> Stat {
        compute::read_stat(&self.map, 0)
    }
}

/// The counts of the device.
pub(crate) fn read(device: &Device) -> TestResult<Stat> {
    Oracle::new(device)?.read()
}
