// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Rounds, one after the other, until the time is over or something is wrong.

use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use virtgpu_client::protocol::uapi;

use crate::ktap::{self, Case, Driver, Family, Kernel, Outcome, TestResult};
use crate::options::Options;
use crate::support::{leak, Env};
use crate::worker::{self, Plan};
use crate::{check, counts, health, skip, trace};

/// How much longer than its time a round may take: the slowest calls are waits for a device that
/// does not respond, and closing all files comes last.
const MARGIN: Duration = Duration::from_secs(240);

/// Longest round; the checks after it are worth more than a longer one.
const LONGEST: Duration = Duration::from_secs(20);

/// What a process that is forked for a round has to do.
static PLAN: Mutex<Option<Plan>> = Mutex::new(None);

fn round(_: &Env) -> TestResult {
    let plan = PLAN.lock().expect("one thread").expect("set before");
    worker::run(&plan)
}

const fn case(name: &'static str, run: fn(&Env) -> TestResult, limit: Duration) -> Case {
    Case { name, run, limit }
}

/// For the checks around a round.
const fn family(hostile: bool) -> Family {
    Family {
        name: "fuzz",
        kernel: Kernel::Any,
        driver: Driver::Ours,
        device: "",
        leak_check: !hostile,
        cases: &[],
    }
}

/// A seed that no one asked for.
fn any_seed() -> u64 {
    let time = SystemTime::now().duration_since(UNIX_EPOCH);
    time.map_or(1, |time| time.as_nanos() as u64 % 1_000_000_000)
}

/// Does all, and reports. Returns whether nothing was wrong.
pub(crate) fn run(env: &Env, options: &Options) -> bool {
    let seed = options.seed.unwrap_or_else(any_seed);
    println!("KTAP version 1");
    println!("1..1");
    println!("    KTAP version 1");
    println!("    # Subtest: fuzz");
    println!("    1..2");
    println!(
        "    # seed {seed}, {} s, {} threads, {} actions each{}",
        options.seconds,
        options.threads,
        options.steps,
        if options.hostile {
            ", hostile device"
        } else {
            ""
        }
    );
    let rounds = report(1, "rounds", rounds(env, options, seed));
    let reached = report(2, "every_ioctl_succeeds", reached(env, options));
    let all = rounds && reached;
    println!("{} 1 fuzz", if all { "ok" } else { "not ok" });
    all
}

fn report(number: u64, name: &str, outcome: TestResult) -> bool {
    let (status, remark) = match outcome {
        Ok(()) => ("ok", String::new()),
        Err(Outcome::Skip(reason)) => ("ok", format!(" # SKIP {reason}")),
        Err(Outcome::Fail(reason)) => {
            println!("    # {}", reason.replace('\n', "\n    # "));
            ("not ok", String::new())
        }
    };
    println!("    {status} {number} {name}{remark}");
    status == "ok"
}

fn rounds(env: &Env, options: &Options, seed: u64) -> TestResult {
    let failed = |error| Outcome::Fail(format!("no shared memory: errno {error}"));
    trace::start(options.trace).map_err(failed)?;
    counts::start().map_err(failed)?;
    let family = family(options.hostile);
    let mut left = Duration::from_secs(options.seconds);
    let mut number = 0;
    while !left.is_zero() {
        let start = Instant::now();
        let plan = Plan {
            seed: seed.wrapping_add(number),
            threads: options.threads,
            steps: options.steps,
            hostile: options.hostile,
            until: start + left.min(LONGEST),
        };
        one(env, &family, plan)?;
        let took = start.elapsed();
        left = left.saturating_sub(took.max(Duration::from_millis(100)));
        after(env, &family, options.hostile).map_err(|outcome| with_seed(outcome, plan.seed))?;
        println!(
            "    # round {number}: seed {}, {:.1} s, {} calls so far",
            plan.seed,
            took.as_secs_f32(),
            counts::all()
        );
        number += 1;
    }
    Ok(())
}

/// A round, with all that its process leaves behind.
fn one(env: &Env, family: &Family, plan: Plan) -> TestResult {
    trace::clear();
    *PLAN.lock().expect("one thread") = Some(plan);
    let limit = LONGEST + MARGIN;
    let outcome = ktap::run_case(family, &case("round", round, limit), env)
        .map_err(|outcome| with_seed(outcome, plan.seed));
    if let Err(Outcome::Fail(reason)) = outcome {
        let last = trace::last();
        return Err(Outcome::Fail(format!("{reason}\nlast actions:\n{last}")));
    }
    outcome
}

fn after(env: &Env, family: &Family, hostile: bool) -> TestResult {
    if hostile {
        return ktap::run_case(family, &case("recovers", health::recovers, MARGIN), env);
    }
    leak::check(env)?;
    ktap::run_case(family, &case("works", health::works, MARGIN), env)
}

fn with_seed(outcome: Outcome, seed: u64) -> Outcome {
    match outcome {
        Outcome::Fail(reason) if reason.starts_with("seed ") => Outcome::Fail(reason),
        Outcome::Fail(reason) => Outcome::Fail(format!("seed {seed}: {reason}")),
        skip => skip,
    }
}

/// Enough calls that each ioctl should have been called with arguments that are right.
const ENOUGH: u64 = 2000;

/// A fuzzer that never gets past the first check would find nothing.
fn reached(env: &Env, options: &Options) -> TestResult {
    let mut never = Vec::new();
    let modes = env.open().and_then(|device| Ok(device.userptr_modes()?));
    let svm = modes.is_ok_and(|modes| modes & uapi::USERPTR_MODE_SVM != 0);
    for (nr, name) in counts::KNOWN {
        println!("    # {name}: {}", counts::describe(*nr));
        // Not where the device reports no faults.
        let offered = svm || *nr < uapi::nr::SVM_ENABLE;
        if offered && counts::succeeded(*nr) == 0 {
            never.push(*name);
        }
    }
    if options.hostile {
        skip!("a device that misbehaves decides that");
    }
    if counts::all() < ENOUGH {
        skip!("{} calls are too few to expect it", counts::all());
    }
    check!(never.is_empty(), "never succeeded: {}", never.join(" "));
    Ok(())
}
