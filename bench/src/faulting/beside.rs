// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! What a process that has faults all the time costs another one.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::mm::{MapFlags, ProtFlags};
use virtgpu_client::{Device, Mapping, Memory, RegisterOptions};

use super::{crowd, one_page};
use crate::memory::{drop_pages, make, touch, Kind};
use crate::report::{Goal, Report, Sample};
use crate::setup::{map_all, open_mirroring, Result, PAGE};
use crate::Options;

const HUGE: usize = 2 << 20;
const LIMIT: Duration = Duration::from_secs(60);

/// A process that has faults while it is told to. It ends on drop.
struct Other {
    pid: libc::pid_t,
    words: Mapping,
}

impl Other {
    /// Must be called while this process has no device open, and no threads.
    fn start() -> Result<Self> {
        let words =
            Mapping::anonymous_with(PAGE, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED)?;
        // SAFETY: There is one thread, so that all is as it was in the child.
        let pid = unsafe { libc::fork() };
        let other = Self { pid, words };
        match pid {
            -1 => Err(std::io::Error::last_os_error().into()),
            0 => {
                let error = other.storm().err();
                eprintln!("the other process: {error:?}");
                // SAFETY: Ends this process, whose destructors are the parent's business.
                unsafe { libc::_exit(1) }
            }
            _ => Ok(other),
        }
    }

    /// Whether it is to have faults; how often it has had its turn of them; whether it has none
    /// now.
    fn words(&self) -> [&AtomicU32; 3] {
        let words = self.words.as_ptr().cast::<AtomicU32>();
        // SAFETY: The mapping is larger than that, lives as long, and both processes use it so.
        unsafe { [&*words, &*words.add(1), &*words.add(2)] }
    }

    /// What the child does, until it is killed.
    fn storm(&self) -> Result {
        // SAFETY: Takes integers.
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
        let [go, turns, idle] = self.words();
        let (svm, order) = (crowd::open()?, crowd::order());
        loop {
            while go.load(Ordering::Acquire) == 0 {
                idle.store(1, Ordering::Release);
                std::thread::sleep(Duration::from_millis(1));
            }
            idle.store(0, Ordering::Release);
            crowd::rush(&svm, &order, crowd::MOST)?;
            turns.fetch_add(1, Ordering::Release);
        }
    }

    /// Has it begin or end.
    fn set(&self, on: bool) -> Result {
        let [go, turns, idle] = self.words();
        let (before, start) = (turns.load(Ordering::Acquire), Instant::now());
        go.store(on.into(), Ordering::Release);
        let done = || match on {
            true => turns.load(Ordering::Acquire) != before,
            // What it has begun ends.
            false => idle.load(Ordering::Acquire) == 1,
        };
        while !done() {
            if start.elapsed() > LIMIT {
                return Err("the other process does not do as it is told".into());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    fn turns(&self) -> u32 {
        self.words()[1].load(Ordering::Acquire)
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        if self.pid > 0 {
            // SAFETY: Our own child, which no one else waits for.
            unsafe {
                libc::kill(self.pid, libc::SIGKILL);
                libc::waitpid(self.pid, std::ptr::null_mut(), 0);
            }
        }
    }
}

/// What madvise takes that has the device lose 2 MiB, as of P5.
fn lose(device: &Device, memory: &impl Memory) -> Result<f64> {
    const TIMES: usize = 20;
    let userptr = device.register(memory, RegisterOptions::mirrored())?;
    let mut times = Sample::default();
    for _ in 0..TIMES {
        touch(memory);
        map_all(device, userptr.handle())?;
        times.0.push(drop_pages(memory)?);
    }
    Ok(times.median())
}

pub(super) fn measure(options: &Options, report: &mut Report) -> Result {
    let other = Other::start()?;
    let device = open_mirroring()?;
    let huge = make(Kind::Thp, HUGE)?;
    let (svm, memory) = (one_page::open()?, one_page::memory()?);
    let mut idle: [Sample; 2] = Default::default();
    let mut busy: [Sample; 2] = Default::default();
    for run in 0..=options.runs {
        for (on, samples) in [(false, &mut idle), (true, &mut busy)] {
            other.set(on)?;
            let before = other.turns();
            let new = [lose(&device, &huge)?, one_page::fault(&svm, &memory)?];
            if (other.turns() != before) != on {
                return Err("the other process was not as busy as it should be".into());
            }
            if run > 0 {
                for (all, new) in samples.iter_mut().zip(new) {
                    all.0.push(new);
                }
            }
        }
    }
    let ([lose, fault], [lose_idle, fault_idle]) = (busy, idle);
    report.add(
        "P9-beside-P5",
        "madvise has the device lose 2 MiB beside a process of 8 jobs that fault, against alone",
        "ns",
        [lose, lose_idle],
        Goal::AtMost(3.0),
    );
    report.add(
        "P9-beside-fault",
        "a fault on a resident page beside such a process, against alone",
        "ns",
        [fault, fault_idle],
        Goal::AtMost(4.0),
    );
    Ok(())
}
