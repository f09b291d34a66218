// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! The ioctls for user memory, with arguments that are good more often than not; and numbers that
//! are no one's.

use virtgpu_client::protocol::uapi::{self, nr};
use virtgpu_client::protocol::virtio_gpu::blob_mem;

use crate::call::{number_of, Call};
use crate::pick::{self, chance, one_of};
use crate::standard::Maker;
use crate::support::PAGE;
use crate::world::DrmFile;

impl Maker<'_> {
    /// Any of them.
    pub(crate) fn extension(&mut self, file: &DrmFile) -> Call {
        match self.random.below(14) {
            0..=4 => self.register(file),
            5 | 6 => self.query(file),
            7 | 8 => self.prefetch(file),
            9..=12 => self.svm(file),
            _ => self.unknown(file),
        }
    }

    pub(crate) fn register(&mut self, file: &DrmFile) -> Call {
        let (start, length) = pick::range(self.random);
        let random = &mut *self.random;
        let mut register = uapi::UserptrRegister {
            addr: start as u64,
            size: length as u64,
            blob_mem: blob_mem::GUEST,
            cookie: random.next(),
            ..Default::default()
        };
        if chance(random, 1, 8) {
            register.blob_mem = blob_mem::HOST3D_GUEST;
            register.blob_id = random.below(4);
        }
        // One flag more, of four.
        let some = |random: &mut _, flag| if chance(random, 1, 3) { flag } else { 0 };
        register.flags = some(random, uapi::USERPTR_RDONLY) | some(random, uapi::USERPTR_PREFAULT);
        match random.below(8) {
            0..=2 => register.flags |= uapi::USERPTR_PINNED,
            3 => {
                register.flags |= uapi::USERPTR_PINNED | uapi::USERPTR_FD;
                register.addr = 0;
                register.fd_offset = random.below(4) * PAGE as u64;
                register.fd = self.world.any_fd(random);
            }
            _ => {
                register.flags |= uapi::USERPTR_MIRRORED
                    | some(random, uapi::USERPTR_EVENT)
                    | some(random, uapi::USERPTR_SPARSE);
                // Much more than is mapped.
                if chance(random, 1, 16) {
                    register.size = 1 << (21 + random.below(20));
                }
            }
        }
        Call::virtgpu(file.fd, nr::USERPTR_REGISTER, &register)
    }

    pub(crate) fn query(&mut self, file: &DrmFile) -> Call {
        let query = uapi::BoQuery {
            bo_handle: self.handle(file),
            ..Default::default()
        };
        Call::virtgpu(file.fd, nr::BO_QUERY, &query)
    }

    pub(crate) fn prefetch(&mut self, file: &DrmFile) -> Call {
        let buffer = one_of(self.random, &file.buffers)
            .copied()
            .unwrap_or_default();
        let page = PAGE as u64;
        let pages = (buffer.size / page).max(1);
        let first = self.random.below(pages);
        let mut prefetch = uapi::UserptrPrefetch {
            bo_handle: buffer.handle,
            offset: first * page,
            length: (1 + self.random.below(pages - first)) * page,
            ..Default::default()
        };
        if chance(self.random, 1, 16) {
            prefetch.length = pick::number(self.random);
        }
        Call::virtgpu(file.fd, nr::USERPTR_PREFETCH, &prefetch)
    }

    /// A number that the driver does not have.
    fn unknown(&mut self, file: &DrmFile) -> Call {
        let length = self.random.below(257) as usize;
        let bytes = self.random.bytes(length);
        let number = match self.random.below(3) {
            0 => 0x0c + self.random.below(0x40 - 0x0c),
            1 => 0x45,
            _ => 0x48 + self.random.below(0x60 - 0x48),
        };
        Call::core(file.fd, number_of(number as u32), &bytes)
    }
}
