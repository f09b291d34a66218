// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! What the threads have made so far, and share.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Mutex;

use virtgpu_client::drm;
use virtgpu_client::protocol::uapi::{self, nr};

use crate::call::{number_of, Call};
use crate::pick::one_of;
use crate::support::Random;
use crate::sys;

/// Most of each.
const MAX_FILES: usize = 6;
const MAX_BUFFERS: usize = 24;
const MAX_SYNCOBJS: usize = 16;
const MAX_OTHERS: usize = 48;

/// A handle.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Buffer {
    pub(crate) handle: u32,
    /// The host's name of it.
    pub(crate) resource: u32,
    pub(crate) size: u64,
}

/// An open file of the driver.
#[derive(Clone, Debug)]
pub(crate) struct DrmFile {
    pub(crate) fd: i32,
    pub(crate) buffers: Vec<Buffer>,
    pub(crate) syncobjs: Vec<u32>,
}

/// All that can be named by a number.
#[derive(Debug, Default)]
struct Things {
    files: Vec<DrmFile>,
    /// Files of all other kinds: dma-bufs, sync_files, syncobjs, memfds, events.
    others: Vec<i32>,
    /// Those of them that are, or were, sync_files.
    fences: Vec<i32>,
    /// Of FLINK.
    names: Vec<u32>,
    /// Thread ids, for signals.
    threads: Vec<usize>,
}

/// All that can be named by a number, for all threads.
#[derive(Debug, Default)]
pub(crate) struct World {
    things: Mutex<Things>,
    /// The device may misbehave.
    hostile: bool,
    /// Calls that found that the device was lost.
    lost: AtomicU64,
}

/// So many calls are enough to see what the driver does without a device.
const ENOUGH_LOST: u64 = 200;

/// Adds to a list that is not to grow; the oldest goes.
fn push<T>(list: &mut Vec<T>, item: T, limit: usize) -> Option<T> {
    let oldest = (list.len() >= limit).then(|| list.remove(0));
    list.push(item);
    oldest
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes
        .get(at..at + 4)
        .and_then(|word| word.try_into().ok())
        .map_or(0, u32::from_le_bytes)
}

fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from(word(bytes, at)) | (u64::from(word(bytes, at + 4)) << 32)
}

impl World {
    /// Nothing yet.
    pub(crate) fn new(hostile: bool) -> Self {
        Self {
            hostile,
            ..Self::default()
        }
    }

    /// Notes that a call has found no device. Returns whether that may be.
    pub(crate) fn lose(&self) -> bool {
        self.lost.fetch_add(1, Ordering::Relaxed);
        self.hostile
    }

    /// Whether there is nothing left to be done.
    pub(crate) fn is_over(&self) -> bool {
        self.lost.load(Ordering::Relaxed) >= ENOUGH_LOST
    }

    fn with<R>(&self, use_things: impl FnOnce(&mut Things) -> R) -> R {
        // A thread that panicked fails the round; what it held is numbers.
        let mut things = self
            .things
            .lock()
            .unwrap_or_else(|error| error.into_inner());
        use_things(&mut things)
    }

    /// One of the driver's files.
    pub(crate) fn file(&self, random: &mut Random) -> Option<DrmFile> {
        self.with(|things| one_of(random, &things.files).cloned())
    }

    /// What is known of a file by now.
    pub(crate) fn same(&self, file: &DrmFile) -> DrmFile {
        self.with(|things| {
            let now = things.files.iter().find(|now| now.fd == file.fd);
            now.unwrap_or(file).clone()
        })
    }

    /// Any descriptor.
    pub(crate) fn any_fd(&self, random: &mut Random) -> i32 {
        self.with(|things| match random.below(4) {
            0 => one_of(random, &things.files).map(|file| file.fd),
            _ => one_of(random, &things.others).copied(),
        })
        .unwrap_or(-1)
    }

    /// A sync_file, most likely.
    pub(crate) fn fence(&self, random: &mut Random) -> i32 {
        let fence = self.with(|things| one_of(random, &things.fences).copied());
        fence.unwrap_or(-1)
    }

    /// Notes a sync_file.
    pub(crate) fn add_fence(&self, fd: i32) {
        self.with(|things| push(&mut things.fences, fd, MAX_OTHERS));
        self.add_other(fd);
    }

    /// A name that FLINK gave.
    pub(crate) fn name(&self, random: &mut Random) -> u32 {
        self.with(|things| one_of(random, &things.names).copied())
            .unwrap_or(1)
    }

    /// A thread.
    pub(crate) fn thread(&self, random: &mut Random) -> Option<usize> {
        self.with(|things| one_of(random, &things.threads).copied())
    }

    /// Says that the calling thread is one.
    pub(crate) fn enlist(&self) {
        self.with(|things| things.threads.push(sys::thread_id()));
    }

    /// How many of the driver's files are open.
    pub(crate) fn files(&self) -> usize {
        self.with(|things| things.files.len())
    }

    /// Notes a file of the driver. The oldest is closed, if there are many.
    pub(crate) fn add_file(&self, fd: i32) {
        let file = DrmFile {
            fd,
            buffers: Vec::new(),
            syncobjs: Vec::new(),
        };
        let oldest = self.with(|things| push(&mut things.files, file, MAX_FILES));
        if let Some(oldest) = oldest {
            sys::close(oldest.fd);
        }
    }

    /// Notes another descriptor of a file of the driver.
    pub(crate) fn add_duplicate(&self, of: &DrmFile, fd: i32) {
        let duplicate = DrmFile { fd, ..of.clone() };
        let oldest = self.with(|things| push(&mut things.files, duplicate, MAX_FILES));
        if let Some(oldest) = oldest {
            sys::close(oldest.fd);
        }
    }

    /// Takes a file out, to be closed.
    pub(crate) fn take_file(&self, random: &mut Random) -> Option<i32> {
        self.with(|things| {
            let index = random.below(things.files.len().max(1) as u64) as usize;
            (index < things.files.len()).then(|| things.files.swap_remove(index).fd)
        })
    }

    /// Notes a descriptor of another kind. The oldest is closed, if there are many.
    pub(crate) fn add_other(&self, fd: i32) {
        if fd < 3 {
            return;
        }
        if let Some(oldest) = self.with(|things| push(&mut things.others, fd, MAX_OTHERS)) {
            sys::close(oldest);
        }
    }

    /// Takes a descriptor of another kind out, to be closed.
    pub(crate) fn take_other(&self, random: &mut Random) -> Option<i32> {
        self.with(|things| {
            let index = random.below(things.others.len().max(1) as u64) as usize;
            (index < things.others.len()).then(|| things.others.swap_remove(index))
        })
    }

    /// Notes what an ioctl that succeeded has made or ended; `bytes` are those after it.
    pub(crate) fn learn(&self, call: &Call, bytes: &[u8]) {
        const CREATE: u32 = number_of(nr::RESOURCE_CREATE);
        const CREATE_BLOB: u32 = number_of(nr::RESOURCE_CREATE_BLOB);
        const REGISTER: u32 = number_of(nr::USERPTR_REGISTER);
        const EXECBUFFER: u32 = number_of(nr::EXECBUFFER);
        let buffer = |handle, resource, size| Buffer {
            handle,
            resource,
            size,
        };
        match call.nr {
            CREATE => {
                let made = buffer(
                    word(bytes, 40),
                    word(bytes, 44),
                    long(bytes, 48) & 0xffff_ffff,
                );
                self.add_buffer(call.fd, made);
            }
            CREATE_BLOB => {
                let made = buffer(word(bytes, 8), word(bytes, 12), long(bytes, 16));
                self.add_buffer(call.fd, made);
            }
            REGISTER => {
                let made = buffer(word(bytes, 44), word(bytes, 48), long(bytes, 8));
                self.add_buffer(call.fd, made);
            }
            EXECBUFFER if word(bytes, 0) & uapi::EXECBUF_FENCE_FD_OUT != 0 => {
                self.add_fence(word(bytes, 28) as i32);
            }
            number if number == drm::GEM_CLOSE & 0xff => self.forget(call.fd, word(bytes, 0)),
            number if number == drm::GEM_FLINK & 0xff => {
                self.with(|things| push(&mut things.names, word(bytes, 4), MAX_BUFFERS));
            }
            number if number == drm::GEM_OPEN & 0xff => {
                self.add_buffer(call.fd, buffer(word(bytes, 4), 0, long(bytes, 8)));
            }
            number if number == drm::PRIME_HANDLE_TO_FD & 0xff => {
                self.add_other(word(bytes, 8) as i32);
            }
            number if number == drm::PRIME_FD_TO_HANDLE & 0xff => {
                self.add_buffer(call.fd, buffer(word(bytes, 0), 0, 4096));
            }
            number if number == drm::SYNCOBJ_CREATE & 0xff => {
                self.add_syncobj(call.fd, word(bytes, 0));
            }
            number if number == drm::SYNCOBJ_FD_TO_HANDLE & 0xff => {
                self.add_syncobj(call.fd, word(bytes, 0));
            }
            number if number == drm::SYNCOBJ_HANDLE_TO_FD & 0xff => {
                self.add_other(word(bytes, 8) as i32);
            }
            _ => {}
        }
    }

    fn in_file(&self, fd: i32, use_file: impl FnOnce(&mut DrmFile)) {
        self.with(|things| {
            if let Some(file) = things.files.iter_mut().find(|file| file.fd == fd) {
                use_file(file);
            }
        });
    }

    fn add_buffer(&self, fd: i32, buffer: Buffer) {
        self.in_file(fd, |file| {
            // The oldest handle stays open until the file is closed.
            push(&mut file.buffers, buffer, MAX_BUFFERS);
        });
    }

    fn add_syncobj(&self, fd: i32, handle: u32) {
        self.in_file(fd, |file| {
            push(&mut file.syncobjs, handle, MAX_SYNCOBJS);
        });
    }

    fn forget(&self, fd: i32, handle: u32) {
        self.in_file(fd, |file| {
            file.buffers.retain(|buffer| buffer.handle != handle)
        });
    }
}
