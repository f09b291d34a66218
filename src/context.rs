// SPDX-License-Identifier: GPL-2.0

//! A context on the host: its capability set, its rings and their timelines, and the commands that
//! create it, attach resources to it and destroy it.
//!
//! A job that fails costs its context, no more: it is marked lost, further jobs of it are refused,
//! and its memory stays until the host has forgotten it. Commands, fences and address spaces keep
//! a reference, so that the id of a context is used again only when nothing of it is under way.

use crate::{
    gpu::Gpu,
    kapi::{
        dma::fence::allocate_timelines,
        ida::Id,
        task::current_comm, //
    },
    protocol::virtio_gpu::{
        blob_flag,
        capset,
        CtxCreate,
        CtxDestroy,
        Header,
        ResourceCommand,
        CONTEXT_INIT_CAPSET_ID_MASK,
        DEBUG_NAME_LEN,
        MAX_RINGS, //
    },
    transport::control::{
        commands::{
            self,
            CommandToHost, //
        },
        Command,
        JobContext,
        JobOf,
        Request,
        Response,
        RingQuota, //
    },
};
use kernel::{
    list::ListArc,
    prelude::*,
    sync::Arc, //
};

/// What userspace asks of a context.
pub(crate) struct ContextParams {
    /// Capability set, 0 for none.
    pub(crate) capset_id: u32,
    /// Rings, 0 for the device's timeline only.
    pub(crate) rings: u32,
    /// Mask of the rings whose fences become events.
    pub(crate) poll_rings: u64,
    /// Name for the host's logs; the rest is zero.
    pub(crate) debug_name: [u8; DEBUG_NAME_LEN],
    /// Bytes of the name.
    pub(crate) debug_name_len: u32,
}

impl ContextParams {
    /// A context with the name of the current process.
    pub(crate) fn implicit() -> Self {
        let mut this = Self {
            capset_id: 0,
            rings: 0,
            poll_rings: 0,
            debug_name: [0; DEBUG_NAME_LEN],
            debug_name_len: 0,
        };
        let name = current_comm();
        let len = name.iter().position(|&c| c == 0).unwrap_or(name.len());
        this.set_name(&name[..len]);
        this
    }

    /// Sets the name, cut to what fits.
    pub(crate) fn set_name(&mut self, name: &[u8]) {
        let len = name.len().min(DEBUG_NAME_LEN - 1);
        self.debug_name = [0; DEBUG_NAME_LEN];
        self.debug_name[..len].copy_from_slice(&name[..len]);
        self.debug_name_len = len as u32;
    }
}

/// A context on the host, which is destroyed when its file is closed.
pub(crate) struct Context {
    /// The device.
    pub(crate) gpu: Arc<Gpu>,
    /// No other context has it before the host has confirmed that this one is gone, and all of its
    /// jobs: these hold the context.
    id: Arc<Id>,
    timelines: u64,
    rings: u32,
    poll_rings: u64,
    /// Its capability set is AMD's.
    amd: bool,
    /// What its jobs have in common.
    jobs: Arc<JobContext>,
}

impl Context {
    /// Has the host make a context, with commands that take room of `quota`.
    ///
    /// # Errors
    ///
    /// [`EBUSY`] if too many jobs of contexts that are gone fill the ring, [`ENOSPC`] if there are
    /// no more ids, [`ENOMEM`], those of
    /// [`ControlQueue::credit`](crate::transport::control::ControlQueue::credit), that of the host.
    pub(crate) fn new(
        gpu: &Arc<Gpu>,
        quota: &Arc<RingQuota>,
        params: &ContextParams,
    ) -> Result<Self> {
        gpu.control.check_abandoned()?;
        let id = Arc::new(gpu.context_ids.allocate()?, GFP_KERNEL)?;

        let fixed = CtxCreate {
            hdr: Header::default(),
            nlen: params.debug_name_len.into(),
            context_init: (params.capset_id & CONTEXT_INIT_CAPSET_ID_MASK).into(),
            debug_name: params.debug_name,
        };
        let mut create = Request::<commands::CtxCreate>::new(id.get(), &fixed);
        create.about(&id);
        let create = create.build()?;
        let fixed = CtxDestroy::default();
        let mut destroy = Request::<commands::CtxDestroy>::new(id.get(), &fixed);
        destroy.about(&id);
        let destroy = destroy.build()?;
        let jobs = JobContext::new()?;

        let sent = create.clone_arc();
        let credit = gpu.control.credit(quota, [&create])?;
        gpu.control.add(create, credit)?;
        gpu.control.kick();
        let response = gpu.control.wait_killable(&sent);
        if let Err(e) = response.and_then(Response::to_result) {
            if !matches!(response, Ok(Response::Error(_))) {
                // The host has the context, or may be going to make it.
                gpu.control.teardown(destroy);
            }
            return Err(e);
        }
        // Nothing can fail after this: the host has the context.
        jobs.set_made(destroy);
        Ok(Self {
            gpu: gpu.clone(),
            id,
            timelines: allocate_timelines(1 + params.rings),
            rings: params.rings,
            poll_rings: params.poll_rings,
            amd: params.capset_id == capset::AMD && gpu.capsets.is_amd(),
            jobs,
        })
    }

    /// Has the host destroy the context and end its jobs, unless that was done before. The fences
    /// of those that it does not end are signalled when it has responded, or has not done so in
    /// time.
    pub(crate) fn destroy(&self) {
        self.gpu.control.close_jobs(&self.jobs);
    }

    /// The id on the wire.
    pub(crate) fn id(&self) -> u32 {
        self.id.get()
    }

    /// Gives the context up: its jobs keep others waiting. May be called where memory is reclaimed.
    pub(crate) fn lose(&self) {
        self.jobs.set_lost();
        self.gpu.control.cancel_jobs(&self.jobs);
    }

    /// What makes a command a job of the context. It must hold the context to its end.
    pub(crate) fn job(&self) -> JobOf {
        JobOf::new(self.id(), self.jobs.clone())
    }

    /// Has the context take only jobs for fault mode, or only others.
    ///
    /// # Errors
    ///
    /// [`EBUSY`] if it ever had any.
    pub(crate) fn set_fault_mode(&self, fault_mode: bool) -> Result {
        self.gpu.control.set_fault_mode(&self.jobs, fault_mode)
    }

    /// The number of its rings.
    pub(crate) fn rings(&self) -> u32 {
        self.rings
    }

    /// Fails if the context takes no more jobs.
    ///
    /// # Errors
    ///
    /// [`EIO`].
    pub(crate) fn check(&self) -> Result {
        if self.jobs.is_lost() {
            return Err(EIO);
        }
        Ok(())
    }

    /// The timeline of jobs without ring.
    pub(crate) fn own_timeline(&self) -> u64 {
        self.timelines
    }

    /// The timeline of ring `ring`, if the context has it.
    pub(crate) fn timeline(&self, ring: u32) -> Option<u64> {
        (ring < self.rings).then(|| self.timelines + 1 + u64::from(ring))
    }

    /// Whether the fences of ring `ring` become events.
    pub(crate) fn polls(&self, ring: u8) -> bool {
        u32::from(ring) < MAX_RINGS && self.poll_rings & 1 << ring != 0
    }

    /// The flags with which the host is told of user memory.
    ///
    /// To most hosts user memory is guest memory like any other. AMD's wants a flag that means
    /// something else to others, so only contexts of AMD's capability set send it.
    pub(crate) fn userptr_wire_flags(&self) -> u32 {
        if self.amd {
            blob_flag::USE_USERPTR
        } else {
            0
        }
    }

    /// A command that attaches a resource to the context, or detaches it.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    pub(crate) fn attachment(&self, resource: &Arc<Id>, attach: bool) -> Result<ListArc<Command>> {
        if attach {
            self.attachment_command::<commands::CtxAttachResource>(resource)
        } else {
            self.attachment_command::<commands::CtxDetachResource>(resource)
        }
    }

    fn attachment_command<C: CommandToHost<Fixed = ResourceCommand>>(
        &self,
        resource: &Arc<Id>,
    ) -> Result<ListArc<Command>> {
        let fixed = ResourceCommand {
            resource_id: resource.get().into(),
            ..Default::default()
        };
        let mut request = Request::<C>::new(self.id(), &fixed);
        request.about(resource);
        request.build()
    }

    /// Attaches the resource with this id; does not wait for the host.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`], and those of
    /// [`ControlQueue::credit`](crate::transport::control::ControlQueue::credit).
    pub(crate) fn attach(&self, quota: &Arc<RingQuota>, resource: &Arc<Id>) -> Result {
        let control = &self.gpu.control;
        let attach = self.attachment(resource, true)?;
        let credit = control.credit(quota, [&attach])?;
        control.send(attach, credit).map(drop)
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        self.destroy();
    }
}
