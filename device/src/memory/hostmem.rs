// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Memory of the host: blobs with host storage, and the window in which the guest sees them.
//!
//! The window is one memfd that the frontend maps into the guest once and for all. A blob is a
//! stretch of addresses in this process. While the guest has it mapped, these addresses are a
//! mapping of the part of the memfd that the guest chose, else of anonymous memory; whoever uses
//! the addresses does not notice.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::sync::Arc;

use super::ram::HostPtr;
use super::{access, host, PAGE};

/// The host storage of a blob.
#[derive(Debug)]
pub(crate) struct HostBlob {
    ptr: HostPtr,
    size: u64,
}

fn map(addr: *mut u8, size: u64, fd: Option<(&File, u64)>) -> io::Result<HostPtr> {
    let mut flags = if addr.is_null() { 0 } else { libc::MAP_FIXED };
    let (fd, offset) = match fd {
        Some((file, offset)) => {
            flags |= libc::MAP_SHARED;
            (file.as_raw_fd(), offset)
        }
        None => {
            flags |= libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
            (-1, 0)
        }
    };
    let length = usize::try_from(size).map_err(io::Error::other)?;
    let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: With a null `addr` it creates a mapping where none is. Else `addr` is the start of a
    // mapping of `size` bytes that the caller owns and that is accessed through `access` only,
    // for which it does not matter what is mapped.
    let ptr = unsafe { libc::mmap(addr.cast(), length, prot, flags, fd, offset) };
    if ptr == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    Ok(HostPtr(ptr.cast()))
}

/// Copies `size` bytes between mappings.
fn copy(from: HostPtr, to: HostPtr, size: u64) {
    let mut buffer = vec![0; 1 << 16];
    let mut done = 0;
    while done < size {
        let take = (size - done).min(buffer.len() as u64) as usize;
        let part = &mut buffer[..take];
        // SAFETY: The callers pass mappings of at least `size` bytes.
        unsafe { access::read(from.0.add(done as usize), part) };
        // Most of a blob has never been written; keep it that way.
        if part.iter().any(|b| *b != 0) {
            // SAFETY: As above.
            unsafe { access::write(to.0.add(done as usize), part) };
        }
        done += take as u64;
    }
}

impl HostBlob {
    fn new(size: u64) -> io::Result<Self> {
        Ok(Self {
            ptr: map(std::ptr::null_mut(), size, None)?,
            size,
        })
    }

    /// Its address.
    pub(crate) fn ptr(&self) -> HostPtr {
        self.ptr
    }

    /// Bytes.
    #[must_use]
    pub(crate) fn size(&self) -> u64 {
        self.size
    }
}

impl Drop for HostBlob {
    fn drop(&mut self) {
        // SAFETY: The mapping is ours, and nothing uses it any more: who does holds an `Arc`.
        unsafe { libc::munmap(self.ptr.0.cast(), self.size as usize) };
    }
}

/// Why a blob cannot be shown in the window.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WindowError {
    /// The place is not aligned, not in the window, or taken.
    #[error("no such place in the window, or it is taken")]
    Place,
    /// The kernel refused.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// The host-visible window, and the memory of all host blobs.
#[derive(Debug)]
pub(crate) struct HostMemory {
    memfd: Arc<File>,
    size: u64,
    /// Length of what is shown at an offset.
    shown: BTreeMap<u64, u64>,
    /// Bytes of all blobs that exist.
    allocated: u64,
    /// How many there are, and may be: each is a mapping of this process.
    blobs: usize,
    max_blobs: usize,
}

impl HostMemory {
    /// A window of `size` bytes; 0 for none.
    ///
    /// # Errors
    ///
    /// Those of memfd_create(2) and ftruncate(2).
    pub(crate) fn new(size: u64) -> io::Result<Self> {
        // SAFETY: The name is a C string.
        let fd = unsafe { libc::memfd_create(c"virtgpu-hostmem".as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: The descriptor is new and no one else's.
        let memfd = unsafe { File::from_raw_fd(fd) };
        memfd.set_len(size)?;
        Ok(Self {
            memfd: Arc::new(memfd),
            size,
            shown: BTreeMap::new(),
            allocated: 0,
            blobs: 0,
            // Spaces may have half of the mappings.
            max_blobs: host::max_mappings() / 4,
        })
    }

    /// The file of the window.
    #[must_use]
    pub(crate) fn memfd(&self) -> &Arc<File> {
        &self.memfd
    }

    /// Bytes of the window.
    #[must_use]
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Bytes of the window that are in use.
    #[must_use]
    pub(crate) fn bytes_shown(&self) -> u64 {
        self.shown.values().sum()
    }

    /// A new blob of `size` bytes, a multiple of [`PAGE`], zeroed; `None` if that is too much.
    pub(crate) fn allocate(&mut self, size: u64) -> Option<Arc<HostBlob>> {
        let allocated = self.allocated.checked_add(size)?;
        if allocated > self.size || self.blobs >= self.max_blobs {
            return None;
        }
        let blob = HostBlob::new(size).ok()?;
        self.allocated = allocated;
        self.blobs += 1;
        Some(Arc::new(blob))
    }

    /// Returns the allowance of a blob that is not shown.
    pub(crate) fn free(&mut self, blob: &HostBlob) {
        self.allocated = self.allocated.saturating_sub(blob.size);
        self.blobs = self.blobs.saturating_sub(1);
    }

    /// Whether a blob of `size` bytes could be shown at `offset`.
    #[must_use]
    pub(crate) fn has_place(&self, offset: u64, size: u64) -> bool {
        let Some(end) = offset.checked_add(size) else {
            return false;
        };
        let before = self.shown.range(..end).next_back();
        offset % PAGE == 0
            && end <= self.size
            && before.is_none_or(|(start, length)| start + length <= offset)
    }

    /// Shows `blob` to the guest at `offset` of the window. With `keep` its contents move along,
    /// else it must be all zero. Nothing may write to it meanwhile.
    ///
    /// # Errors
    ///
    /// If that is no place, or the kernel refuses.
    pub(crate) fn show(
        &mut self,
        blob: &HostBlob,
        offset: u64,
        keep: bool,
    ) -> Result<(), WindowError> {
        if !self.has_place(offset, blob.size) {
            return Err(WindowError::Place);
        }
        self.clear(offset, blob.size)?;
        if keep {
            let window = map(std::ptr::null_mut(), blob.size, Some((&self.memfd, offset)))?;
            copy(blob.ptr, window, blob.size);
            // SAFETY: Mapped above, and used nowhere else.
            unsafe { libc::munmap(window.0.cast(), blob.size as usize) };
        }
        map(blob.ptr.0, blob.size, Some((&self.memfd, offset)))?;
        self.shown.insert(offset, blob.size);
        Ok(())
    }

    /// Ends what [`Self::show`] began. With `keep` the blob keeps its contents. Nothing may use it
    /// meanwhile.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub(crate) fn hide(&mut self, blob: &HostBlob, offset: u64, keep: bool) -> io::Result<()> {
        let saved = keep.then(|| HostBlob::new(blob.size)).transpose()?;
        if let Some(saved) = &saved {
            copy(blob.ptr, saved.ptr, blob.size);
        }
        map(blob.ptr.0, blob.size, None)?;
        if let Some(saved) = &saved {
            copy(saved.ptr, blob.ptr, blob.size);
        }
        // Until it is empty the place is taken.
        if let Err(error) = self.clear(offset, blob.size) {
            if keep {
                map(blob.ptr.0, blob.size, Some((&self.memfd, offset)))?;
            }
            return Err(error);
        }
        self.shown.remove(&offset);
        Ok(())
    }

    /// Gives the memory of a part of the window back; it reads as zero then.
    fn clear(&self, offset: u64, size: u64) -> io::Result<()> {
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        let (offset, size) = (offset as libc::off_t, size as libc::off_t);
        // SAFETY: It changes the contents of a file that is accessed through `access` only.
        if unsafe { libc::fallocate(self.memfd.as_raw_fd(), mode, offset, size) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_do_not_overlap() {
        let mut memory = HostMemory::new(16 * PAGE).unwrap();
        let blob = memory.allocate(4 * PAGE).unwrap();
        memory.show(&blob, 4 * PAGE, false).unwrap();
        for (offset, fits) in [
            (0, true),
            (1, false),
            (PAGE, false),
            (4 * PAGE, false),
            (7 * PAGE, false),
            (8 * PAGE, true),
            (12 * PAGE, true),
            (13 * PAGE, false),
            (u64::MAX - PAGE + 1, false),
        ] {
            assert_eq!(memory.has_place(offset, 4 * PAGE), fits, "{offset}");
        }
    }

    #[test]
    fn blobs_are_limited_to_the_window() {
        let mut memory = HostMemory::new(4 * PAGE).unwrap();
        let blob = memory.allocate(3 * PAGE).unwrap();
        assert!(memory.allocate(2 * PAGE).is_none());
        assert!(memory.allocate(u64::MAX).is_none());
        memory.free(&blob);
        let whole = memory.allocate(4 * PAGE).unwrap();
        memory.free(&whole);
        // However small they are.
        memory.max_blobs = 2;
        let blobs: Vec<_> = (0..2).filter_map(|_| memory.allocate(PAGE)).collect();
        assert!(blobs.len() == 2 && memory.allocate(PAGE).is_none());
        memory.free(&blobs[0]);
        assert!(memory.allocate(PAGE).is_some());
    }
}
