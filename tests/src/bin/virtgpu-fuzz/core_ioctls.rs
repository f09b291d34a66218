// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Ioctls of the DRM core that lead into the driver: handles, names, dma-bufs, syncobjs.

use virtgpu_client::drm::{
    self, GemOpen, HandleAndWord, PrimeHandle, SyncobjArray, SyncobjHandle, SyncobjTimelineArray,
    SyncobjTimelineWait,
};
use virtgpu_client::protocol::uapi::nr;
use zerocopy::IntoBytes;

use crate::call::{number_of, Call};
use crate::pick::{self, chance, one_of};
use crate::standard::{Maker, RESULTS};
use crate::support::PAGE;
use crate::world::DrmFile;

/// Where in a thread's data handles and points of syncobjs lie.
const HANDLES: usize = 28 * PAGE;
const POINTS: usize = 29 * PAGE;

/// `DRM_IOCTL_SYNCOBJ_WAIT`, whose structure is that of a timeline wait without points.
const SYNCOBJ_WAIT: u32 = 0xc3;
const SYNCOBJ_TRANSFER: u32 = 0xcc;
const SYNCOBJ_EVENTFD: u32 = 0xcf;
const GEM_CHANGE_HANDLE: u32 = 0xd2;
const SVM_WAIT: u32 = number_of(nr::SVM_WAIT);
/// The longest that an ioctl may wait for fences, in nanoseconds.
const WAIT: u64 = 20_000_000;

/// Nanoseconds of CLOCK_MONOTONIC.
pub(crate) fn now() -> i64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    time.tv_sec * 1_000_000_000 + time.tv_nsec
}

impl Maker<'_> {
    /// Any of them.
    pub(crate) fn core(&mut self, file: &DrmFile) -> Call {
        match self.random.below(16) {
            0 | 1 => self.gem_close(file),
            2 => self.two_words(file, drm::GEM_FLINK),
            3 => self.gem_open(file),
            4 | 5 => self.export(file),
            6 => self.import(file),
            7 => self.syncobj_create(file),
            8 => self.syncobj_destroy(file),
            9 => self.syncobj_file(file),
            10 | 11 => self.syncobj_wait(file),
            12 => self.syncobj_array(file),
            13 => self.syncobj_timeline(file),
            14 => self.syncobj_words(file),
            _ => self.any_core(file),
        }
    }

    /// A structure of a handle and another word.
    fn two_words(&mut self, file: &DrmFile, number: u32) -> Call {
        let handle = self.handle(file);
        Call::core(file.fd, number, [handle, 0].as_bytes())
    }

    pub(crate) fn gem_close(&mut self, file: &DrmFile) -> Call {
        self.two_words(file, drm::GEM_CLOSE)
    }

    fn gem_open(&mut self, file: &DrmFile) -> Call {
        let name = self.world.name(self.random);
        let words = [name, 0, 0, 0];
        debug_assert_eq!(words.as_bytes().len(), size_of::<GemOpen>());
        Call::core(file.fd, drm::GEM_OPEN, words.as_bytes())
    }

    fn export(&mut self, file: &DrmFile) -> Call {
        let handle = self.handle(file);
        let flags = (libc::O_CLOEXEC | libc::O_RDWR) as u32;
        let words = [handle, flags, u32::MAX];
        debug_assert_eq!(words.as_bytes().len(), size_of::<PrimeHandle>());
        Call::core(file.fd, drm::PRIME_HANDLE_TO_FD, words.as_bytes())
    }

    fn import(&mut self, file: &DrmFile) -> Call {
        let fd = self.world.any_fd(self.random) as u32;
        Call::core(file.fd, drm::PRIME_FD_TO_HANDLE, [0, 0, fd].as_bytes())
    }

    fn syncobj(&mut self, file: &DrmFile) -> u32 {
        match one_of(self.random, &file.syncobjs) {
            Some(handle) if !chance(self.random, 1, 12) => *handle,
            _ => pick::number(self.random) as u32,
        }
    }

    pub(crate) fn syncobj_create(&mut self, file: &DrmFile) -> Call {
        let flags = self.random.below(2) as u32;
        Call::core(file.fd, drm::SYNCOBJ_CREATE, [0, flags].as_bytes())
    }

    fn syncobj_destroy(&mut self, file: &DrmFile) -> Call {
        let handle = self.syncobj(file);
        debug_assert_eq!([handle, 0].as_bytes().len(), size_of::<HandleAndWord>());
        Call::core(file.fd, drm::SYNCOBJ_DESTROY, [handle, 0].as_bytes())
    }

    /// To a file and back.
    fn syncobj_file(&mut self, file: &DrmFile) -> Call {
        let handle = self.syncobj(file);
        let flags = self.random.below(2) as u32;
        let fd = self.world.any_fd(self.random) as u32;
        let words = [handle, flags, fd, 0];
        debug_assert_eq!(words.as_bytes().len(), size_of::<SyncobjHandle>());
        let number = match self.random.below(2) {
            0 => drm::SYNCOBJ_HANDLE_TO_FD,
            _ => drm::SYNCOBJ_FD_TO_HANDLE,
        };
        Call::core(file.fd, number, words.as_bytes())
    }

    /// Puts handles and points of syncobjs where the kernel finds them; how many.
    fn syncobj_lists(&mut self, file: &DrmFile) -> u32 {
        let count = 1 + self.random.below(3);
        let handles: Vec<u32> = (0..count).map(|_| self.syncobj(file)).collect();
        let points: Vec<u64> = (0..count)
            .map(|_| match self.random.below(3) {
                0 => pick::number(self.random),
                _ => self.random.below(8),
            })
            .collect();
        self.store(HANDLES, handles.as_bytes());
        self.store(POINTS, points.as_bytes());
        count as u32
    }

    /// The wait is bounded, whatever else becomes of the structure: see [`Call::bound`].
    fn syncobj_wait(&mut self, file: &DrmFile) -> Call {
        let count = self.syncobj_lists(file);
        let timeline = chance(self.random, 1, 2);
        let wait = SyncobjTimelineWait {
            handles: self.pointer(HANDLES),
            points: self.pointer(POINTS),
            count_handles: count,
            flags: self.random.below(8) as u32,
            ..Default::default()
        };
        let rest = [wait.count_handles, wait.flags, 0, 0];
        let mut bytes = wait.handles.to_le_bytes().to_vec();
        if timeline {
            bytes.extend(wait.points.to_le_bytes());
        }
        bytes.extend(wait.timeout_nsec.to_le_bytes());
        bytes.extend(rest.as_bytes());
        let number = if timeline {
            drm::SYNCOBJ_TIMELINE_WAIT
        } else {
            SYNCOBJ_WAIT
        };
        let mut call = Call::core(file.fd, number, &bytes);
        call.bound(self.random.below(WAIT));
        call
    }

    /// RESET and SIGNAL.
    fn syncobj_array(&mut self, file: &DrmFile) -> Call {
        let count = self.syncobj_lists(file);
        let mut bytes = self.pointer(HANDLES).to_le_bytes().to_vec();
        bytes.extend([count, 0].as_bytes());
        debug_assert_eq!(bytes.len(), size_of::<SyncobjArray>());
        let number = drm::SYNCOBJ_RESET + self.random.below(2) as u32;
        Call::core(file.fd, number, &bytes)
    }

    /// QUERY and TIMELINE_SIGNAL.
    fn syncobj_timeline(&mut self, file: &DrmFile) -> Call {
        let count = self.syncobj_lists(file);
        let query = chance(self.random, 1, 2);
        let points = if query { RESULTS } else { POINTS };
        let mut bytes = self.pointer(HANDLES).to_le_bytes().to_vec();
        bytes.extend(self.pointer(points).to_le_bytes());
        bytes.extend([count, 0].as_bytes());
        debug_assert_eq!(bytes.len(), size_of::<SyncobjTimelineArray>());
        let number = if query {
            drm::SYNCOBJ_QUERY
        } else {
            drm::SYNCOBJ_TIMELINE_SIGNAL
        };
        Call::core(file.fd, number, &bytes)
    }

    /// TRANSFER, EVENTFD, and the change of a handle.
    fn syncobj_words(&mut self, file: &DrmFile) -> Call {
        let (first, second) = (self.syncobj(file), self.syncobj(file));
        let point = self.random.below(8) as u32;
        match self.random.below(3) {
            0 => {
                let words = [first, second, point, 0, point, 0, 0, 0];
                Call::core(file.fd, SYNCOBJ_TRANSFER, words.as_bytes())
            }
            1 => {
                let fd = self.world.any_fd(self.random) as u32;
                let words = [first, 0, point, 0, fd, 0];
                Call::core(file.fd, SYNCOBJ_EVENTFD, words.as_bytes())
            }
            _ => {
                let words = [self.handle(file), 1 + self.random.below(40) as u32];
                Call::core(file.fd, GEM_CHANGE_HANDLE, words.as_bytes())
            }
        }
    }

    /// Whatever there is.
    fn any_core(&mut self, file: &DrmFile) -> Call {
        let number = match self.random.below(2) {
            0 => self.random.below(0x40),
            _ => 0xa0 + self.random.below(0x60),
        };
        let length = self.random.below(65) as usize;
        let mut bytes = vec![0; length];
        pick::mutate(self.random, &mut bytes);
        let mut call = Call::core(file.fd, number as u32, &bytes);
        call.tame(self.random);
        call
    }
}

impl Call {
    /// Keeps lists of syncobjs short. The DRM core allocates room for as many as there are said to
    /// be, and asks the page allocator for more than it can ever have. Returns whether this has
    /// any.
    pub(crate) fn shorten(&mut self) -> bool {
        const MOST: u32 = 0x1000;
        let at = match self.nr {
            0xc4 | 0xc5 => 8,
            SYNCOBJ_WAIT | 0xcb | 0xcd => 16,
            0xca => 24,
            _ => return false,
        };
        if let Some(place) = self.bytes.get_mut(at..at + 4) {
            let count = u32::from_le_bytes((&*place).try_into().expect("4 bytes"));
            place.copy_from_slice(&(count % MOST).to_le_bytes());
        }
        true
    }

    /// Keeps a wait for fences, which could be one for ever, from lasting longer than so many
    /// nanoseconds. Returns whether it is one.
    pub(crate) fn bound(&mut self, nanoseconds: u64) -> bool {
        let at = match self.nr {
            SYNCOBJ_WAIT => 8,
            0xca => 16,
            SVM_WAIT => 24,
            _ => return false,
        };
        let end = now() + nanoseconds.min(WAIT) as i64;
        if let Some(place) = self.bytes.get_mut(at..at + 8) {
            place.copy_from_slice(&end.to_le_bytes());
        }
        true
    }
}
