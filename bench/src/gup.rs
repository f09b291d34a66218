// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! The kernel's own measurement of `pin_user_pages_fast`, through debugfs (GUP_TEST).

use std::fs::{File, OpenOptions};

use virtgpu_client::{ioctl, Memory};

use crate::setup::{Result, PAGE};

const FOLL_WRITE: u32 = 1;
const FOLL_LONGTERM: u32 = 1 << 8;

/// `struct gup_test` of mm/gup_test.h.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
struct GupTest {
    get_delta_usec: u64,
    put_delta_usec: u64,
    addr: u64,
    size: u64,
    nr_pages_per_call: u32,
    gup_flags: u32,
    test_flags: u32,
    which_pages: [u32; 8],
    pad: u32,
}

/// Number of PIN_FAST_BENCHMARK.
const PIN_FAST: u32 = ioctl::iowr(b'g', 2, size_of::<GupTest>());

pub(crate) struct Gup {
    file: File,
}

impl Gup {
    pub(crate) fn open() -> Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/sys/kernel/debug/gup_test")
            .map_err(|error| format!("the kernel has no GUP_TEST: {error}"))?;
        Ok(Self { file })
    }

    /// Nanoseconds for pinning and unpinning all of the memory, once.
    pub(crate) fn pin_unpin(&self, memory: &impl Memory) -> Result<f64> {
        let pages = memory.len() / PAGE;
        let mut test = GupTest {
            addr: memory.as_ptr() as u64,
            size: memory.len() as u64,
            nr_pages_per_call: pages as u32,
            gup_flags: FOLL_WRITE | FOLL_LONGTERM,
            ..Default::default()
        };
        // SAFETY: The structure is that of PIN_FAST_BENCHMARK.
        unsafe { ioctl::call(&self.file, PIN_FAST, (&raw mut test).cast())? };
        if test.size != memory.len() as u64 {
            return Err("not all pages were pinned".into());
        }
        Ok((test.get_delta_usec + test.put_delta_usec) as f64 * 1e3)
    }
}
