// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Clients that queue jobs behind one that takes longer than a test, until they have to wait for
//! room.

use std::sync::atomic::Ordering;

use virtgpu_client::protocol::compute::MAX_DELAY_US;
use virtgpu_client::{compute, Exec, Mapping};

use crate::check;
use crate::isolation::{shared, word};
use crate::ktap::TestResult;
use crate::support::child::{self, Child};
use crate::support::{eventually, job, Env, PAGE};

/// Such clients, a process each.
pub(crate) struct Greedy {
    children: Vec<Child>,
    counts: Mapping,
}

impl Greedy {
    /// Starts `clients` of them, which queue jobs that do what `stream` says.
    pub(crate) fn start(env: &Env, clients: usize, stream: &compute::Stream) -> TestResult<Self> {
        let counts = shared(PAGE)?;
        let children = (0..clients)
            .map(|client| {
                child::spawn(|| {
                    let device = env.compute()?;
                    let mut first = compute::Stream::new();
                    first.delay(MAX_DELAY_US);
                    let mut next = &first;
                    loop {
                        Exec::new(next.as_bytes()).ring(0).submit(&device)?;
                        word(&counts, client).fetch_add(1, Ordering::Release);
                        next = stream;
                    }
                })
            })
            .collect::<TestResult<Vec<_>>>()?;
        Ok(Self { children, counts })
    }

    fn queued(&self) -> Vec<u64> {
        (0..self.children.len())
            .map(|client| word(&self.counts, client).load(Ordering::Acquire))
            .collect()
    }

    /// Waits until each of them waits for room, or has failed. Returns how many jobs each has
    /// queued.
    pub(crate) fn wait(&self) -> TestResult<Vec<u64>> {
        let mut before = Vec::new();
        let blocked = eventually(job::LIMIT, || {
            let now = self.queued();
            let same = now == before;
            before = now;
            let waits = |(child, &queued): (&Child, &u64)| {
                child.is_finished().unwrap_or(true)
                    || (queued > 0 && child.is_blocked().unwrap_or(true))
            };
            same && self.children.iter().zip(&before).all(waits)
        });
        check!(blocked, "jobs find room without end: {before:?}");
        Ok(before)
    }

    /// Kills them. It is a failure if one has ended before, which says why.
    pub(crate) fn kill(self) -> TestResult {
        let mut outcome = Ok(());
        for child in self.children {
            let ended = if child.is_finished()? {
                child.join()
            } else {
                child.kill()
            };
            outcome = outcome.and(ended);
        }
        outcome
    }
}
