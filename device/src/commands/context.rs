// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Contexts, and which resources the jobs of each may use.
//!
//! CTX_DESTROY and CTX_DETACH_RESOURCE end access to something that jobs may be using: the part of
//! them that has to wait for these jobs is in `deferred`. The guest may use the id of a context
//! again before it has the response to CTX_DESTROY.

use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError};

use virtgpu_protocol::compute::CAPSET_ID;
use virtgpu_protocol::virtio_gpu::{self as wire, response};

use super::{parse, Failed, Outcome};
use crate::cancel::Cancel;
use crate::device::state::{Action, Context};
use crate::device::Device;
use crate::log::Event;
use crate::queues::control::Ticket;

/// The most contexts.
const MAX_CONTEXTS: usize = 1 << 12;

impl Device {
    pub(super) fn ctx_create(&self, bytes: &[u8]) -> Result<Outcome, Failed> {
        let (request, _) = parse::<wire::CtxCreate>(bytes)?;
        let ctx = request.hdr.ctx_id.get();
        let init = request.context_init.get();
        let capset = init & wire::CONTEXT_INIT_CAPSET_ID_MASK;
        let length = request.nlen.get() as usize;
        let known = capset == 0 || self.options.capsets.iter().any(|c| c.id == capset);
        if init != capset || !known || length > wire::DEBUG_NAME_LEN {
            return Err(response::ERR_INVALID_PARAMETER);
        }
        let mut state = self.lock();
        // Linux's driver reuses the id of a context before it knows that it is gone. All that can
        // keep it are jobs that have been told to end.
        while state.contexts.get(&ctx).is_some_and(|c| c.dying) {
            state = self
                .over
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        if ctx == 0 || state.contexts.contains_key(&ctx) {
            return Err(response::ERR_INVALID_CONTEXT_ID);
        }
        if state.contexts.len() >= MAX_CONTEXTS {
            return Err(response::ERR_OUT_OF_MEMORY);
        }
        let virgl = self.renders(capset);
        if let Some(virgl) = virgl {
            let name = request.debug_name[..length].to_vec();
            virgl.call(move |renderer| renderer.create_context(ctx, capset, &name))?;
        }
        let context = Context {
            capset,
            virgl: virgl.is_some(),
            attached: BTreeSet::new(),
            cancel: Arc::new(Cancel::default()),
            lost: false,
            dying: false,
            jobs: 0,
            ops: 0,
        };
        if capset == CAPSET_ID {
            self.mirror.adopt_context(ctx, context.cancel.clone());
        }
        state.contexts.insert(ctx, context);
        self.log.write(|| Event::CtxCreate {
            ctx,
            capset,
            name: String::from_utf8_lossy(&request.debug_name[..length]).into_owned(),
        });
        Outcome::OK
    }

    pub(super) fn ctx_destroy(&self, ticket: &Ticket) -> Result<Outcome, Failed> {
        let ctx = ticket.request.header.ctx_id.get();
        let mut state = self.lock();
        let context = state.context(ctx).ok_or(response::ERR_INVALID_CONTEXT_ID)?;
        context.dying = true;
        if ticket.attack.abandons() {
            self.abandon(&mut state, ctx);
        } else {
            context.cancel.set();
            self.cancel_queued(&mut state, ctx);
        }
        self.run_deferred(&mut state);
        Ok(Outcome::Later(Action::DestroyContext(ctx)))
    }

    pub(super) fn attach(&self, bytes: &[u8]) -> Result<Outcome, Failed> {
        let (request, _) = parse::<wire::ResourceCommand>(bytes)?;
        let (ctx, resource) = (request.hdr.ctx_id.get(), request.resource_id.get());
        let mut state = self.lock();
        state.context(ctx).ok_or(response::ERR_INVALID_CONTEXT_ID)?;
        state
            .resource(resource)
            .ok_or(response::ERR_INVALID_RESOURCE_ID)?;
        let rendered = state.is_rendered(resource);
        let context = state.context(ctx).ok_or(response::ERR_INVALID_CONTEXT_ID)?;
        let fresh = context.attached.insert(resource);
        if let Some(virgl) = self.virgl.as_ref().filter(|_| context.virgl && rendered) {
            virgl.call(move |renderer| {
                renderer.attach(ctx, resource);
                Ok(())
            })?;
        }
        if fresh {
            self.log.write(|| Event::Attach { ctx, resource });
        }
        Outcome::OK
    }

    pub(super) fn detach(&self, bytes: &[u8]) -> Result<Outcome, Failed> {
        let (request, _) = parse::<wire::ResourceCommand>(bytes)?;
        let (ctx, resource) = (request.hdr.ctx_id.get(), request.resource_id.get());
        let mut state = self.lock();
        state.context(ctx).ok_or(response::ERR_INVALID_CONTEXT_ID)?;
        // UNREF detaches a resource from everything, and may still be waiting to do so.
        state
            .resource(resource)
            .ok_or(response::ERR_INVALID_RESOURCE_ID)?;
        let context = state.context(ctx).ok_or(response::ERR_INVALID_CONTEXT_ID)?;
        if !context.attached.remove(&resource) {
            return Err(response::ERR_INVALID_RESOURCE_ID);
        }
        // From those in fault mode.
        if let Some(resource) = state.resource(resource) {
            resource.revoke(Some(ctx));
        }
        Ok(Outcome::Later(Action::Detach {
            ctx,
            resource,
            last: state.jobs,
        }))
    }
}
