// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! The event log: what the device did, one JSON object a line, for [`check`] and people.
//!
//! All threads write to it. A line is written before what it announces can be seen by the guest, or
//! after what it says is over, as the description of each event says, so that the order of the
//! lines is one that a check can rely on.

pub mod check;
pub mod names;

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use serde::{Deserialize, Serialize};

/// A name.
pub type Name = Cow<'static, str>;

/// One line of the log.
#[derive(Debug, Serialize, Deserialize)]
pub struct Line {
    /// Counts the lines, from 0.
    pub seq: u64,
    /// Microseconds since the device was started.
    pub t: u64,
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
}

/// What happened.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[allow(missing_docs)] // The fields are named after what they are in the protocol.
pub enum Event {
    /// The process was started with this command line.
    Start { options: String },
    /// The driver accepted these feature bits.
    Features { bits: u64 },
    /// The control queue began to work.
    Open { generation: u64 },
    /// A request was taken from the control queue.
    Request {
        req: u64,
        cmd: Name,
        ctx: u32,
        #[serde(skip_serializing_if = "Option::is_none", default)]
        ring: Option<u8>,
        #[serde(skip_serializing_if = "Option::is_none", default)]
        fence: Option<u64>,
        #[serde(skip_serializing_if = "Option::is_none", default)]
        resource: Option<u32>,
        bytes: u64,
        /// The adversary's mode that it meets.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        adversary: Option<Name>,
    },
    /// The response to the request is about to go out.
    Response {
        req: u64,
        cmd: Name,
        kind: Name,
        #[serde(skip_serializing_if = "Option::is_none", default)]
        fence: Option<u64>,
        used: u32,
        /// The adversary's mode that changed the response.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        adversary: Option<Name>,
    },
    /// The adversary is about to respond to the request although these jobs are not over, for whose
    /// end the response should wait.
    Early { req: u64, jobs: Vec<u64> },
    /// There will be no response to the request, because of a reset.
    Dropped { req: u64 },
    /// A resource exists. `low` and `high` bound its guest addresses.
    Create {
        resource: u32,
        kind: Name,
        bytes: u64,
        entries: u64,
        segments: u64,
        low: u64,
        high: u64,
    },
    /// A resource is gone, and nothing can touch its memory any more.
    Unref { resource: u32 },
    /// A context exists.
    CtxCreate { ctx: u32, capset: u32, name: String },
    /// A context is gone.
    CtxDestroy { ctx: u32 },
    /// Jobs of the context may use the resource.
    Attach { ctx: u32, resource: u32 },
    /// They may not any more.
    Detach { ctx: u32, resource: u32 },
    /// A host blob is shown in the window.
    Map { resource: u32, offset: u64 },
    /// It is not any more.
    Unmap { resource: u32 },
    /// A job was queued that names these resources.
    Job {
        job: u64,
        req: u64,
        ctx: u32,
        ring: Option<u8>,
        ops: u64,
        resources: Vec<u32>,
        /// The address space of its context: no one waits for it.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        space: Option<u32>,
    },
    /// An operation of a job is about to touch memory.
    Access {
        job: u64,
        op: Name,
        resource: u32,
        offset: u64,
        length: u64,
        write: bool,
        /// Which operation it is, and whether it touches all of that.
        #[serde(default)]
        at: u64,
        #[serde(default)]
        whole: bool,
    },
    /// The context of a job is about to go, but the job goes on.
    Abandoned { job: u64 },
    /// A job is over.
    JobEnd { job: u64, result: String },
    /// The mirror queue began to work.
    MirrorOpen { generation: u64 },
    /// The mirror queue has stopped; there are no spaces.
    MirrorClose,
    /// A command was taken from the mirror queue.
    Command {
        cmd: u64,
        kind: Name,
        space: u32,
        #[serde(skip_serializing_if = "Option::is_none", default)]
        start: Option<u64>,
        #[serde(skip_serializing_if = "Option::is_none", default)]
        length: Option<u64>,
        #[serde(skip_serializing_if = "Option::is_none", default)]
        last: Option<u64>,
        /// It means nothing.
        #[serde(default)]
        malformed: bool,
        bytes: u64,
        /// The adversary's mode that it meets.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        adversary: Option<Name>,
    },
    /// The command is about to be given back.
    CommandDone {
        cmd: u64,
        #[serde(skip_serializing_if = "Option::is_none", default)]
        status: Option<u32>,
        used: u32,
        /// The adversary's mode that changed the response.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        adversary: Option<Name>,
    },
    /// The command will never be given back, because the queue was stopped.
    CommandDropped { cmd: u64 },
    /// A space exists: of a resource, or of a context.
    Space {
        space: u32,
        resource: u32,
        #[serde(skip_serializing_if = "Option::is_none", default)]
        ctx: Option<u32>,
        bytes: u64,
        access: u32,
    },
    /// A space is gone, and nothing can be accessed through it any more.
    SpaceGone { space: u32, why: Name },
    /// Pages are about to be mapped. Lists are of start, length and access: `asked` is
    /// what the command wants, `runs` what is done. Without `entries` it is done on behalf of no
    /// command.
    Mapped {
        space: u32,
        start: u64,
        length: u64,
        entries: u64,
        pages: u64,
        asked: Vec<(u64, u64, u32)>,
        runs: Vec<(u64, u64, u32)>,
    },
    /// Nothing is mapped there any more, and nothing accesses what was.
    Unmapped { space: u32, start: u64, length: u64 },
    /// A thread rewrites the writable pages there from now on, or does not any more.
    Hammer {
        space: u32,
        start: u64,
        length: u64,
        on: bool,
    },
    /// An access of a job stalls, and the guest is about to be told.
    Fault {
        job: u64,
        space: u32,
        fault: u64,
        access: u32,
        page: u64,
        ring: u8,
    },
    /// The guest has resolved a fault, and who stalled on it is about to go on.
    Resolved { space: u32, fault: u64, status: u32 },
    /// A device whose atomic accesses are not coherent makes one, and must be alone on the page.
    Alone { job: u64, space: u32, address: u64 },
    /// The guest is about to be told how a job has ended.
    RingDone {
        job: u64,
        space: u32,
        ring: u8,
        result: u32,
        /// The adversary's mode that its request met.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        adversary: Option<Name>,
    },
    /// An event was written for the guest.
    EventSent {
        kind: u32,
        space: u32,
        /// It is none of a device that behaves.
        #[serde(default)]
        adversary: bool,
    },
    /// The device was reset with this much alive; no access to guest memory follows.
    Reset { resources: u64, contexts: u64 },
    /// The process ends, with this much alive before that.
    End {
        resources: u64,
        contexts: u64,
        commands: u64,
    },
}

#[derive(Debug)]
struct Output {
    file: File,
    seq: u64,
}

/// Writes events; does nothing without a file.
#[derive(Debug)]
pub struct EventLog {
    output: Option<Mutex<Output>>,
    start: Instant,
}

impl EventLog {
    /// A log to the file at `path`, which is emptied; to nowhere without.
    ///
    /// # Errors
    ///
    /// If the file cannot be created.
    pub fn new(path: Option<&Path>) -> io::Result<Self> {
        let output = path
            .map(|path| File::create(path).map(|file| Mutex::new(Output { file, seq: 0 })))
            .transpose()?;
        Ok(Self {
            output,
            start: Instant::now(),
        })
    }

    /// Whether anybody listens.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.output.is_some()
    }

    /// Writes what `event` returns, if anybody listens.
    pub fn write(&self, event: impl FnOnce() -> Event) {
        let Some(output) = &self.output else { return };
        let event = event();
        let mut output = output.lock().unwrap_or_else(PoisonError::into_inner);
        let line = Line {
            seq: output.seq,
            t: self.start.elapsed().as_micros() as u64,
            event,
        };
        output.seq += 1;
        match serde_json::to_string(&line) {
            Ok(mut text) => {
                text.push('\n');
                if let Err(error) = output.file.write_all(text.as_bytes()) {
                    log::error!("event log: {error}");
                }
            }
            Err(error) => log::error!("event log: {error}"),
        }
    }
}
