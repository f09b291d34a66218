// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! What the kernel does to memory while a device uses it by pointer: both sides see the same bytes
//! at every moment, and nothing is held.

mod file;
mod mapping;
mod pages;
mod process;
mod reclaim;
mod uffd;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use virtgpu_client::{Bytes, Memory};

use super::support::{family, Svm};
use crate::ktap::{Family, TestResult};
use crate::support::place::Place;
use crate::support::{raced, PAGE, ROUNDS};
use crate::{cases, check_eq};

use self::file::{hugetlb_punch, reading_dirties_no_file, truncated, writeback_enospc};
use self::mapping::{
    dontneed, moved_away, mprotect_toggle, remap_new_data, replaced_when_just_mapped,
    replaced_while_the_device_writes, unmap_under_job, va_churn_is_collected,
};
use self::pages::{
    compaction, huge_split_collapse, ksm, migrate, migrate_while_the_device_writes,
    migrated_as_a_process, numa, soft_dirty,
};
use self::process::{
    child_and_passed_fd_refused, child_has_its_own, exec, exit_with_jobs, fork_both_sides,
    forks_while_the_device_writes, kill_at_random, stop_and_continue, stopped_and_closed,
};
use self::reclaim::{
    free_lazily_then_written, memcg_oom_ends, mrelease, paged_out,
    paged_out_while_the_device_writes, swap_twice_the_limit,
};
use self::uffd::uffd_all_modes;

pub(crate) const FAMILY: Family = family(
    "svm_mm",
    cases![
        unmap_under_job: 300,
        remap_new_data,
        replaced_while_the_device_writes: 300,
        replaced_when_just_mapped: 300,
        moved_away,
        dontneed,
        mprotect_toggle: 300,
        fork_both_sides,
        forks_while_the_device_writes: 300,
        child_and_passed_fd_refused,
        child_has_its_own,
        exec,
        exit_with_jobs: 300,
        kill_at_random: 1200,
        stop_and_continue,
        stopped_and_closed,
        paged_out,
        paged_out_while_the_device_writes: 300,
        swap_twice_the_limit: 600,
        free_lazily_then_written,
        migrate: 300,
        migrate_while_the_device_writes: 300,
        migrated_as_a_process: 300,
        numa: 300,
        compaction: 300,
        huge_split_collapse: 300,
        ksm,
        soft_dirty,
        reading_dirties_no_file,
        writeback_enospc,
        hugetlb_punch,
        truncated,
        uffd_all_modes,
        memcg_oom_ends: 300,
        mrelease: 300,
        va_churn_is_collected: 300,
    ],
);

/// Bytes of a small test.
const SIZE: usize = 32 * PAGE;

/// Jobs that add 1 to each word of `place`, which holds zeros, while a thread calls `disturb` with
/// the number of the call: in the end each word has the number of jobs.
fn additions(
    svm: &Svm,
    place: &Place,
    rounds: u64,
    mut disturb: impl FnMut(u64) -> TestResult + Send,
) -> TestResult {
    let (stop, count) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut jobs = 0;
    std::thread::scope(|scope| {
        let disturber = scope.spawn(|| -> TestResult {
            while !stop.load(Ordering::SeqCst) {
                disturb(count.fetch_add(1, Ordering::SeqCst))?;
            }
            Ok(())
        });
        let adding = Svm::adding(place);
        let mut work = || -> TestResult {
            while jobs < rounds || count.load(Ordering::SeqCst) < ROUNDS {
                if disturber.is_finished() {
                    break;
                }
                svm.run("adding", &adding)?;
                jobs += 1;
            }
            Ok(())
        };
        let worked = work();
        stop.store(true, Ordering::SeqCst);
        let disturbed = disturber.join().expect("no panic");
        worked.and(disturbed)
    })?;
    for offset in (0..place.len()).step_by(4) {
        check_eq!(
            u64::from(place.read_u32(offset)),
            jobs,
            "additions to the word at {offset:#x}"
        );
    }
    raced("disturbances", count.into_inner())
}
