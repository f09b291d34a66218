// SPDX-License-Identifier: GPL-2.0

//! Every order in which so many things can happen to a small registration ([`super::model`]).
//!
//! States are gone over breadth first and each only once, so that orders which lead to the same
//! state are one from there on. What is found to be wrong is printed with the shortest way that
//! leads there. Beside that there are some long ways, at random.

use super::model::{
    Check,
    Mistake,
    Model,
    State,
    Step, //
};
use core::hash::{
    Hash,
    Hasher, //
};
use kernel::{
    prelude::*,
    time::{
        Instant,
        Monotonic, //
    }, //
};

/// Places of the index; there is an error if three quarters of them do not suffice.
const PLACES: usize = 1 << 17;

/// Ways at random from where a scene begins, and their steps.
const WALKS: usize = 50;
const WALK_STEPS: usize = 100;

/// What is gone over.
struct Scene {
    name: &'static CStr,
    sparse: bool,
    /// The steps that lead to where it begins.
    before: &'static [Step],
    /// What can happen from there, in every order, so many at most.
    steps: &'static [Step],
    depth: usize,
}

/// All is mapped, the job of a whole registration runs.
const JOB_RUNS: &[Step] = &[
    Step::LookUp(3),
    Step::Commit(3),
    Step::Work,
    Step::Response,
    Step::Queue,
];

const SCENES: &[Scene] = &[
    Scene {
        name: c"nothing is mapped",
        sparse: false,
        before: &[],
        steps: &[
            Step::LookUp(3),
            Step::Commit(3),
            Step::Commit(1),
            Step::Response,
            Step::Invalidate,
            Step::Replace(0, 3),
            Step::Unmap(1, 2),
            Step::GetOn(0),
            Step::GetOn(1),
            Step::Queue,
            Step::JobEnds,
            Step::Work,
            Step::Refuse,
        ],
        depth: 9,
    },
    Scene {
        name: c"a job runs",
        sparse: false,
        before: JOB_RUNS,
        steps: &[
            Step::LookUp(3),
            Step::Commit(3),
            Step::Response,
            Step::Replace(0, 3),
            Step::Unmap(1, 2),
            Step::Reap(2, 3),
            Step::GetOn(0),
            Step::GetOn(1),
            Step::Grace,
            Step::Queue,
            Step::JobEnds,
            Step::Work,
        ],
        depth: 12,
    },
    Scene {
        name: c"parts are prefetched",
        sparse: true,
        before: &[
            Step::Prefetch(0, 2),
            Step::Commit(2),
            Step::Work,
            Step::Response,
        ],
        steps: &[
            Step::LookUp(3),
            Step::Prefetch(1, 3),
            Step::Commit(3),
            Step::Response,
            Step::Unmap(0, 1),
            Step::Replace(1, 3),
            Step::GetOn(0),
            Step::GetOn(1),
            Step::Grace,
            Step::Queue,
            Step::JobEnds,
            Step::Work,
        ],
        depth: 10,
    },
    Scene {
        name: c"the device has no room",
        sparse: false,
        before: &[
            Step::LookUp(3),
            Step::Commit(3),
            Step::Work,
            Step::Response,
            Step::Evict(0),
        ],
        steps: &[
            Step::LookUp(3),
            Step::Commit(3),
            Step::Response,
            Step::Invalidate,
            Step::Evict(0),
            Step::Evict(1),
            Step::Evicted,
            Step::Replace(0, 2),
            Step::GetOn(0),
            Step::Queue,
            Step::JobEnds,
            Step::Work,
            Step::Refuse,
        ],
        depth: 11,
    },
    Scene {
        name: c"the device is lost",
        sparse: false,
        before: &[
            Step::LookUp(3),
            Step::Commit(1),
            Step::Work,
            Step::Commit(2),
        ],
        steps: &[
            Step::Response,
            Step::Invalidate,
            Step::Queue,
            Step::Evict(1),
            Step::Evicted,
            Step::Replace(0, 3),
            Step::Reap(1, 2),
            Step::GetOn(0),
            Step::GetOn(1),
            Step::Grace,
            Step::JobEnds,
            Step::Work,
            Step::Refuse,
            Step::Lose,
            Step::Reset,
            Step::TableReset,
            Step::Release,
        ],
        depth: 9,
    },
];

/// A state, and how it was come to.
struct Node {
    state: State,
    before: u32,
    step: u8,
}

/// FNV, a word at a time.
struct Fnv(u64);

impl Hasher for Fnv {
    fn finish(&self) -> u64 {
        self.0 ^ self.0 >> 29
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.write_u64(byte.into()));
    }

    fn write_u8(&mut self, value: u8) {
        self.write_u64(value.into());
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0 ^ value)
            .wrapping_mul(0x0000_0100_0000_01b3)
            .rotate_left(23);
    }

    fn write_isize(&mut self, value: isize) {
        self.write_u64(value as u64);
    }
}

/// The states that were come to.
struct Known {
    nodes: KVVec<Node>,
    /// Their numbers plus one, by hash.
    index: KVVec<u32>,
}

impl Known {
    fn new() -> Result<Self> {
        Ok(Self {
            nodes: KVVec::new(),
            index: KVVec::from_elem(0, PLACES, GFP_KERNEL)?,
        })
    }

    /// Adds a state that is not known yet.
    fn add(&mut self, state: &State, before: u32, step: u8) -> Result {
        let mut hasher = Fnv(0xcbf2_9ce4_8422_2325);
        state.hash(&mut hasher);
        let mut at = hasher.finish() as usize % PLACES;
        while let Some(other) = (self.index[at] as usize).checked_sub(1) {
            if self.nodes[other].state == *state {
                return Ok(());
            }
            at = (at + 1) % PLACES;
        }
        if self.nodes.len() >= PLACES / 4 * 3 {
            return Err(ENOSPC);
        }
        let node = Node {
            state: *state,
            before,
            step,
        };
        self.nodes.push(node, GFP_KERNEL)?;
        self.index[at] = self.nodes.len() as u32;
        Ok(())
    }
}

/// What was seen.
struct Seen {
    wrong: Option<&'static CStr>,
    states: usize,
    /// The steps that were possible at some time, as a set.
    possible: u64,
}

/// Goes over a scene, until something is wrong.
fn explore(scene: &Scene, mistake: Option<Mistake>) -> Result<Seen> {
    let mut model = Model::new(scene.sparse, mistake);
    let mut seen = Seen {
        wrong: None,
        states: 0,
        possible: 0,
    };
    for &step in scene.before {
        if !matches!(model.step(step), Ok(true)) {
            return Err(EINVAL);
        }
    }
    let mut known = Known::new()?;
    known.add(&model.state, 0, 0)?;
    let (mut at, mut depth, mut next) = (0, 0, 1);
    while at < known.nodes.len() {
        if at == next {
            (depth, next) = (depth + 1, known.nodes.len());
        }
        if depth == scene.depth {
            break;
        }
        for (number, &step) in scene.steps.iter().enumerate() {
            let state = known.nodes[at].state;
            let taken: Check = model.restore(&state).and_then(|_| model.step(step));
            match taken {
                Ok(false) => continue,
                Ok(true) => known.add(&model.state, at as u32, number as u8)?,
                Err(wrong) => {
                    seen.wrong = Some(wrong);
                    if mistake.is_none() {
                        tell(scene, &known, at, step, wrong);
                    }
                    return Ok(seen);
                }
            }
            seen.possible |= 1 << number;
        }
        at += 1;
    }
    seen.states = known.nodes.len();
    Ok(seen)
}

/// Prints what is wrong, and how it was come to, the last step first.
fn tell(scene: &Scene, known: &Known, mut at: usize, step: Step, wrong: &CStr) {
    pr_err!("{}: {}\n", scene.name, wrong);
    pr_err!("  {:?}\n", step);
    while at != 0 {
        let node = &known.nodes[at];
        pr_err!("  {:?}\n", scene.steps[usize::from(node.step)]);
        at = node.before as usize;
    }
}

#[kunit_tests(virtgpu_userptr_interleavings)]
mod tests {
    use super::*;

    #[test]
    fn every_order() -> Result {
        for scene in SCENES {
            let since = Instant::<Monotonic>::now();
            let seen = explore(scene, None)?;
            assert!(seen.wrong.is_none());
            // Nothing in the scene is there in vain.
            assert_eq!(seen.possible, (1 << scene.steps.len()) - 1);
            assert!(scene.depth >= 6);
            let (states, took) = (seen.states, since.elapsed().as_millis());
            pr_info!("{}: {} states, {} ms\n", scene.name, states, took);
        }
        Ok(())
    }

    #[test]
    fn long_ways() -> Result {
        // A generator of random numbers that are the same every time (xorshift).
        let mut random = 0x9e37_79b9_7f4a_7c15u64;
        for scene in SCENES {
            for _ in 0..WALKS {
                let mut model = Model::new(scene.sparse, None);
                for &step in scene.before {
                    assert!(model.step(step) == Ok(true));
                }
                for _ in 0..WALK_STEPS {
                    random ^= random << 13;
                    random ^= random >> 7;
                    random ^= random << 17;
                    let step = scene.steps[(random >> 32) as usize % scene.steps.len()];
                    // Most end with the device as it should be.
                    if step != Step::Lose || random % 64 == 0 {
                        let taken = model.step(step);
                        assert!(taken.is_ok());
                    }
                }
            }
        }
        Ok(())
    }

    /// Finds what a mistake leads to, in a scene where `step` is possible.
    fn finds(mistake: Mistake, step: Step) -> Result {
        let mut found = None;
        for scene in SCENES.iter().filter(|scene| scene.steps.contains(&step)) {
            found = explore(scene, Some(mistake))?.wrong;
            if found.is_some() {
                break;
            }
        }
        pr_info!("{:?}: {:?}\n", mistake, found);
        assert!(found.is_some());
        Ok(())
    }

    #[test]
    fn mistakes_of_lookups() -> Result {
        finds(Mistake::StaleIsSent, Step::Commit(3))?;
        finds(Mistake::NotInvalidated, Step::Refuse)
    }

    #[test]
    fn mistakes_of_jobs() -> Result {
        finds(Mistake::NoLook, Step::Queue)?;
        finds(Mistake::JobsNotAwaited, Step::Queue)
    }

    #[test]
    fn mistakes_of_changes() -> Result {
        finds(Mistake::AcknowledgementNotAwaited, Step::Replace(0, 3))?;
        finds(Mistake::AnothersAcknowledgement, Step::Replace(0, 3))?;
        finds(Mistake::NotRefused, Step::Reap(2, 3))
    }

    #[test]
    fn mistakes_of_eviction() -> Result {
        finds(Mistake::SentSince, Step::Evicted)
    }

    #[test]
    fn mistakes_of_the_quarantine() -> Result {
        finds(Mistake::NoQuarantine, Step::Lose)?;
        finds(Mistake::ReleasedEarly, Step::Lose)
    }
}
