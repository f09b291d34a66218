// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Nothing may be left of a test case that has ended: no pinned page, no resource on the host.

use std::sync::Mutex;
use std::time::Duration;

use virtgpu_client::{compute, Bytes};

use crate::ktap::{Outcome, TestResult};
use crate::support::{eventually, job, procfs, Env};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct State {
    pinned_pages: i64,
    resources: u64,
    contexts: u64,
    guest_bytes: u64,
    host_bytes: u64,
}

impl State {
    /// Less than before is no leak.
    fn nothing_above(&self, before: &Self) -> bool {
        self.pinned_pages <= before.pinned_pages
            && self.resources <= before.resources
            && self.contexts <= before.contexts
            && self.guest_bytes <= before.guest_bytes
            && self.host_bytes <= before.host_bytes
    }
}

static BEFORE: Mutex<Option<State>> = Mutex::new(None);

fn now(env: &Env) -> TestResult<State> {
    let device = env.compute()?;
    // As large as any device of the tests wants blobs to be.
    let blob = job::shared_blob(&device, 65536)?;
    let map = blob.map()?;
    let mut stream = compute::Stream::new();
    stream.stat(blob.at(0));
    job::run(&device, &stream, &[blob.handle()])?;
    Ok(State {
        pinned_pages: procfs::pinned_pages()?,
        resources: map.read_u64(0),
        contexts: map.read_u64(8),
        guest_bytes: map.read_u64(24),
        host_bytes: map.read_u64(40),
    })
}

/// Notes the state before a case.
pub(crate) fn remember(env: &Env) -> TestResult {
    // What the case before used may still be on its way back.
    let mut state = now(env)?;
    eventually(Duration::from_secs(30), || {
        let last = state;
        state = now(env).unwrap_or(last);
        last == state
    });
    *BEFORE.lock().expect("one thread") = Some(state);
    Ok(())
}

/// Compares with the state before a case. Memory is given back by workers, so this waits for it.
pub(crate) fn check(env: &Env) -> TestResult {
    let before = BEFORE.lock().expect("one thread").expect("remembered");
    let mut after = Ok(before);
    let same = eventually(Duration::from_secs(60), || {
        after = now(env);
        after
            .as_ref()
            .is_ok_and(|after| after.nothing_above(&before))
    });
    if same {
        return Ok(());
    }
    match after {
        Ok(after) => Err(Outcome::Fail(format!(
            "left behind: before {before:?}, after {after:?}"
        ))),
        Err(error) => Err(error),
    }
}
