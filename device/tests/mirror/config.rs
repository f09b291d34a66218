// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! What the extension offers, and which resources can have a space.

use super::common::*;
use super::{with_limits, word};
use virtgpu_device::mirror::Limits;
use virtgpu_device::options::Options;
use virtgpu_protocol::mirror::{self, device_state, status, MirrorConfig};
use virtgpu_protocol::virtio_gpu::{blob_mem, command, response};
use zerocopy::FromBytes;

#[test]
fn configuration() {
    let mut vm = Vm::mirrored(options());
    let config = vm.config(32, size_of::<MirrorConfig>());
    let config = MirrorConfig::ref_from_bytes(&config).unwrap();
    assert_eq!(config.mirror_version.get(), mirror::VERSION);
    assert_eq!(config.granularity.get(), 4096);
    assert_eq!(config.device_state.get(), device_state::OK);
    assert!(config.max_entries.get() >= 512 && config.max_spaces.get() >= 1024);
    vm.end(false);
    let mut vm = Vm::new(Options {
        mirror: None,
        ..options()
    });
    assert_eq!(vm.config(32, 32), [0; 32]);
    vm.end(false);
}

#[test]
fn without_the_extension() {
    let mut vm = Vm::new(options());
    vm.context(1);
    for memory in [blob_mem::GUEST, blob_mem::HOST3D_GUEST] {
        let create = create_blob(1, 1, memory, PAGE, &[]);
        assert_eq!(vm.kind(&create), response::ERR_INVALID_PARAMETER);
    }
    vm.end(false);
}

#[test]
fn resources() {
    let mut vm = Vm::mirrored(options());
    vm.context(1);
    let mut create = |id, memory, size| vm.kind(&create_blob(1, id, memory, size, &[]));
    assert_eq!(create(1, blob_mem::GUEST, PAGE), response::OK_NODATA);
    assert_eq!(create(2, blob_mem::HOST3D_GUEST, PAGE), response::OK_NODATA);
    assert_eq!(
        create(1, blob_mem::GUEST, PAGE),
        response::ERR_INVALID_RESOURCE_ID
    );
    for size in [0, 1, PAGE + 1, 1 << 48, u64::MAX - 4095] {
        let response = create(3, blob_mem::GUEST, size);
        assert_eq!(response, response::ERR_INVALID_PARAMETER, "{size}");
    }
    // It cannot be shown in the window.
    assert_eq!(vm.kind(&map_blob(1, 0)), response::ERR_INVALID_PARAMETER);
    // Without a space, nothing can be touched.
    vm.ok(&resource_command(command::CTX_ATTACH_RESOURCE, 1, 1));
    assert_eq!(vm.run(1, &[fill(1, 0, 8, 1)]), response::ERR_UNSPEC);
    vm.ok(&resource_command(command::RESOURCE_UNREF, 0, 1));
    vm.end(false);
}

#[test]
fn granularity() {
    let mut vm = Vm::mirrored(with_limits(Limits {
        granularity: 65536,
        ..Limits::default()
    }));
    vm.context(1);
    let create = create_blob(1, 1, blob_mem::GUEST, PAGE, &[]);
    assert_eq!(vm.kind(&create), response::ERR_INVALID_PARAMETER);
    vm.space(1, 1, 2 << 16);
    assert_eq!(vm.map(1, 0, &[(FREE, 4096)]), status::INVALID);
    assert_eq!(vm.map(1, 0, &[(FREE + PAGE, 65536)]), status::INVALID);
    assert_eq!(vm.map(1, PAGE, &[(FREE, 65536)]), status::INVALID);
    assert_eq!(vm.map(1, 65536, &[(FREE, 65536)]), status::OK);
    vm.end(false);
}

/// What is in huge pages is mapped in huge pages.
#[test]
fn huge_pages() {
    const HUGE: u64 = 2 << 20;
    let Some(mut vm) = Vm::huge(options()) else {
        println!("skipped: there are no 4 free huge pages of 2 MiB (vm.nr_hugepages)");
        return;
    };
    let config = vm.config(32, size_of::<MirrorConfig>());
    let config = MirrorConfig::ref_from_bytes(&config).unwrap();
    assert_eq!(u64::from(config.granularity.get()), HUGE);
    vm.context(1);
    let create = create_blob(1, 1, blob_mem::GUEST, PAGE, &[]);
    assert_eq!(vm.kind(&create), response::ERR_INVALID_PARAMETER);
    vm.space(1, 1, 2 * HUGE);
    assert_eq!(vm.map(1, 0, &[(FREE, 4096)]), status::INVALID);
    assert_eq!(vm.map(1, HUGE, &[(FREE, HUGE as u32)]), status::OK);
    let job = [fill(1, 2 * HUGE - 8, 8, 5)];
    assert_eq!(vm.run(1, &job), response::OK_NODATA);
    assert_eq!(word(&vm, FREE + HUGE - 8), 5);
    vm.done(&invalidate(1, HUGE, 2 * HUGE - 1));
    assert_eq!(vm.run(1, &job), response::ERR_UNSPEC);
    vm.end(false);
}
