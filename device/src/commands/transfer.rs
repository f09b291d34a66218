// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Transfers between images and the guest memory behind them.
//!
//! How long one takes depends on the image alone, so it is a job: a worker carries it out, and the
//! end of its context or of the device stops it. The memory that it copies from or to is kept until
//! then, whatever the guest detaches meanwhile.

use std::collections::{BTreeMap, BTreeSet};

use virtgpu_protocol::uapi::Box3d;
use virtgpu_protocol::virtio_gpu::response;
use virtgpu_protocol::virtio_gpu_image as wire_image;

use super::image::image_failed;
use super::{parse, Failed, Outcome};
use crate::device::state::{Job, Live, Storage, Work};
use crate::device::timelines::Timeline;
use crate::device::Device;
use crate::log::Event;
use crate::memory::image::{Copying, Direction, Transfer};
use crate::queues::control::Ticket;

impl Device {
    pub(super) fn transfer_2d(&self, ticket: &Ticket, bytes: &[u8]) -> Result<Outcome, Failed> {
        let (request, _) = parse::<wire_image::TransferToHost2d>(bytes)?;
        let transfer = Transfer {
            region: Box3d {
                x: request.rect.x.get(),
                y: request.rect.y.get(),
                w: request.rect.width.get(),
                h: request.rect.height.get(),
                d: 1,
                ..Default::default()
            },
            offset: request.offset.get(),
            ..Default::default()
        };
        self.transfer(
            (ticket, 0),
            request.resource_id.get(),
            &transfer,
            Direction::ToHost,
        )
    }

    pub(super) fn transfer_3d(
        &self,
        ticket: &Ticket,
        bytes: &[u8],
        direction: Direction,
    ) -> Result<Outcome, Failed> {
        let (request, _) = parse::<wire_image::TransferHost3d>(bytes)?;
        let (ctx, id) = (request.hdr.ctx_id.get(), request.resource_id.get());
        if ctx != 0 {
            let mut state = self.lock();
            let context = state.context(ctx).ok_or(response::ERR_INVALID_CONTEXT_ID)?;
            if !context.attached.contains(&id) {
                return Err(response::ERR_INVALID_RESOURCE_ID);
            }
        }
        self.transfer((ticket, ctx), id, &Transfer::of(request), direction)
    }

    fn transfer(
        &self,
        (ticket, ctx): (&Ticket, u32),
        id: u32,
        transfer: &Transfer,
        direction: Direction,
    ) -> Result<Outcome, Failed> {
        let shared = {
            let mut state = self.lock();
            let resource = state
                .resource(id)
                .ok_or(response::ERR_INVALID_RESOURCE_ID)?;
            match &resource.storage {
                Storage::Rendered(None) => return Err(response::ERR_UNSPEC),
                Storage::Rendered(_) => {
                    let virgl = self.virgl.as_ref().ok_or(response::ERR_UNSPEC)?;
                    // A context of someone else cannot name it there.
                    let ctx = match state.context(ctx) {
                        Some(context) if context.virgl => ctx,
                        _ => 0,
                    };
                    let transfer = *transfer;
                    return Ok(Outcome::Rendering(virgl.begin(move |renderer| {
                        renderer.transfer(ctx, id, &transfer, direction)
                    })));
                }
                Storage::Guest(memory, _) => Some(memory.clone()),
                _ => None,
            }
        };
        if let Some(memory) = shared {
            // Both sides see the same memory.
            let end = transfer.offset.checked_add(transfer.region.w.into());
            let end = end.filter(|end| *end <= memory.size());
            end.ok_or(response::ERR_INVALID_PARAMETER)?;
            return Outcome::OK;
        }
        let (image, backing) = self.image(id)?;
        let backing = backing.ok_or(response::ERR_UNSPEC)?;
        image.check(&backing, transfer).map_err(image_failed)?;
        let copying = Copying {
            image,
            backing,
            transfer: *transfer,
            direction,
        };
        Ok(self.copy(ticket, ctx, id, copying))
    }

    /// The job that copies between image `id` and its guest memory: there is no bound to the time
    /// that it may take.
    fn copy(&self, ticket: &Ticket, ctx: u32, id: u32, copying: Copying) -> Outcome {
        let timeline = Timeline::of(&ticket.request.header);
        let mut state = self.lock();
        let state = &mut *state;
        let cancel = match state.contexts.get_mut(&ctx) {
            Some(context) => {
                context.jobs += 1;
                context.ops += 1;
                context.cancel.clone()
            }
            None => state.cancel.clone(),
        };
        state.jobs += 1;
        let job = state.jobs;
        let live = Live {
            ctx,
            reads: BTreeSet::from([id]),
            writes: BTreeSet::new(),
            ops: 1,
            abandoned: None,
        };
        self.log.write(|| Event::Job {
            job,
            req: ticket.request.req,
            ctx,
            ring: timeline.ring(),
            ops: 1,
            resources: vec![id],
            space: None,
        });
        state.queued_ops += live.ops;
        state.live.insert(job, live);
        let job = Job {
            id: job,
            ctx,
            ticket: None,
            work: Work::Copy(copying),
            memory: BTreeMap::new(),
            cancel,
            faulting: None,
        };
        Outcome::Job(timeline, job)
    }
}
