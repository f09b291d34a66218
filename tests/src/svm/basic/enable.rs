// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! SVM_ENABLE, and what the ioctls say before it.

use virtgpu_client::protocol::{compute as wire, uapi};
use virtgpu_client::{Device, Errno, Exec, RegisterOptions};

use super::delay;
use crate::ktap::TestResult;
use crate::support::place::Place;
use crate::support::{raw, Env, PAGE};
use crate::svm::support::{device, open_with, RINGS, USUAL};
use crate::{check, check_eq, check_err};

/// Calls an ioctl with a structure that the client library would not pass.
fn enable(device: &Device, mut argument: uapi::SvmEnable) -> Result<(), Errno> {
    raw::call(device, uapi::nr::SVM_ENABLE, &mut argument).map(drop)
}

/// An enabling that works, to be made invalid.
fn valid() -> uapi::SvmEnable {
    uapi::SvmEnable::default()
}

pub(super) fn modes_and_errors(env: &Env) -> TestResult {
    drop(device(env)?);
    let without = env.open()?;
    let models = without.getparam(uapi::param::USERPTR_MEMORY_MODELS)?;
    check_eq!(
        (models >> 8) & 0xf,
        uapi::memory_model::DYNAMIC,
        "the memory model of shared virtual memory in {models:#x}"
    );
    check_err!(enable(&without, valid()), Errno::INVAL, "without a context");
    without.context_init_capset(wire::CAPSET_ID, 1)?;
    enable(&without, valid())?;

    let no_rings = env.open()?;
    let params = [uapi::ContextSetParam {
        param: uapi::context_param::CAPSET_ID,
        value: u64::from(wire::CAPSET_ID),
    }];
    // SAFETY: No parameter is an address.
    unsafe { no_rings.context_init(&params)? };
    check_err!(enable(&no_rings, valid()), Errno::INVAL, "without rings");

    let fresh = device(env)?;
    for (what, argument) in [
        (
            "an unknown flag",
            uapi::SvmEnable {
                flags: 4,
                ..valid()
            },
        ),
        (
            "too many workers",
            uapi::SvmEnable {
                workers: uapi::SVM_MAX_WORKERS + 1,
                ..valid()
            },
        ),
        ("padding", uapi::SvmEnable { pad: 1, ..valid() }),
    ] {
        check_err!(enable(&fresh, argument), Errno::INVAL, "{what}");
    }
    check_err!(
        raw::sized(&fresh, uapi::nr::SVM_ENABLE, &mut valid(), 24).map(drop),
        Errno::INVAL,
        "a structure that is too short"
    );
    // Not enabled yet.
    for (what, result) in [
        (
            "QUERY",
            raw::call(&fresh, uapi::nr::SVM_QUERY, &mut uapi::SvmQuery::default()),
        ),
        (
            "WAIT",
            raw::call(&fresh, uapi::nr::SVM_WAIT, &mut uapi::SvmWait::default()),
        ),
        (
            "PREFETCH",
            raw::call(
                &fresh,
                uapi::nr::SVM_PREFETCH,
                &mut uapi::SvmPrefetch {
                    addr: PAGE as u64,
                    length: PAGE as u64,
                    ..Default::default()
                },
            ),
        ),
    ] {
        check_err!(result, Errno::INVAL, "{what} before ENABLE");
    }
    // None of these has left anything behind.
    enable(&fresh, valid())?;
    check_err!(enable(&fresh, valid()), Errno::EXIST, "a second time");

    let busy = device(env)?;
    Exec::new(delay(1).as_bytes()).ring(0).run(&busy)?;
    check_err!(enable(&busy, valid()), Errno::BUSY, "after a job");

    let mirrored = device(env)?;
    let place = Place::base(PAGE)?;
    let userptr = mirrored.register(&place, RegisterOptions::mirrored())?;
    check_err!(
        enable(&mirrored, valid()),
        Errno::BUSY,
        "beside mirrored memory"
    );
    userptr.close()?;
    enable(&mirrored, valid())?;
    check_err!(
        mirrored
            .register(&place, RegisterOptions::mirrored())
            .map(drop),
        Errno::OPNOTSUPP,
        "mirrored memory afterwards"
    );

    let svm = open_with(env, USUAL.workers(uapi::SVM_MAX_WORKERS))?;
    check_eq!(
        svm.space.va_end() & (PAGE as u64 - 1),
        0,
        "the end of addresses, {:#x}",
        svm.space.va_end()
    );
    let local = 0_u8;
    check!(
        svm.space.va_end() > (&raw const local) as u64,
        "the stack is above {:#x}",
        svm.space.va_end()
    );
    check!(svm.space.max_faults() > 0, "faults at once");
    let query = svm.count()?;
    check_eq!(
        (query.state, query.reason, query.access, query.addr),
        (uapi::svm_state::ACTIVE, 0, 0, 0),
        "the state"
    );
    check_eq!(query.va_end, svm.space.va_end(), "va_end");
    check_err!(
        Exec::new(delay(1).as_bytes()).submit(svm.device()),
        Errno::INVAL,
        "a job without a ring"
    );
    check_err!(
        svm.submit(RINGS, &delay(1)),
        Errno::INVAL,
        "a job on a ring that there is not"
    );
    svm.run("a job", &delay(1))
}
