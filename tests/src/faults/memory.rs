// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Registrations of user memory.

use std::os::fd::AsFd;

use virtgpu_client::protocol::uapi;
use virtgpu_client::{Memfd, Memory, RegisterOptions};

use super::{each_fault, each_fault_of_a_handle, nothing};
use crate::ktap::TestResult;
use crate::support::memory::small_pages;
use crate::support::{raw, Env, PAGE};

fn registration(env: &Env, what: &str, memory: &impl Memory) -> TestResult {
    let device = env.compute()?;
    for flags in [0, uapi::USERPTR_RDONLY] {
        let mut register = raw::pinned(memory.as_ptr() as u64, memory.len() as u64);
        register.flags |= flags;
        each_fault_of_a_handle(what, &device, || raw::register(&device, register))?;
    }
    Ok(())
}

pub(super) fn register(env: &Env) -> TestResult {
    registration(env, "REGISTER", &small_pages(16 * PAGE)?)
}

pub(super) fn register_fragmented(env: &Env) -> TestResult {
    registration(env, "REGISTER of 3000 pages", &small_pages(3000 * PAGE)?)
}

pub(super) fn register_memfd(env: &Env) -> TestResult {
    let device = env.compute()?;
    let memfd = Memfd::new(64 * PAGE as u64)?;
    memfd.map()?;
    let register = uapi::UserptrRegister {
        flags: uapi::USERPTR_PINNED | uapi::USERPTR_FD,
        fd: std::os::fd::AsRawFd::as_raw_fd(&memfd.as_fd()),
        ..raw::pinned(0, 64 * PAGE as u64)
    };
    each_fault_of_a_handle("REGISTER of a memfd", &device, || {
        raw::register(&device, register)
    })
}

pub(super) fn register_rocm(env: &Env) -> TestResult {
    let device = env.compute()?;
    let memory = small_pages(16 * PAGE)?;
    let addr = memory.as_ptr() as u64;
    each_fault_of_a_handle("CREATE_BLOB of user memory", &device, || {
        let mut blob = uapi::ResourceCreateBlob {
            blob_mem: 3,
            blob_flags: 0x8,
            size: memory.len() as u64,
            blob_id: 1,
            blob_hints: addr as u32,
            pad2: (addr >> 32) as u32,
            ..Default::default()
        };
        raw::call(&device, uapi::nr::RESOURCE_CREATE_BLOB, &mut blob)?;
        Ok(blob.bo_handle)
    })
}

pub(super) fn query(env: &Env) -> TestResult {
    let device = env.compute()?;
    let memory = small_pages(PAGE)?;
    let userptr = device.register(&memory, RegisterOptions::pinned())?;
    each_fault("BO_QUERY", || userptr.query(), nothing)
}

pub(super) fn prefetch(env: &Env) -> TestResult {
    let device = env.compute()?;
    let memory = small_pages(PAGE)?;
    let userptr = device.register(&memory, RegisterOptions::pinned())?;
    each_fault(
        "USERPTR_PREFETCH",
        || userptr.prefetch(0, PAGE as u64),
        nothing,
    )
}
