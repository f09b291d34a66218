// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Memory that the kernel swaps out and moves while jobs use it, in step with them, so that each
//! job is disturbed and each is done.

use std::ops::Range;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use virtgpu_client::Result;

use crate::kernel::{self, Counts};
use crate::{failed, Report};

/// Memory, in pieces that are swapped out or moved at a time.
pub(crate) struct Pieces {
    pub(crate) memory: Range<usize>,
    /// Bytes of one.
    pub(crate) piece: usize,
    /// How many of them are swapped out during each job.
    pub(crate) swapped: usize,
}

/// What the kernel has done.
pub(crate) struct Disturbance {
    swapped: u64,
    migrated: u64,
    /// There is another node to move pages to.
    nodes: bool,
}

impl Pieces {
    fn at(&self, number: usize) -> usize {
        self.memory.start + number % (self.memory.len() / self.piece) * self.piece
    }

    fn page_out(&self, job: usize) -> std::io::Result<()> {
        (0..self.swapped).try_for_each(|n| kernel::page_out(self.at(7 * job + n), self.piece))
    }

    fn migrate(&self, job: usize, nodes: usize) -> std::io::Result<()> {
        if nodes < 2 {
            return std::fs::write("/proc/sys/vm/compact_memory", "1");
        }
        kernel::migrate(self.at(7 * job + 5), self.piece, (job % nodes) as i32)
    }

    /// Runs jobs 1 to `jobs` while two threads disturb the memory.
    pub(crate) fn disturb(
        &self,
        jobs: u32,
        mut job: impl FnMut(u32) -> Result<()>,
    ) -> Result<Disturbance> {
        kernel::enable_swap().map_err(failed)?;
        let nodes = kernel::nodes();
        let before = Counts::now().map_err(failed)?;
        let beat = Beat::new();
        std::thread::scope(|scope| -> Result<()> {
            let swapper = scope.spawn(|| beat.follow(|job| self.page_out(job)));
            let mover = scope.spawn(|| beat.follow(|job| self.migrate(job, nodes)));
            let result = (1..=jobs).try_for_each(|number| {
                beat.begin(number, 2);
                let result = job(number);
                beat.wait();
                result
            });
            beat.begin(0, 0);
            for thread in [swapper, mover] {
                thread
                    .join()
                    .map_err(|_| failed("a thread panicked"))?
                    .map_err(failed)?;
            }
            result
        })?;
        let after = Counts::now().map_err(failed)?;
        Ok(Disturbance {
            swapped: after.swapped - before.swapped,
            migrated: after.migrated - before.migrated,
            nodes: nodes > 1,
        })
    }
}

impl Disturbance {
    /// Reports it, and what the driver has counted meanwhile, none of which may be 0.
    pub(crate) fn report(&self, report: &mut Report, driver: &[(u64, &str)]) {
        let mut counts = vec![
            format!("{} pages were swapped out", self.swapped),
            format!("{} were moved", self.migrated),
        ];
        counts.extend(driver.iter().map(|(count, name)| format!("{count} {name}")));
        report.say(&format!("  meanwhile {}", counts.join(", ")));
        let happened = self.swapped > 0
            && (self.migrated > 0 || !self.nodes)
            && driver.iter().all(|(count, _)| *count > 0);
        report.status("all of that happened", happened);
    }
}

/// Keeps jobs and those who disturb them in step.
struct Beat {
    now: Mutex<Now>,
    changed: Condvar,
}

struct Now {
    /// The number of the job that is being run; 0 at the end.
    job: u32,
    /// Those who are still disturbing it.
    busy: usize,
}

impl Beat {
    fn new() -> Self {
        let now = Now {
            job: u32::MAX,
            busy: 0,
        };
        Self {
            now: Mutex::new(now),
            changed: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has `busy` threads begin.
    fn begin(&self, job: u32, busy: usize) {
        *self.lock() = Now { job, busy };
        self.changed.notify_all();
    }

    /// Waits until all have done what they do.
    fn wait(&self) {
        let now = self.changed.wait_while(self.lock(), |now| now.busy > 0);
        drop(now);
    }

    /// Calls `change` for each job until the end, also if it has failed.
    fn follow(&self, mut change: impl FnMut(usize) -> std::io::Result<()>) -> std::io::Result<()> {
        let (mut last, mut result) = (u32::MAX, Ok(()));
        loop {
            let now = self.changed.wait_while(self.lock(), |now| now.job == last);
            last = now.unwrap_or_else(PoisonError::into_inner).job;
            if last == 0 {
                return result;
            }
            result = result.and_then(|()| change(last as usize));
            self.lock().busy -= 1;
            self.changed.notify_all();
        }
    }
}
