// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! A round: threads that do things at random, in a process of its own.

use std::time::Instant;

use crate::call::Call;
use crate::ktap::{Outcome, TestResult};
use crate::layout::Scratch;
use crate::pick::chance;
use crate::standard::Maker;
use crate::support::Random;
use crate::world::{DrmFile, World};
use crate::{memory, process, trace};

/// What a round is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) threads: u64,
    /// Actions of a thread.
    pub(crate) steps: u64,
    /// The device may misbehave.
    pub(crate) hostile: bool,
    /// When to stop, if the actions are not over by then.
    pub(crate) until: Instant,
}

/// Does it.
pub(crate) fn run(plan: &Plan) -> TestResult {
    let failed = |error| Outcome::Fail(format!("setting up: errno {error}"));
    memory::start().map_err(failed)?;
    process::start();
    let world = World::new(plan.hostile);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..plan.threads)
            .map(|index| {
                let world = &world;
                scope.spawn(move || {
                    thread(world, index, plan)
                        .map_err(|outcome| with_seed(outcome, plan.seed, index))
                })
            })
            .collect();
        let mut result = Ok(());
        for thread in threads {
            let one = thread.join().unwrap_or_else(|_| {
                let text = format!("seed {}: a thread of the fuzzer panicked", plan.seed);
                Err(Outcome::Fail(text))
            });
            result = result.and(one);
        }
        result
    })
}

fn with_seed(outcome: Outcome, seed: u64, thread: u64) -> Outcome {
    match outcome {
        Outcome::Fail(reason) => Outcome::Fail(format!("seed {seed}, thread {thread}: {reason}")),
        skip => skip,
    }
}

fn thread(world: &World, index: u64, plan: &Plan) -> TestResult {
    let mut random = Random((plan.seed << 8) | index);
    let scratch = Scratch::new(index as usize)
        .map_err(|error| Outcome::Fail(format!("setting up a thread: errno {error}")))?;
    trace::this_is(index as usize);
    world.enlist();
    let mut maker = Maker {
        world,
        random: &mut random,
        scratch: &scratch,
    };
    for _ in 0..plan.steps {
        if Instant::now() >= plan.until || world.is_over() {
            break;
        }
        maker.step()?;
    }
    Ok(())
}

impl Maker<'_> {
    fn step(&mut self) -> TestResult {
        let Some(file) = self.file()? else {
            return Err(Outcome::Fail("no node of the device can be opened".into()));
        };
        match self.random.below(64) {
            0..=15 => {
                let call = self.standard(&file);
                self.make(call)
            }
            16..=25 => {
                let call = self.extension(&file);
                self.make(call)
            }
            26..=33 => {
                let call = self.core(&file);
                self.make(call)
            }
            34..=47 => {
                self.memory();
                Ok(())
            }
            48 | 49 => self.map_buffer(&file),
            50..=54 => {
                self.use_files(&file);
                Ok(())
            }
            55 | 56 => {
                self.interrupt();
                Ok(())
            }
            57 if chance(self.random, 1, 4) => {
                self.fork(&file);
                Ok(())
            }
            58 => self.life_of_a_picture(&file),
            59 => self.life_of_pointers(),
            _ => self.whole_life(&file),
        }
    }

    fn make(&mut self, call: Call) -> TestResult {
        let call = self.maybe_spoil(call);
        call.make(self.world, self.random, self.scratch)?;
        Ok(())
    }

    /// What a program does with user memory, from registration to the end, all right; but other
    /// threads are not idle meanwhile.
    fn whole_life(&mut self, file: &DrmFile) -> TestResult {
        let register = self.register(file);
        self.good(&register)?;
        // What was registered is known by now.
        let again = self.world.same(file);
        for _ in 0..1 + self.random.below(3) {
            let job = self.execbuffer(&again);
            self.good(&job)?;
            let next = match self.random.below(3) {
                0 => self.prefetch(&again),
                1 => self.query(&again),
                _ => self.wait(&again),
            };
            self.good(&next)?;
        }
        let close = self.gem_close(&again);
        self.good(&close)
    }

    /// A file with shared virtual memory, and jobs with pointers; later on it is one of all.
    fn life_of_pointers(&mut self) -> TestResult {
        let Some(file) = self.open() else {
            return Ok(());
        };
        let context = self.compute_context(&file);
        self.good(&context)?;
        let enable = self.svm_enable(&file);
        self.good(&enable)?;
        for _ in 0..1 + self.random.below(6) {
            let job = self.pointer_job(&file);
            self.good(&job)?;
            let next = match self.random.below(4) {
                0 => self.svm_prefetch(&file),
                1 => self.svm_query(&file),
                _ => self.svm_wait(&file),
            };
            self.good(&next)?;
        }
        Ok(())
    }

    /// A resource that is no blob, and transfers.
    fn life_of_a_picture(&mut self, file: &DrmFile) -> TestResult {
        let create = self.picture(file);
        let Some(bytes) = create.make(self.world, self.random, self.scratch)? else {
            return Ok(());
        };
        let handle = u32::from_le_bytes(bytes[40..44].try_into().expect("4 bytes"));
        for _ in 0..2 {
            let transfer = self.transfer_of(file, handle);
            self.good(&transfer)?;
        }
        Ok(())
    }

    fn good(&mut self, call: &Call) -> TestResult {
        call.make(self.world, self.random, self.scratch)?;
        Ok(())
    }
}
