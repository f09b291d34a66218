// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! What a process can do with memory, done to the memory that all threads share and register.

use crate::ktap::TestResult;
use crate::layout::{MEMORY, MEMORY_SIZE};
use crate::pick::{self, chance, one_of};
use crate::standard::Maker;
use crate::support::{Random, HUGE, PAGE};
use crate::world::DrmFile;
use crate::{sys, trace};

const RW: i32 = libc::PROT_READ | libc::PROT_WRITE;

/// Protections to try.
const PROTECTIONS: [i32; 4] = [RW, RW, libc::PROT_READ, libc::PROT_NONE];

const MADV_GUARD_INSTALL: i32 = 102;
const MADV_GUARD_REMOVE: i32 = 103;

/// Advice to give. None of it harms the machine (as poisoning pages would).
const ADVICE: [i32; 16] = [
    libc::MADV_DONTNEED,
    libc::MADV_DONTNEED,
    libc::MADV_FREE,
    libc::MADV_COLD,
    libc::MADV_PAGEOUT,
    libc::MADV_HUGEPAGE,
    libc::MADV_NOHUGEPAGE,
    libc::MADV_COLLAPSE,
    libc::MADV_POPULATE_READ,
    libc::MADV_POPULATE_WRITE,
    libc::MADV_POPULATE_WRITE,
    libc::MADV_REMOVE,
    libc::MADV_DONTFORK,
    libc::MADV_DOFORK,
    MADV_GUARD_INSTALL,
    MADV_GUARD_REMOVE,
];

/// Maps all of it, before the threads start.
pub(crate) fn start() -> Result<(), i32> {
    sys::map_anonymous(MEMORY, MEMORY_SIZE, RW)
}

/// A new memfd, of a size that ranges fit in or do not.
pub(crate) fn memfd(random: &mut Random) -> Result<i32, i32> {
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    let name = c"fuzz".as_ptr() as usize;
    let fd = sys::call(libc::SYS_memfd_create, [name, flags as usize, 0, 0, 0, 0])?;
    let size = random.below(2 * HUGE as u64) as usize;
    sys::call(libc::SYS_ftruncate, [fd, size, 0, 0, 0, 0])?;
    Ok(fd as i32)
}

impl Maker<'_> {
    /// Any of them. Errors are the kernel's business.
    pub(crate) fn memory(&mut self) {
        let (start, length) = pick::range(self.random);
        let random = &mut *self.random;
        let _ = match random.below(16) {
            0 => done("munmap", start, length, sys::unmap(start, length)),
            1..=3 => self.map_anything(start, length),
            4 => {
                let protection = PROTECTIONS[random.below(4) as usize];
                done(
                    "mprotect",
                    start,
                    length,
                    sys::protect(start, length, protection),
                )
            }
            5..=9 => {
                let advice = ADVICE[random.below(ADVICE.len() as u64) as usize];
                trace::note(|| format!("madvise {advice} {start:#x} {length:#x}"));
                sys::advise(start, length, advice)
            }
            10 | 11 => {
                let bytes = random.bytes(PAGE);
                done("write", start, PAGE, sys::write_memory(start, &bytes))
            }
            12 => self.remap(start, length),
            13 => {
                let locks = [libc::SYS_mlock, libc::SYS_munlock];
                let arguments = [start, length, 0, 0, 0, 0];
                let result = sys::call(locks[random.below(2) as usize], arguments);
                done("mlock", start, length, result.map(drop))
            }
            _ => self.change_file(),
        };
    }

    fn map_anything(&mut self, start: usize, length: usize) -> Result<(), i32> {
        let random = &mut *self.random;
        let protection = PROTECTIONS[random.below(4) as usize];
        let kind = random.below(8);
        trace::note(|| format!("mmap kind {kind}, {protection} {start:#x} {length:#x}"));
        match kind {
            0 => {
                let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
                sys::map(start, length, protection, flags, -1, 0)
            }
            1 | 2 => {
                let flags = [libc::MAP_SHARED, libc::MAP_PRIVATE][random.below(2) as usize];
                let offset = random.below(16) * PAGE as u64;
                // A memfd, a dma-buf, or a file that cannot be mapped.
                let fd = self.world.any_fd(random);
                sys::map(start, length, protection, flags, fd, offset)
            }
            3 => {
                let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
                sys::map(start, length, protection, flags | libc::MAP_POPULATE, -1, 0)
            }
            _ => sys::map_anonymous(start, length, protection),
        }
    }

    /// Maps a buffer of the driver over the shared memory, so that it may be registered.
    pub(crate) fn map_buffer(&mut self, file: &DrmFile) -> TestResult {
        let Some(buffer) = one_of(self.random, &file.buffers).copied() else {
            return Ok(());
        };
        let map = self.map(file);
        let Some(bytes) = map.make(self.world, self.random, self.scratch)? else {
            return Ok(());
        };
        let offset = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes"));
        let (start, _) = pick::range(self.random);
        let room = MEMORY + MEMORY_SIZE - start;
        let length = (buffer.size as usize)
            .next_multiple_of(PAGE)
            .clamp(PAGE, room);
        let fd = file.fd;
        trace::note(|| format!("mmap of {fd} at {offset:#x}, {start:#x} {length:#x}"));
        let _ = sys::map(start, length, RW, libc::MAP_SHARED, fd, offset);
        if chance(self.random, 1, 2) {
            let _ = sys::advise(start, length, libc::MADV_POPULATE_WRITE);
        }
        Ok(())
    }

    /// Moves mappings inside of the shared memory.
    fn remap(&mut self, start: usize, length: usize) -> Result<(), i32> {
        let (to, _) = pick::range(self.random);
        let to = to.min(MEMORY + MEMORY_SIZE - length);
        let mut flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        if chance(self.random, 1, 4) {
            flags |= libc::MREMAP_DONTUNMAP;
        }
        trace::note(|| format!("mremap {start:#x} {length:#x} to {to:#x}, {flags}"));
        let arguments = [start, length, length, flags as usize, to, 0];
        sys::call(libc::SYS_mremap, arguments).map(drop)
    }

    /// Takes pages out of a file, cuts it, or makes a new one.
    fn change_file(&mut self) -> Result<(), i32> {
        let random = &mut *self.random;
        if chance(random, 1, 3) {
            let fd = memfd(random)?;
            self.world.add_other(fd);
            return Ok(());
        }
        let fd = self.world.any_fd(random) as usize;
        let offset = random.below(64) as usize * PAGE;
        let length = (1 + random.below(64) as usize) * PAGE;
        trace::note(|| format!("change of file {fd} {offset:#x} {length:#x}"));
        match random.below(3) {
            0 => sys::call(libc::SYS_ftruncate, [fd, offset, 0, 0, 0, 0]),
            1 => {
                let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                sys::call(
                    libc::SYS_fallocate,
                    [fd, mode as usize, offset, length, 0, 0],
                )
            }
            _ => {
                let seals = [
                    libc::F_SEAL_WRITE,
                    libc::F_SEAL_FUTURE_WRITE,
                    libc::F_SEAL_GROW,
                ];
                let seal = seals[random.below(3) as usize] as usize;
                let command = libc::F_ADD_SEALS as usize;
                sys::call(libc::SYS_fcntl, [fd, command, seal, 0, 0, 0])
            }
        }
        .map(drop)
    }
}

/// Notes what was done.
fn done(what: &str, start: usize, length: usize, result: Result<(), i32>) -> Result<(), i32> {
    trace::note(|| format!("{what} {start:#x} {length:#x}"));
    trace::ended(&result);
    result
}
