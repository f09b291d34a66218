// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Blobs: which are refused, what takes their memory away, and the window of the host.

use std::os::unix::fs::FileExt;

use super::common::*;
use virtgpu_protocol::compute::op;
use virtgpu_protocol::virtio_gpu::{self as wire, blob_mem, command, response};
use vm_memory::{Bytes, GuestAddress};

/// A blob that could not be taken out of the window is there still.
#[test]
fn unmap_that_fails() {
    let mut vm = Vm::with_process(env!("CARGO_BIN_EXE_virtgpu-device"), &[], false);
    vm.context(1);
    vm.ok(&create_blob(1, 1, blob_mem::HOST3D, HOSTMEM, &[]));
    assert_eq!(kind(&vm.ask(&map_blob(1, 0))), response::OK_MAP_INFO);
    let limit = |vm: &Vm, bytes: u64| {
        let limit = libc::rlimit {
            rlim_cur: bytes,
            rlim_max: libc::RLIM_INFINITY,
        };
        let pid = vm.pid() as libc::pid_t;
        // SAFETY: The limit is read; nothing is written.
        let result = unsafe { libc::prlimit(pid, libc::RLIMIT_AS, &limit, std::ptr::null_mut()) };
        assert_eq!(result, 0);
    };
    // A little more, but no second blob.
    let size = vm.status_of_process("VmSize:");
    limit(&vm, size + HOSTMEM / 2);
    let unmap = resource_command(command::RESOURCE_UNMAP_BLOB, 0, 1);
    assert_eq!(vm.kind(&unmap), response::ERR_OUT_OF_MEMORY);
    assert_eq!(vm.kind(&map_blob(1, 0)), response::ERR_INVALID_PARAMETER);
    limit(&vm, libc::RLIM_INFINITY);
    vm.ok(&unmap);
    assert_eq!(vm.kind(&unmap), response::ERR_INVALID_PARAMETER);
    vm.end(false);
}

#[test]
fn memory_of_a_blob_is_taken_away() {
    let mut vm = Vm::new(options());
    vm.context(1);
    vm.blob(1, 1, &[(FREE, 4096)]);
    vm.blob(1, 2, &[(FREE + 4096, 4096)]);
    // A job that uses it comes to its end first.
    let fence = vm.fence;
    vm.fence += 1;
    let ops = [delay(200_000), fill(1, 0, 8, 7)];
    let job = vm.post(&submit(1, None, Some(fence), &ops));
    vm.ok(&resource_command(command::RESOURCE_DETACH_BACKING, 0, 1));
    assert_eq!(kind(&vm.wait(job)), response::OK_NODATA);
    let seven: u64 = vm.memory.read_obj(GuestAddress(FREE)).unwrap();
    assert_eq!(seven, 7);
    assert_eq!(vm.stat(1, 2, FREE + 4096).guest_bytes.get(), 4096);
    assert_eq!(
        vm.kind(&resource_command(command::RESOURCE_DETACH_BACKING, 0, 1)),
        response::ERR_INVALID_PARAMETER
    );
    // A job after it finds nothing.
    assert_eq!(vm.run(1, &[fill(1, 0, 8, 8)]), response::ERR_UNSPEC);
    let seven: u64 = vm.memory.read_obj(GuestAddress(FREE)).unwrap();
    assert_eq!(seven, 7);
    vm.ok(&resource_command(command::RESOURCE_UNREF, 0, 1));
    vm.end(false);
}

#[test]
fn blobs_are_checked() {
    let mut vm = Vm::new(options());
    vm.context(1);
    let page = [(FREE, 4096)];
    let mut blob = |ctx, id, mem, size, pieces: &[(u64, u32)]| {
        vm.kind(&create_blob(ctx, id, mem, size, pieces))
    };
    use response::{ERR_INVALID_PARAMETER, ERR_INVALID_RESOURCE_ID, OK_NODATA};
    let guest = blob_mem::GUEST;
    assert_eq!(blob(0, 0, guest, PAGE, &page), ERR_INVALID_RESOURCE_ID);
    assert_eq!(blob(0, 1, guest, 0, &page), ERR_INVALID_PARAMETER);
    assert_eq!(blob(0, 1, guest, PAGE, &[]), ERR_INVALID_PARAMETER);
    assert_eq!(blob(0, 1, guest, PAGE + 1, &page), ERR_INVALID_PARAMETER);
    assert_eq!(
        blob(0, 1, guest, PAGE, &[(RAM - 4095, 4096)]),
        ERR_INVALID_PARAMETER
    );
    assert_eq!(
        blob(0, 1, guest, PAGE, &[(RAM, 4096)]),
        ERR_INVALID_PARAMETER
    );
    assert_eq!(
        blob(0, 1, guest, PAGE, &[(u64::MAX - 9, 4096)]),
        ERR_INVALID_PARAMETER
    );
    assert_eq!(
        blob(0, 1, guest, PAGE, &[(FREE, 0), (FREE, 4096)]),
        ERR_INVALID_PARAMETER
    );
    assert_eq!(blob(0, 1, 9, PAGE, &page), ERR_INVALID_PARAMETER);
    assert_eq!(
        blob(7, 1, guest, PAGE, &page),
        response::ERR_INVALID_CONTEXT_ID
    );
    assert_eq!(
        blob(1, 1, blob_mem::HOST3D, PAGE, &page),
        ERR_INVALID_PARAMETER
    );
    assert_eq!(
        blob(1, 1, blob_mem::HOST3D, 100, &[]),
        ERR_INVALID_PARAMETER
    );
    assert_eq!(
        blob(0, 1, blob_mem::HOST3D, PAGE, &[]),
        ERR_INVALID_PARAMETER
    );
    assert_eq!(
        blob(1, 1, blob_mem::HOST3D, 1 << 40, &[]),
        response::ERR_OUT_OF_MEMORY
    );
    assert_eq!(blob(0, 1, guest, PAGE, &page), OK_NODATA);
    assert_eq!(blob(0, 1, guest, PAGE, &page), ERR_INVALID_RESOURCE_ID);
    // More entries announced than sent.
    let mut short = create_blob(0, 2, guest, PAGE, &page);
    short[36] = 2;
    assert_eq!(vm.kind(&short), ERR_INVALID_PARAMETER);
    short[36..40].fill(0xff);
    assert_eq!(vm.kind(&short), ERR_INVALID_PARAMETER);
    assert_eq!(vm.kind(&short[..40]), ERR_INVALID_PARAMETER);
    assert_eq!(vm.kind(&short[..3]), ERR_INVALID_PARAMETER);
    assert_eq!(vm.kind(&short[..1]), response::ERR_UNSPEC);
    assert_eq!(vm.kind(&plain(0x9999, 0)), response::ERR_UNSPEC);
    vm.ok(&resource_command(command::RESOURCE_UNREF, 0, 1));
    let unref = resource_command(command::RESOURCE_UNREF, 0, 1);
    assert_eq!(vm.kind(&unref), ERR_INVALID_RESOURCE_ID);
    vm.end(false);
}

#[test]
fn uuids() {
    let mut vm = Vm::new(options());
    let assign = |id| resource_command(command::RESOURCE_ASSIGN_UUID, 0, id);
    assert_eq!(vm.kind(&assign(1)), response::ERR_INVALID_RESOURCE_ID);
    for id in [1, 2] {
        vm.ok(&create_blob(0, id, blob_mem::GUEST, PAGE, &[(FREE, 4096)]));
    }
    let (first, second) = (vm.ask(&assign(1)), vm.ask(&assign(2)));
    assert_eq!(kind(&first), response::OK_RESOURCE_UUID);
    assert_eq!(first.len(), 40);
    assert_ne!(first, second);
    assert_eq!(vm.ask(&assign(1)), first);
    vm.end(false);
}

#[test]
fn long_entry_lists() {
    let mut vm = Vm::new(options());
    vm.context(1);
    // Every other 64 bytes of 1 MiB, backwards: nothing can be merged.
    let pieces: Vec<(u64, u32)> = (0..8192).rev().map(|i| (FREE + i * 128, 64)).collect();
    vm.blob(1, 1, &pieces);
    let length = 8192 * 64;
    assert_eq!(
        vm.run(1, &[fill(1, 0, length, 0x0101_0101_0101_0101)]),
        response::OK_NODATA
    );
    let mut memory = vec![0; 1 << 20];
    vm.memory
        .read_slice(&mut memory, GuestAddress(FREE))
        .unwrap();
    for part in memory.chunks(128) {
        assert!(part[..64].iter().all(|b| *b == 1) && part[64..].iter().all(|b| *b == 0));
    }
    vm.blob(1, 2, &[(FREE + (2 << 20), 4096)]);
    let stat = vm.stat(1, 2, FREE + (2 << 20));
    assert_eq!((stat.resources.get(), stat.contexts.get()), (2, 1));
    assert_eq!(stat.guest_entries.get(), 8193);
    assert_eq!(stat.guest_bytes.get(), length + 4096);
    assert!(stat.create_blob_ns.get() > 0);
    vm.end(false);
}

#[test]
fn host_blobs_in_the_window() {
    let mut vm = Vm::new(options());
    vm.context(1);
    let attach = |id| resource_command(command::CTX_ATTACH_RESOURCE, 1, id);
    for id in [1, 2] {
        vm.ok(&create_blob(1, id, blob_mem::HOST3D, 2 * PAGE, &[]));
        vm.ok(&attach(id));
    }
    assert_eq!(
        vm.run(1, &[fill(1, 8, 8, 0x1122_3344)]),
        response::OK_NODATA
    );
    let response = vm.ask(&map_blob(1, PAGE));
    let response: &wire::ResponseMapInfo = prefix(&response);
    assert_eq!(response.hdr.kind.get(), response::OK_MAP_INFO);
    assert_eq!(response.map_info.get(), wire::map_cache::CACHED);
    let window = vm.window();
    let mut word = [0; 8];
    window.read_exact_at(&mut word, PAGE + 8).unwrap();
    assert_eq!(u64::from_le_bytes(word), 0x1122_3344);
    for (id, offset) in [
        (1, 4 * PAGE),
        (2, 2 * PAGE),
        (2, 1),
        (2, HOSTMEM - PAGE),
        (2, u64::MAX),
    ] {
        assert_eq!(
            vm.kind(&map_blob(id, offset)),
            response::ERR_INVALID_PARAMETER
        );
    }
    assert_eq!(vm.kind(&map_blob(3, 0)), response::ERR_INVALID_RESOURCE_ID);
    assert_eq!(vm.kind(&map_blob(2, 3 * PAGE)), response::OK_MAP_INFO);
    // What the guest writes the device sees, and the other way round.
    window.write_all_at(&7u64.to_le_bytes(), 3 * PAGE).unwrap();
    let copy = operation(op::COPY, (1, 0), [(2, 0), (0, 0)], 8, [0; 2]);
    assert_eq!(vm.run(1, &[copy]), response::OK_NODATA);
    window.read_exact_at(&mut word, PAGE).unwrap();
    assert_eq!(u64::from_le_bytes(word), 7);
    // A job that waits for the guest's write does not keep the guest from mapping.
    vm.ok(&create_blob(1, 3, blob_mem::HOST3D, PAGE, &[]));
    vm.ok(&attach(3));
    let request = vm.submit(1, None, &[spin(3, 0, 9, 10_000_000)]);
    let head = vm.post(&request);
    assert_eq!(vm.kind(&map_blob(3, 8 * PAGE)), response::OK_MAP_INFO);
    window.write_all_at(&9u64.to_le_bytes(), 8 * PAGE).unwrap();
    assert_eq!(kind(&vm.wait(head)), response::OK_NODATA);
    // Unmapped it keeps what is in it, and the window is zero again.
    let unmap = resource_command(command::RESOURCE_UNMAP_BLOB, 0, 1);
    vm.ok(&unmap);
    assert_eq!(vm.kind(&unmap), response::ERR_INVALID_PARAMETER);
    window.read_exact_at(&mut word, PAGE).unwrap();
    assert_eq!(word, [0; 8]);
    assert_eq!(vm.kind(&map_blob(1, 0)), response::OK_MAP_INFO);
    window.read_exact_at(&mut word, 0).unwrap();
    assert_eq!(u64::from_le_bytes(word), 7);
    for id in [1, 2, 3] {
        vm.ok(&resource_command(command::RESOURCE_UNREF, 0, id));
    }
    window.read_exact_at(&mut word, 0).unwrap();
    assert_eq!(word, [0; 8]);
    vm.end(false);
}

#[test]
fn what_follows_a_mapping_waits_for_it() {
    let mut vm = Vm::new(options());
    vm.context(1);
    vm.blob(1, 1, &[(FREE, 4096)]);
    vm.ok(&create_blob(1, 2, blob_mem::HOST3D, PAGE, &[]));
    vm.ok(&resource_command(command::CTX_ATTACH_RESOURCE, 1, 2));
    // As long as this job can write it, it cannot be mapped.
    let request = vm.submit(1, Some(0), &[spin(1, 0, 5, 10_000_000), fill(2, 0, 8, 1)]);
    let job = vm.post(&request);
    let command = |command| resource_command(command, 0, 2);
    let map = vm.post(&map_blob(2, 0));
    assert_eq!(vm.kind(&map_blob(2, PAGE)), response::ERR_INVALID_PARAMETER);
    let unmap = vm.post(&command(command::RESOURCE_UNMAP_BLOB));
    assert_eq!(
        vm.kind(&command(command::RESOURCE_UNMAP_BLOB)),
        response::ERR_INVALID_PARAMETER
    );
    let again = vm.post(&map_blob(2, PAGE));
    let unref = vm.post(&command(command::RESOURCE_UNREF));
    vm.memory.write_obj(5u64, GuestAddress(FREE)).unwrap();
    assert_eq!(kind(&vm.wait(job)), response::OK_NODATA);
    assert_eq!(kind(&vm.wait(map)), response::OK_MAP_INFO);
    assert_eq!(kind(&vm.wait(unmap)), response::OK_NODATA);
    assert_eq!(kind(&vm.wait(again)), response::OK_MAP_INFO);
    assert_eq!(kind(&vm.wait(unref)), response::OK_NODATA);
    let mut word = [0; 8];
    vm.window().read_exact_at(&mut word, PAGE).unwrap();
    assert_eq!(word, [0; 8]);
    vm.end(false);
}

#[test]
fn unref_waits_for_jobs() {
    let mut vm = Vm::new(options());
    vm.context(1);
    vm.context(2);
    vm.blob(1, 1, &[(FREE, 4096)]);
    vm.ok(&resource_command(command::CTX_ATTACH_RESOURCE, 2, 1));
    let request = vm.submit(1, Some(0), &[spin(1, 0, 5, 10_000_000)]);
    let job = vm.post(&request);
    // Another context does not use it.
    vm.ok(&resource_command(command::CTX_DETACH_RESOURCE, 2, 1));
    let detach = vm.post(&resource_command(command::CTX_DETACH_RESOURCE, 1, 1));
    let unref = vm.post(&resource_command(command::RESOURCE_UNREF, 0, 1));
    assert!(vm.is_quiet(unref));
    assert!(vm.is_quiet(detach));
    // It is as good as gone.
    let again = resource_command(command::RESOURCE_UNREF, 0, 1);
    assert_eq!(vm.kind(&again), response::ERR_INVALID_RESOURCE_ID);
    let create = create_blob(0, 1, blob_mem::GUEST, PAGE, &[(FREE, 4096)]);
    assert_eq!(vm.kind(&create), response::ERR_INVALID_RESOURCE_ID);
    vm.memory.write_obj(5u64, GuestAddress(FREE)).unwrap();
    for head in [job, detach, unref] {
        assert_eq!(kind(&vm.wait(head)), response::OK_NODATA);
    }
    vm.ok(&create);
    vm.end(false);
}
