// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! The commands of the mirror queue, with the ways in which a mutant or an adversary breaks their
//! contract. What they do to spaces is in [`crate::mirror`].
//!
//! The thread that serves the mirror queue carries them out, and takes no lock of the state, but to
//! end the process: the guest's reclaim waits for INVALIDATE, which must not wait for a job.

use virtgpu_protocol::mirror::command::{FAULT_RESOLVE, INVALIDATE, SPACE_DESTROY};
use virtgpu_protocol::mirror::{access, event, Event};
use zerocopy::little_endian::{U32, U64};

use crate::device::Device;
use crate::log::names;
use crate::mirror::command;
use crate::misbehave::adversary::Attack;
use crate::misbehave::mutant::{self, Mutant};
use crate::queues::events::Record;
use crate::queues::mirror::Ticket;

impl Device {
    /// Carries out a command of the mirror queue and gives it back.
    pub(crate) fn mirror_command(&self, ticket: Ticket, bytes: &[u8]) {
        if let Some(status) = ticket.attack.exit() {
            self.end();
            std::process::exit(status);
        }
        let mirror = &self.mirror;
        if ticket.attack.is_ignored() {
            // Silent, too: this goes to the log.
            return mirror.ring.send(ticket, None);
        }
        ticket.attack.slow_down();
        let (kind, space) = (command::kind(bytes), command::space(bytes));
        let status = match ticket.attack.refused_status() {
            Some(code) if names::has_status(kind) => Some(code),
            _ if kind == INVALIDATE && mirror.has(Mutant::EarlyAck) => {
                mirror.ring.send(ticket, None);
                std::thread::sleep(mutant::WINDOW);
                mirror.execute(bytes, &self.ram());
                return;
            }
            _ if kind == INVALIDATE && mirror.has(Mutant::StallDelaysAck) => {
                let status = mirror.execute(bytes, &self.ram());
                mirror.wait_for_stalls(space);
                status
            }
            _ if kind == FAULT_RESOLVE && ticket.attack.refaults() => {
                mirror.refault(bytes);
                None
            }
            _ if kind == INVALIDATE && mirror.has(Mutant::WriteAfterAck) => {
                let stray = mirror.stray(bytes);
                mirror.execute(bytes, &self.ram());
                mirror.ring.send(ticket, None);
                if let Some(stray) = stray {
                    std::thread::spawn(stray);
                }
                return;
            }
            _ => mirror.execute(bytes, &self.ram()),
        };
        mirror.ring.send(ticket, status);
        if kind == SPACE_DESTROY && mirror.has(Mutant::EventForDeadSpace) {
            mirror.events.post(Record::space_lost(space));
        }
        if kind == SPACE_DESTROY && mirror.has(Mutant::FaultAfterDestroy) {
            mirror.events.post(Record {
                event: Event {
                    kind: U32::new(event::FAULT),
                    space_id: U32::new(space),
                    access: U32::new(access::READ),
                    info: U32::new(1),
                    address: U64::new(1 << 12),
                    id: U64::MAX_VALUE,
                },
                ..Record::space_lost(space)
            });
        }
    }

    /// What the adversary does after a command, which names a space or 0.
    pub(crate) fn after(&self, attack: &Attack, space: u32) {
        let mirror = &self.mirror;
        if attack.loses_device() {
            mirror.lose();
        }
        if attack.loses_space() && space != 0 {
            mirror.lose_space(space);
        }
        for _ in 0..attack.stale_events() {
            mirror.events.post(Record {
                adversary: true,
                ..Record::space_lost(space)
            });
        }
        let bad = attack.bad_faults(space, self.max_faults());
        for event in bad.into_iter().chain(attack.bad_done(space)) {
            mirror.events.post(Record {
                event,
                adversary: true,
                ..Record::space_lost(space)
            });
        }
        for (bytes, used) in attack.garbage_events() {
            mirror.events.post(Record {
                event: bytes,
                used,
                adversary: true,
                owner: None,
            });
        }
    }
}
