// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! What a process can do with files: open, close, duplicate, poll, read events, and the ioctls of
//! dma-bufs and sync_files.

use crate::call::Call;
use crate::ktap::TestResult;
use crate::layout::DATA_SIZE;
use crate::pick::{self, chance};
use crate::standard::{Maker, RESULTS};
use crate::support::PAGE;
use crate::world::DrmFile;
use crate::{sys, trace};

/// Longest poll, in milliseconds.
const POLL_MS: u64 = 3;

const fn iow(group: u8, nr: u32, size: u32) -> u32 {
    (1 << 30) | (size << 16) | ((group as u32) << 8) | nr
}

/// Where the ioctls of dma-bufs and sync_files find their structures.
const STRUCTURE: usize = 32 * PAGE;

impl Maker<'_> {
    /// Opens a node; None if there is none.
    pub(crate) fn open(&mut self) -> Option<DrmFile> {
        // Where the device was removed, or numbers are others.
        let node = match chance(self.random, 1, 8) {
            true => c"/dev/dri/card0",
            false => c"/dev/dri/renderD128",
        };
        // Reads of events must not wait for ever.
        let mut flags = libc::O_RDWR | libc::O_NONBLOCK;
        if chance(self.random, 1, 2) {
            flags |= libc::O_CLOEXEC;
        }
        trace::note(|| format!("open {node:?}"));
        let path = node.as_ptr() as usize;
        let directory = libc::AT_FDCWD as usize;
        let result = sys::call(libc::SYS_openat, [directory, path, flags as usize, 0, 0, 0]);
        trace::ended(&result);
        let fd = result.ok()? as i32;
        self.world.add_file(fd);
        Some(DrmFile {
            fd,
            buffers: Vec::new(),
            syncobjs: Vec::new(),
        })
    }

    /// Any of them, but for opening.
    pub(crate) fn use_files(&mut self, file: &DrmFile) {
        match self.random.below(8) {
            0 => self.close(),
            1 => self.duplicate(file),
            2 | 3 => self.read(file),
            4 => self.poll(file),
            5 => self.fence_ioctl(),
            6 => self.buffer_ioctl(),
            _ => self.look(file),
        }
    }

    fn close(&mut self) {
        let fd = match self.random.below(6) {
            0 if self.world.files() > 1 => self.world.take_file(self.random),
            _ => self.world.take_other(self.random),
        };
        if let Some(fd) = fd {
            trace::note(|| format!("close {fd}"));
            sys::close(fd);
        }
    }

    fn duplicate(&mut self, file: &DrmFile) {
        if !chance(self.random, 1, 4) {
            return;
        }
        if let Ok(fd) = sys::call(libc::SYS_dup, [file.fd as usize, 0, 0, 0, 0, 0]) {
            self.world.add_duplicate(file, fd as i32);
        }
    }

    /// Reads events, into memory of any kind.
    fn read(&mut self, file: &DrmFile) {
        let length = match self.random.below(4) {
            0 => self.random.below(64) as usize,
            _ => PAGE,
        };
        let address = match self.random.below(4) {
            0 => pick::range(self.random).0,
            1 => pick::bad_pointer(self.random, self.scratch),
            _ => self.scratch.data + RESULTS,
        };
        let fd = file.fd as usize;
        trace::note(|| format!("read {fd} {address:#x} {length}"));
        let result = sys::call(libc::SYS_read, [fd, address, length, 0, 0, 0]);
        trace::ended(&result);
    }

    fn poll(&mut self, file: &DrmFile) {
        let fds = [file.fd, self.world.any_fd(self.random)].map(|fd| libc::pollfd {
            fd,
            events: libc::POLLIN | libc::POLLOUT,
            revents: 0,
        });
        let timeout = self.random.below(POLL_MS + 1) as usize;
        trace::note(|| format!("poll {} {}", fds[0].fd, fds[1].fd));
        let mut fds = fds;
        let address = fds.as_mut_ptr() as usize;
        let _ = sys::call(libc::SYS_poll, [address, fds.len(), timeout, 0, 0, 0]);
    }

    /// SYNC_IOC_MERGE and SYNC_IOC_FILE_INFO.
    fn fence_ioctl(&mut self) {
        let fence = |maker: &mut Self| maker.world.fence(maker.random);
        let (fd, other) = (fence(self), fence(self));
        let merge = chance(self.random, 1, 2);
        let mut bytes = vec![0; if merge { 48 } else { 56 }];
        if merge {
            // Name, file, out: file, flags, padding.
            bytes[32..36].copy_from_slice(&other.to_le_bytes());
        } else {
            let count = self.random.below(4) as u32;
            bytes[40..44].copy_from_slice(&count.to_le_bytes());
            bytes[48..56].copy_from_slice(&self.pointer(RESULTS).to_le_bytes());
        }
        if chance(self.random, 1, 8) {
            pick::mutate(self.random, &mut bytes);
        }
        let number = (3 << 30) | ((bytes.len() as u32) << 16) | (u32::from(b'>') << 8);
        let number = number | if merge { 3 } else { 4 };
        if self.other_ioctl(fd, number, &bytes).is_ok() && merge {
            let mut made = [0; 4];
            if sys::read_memory(self.scratch.data + STRUCTURE + 36, &mut made).is_ok() {
                self.world.add_fence(i32::from_le_bytes(made));
            }
        }
    }

    /// DMA_BUF_IOCTL_SYNC, EXPORT_SYNC_FILE and IMPORT_SYNC_FILE.
    fn buffer_ioctl(&mut self) {
        let fd = self.world.any_fd(self.random);
        let fence = self.world.fence(self.random);
        let flags = 1 + self.random.below(3) as u32;
        let mut bytes = Vec::new();
        let number = match self.random.below(3) {
            0 => {
                let end = self.random.below(2) << 2;
                bytes.extend((u64::from(flags) | end).to_le_bytes());
                iow(b'b', 0, 8)
            }
            1 => {
                bytes.extend(flags.to_le_bytes());
                bytes.extend((-1_i32).to_le_bytes());
                iow(b'b', 2, 8) | (2 << 30)
            }
            _ => {
                bytes.extend(flags.to_le_bytes());
                bytes.extend(fence.to_le_bytes());
                iow(b'b', 3, 8)
            }
        };
        if self.other_ioctl(fd, number, &bytes).is_ok() && number & 0xff == 2 {
            let mut made = [0; 4];
            if sys::read_memory(self.scratch.data + STRUCTURE + 4, &mut made).is_ok() {
                self.world.add_fence(i32::from_le_bytes(made));
            }
        }
    }

    fn other_ioctl(&mut self, fd: i32, number: u32, bytes: &[u8]) -> Result<i32, i32> {
        self.store(STRUCTURE, bytes);
        trace::note(|| format!("ioctl {number:#x} of {fd}: {bytes:x?}"));
        let result = sys::ioctl(fd, number, self.scratch.data + STRUCTURE);
        trace::ended(&result);
        result
    }

    /// Looks at the file as others may: fdinfo, maps of it at any offset, seeking.
    fn look(&mut self, file: &DrmFile) {
        match self.random.below(3) {
            0 => {
                let _ = std::fs::read(format!("/proc/self/fdinfo/{}", file.fd));
            }
            1 => {
                let offset = pick::number(self.random) & !(PAGE as u64 - 1);
                let (start, length) = pick::range(self.random);
                let fd = file.fd;
                trace::note(|| format!("mmap of {fd} at {offset:#x}, {start:#x} {length:#x}"));
                let rw = libc::PROT_READ | libc::PROT_WRITE;
                let _ = sys::map(start, length, rw, libc::MAP_SHARED, fd, offset);
            }
            _ => {
                // The size of a dma-buf.
                let fd = self.world.any_fd(self.random) as usize;
                let offset = self.random.below(DATA_SIZE as u64) as usize;
                let whence = [libc::SEEK_SET, libc::SEEK_END][self.random.below(2) as usize];
                let _ = sys::call(libc::SYS_lseek, [fd, offset, whence as usize, 0, 0, 0]);
            }
        }
    }

    /// One of the driver's files, one in 64 times a new one.
    pub(crate) fn file(&mut self) -> TestResult<Option<DrmFile>> {
        if self.world.files() > 0 && !chance(self.random, 1, 64) {
            return Ok(self.world.file(self.random));
        }
        let Some(file) = self.open() else {
            return Ok(None);
        };
        if chance(self.random, 3, 4) {
            let call = self.compute_context(&file);
            call.make(self.world, self.random, self.scratch)?;
        }
        Ok(Some(file))
    }

    /// A call with something wrong in it, some of the time.
    pub(crate) fn maybe_spoil(&mut self, mut call: Call) -> Call {
        if chance(self.random, 1, 3) {
            call.spoil(self.random, self.scratch);
            call.tame(self.random);
        }
        call
    }
}
