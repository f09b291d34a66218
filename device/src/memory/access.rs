// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Copying between memory that others write at the same time and memory of our own.
//!
//! Guest memory is never turned into a reference. It is read and written with volatile accesses of
//! eight bytes where its address allows, else of one.

/// Reads `dst.len()` bytes at `src`.
///
/// # Safety
///
/// `src` must be valid for volatile reads of `dst.len()` bytes.
pub(crate) unsafe fn read(mut src: *const u8, dst: &mut [u8]) {
    let head = src.align_offset(size_of::<u64>()).min(dst.len());
    let (first, rest) = dst.split_at_mut(head);
    for byte in first {
        // SAFETY: The caller's promise; `src` has advanced by less than `dst.len()`.
        *byte = unsafe { src.read_volatile() };
        // SAFETY: As above: at most one past the end.
        src = unsafe { src.add(1) };
    }
    let mut words = rest.chunks_exact_mut(size_of::<u64>());
    for word in &mut words {
        // SAFETY: The caller's promise: eight bytes are left, and `src` was aligned above.
        let value = unsafe { src.cast::<u64>().read_volatile() };
        word.copy_from_slice(&value.to_ne_bytes());
        // SAFETY: As above: at most one past the end.
        src = unsafe { src.add(size_of::<u64>()) };
    }
    for byte in words.into_remainder() {
        // SAFETY: The caller's promise.
        *byte = unsafe { src.read_volatile() };
        // SAFETY: As above: at most one past the end.
        src = unsafe { src.add(1) };
    }
}

/// Writes `src` to `dst`.
///
/// # Safety
///
/// `dst` must be valid for volatile writes of `src.len()` bytes.
pub(crate) unsafe fn write(mut dst: *mut u8, src: &[u8]) {
    let head = dst.align_offset(size_of::<u64>()).min(src.len());
    let (first, rest) = src.split_at(head);
    for byte in first {
        // SAFETY: The caller's promise; `dst` has advanced by less than `src.len()`.
        unsafe { dst.write_volatile(*byte) };
        // SAFETY: As above: at most one past the end.
        dst = unsafe { dst.add(1) };
    }
    let words = rest.chunks_exact(size_of::<u64>());
    let tail = words.remainder();
    for word in words {
        let mut value = [0; size_of::<u64>()];
        value.copy_from_slice(word);
        // SAFETY: The caller's promise: eight bytes are left, and `dst` was aligned above.
        unsafe {
            dst.cast::<u64>().write_volatile(u64::from_ne_bytes(value));
        }
        // SAFETY: As above: at most one past the end.
        dst = unsafe { dst.add(size_of::<u64>()) };
    }
    for byte in tail {
        // SAFETY: The caller's promise.
        unsafe { dst.write_volatile(*byte) };
        // SAFETY: As above: at most one past the end.
        dst = unsafe { dst.add(1) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_alignment_and_length() {
        let source: Vec<u8> = (0..64u8).collect();
        for start in 0..16 {
            for length in 0..40 {
                let mut private = vec![0; length];
                // SAFETY: start + length <= 56 bytes of `source`.
                unsafe { read(source.as_ptr().add(start), &mut private) };
                assert_eq!(private, &source[start..start + length]);
                let mut target = vec![0xff; 64];
                // SAFETY: start + length <= 56 bytes of `target`.
                unsafe { write(target.as_mut_ptr().add(start), &private) };
                assert!(target[..start].iter().all(|b| *b == 0xff));
                assert_eq!(&target[start..start + length], private);
                assert!(target[start + length..].iter().all(|b| *b == 0xff));
            }
        }
    }
}
