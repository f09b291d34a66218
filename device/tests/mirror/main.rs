// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! The mirror queue, through a real vhost-user connection.

#[path = "../common/mod.rs"]
mod common;

mod commands;
mod config;
mod job;
mod life;
mod limit;
mod map;

use common::*;
use virtgpu_device::mirror::Limits;
use virtgpu_device::options::Options;
use virtgpu_protocol::compute::{op, Op};
use virtgpu_protocol::virtio_gpu::{command, response};
use vm_memory::{Bytes, GuestAddress};

fn word(vm: &Vm, at: u64) -> u64 {
    vm.memory.read_obj(GuestAddress(at)).unwrap()
}

fn with_limits(limits: Limits) -> Options {
    Options {
        mirror: Some(limits),
        ..options()
    }
}

/// The command with the 32-bit word at byte `at` changed.
fn with(mut command: Vec<u8>, at: usize, value: u32) -> Vec<u8> {
    command[at..at + 4].copy_from_slice(&value.to_le_bytes());
    command
}

/// Whether a new context can do this with resource 1.
fn can(vm: &mut Vm, job: Op) -> bool {
    let ctx = 100 + vm.fence as u32;
    vm.context(ctx);
    for id in 1..=2 {
        vm.ok(&resource_command(command::CTX_ATTACH_RESOURCE, ctx, id));
    }
    vm.run(ctx, &[job]) == response::OK_NODATA
}

fn can_write(vm: &mut Vm, offset: u64, length: u64) -> bool {
    can(vm, fill(1, offset, length, 9))
}

fn can_read(vm: &mut Vm, offset: u64, length: u64) -> bool {
    let read = operation(op::CRC32C, (2, 0), [(1, offset), (0, 0)], length, [0; 2]);
    can(vm, read)
}

/// Every other page of a space, from page `from` on: each INVALIDATE splits a run.
fn holes(space: u32, from: u64) -> impl Iterator<Item = Vec<u8>> {
    let pages = (from..).step_by(2);
    pages.map(move |page| invalidate(space, page * PAGE, (page + 1) * PAGE - 1))
}
