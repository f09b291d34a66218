// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! What the driver says of a buffer, and the ioctls that have nothing to do where memory is pinned.

use virtgpu_client::protocol::uapi;
use virtgpu_client::{Errno, Mapping, Memory, RegisterOptions};

use crate::ktap::TestResult;
use crate::support::memory::small_pages;
use crate::support::{prefetch, Env, PAGE};
use crate::{check_eq, check_err};

pub(super) fn query(env: &Env) -> TestResult {
    let device = env.compute()?;
    let memory = small_pages(37 * PAGE)?;
    let userptr = device.register(&memory, RegisterOptions::pinned())?;
    let query = userptr.query()?;
    let length = memory.len() as u64;
    check_eq!(query.bo_handle, userptr.handle(), "bo_handle");
    check_eq!(query.flags, uapi::USERPTR_PINNED, "flags");
    check_eq!(
        query.memory_model,
        uapi::memory_model::PERMANENT,
        "memory_model"
    );
    check_eq!(query.state, uapi::bo_state::VALID, "state");
    check_eq!(query.addr, memory.as_ptr() as u64, "addr");
    check_eq!(query.size, length, "size");
    check_eq!(query.resident_bytes, length, "resident_bytes");
    check_eq!(query.mapped_bytes, length, "mapped_bytes");
    check_eq!(query.maps, 0, "maps");
    check_eq!(query.invalidations, 0, "invalidations");
    for handle in [0, 12345, u32::MAX] {
        check_err!(device.query(handle), Errno::NOENT, "handle {handle}");
    }
    Ok(())
}

pub(super) fn query_blob(env: &Env) -> TestResult {
    let device = env.compute()?;
    let blob = device.create_blob(&virtgpu_client::BlobOptions::guest(1 << 20))?;
    let query = device.query(blob.handle())?;
    check_eq!(query.flags, 0, "flags");
    check_eq!(query.addr, 0, "addr");
    check_eq!(query.size, 1 << 20, "size");
    check_eq!(query.state, uapi::bo_state::VALID, "state");
    check_eq!(
        query.memory_model,
        uapi::memory_model::PERMANENT,
        "memory_model"
    );
    Ok(())
}

pub(super) fn prefetch(env: &Env) -> TestResult {
    let device = env.compute()?;
    let memory = small_pages(10 * PAGE)?;
    let userptr = device.register(&memory, RegisterOptions::pinned())?;
    prefetch::arguments(&device, &userptr)
}

pub(super) fn prefault_flag(env: &Env) -> TestResult {
    let device = env.compute()?;
    let memory = Mapping::anonymous(16 * PAGE)?;
    let options = RegisterOptions::pinned().flag(uapi::USERPTR_PREFAULT);
    let userptr = device.register(&memory, options)?;
    check_eq!(
        userptr.query()?.resident_bytes,
        memory.len() as u64,
        "resident_bytes"
    );
    Ok(())
}
