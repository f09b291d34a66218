// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! The mirror queue: its commands, and the status that some of them are given back with.
//!
//! What the commands mean is in [`crate::mirror`].

use zerocopy::little_endian::U32;
use zerocopy::IntoBytes;

use super::ring::{self, GuestRing, Queue, Responding};
use crate::log::{Event, EventLog, Name};

/// The mirror queue.
pub(crate) struct Commands;

/// Its ring.
pub(crate) type CommandRing = GuestRing<Commands>;

/// A command of it, and where the status goes.
pub(crate) type Ticket = ring::Ticket<Command>;

/// A command.
#[derive(Debug)]
pub(crate) struct Command {
    /// Its number, for logs.
    pub(crate) cmd: u64,
}

impl Queue for Commands {
    type State = ();

    fn opened(_: &mut (), generation: u64, log: &EventLog) {
        log.write(|| Event::MirrorOpen { generation });
    }
}

impl Responding for Commands {
    type Request = Command;
    /// A status, of commands that have one.
    type Response = Option<u32>;

    fn encode(_: &Command, status: &Option<u32>, _: u64) -> Vec<u8> {
        status.map_or(Vec::new(), |s| U32::new(s).as_bytes().to_vec())
    }

    fn dropped(command: &Command) -> Event {
        Event::CommandDropped { cmd: command.cmd }
    }

    fn responded(
        command: &Command,
        status: &Option<u32>,
        used: u32,
        adversary: Option<Name>,
    ) -> Event {
        Event::CommandDone {
            cmd: command.cmd,
            status: *status,
            used,
            adversary,
        }
    }
}
