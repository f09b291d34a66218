// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Pointers in jobs: of malloc, of the stack, of lists, of files, first touch by either side; and
//! the ioctls around them.

mod enable;
mod pages;
mod pointers;
mod prefetch;
mod wait;

use virtgpu_client::compute;

use super::support::{device, family};
use crate::ktap::{Family, TestResult};
use crate::support::{example, Env};
use crate::{cases, check};

use self::enable::modes_and_errors;
use self::pages::{
    around_stays_in_vma, exact_faults_one_page, file_private_stays_private,
    file_shared_reaches_disk, in_order_goes_ahead, read_then_write,
};
use self::pointers::{
    buffers_beside_pointers, chase_list, first_touch_of_each_kind, globals, lent_slices,
    malloc_all_ops, untouched_malloc, untouched_stack_array,
};
use self::prefetch::{
    holes_cost_nothing, prefetch_errors, prefetch_in_parts, prefetch_killed, prefetch_partial,
};
use self::wait::{
    jobs_end_in_order, ring_events, wait_errors, wait_for_a_value_of_another_ring, wait_ops,
};

pub(crate) const FAMILY: Family = family(
    "svm_basic",
    cases![
        modes_and_errors,
        malloc_all_ops,
        lent_slices,
        untouched_malloc,
        untouched_stack_array,
        globals,
        first_touch_of_each_kind,
        chase_list,
        read_then_write,
        file_shared_reaches_disk,
        file_private_stays_private,
        exact_faults_one_page,
        around_stays_in_vma,
        in_order_goes_ahead,
        prefetch_partial,
        prefetch_in_parts,
        prefetch_errors,
        holes_cost_nothing,
        prefetch_killed,
        wait_ops,
        wait_errors,
        wait_for_a_value_of_another_ring,
        ring_events,
        jobs_end_in_order,
        buffers_beside_pointers,
        documented_example,
    ],
);

fn delay(microseconds: u64) -> compute::Stream {
    let mut stream = compute::Stream::new();
    stream.delay(microseconds);
    stream
}

/// The job queue of `docs/uapi.md`, as it is printed there.
fn documented_example(env: &Env) -> TestResult {
    drop(device(env)?);
    let text = example::run(env, example::Example::JobQueue)?;
    check!(text.ends_with(": right\n"), "it says {text:?}");
    Ok(())
}
