// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! A device whose atomic accesses are not coherent, and pages that are its own.

use super::*;

pub(super) fn alone() -> Options {
    Options {
        exclusive_atomics: true,
        ..options()
    }
}

pub(super) fn count(times: u64) -> Op {
    addressed(op::ATOMIC_ADD_U64, VA, [0; 2], 8 * times, [1, 0])
}

/// What can be written is not enough.
#[test]
fn asks_for_a_page_of_its_own() {
    let mut driver = Driver::with(alone());
    driver.map(VA, FREE, 1, 3);
    driver.submit(0, &[count(3)]);
    let fault = driver.expect_fault(VA, access::ATOMIC);
    driver.map(VA, FREE, 1, access::EXCLUSIVE);
    driver.resolve(fault, resolution::OK);
    assert_eq!(driver.result().0, job_result::OK);
    assert_eq!(driver.word(FREE), 3);
    assert_eq!(driver.stat().exclusive_maps.get(), 1);
    // It can be used for anything else, too.
    driver.submit(0, &[fill(0, VA, 8, 7), count(1)]);
    assert_eq!(driver.result().0, job_result::OK);
    assert_eq!(driver.word(FREE), 8);
    // Until it is taken.
    driver.vm.done(&invalidate(1, VA, VA + PAGE - 1));
    driver.submit(0, &[count(1)]);
    let fault = driver.expect_fault(VA, access::ATOMIC);
    driver.resolve(fault, resolution::BAD_ACCESS);
    assert_eq!(driver.result().0, job_result::FAULTED);
    assert_eq!(driver.word(FREE), 8);
    driver.vm.end(false);
}

/// A coherent device asks for no such page.
#[test]
fn coherent() {
    let mut driver = Driver::new();
    driver.submit(0, &[count(3)]);
    let fault = driver.expect_fault(VA, access::WRITE);
    driver.map(VA, FREE, 1, 3);
    driver.resolve(fault, resolution::OK);
    assert_eq!(driver.result().0, job_result::OK);
    assert_eq!(driver.stat().exclusive_maps.get(), 0);
    driver.vm.end(false);
}

/// Both count, the driver whenever it has taken the page.
#[test]
fn no_count_is_lost() {
    let mut driver = Driver::with(alone());
    driver.submit(0, &[count(20_000)]);
    let mut turns = 0;
    loop {
        let next = driver.wait(|driver| {
            let fault = driver.faults.pop_front();
            fault
                .map(Some)
                .or_else(|| driver.done.pop_front().map(|_| None))
        });
        let Some(fault) = next else { break };
        assert_eq!(fault.access.get(), access::ATOMIC);
        driver.set(FREE, driver.word(FREE) + 1);
        driver.map(VA, FREE, 1, access::EXCLUSIVE);
        driver.resolve(fault.id.get(), resolution::OK);
        turns += 1;
        driver.vm.done(&invalidate(1, 0, u64::MAX));
        driver.set(FREE, driver.word(FREE) + 1);
        turns += 1;
        if turns >= 100 {
            // Let it come to its end.
            driver.map(VA, FREE, 1, access::EXCLUSIVE);
        }
    }
    assert!(turns >= 2);
    assert_eq!(driver.word(FREE), 20_000 + turns);
    driver.vm.end(false);
}
