// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! UUIDs, by which drivers of other virtio devices find a dma-buf on the host, from a host that
//! does not give them at once. The module in `tests/exporter` is such a driver.

use std::sync::atomic::{AtomicU32, Ordering};

use virtgpu_client::protocol::uapi;
use virtgpu_client::{Device, Errno};

use crate::isolation::short_limit;
use crate::ktap::{Case, Driver, Family, Kernel, TestResult};
use crate::support::stat::Oracle;
use crate::support::{eventually, exporter, job, Env};
use crate::{cases, check, check_eq, check_err};

const fn family(name: &'static str, device: &'static str, cases: &'static [Case]) -> Family {
    Family {
        name,
        kernel: Kernel::Any,
        driver: Driver::Ours,
        device,
        leak_check: true,
        cases,
    }
}

/// The host refuses, three times.
pub(crate) const REFUSED: Family = family(
    "uuid_refused",
    "--adversary refuse --adversary-on RESOURCE_ASSIGN_UUID --adversary-count 3",
    cases![after_refusals],
);

/// Three responses of the host make no sense.
pub(crate) const INVALID: Family = family(
    "uuid_invalid",
    "--adversary garbage-type:0x12ff --adversary-on RESOURCE_ASSIGN_UUID --adversary-count 3",
    cases![after_garbage],
);

/// The host takes more time than the driver waits for it, each time.
pub(crate) const LATE: Family = family(
    "uuid_late",
    "--adversary delay:5000 --adversary-on RESOURCE_ASSIGN_UUID",
    cases![after_the_limit: 120],
);

/// The host refuses every other time.
pub(crate) const BY_TURNS: Family = family(
    "uuid_by_turns",
    "--adversary refuse --adversary-on RESOURCE_ASSIGN_UUID --adversary-every 2",
    cases![two_at_once: 120],
);

/// The host has UUIDs.
fn device(env: &Env) -> TestResult<Device> {
    let device = env.compute()?;
    check_eq!(device.getparam(uapi::param::CROSS_DEVICE)?, 1, "UUIDs");
    Ok(device)
}

/// Whoever asks after the host has failed has the host asked again.
fn asked_again(env: &Env, errno: Errno) -> TestResult {
    let exporter = exporter::load()?;
    let device = device(env)?;
    let picture = device.create_picture(4, 4)?;
    let buf = device.prime_export(picture.handle())?;
    // What the export has asked for has its response before this.
    Oracle::new(&device)?.read()?;
    for what in ["second", "third"] {
        check_err!(exporter.uuid(&buf).map(drop), errno, "the {what} time");
    }
    let uuid = exporter.uuid(&buf)?;
    check_eq!(exporter.uuid(&buf)?, uuid, "the UUID, again");
    let second = device.create_picture(4, 4)?;
    let other = device.prime_export(second.handle())?;
    check!(exporter.uuid(&other)? != uuid, "two buffers have one UUID");
    drop((buf, other, picture, second));
    drop(device);
    exporter.unload()
}

fn after_refusals(env: &Env) -> TestResult {
    asked_again(env, Errno::NOMEM)
}

fn after_garbage(env: &Env) -> TestResult {
    asked_again(env, Errno::IO)
}

/// A question without response is not asked again: that response would be late, too.
fn after_the_limit(env: &Env) -> TestResult {
    short_limit(env)?;
    let exporter = exporter::load()?;
    let device = device(env)?;
    let picture = device.create_picture(4, 4)?;
    let buf = device.prime_export(picture.handle())?;
    check_err!(exporter.uuid(&buf).map(drop), Errno::BUSY, "too early");
    let mut uuid = exporter.uuid(&buf);
    eventually(job::LIMIT, || {
        if uuid == Err(Errno::BUSY) {
            uuid = exporter.uuid(&buf);
        }
        uuid != Err(Errno::BUSY)
    });
    let uuid = uuid?;
    check_eq!(exporter.uuid(&buf)?, uuid, "the UUID, again");
    drop((buf, picture));
    drop(device);
    exporter.unload()
}

/// Two ask at the same time, after a failure, and the host responds to one of them and refuses the
/// other. Whoever comes next gets what it has responded, and does not have it asked again.
fn two_at_once(env: &Env) -> TestResult {
    /// So many times, and no longer than it takes to try this often.
    const TWICE: usize = 20;
    const ROUNDS: usize = 2000;

    let exporter = exporter::load()?;
    let device = device(env)?;
    let oracle = Oracle::new(&device)?;
    // Each look at it is a command.
    let commands = || TestResult::Ok(oracle.read()?.commands.get());
    let (mut rounds, mut twice) = (0, 0);
    while twice < TWICE && rounds < ROUNDS {
        rounds += 1;
        let picture = device.create_picture(4, 4)?;
        let buf = device.prime_export(picture.handle())?;
        let before = commands()?;
        let ready = AtomicU32::new(0);
        let ask = || {
            ready.fetch_add(1, Ordering::AcqRel);
            while ready.load(Ordering::Acquire) < 2 {
                std::hint::spin_loop();
            }
            exporter.uuid(&buf)
        };
        let responses = std::thread::scope(|scope| {
            let other = scope.spawn(ask);
            [ask(), other.join().expect("no panic")]
        });
        let after = commands()?;
        let asked = after - before - 1;
        check!(asked <= 2, "the host was asked {asked} times by two");
        twice += usize::from(asked == 2);
        for response in &responses {
            check!(
                matches!(response, Ok(_) | Err(Errno::NOMEM)),
                "round {rounds}: {response:?}"
            );
        }
        let next = exporter.uuid(&buf);
        let asked_again = commands()? - after - 1;
        for uuid in responses.iter().flatten() {
            check_eq!(next, Ok(*uuid), "round {rounds}: who comes next");
            check_eq!(
                asked_again,
                0,
                "round {rounds}: commands to the host for that"
            );
        }
    }
    println!("    # asked twice in {twice} of {rounds} rounds");
    check!(twice > 0, "there were never two at once");
    drop(oracle);
    drop(device);
    exporter.unload()
}
