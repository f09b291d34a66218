// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! The ways to misbehave: their names on the command line, and what the number of each means.

use std::str::FromStr;

use virtgpu_protocol::mirror;
use virtgpu_protocol::virtio_gpu::{command, response};

/// A way to misbehave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The response is cut off.
    Short,
    /// The used length is more than the buffer.
    Oversized,
    /// The response's type is none.
    GarbageType,
    /// All of the response is random.
    Garbage,
    /// The buffer comes back twice.
    Duplicate,
    /// Another buffer comes back.
    UnknownHead,
    /// The response names another fence.
    WrongFence,
    /// The response names no fence.
    NoFence,
    /// There is no response.
    Silence,
    /// The command is not carried out, and there is no response.
    Ignore,
    /// CTX_DESTROY forgets the jobs of the context.
    Abandon,
    /// A job is carried out again and again.
    Endless,
    /// What follows the response's header has another length.
    Body,
    /// The response comes late.
    Delay,
    /// The command is carried out late.
    Late,
    /// The command takes long, and those behind it wait.
    Slow,
    /// The process ends.
    Exit,
    /// The command is refused.
    Refuse,
    /// GET_CAPSET_INFO lies about the size.
    CapsetSize,
    /// GET_CAPSET_INFO names the same set again and again.
    CapsetDuplicate,
    /// The configuration space has too many sets.
    CapsetCount,
    /// RESOURCE_MAP_BLOB asks for a kind of mapping that does not exist.
    MapInfo,
    /// The configuration space changes, or so the device says.
    ConfigChange,
    /// The response comes before it is true.
    Early,
    /// The device says that it must be reset.
    DeviceLost,
    /// The space is lost, and the device says so.
    SpaceLost,
    /// Events say that the space is lost, which it is not, or is gone.
    StaleEvent,
    /// Events are random.
    GarbageEvent,
    /// Events say of the space that there are faults, which cannot be.
    BadFault,
    /// Events say of the space that a job is over which there is not.
    BadDone,
    /// No event says that the job is over.
    DoneNever,
    /// Two events say that the job is over.
    DoneAgain,
    /// The event that says that the job is over comes after that of the next one.
    DoneSwapped,
    /// A fault that is resolved comes again.
    Refault,
}

/// A kind's name, what its number means, the number's default, and what it does.
pub(super) struct Description {
    pub(super) kind: Kind,
    pub(super) name: &'static str,
    pub(super) number: u64,
    help: &'static str,
}

const fn describe(kind: Kind, name: &'static str, number: u64, help: &'static str) -> Description {
    Description {
        kind,
        name,
        number,
        help,
    }
}

pub(super) const KINDS: &[Description] = &[
    describe(Kind::Short, "short", 24, "only N bytes of the response are written; 24 and more: a random number below 24; of a status 4"),
    describe(Kind::Oversized, "oversized", 4096, "the used length is N more than the buffer"),
    describe(Kind::GarbageType, "garbage-type", 0, "the response's type is N; 0: a random number"),
    describe(Kind::Garbage, "garbage", 0, "all bytes of the response are random"),
    describe(Kind::Duplicate, "duplicate", 1, "the buffer comes back N more times"),
    describe(Kind::UnknownHead, "unknown-head", 0xffff, "descriptor N comes back instead"),
    describe(Kind::WrongFence, "wrong-fence", 1 << 40, "N is added to the response's fence id"),
    describe(Kind::NoFence, "no-fence", 0, "the response to a fenced request has no fence"),
    describe(Kind::Silence, "silence", 0, "the command is executed, but there is no response"),
    describe(Kind::Ignore, "ignore", 0, "the command is not executed, and there is no response"),
    describe(Kind::Abandon, "abandon", 0, "the response to CTX_DESTROY comes at once: the context's jobs that run go on to their end, those that are queued never begin, and none of them ever has a response; RESOURCE_UNREF still waits for those that run"),
    describe(Kind::Endless, "endless", 0, "a job is carried out again and again, until its context is destroyed or, with abandon, until the device is reset"),
    describe(Kind::Body, "body", 0, "N bytes follow the response's header, cut off or filled up with zeroes, as far as the buffer goes"),
    describe(Kind::Delay, "delay", 100, "the response comes N milliseconds late"),
    describe(Kind::Late, "late", 5000, "the command is carried out and responded to N milliseconds late, after others that came later"),
    describe(Kind::Slow, "slow", 100, "the command takes N milliseconds more, at most 10000, in which the queue stands still"),
    describe(Kind::Exit, "exit", 1, "the process ends with exit status N instead of executing the command"),
    describe(Kind::Refuse, "refuse", response::ERR_OUT_OF_MEMORY as u64, "the command is not executed and the response is error N; RESOURCE_CREATE_BLOB unless --adversary-on says otherwise; on the mirror queue it is status N, 3 if N is not below 256"),
    describe(Kind::CapsetSize, "capset-size", 0xffff_fff0, "GET_CAPSET_INFO says that a capability set has N bytes"),
    describe(Kind::CapsetDuplicate, "capset-duplicate", 29, "GET_CAPSET_INFO says that every capability set has id N"),
    describe(Kind::CapsetCount, "capset-count", 0xffff_ffff, "the configuration space says that there are N capability sets"),
    describe(Kind::MapInfo, "map-info", 0xffff_fff7, "the response to RESOURCE_MAP_BLOB has map_info N"),
    describe(Kind::ConfigChange, "config-change", 1, "after the command a change of the configuration space is announced N times, with a display event in it"),
    describe(Kind::Early, "early", 0, "responses to jobs come before these run; those to UNREF, DETACH and DESTROY before the last job is over that can touch what they end access to, which the device keeps until then"),
    describe(Kind::DeviceLost, "device-lost", 0, "after the command the configuration space says that the device is lost, and a change is announced; commands are still served"),
    describe(Kind::SpaceLost, "space-lost", 0, "after the command the space that it names is revoked, and an event says so"),
    describe(Kind::StaleEvent, "stale-event", 1, "after the command N events say that the space that it names is lost: it is not, or it is gone since SPACE_DESTROY"),
    describe(Kind::GarbageEvent, "garbage-event", 1, "after the command N events are random, with random used lengths"),
    describe(Kind::BadFault, "bad-fault", 0, "after the command FAULTs name the space that it names; what is wrong is 0: nothing but that nothing stalls, which is what there is to see of a space without faults, or none; 1: the id is in use; 2: the access is 0; 3: it is 7; 4: the address is in the middle of a page; 5: it is outside; 6: there are more than max_faults; 7: there is no such ring"),
    describe(Kind::BadDone, "bad-done", 0, "after the command RING_DONE names the space that it names, and a job that there is not"),
    describe(Kind::DoneNever, "done-never", 0, "RING_DONE of a job never comes"),
    describe(Kind::DoneAgain, "done-again", 1, "RING_DONE of a job comes N times more"),
    describe(Kind::DoneSwapped, "done-swapped", 0, "RING_DONE of a job comes after that of the next one of its context"),
    describe(Kind::Refault, "refault", 0, "after FAULT_RESOLVE the same access faults again, whatever is mapped"),
];

/// Names and explanations of all kinds, one a line.
#[must_use]
pub fn list() -> String {
    let line = |d: &Description| format!("{:<18}{} [N: {}]\n", d.name, d.help, d.number);
    KINDS.iter().map(line).collect()
}

/// A kind and its number: `MODE[:N]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mode {
    pub(super) kind: Kind,
    pub(super) number: u64,
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, number) = match text.split_once(':') {
            Some((name, number)) => (name, Some(number)),
            None => (text, None),
        };
        let known = KINDS.iter().find(|d| d.name == name);
        let known = known.ok_or("unknown; --list-adversary prints the names")?;
        let number = match number.map(|n| (n, n.strip_prefix("0x"))) {
            None => Ok(known.number),
            Some((_, Some(digits))) => u64::from_str_radix(digits, 16),
            Some((digits, None)) => digits.parse(),
        };
        Ok(Self {
            kind: known.kind,
            number: number.map_err(|e| e.to_string())?,
        })
    }
}

impl Mode {
    pub(super) fn name(self) -> &'static str {
        let known = KINDS.iter().find(|d| d.kind == self.kind);
        known.map_or("unknown", |d| d.name)
    }

    /// The commands that it is about, if not about all.
    pub(super) fn scope(self) -> Option<u32> {
        match self.kind {
            Kind::Refuse => Some(command::RESOURCE_CREATE_BLOB),
            Kind::CapsetSize | Kind::CapsetDuplicate => Some(command::GET_CAPSET_INFO),
            Kind::MapInfo => Some(command::RESOURCE_MAP_BLOB),
            Kind::Abandon => Some(command::CTX_DESTROY),
            Kind::Endless | Kind::DoneNever | Kind::DoneAgain | Kind::DoneSwapped => {
                Some(command::SUBMIT_3D)
            }
            Kind::Refault => Some(mirror::command::FAULT_RESOLVE),
            _ => None,
        }
    }
}
