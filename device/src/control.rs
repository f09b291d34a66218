// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! The commands of the control queue.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use virtgpu_protocol::compute::Op;
use virtgpu_protocol::uapi::Box3d;
use virtgpu_protocol::virtio_gpu::{self as wire, blob_flag, blob_mem, command, response, Header};
use virtgpu_protocol::virtio_gpu_2d as wire2d;
use virtgpu_protocol::virtio_gpu_image as wire_image;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::answers::{fence, Response};
use crate::backend::QUEUE_SIZE;
use crate::cancel::Cancel;
use crate::capsets::AMD_CAPSET_ID;
use crate::compute;
use crate::device::{release, Device};
use crate::event_log::Event;
use crate::hostmem::{WindowError, PAGE};
use crate::image::{Copying, Direction, Image, ImageError, Shape, Transfer};
use crate::mirror::hammer;
use crate::names;
use crate::request::Ticket;
use crate::segments::{EntryError, Segments};
use crate::state::{Action, Context, Item, Job, Live, Resource, State, Storage, Timeline, Work};
use crate::virgl::{CreateArgs, Rendering};

/// The most resources.
const MAX_RESOURCES: usize = 1 << 20;
/// The most contexts.
const MAX_CONTEXTS: usize = 1 << 12;
/// The most jobs of a context that are not over.
const MAX_JOBS: usize = 1 << 14;
/// The most operations of all jobs that are not over, jobs included: a full queue of full jobs.
const MAX_QUEUED_OPS: usize = QUEUE_SIZE * compute::MAX_OPS as usize;
/// The most memory entries of all resources.
const MAX_ENTRIES: u64 = 1 << 26;
/// The most bytes of storage of all images.
const MAX_IMAGE_BYTES: u64 = 2 << 30;

/// What became of a command.
enum Outcome {
    /// It is done.
    Done(Response),
    /// It goes on when jobs are over.
    Later(Action),
    /// The renderer works on it.
    Rendering(Rendering),
    /// It is a job, which answers itself.
    Job(Timeline, Job),
    /// It is a job that is answered now.
    Unfenced(Timeline, Job),
}

impl Outcome {
    const OK: Result<Self, u32> = Ok(Self::Done(Response {
        kind: response::OK_NODATA,
        body: Vec::new(),
    }));
}

/// The answer with this error code.
pub(crate) type Failed = u32;

/// The structure at the start of `bytes`, and what follows it.
fn parse<T: FromBytes + KnownLayout + Immutable + Unaligned>(
    bytes: &[u8],
) -> Result<(&T, &[u8]), Failed> {
    T::ref_from_prefix(bytes).map_err(|_| response::ERR_INVALID_PARAMETER)
}

/// The answer of type `kind` that consists of `body`, which begins with a header.
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
        let header = ticket.header;
        let kind = ticket.command();
        self.log.write(|| Event::Request {
            req: ticket.req,
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
            return self.answers.send(&ticket, &Response::ok());
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
            if this.answers.is_open_for(&ticket) {
                this.carry_out(ticket, &bytes, start);
            }
            drop(serve);
        });
    }

    fn carry_out(self: &Arc<Self>, ticket: Ticket, bytes: &[u8], start: Instant) {
        let header = ticket.header;
        let kind = ticket.command();
        let outcome = match ticket.attack.refusal() {
            Some(code) => Err(code),
            None => check_ring(&header).and_then(|()| self.command(&ticket, bytes)),
        };
        let mut state = self.lock();
        match outcome {
            Ok(Outcome::Done(answer)) => self.respond(&mut state, ticket, answer),
            Ok(Outcome::Later(action))
                if ticket.attack.is_early() && action.takes_away() && state.is_blocked(action) =>
            {
                self.say_early(&ticket, state.jobs_before(action).collect());
                self.respond(&mut state, ticket, Response::ok());
                self.act(&mut state, None, action);
            }
            Ok(Outcome::Later(action)) => self.act(&mut state, Some(ticket), action),
            Ok(Outcome::Rendering(_)) if ticket.attack.is_early() => {
                self.answers.send(&ticket, &Response::ok());
            }
            Ok(Outcome::Rendering(rendering)) => {
                let timeline = Timeline::of(&ticket.header);
                self.enqueue(&mut state, timeline, Item::Rendering(ticket, rendering));
            }
            Ok(Outcome::Job(timeline, job)) if ticket.attack.is_early() => {
                self.say_early(&ticket, vec![job.id]);
                self.answers.send(&ticket, &Response::ok());
                self.queue(&mut state, timeline, job);
            }
            Ok(Outcome::Job(timeline, mut job)) => {
                job.ticket = Some(ticket);
                self.queue(&mut state, timeline, job);
            }
            Ok(Outcome::Unfenced(timeline, job)) => {
                self.queue(&mut state, timeline, job);
                self.respond(&mut state, ticket, Response::ok());
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
        if !self.options.virgl && for_contexts.contains(&ticket.command()) {
            return Err(response::ERR_UNSPEC);
        }
        match ticket.command() {
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
            command::RESOURCE_FLUSH => {
                let (flush, _) = parse::<wire2d::ResourceFlush>(bytes)?;
                let mut state = self.lock();
                let resource = state.resource(flush.resource_id.get());
                match resource.map(|resource| &resource.storage) {
                    None => Err(response::ERR_INVALID_RESOURCE_ID),
                    Some(Storage::Image(..) | Storage::Rendered(_)) => Outcome::OK,
                    Some(_) => Err(response::ERR_INVALID_PARAMETER),
                }
            }
            command::TRANSFER_TO_HOST_2D => self.transfer_2d(ticket, bytes),
            command::TRANSFER_TO_HOST_3D => self.transfer_3d(ticket, bytes, Direction::ToHost),
            command::TRANSFER_FROM_HOST_3D => self.transfer_3d(ticket, bytes, Direction::FromHost),
            command::SUBMIT_3D => self.submit(ticket, bytes),
            _ => Err(response::ERR_UNSPEC),
        }
    }

    fn get_capset_info(&self, bytes: &[u8]) -> Result<Outcome, Failed> {
        let (request, _) = parse::<wire::GetCapsetInfo>(bytes)?;
        let capset = self
            .options
            .capsets
            .get(request.capset_index.get() as usize)
            .ok_or(response::ERR_INVALID_PARAMETER)?;
        Ok(with_body(
            response::OK_CAPSET_INFO,
            &wire::ResponseCapsetInfo {
                capset_id: U32::new(capset.id),
                capset_max_version: U32::new(capset.version),
                capset_max_size: U32::new(capset.data.len() as u32),
                ..Default::default()
            },
        ))
    }

    fn get_capset(&self, bytes: &[u8]) -> Result<Outcome, Failed> {
        let (request, _) = parse::<wire::GetCapset>(bytes)?;
        let capset =
            self.options.capsets.iter().find(|c| {
                c.id == request.capset_id.get() && request.capset_version.get() <= c.version
            });
        let capset = capset.ok_or(response::ERR_INVALID_PARAMETER)?;
        Ok(Outcome::Done(Response {
            kind: response::OK_CAPSET,
            body: capset.data.clone(),
        }))
    }

    fn ctx_create(&self, bytes: &[u8]) -> Result<Outcome, Failed> {
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
        state.contexts.insert(ctx, context);
        self.log.write(|| Event::CtxCreate {
            ctx,
            capset,
            name: String::from_utf8_lossy(&request.debug_name[..length]).into_owned(),
        });
        Outcome::OK
    }

    fn ctx_destroy(&self, ticket: &Ticket) -> Result<Outcome, Failed> {
        let ctx = ticket.header.ctx_id.get();
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

    fn attach(&self, bytes: &[u8]) -> Result<Outcome, Failed> {
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

    fn detach(&self, bytes: &[u8]) -> Result<Outcome, Failed> {
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
        Ok(Outcome::Later(Action::Detach {
            ctx,
            resource,
            last: state.jobs,
        }))
    }

    /// The memory that a list of `count` entries names.
    fn segments(&self, rest: &[u8], count: u32, size: u64) -> Result<Segments, Failed> {
        let entries = entries(rest, count)?;
        Segments::from_entries(&self.ram(), entries, size).map_err(|error: EntryError| {
            log::info!("memory entries: {error}");
            response::ERR_INVALID_PARAMETER
        })
    }

    fn create_blob(&self, bytes: &[u8]) -> Result<Outcome, Failed> {
        let (request, rest) = parse::<wire::ResourceCreateBlob>(bytes)?;
        let id = request.resource_id.get();
        let size = request.size.get();
        let flags = request.blob_flags.get();
        let count = request.nr_entries.get();
        let memory = request.blob_mem.get();
        let known = blob_flag::USE_MAPPABLE
            | blob_flag::USE_SHAREABLE
            | blob_flag::USE_CROSS_DEVICE
            | blob_flag::USE_USERPTR;
        let alignment = u64::from(self.options.blob_alignment.max(1));
        // Contexts have no objects that a blob could be; an id is ignored where it may be given.
        let wrong_id = memory == blob_mem::GUEST && request.blob_id.get() != 0;
        if size == 0 || size % alignment != 0 || flags & !known != 0 || wrong_id {
            return Err(response::ERR_INVALID_PARAMETER);
        }
        let ctx = request.hdr.ctx_id.get();
        let (capset, free) = {
            let mut state = self.lock();
            let capset = match ctx {
                0 => None,
                _ => Some(
                    state
                        .context(ctx)
                        .ok_or(response::ERR_INVALID_CONTEXT_ID)?
                        .capset,
                ),
            };
            (capset, !state.resources.contains_key(&id))
        };
        if id == 0 || !free {
            return Err(response::ERR_INVALID_RESOURCE_ID);
        }
        // The flag is AMD's and means nothing, or something else, elsewhere.
        if flags & blob_flag::USE_USERPTR != 0 && capset != Some(AMD_CAPSET_ID) {
            return Err(response::ERR_INVALID_PARAMETER);
        }
        // What virgl's blobs would be is memory of its renderer.
        let hosts = capset.is_some_and(|capset| self.renders(capset).is_none());
        let host = match memory {
            blob_mem::GUEST | blob_mem::HOST3D_GUEST if count > 0 => false,
            blob_mem::GUEST | blob_mem::HOST3D_GUEST if self.is_mirrored() => {
                let marked = request.blob_id.get() & hammer::MARK != 0;
                return self.create_mirrored(ctx, id, size, self.options.hammer && marked);
            }
            blob_mem::HOST3D if count == 0 && hosts && size % PAGE == 0 => true,
            _ => return Err(response::ERR_INVALID_PARAMETER),
        };
        let guest = match host {
            true => None,
            false => Some(Arc::new(self.segments(rest, count, size)?)),
        };
        let range = || match self.log.is_on() && !host {
            true => bounds(&rest[..count as usize * size_of::<wire::MemEntry>()]),
            false => (0, 0),
        };
        let (low, high) = range();
        let mut state = self.lock();
        let segments = guest.as_ref().map_or(1, |g| g.count() as u64);
        let storage = match guest {
            Some(memory) => Storage::Guest(memory, u64::from(count)),
            None => {
                let blob = state
                    .host
                    .allocate(size)
                    .ok_or(response::ERR_OUT_OF_MEMORY)?;
                Storage::Host {
                    memory: Arc::new(Segments::from_host(blob.clone())),
                    blob,
                    shown: None,
                    written: false,
                }
            }
        };
        let mappable = host && flags & blob_flag::USE_MAPPABLE != 0;
        self.insert(&mut state, id, storage, size, mappable)?;
        self.log.write(|| Event::Create {
            resource: id,
            kind: match memory {
                blob_mem::GUEST => "guest",
                blob_mem::HOST3D => "host3d",
                _ => "host3d_guest",
            }
            .into(),
            bytes: size,
            entries: u64::from(count),
            segments,
            low,
            high,
        });
        Outcome::OK
    }

    /// Creates a resource whose memory comes from a space, later.
    fn create_mirrored(
        &self,
        ctx: u32,
        id: u32,
        size: u64,
        hammer: bool,
    ) -> Result<Outcome, Failed> {
        let area = self.mirror.area(ctx, size);
        let area = area.ok_or(response::ERR_INVALID_PARAMETER)?;
        let storage = Storage::Mirrored(Arc::new(Segments::mirrored(area.clone())));
        let mut state = self.lock();
        self.insert(&mut state, id, storage, size, false)?;
        self.log.write(|| Event::Create {
            resource: id,
            kind: "mirrored".into(),
            bytes: size,
            entries: 0,
            segments: 0,
            low: 0,
            high: 0,
        });
        self.mirror.adopt(id, area, hammer);
        Outcome::OK
    }

    pub(crate) fn insert(
        &self,
        state: &mut State,
        id: u32,
        storage: Storage,
        size: u64,
        mappable: bool,
    ) -> Result<(), Failed> {
        let resource = Resource {
            storage,
            size,
            mappable,
            uuid: None,
            dying: false,
        };
        state.entries += resource.guest().1;
        if state.resources.len() >= MAX_RESOURCES || state.entries > MAX_ENTRIES {
            release(state, &resource);
            return Err(response::ERR_OUT_OF_MEMORY);
        }
        state.resources.insert(id, resource);
        Ok(())
    }

    fn create_2d(&self, bytes: &[u8]) -> Result<Outcome, Failed> {
        let (request, _) = parse::<wire_image::ResourceCreate2d>(bytes)?;
        let format = request.format.get();
        if !wire_image::format::is_2d(format) {
            return Err(response::ERR_INVALID_PARAMETER);
        }
        if let Some(virgl) = &self.virgl {
            self.create_rendered(virgl, CreateArgs::from(request))?;
            return Outcome::OK;
        }
        let shape = Shape::picture(format, request.width.get(), request.height.get());
        self.create_image(request.resource_id.get(), &shape)
    }

    fn create_3d(&self, bytes: &[u8]) -> Result<Outcome, Failed> {
        let (request, _) = parse::<wire_image::ResourceCreate3d>(bytes)?;
        if let Some(virgl) = &self.virgl {
            self.create_rendered(virgl, CreateArgs::from(request))?;
            return Outcome::OK;
        }
        self.create_image(request.resource_id.get(), &Shape::of(request))
    }

    fn create_image(&self, id: u32, shape: &Shape) -> Result<Outcome, Failed> {
        let image = Image::new(shape).map_err(image_failed)?;
        let size = image.size();
        let mut state = self.lock();
        if id == 0 || state.resources.contains_key(&id) {
            return Err(response::ERR_INVALID_RESOURCE_ID);
        }
        if state.image_bytes + size > MAX_IMAGE_BYTES {
            return Err(response::ERR_OUT_OF_MEMORY);
        }
        state.image_bytes += size;
        let storage = Storage::Image(Arc::new(image), None);
        self.insert(&mut state, id, storage, size, false)?;
        self.log.write(|| Event::Create {
            resource: id,
            kind: "image".into(),
            bytes: size,
            entries: 0,
            segments: 0,
            low: 0,
            high: 0,
        });
        Outcome::OK
    }

    /// An image, and its guest memory if it has any.
    fn image(&self, id: u32) -> Result<(Arc<Image>, Option<Arc<Segments>>), Failed> {
        let mut state = self.lock();
        let resource = state
            .resource(id)
            .ok_or(response::ERR_INVALID_RESOURCE_ID)?;
        match &resource.storage {
            Storage::Image(image, backing) => Ok((
                image.clone(),
                backing.as_ref().map(|(memory, _)| memory.clone()),
            )),
            _ => Err(response::ERR_INVALID_PARAMETER),
        }
    }

    fn attach_backing(&self, bytes: &[u8]) -> Result<Outcome, Failed> {
        let (request, rest) = parse::<wire::ResourceAttachBacking>(bytes)?;
        let (id, count) = (request.resource_id.get(), request.nr_entries.get());
        if self.lock().backing(id)?.is_some() {
            return Err(response::ERR_UNSPEC);
        }
        // Transfers say how the memory is used, so its size is what there is.
        let size = total(rest, count)?;
        if size == 0 {
            return Err(response::ERR_INVALID_PARAMETER);
        }
        let memory = Arc::new(self.segments(rest, count, size)?);
        let mut state = self.lock();
        if state.entries + u64::from(count) > MAX_ENTRIES {
            return Err(response::ERR_OUT_OF_MEMORY);
        }
        if let Some(virgl) = self.virgl.as_ref().filter(|_| state.is_rendered(id)) {
            let memory = memory.clone();
            virgl.call(move |renderer| renderer.attach_backing(id, memory))?;
        }
        *state.backing(id)? = Some((memory, count.into()));
        state.entries += u64::from(count);
        Outcome::OK
    }

    fn detach_backing(&self, bytes: &[u8]) -> Result<Outcome, Failed> {
        let (request, _) = parse::<wire::ResourceCommand>(bytes)?;
        let id = request.resource_id.get();
        let mut state = self.lock();
        let resource = state
            .resource(id)
            .ok_or(response::ERR_INVALID_RESOURCE_ID)?;
        if let Storage::Guest(..) = &resource.storage {
            // Jobs may use it.
            return Ok(Outcome::Later(Action::DetachBacking(id)));
        }
        let image = matches!(&resource.storage, Storage::Image(..));
        let (memory, entries) = state.backing(id)?.take().ok_or(response::ERR_UNSPEC)?;
        if image {
            // Copies may use it, and it counts until they are over.
            let last = state.jobs;
            return Ok(Outcome::Later(Action::DetachImage {
                resource: id,
                entries,
                last,
            }));
        }
        state.entries -= entries;
        if let Some(virgl) = self.virgl.as_ref().filter(|_| state.is_rendered(id)) {
            virgl.call(move |renderer| {
                renderer.detach_backing(id);
                Ok(())
            })?;
        }
        drop(memory);
        Outcome::OK
    }

    fn transfer_2d(&self, ticket: &Ticket, bytes: &[u8]) -> Result<Outcome, Failed> {
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

    fn transfer_3d(
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
        let timeline = Timeline::of(&ticket.header);
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
            req: ticket.req,
            ctx,
            ring: timeline.ring(),
            ops: 1,
            resources: vec![id],
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
        };
        Outcome::Job(timeline, job)
    }

    fn unref(&self, bytes: &[u8]) -> Result<Outcome, Failed> {
        let (request, _) = parse::<wire::ResourceCommand>(bytes)?;
        let id = request.resource_id.get();
        let mut state = self.lock();
        let resource = state
            .resource(id)
            .ok_or(response::ERR_INVALID_RESOURCE_ID)?;
        resource.dying = true;
        Ok(Outcome::Later(Action::Unref(id)))
    }

    fn map_blob(&self, bytes: &[u8]) -> Result<Outcome, Failed> {
        let (request, _) = parse::<wire::ResourceMapBlob>(bytes)?;
        let (id, offset) = (request.resource_id.get(), request.offset.get());
        let mut state = self.lock();
        let resource = state
            .resource(id)
            .ok_or(response::ERR_INVALID_RESOURCE_ID)?;
        let size = resource.size;
        if !resource.mappable || state.is_shown(id) || !state.host.has_place(offset, size) {
            return Err(response::ERR_INVALID_PARAMETER);
        }
        Ok(Outcome::Later(Action::Map {
            resource: id,
            offset,
        }))
    }

    fn unmap_blob(&self, bytes: &[u8]) -> Result<Outcome, Failed> {
        let (request, _) = parse::<wire::ResourceCommand>(bytes)?;
        let id = request.resource_id.get();
        let mut state = self.lock();
        state
            .resource(id)
            .ok_or(response::ERR_INVALID_RESOURCE_ID)?;
        if !state.is_shown(id) {
            return Err(response::ERR_INVALID_PARAMETER);
        }
        Ok(Outcome::Later(Action::Unmap(id)))
    }

    fn assign_uuid(&self, bytes: &[u8]) -> Result<Outcome, Failed> {
        let (request, _) = parse::<wire::ResourceCommand>(bytes)?;
        let mut state = self.lock();
        let next = state.uuids + 1;
        let resource = state
            .resource(request.resource_id.get())
            .ok_or(response::ERR_INVALID_RESOURCE_ID)?;
        let uuid = *resource.uuid.get_or_insert_with(|| uuid(next));
        state.uuids = next;
        Ok(with_body(
            response::OK_RESOURCE_UUID,
            &wire::ResponseResourceUuid {
                uuid,
                ..Default::default()
            },
        ))
    }

    fn submit(&self, ticket: &Ticket, bytes: &[u8]) -> Result<Outcome, Failed> {
        let (request, rest) = parse::<wire::Submit3d>(bytes)?;
        let payload = rest
            .get(..request.size.get() as usize)
            .ok_or(response::ERR_INVALID_PARAMETER)?;
        let ctx = ticket.header.ctx_id.get();
        let mut state = self.lock();
        let context = state.context(ctx).ok_or(response::ERR_INVALID_CONTEXT_ID)?;
        if let Some(virgl) = self.virgl.as_ref().filter(|_| context.virgl) {
            let words = <[U32]>::ref_from_bytes(payload);
            let words = words.map_err(|_| response::ERR_INVALID_PARAMETER)?;
            let commands = words.iter().map(|word| word.get()).collect();
            return Ok(Outcome::Rendering(virgl.submit(ctx, commands)));
        }
        if context.capset == 0 && !payload.is_empty() {
            return Err(response::ERR_INVALID_PARAMETER);
        }
        let ops = compute::parse(payload).map_err(|error| {
            log::info!("job of context {ctx}: {error}");
            response::ERR_INVALID_PARAMETER
        })?;
        if context.lost {
            return Err(response::ERR_UNSPEC);
        }
        // A context gets no more than it leaves to all others.
        let (jobs, own) = (context.jobs, context.ops + ops.len() + 1);
        let free = MAX_QUEUED_OPS.checked_sub(state.queued_ops + ops.len() + 1);
        if jobs >= MAX_JOBS || free.is_none_or(|free| own > free) {
            return Err(response::ERR_OUT_OF_MEMORY);
        }
        let timeline = Timeline::of(&ticket.header);
        let job = self.job(&mut state, ticket, timeline, ops);
        Ok(match fence(&ticket.header) {
            Some(_) => Outcome::Job(timeline, job),
            None => Outcome::Unfenced(timeline, job),
        })
    }

    /// A job of an existing context. From here on it is live.
    fn job(&self, state: &mut State, ticket: &Ticket, timeline: Timeline, ops: Vec<Op>) -> Job {
        let ctx = ticket.header.ctx_id.get();
        state.jobs += 1;
        let id = state.jobs;
        let mut live = Live {
            ctx,
            reads: BTreeSet::new(),
            writes: BTreeSet::new(),
            ops: ops.len() + 1,
            abandoned: None,
        };
        let mut memory = BTreeMap::new();
        let mut cancel = Arc::default();
        if let Some(context) = state.contexts.get_mut(&ctx) {
            context.jobs += 1;
            context.ops += live.ops;
            cancel = context.cancel.clone();
            for access in ops.iter().flat_map(compute::accesses) {
                let name = access.resource;
                let resource = state.resources.get_mut(&name).filter(|r| !r.dying);
                let Some(resource) = resource.filter(|_| context.attached.contains(&name)) else {
                    continue;
                };
                let Some(segments) = resource.memory().cloned() else {
                    continue;
                };
                if access.write {
                    live.writes.insert(name);
                    if let Storage::Host { written, .. } = &mut resource.storage {
                        *written = true;
                    }
                }
                live.reads.insert(name);
                memory.insert(name, segments);
            }
        }
        self.log.write(|| Event::Job {
            job: id,
            req: ticket.req,
            ctx,
            ring: timeline.ring(),
            ops: ops.len() as u64,
            resources: live.reads.iter().copied().collect(),
        });
        state.queued_ops += live.ops;
        state.live.insert(id, live);
        Job {
            id,
            ctx,
            ticket: None,
            work: Work::Ops(ops),
            memory,
            cancel,
        }
    }

    /// Notes that the adversary answers a request before `jobs` are over.
    fn say_early(&self, ticket: &Ticket, jobs: Vec<u64>) {
        self.log.write(|| Event::Early {
            req: ticket.req,
            jobs,
        });
    }

    /// Carries out `action` as soon as no job is in the way, and answers, if that has not been done.
    fn act(&self, state: &mut State, ticket: Option<Ticket>, action: Action) {
        if state.is_blocked(action) {
            state.deferred.push_back((ticket, action));
        } else {
            let answer = self.complete(state, action);
            if let Some(ticket) = ticket {
                self.respond(state, ticket, answer);
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
                if state.contexts.remove(&ctx).is_some_and(|c| c.virgl) {
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

    fn map(&self, state: &mut State, id: u32, offset: u64) -> Result<(), Failed> {
        let state = &mut *state;
        if state.window != crate::state::Window::There {
            return Err(response::ERR_UNSPEC);
        }
        // An UNREF that came later waits behind this.
        let resource = state
            .resources
            .get_mut(&id)
            .ok_or(response::ERR_INVALID_RESOURCE_ID)?;
        let Storage::Host {
            blob,
            shown: shown @ None,
            written,
            ..
        } = &mut resource.storage
        else {
            return Err(response::ERR_INVALID_PARAMETER);
        };
        state
            .host
            .show(blob, offset, *written)
            .map_err(|error| match error {
                WindowError::Place => response::ERR_INVALID_PARAMETER,
                WindowError::Io(error) => {
                    log::error!("window: {error}");
                    response::ERR_OUT_OF_MEMORY
                }
            })?;
        *shown = Some(offset);
        // From now on the guest can write it.
        *written = true;
        self.log.write(|| Event::Map {
            resource: id,
            offset,
        });
        Ok(())
    }

    fn unmap(&self, state: &mut State, id: u32) -> Result<(), Failed> {
        let state = &mut *state;
        let Some(Resource {
            storage: Storage::Host { blob, shown, .. },
            ..
        }) = state.resources.get_mut(&id)
        else {
            return Err(response::ERR_INVALID_RESOURCE_ID);
        };
        let offset = shown.ok_or(response::ERR_INVALID_PARAMETER)?;
        state.host.hide(blob, offset, true).map_err(|error| {
            log::error!("window: {error}");
            response::ERR_OUT_OF_MEMORY
        })?;
        *shown = None;
        self.log.write(|| Event::Unmap { resource: id });
        Ok(())
    }
}

/// The answer for an image that cannot be, or cannot be copied.
fn image_failed(error: ImageError) -> Failed {
    log::info!("image: {error}");
    match error {
        ImageError::TooLarge => response::ERR_OUT_OF_MEMORY,
        _ => response::ERR_INVALID_PARAMETER,
    }
}

/// The bytes of `count` memory entries.
fn total(rest: &[u8], count: u32) -> Result<u64, Failed> {
    let entries = entries(rest, count)?;
    // Fewer than 2^32 of less than 2^32 bytes.
    Ok(entries.iter().map(|e| u64::from(e.length.get())).sum())
}

/// The list of `count` memory entries at the start of `rest`.
fn entries(rest: &[u8], count: u32) -> Result<&[wire::MemEntry], Failed> {
    let length = (count as usize)
        .checked_mul(size_of::<wire::MemEntry>())
        .ok_or(response::ERR_INVALID_PARAMETER)?;
    rest.get(..length)
        .and_then(|bytes| <[wire::MemEntry]>::ref_from_bytes(bytes).ok())
        .ok_or(response::ERR_INVALID_PARAMETER)
}

/// Checks the ring that a request names.
fn check_ring(header: &Header) -> Result<(), Failed> {
    match Timeline::of(header) {
        Timeline::Ring(0, _) => Err(response::ERR_INVALID_CONTEXT_ID),
        Timeline::Ring(_, ring) if u32::from(ring) >= compute::MAX_RINGS => {
            Err(response::ERR_INVALID_PARAMETER)
        }
        _ => Ok(()),
    }
}

/// The lowest and the highest address of memory entries.
fn bounds(entries: &[u8]) -> (u64, u64) {
    let entries = <[wire::MemEntry]>::ref_from_bytes(entries).unwrap_or_default();
    entries.iter().fold((u64::MAX, 0), |(low, high), entry| {
        let start = entry.addr.get();
        let end = start.saturating_add(u64::from(entry.length.get()));
        (low.min(start), high.max(end))
    })
}

/// The UUID of number `count`: version 4, but the same in every run.
fn uuid(count: u64) -> [u8; 16] {
    let mix = |seed: u64| {
        let mut value = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value ^ (value >> 31)
    };
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(U64::new(mix(2 * count)).as_bytes());
    bytes[8..].copy_from_slice(U64::new(mix(2 * count + 1)).as_bytes());
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    bytes
}
