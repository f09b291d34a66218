// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! The standard virtgpu ioctls, on this driver and on Linux's own: parameters, capability sets,
//! contexts, blobs of each kind, jobs on rings, fences, syncobjs, waiting, sharing.

mod blob;
mod context;
mod exec;
mod fence;

use virtgpu_client::compute;

use crate::cases;
use crate::ktap::{Driver, Family, Kernel};

use self::blob::{
    blob_bad, blob_guest, blob_host3d, blob_host3d_guest, blob_pages_are_zero, ignored_fields,
    info_bad, map_bad,
};
use self::context::{
    bad_capset, bad_context, bad_parameters, before_context_init, capset, context_debug_name,
    context_twice, failed_context_init_changes_nothing, parameters, version,
};
use self::exec::{
    bad_exec, close_while_busy, empty_exec, long_command, many_buffers, rings, share_between_files,
    wait_busy,
};
use self::fence::{bad_syncobj, in_fence, out_fence, syncobj_binary, syncobj_timeline};

pub(crate) const FAMILY: Family = Family {
    name: "basic",
    kernel: Kernel::Any,
    driver: Driver::Both,
    device: "",
    leak_check: true,
    cases: cases![
        version,
        parameters,
        bad_parameters,
        capset,
        bad_capset,
        context_twice,
        bad_context,
        context_debug_name,
        failed_context_init_changes_nothing,
        before_context_init,
        blob_guest,
        blob_host3d,
        blob_host3d_guest,
        blob_bad,
        ignored_fields,
        blob_pages_are_zero,
        map_bad,
        info_bad,
        rings,
        bad_exec,
        empty_exec,
        long_command,
        out_fence,
        in_fence,
        syncobj_binary,
        syncobj_timeline,
        bad_syncobj,
        wait_busy,
        many_buffers,
        share_between_files,
        close_while_busy,
    ],
};

const HALF_SECOND: u64 = 500_000;

fn delay(microseconds: u64) -> compute::Stream {
    let mut stream = compute::Stream::new();
    stream.delay(microseconds);
    stream
}
