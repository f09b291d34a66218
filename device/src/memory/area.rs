// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! The addresses of a space in this process, and what the MMU of the host has for them.
//!
//! They come in windows of 1 GiB, reserved without rights when something is first mapped there, and
//! found through a table of two levels. A window stays reserved as long as anybody can know its
//! address, so that an access never meets memory of somebody else. What is mapped in it changes
//! under the feet of whoever accesses it; see [`super::guarded`].

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::OnceLock;
use std::time::Duration;

use super::guarded::{self, Cut, Fault};
use super::usage::Usage;

/// Bytes of a window.
const WINDOW: u64 = 1 << 30;
/// Windows of a leaf of the table.
const LEAF: usize = 512;
/// The most bytes of an area: the addresses of a process.
pub(crate) const MAX_SIZE: u64 = 1 << 47;

/// Base addresses of windows; null for those not reserved.
type Leaf = [AtomicPtr<u8>; LEAF];

/// The addresses of a space.
///
/// # Invariants
///
/// A base address in the table is that of a reservation of [`Area::window_size`] bytes, which is
/// made and replaced by no one else, and lasts as long as the area.
#[derive(Debug)]
pub(crate) struct Area {
    size: u64,
    table: Box<[OnceLock<Box<Leaf>>]>,
    /// What counts the windows.
    usage: Usage,
    /// What is mapped gets its entries in the page tables of this process at once, since it is
    /// about to be accessed.
    populate: bool,
}

/// mmap(2) over a part of a window; with `more` flags.
///
/// # Safety
///
/// `at` is null, or `length` bytes there are in a window of an area that exists.
unsafe fn mmap(
    at: *mut u8,
    length: u64,
    rights: libc::c_int,
    file: Option<(&File, u64)>,
    more: libc::c_int,
) -> io::Result<*mut u8> {
    let mut flags = more;
    if !at.is_null() {
        flags |= libc::MAP_FIXED;
    }
    let (fd, offset) = match file {
        Some((file, offset)) => {
            flags |= libc::MAP_SHARED;
            (file.as_raw_fd(), offset)
        }
        None => {
            flags |= libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
            (-1, 0)
        }
    };
    let length = usize::try_from(length).map_err(io::Error::other)?;
    let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
    // SAFETY: With a null `at` it creates a mapping where none is. Else it replaces a part of a
    // window, which is accessed in ways only for which it does not matter what is mapped.
    let ptr = unsafe { libc::mmap(at.cast(), length, rights, flags, fd, offset) };
    match ptr == libc::MAP_FAILED {
        true => Err(io::Error::last_os_error()),
        false => Ok(ptr.cast()),
    }
}

/// Takes all rights from a window.
///
/// # Safety
///
/// `length` bytes at `at` are a window of an area that exists.
unsafe fn revoke(at: *mut u8, length: u64) -> io::Result<()> {
    // SAFETY: The caller's promise.
    if unsafe { mmap(at, length, libc::PROT_NONE, None, 0) }.is_ok() {
        return Ok(());
    }
    // The kernel looks at the number of mappings before it sees that they become fewer. This leaves
    // it alone.
    // SAFETY: As above; a window is accessed in ways only for which it does not matter.
    match unsafe { libc::mprotect(at.cast(), length as usize, libc::PROT_NONE) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

impl Area {
    /// One of `size` bytes, at most [`MAX_SIZE`], in which nothing is mapped. `usage` counts the
    /// windows that it reserves.
    ///
    /// # Errors
    ///
    /// If accesses could not be guarded.
    pub(crate) fn new(size: u64, usage: Usage) -> io::Result<Self> {
        guarded::install()?;
        let leaves = size.div_ceil(WINDOW).div_ceil(LEAF as u64) as usize;
        Ok(Self {
            size,
            table: (0..leaves).map(|_| OnceLock::new()).collect(),
            usage,
            populate: false,
        })
    }

    /// The same, of which pages are mapped because somebody waits for them.
    ///
    /// # Errors
    ///
    /// As [`Self::new`].
    pub(crate) fn for_faults(size: u64, usage: Usage) -> io::Result<Self> {
        let mut area = Self::new(size, usage)?;
        area.populate = true;
        Ok(area)
    }

    /// Bytes.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// What counts its windows.
    pub(crate) fn usage(&self) -> &Usage {
        &self.usage
    }

    /// Bytes of window `index`.
    fn window_size(&self, index: u64) -> u64 {
        (self.size - index * WINDOW).min(WINDOW)
    }

    fn cell(&self, index: u64) -> Option<&AtomicPtr<u8>> {
        let leaf = self.table.get(index as usize / LEAF)?.get()?;
        Some(&leaf[index as usize % LEAF])
    }

    /// The address of byte `at`, and how many bytes from there on its window has; `None` if it is
    /// not reserved.
    fn find(&self, at: u64) -> Option<(*mut u8, u64)> {
        let index = at / WINDOW;
        let base = self.cell(index)?.load(Ordering::Acquire);
        let offset = at % WINDOW;
        (!base.is_null()).then(|| {
            let left = self.window_size(index) - offset;
            (base.wrapping_add(offset as usize), left)
        })
    }

    /// Makes sure that the window of byte `at` is reserved. One caller at a time.
    fn reserve(&self, at: u64) -> io::Result<(*mut u8, u64)> {
        if let Some(found) = self.find(at) {
            return Ok(found);
        }
        let index = at / WINDOW;
        let leaf = self.table.get(index as usize / LEAF);
        let leaf = leaf.ok_or(io::ErrorKind::InvalidInput)?;
        let leaf =
            leaf.get_or_init(|| Box::new([const { AtomicPtr::new(std::ptr::null_mut()) }; LEAF]));
        let size = self.window_size(index);
        // SAFETY: The address is null.
        let base = unsafe { mmap(std::ptr::null_mut(), size, libc::PROT_NONE, None, 0)? };
        self.usage.add(1);
        leaf[index as usize % LEAF].store(base, Ordering::Release);
        let offset = at % WINDOW;
        Ok((base.wrapping_add(offset as usize), size - offset))
    }

    /// Whether `length` bytes at `start` are inside.
    pub(crate) fn check(&self, start: u64, length: u64) -> Result<(), Fault> {
        match start.checked_add(length) {
            Some(end) if end <= self.size => Ok(()),
            _ => Err(Fault),
        }
    }

    /// Windows that are not reserved of those that `length` bytes at `start`, not 0, touch.
    pub(crate) fn missing(&self, start: u64, length: u64) -> usize {
        let windows = start / WINDOW..=(start + length - 1) / WINDOW;
        let missing = |index: &u64| self.find(index * WINDOW).is_none();
        windows.filter(missing).count()
    }

    /// Maps `length` bytes at `start`, which are inside, to those of `file` at `offset`; all of it
    /// whole pages. One caller at a time.
    ///
    /// # Errors
    ///
    /// If the kernel refuses; what is mapped in the range is undetermined then.
    pub(crate) fn map(
        &self,
        mut start: u64,
        mut length: u64,
        file: &File,
        mut offset: u64,
        write: bool,
    ) -> io::Result<()> {
        let rights = match write {
            true => libc::PROT_READ | libc::PROT_WRITE,
            false => libc::PROT_READ,
        };
        let more = match self.populate {
            true => libc::MAP_POPULATE,
            false => 0,
        };
        while length > 0 {
            let (at, left) = self.reserve(start)?;
            let take = left.min(length);
            // SAFETY: These bytes are in the window.
            unsafe { mmap(at, take, rights, Some((file, offset)), more)? };
            start += take;
            offset += take;
            length -= take;
        }
        Ok(())
    }

    /// Maps nothing any more to `length` bytes at `start`, whole pages inside. When it returns, no
    /// access to what was there is going on, and all that was written is visible.
    ///
    /// # Errors
    ///
    /// If the kernel refuses: then something may still be mapped.
    pub(crate) fn unmap(&self, mut start: u64, mut length: u64) -> io::Result<()> {
        while length > 0 {
            let left = WINDOW - start % WINDOW;
            let take = left.min(length);
            if let Some((at, _)) = self.find(start) {
                // SAFETY: These bytes are in the window.
                unsafe { mmap(at, take, libc::PROT_NONE, None, 0)? };
            }
            start += take;
            length -= take;
        }
        Ok(())
    }

    /// The same, for as much of `gap` around them, in which nothing else is mapped, as is in the
    /// same windows. The kernel keeps a page table while a neighbour shares the addresses that it
    /// is for, even one without rights.
    ///
    /// # Errors
    ///
    /// As [`Self::unmap`].
    pub(crate) fn unmap_around(&self, start: u64, length: u64, gap: Range<u64>) -> io::Result<()> {
        let low = gap.start.max(start - start % WINDOW);
        let high = (start + length).next_multiple_of(WINDOW).min(self.size);
        self.unmap(low, gap.end.min(high) - low)
    }

    /// Maps nothing any more to the windows that the bytes between `start` and `end` are in, as
    /// [`Area::unmap`] does. It needs no mapping that is not there, and so does not fail when there
    /// are no more.
    ///
    /// Without any memory the kernel may refuse even that. Then it waits, because there is nothing
    /// else that keeps the promise to the guest.
    pub(crate) fn clear(&self, start: u64, end: u64) {
        let mut at = start - start % WINDOW;
        while at < end {
            if let Some((base, size)) = self.find(at) {
                let mut refused = false;
                // SAFETY: It is the whole window.
                while let Err(error) = unsafe { revoke(base, size) } {
                    if !std::mem::replace(&mut refused, true) {
                        log::error!("cannot revoke, trying on: {error}");
                    }
                    std::thread::sleep(Duration::from_millis(10));
                }
            }
            at += WINDOW;
        }
    }

    /// Calls `f` with the address and length of each stretch of `length` bytes at `offset`.
    fn each(
        &self,
        mut offset: u64,
        mut length: u64,
        mut f: impl FnMut(*mut u8, usize) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        self.check(offset, length)?;
        while length > 0 {
            let (at, left) = self.find(offset).ok_or(Fault)?;
            let take = left.min(length);
            f(at, take as usize)?;
            offset += take;
            length -= take;
        }
        Ok(())
    }

    /// Reads `buffer.len()` bytes at `offset`.
    ///
    /// # Errors
    ///
    /// If one of them is not mapped; others may have been read.
    pub(crate) fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), Fault> {
        let mut done = 0;
        self.each(offset, buffer.len() as u64, |at, length| {
            // SAFETY: The bytes are in a window, which lasts as long as `self`.
            unsafe { guarded::read(at, &mut buffer[done..done + length])? };
            done += length;
            Ok(())
        })
    }

    /// Writes `buffer` to `offset`.
    ///
    /// # Errors
    ///
    /// If one of the bytes is not mapped for that; others may have been written.
    pub(crate) fn write(&self, offset: u64, buffer: &[u8]) -> Result<(), Fault> {
        let mut done = 0;
        self.each(offset, buffer.len() as u64, |at, length| {
            // SAFETY: The bytes are in a window, which lasts as long as `self`.
            unsafe { guarded::write(at, &buffer[done..done + length])? };
            done += length;
            Ok(())
        })
    }

    /// Calls `f` with the address, the length and the number of the first byte of each stretch of
    /// `length` bytes at `offset`, which are inside.
    fn each_step(
        &self,
        offset: u64,
        length: usize,
        mut f: impl FnMut(*mut u8, usize, usize) -> Result<(), Cut>,
    ) -> Result<(), Cut> {
        let mut done = 0;
        while done < length {
            let Some((at, left)) = self.find(offset + done as u64) else {
                return Err(Cut { done, gone: false });
            };
            let take = (length - done).min(usize::try_from(left).unwrap_or(usize::MAX));
            f(at, take, done).map_err(|cut| Cut {
                done: done + cut.done,
                ..cut
            })?;
            done += take;
        }
        Ok(())
    }

    /// Reads `buffer.len()` bytes at `offset`, which are inside, a word at a time.
    ///
    /// # Errors
    ///
    /// At the first that is not mapped.
    pub(crate) fn read_steps(&self, offset: u64, buffer: &mut [u8]) -> Result<(), Cut> {
        self.each_step(offset, buffer.len(), |at, length, done| {
            // SAFETY: The bytes are in a window, which lasts as long as `self`.
            unsafe { guarded::read_steps(at, &mut buffer[done..done + length]) }
        })
    }

    /// Writes `buffer` to `offset`, all of which is inside, a word at a time.
    ///
    /// # Errors
    ///
    /// At the first byte that is not mapped for that. Those before it are written.
    pub(crate) fn write_steps(&self, offset: u64, buffer: &[u8]) -> Result<(), Cut> {
        self.each_step(offset, buffer.len(), |at, length, done| {
            // SAFETY: The bytes are in a window, which lasts as long as `self`.
            unsafe { guarded::write_steps(at, &buffer[done..done + length]) }
        })
    }

    /// Adds `value` to the u64 at `offset`, which is inside and a multiple of 8, atomically;
    /// returns what was there.
    ///
    /// # Errors
    ///
    /// If it is not mapped for that.
    pub(crate) fn add_step(&self, offset: u64, value: u64) -> Result<u64, Cut> {
        debug_assert_eq!(offset % 8, 0);
        let cut = Cut {
            done: 0,
            gone: false,
        };
        let (at, _) = self.find(offset).ok_or(cut)?;
        // SAFETY: The bytes are in a window, because it is made of whole pages; it lasts as long as
        // `self`. They are aligned, as the window is.
        unsafe { guarded::add_step(at.cast(), value) }
    }

    /// Adds `value` to the u64 at `offset` atomically; returns what was there.
    ///
    /// # Errors
    ///
    /// If it is not aligned, or not mapped for that.
    pub(crate) fn fetch_add(&self, offset: u64, value: u64) -> Result<u64, Fault> {
        self.check(offset, 8)?;
        let (at, _) = self.find(offset).ok_or(Fault)?;
        let at = at.cast::<u64>();
        if !at.is_aligned() {
            return Err(Fault);
        }
        // SAFETY: The bytes are in a window, because it is made of whole pages; it lasts as long as
        // `self`. They are aligned.
        unsafe { guarded::fetch_add(at, value) }
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        for (leaf, number) in self.table.iter().zip(0..) {
            for (cell, index) in leaf.get().into_iter().flat_map(|l| l.iter()).zip(0..) {
                let base = cell.load(Ordering::Acquire);
                if base.is_null() {
                    continue;
                }
                let size = self.window_size(number * LEAF as u64 + index);
                // SAFETY: The reservation is ours, and no one else can know its address any more.
                unsafe { libc::munmap(base.cast(), size as usize) };
                self.usage.subtract(1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::FromRawFd;
    use std::os::unix::fs::FileExt;
    use std::sync::atomic::AtomicBool;

    use crate::memory::PAGE;

    fn memfd(size: u64) -> File {
        // SAFETY: The name is a C string; the descriptor is new.
        let file = unsafe { File::from_raw_fd(libc::memfd_create(c"ram".as_ptr(), 0)) };
        file.set_len(size).unwrap();
        file
    }

    fn area(size: u64) -> (Area, Usage) {
        let usage = Usage::default();
        (Area::new(size, usage.clone()).unwrap(), usage)
    }

    #[test]
    fn rights() {
        let file = memfd(4 * PAGE);
        file.write_all_at(b"first", PAGE).unwrap();
        let (area, usage) = area(8 * PAGE);
        let mut bytes = [0; 5];
        assert_eq!(area.read(0, &mut bytes), Err(Fault));
        area.map(2 * PAGE, PAGE, &file, PAGE, false).unwrap();
        assert_eq!(usage.own(), 1);
        assert_eq!(area.read(2 * PAGE, &mut bytes), Ok(()));
        assert_eq!(&bytes, b"first");
        assert_eq!(area.write(2 * PAGE, b"x"), Err(Fault));
        assert_eq!(area.fetch_add(2 * PAGE, 1), Err(Fault));
        assert_eq!(area.read(3 * PAGE - 1, &mut bytes[..2]), Err(Fault));
        assert_eq!(area.read(2 * PAGE - 1, &mut bytes[..1]), Err(Fault));
        area.map(2 * PAGE, 2 * PAGE, &file, PAGE, true).unwrap();
        assert_eq!(area.write(3 * PAGE - 3, b"across"), Ok(()));
        assert_eq!(area.fetch_add(2 * PAGE + 8, 3), Ok(0));
        assert_eq!(area.fetch_add(2 * PAGE + 8, 0), Ok(3));
        assert_eq!(area.fetch_add(2 * PAGE + 4, 0), Err(Fault));
        area.unmap(0, 8 * PAGE).unwrap();
        assert_eq!(area.read(2 * PAGE, &mut bytes), Err(Fault));
        assert_eq!(area.write(2 * PAGE, b"x"), Err(Fault));
        let mut seen = [0; 6];
        file.read_exact_at(&mut seen, 2 * PAGE - 3).unwrap();
        assert_eq!(&seen, b"across");
        assert_eq!(area.read(8 * PAGE - 1, &mut bytes), Err(Fault));
        assert_eq!(area.read(u64::MAX, &mut bytes), Err(Fault));
        drop(area);
        assert_eq!(usage.own(), 0);
    }

    #[test]
    fn every_alignment_and_length() {
        let file = memfd(PAGE);
        let (area, _) = area(PAGE);
        area.map(0, PAGE, &file, 0, true).unwrap();
        for start in 0..16 {
            for length in 0..80 {
                let source: Vec<u8> = (0..length as u8).map(|b| b ^ 0x5a).collect();
                area.write(0, &[0xff; 128]).unwrap();
                area.write(start, &source).unwrap();
                let mut all = [0; 128];
                area.read(0, &mut all).unwrap();
                let (start, end) = (start as usize, start as usize + length);
                assert!(all[..start].iter().chain(&all[end..]).all(|b| *b == 0xff));
                assert_eq!(all[start..end], source);
                let mut part = vec![0; length];
                area.read(start as u64, &mut part).unwrap();
                assert_eq!(part, source);
            }
        }
    }

    #[test]
    fn across_windows() {
        let file = memfd(4 * PAGE);
        let (area, usage) = area(64 * WINDOW);
        let start = 40 * WINDOW - 2 * PAGE;
        assert_eq!(area.missing(start, 4 * PAGE), 2);
        area.map(start, 4 * PAGE, &file, 0, true).unwrap();
        assert_eq!(area.missing(start, 4 * PAGE), 0);
        assert_eq!(usage.own(), 2);
        area.write(40 * WINDOW - 4, b"boundary").unwrap();
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, 2 * PAGE - 4).unwrap();
        assert_eq!(&bytes, b"boundary");
        area.unmap(0, 64 * WINDOW).unwrap();
        assert_eq!(area.read(start, &mut bytes), Err(Fault));
        area.map(start, 4 * PAGE, &file, 0, true).unwrap();
        area.clear(40 * WINDOW - 1, 40 * WINDOW);
        assert_eq!(area.read(start, &mut bytes), Err(Fault));
        assert_eq!(area.read(40 * WINDOW, &mut bytes), Ok(()));
        area.clear(0, 64 * WINDOW);
        assert_eq!(area.read(40 * WINDOW, &mut bytes), Err(Fault));
    }

    #[test]
    fn steps_across_windows() {
        let file = memfd(4 * PAGE);
        let usage = Usage::default();
        let area = Area::for_faults(MAX_SIZE, usage.clone()).unwrap();
        let start = 100_000 * WINDOW - PAGE;
        let cut = |done| Cut { done, gone: false };
        assert_eq!(area.write_steps(start, &[1]), Err(cut(0)));
        area.map(start, PAGE, &file, 0, true).unwrap();
        // The second window is not reserved, then has nothing, then something to read.
        let bytes: Vec<u8> = (0..16).collect();
        let at = start + PAGE - 6;
        assert_eq!(area.write_steps(at, &bytes), Err(cut(6)));
        area.map(start + 2 * PAGE, PAGE, &file, 0, true).unwrap();
        assert_eq!(usage.own(), 2);
        assert_eq!(area.write_steps(at, &bytes), Err(cut(6)));
        area.map(start + PAGE, PAGE, &file, 2 * PAGE, false)
            .unwrap();
        assert_eq!(area.write_steps(at + 6, &bytes[6..]), Err(cut(0)));
        let mut seen = [9; 16];
        assert_eq!(area.read_steps(at, &mut seen), Ok(()));
        assert_eq!((&seen[..6], &seen[6..]), (&bytes[..6], &[0; 10][..]));
        area.map(start + PAGE, PAGE, &file, 2 * PAGE, true).unwrap();
        assert_eq!(area.write_steps(at + 6, &bytes[6..]), Ok(()));
        assert_eq!(area.add_step(start + PAGE, 1), Ok(0x0d0c_0b0a_0908_0706));
        assert_eq!(area.add_step(MAX_SIZE - 8, 1), Err(cut(0)));
    }

    #[test]
    fn a_file_that_shrinks_is_gone() {
        let file = memfd(2 * PAGE);
        let (area, _) = area(2 * PAGE);
        area.map(0, 2 * PAGE, &file, 0, true).unwrap();
        file.set_len(PAGE).unwrap();
        let gone = Cut {
            done: 8,
            gone: true,
        };
        assert_eq!(area.write_steps(PAGE - 8, &[1; 16]), Err(gone));
        assert_eq!(area.read_steps(PAGE - 8, &mut [1; 16]), Err(gone));
    }

    #[test]
    fn a_file_that_shrinks_is_a_fault() {
        let file = memfd(2 * PAGE);
        let (area, _) = area(2 * PAGE);
        area.map(0, 2 * PAGE, &file, 0, true).unwrap();
        file.set_len(PAGE).unwrap();
        assert_eq!(area.write(0, &[1]), Ok(()));
        assert_eq!(area.write(PAGE, &[1]), Err(Fault));
    }

    /// Nothing is written after a revocation, however many are writing.
    #[test]
    fn revocation() {
        let file = memfd(16 * PAGE);
        let (area, _) = area(16 * PAGE);
        let end = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for seed in 0..3u8 {
                let (area, end) = (&area, &end);
                scope.spawn(move || {
                    let mut value = seed;
                    while !end.load(Ordering::Relaxed) {
                        value = value.wrapping_add(3);
                        let _ = area.write(0, &[value; 16 * PAGE as usize]);
                        let _ = area.fetch_add(8, 1);
                    }
                });
            }
            for _ in 0..300 {
                area.map(0, 16 * PAGE, &file, 0, true).unwrap();
                std::thread::yield_now();
                area.unmap(0, 16 * PAGE).unwrap();
                let zero = [0; 16 * PAGE as usize];
                file.write_all_at(&zero, 0).unwrap();
                std::thread::yield_now();
                let mut seen = [1; 16 * PAGE as usize];
                file.read_exact_at(&mut seen, 0).unwrap();
                assert!(seen == zero);
            }
            end.store(true, Ordering::Relaxed);
        });
    }
}
