// SPDX-License-Identifier: GPL-2.0

//! An open file's context on the host, and its rings.

use crate::{
    gpu::{
        capsets,
        Gpu, //
    },
    kapi::{
        dma::fence::allocate_timelines,
        ida::Id,
        task::current_comm, //
    },
    protocol::virtio_gpu::{
        blob_flag,
        command,
        CtxCreate,
        CtxDestroy,
        Header,
        ResourceCommand,
        CONTEXT_INIT_CAPSET_ID_MASK,
        DEBUG_NAME_LEN, //
    },
    resource::{
        releases::Releases,
        Lifetime, //
    },
    transport::{
        control::{
            Answer,
            Command,
            Control,
            JobContext,
            JobOf,
            Request,
            Share, //
        },
        mirror::MirrorShare, //
    },
    userptr::mirrored::{
        NotifierLock,
        Outbox, //
    },
};
use kernel::{
    list::ListArc,
    new_mutex,
    prelude::*,
    rbtree::{
        RBTree,
        RBTreeNodeReservation, //
    },
    sync::{
        Arc,
        Mutex, //
    },
};

/// Most rings of a context.
pub(crate) const MAX_RINGS: u32 = 64;

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
    gpu: Arc<Gpu>,
    /// No other context has it before the host has answered that this one is gone, and all of its
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
    fn new(gpu: &Arc<Gpu>, share: &Arc<Share>, params: &ContextParams) -> Result<Self> {
        gpu.control.check_abandoned()?;
        let id = Arc::new(gpu.context_ids.allocate()?, GFP_KERNEL)?;

        let fixed = CtxCreate {
            hdr: Header::default(),
            nlen: params.debug_name_len.into(),
            context_init: (params.capset_id & CONTEXT_INIT_CAPSET_ID_MASK).into(),
            debug_name: params.debug_name,
        };
        let mut create = Request::new(Header::new(command::CTX_CREATE, id.get()), &fixed);
        create.id = Some(id.clone());
        let create = create.build()?;
        let fixed = CtxDestroy::default();
        let mut destroy = Request::new(Header::new(command::CTX_DESTROY, id.get()), &fixed);
        destroy.id = Some(id.clone());
        let destroy = destroy.build()?;
        let jobs = JobContext::new()?;

        let sent = create.clone_arc();
        let credit = gpu.control.credit(share, [&create])?;
        gpu.control.add(create, credit)?;
        gpu.control.kick();
        let answer = gpu.control.wait_killable(&sent);
        if let Err(e) = answer.and_then(Answer::to_result) {
            if !matches!(answer, Ok(Answer::Error(_))) {
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
            amd: params.capset_id == capsets::AMD_ID && gpu.capsets.is_amd(),
            jobs,
        })
    }

    /// Has the host destroy the context and end its jobs, unless that was done before. The fences of
    /// those that it does not end are signalled when it has answered, or has not done so in time.
    fn destroy(&self) {
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
        let kind = if attach {
            command::CTX_ATTACH_RESOURCE
        } else {
            command::CTX_DETACH_RESOURCE
        };
        let fixed = ResourceCommand {
            resource_id: resource.get().into(),
            ..Default::default()
        };
        let mut request = Request::new(Header::new(kind, self.id()), &fixed);
        request.id = Some(resource.clone());
        request.build()
    }

    /// Attaches the resource with this id; does not wait for the host.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`], and those of [`Control::credit`](crate::transport::control::Control::credit).
    fn attach(&self, share: &Arc<Share>, resource: &Arc<Id>) -> Result {
        let control = &self.gpu.control;
        let attach = self.attachment(resource, true)?;
        let credit = control.credit(share, [&attach])?;
        control.send(attach, credit).map(drop)
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        self.destroy();
    }
}

/// A resource to which a file has handles.
struct Opened {
    id: Arc<Id>,
    /// How many; the context has the resource from the first to the last.
    handles: usize,
}

/// The context of a file, and what is to be attached to it.
struct Attached {
    context: Option<Arc<Context>>,
    /// By resource id: the resources to which there are handles, but for user memory, which its
    /// registration attaches.
    opened: RBTree<u32, Opened>,
    /// The last command that detaches one, as long as it may wait for descriptors. Such commands are
    /// sent in their order.
    detach: Option<Arc<Command>>,
}

impl Attached {
    /// Attaches a resource to the context, if there is one.
    ///
    /// # Errors
    ///
    /// Those of [`Context::attach`], and of [`Control::add_behind_teardown`].
    fn attach(&mut self, share: &Arc<Share>, resource: &Lifetime) -> Result {
        let Some(context) = self.context.clone() else {
            return Ok(());
        };
        let id = resource.shared_id();
        let sent = |detach: &mut Arc<Command>| Control::is_sent(detach);
        drop(self.detach.take_if(sent));
        if self.detach.is_none() || !resource.was_detached() {
            return context.attach(share, id);
        }
        // One of those that wait may be for this resource.
        let control = &context.gpu.control;
        let attach = context.attachment(id, true)?;
        let credit = control.credit(share, [&attach])?;
        let sent = control.add_behind_teardown(attach, credit);
        if matches!(sent, Err(e) if e == EBUSY || e == ERESTARTSYS) {
            // It is sent nevertheless, and nobody gets the handle that it was for.
            self.detach(resource);
        }
        sent
    }

    /// Detaches a resource from the context, if there is one.
    fn detach(&mut self, resource: &Lifetime) {
        let Some(context) = &self.context else {
            return;
        };
        // Without memory for the command the host detaches the resource when it, or the context, goes.
        if let Ok(detach) = context.attachment(resource.shared_id(), false) {
            resource.set_detached();
            self.detach = Some(detach.clone_arc());
            context.gpu.control.teardown(detach);
        }
    }
}

/// What the driver keeps of an open file.
#[pin_data]
pub(crate) struct FileData {
    /// The device.
    pub(crate) gpu: Arc<Gpu>,
    /// The file's part of the control queue.
    pub(crate) share: Arc<Share>,
    /// Its part of the mirror queue.
    pub(crate) mirror_share: Arc<MirrorShare>,
    /// The lock of its memory that moves.
    notifier_lock: Arc<NotifierLock>,
    /// Its user memory that a worker releases.
    releases: Arc<Releases>,
    /// What its reader is to be told of that memory.
    outbox: Arc<Outbox>,
    /// Protects the making of the context, and the order in which resources are attached to it and
    /// detached; held while the host makes it, and while there is no room in the ring.
    #[pin]
    attached: Mutex<Attached>,
}

impl FileData {
    /// For a newly opened file.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    pub(crate) fn new(gpu: &Arc<Gpu>) -> Result<Pin<KBox<Self>>> {
        let share = Share::new()?;
        let mirror_share = MirrorShare::new(&gpu.control)?;
        let notifier_lock = NotifierLock::new()?;
        let releases = Releases::new()?;
        let outbox = Outbox::new()?;
        KBox::pin_init(
            try_pin_init!(Self {
                gpu: gpu.clone(),
                share,
                mirror_share,
                notifier_lock,
                releases,
                outbox,
                attached <- new_mutex!(
                    Attached {
                        context: None,
                        opened: RBTree::new(),
                        detach: None,
                    },
                    "FileData::attached"
                ),
            }),
            GFP_KERNEL,
        )
    }

    /// Makes the context that `params` describe, and attaches to it what the file has handles to.
    ///
    /// # Errors
    ///
    /// [`EEXIST`] if there is one already; that of the host.
    pub(crate) fn init_context(&self, params: &ContextParams) -> Result<Arc<Context>> {
        let mut attached = self.attached.lock();
        if attached.context.is_some() {
            return Err(EEXIST);
        }
        let new = Arc::new(Context::new(&self.gpu, &self.share, params)?, GFP_KERNEL)?;
        for opened in attached.opened.values() {
            new.attach(&self.share, &opened.id)?;
        }
        attached.context = Some(new.clone());
        Ok(new)
    }

    /// A handle to a resource is being made: attaches it to the context, or, if there is none yet,
    /// has that done when there is one.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`], those of [`Control::credit`](crate::transport::control::Control::credit).
    pub(crate) fn open_resource(&self, resource: &Lifetime) -> Result {
        if !self.gpu.features.virgl {
            return Ok(());
        }
        if !self.gpu.features.context_init {
            // There is but one kind of context, which nobody is going to ask for.
            self.ensure_context()?;
        }
        let node = RBTreeNodeReservation::new(GFP_KERNEL)?;
        let mut guard = self.attached.lock();
        let attached = &mut *guard;
        if let Some(opened) = attached.opened.get_mut(&resource.id()) {
            opened.handles += 1;
            return Ok(());
        }
        attached.attach(&self.share, resource)?;
        let opened = Opened {
            id: resource.shared_id().clone(),
            handles: 1,
        };
        attached
            .opened
            .insert(node.into_node(resource.id(), opened));
        Ok(())
    }

    /// A handle to a resource is being closed: detaches it if this was the last one.
    pub(crate) fn close_resource(&self, resource: &Lifetime) {
        let mut guard = self.attached.lock();
        let attached = &mut *guard;
        let gone = match attached.opened.get_mut(&resource.id()) {
            Some(opened) if opened.handles > 1 => {
                opened.handles -= 1;
                return;
            }
            _ => attached.opened.remove_node(&resource.id()),
        };
        attached.detach(resource);
        drop(guard);
        drop(gone);
    }

    /// The context; makes one without capability set if there is none and the device has
    /// contexts.
    ///
    /// # Errors
    ///
    /// That of the host.
    pub(crate) fn ensure_context(&self) -> Result<Option<Arc<Context>>> {
        if !self.gpu.features.virgl {
            return Ok(None);
        }
        if let Some(context) = self.context() {
            return Ok(Some(context));
        }
        match self.init_context(&ContextParams::implicit()) {
            // Another thread was faster.
            Err(e) if e == EEXIST => Ok(self.context()),
            other => other.map(Some),
        }
    }

    /// Ends the context, and with it its jobs; and the file's events.
    ///
    /// Done before the file's handles are closed, so that releasing what these stand for does not
    /// have to wait for jobs; and not left to the last reference, which may be a job's.
    pub(crate) fn close(&self) {
        self.outbox.close();
        let context = self.attached.lock().context.take();
        if let Some(context) = context {
            context.destroy();
        }
    }

    /// The lock of the file's memory that moves.
    pub(crate) fn notifier_lock(&self) -> &Arc<NotifierLock> {
        &self.notifier_lock
    }

    /// The file's user memory that a worker releases.
    pub(crate) fn releases(&self) -> &Arc<Releases> {
        &self.releases
    }

    /// What is to be told of the file's memory that moves.
    pub(crate) fn outbox(&self) -> &Arc<Outbox> {
        &self.outbox
    }

    /// The context, if there is one.
    pub(crate) fn context(&self) -> Option<Arc<Context>> {
        self.attached.lock().context.clone()
    }
}
