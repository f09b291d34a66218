// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! A device that misbehaves on the mirror queue. Whoever invalidates memory waits for it a limited
//! time; then it is lost, and memory that it has seen is not used again before it was reset.

use std::fs;
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use virtgpu_client::protocol::uapi;
use virtgpu_client::{compute, Bytes, Device, Errno, Memory, RegisterOptions};

use super::support::{family as well_behaved, open, End, Mirror, READ_ONLY, SPARSE, WHOLE};
use crate::hostile::{given_back, unbinds, Steps, LIMIT};
use crate::ktap::{reap, Case, Family, Outcome, TestResult};
use crate::support::debugfs::Knobs;
use crate::support::errno::describe;
use crate::support::memory::small_pages;
use crate::support::place::{Place, READ, RW};
use crate::support::{child, eventually, gpu, procfs, Env, PAGE};
use crate::{cases, check, check_eq, check_err};

const fn family(name: &'static str, device: &'static str, cases: &'static [Case]) -> Family {
    Family {
        device,
        // The device cannot be asked.
        leak_check: false,
        ..well_behaved(name, cases)
    }
}

/// The driver may do what it likes, as long as nothing hangs.
const ANY: &[Case] = cases![
    bounded: 400,
    side_by_side: 400,
    exit_in_the_middle: 400,
    given_back: 200,
    unbinds: 300,
];
/// The driver has to mark such a device lost.
const LOST: &[Case] = cases![
    bounded: 400,
    is_lost: 400,
    each_event_returns: 600,
    memory_is_not_used_again: 400,
    kept_until_the_reset: 400,
    nothing_is_said_to_be_pinned: 400,
    no_space_is_counted_any_more: 400,
    side_by_side: 400,
    exit_in_the_middle: 400,
    given_back: 200,
    unbinds: 300,
];
/// The same, where there is no device any more for a driver that is loaded anew.
const GONE: &[Case] = cases![gone_in_the_middle: 400, given_back: 200, unbinds: 300];
/// The driver has to live with it.
const WORKS: &[Case] = cases![
    still_works: 400,
    bounded: 400,
    side_by_side: 400,
    exit_in_the_middle: 400,
    given_back: 200,
    unbinds: 300,
];

/// The device drops spaces as soon as it has mapped something.
const SPACE_LOST: &[Case] = cases![revoked_is_not_prefetched: 200];

/// By the command that is mistreated.
pub(crate) const FAMILIES: &[Family] = &[
    family(
        "mirrored_hostile_silent_invalidate",
        "--adversary silence --adversary-on INVALIDATE --adversary-from 2",
        LOST,
    ),
    family(
        "mirrored_hostile_silent_map",
        "--adversary silence --adversary-on MAP --adversary-from 2",
        ANY,
    ),
    family(
        "mirrored_hostile_silent_create",
        "--adversary silence --adversary-on SPACE_CREATE --adversary-from 2",
        ANY,
    ),
    family(
        "mirrored_hostile_silent_destroy",
        "--adversary silence --adversary-on SPACE_DESTROY --adversary-from 2",
        ANY,
    ),
    family(
        "mirrored_hostile_short_map",
        "--adversary short:2 --adversary-on MAP --adversary-every 3",
        ANY,
    ),
    family(
        "mirrored_hostile_empty_map",
        "--adversary short:0 --adversary-on MAP --adversary-every 3",
        ANY,
    ),
    family(
        "mirrored_hostile_oversized_map",
        "--adversary oversized --adversary-on MAP --adversary-every 3",
        ANY,
    ),
    family(
        "mirrored_hostile_garbage_map",
        "--adversary garbage --adversary-on MAP --adversary-every 3",
        ANY,
    ),
    family(
        "mirrored_hostile_garbage_create",
        "--adversary garbage --adversary-on SPACE_CREATE --adversary-every 3",
        ANY,
    ),
    family(
        "mirrored_hostile_oversized_invalidate",
        "--adversary oversized --adversary-on INVALIDATE --adversary-every 3",
        ANY,
    ),
    family(
        "mirrored_hostile_duplicate_invalidate",
        "--adversary duplicate --adversary-on INVALIDATE --adversary-from 2",
        ANY,
    ),
    family(
        "mirrored_hostile_duplicate_map",
        "--adversary duplicate --adversary-on MAP --adversary-from 2",
        ANY,
    ),
    family(
        "mirrored_hostile_unknown_head",
        "--adversary unknown-head --adversary-on INVALIDATE --adversary-from 2",
        LOST,
    ),
    family(
        "mirrored_hostile_space_lost",
        "--adversary space-lost --adversary-on MAP",
        SPACE_LOST,
    ),
    family(
        "mirrored_hostile_delayed_invalidate",
        "--adversary delay:200 --adversary-on INVALIDATE",
        WORKS,
    ),
    family(
        "mirrored_hostile_delayed_map",
        "--adversary delay:200 --adversary-on MAP --adversary-every 2",
        WORKS,
    ),
    family(
        "mirrored_hostile_refused_map",
        "--adversary refuse --adversary-on MAP --adversary-every 2",
        ANY,
    ),
    family(
        "mirrored_hostile_refused_create",
        "--adversary refuse --adversary-on SPACE_CREATE --adversary-every 2",
        ANY,
    ),
    family(
        "mirrored_hostile_exit_at_invalidate",
        "--adversary exit --adversary-on INVALIDATE --adversary-from 2",
        GONE,
    ),
];

const SIZE: usize = 16 * PAGE;

/// A driver that does not wait long.
fn impatient(env: &Env) -> TestResult {
    gpu::reload(env, c"ack_timeout_ms=2000 job_grace_ms=500")
}

/// What only fails if it hangs or the test itself is wrong.
fn plain<T>(result: TestResult<T>) -> Result<T, Errno> {
    result.map_err(|_| Errno::IO)
}

/// One of everything on one file.
fn session(env: &Env, steps: &mut Steps) -> TestResult {
    let device = env.open()?;
    steps.take("CONTEXT_INIT", || device.context_init_compute(2));
    let place = Place::base(SIZE)?;
    for options in [WHOLE, SPARSE, READ_ONLY.events(1)] {
        place.map(0, SIZE)?;
        let mirror = steps.take("REGISTER", || {
            Mirror::with(&device, &place, options).map_err(|outcome| match outcome {
                Outcome::Fail(reason) if reason.contains("EAGAIN") => Errno::AGAIN,
                _ => Errno::IO,
            })
        });
        let Some(mirror) = mirror else { continue };
        place.write_u64(0, 3);
        steps.take("PREFETCH", || mirror.userptr.prefetch(0, 4 * PAGE as u64));
        if let Some(fence) = steps.take("EXECBUFFER", || mirror.submit(&first_page(&mirror))) {
            let result = fence.wait(Some(LIMIT));
            check!(result != Err(Errno::TIMEDOUT), "a fence has not signalled");
            if result.is_ok() {
                check_eq!(mirror.result(), crc(3), "what a job has read");
            }
        }
        steps.take("mprotect", || plain(place.protect(0, SIZE, READ)));
        steps.take("mprotect back", || plain(place.protect(0, SIZE, RW)));
        steps.take("EXECBUFFER after mprotect", || {
            mirror.submit(&first_page(&mirror)).map(drop)
        });
        steps.take("fork", || plain(child::run(|| Ok(()))));
        steps.take("munmap", || plain(place.unmap(0, SIZE)));
        steps.take("BO_QUERY", || mirror.userptr.query());
        steps.take("GEM_CLOSE", || mirror.userptr.close());
    }
    steps.take("close", || {
        drop(device);
        Ok(())
    });
    Ok(())
}

/// A job that reads the first page, which also a sparse registration has.
fn first_page(mirror: &Mirror<'_>) -> compute::Stream {
    mirror.reading_part(0, PAGE)
}

/// CRC32C of a page that starts with `word` and is empty else.
fn crc(word: u64) -> u32 {
    let mut page = [0; PAGE];
    page[..8].copy_from_slice(&word.to_le_bytes());
    compute::crc32c(0, &page)
}

fn bounded(env: &Env) -> TestResult {
    impatient(env)?;
    for _ in 0..3 {
        let mut steps = Steps::default();
        let result = session(env, &mut steps);
        steps.say();
        result?;
        steps.validate()?;
    }
    Ok(())
}

fn side_by_side(env: &Env) -> TestResult {
    impatient(env)?;
    // Threads and fork do not go together here: processes.
    let children = (0..4)
        .map(|_| {
            child::spawn(|| {
                for _ in 0..2 {
                    let mut steps = Steps::default();
                    session(env, &mut steps)?;
                    steps.validate()?;
                }
                Ok(())
            })
        })
        .collect::<TestResult<Vec<_>>>()?;
    let mut result = Ok(());
    for child in children {
        result = result.and(child.join());
    }
    result
}

/// Maps memory in the device; the device may be lost on the way.
fn use_memory(env: &Env, place: &Place) -> TestResult<Device> {
    let device = open(env)?;
    let userptr = device.register(place, WHOLE)?;
    let mut stream = compute::Stream::new();
    stream.fill(userptr.at(0), place.len() as u64, 5);
    let _ = virtgpu_client::Exec::new(stream.as_bytes())
        .buffers(&[userptr.handle()])
        .submit_with_fence(&device)?
        .wait(Some(LIMIT));
    // Closed with the file.
    std::mem::forget(userptr);
    Ok(device)
}

/// Pages that were mapped before the space was lost are not called usable.
fn revoked_is_not_prefetched(env: &Env) -> TestResult {
    let device = open(env)?;
    let place = Place::base(SIZE)?;
    let userptr = device.register(&place, SPARSE)?;
    userptr.prefetch(0, PAGE as u64)?;
    let revoked = || userptr.query().map(|query| query.state) == Ok(uapi::bo_state::REVOKED);
    check!(
        eventually(LIMIT, revoked),
        "the registration is not revoked"
    );
    for at in [0, PAGE] {
        let result = userptr.prefetch(at as u64, PAGE as u64);
        check_err!(result, Errno::IO, "prefetching byte {at:#x}, revoked");
    }
    Ok(())
}

/// Processes end whose memory the device has, and has not given back.
fn exit_in_the_middle(env: &Env) -> TestResult {
    impatient(env)?;
    for round in 0..4 {
        let child = child::spawn(|| {
            let place = Box::leak(Box::new(Place::base(SIZE)?));
            // Where the device is lost already there is nothing to map.
            let device = use_memory(env, place);
            std::mem::forget(device);
            if round % 2 == 0 {
                // SAFETY: A signal to ourselves.
                unsafe { libc::raise(libc::SIGKILL) };
            }
            // SAFETY: Ends the child with everything open and mapped.
            unsafe { libc::_exit(0) }
        })?;
        let start = Instant::now();
        reap(child.pid)?;
        check!(
            start.elapsed() < LIMIT,
            "a process ended after {:?}",
            start.elapsed()
        );
    }
    Ok(())
}

/// Invalidates memory until the device has been mistreating the command for sure.
fn provoke(env: &Env) -> TestResult {
    for _ in 0..6 {
        let place = Place::base(SIZE)?;
        let Ok(device) = use_memory(env, &place) else {
            return Ok(());
        };
        let start = Instant::now();
        place.unmap(0, SIZE)?;
        check!(start.elapsed() < LIMIT, "munmap took {:?}", start.elapsed());
        drop(device);
    }
    Ok(())
}

/// Refused at once, and for good.
fn is_lost(env: &Env) -> TestResult {
    impatient(env)?;
    provoke(env)?;
    let device = env.open()?;
    let memory = small_pages(PAGE)?;
    let start = Instant::now();
    for (what, result) in [
        ("REGISTER", device.register(&memory, WHOLE).map(drop)),
        (
            "CREATE_BLOB",
            device
                .create_blob(&virtgpu_client::BlobOptions::guest(4096))
                .map(drop),
        ),
    ] {
        check!(
            matches!(result, Err(Errno::NODEV | Errno::IO)),
            "{what} on a lost device: {}",
            describe(&result)
        );
    }
    check!(
        start.elapsed() < Duration::from_secs(10),
        "the refusals took {:?}",
        start.elapsed()
    );
    Ok(())
}

/// Whatever invalidates memory returns, and leaves the memory as it should be.
fn each_event_returns(env: &Env) -> TestResult {
    type Event = fn(&Place) -> TestResult;
    let events: [(&str, Event); 5] = [
        ("munmap", |place| {
            place.unmap(0, SIZE)?;
            place.map(0, SIZE)?;
            check_eq!(place.read_u64(PAGE), 0, "new memory");
            Ok(())
        }),
        ("MADV_DONTNEED", |place| {
            place.advise(0, SIZE, libc::MADV_DONTNEED)?;
            check_eq!(place.read_u64(PAGE), 0, "new memory");
            Ok(())
        }),
        ("mprotect", |place| {
            place.protect(0, SIZE, READ)?;
            check_eq!(place.read_u64(PAGE), 5, "the memory");
            Ok(())
        }),
        ("fork", |place| {
            child::run(|| {
                check_eq!(place.read_u64(PAGE), 5, "the child's memory");
                Ok(())
            })?;
            place.write_u64(PAGE, 6);
            Ok(())
        }),
        ("mremap", |place| {
            let other = Place::reserve(place.pages(), SIZE)?;
            place.move_to(0, SIZE, &other, 0, 0)?;
            check_eq!(other.read_u64(PAGE), 5, "the moved memory");
            Ok(())
        }),
    ];
    for (what, event) in events {
        impatient(env)?;
        // The first few are treated well.
        for _ in 0..4 {
            let place = Place::base(SIZE)?;
            let Ok(device) = use_memory(env, &place) else {
                break;
            };
            place.fill(0);
            place.write_u64(PAGE, 5);
            let start = Instant::now();
            event(&place)?;
            check!(start.elapsed() < LIMIT, "{what} took {:?}", start.elapsed());
            drop(device);
        }
    }
    Ok(())
}

/// Much memory is allocated while the device is being lost: none of it changes by itself.
fn memory_is_not_used_again(env: &Env) -> TestResult {
    const LENGTH: usize = 64 << 20;
    impatient(env)?;
    provoke(env)?;
    let memory = small_pages(LENGTH)?;
    for offset in (0..LENGTH).step_by(8) {
        memory.write_u64(offset, offset as u64 ^ 0xa5a5);
    }
    // The driver leaves the device, which resets it.
    impatient(env)?;
    for offset in (0..LENGTH).step_by(8) {
        check_eq!(
            memory.read_u64(offset),
            offset as u64 ^ 0xa5a5,
            "memory at {offset:#x}"
        );
    }
    Ok(())
}

/// Pages that the device might still write are kept, and let go when it has been reset.
fn kept_until_the_reset(env: &Env) -> TestResult {
    // A reset that is faster than who waits for the device leaves nothing to keep.
    for round in 0..10 {
        impatient(env)?;
        provoke(env)?;
        let counters = Knobs::open(env)?.counters()?;
        let kept = counters.get("quarantined_pages_ever")?;
        if kept == 0 {
            continue;
        }
        println!("    # {kept} pages kept, in round {round}");
        let let_go = eventually(LIMIT, || {
            let counters = Knobs::open(env).and_then(|knobs| knobs.counters());
            counters.is_ok_and(|counters| counters.get("quarantined_pages_now") == Ok(0))
        });
        check!(let_go, "pages are kept after the reset");
        return Ok(());
    }
    Err(Outcome::Fail("no page was ever kept".into()))
}

/// What fdinfo says of pinned memory after the reset has given it back.
fn nothing_is_said_to_be_pinned(env: &Env) -> TestResult {
    impatient(env)?;
    let device = env.compute()?;
    let memory = small_pages(SIZE)?;
    let _userptr = device.register(&memory, RegisterOptions::pinned())?;
    let resident = || -> TestResult<String> {
        let path = format!("/proc/self/fdinfo/{}", device.as_fd().as_raw_fd());
        let text = fs::read_to_string(path)?;
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("drm-resident-userptr-pinned:"));
        Ok(line.unwrap_or_default().trim().to_string())
    };
    check_eq!(resident()?, "64 KiB", "pinned on a device that works");
    provoke(env)?;
    check!(
        eventually(LIMIT, || resident().is_ok_and(|bytes| bytes == "0")),
        "{:?} are still said to be pinned for a device that was reset",
        resident()
    );
    check_eq!(procfs::vm_pin()?, 0, "VmPin");
    Ok(())
}

/// A device that was reset has no spaces, whoever has registrations still.
fn no_space_is_counted_any_more(env: &Env) -> TestResult {
    impatient(env)?;
    let device = open(env)?;
    let place = Place::base(SIZE)?;
    let mirrors = [WHOLE, SPARSE, READ_ONLY].map(|options| device.register(&place, options));
    let pinned = device.register(&place, RegisterOptions::pinned().read_only())?;
    let spaces = || -> TestResult<u64> { Knobs::open(env)?.counters()?.get("spaces_now") };
    check_eq!(spaces()?, 4, "spaces of a device that works");
    provoke(env)?;
    check!(
        eventually(LIMIT, || spaces().is_ok_and(|spaces| spaces == 0)),
        "{:?} spaces are counted for a device that was reset",
        spaces()
    );
    drop((mirrors, pinned));
    check_eq!(spaces()?, 0, "spaces after the last registration");
    Ok(())
}

/// The device's process ends instead of acknowledging.
fn gone_in_the_middle(env: &Env) -> TestResult {
    let place = Place::base(SIZE)?;
    let device = open(env)?;
    let mirror = Mirror::new(&device, &place)?;
    for round in 0..6 {
        let start = Instant::now();
        let used = mirror.submit(&mirror.reading()).is_ok();
        place.unmap(0, SIZE)?;
        check!(
            start.elapsed() < LIMIT,
            "munmap took {:?} in round {round}",
            start.elapsed()
        );
        place.map(0, SIZE)?;
        if !used {
            break;
        }
    }
    let lost = eventually(LIMIT, || {
        matches!(
            mirror.submit(&mirror.reading()),
            Err(Errno::NODEV | Errno::IO)
        )
    });
    check!(lost, "a device without process still takes jobs");
    check_eq!(place.read_u64(0), 0, "the memory");
    Ok(())
}

/// Slow or not: right.
fn still_works(env: &Env) -> TestResult {
    let device = open(env)?;
    let place = Place::base(SIZE)?;
    let mirror = Mirror::new(&device, &place)?;
    for round in 0..5 {
        mirror.scatter(round);
        mirror.agrees("a device that takes its time")?;
        mirror.loses("munmap", SIZE, || place.unmap(0, SIZE))?;
        place.map(0, SIZE)?;
        check_eq!(mirror.peek(PAGE)?, 0, "new memory");
        mirror.coherent_all_over("new memory")?;
    }
    check_eq!(mirror.end(&mirror.idle())?, End::Done, "a job");
    Ok(())
}
