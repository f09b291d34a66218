// SPDX-License-Identifier: GPL-2.0

//! From the creation of a resource on the host to the release of its memory.
//!
//! Memory that the host may know is released only after the host has responded to RESOURCE_UNREF,
//! or the device has been reset. The command for that is made together with the resource, so that
//! releasing needs no memory, and carries the object itself: whatever becomes of the command, it
//! finishes where it is safe to drop the object.

use super::{
    releases::{
        PendingUnref,
        Releases, //
    },
    userptr::Userptr,
    uses::{
        Begun,
        Use,
        Uses, //
    },
    Kind,
    Resource,
    PRIME_WAIT_MS, //
};
use crate::{
    gpu::Gpu,
    kapi::{
        drm::gem::Owned,
        ida::Id,
        task::current_is_worker, //
    },
    mirror::Space,
    protocol::virtio_gpu::{response, ResourceCommand},
    transport::control::{
        commands,
        Command,
        Completion,
        ControlQueue,
        Expect,
        Request,
        Response, //
        Sent,
    },
};
use kernel::{
    list::{
        List,
        ListArc, //
    },
    new_spinlock,
    prelude::*,
    sync::{
        atomic::{
            ordering::Relaxed,
            Atomic,
            AtomicFlag, //
        },
        Arc,
        SpinLock, //
    },
};

/// The end of RESOURCE_UNREF.
impl Completion for PendingUnref {
    fn complete(self: Arc<Self>, response: &Response) {
        let mut state = self.state.lock();
        state.ended = Some(*response);
        let aborted = *response == Response::Aborted;
        if state.waiter && !aborted {
            return;
        }
        let object = state.object.as_ref();
        let userptr = object.and_then(|object| object.userptr());
        let releases = userptr.map(|userptr| userptr.releases().clone());
        drop(state);
        match releases {
            // A reset has unpinned and unmapped it, or does.
            _ if aborted => self.empty(),
            Some(releases) => releases.drop_later(self),
            None => self.empty_later(),
        }
    }
}

enum Creation {
    /// The host has never heard of the resource.
    NotSent,
    /// This command was sent.
    Sent(Arc<Command>),
    /// The host has created it.
    Confirmed,
}

/// A resource as the host has it, from its creation to RESOURCE_UNREF.
pub(crate) struct HostResource {
    gpu: Arc<Gpu>,
    id: Arc<Id>,
    pending: Arc<PendingUnref>,
    /// A context was told that it does not have the resource any more.
    detached: AtomicFlag,
    /// What it is used for.
    uses: Uses,
    /// The number of the file that had the first handle, 0 if there was none.
    opener: Atomic<u64>,
    inner: Pin<KBox<SpinLock<Inner>>>,
}

struct Inner {
    creation: Creation,
    /// The command that gives the host the guest memory, if it is not the one that creates the
    /// resource, and as long as it may have failed.
    backing: Option<Arc<Command>>,
    /// The command that asks for a UUID, the last that was sent.
    uuid: Option<Sent<commands::ResourceAssignUuid>>,
    unref: Option<ListArc<Command>>,
}

impl HostResource {
    /// Fails if a use of the resource cannot begin.
    ///
    /// # Errors
    ///
    /// [`EOPNOTSUPP`] if there is, or was, one of the other kind.
    pub(crate) fn check_use(&self, how: Use) -> Result {
        self.uses.check(how)
    }

    /// Begins a use of the resource, which fails unless [`Begun::succeeds`] is called.
    ///
    /// # Errors
    ///
    /// As [`HostResource::check_use`].
    pub(crate) fn begin_use(&self, how: Use) -> Result<Begun<'_>> {
        self.uses.begin(how)
    }

    /// A handle is being made for the file with this number, which is not 0. If it is not the file
    /// that had the first one, the resource is shared, provided that what is returned succeeds.
    ///
    /// # Errors
    ///
    /// [`EOPNOTSUPP`] if a job in fault mode has listed the resource.
    pub(crate) fn begin_open(&self, file: u64) -> Result<Option<Begun<'_>>> {
        match self.opener.cmpxchg(0, file, Relaxed) {
            Ok(_) => Ok(None),
            Err(first) if first == file => Ok(None),
            Err(_) => self.begin_use(Use::Shared).map(Some),
        }
    }

    /// A resource that the host does not know yet.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`], [`ENOSPC`] if there are no more ids.
    pub(crate) fn new(gpu: &Arc<Gpu>) -> Result<Self> {
        let id = Arc::new(gpu.resource_ids.allocate()?, GFP_KERNEL)?;
        let pending = PendingUnref::new()?;
        let fixed = ResourceCommand {
            resource_id: id.get().into(),
            ..Default::default()
        };
        let mut unref = Request::<commands::ResourceUnref>::new(0, &fixed);
        unref.then(pending.clone());
        unref.about(&id);
        let unref = unref.build()?;
        Ok(Self {
            gpu: gpu.clone(),
            id,
            pending,
            detached: AtomicFlag::new(false),
            uses: Uses::new(),
            opener: Atomic::new(0),
            inner: KBox::pin_init(
                new_spinlock!(
                    Inner {
                        creation: Creation::NotSent,
                        backing: None,
                        uuid: None,
                        unref: Some(unref),
                    },
                    "HostResource::inner"
                ),
                GFP_KERNEL,
            )?,
        })
    }

    /// The id on the wire.
    pub(crate) fn id(&self) -> u32 {
        self.id.get()
    }

    /// The id on the wire, which is not used again as long as this is held.
    pub(crate) fn shared_id(&self) -> &Arc<Id> {
        &self.id
    }

    /// The device.
    pub(crate) fn gpu(&self) -> &Arc<Gpu> {
        &self.gpu
    }

    /// The command that creates the resource is about to be sent.
    pub(crate) fn set_sent(&self, create: Arc<Command>) {
        self.inner.lock().creation = Creation::Sent(create);
    }

    /// The command that gives the host the guest memory is about to be sent.
    pub(crate) fn set_backing(&self, backing: Arc<Command>) {
        self.inner.lock().backing = Some(backing);
    }

    /// The command was not sent after all.
    pub(crate) fn set_not_sent(&self) {
        let create = core::mem::replace(&mut self.inner.lock().creation, Creation::NotSent);
        drop(create);
    }

    /// The resource is about to be detached from a context.
    pub(crate) fn set_detached(&self) {
        self.detached.store(true, Relaxed);
    }

    /// Whether the resource was detached from any context.
    pub(crate) fn was_detached(&self) -> bool {
        self.detached.load(Relaxed)
    }

    /// How the creation ended, if the host has responded; [`Response::Aborted`] if it was never
    /// sent.
    pub(crate) fn creation(&self) -> Option<Response> {
        let mut inner = self.inner.lock();
        match &inner.creation {
            Creation::NotSent => Some(Response::Aborted),
            Creation::Confirmed => Some(Response::Ok(response::OK_NODATA)),
            Creation::Sent(create) => {
                let response = ControlQueue::ended(create);
                if matches!(response, Some(Response::Ok(_))) {
                    // The command is not needed any more.
                    let create = core::mem::replace(&mut inner.creation, Creation::Confirmed);
                    drop(inner);
                    drop(create);
                }
                response
            }
        }
    }

    /// The command that has failed to create the resource, if one that gives the host memory for it
    /// has been sent, and has not failed.
    fn failed_creation(&self) -> Option<Arc<Command>> {
        let inner = self.inner.lock();
        let Creation::Sent(create) = &inner.creation else {
            return None;
        };
        match ControlQueue::ended(inner.backing.as_ref()?) {
            None | Some(Response::Ok(_) | Response::Invalid) => Some(create.clone()),
            Some(Response::Error(_) | Response::Aborted) => None,
        }
    }

    /// How handing over the guest memory ended, if the host has responded; success if that was part
    /// of the creation.
    fn backing(&self) -> Option<Response> {
        let mut inner = self.inner.lock();
        let Some(backing) = &inner.backing else {
            return Some(Response::Ok(response::OK_NODATA));
        };
        let response = ControlQueue::ended(backing);
        if matches!(response, Some(Response::Ok(_))) {
            let backing = inner.backing.take();
            drop(inner);
            drop(backing);
        }
        response
    }

    /// Whether the host has the resource and its memory, if it has responded; otherwise why not.
    pub(crate) fn outcome(&self) -> Option<Response> {
        match self.creation()? {
            Response::Ok(_) => self.backing(),
            other => Some(other),
        }
    }

    /// Fails if the host is known not to have the resource or its memory.
    ///
    /// # Errors
    ///
    /// That of the host.
    pub(crate) fn check(&self) -> Result {
        match self.outcome() {
            Some(response) => response.to_result().map(drop),
            None => Ok(()),
        }
    }

    /// Waits until the host has the resource and its memory, killably and no longer than the time
    /// limit.
    ///
    /// # Errors
    ///
    /// That of the host, [`ENODEV`], [`EBUSY`] if it has not responded, [`ERESTARTSYS`] on a fatal
    /// signal.
    pub(crate) fn wait(&self) -> Result {
        let pending = {
            let inner = self.inner.lock();
            let create = match &inner.creation {
                Creation::Sent(create) => Some(create.clone()),
                _ => None,
            };
            [create, inner.backing.clone()]
        };
        for command in pending.iter().flatten() {
            self.gpu.control.wait_killable(command)?.to_result()?;
        }
        self.check()
    }

    /// The command that asks for a UUID, if one was sent and has not failed.
    fn uuid_command(&self) -> Option<Sent<commands::ResourceAssignUuid>> {
        let inner = self.inner.lock();
        let assign = inner.uuid.as_ref()?;
        Self::gives_uuid(assign).then(|| assign.clone())
    }

    /// Whether a command that asks for a UUID has not failed.
    fn gives_uuid(assign: &Command) -> bool {
        matches!(ControlQueue::ended(assign), None | Some(Response::Ok(_)))
    }

    /// Asks the host for a UUID; does not wait for it. Waits for room in the ring for `ms`
    /// milliseconds at most.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`], and those of [`ControlQueue::credit_within`].
    fn ask_for_uuid(&self, ms: u32) -> Result<Sent<commands::ResourceAssignUuid>> {
        let fixed = ResourceCommand {
            resource_id: self.id.get().into(),
            ..Default::default()
        };
        let mut assign = Request::<commands::ResourceAssignUuid>::new(0, &fixed);
        assign.about(&self.id);
        let (assign, sent) = assign.build_to_read()?;
        let control = &self.gpu.control;
        let credit = control.credit_within(&self.gpu.quota, [&assign], ms)?;
        control.add(assign, credit)?;
        control.kick();
        let mut inner = self.inner.lock();
        let other = inner.uuid.take();
        // Of two that were asked for at the same time either will do, as the host has one, but not
        // one that has failed.
        let (uuid, rest) = match other {
            Some(other) if Self::gives_uuid(&other) => (other, sent),
            other => (sent.clone(), other.unwrap_or(sent)),
        };
        inner.uuid = Some(uuid.clone());
        drop(inner);
        drop(rest);
        Ok(uuid)
    }

    /// Asks the host for a UUID, unless that was done and has not failed; does not wait for it.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`], and those of [`ControlQueue::credit_within`].
    pub(super) fn assign_uuid(&self) -> Result {
        if self.uuid_command().is_none() {
            self.ask_for_uuid(PRIME_WAIT_MS)?;
        }
        Ok(())
    }

    /// The UUID that the host has given the resource, which is asked again if it has failed before.
    ///
    /// Waits for the host, killably. The caller may be any driver that shares the buffer: nothing
    /// of this driver waits for it.
    ///
    /// # Errors
    ///
    /// That of the host; [`EBUSY`] if it has not responded, in time or for want of room in the
    /// ring; [`ERESTARTSYS`] on a fatal signal; [`ENOMEM`], [`ENODEV`].
    pub(super) fn uuid(&self) -> Result<[u8; 16]> {
        let control = &self.gpu.control;
        let assign = match self.uuid_command() {
            Some(assign) => assign,
            None => self.ask_for_uuid(self.gpu.transport.response_timeout_ms())?,
        };
        control.wait_killable(&assign)?.to_result()?;
        Ok(assign.response().uuid)
    }

    /// Releases an object without references.
    ///
    /// For user memory this waits until the pages are free again, so that whoever closes the
    /// handle may rely on it. A worker, which may be the one that is waited for, hands it over to
    /// the file's [`Releases`].
    /// Other objects can be released with `mmap_lock` held, so they are released later.
    pub(crate) fn release(object: Owned<Resource>) {
        let Some(userptr) = object.userptr() else {
            return Self::unreference(object, false);
        };
        if current_is_worker() {
            let releases = userptr.releases().clone();
            let pending = object.host.pending.clone();
            pending.state.lock().object = Some(object);
            return releases.end(pending);
        }
        // The device's access ends before the host forgets the resource.
        let ended = userptr.space().map_or(Ok(()), Space::destroy);
        userptr.end(ended);
        Self::unreference(object, true);
    }

    /// What a file has to release that a worker releases: nothing as yet.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    pub(crate) fn releases() -> Result<Arc<Releases>> {
        Releases::new(Self::end_all)
    }

    /// Ends and releases the objects in `list`, which are user memory. Waits for the device and for
    /// notifier callbacks, but not for UNREF.
    fn end_all(mut list: List<PendingUnref>) {
        /// Whose spaces are ended at a time.
        const BATCH: usize = 16;

        while !list.is_empty() {
            let mut objects: [Option<(Arc<PendingUnref>, Owned<Resource>)>; BATCH] =
                [const { None }; BATCH];
            for place in &mut objects {
                let Some(pending) = list.pop_front() else {
                    break;
                };
                let pending = pending.into_arc();
                let object = pending.state.lock().object.take();
                *place = object.map(|object| (pending, object));
            }
            let userptrs = || objects.iter().flatten().filter_map(|(_, o)| o.userptr());
            let ended = Space::destroy_all(userptrs().filter_map(Userptr::space));
            for userptr in userptrs() {
                userptr.end(ended);
            }
            for (_, object) in objects.into_iter().flatten() {
                Self::unreference(object, false);
            }
        }
    }

    /// Has the host forget an object that its space, if there is one, does not show any more.
    /// With `waits`, waits for the response and drops the object.
    fn unreference(object: Owned<Resource>, waits: bool) {
        let this = &object.host;
        let expect = match this.creation() {
            Some(Response::Ok(_)) => Expect::Success,
            // The host refused it, or never saw it, or was reset: it does not know the memory,
            // unless it took that for a resource that it does not have.
            Some(Response::Error(_) | Response::Aborted) => match this.failed_creation() {
                Some(create) => Expect::SuccessUnlessFailed(create),
                None => {
                    let pending = this.pending.clone();
                    let others_wait = object.userptr().is_none() && current_is_worker();
                    pending.state.lock().object = Some(object);
                    return if others_wait {
                        pending.empty_later()
                    } else {
                        pending.empty()
                    };
                }
            },
            None | Some(Response::Invalid) => {
                let inner = this.inner.lock();
                match &inner.creation {
                    Creation::Sent(create) => Expect::SuccessUnlessFailed(create.clone()),
                    _ => Expect::Success,
                }
            }
        };
        let unref = this.inner.lock().unref.take();
        let Some(mut unref) = unref else {
            return;
        };
        ControlQueue::set_expect(&mut unref, expect);
        match &object.kind {
            Kind::Host(memory) => memory.unmap(&object),
            Kind::Imported(imported) => imported.end(),
            _ => {}
        }

        let gpu = this.gpu.clone();
        let pending = this.pending.clone();
        let command = unref.clone_arc();
        {
            let mut state = pending.state.lock();
            state.waiter = waits;
            state.object = Some(object);
        }
        gpu.control.teardown(unref);
        if !waits {
            return;
        }

        // A file that is closed with many registrations does not wait for each of them in vain.
        let responded = !gpu.control.is_late() && gpu.control.wait(&command).is_ok();
        let mut state = pending.state.lock();
        state.waiter = false;
        let object = if responded || state.ended.is_some() {
            state.object.take()
        } else {
            // The response, which may have to wait for jobs, or the reset will release it.
            None
        };
        drop(state);
        drop(object);
    }
}
