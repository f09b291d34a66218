// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Nothing may be left of a test case that has ended: no pinned page, no resource, space or mapped
//! page on the host, and no address space in the driver.

use std::sync::Mutex;
use std::time::Duration;

use crate::ktap::{Outcome, TestResult};
use crate::support::{debugfs, eventually, procfs, stat, Env};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct State {
    pinned_pages: i64,
    resources: u64,
    contexts: u64,
    guest_bytes: u64,
    host_bytes: u64,
    spaces: u64,
    mapped_pages: u64,
    address_spaces: u64,
}

impl State {
    /// Less than before is no leak.
    fn nothing_above(&self, before: &Self) -> bool {
        self.pinned_pages <= before.pinned_pages
            && self.resources <= before.resources
            && self.contexts <= before.contexts
            && self.guest_bytes <= before.guest_bytes
            && self.host_bytes <= before.host_bytes
            && self.spaces <= before.spaces
            && self.mapped_pages <= before.mapped_pages
            && self.address_spaces <= before.address_spaces
    }
}

static BEFORE: Mutex<Option<State>> = Mutex::new(None);

fn now(env: &Env) -> TestResult<State> {
    let device = env.compute()?;
    let stat = stat::read(&device)?;
    Ok(State {
        pinned_pages: procfs::pinned_pages()?,
        resources: stat.resources.get(),
        contexts: stat.contexts.get(),
        guest_bytes: stat.guest_bytes.get(),
        host_bytes: stat.host_bytes.get(),
        spaces: stat.spaces.get(),
        mapped_pages: stat.mapped_pages.get(),
        address_spaces: debugfs::address_spaces(env)?,
    })
}

/// Notes the state before a case, unless that is the one which the check after another has found.
pub(crate) fn remember(env: &Env) -> TestResult {
    if BEFORE.lock().expect("one thread").is_some() {
        return Ok(());
    }
    // What others used may still be on its way back.
    let mut state = now(env)?;
    eventually(Duration::from_secs(30), || {
        let last = state;
        state = now(env).unwrap_or(last);
        last == state
    });
    *BEFORE.lock().expect("one thread") = Some(state);
    Ok(())
}

/// There was something that no one has checked.
pub(crate) fn forget() {
    *BEFORE.lock().expect("one thread") = None;
}

/// Compares with the state before a case. Memory is given back by workers, so this waits for it.
///
/// What there is then is the state before the next case: never more than before this one, so that
/// nothing that is on its way back hides what is left behind later.
pub(crate) fn check(env: &Env) -> TestResult {
    let before = BEFORE
        .lock()
        .expect("one thread")
        .take()
        .expect("remembered");
    let mut after = Ok(before);
    let same = eventually(Duration::from_secs(60), || {
        after = now(env);
        after
            .as_ref()
            .is_ok_and(|after| after.nothing_above(&before))
    });
    if same {
        *BEFORE.lock().expect("one thread") = after.ok();
        return Ok(());
    }
    match after {
        Ok(after) => Err(Outcome::Fail(format!(
            "left behind: before {before:?}, after {after:?}"
        ))),
        Err(error) => Err(error),
    }
}
