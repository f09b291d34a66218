// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! The second part of commands that wait until jobs are over.
//!
//! A command that ends access to memory is checked when it comes, and done when no job can touch
//! that memory any more: its response permits the guest to use the memory for something else.
//! RESOURCE_MAP_BLOB waits for jobs that write the blob. [`Device::run_deferred`] is called, with
//! the state locked, by the worker that ends a job, by CTX_DESTROY, whose queued jobs never begin,
//! and by whoever learns of the window.

use std::sync::atomic::Ordering;
use std::time::Instant;

use virtgpu_protocol::virtio_gpu::{self as wire, response};
use zerocopy::little_endian::U32;
use zerocopy::IntoBytes;

use crate::device::state::{Action, State, Storage};
use crate::device::{release, Device};
use crate::log::Event;
use crate::queues::control::Response;
use crate::queues::control::Ticket;

impl Device {
    /// Notes that the adversary responds to a request before `jobs` are over.
    pub(super) fn say_early(&self, ticket: &Ticket, jobs: Vec<u64>) {
        self.log.write(|| Event::Early {
            req: ticket.request.req,
            jobs,
        });
    }

    /// Carries out `action` as soon as no job is in the way, and responds, if that has not been
    /// done.
    pub(super) fn act(&self, state: &mut State, ticket: Option<Ticket>, action: Action) {
        if state.is_blocked(action) {
            state.deferred.push_back((ticket, action));
        } else {
            let response = self.complete(state, action);
            if let Some(ticket) = ticket {
                self.respond(state, ticket, response);
            }
        }
    }

    /// Goes on with the commands that waited for what is over now.
    pub(crate) fn run_deferred(&self, state: &mut State) {
        for (ticket, action) in std::mem::take(&mut state.deferred) {
            let start = Instant::now();
            let unref = matches!(action, Action::Unref(_)) && !state.is_blocked(action);
            self.act(state, ticket, action);
            if unref {
                let elapsed = start.elapsed().as_nanos() as u64;
                self.counters.unref_ns.fetch_add(elapsed, Ordering::Relaxed);
            }
        }
    }

    /// Does what `action` says, which no job is in the way of.
    fn complete(&self, state: &mut State, action: Action) -> Response {
        match action {
            Action::Unref(id) => {
                self.mirror.forget(id);
                if let Some(resource) = state.resources.remove(&id) {
                    if let Storage::Rendered(_) = &resource.storage {
                        self.tell_renderer(move |renderer| renderer.unref(id));
                    }
                    release(state, &resource);
                }
                for context in state.contexts.values_mut() {
                    context.attached.remove(&id);
                }
                self.log.write(|| Event::Unref { resource: id });
                Response::ok()
            }
            Action::Detach { ctx, resource, .. } => {
                let virgl = state.contexts.get(&ctx).is_some_and(|c| c.virgl);
                if virgl && state.is_rendered(resource) {
                    self.tell_renderer(move |renderer| renderer.detach(ctx, resource));
                }
                self.mirror.revoke(resource, "detached", || {
                    self.log.write(|| Event::Detach { ctx, resource });
                });
                Response::ok()
            }
            Action::DestroyContext(ctx) => {
                self.mirror.forget_context(ctx);
                let context = state.contexts.remove(&ctx);
                for id in context.iter().flat_map(|c| &c.attached) {
                    if let Some(resource) = state.resources.get_mut(id) {
                        resource.revoke(Some(ctx));
                    }
                }
                if context.is_some_and(|c| c.virgl) {
                    self.tell_renderer(move |renderer| renderer.destroy_context(ctx));
                }
                self.log.write(|| Event::CtxDestroy { ctx });
                Response::ok()
            }
            Action::DetachBacking(id) => {
                // It may have been unreferenced since, which waits for the same jobs.
                let Some(resource) = state.resources.get_mut(&id) else {
                    return Response::plain(response::ERR_INVALID_RESOURCE_ID);
                };
                resource.revoke(None);
                if let Storage::Guest(_, entries) = resource.storage {
                    resource.storage = Storage::Detached;
                    state.entries -= entries;
                }
                Response::ok()
            }
            Action::DetachImage { entries, .. } => {
                state.entries -= entries;
                Response::ok()
            }
            Action::Map { resource, offset } => match self.map(state, resource, offset) {
                Ok(()) => Response {
                    kind: response::OK_MAP_INFO,
                    body: [U32::new(wire::map_cache::CACHED), U32::ZERO]
                        .as_bytes()
                        .to_vec(),
                },
                Err(code) => Response::plain(code),
            },
            Action::Unmap(id) => match self.unmap(state, id) {
                Ok(()) => Response::ok(),
                Err(code) => Response::plain(code),
            },
        }
    }
}
