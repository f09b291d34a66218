// SPDX-License-Identifier: GPL-2.0

//! Trace events: `/sys/kernel/tracing/events/virtgpu_userptr`, defined in `trace.h`.
//!
//! May be called in any context. An event that is not enabled costs a call.
//!
//! There is `unsafe` here, as in `kapi`: trace events can be defined in C only, and
//! these are the driver's own.

use crate::protocol::virtio_gpu::Header;
use core::ops::Range;
use kernel::{
    prelude::*,
    str::CStrExt, //
};

// The functions in `trace.c`, which read their strings only while they run.
unsafe extern "C" {
    fn virtgpu_trace_command(
        device: *const c_char,
        kind: u32,
        context: u32,
        fence: u64,
        descriptors: u32,
    );
    fn virtgpu_trace_response(
        device: *const c_char,
        kind: u32,
        context: u32,
        fence: u64,
        response: u32,
    );
    fn virtgpu_trace_register(
        device: *const c_char,
        resource: u32,
        address: u64,
        size: u64,
        flags: u32,
    );
    fn virtgpu_trace_map(device: *const c_char, space: u32, first: u64, last: u64, entries: u32);
    fn virtgpu_trace_invalidate(
        device: *const c_char,
        space: u32,
        first: u64,
        last: u64,
        change: *const c_char,
    );
    fn virtgpu_trace_invalidated(
        device: *const c_char,
        space: u32,
        first: u64,
        last: u64,
        acknowledged: bool,
    );
}

/// A command was put into the control queue.
pub(crate) fn command(device: &CStr, header: &Header, descriptors: usize) {
    // SAFETY: The string is valid.
    unsafe {
        virtgpu_trace_command(
            device.as_char_ptr(),
            header.kind.get(),
            header.ctx_id.get(),
            header.fence_id.get(),
            descriptors as u32,
        )
    }
}

/// The device has responded to the command with `header`.
pub(crate) fn response(device: &CStr, header: &Header, response: u32) {
    // SAFETY: The string is valid.
    unsafe {
        virtgpu_trace_response(
            device.as_char_ptr(),
            header.kind.get(),
            header.ctx_id.get(),
            header.fence_id.get(),
            response,
        )
    }
}

/// User memory was registered.
pub(crate) fn register(device: &CStr, resource: u32, address: u64, size: u64, flags: u32) {
    // SAFETY: The string is valid.
    unsafe { virtgpu_trace_register(device.as_char_ptr(), resource, address, size, flags) }
}

/// MAP was sent for pages.
pub(crate) fn map(device: &CStr, space: u32, pages: &Range<usize>, entries: usize) {
    // SAFETY: The string is valid.
    unsafe {
        virtgpu_trace_map(
            device.as_char_ptr(),
            space,
            pages.start as u64,
            pages.end as u64 - 1,
            entries as u32,
        )
    }
}

/// Pages are about to be invalidated, by a `change` of this name.
pub(crate) fn invalidate(device: &CStr, space: u32, pages: &Range<usize>, change: &CStr) {
    // SAFETY: The strings are valid.
    unsafe {
        virtgpu_trace_invalidate(
            device.as_char_ptr(),
            space,
            pages.start as u64,
            pages.end as u64 - 1,
            change.as_char_ptr(),
        )
    }
}

/// The device reaches pages no more; or it is lost.
pub(crate) fn invalidated(device: &CStr, space: u32, pages: &Range<usize>, acknowledged: bool) {
    // SAFETY: The string is valid.
    unsafe {
        virtgpu_trace_invalidated(
            device.as_char_ptr(),
            space,
            pages.start as u64,
            pages.end as u64 - 1,
            acknowledged,
        )
    }
}
