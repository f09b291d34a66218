// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! One ioctl: making it, and validating how it ended.

use std::time::{Duration, Instant};

use virtgpu_client::protocol::uapi::{nr, COMMAND_BASE};
use zerocopy::{Immutable, IntoBytes};

use crate::counts;
use crate::ktap::{Outcome, TestResult};
use crate::layout::{Scratch, ARGUMENT_SIZE, MEMORY, MEMORY_SIZE};
use crate::pick::{self, chance};
use crate::support::{errno, Random, PAGE};
use crate::world::World;
use crate::{rules, sys, trace};

/// No ioctl may take longer. The driver's own limits are shorter, but not by much on a machine that
/// emulates.
const LIMIT: Duration = Duration::from_secs(120);

/// Buffers up to this size there may be many of, in bytes.
const LARGE: u64 = 4 << 20;
/// From this size on a buffer is refused at once, because even the list of its pages is too large.
const HUGE_SIZE: u64 = 1 << 43;

/// `_IOC_WRITE`: the kernel reads the structure.
const IN: u32 = 1 << 30;
/// `_IOC_READ`: the kernel writes the structure.
const OUT: u32 = 2 << 30;

/// The number of a virtgpu ioctl among all of DRM.
pub(crate) const fn number_of(nr: u32) -> u32 {
    COMMAND_BASE + nr
}

/// An ioctl to be made.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) fd: i32,
    /// The lowest byte of the ioctl's number.
    pub(crate) nr: u32,
    /// The structure.
    pub(crate) bytes: Vec<u8>,
    /// What the ioctl's number says of its size.
    pub(crate) size: usize,
    /// `_IOC_WRITE` and `_IOC_READ`, or less.
    pub(crate) direction: u32,
    /// Where the structure is.
    pub(crate) place: Place,
}

/// Where the structure is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// In memory of the thread's own, with nothing mapped behind it.
    Own,
    /// The same, but so that the last bytes are behind the end.
    CutOff,
    /// In a page that cannot be written.
    ReadOnly,
    /// In memory that others map and unmap.
    Shared,
    /// Nowhere.
    Address(usize),
}

impl Call {
    /// A virtgpu ioctl with its structure.
    pub(crate) fn virtgpu<T: IntoBytes + Immutable>(fd: i32, nr: u32, structure: &T) -> Self {
        Self::core(fd, number_of(nr), structure.as_bytes())
    }

    /// Any DRM ioctl.
    pub(crate) fn core(fd: i32, nr: u32, bytes: &[u8]) -> Self {
        Self {
            fd,
            nr: nr & 0xff,
            bytes: bytes.to_vec(),
            size: bytes.len(),
            direction: IN | OUT,
            place: Place::Own,
        }
    }

    /// Makes it a bad one, with luck.
    pub(crate) fn spoil(&mut self, random: &mut Random, scratch: &Scratch) {
        match random.below(10) {
            // The size that the number says: other versions of the structure, or nonsense.
            0 | 1 => {
                self.size = random.below(257) as usize;
                self.bytes.resize(self.size.max(self.bytes.len()), 0);
                if chance(random, 1, 2) {
                    let end = self.bytes.len();
                    self.bytes[end / 2..].fill(0xa5);
                }
            }
            2 => self.direction = [0, IN, OUT][random.below(3) as usize],
            3 => {
                self.place = match random.below(5) {
                    0 => Place::CutOff,
                    1 => Place::ReadOnly,
                    2 => Place::Shared,
                    _ => Place::Address(pick::bad_pointer(random, scratch)),
                };
            }
            _ => pick::mutate(random, &mut self.bytes),
        }
    }

    /// Keeps a call from harming the machine instead of the driver: all memory gone for a buffer, a
    /// wait for ever, or a list of syncobjs of which the DRM core makes the kernel warn that it is
    /// too long.
    pub(crate) fn tame(&mut self, random: &mut Random) {
        let waits = self.bound(random.below(1000));
        let lists = self.shorten();
        let sizes = self.nr == number_of(nr::RESOURCE_CREATE_BLOB)
            || self.nr == number_of(nr::RESOURCE_CREATE);
        // What others write could be anything.
        if (waits || lists || sizes)
            && matches!(self.place, Place::Shared | Place::Address(MEMORY..))
        {
            self.place = Place::Own;
        }
        let (at, wide) = match self.nr.wrapping_sub(COMMAND_BASE) {
            nr::RESOURCE_CREATE_BLOB => (16, true),
            nr::RESOURCE_CREATE => (48, false),
            _ => return,
        };
        let length = if wide { 8 } else { 4 };
        let Some(place) = self.bytes.get_mut(at..at + length) else {
            return;
        };
        let mut size = [0; 8];
        size[..length].copy_from_slice(place);
        let size = u64::from_le_bytes(size);
        // So large that no machine has it, or small.
        if size > LARGE && (!wide || size < HUGE_SIZE) {
            place.copy_from_slice(&(size % LARGE).to_le_bytes()[..length]);
        }
    }

    /// The number to call ioctl(2) with.
    pub(crate) fn number(&self) -> u32 {
        self.direction | ((self.size as u32) << 16) | (u32::from(b'd') << 8) | self.nr
    }

    /// Puts the structure where it belongs; its address.
    fn put(&self, random: &mut Random, scratch: &Scratch) -> usize {
        let length = self.bytes.len();
        let end = scratch.argument + ARGUMENT_SIZE;
        // What is not there cannot be written; the ioctl will see.
        let write = |address| {
            let _ = sys::write_memory(address, &self.bytes);
            address
        };
        match self.place {
            Place::Own => write(end - length),
            Place::CutOff => {
                let kept = random.below(length.max(1) as u64) as usize;
                let _ = sys::write_memory(end - kept, &self.bytes[..kept]);
                end - kept
            }
            Place::ReadOnly => {
                let _ = scratch.fill_read_only(&self.bytes[..length.min(PAGE)]);
                scratch.read_only
            }
            Place::Shared => {
                let room = (MEMORY_SIZE - length) as u64;
                write(MEMORY + random.below(room) as usize)
            }
            Place::Address(address) => address,
        }
    }

    /// What the driver sees of the structure: what is short ends in zeros.
    pub(crate) fn seen(&self, length: usize) -> Vec<u8> {
        let passed = if self.direction & IN != 0 {
            self.size
        } else {
            0
        };
        let mut seen = self.bytes[..passed.min(self.bytes.len())].to_vec();
        seen.resize(length, 0);
        seen
    }

    /// Makes it, validates it, and notes what it has made.
    ///
    /// Returns whether it succeeded, and its structure afterwards.
    pub(crate) fn make(
        &self,
        world: &World,
        random: &mut Random,
        scratch: &Scratch,
    ) -> TestResult<Option<Vec<u8>>> {
        trace::note(|| format!("{self:x?}"));
        let address = self.put(random, scratch);
        let start = Instant::now();
        let result = sys::ioctl(self.fd, self.number(), address);
        let time = start.elapsed();
        trace::ended(&result);
        counts::ended(self.nr, &result);

        // Bytes can be validated where no one else changes them.
        let mut after = None;
        if self.place == Place::Own {
            let mut bytes = vec![0; self.bytes.len()];
            sys::read_memory(address, &mut bytes).map_err(|error| {
                Outcome::Fail(format!("the fuzzer's own memory is gone: errno {error}"))
            })?;
            after = Some(bytes);
        }
        self.validate(&result, after.as_deref(), time)
            .map_err(|reason| Outcome::Fail(format!("{reason}: {self:x?}")))?;
        if result == Err(libc::ENODEV) && rules::is_driver(self.nr) && !world.lose() {
            let text = format!("the device was lost: {self:x?}");
            return Err(Outcome::Fail(text));
        }
        let bytes = after.filter(|_| result.is_ok());
        if let Some(bytes) = &bytes {
            if self.direction == IN | OUT {
                // Only what the kernel has written says what there is.
                world.learn(self, &bytes[..self.size.min(bytes.len())]);
            }
        }
        Ok(bytes)
    }

    fn validate(
        &self,
        result: &Result<i32, i32>,
        after: Option<&[u8]>,
        time: Duration,
    ) -> Result<(), String> {
        if time > LIMIT {
            return Err(format!("took {time:?}"));
        }
        if !rules::is_driver(self.nr) {
            return Ok(());
        }
        match result {
            Ok(0) => {
                if let Some(reason) = rules::never(self) {
                    return Err(format!("succeeded, despite {reason}"));
                }
            }
            Ok(value) => return Err(format!("returned {value}")),
            Err(error) => {
                let error = virtgpu_client::Errno::from_raw_os_error(*error);
                if !rules::is_documented(error) {
                    return Err(format!("failed with {}", errno::name(error)));
                }
                // Without both directions the core copies something else back than was passed.
                let Some(after) = after.filter(|_| self.direction == IN | OUT) else {
                    return Ok(());
                };
                if let Some(at) = self.changed(after) {
                    return Err(format!(
                        "failed with {}, and has changed byte {at}",
                        errno::name(error)
                    ));
                }
            }
        }
        Ok(())
    }

    /// The first byte that a failed ioctl has changed.
    fn changed(&self, after: &[u8]) -> Option<usize> {
        (0..self.bytes.len()).find(|at| {
            // PREFETCH says how far it came.
            let prefetch = [nr::USERPTR_PREFETCH, nr::SVM_PREFETCH].map(number_of);
            let out = prefetch.contains(&self.nr) && (24..32).contains(at);
            !out && self.bytes[*at] != after[*at]
        })
    }
}
