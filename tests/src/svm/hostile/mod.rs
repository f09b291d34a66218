// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! A device that misbehaves towards a context in fault mode. What no device may say costs the
//! device, and everything ends; what is only of no use costs that context, and others notice
//! nothing. Memory stays right, and nothing is kept in the end.
//!
//! The device aims at contexts of one name, so that the others here are treated well.

mod context;
mod device;
mod endless;
mod refused;
mod room;

use virtgpu_client::{compute, AddressSpace, SpaceOptions};

use self::context::{is_one_more_fault, killed_while_it_begins, spaces_that_are_gone};
use self::device::{
    ends_by_a_job, ends_by_a_resource, ends_by_two_jobs, ends_in_a_fault, ends_while_served,
    gone_in_a_fault,
};
use self::endless::{
    faults_for_ever, killed_while_it_faults, never_done, never_done_and_killed, runs_out_alone,
    stalls_alone,
};
use self::refused::{
    counts_where_the_device_has_a_limit, counts_where_the_device_has_no_memory,
    one_context_has_no_memory, prefetch_tells_why, prefetch_waits_behind_the_refused,
};
use self::room::{dropped_space_is_no_bad_address, room_comes_back};
use super::support::{family as well_behaved, Svm, RINGS, USUAL};
use crate::cases;
use crate::hostile::{given_back, unbinds};
use crate::isolation;
use crate::ktap::{Case, Family, TestResult};
use crate::support::Env;

/// A device that is sane but towards the contexts of one name.
const fn family(name: &'static str, device: &'static str, cases: &'static [Case]) -> Family {
    Family {
        device,
        ..well_behaved(name, cases)
    }
}

/// A device that is lost, and cannot be asked.
const fn lost(name: &'static str, device: &'static str, cases: &'static [Case]) -> Family {
    Family {
        leak_check: false,
        ..family(name, device, cases)
    }
}

/// The driver has to mark such a device lost, whatever waits for a page.
const LOST: &[Case] = cases![ends_in_a_fault: 300, unbinds: 300, given_back: 200];
/// The same, also when its own threads are serving faults.
const LOST_ANYWHERE: &[Case] = cases![
    ends_in_a_fault: 300,
    ends_while_served: 300,
    unbinds: 300,
    given_back: 200,
];

pub(crate) const FAMILIES: &[Family] = &[
    lost(
        "svm_hostile_fault_id_in_use",
        "--adversary bad-fault:1 --adversary-on MAP --adversary-context silent",
        LOST,
    ),
    lost(
        "svm_hostile_fault_without_access",
        "--adversary bad-fault:2 --adversary-on MAP --adversary-context silent",
        LOST,
    ),
    lost(
        "svm_hostile_fault_of_access_7",
        "--adversary bad-fault:3 --adversary-on MAP --adversary-context silent",
        LOST,
    ),
    lost(
        "svm_hostile_fault_misaligned",
        "--adversary bad-fault:4 --adversary-on MAP --adversary-context silent",
        LOST,
    ),
    lost(
        "svm_hostile_fault_outside",
        "--adversary bad-fault:5 --adversary-on MAP --adversary-context silent",
        LOST,
    ),
    lost(
        "svm_hostile_fault_too_many",
        "--adversary bad-fault:6 --adversary-on MAP --adversary-context silent",
        LOST_ANYWHERE,
    ),
    lost(
        "svm_hostile_fault_of_no_ring",
        "--adversary bad-fault:7 --adversary-on MAP --adversary-context silent",
        LOST,
    ),
    lost(
        "svm_hostile_fault_of_a_resource",
        "--adversary bad-fault --adversary-on MAP --adversary-context silent",
        cases![ends_by_a_resource: 300, unbinds: 300, given_back: 200],
    ),
    lost(
        "svm_hostile_done_unknown",
        "--adversary bad-done --adversary-on MAP --adversary-context silent",
        LOST_ANYWHERE,
    ),
    lost(
        "svm_hostile_done_twice",
        "--adversary done-again --adversary-context silent",
        cases![ends_by_a_job: 300, unbinds: 300, given_back: 200],
    ),
    lost(
        "svm_hostile_done_out_of_order",
        "--adversary done-swapped --adversary-every 2 --adversary-context silent",
        cases![ends_by_two_jobs: 300, unbinds: 300, given_back: 200],
    ),
    lost(
        "svm_lost_in_fault",
        "--adversary device-lost --adversary-on MAP --adversary-context silent",
        LOST_ANYWHERE,
    ),
    lost(
        "svm_gone_in_fault",
        "--adversary exit --adversary-on FAULT_RESOLVE --adversary-context silent",
        cases![gone_in_a_fault: 300, unbinds: 300, given_back: 200],
    ),
    family(
        "svm_hostile_dead_space",
        "--adversary bad-fault --adversary bad-done --adversary-on SPACE_DESTROY",
        cases![spaces_that_are_gone: 300],
    ),
    family(
        "svm_hostile_fault_of_nothing",
        "--adversary bad-fault --adversary-on MAP --adversary-context silent",
        cases![is_one_more_fault: 300],
    ),
    family(
        "svm_hostile_refault",
        "--adversary refault --adversary-context silent",
        cases![faults_for_ever: 300, killed_while_it_faults: 300],
    ),
    family(
        "svm_hostile_no_memory",
        "--adversary refuse --adversary-on MAP --adversary-context silent",
        cases![one_context_has_no_memory: 300],
    ),
    family(
        "svm_hostile_map_limit",
        "--adversary refuse:4 --adversary-on MAP --adversary-context silent",
        cases![prefetch_tells_why: 300],
    ),
    family(
        "svm_hostile_map_refused_once",
        "--adversary refuse --adversary-on MAP --adversary-count 1 --adversary-context silent",
        cases![prefetch_waits_behind_the_refused: 300],
    ),
    family(
        "svm_hostile_first_map_refused",
        "--adversary refuse --adversary-on MAP --adversary-count 1 --adversary-context silent",
        cases![room_comes_back: 300],
    ),
    // After the fault on the second granule, the third one is mapped ahead of its own.
    family(
        "svm_hostile_map_ahead_refused",
        "--adversary refuse --adversary-on MAP --adversary-from 2 --adversary-count 1 --adversary-context silent",
        cases![room_comes_back: 300],
    ),
    family(
        "svm_hostile_map_no_such_space",
        "--mirror-mappings 16 --adversary refuse:2 --adversary-on MAP --adversary-from 64 --adversary-count 1 --adversary-context silent",
        cases![dropped_space_is_no_bad_address: 300],
    ),
    family(
        "svm_hostile_exclusive_limit",
        "--exclusive-atomics --adversary refuse:4 --adversary-on MAP --adversary-context silent",
        cases![counts_where_the_device_has_a_limit: 300],
    ),
    family(
        "svm_hostile_exclusive_no_memory",
        "--exclusive-atomics --adversary refuse --adversary-on MAP --adversary-context silent",
        cases![counts_where_the_device_has_no_memory: 300],
    ),
    family(
        "svm_hostile_slow_space",
        "--adversary slow:1500 --adversary-on SPACE_CREATE",
        cases![killed_while_it_begins: 300],
    ),
    family(
        "svm_hostile_resolve_kept",
        "--adversary silence --adversary-on FAULT_RESOLVE --adversary-context silent",
        cases![runs_out_alone: 600],
    ),
    family(
        "svm_hostile_resolve_ignored",
        "--adversary ignore --adversary-on FAULT_RESOLVE --adversary-context silent",
        cases![stalls_alone: 300],
    ),
    family(
        "svm_hostile_done_never",
        "--adversary done-never --adversary-context silent",
        cases![never_done: 300, never_done_and_killed: 300],
    ),
];

/// A context that the device is after.
fn victim(env: &Env) -> TestResult<Svm> {
    victim_with(env, USUAL)
}

fn victim_with(env: &Env, options: SpaceOptions) -> TestResult<Svm> {
    // A skip where there is no shared virtual memory.
    drop(super::support::device(env)?);
    let device = env.open()?;
    isolation::init_neglected(&device, RINGS)?;
    Svm::new(AddressSpace::enable(device, options)?)
}

fn delay(microseconds: u64) -> compute::Stream {
    let mut stream = compute::Stream::new();
    stream.delay(microseconds);
    stream
}
