// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Rights that change: the device never has more than the process, and gets back what it gets back.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use virtgpu_client::{compute, Bytes, Errno, Memory};

use super::support::{
    across_tables, family, next_event, on_each_kind, open, End, Mirror, READ_ONLY, SPARSE, WHOLE,
};
use crate::ktap::{Family, Outcome, TestResult};
use crate::support::place::{Place, NONE, READ, RW};
use crate::support::{eventually, job, soft_dirty, Env, HUGE, PAGE};
use crate::{cases, check, check_eq, check_err, skip};

pub(crate) const FAMILY: Family = family(
    "mm_protect",
    cases![
        read_only,
        no_access,
        one_page_read_only,
        one_page_no_access,
        sparse,
        more_rights,
        read_only_registration,
        while_the_device_writes: 300,
        protection_key,
        soft_dirty,
    ],
);

fn read_only(env: &Env) -> TestResult {
    across_tables(env, |device, place| {
        let mirror = Mirror::new(device, place)?;
        let data = mirror.scatter(1);
        mirror.agrees("before")?;
        mirror.loses("mprotect", place.len(), || {
            place.protect(0, place.len(), READ)
        })?;
        mirror.refused("read-only memory", Errno::PERM)?;
        check_eq!(place.to_vec(0, data.len()), data, "the memory");
        let reader = Mirror::with(device, place, READ_ONLY)?;
        reader.agrees("a read-only registration")?;
        place.protect(0, place.len(), RW)?;
        mirror.agrees("writable again")?;
        mirror.coherent_all_over("writable again")?;
        reader.agrees("the read-only registration, in the end")
    })
}

fn no_access(env: &Env) -> TestResult {
    across_tables(env, |device, place| {
        let mirror = Mirror::new(device, place)?;
        let reader = Mirror::with(device, place, READ_ONLY)?;
        let data = mirror.scatter(2);
        reader.loses("mprotect, the reader", place.len(), || {
            mirror.loses("mprotect", place.len(), || {
                place.protect(0, place.len(), NONE)
            })
        })?;
        mirror.refused("no access", Errno::FAULT)?;
        reader.refused("no access, the reader", Errno::FAULT)?;
        place.protect(0, place.len(), READ)?;
        check_eq!(place.to_vec(0, data.len()), data, "the memory");
        reader.agrees("readable again")?;
        place.protect(0, place.len(), RW)?;
        mirror.agrees("writable again")?;
        mirror.coherent_all_over("writable again")
    })
}

/// Rights of a part count for all of a registration. (Splitting a mapping, the kernel takes the
/// whole huge page around it away, so that how much the device loses is not for us to say.)
fn one_page(env: &Env, prot: i32, error: Errno) -> TestResult {
    let device = open(env)?;
    let place = Place::base(HUGE)?;
    let mirror = Mirror::new(&device, &place)?;
    mirror.scatter(3);
    for page in [0, 200, HUGE / PAGE - 1] {
        let offset = page * PAGE;
        mirror.loses("mprotect of a page", PAGE, || {
            place.protect(offset, PAGE, prot)
        })?;
        mirror.refused("a page without the right", error)?;
        place.protect(offset, PAGE, RW)?;
        mirror.agrees("with the right again")?;
        mirror.coherent("with the right again", offset)?;
    }
    Ok(())
}

fn one_page_read_only(env: &Env) -> TestResult {
    one_page(env, READ, Errno::PERM)
}

fn one_page_no_access(env: &Env) -> TestResult {
    one_page(env, NONE, Errno::FAULT)
}

/// What was prefetched and has lost a right comes back with the next job that may have it.
fn sparse(env: &Env) -> TestResult {
    on_each_kind(env, 2 * HUGE, |device, place| {
        let mirror = Mirror::with(device, place, SPARSE)?;
        mirror.scatter(4);
        mirror.prefetch(0, HUGE)?;
        mirror.agrees_at("prefetched", 0, HUGE)?;
        // Not a part that jobs use.
        place.protect(HUGE, HUGE, READ)?;
        mirror.agrees_at("the part that was prefetched", 0, HUGE)?;
        check_err!(
            mirror.userptr.prefetch(HUGE as u64, HUGE as u64),
            Errno::PERM,
            "prefetching what may not be written"
        );
        // A part that they use.
        mirror.loses("mprotect", HUGE, || place.protect(0, HUGE, READ))?;
        check_eq!(
            mirror.end(&mirror.idle())?,
            End::Refused(Errno::PERM),
            "a job on what may not be written"
        );
        place.protect(0, HUGE, RW)?;
        mirror.agrees_at("writable again", 0, HUGE)?;
        mirror.coherent("writable again", HUGE - PAGE)
    })
}

/// Gaining a right never leaves an old translation behind.
fn more_rights(env: &Env) -> TestResult {
    on_each_kind(env, HUGE, |device, place| {
        let reader = Mirror::with(device, place, READ_ONLY)?;
        place.fill(1);
        place.protect(0, HUGE, READ)?;
        reader.agrees("read-only memory")?;
        place.protect(0, HUGE, RW)?;
        let writer = Mirror::new(device, place)?;
        writer.fill(2)?;
        check_eq!(reader.peek(PAGE)?, 2, "the reader's view of the writer's");
        place.write_u64(PAGE, 3);
        check_eq!(reader.peek(PAGE)?, 3, "the reader's view of ours");
        Ok(())
    })
}

/// Where the registration is read-only, losing the right to write is no loss.
fn read_only_registration(env: &Env) -> TestResult {
    on_each_kind(env, HUGE, |device, place| {
        let mirror = Mirror::with(device, place, READ_ONLY)?;
        for round in 0..3 {
            mirror.scatter(round);
            mirror.agrees("writable")?;
            place.protect(0, HUGE, READ)?;
            mirror.agrees("not writable")?;
            place.protect(0, HUGE, RW)?;
        }
        mirror.fails("a write", &mirror.writing(0, 1))
    })
}

/// Each job that was queued adds exactly once.
fn while_the_device_writes(env: &Env) -> TestResult {
    let device = open(env)?;
    let place = Place::base(32 * PAGE)?;
    place.fill(0);
    let mirror = Mirror::new(&device, &place)?;
    let mut adding = compute::Stream::new();
    adding.add_u32(mirror.userptr.at(0), 32 * PAGE as u64, 1);
    let (stop, jobs) = (AtomicBool::new(false), AtomicU32::new(0));
    let rounds = env.iterations(80);
    let done = std::thread::scope(|scope| {
        let writer = scope.spawn(|| -> TestResult<u32> {
            let (mut done, mut refused) = (0, 0);
            while !stop.load(Ordering::Relaxed) {
                match mirror.end(&adding)? {
                    End::Done => {
                        done += 1;
                        jobs.store(done, Ordering::Relaxed);
                    }
                    End::Refused(Errno::PERM | Errno::FAULT | Errno::BUSY) => refused += 1,
                    other => return Err(Outcome::Fail(format!("a job: {other:?}"))),
                }
            }
            println!("    # {done} jobs done, {refused} refused");
            Ok(done)
        });
        let change = || -> TestResult {
            for round in 0..rounds {
                let prot = if round % 3 == 0 { NONE } else { READ };
                place.protect((round % 24) as usize * PAGE, 8 * PAGE, prot)?;
                place.protect(0, 32 * PAGE, RW)?;
                // The next change comes while jobs run again.
                let done = jobs.load(Ordering::Relaxed);
                let more = || jobs.load(Ordering::Relaxed) > done || writer.is_finished();
                check!(eventually(job::LIMIT, more), "no job gets through");
                if writer.is_finished() {
                    break;
                }
            }
            Ok(())
        };
        let changed = change();
        stop.store(true, Ordering::Relaxed);
        let done = writer.join().expect("no panic")?;
        changed.map(|()| done)
    })?;
    for page in 0..32 {
        check_eq!(
            place.read_u32(page * PAGE),
            done,
            "additions to page {page}"
        );
    }
    mirror.coherent_all_over("in the end")
}

/// A change of the key is a change of rights; the device's accesses are not a thread's.
fn protection_key(env: &Env) -> TestResult {
    const DISABLE_ACCESS: u64 = 1;
    let device = open(env)?;
    let place = Place::base(16 * PAGE)?;
    let mirror = Mirror::new(&device, &place)?;
    let data = mirror.scatter(5);
    mirror.agrees("before")?;
    // SAFETY: Takes two integers.
    let key = unsafe { libc::syscall(libc::SYS_pkey_alloc, 0, DISABLE_ACCESS) };
    if key < 0 {
        skip!("pkey_alloc: {}", std::io::Error::last_os_error());
    }
    let set = |key: i64| -> TestResult {
        // SAFETY: Our own range, which is not accessed while its key denies it.
        let result = unsafe {
            libc::syscall(
                libc::SYS_pkey_mprotect,
                place.address(0),
                16 * PAGE,
                RW,
                key,
            )
        };
        check_eq!(result, 0, "pkey_mprotect");
        Ok(())
    };
    mirror.loses("pkey_mprotect", 16 * PAGE, || set(key))?;
    check_eq!(
        mirror.csum(0, 16 * PAGE)?,
        compute::crc32c(0, &data),
        "the device's view"
    );
    mirror.poke(PAGE, 6)?;
    mirror.loses("pkey_mprotect back", 16 * PAGE, || set(0))?;
    check_eq!(place.read_u64(PAGE), 6, "our view");
    mirror.coherent_all_over("in the end")
}

/// What the device writes is dirty to those who track dirty pages, for example CRIU.
fn soft_dirty(env: &Env) -> TestResult {
    let device = open(env)?;
    let place = Place::base(16 * PAGE)?;
    place.fill(1);
    soft_dirty::is_tracked(&place)?;
    let mirror = Mirror::with(&device, &place, SPARSE.events(1))?;
    mirror.prefetch(0, 8 * PAGE)?;
    mirror.poke(3 * PAGE, 3)?;
    mirror.loses("clear_refs", 8 * PAGE, soft_dirty::clear)?;
    soft_dirty::is_clean(&place)?;
    mirror.poke(3 * PAGE, 4)?;
    check!(
        soft_dirty::is_dirty(&place, 3)?,
        "the page that the device has written is clean"
    );
    check!(
        !soft_dirty::is_dirty(&place, 12)?,
        "a page that no one has written is dirty"
    );
    check_eq!(place.read_u64(3 * PAGE), 4, "our view");
    // None of it was an unmap.
    let other = Place::base(PAGE)?;
    let marker = Mirror::with(&device, &other, WHOLE.events(2))?;
    marker.fill(1)?;
    other.unmap(0, PAGE)?;
    let events = next_event(&device)?;
    check!(
        events.iter().all(|event| event.cookie == 2),
        "events: {events:?}"
    );
    Ok(())
}
