// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! The commands of the guest: what each checks, and what it does to what exists.
//!
//! [`Device::handle`] takes a request of the control queue, has it carried out by the function for
//! its type, and sees to its response: at once, behind others on its timeline, or by the job that
//! the request has become. A file each is in charge of capability sets, contexts, resources, blobs,
//! images, transfers and jobs; `deferred` of what waits for jobs, `rendered` of what virglrenderer
//! does. `space` has the commands of the mirror queue.
//!
//! One thread at a time carries out requests: the one that serves the control queue, or one for
//! which an adversary has put a request off, holds [`Device::serve`]. Workers end jobs at the same
//! time, and the mirror queue has a thread of its own. All that two of them can touch is behind the
//! lock of the state or that of the table of spaces. No one keeps one locked to wait for a job.

mod blob;
mod capset;
mod context;
mod deferred;
mod image;
mod rendered;
mod resource;
mod space;
mod submit;
mod transfer;

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use virtgpu_protocol::virtio_gpu::{command, response, Header, MAX_RINGS};
use virtgpu_protocol::virtio_gpu_2d as wire2d;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::device::state::{Action, Item, Job};
use crate::device::timelines::Timeline;
use crate::device::Device;
use crate::log::names;
use crate::log::Event;
use crate::memory::image::Direction;
use crate::queues::control::Ticket;
use crate::queues::control::{fence, Response};
use crate::virgl::Rendering;

/// What became of a command.
enum Outcome {
    /// It is done.
    Done(Response),
    /// It goes on when jobs are over.
    Later(Action),
    /// The renderer works on it.
    Rendering(Rendering),
    /// It is a job, which responds when it is over.
    Job(Timeline, Job),
    /// It is a job whose response is due now.
    Unfenced(Timeline, Job),
}

impl Outcome {
    const OK: Result<Self, u32> = Ok(Self::Done(Response {
        kind: response::OK_NODATA,
        body: Vec::new(),
    }));
}

/// The response with this error code.
type Failed = u32;

/// The structure at the start of `bytes`, and what follows it.
fn parse<T: FromBytes + KnownLayout + Immutable + Unaligned>(
    bytes: &[u8],
) -> Result<(&T, &[u8]), Failed> {
    T::ref_from_prefix(bytes).map_err(|_| response::ERR_INVALID_PARAMETER)
}

/// The response of type `kind` that consists of `body`, which begins with a header.
fn with_body<T: IntoBytes + Immutable>(kind: u32, body: &T) -> Outcome {
    Outcome::Done(Response {
        kind,
        body: body.as_bytes()[size_of::<Header>()..].to_vec(),
    })
}

impl Device {
    /// Carries out the request `bytes`. `start` is when it was taken from the queue.
    pub(crate) fn handle(self: &Arc<Self>, mut ticket: Ticket, bytes: &[u8], start: Instant) {
        self.counters.commands.fetch_add(1, Ordering::Relaxed);
        let header = ticket.request.header;
        let kind = ticket.request.command();
        self.log.write(|| Event::Request {
            req: ticket.request.req,
            cmd: names::command(kind).into(),
            ctx: header.ctx_id.get(),
            ring: Timeline::of(&header).ring(),
            fence: fence(&header),
            resource: bytes
                .get(size_of::<Header>()..)
                .and_then(|rest| names::resource(kind, rest)),
            bytes: bytes.len() as u64,
            adversary: ticket.attack.name().map(Into::into),
        });
        if let Some(status) = ticket.attack.exit() {
            self.end();
            std::process::exit(status);
        }
        if ticket.attack.is_ignored() {
            // Silent, too: this goes to the log.
            return self.control.send(ticket, Response::ok());
        }
        ticket.attack.slow_down();
        let Some(late) = ticket.attack.take_lateness() else {
            return self.carry_out(ticket, bytes, start);
        };
        let (this, bytes) = (self.clone(), bytes.to_vec());
        std::thread::spawn(move || {
            std::thread::sleep(late);
            // A reset comes before or after it.
            let serve = this.serve.lock().unwrap_or_else(PoisonError::into_inner);
            if this.control.is_open_for(&ticket) {
                this.carry_out(ticket, &bytes, start);
            }
            drop(serve);
        });
    }

    fn carry_out(self: &Arc<Self>, ticket: Ticket, bytes: &[u8], start: Instant) {
        let header = ticket.request.header;
        let kind = ticket.request.command();
        let outcome = match ticket.attack.refusal() {
            Some(code) => Err(code),
            None => check_ring(&header).and_then(|()| self.command(&ticket, bytes)),
        };
        let mut state = self.lock();
        match outcome {
            Ok(Outcome::Done(response)) => self.respond(&mut state, ticket, response),
            Ok(Outcome::Later(action))
                if ticket.attack.is_early() && action.ends_access() && state.is_blocked(action) =>
            {
                self.say_early(&ticket, state.jobs_before(action).collect());
                self.respond(&mut state, ticket, Response::ok());
                self.act(&mut state, None, action);
            }
            Ok(Outcome::Later(action)) => self.act(&mut state, Some(ticket), action),
            Ok(Outcome::Rendering(_)) if ticket.attack.is_early() => {
                self.control.send(ticket, Response::ok());
            }
            Ok(Outcome::Rendering(rendering)) => {
                let timeline = Timeline::of(&ticket.request.header);
                self.enqueue(&mut state, timeline, Item::Rendering(ticket, rendering));
            }
            Ok(Outcome::Job(timeline, job)) if ticket.attack.is_early() => {
                self.say_early(&ticket, vec![job.id]);
                self.control.send(ticket, Response::ok());
                self.queue(&mut state, timeline, job);
            }
            Ok(Outcome::Job(timeline, mut job)) => {
                job.ticket = Some(ticket);
                self.queue(&mut state, timeline, job);
            }
            Ok(Outcome::Unfenced(timeline, job)) => {
                // The guest learns that it is accepted before it learns that it is over.
                self.respond(&mut state, ticket, Response::ok());
                self.queue(&mut state, timeline, job);
            }
            Err(code) => {
                log::debug!("{}: {}", names::command(kind), names::response(code));
                self.respond(&mut state, ticket, Response::plain(code));
            }
        }
        let counter = match kind {
            command::RESOURCE_CREATE_BLOB => &self.counters.create_blob_ns,
            command::RESOURCE_UNREF => &self.counters.unref_ns,
            _ => return,
        };
        counter.fetch_add(start.elapsed().as_nanos() as u64, Ordering::Relaxed);
    }

    fn command(self: &Arc<Self>, ticket: &Ticket, bytes: &[u8]) -> Result<Outcome, Failed> {
        let for_contexts = command::CTX_CREATE..=command::SUBMIT_3D;
        if !self.options.virgl && for_contexts.contains(&ticket.request.command()) {
            return Err(response::ERR_UNSPEC);
        }
        match ticket.request.command() {
            command::GET_DISPLAY_INFO => Ok(with_body(
                response::OK_DISPLAY_INFO,
                &wire2d::ResponseDisplayInfo::default(),
            )),
            command::GET_CAPSET_INFO => self.get_capset_info(bytes),
            command::GET_CAPSET => self.get_capset(bytes),
            command::CTX_CREATE => self.ctx_create(bytes),
            command::CTX_DESTROY => self.ctx_destroy(ticket),
            command::CTX_ATTACH_RESOURCE => self.attach(bytes),
            command::CTX_DETACH_RESOURCE => self.detach(bytes),
            command::RESOURCE_CREATE_BLOB => self.create_blob(bytes),
            command::RESOURCE_CREATE_2D => self.create_2d(bytes),
            command::RESOURCE_CREATE_3D => self.create_3d(bytes),
            command::RESOURCE_UNREF => self.unref(bytes),
            command::RESOURCE_ATTACH_BACKING => self.attach_backing(bytes),
            command::RESOURCE_DETACH_BACKING => self.detach_backing(bytes),
            command::RESOURCE_MAP_BLOB => self.map_blob(bytes),
            command::RESOURCE_UNMAP_BLOB => self.unmap_blob(bytes),
            command::RESOURCE_ASSIGN_UUID => self.assign_uuid(bytes),
            command::SET_SCANOUT | command::SET_SCANOUT_BLOB => {
                // There are no scanouts.
                Err(response::ERR_INVALID_SCANOUT_ID)
            }
            command::RESOURCE_FLUSH => self.flush(bytes),
            command::TRANSFER_TO_HOST_2D => self.transfer_2d(ticket, bytes),
            command::TRANSFER_TO_HOST_3D => self.transfer_3d(ticket, bytes, Direction::ToHost),
            command::TRANSFER_FROM_HOST_3D => self.transfer_3d(ticket, bytes, Direction::FromHost),
            command::SUBMIT_3D => self.submit(ticket, bytes),
            _ => Err(response::ERR_UNSPEC),
        }
    }
}

/// Checks the ring that a request names.
fn check_ring(header: &Header) -> Result<(), Failed> {
    match Timeline::of(header) {
        Timeline::Ring(0, _) => Err(response::ERR_INVALID_CONTEXT_ID),
        Timeline::Ring(_, ring) if u32::from(ring) >= MAX_RINGS => {
            Err(response::ERR_INVALID_PARAMETER)
        }
        _ => Ok(()),
    }
}
