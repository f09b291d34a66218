// SPDX-License-Identifier: GPL-2.0

//! What the driver keeps of an open file: its context, its quotas of the rings, and what releases
//! its user memory and sends its events.
//!
//! A file is what clients are kept apart by: whatever is limited is limited for each file, and what
//! a file waits for no other file waits for. Its threads may open, use and close buffers at the
//! same time; a buffer is attached to the context by the first that uses it, and detached when its
//! last handle is closed and no job lists it any more.

use crate::{
    context::{
        Context,
        ContextParams, //
    },
    gpu::Gpu,
    kapi::ida::Id,
    mirror::{
        EventSender,
        NotifierLock, //
    },
    resource::{
        releases::Releases,
        HostResource, //
    },
    svm::{
        self,
        Svm, //
    },
    transport::{
        control::{
            Command,
            ControlQueue,
            RingQuota, //
        },
        mirror::MirrorQuota, //
    },
};
use kernel::{
    new_mutex,
    prelude::*,
    rbtree::{
        RBTree,
        RBTreeNodeReservation, //
    },
    sync::{
        atomic::{
            ordering::Relaxed,
            Atomic, //
        },
        Arc,
        Mutex,
        SetOnce, //
    },
};

/// A resource to which a file has handles.
struct Opened {
    id: Arc<Id>,
    /// How many; the context has the resource from the first to the last.
    handles: usize,
}

/// The context of a file, and what is to be attached to it.
struct Attached {
    context: Option<Arc<Context>>,
    /// By resource id: the resources to which there are handles, and those that jobs keep attached.
    opened: RBTree<u32, Opened>,
    /// The last command that detaches one, as long as it may wait for descriptors. Such commands
    /// are sent in their order.
    detach: Option<Arc<Command>>,
}

impl Attached {
    /// Attaches a resource to the context, if there is one.
    ///
    /// # Errors
    ///
    /// Those of [`Context::attach`], and of [`ControlQueue::add_behind_teardown`].
    fn attach(&mut self, quota: &Arc<RingQuota>, resource: &HostResource) -> Result {
        let Some(context) = self.context.clone() else {
            return Ok(());
        };
        let id = resource.shared_id();
        let sent = |detach: &mut Arc<Command>| ControlQueue::is_sent(detach);
        drop(self.detach.take_if(sent));
        if self.detach.is_none() || !resource.was_detached() {
            return context.attach(quota, id);
        }
        // One of those that wait may be for this resource.
        let control = &context.gpu.control;
        let attach = context.attachment(id, true)?;
        let credit = control.credit(quota, [&attach])?;
        let sent = control.add_behind_teardown(attach, credit);
        if matches!(sent, Err(e) if e == EBUSY || e == ERESTARTSYS) {
            // It is sent nevertheless, for a handle that the program does not get.
            self.detach(resource);
        }
        sent
    }

    /// Detaches a resource from the context, if there is one.
    fn detach(&mut self, resource: &HostResource) {
        let Some(context) = &self.context else {
            return;
        };
        // Without memory for the command the host detaches the resource when it, or the context,
        // goes.
        if let Ok(detach) = context.attachment(resource.shared_id(), false) {
            resource.set_detached();
            self.detach = Some(detach.clone_arc());
            context.gpu.control.teardown(detach);
        }
    }
}

/// The context of a file, as jobs have it that keep resources attached to it.
#[pin_data]
pub(crate) struct Attachments {
    /// Protects the making of the context, and the order in which resources are attached to it and
    /// detached; held while the host makes it, and while there is no room in the ring.
    #[pin]
    attached: Mutex<Attached>,
}

impl Attachments {
    /// Keeps a resource attached to which the file has a handle, until [`Attachments::close`].
    /// Returns whether that is to be called: another thread may have closed the handle meanwhile.
    pub(crate) fn keep(&self, resource: &HostResource) -> bool {
        match self.attached.lock().opened.get_mut(&resource.id()) {
            Some(opened) => {
                opened.handles += 1;
                true
            }
            None => false,
        }
    }

    /// A handle to a resource is being closed, or it need not be kept any more: detaches it if this
    /// was the last time.
    pub(crate) fn close(&self, resource: &HostResource) {
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
}

/// The number of the file that is opened next. There are more than will ever be opened.
static NEXT_FILE: Atomic<u64> = Atomic::new(1);

/// What the driver keeps of an open file.
#[pin_data]
pub(crate) struct FileData {
    /// No other file of any device has it, before or after.
    number: u64,
    /// The device.
    pub(crate) gpu: Arc<Gpu>,
    /// The file's part of the control queue.
    pub(crate) quota: Arc<RingQuota>,
    /// Its part of the mirror queue.
    pub(crate) mirror_quota: Arc<MirrorQuota>,
    /// The lock of its mirrored memory.
    notifier_lock: Arc<NotifierLock>,
    /// Its user memory that a worker releases.
    releases: Arc<Releases>,
    /// Sends the events of that memory.
    event_sender: Arc<EventSender>,
    /// The address space of the process, if the context is in fault mode.
    svm: SetOnce<Arc<Svm>>,
    /// The context, and what is attached to it.
    attachments: Arc<Attachments>,
}

impl FileData {
    /// For a newly opened file.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    pub(crate) fn new(gpu: &Arc<Gpu>) -> Result<Pin<KBox<Self>>> {
        let quota = RingQuota::new()?;
        let mirror_quota = MirrorQuota::new(&gpu.transport)?;
        let notifier_lock = NotifierLock::new()?;
        let releases = HostResource::releases()?;
        let event_sender = EventSender::new()?;
        let attached = Attached {
            context: None,
            opened: RBTree::new(),
            detach: None,
        };
        let attachments = Arc::pin_init(
            pin_init!(Attachments {
                attached <- new_mutex!(attached, "FileData::attached"),
            }),
            GFP_KERNEL,
        )?;
        KBox::pin_init(
            try_pin_init!(Self {
                number: NEXT_FILE.fetch_add(1, Relaxed),
                gpu: gpu.clone(),
                quota,
                mirror_quota,
                notifier_lock,
                releases,
                event_sender,
                svm: SetOnce::new(),
                attachments,
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
        let mut attached = self.attachments.attached.lock();
        if attached.context.is_some() {
            return Err(EEXIST);
        }
        let new = Arc::new(Context::new(&self.gpu, &self.quota, params)?, GFP_KERNEL)?;
        for opened in attached.opened.values() {
            new.attach(&self.quota, &opened.id)?;
        }
        attached.context = Some(new.clone());
        Ok(new)
    }

    /// A handle to a resource is being made: attaches it to the context, or, if there is none yet,
    /// has that done when there is one.
    ///
    /// # Errors
    ///
    /// [`EOPNOTSUPP`] if a job in fault mode of another file has listed the resource; [`ENOMEM`],
    /// those of [`ControlQueue::credit`](crate::transport::control::ControlQueue::credit).
    pub(crate) fn open_resource(&self, resource: &HostResource) -> Result {
        if !self.gpu.features.virgl {
            return Ok(());
        }
        if !self.gpu.features.context_init {
            // There is but one kind of context, and so programs do not ask for it.
            self.ensure_context()?;
        }
        let shared = resource.begin_open(self.number)?;
        self.count_handle(resource)?;
        if let Some(shared) = shared {
            shared.succeeds();
        }
        Ok(())
    }

    /// Counts a handle to a resource, and attaches it to the context with the first one.
    fn count_handle(&self, resource: &HostResource) -> Result {
        let node = RBTreeNodeReservation::new(GFP_KERNEL)?;
        let mut guard = self.attachments.attached.lock();
        let attached = &mut *guard;
        if let Some(opened) = attached.opened.get_mut(&resource.id()) {
            opened.handles += 1;
            return Ok(());
        }
        attached.attach(&self.quota, resource)?;
        let opened = Opened {
            id: resource.shared_id().clone(),
            handles: 1,
        };
        attached
            .opened
            .insert(node.into_node(resource.id(), opened));
        Ok(())
    }

    /// The one handle to user memory is being made, which the registration has attached to the
    /// context.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    pub(crate) fn open_userptr(&self, resource: &HostResource) -> Result {
        if !self.gpu.features.virgl {
            return Ok(());
        }
        let node = RBTreeNodeReservation::new(GFP_KERNEL)?;
        let opened = Opened {
            id: resource.shared_id().clone(),
            handles: 1,
        };
        let node = node.into_node(resource.id(), opened);
        self.attachments.attached.lock().opened.insert(node);
        Ok(())
    }

    /// A handle to a resource is being closed: detaches it if this was the last one.
    pub(crate) fn close_resource(&self, resource: &HostResource) {
        self.attachments.close(resource);
    }

    /// Waits until nothing is left of jobs that are over.
    ///
    /// Waits for workers, and no longer than for a response.
    pub(crate) fn settle(&self) {
        self.gpu.control.settle();
        if let Some(svm) = self.svm.as_ref() {
            svm.settle();
        }
    }

    /// The context, and what is attached to it.
    pub(crate) fn attachments(&self) -> &Arc<Attachments> {
        &self.attachments
    }

    /// Puts the context into fault mode, for the address space of the current process.
    ///
    /// # Errors
    ///
    /// - [`EINVAL`] if there is no context, or it has no rings;
    /// - [`EEXIST`] if it is in fault mode already;
    /// - [`EBUSY`] if the file has mirrored memory;
    /// - those of [`Svm::enable`].
    pub(crate) fn enable_svm(&self, params: svm::Params) -> Result<&Arc<Svm>> {
        let attached = self.attachments.attached.lock();
        if self.svm.as_ref().is_some() {
            return Err(EEXIST);
        }
        let context = attached.context.clone().ok_or(EINVAL)?;
        if context.rings() == 0 {
            return Err(EINVAL);
        }
        if self.notifier_lock.has_ranges() {
            return Err(EBUSY);
        }
        let lock = &self.notifier_lock;
        let svm = Svm::enable(&self.gpu, context, lock, &self.mirror_quota, params)?;
        // It was empty, under the lock.
        self.svm.populate(svm);
        self.svm.as_ref().ok_or(EINVAL)
    }

    /// The address space of the process, if the context is in fault mode.
    pub(crate) fn svm(&self) -> Option<&Arc<Svm>> {
        self.svm.as_ref()
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
        self.event_sender.close();
        let context = self.attachments.attached.lock().context.take();
        if let Some(context) = context {
            context.destroy();
        }
        if let Some(svm) = self.svm.as_ref() {
            svm.close();
        }
    }

    /// The lock of the file's mirrored memory.
    pub(crate) fn notifier_lock(&self) -> &Arc<NotifierLock> {
        &self.notifier_lock
    }

    /// The file's user memory that a worker releases.
    pub(crate) fn releases(&self) -> &Arc<Releases> {
        &self.releases
    }

    /// What sends the events of the file's mirrored memory.
    pub(crate) fn event_sender(&self) -> &Arc<EventSender> {
        &self.event_sender
    }

    /// The context, if there is one.
    pub(crate) fn context(&self) -> Option<Arc<Context>> {
        self.attachments.attached.lock().context.clone()
    }
}
