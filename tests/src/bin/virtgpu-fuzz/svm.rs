// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! The ioctls of shared virtual memory, and jobs with pointers into memory in which mappings come
//! and go.

use virtgpu_client::compute::Stream;
use virtgpu_client::protocol::compute::Operand;
use virtgpu_client::protocol::uapi::{self, nr, svm_wait};

use crate::call::Call;
use crate::core_ioctls::now;
use crate::pick::{self, chance};
use crate::standard::{Maker, COMMAND, RESULTS};
use crate::world::DrmFile;

/// Most bytes that an operation goes over.
const LONGEST: u64 = 1 << 18;
/// How long a program waits that means it, in nanoseconds.
const PATIENCE: i64 = 50_000_000;

impl Maker<'_> {
    /// Any of them.
    pub(crate) fn svm(&mut self, file: &DrmFile) -> Call {
        match self.random.below(8) {
            0 => self.svm_enable(file),
            1 | 2 => self.svm_prefetch(file),
            3 => self.svm_query(file),
            4 | 5 => self.svm_wait(file),
            _ => self.pointer_job(file),
        }
    }

    pub(crate) fn svm_enable(&mut self, file: &DrmFile) -> Call {
        let enable = uapi::SvmEnable {
            flags: self.random.below(4) as u32,
            workers: self.random.below(u64::from(uapi::SVM_MAX_WORKERS) + 1) as u32,
            cookie: self.random.next(),
            ..Default::default()
        };
        Call::virtgpu(file.fd, nr::SVM_ENABLE, &enable)
    }

    pub(crate) fn svm_prefetch(&mut self, file: &DrmFile) -> Call {
        let (start, length) = pick::range(self.random);
        let mut prefetch = uapi::SvmPrefetch {
            addr: start as u64,
            length: length as u64,
            flags: self.random.below(2) as u32,
            ..Default::default()
        };
        if chance(self.random, 1, 16) {
            prefetch.length = pick::number(self.random);
        }
        Call::virtgpu(file.fd, nr::SVM_PREFETCH, &prefetch)
    }

    pub(crate) fn svm_query(&mut self, file: &DrmFile) -> Call {
        Call::virtgpu(file.fd, nr::SVM_QUERY, &uapi::SvmQuery::default())
    }

    pub(crate) fn svm_wait(&mut self, file: &DrmFile) -> Call {
        let mut wait = uapi::SvmWait {
            deadline_ns: match self.random.below(3) {
                0 => 0,
                _ => now() + PATIENCE,
            },
            ..Default::default()
        };
        match chance(self.random, 1, 2) {
            true => wait.ring = self.random.below(4) as u32,
            false => {
                wait.op = svm_wait::EQ + self.random.below(6) as u32;
                wait.addr = self.pointer(RESULTS) & !7;
                wait.value = self.random.below(2);
                wait.mask = u64::MAX;
            }
        }
        Call::virtgpu(file.fd, nr::SVM_WAIT, &wait)
    }

    /// EXECBUFFER of a job with pointers.
    pub(crate) fn pointer_job(&mut self, file: &DrmFile) -> Call {
        let mut stream = Stream::new();
        for _ in 0..1 + self.random.below(4) {
            let (to, room) = self.place();
            let (from, there) = self.place();
            let random = &mut *self.random;
            match random.below(7) {
                0 | 1 => stream.add_u32(to, room, 1),
                2 => stream.fill(to, room, random.next()),
                3 => stream.atomic_add(to, 1, 1 + random.below(8)),
                4 => stream.crc32c(to, from, there),
                5 => stream.stride_read(to, from, there, 64),
                _ => stream.delay(random.below(3000)),
            };
        }
        let job = stream.as_bytes();
        self.store(COMMAND, job);
        let exec = uapi::ExecBuffer {
            flags: uapi::EXECBUF_RING_IDX,
            size: job.len() as u32,
            command: self.pointer(COMMAND),
            fence_fd: -1,
            ring_idx: self.random.below(4) as u32,
            ..Default::default()
        };
        Call::virtgpu(file.fd, nr::EXECBUFFER, &exec)
    }

    /// Somewhere in the memory that all threads share, and how many bytes follow there.
    fn place(&mut self) -> (Operand, u64) {
        let (start, length) = pick::range(self.random);
        let (start, length) = (start as u64, length as u64);
        let offset = self.random.below(length / 8) * 8;
        let room = (length - offset).min(LONGEST);
        (Operand::resource(0, start + offset), room)
    }
}
