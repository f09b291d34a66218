// SPDX-License-Identifier: GPL-2.0

//! Submission of jobs.
//!
//! - [`deps`]: what a job waits for, and what it signals;
//! - [`transfer`]: copies between guest and host;
//! - [`fault_mode`]: jobs of a context in fault mode, which have no fences;
//! - here: from the arguments to the ring.
//!
//! Everything that can fail or sleep comes before the job is queued. Mirrored memory is mapped
//! without a lock, and checked again under the lock that invalidation takes; if a page was
//! invalidated meanwhile, the locks are dropped and all is done again, for a second. Between that
//! and the end of the call there is only what cannot fail: the fence is added to the buffers, the
//! device is notified, and userspace gets the results.

mod deps;
mod fault_mode;
pub(crate) mod transfer;

use self::deps::{
    InFences,
    OutFences, //
};
use crate::{
    context::Context,
    drm::{
        File,
        Object, //
    },
    gpu::{
        Gpu,
        Timeline, //
    },
    kapi::{
        dma::UnpublishedFence,
        drm::{
            event::{
                Payload,
                ReservedEvent, //
            },
            reservation::Reservation, //
        },
        virtio::Chunks, //
    },
    mirror::{
        Commits,
        Deadline,
        Mirrored, //
    },
    protocol::{
        uapi::{
            self,
            ExecBuffer,
            FenceEvent, //
        },
        virtio_gpu::{
            Submit3d, //
        },
    },
    transport::control::{
        commands,
        Command,
        Completion,
        HostFence,
        Request, //
    },
};
use kernel::{
    list::ListArc,
    prelude::*,
    sync::{
        aref::ARef,
        Arc, //
    },
    uaccess::{
        UserPtr,
        UserSlice, //
    },
};

/// Most buffers in one job.
const MAX_BUFFERS: u32 = 1 << 16;
/// Most bytes of a command.
const MAX_COMMAND: usize = 64 << 20;
/// Most bytes of the command that may come with RESOURCE_CREATE_BLOB.
const MAX_INLINE_COMMAND: u32 = 1 << 20;

impl Payload for FenceEvent {
    const TYPE: u32 = uapi::EVENT_FENCE_SIGNALED;
}

/// An event for the fence of a job on a ring that is polled.
fn fence_event(file: &File, context: &Context, ring: Option<u8>) -> Result<Option<ReservedEvent>> {
    match ring {
        Some(ring) if context.polls(ring) => file.reserve_event(FenceEvent::default()).map(Some),
        _ => Ok(None),
    }
}

/// Has other events sent for which there was no room as long as a job had taken it, if the job is
/// not queued.
struct RoomGivenBack<'a>(Option<&'a File>);

impl Drop for RoomGivenBack<'_> {
    fn drop(&mut self) {
        if let Some(file) = self.0 {
            file.event_sender().resume();
        }
    }
}

/// EXECBUFFER.
///
/// # Errors
///
/// [`EINVAL`] for arguments that make no sense, [`ENOENT`] for a handle that does not exist,
/// [`EALREADY`](kernel::error::code) for one that is listed twice, [`EFAULT`], [`ENOMEM`] also if
/// there is no room for an event, [`ENODEV`], [`EBUSY`], [`ERESTARTSYS`], [`EIO`] if the context is
/// lost; for mirrored memory, what [`Mirrored::make_ready`] says. That the host refuses or fails
/// the job shows in its fence, as -EIO.
pub(crate) fn submit(file: &File, args: &mut ExecBuffer) -> Result {
    let gpu = &file.gpu;
    let known = uapi::EXECBUF_FENCE_FD_IN | uapi::EXECBUF_FENCE_FD_OUT | uapi::EXECBUF_RING_IDX;
    if !gpu.features.virgl {
        return Err(ENOSYS);
    }
    if args.flags & !known != 0 {
        return Err(EINVAL);
    }
    gpu.transport.check()?;
    if let Some(svm) = file.svm() {
        return fault_mode::submit(file, svm, args);
    }

    let (context, ring, timeline) = if args.flags & uapi::EXECBUF_RING_IDX != 0 {
        let context = file.context().ok_or(EINVAL)?;
        let timeline = context.timeline(args.ring_idx).ok_or(EINVAL)?;
        let ring = u8::try_from(args.ring_idx)?;
        (context, Some(ring), timeline)
    } else {
        let context = file.ensure_context()?.ok_or(ENOSYS)?;
        let timeline = context.own_timeline();
        (context, None, timeline)
    };

    let buffers = buffers(file, args)?;
    for buffer in &buffers {
        buffer.check_not_revoked()?;
    }
    let payload = command_bytes(gpu, args.command, args.size)?;
    let out = OutFences::prepare(file, args)?;
    let ins = InFences::wait(file, args, timeline)?;

    // Also where the program does not ask for one: without fence the host responds when it has read
    // the job.
    let fence = UnpublishedFence::new::<Timeline>(timeline)?;
    let event = fence_event(file, &context, ring)?;
    // Dropped after the job, and the event with it.
    let mut room = RoomGivenBack(event.as_ref().map(|_| file));
    let out_file = out.sync_file(&fence)?;

    let used = Used::new(&context, buffers)?;
    let locked = &used.buffers;
    let job = job(gpu, &used, payload, ring, event)?;

    let moves = locked.iter().any(|object| mirrored(object).is_some());
    let mut deadline = None;
    let published = loop {
        make_ready(file, locked)?;
        // Not kept while pages are faulted in, which may take any time.
        let credit = gpu.control.credit_patiently(&file.quota, &job)?;
        let reservation = if locked.is_empty() {
            None
        } else {
            Some(Reservation::lock(locked)?)
        };
        let commits = moves.then(|| file.notifier_lock().commits.lock());
        if commits
            .as_ref()
            .is_none_or(|commits| is_ready(locked, commits) && !gpu.knobs.loses_race())
        {
            context.check()?;
            // Between the look at the pages and the attached fence there is nothing that sleeps:
            // a notifier callback comes before both, or after both.
            let (published, notification) = gpu.control.send_fenced(job, fence, credit)?;
            if let Some(reservation) = reservation {
                reservation.add_writer(&published);
            }
            drop(commits);
            // An exit to the host, hence without the locks.
            drop(notification);
            break published;
        }
        drop(commits);
        drop(reservation);
        drop(credit);
        gpu.counters.lost_races.add(1);
        deadline.get_or_insert_with(Deadline::new).next_try_ms()?;
    };

    room.0 = None;
    ins.reset();
    args.fence_fd = out.publish(&published, out_file).unwrap_or(args.fence_fd);
    Ok(())
}

/// The command of RESOURCE_CREATE_BLOB, `size` bytes at `addr`: a job that uses no buffers, and for
/// whose end no one waits. The blob that is created after it may name what it makes.
///
/// # Errors
///
/// [`EINVAL`] for too long a command, [`EFAULT`], [`ENOMEM`], [`EIO`] if the context is lost, those
/// of [`ControlQueue::credit`](crate::transport::control::ControlQueue::credit).
pub(crate) fn submit_inline(file: &File, context: &Arc<Context>, addr: u64, size: u32) -> Result {
    if size > MAX_INLINE_COMMAND {
        return Err(EINVAL);
    }
    let gpu = &file.gpu;
    gpu.transport.check()?;
    let payload = command_bytes(gpu, addr, size)?;
    let fence = UnpublishedFence::new::<Timeline>(context.own_timeline())?;
    let used = Used::new(context, KVVec::new())?;
    let job = job(gpu, &used, payload, None, None)?;
    let credit = gpu.control.credit_patiently(&file.quota, &job)?;
    context.check()?;
    gpu.control.send_fenced(job, fence, credit).map(drop)
}

/// What a job uses, until it is over. Whether it failed is what its fence says.
struct Used {
    context: Arc<Context>,
    buffers: KVVec<ARef<Object>>,
}

impl Completion for Used {}

impl Used {
    fn new(context: &Arc<Context>, buffers: KVVec<ARef<Object>>) -> Result<Arc<Self>> {
        let this = Self {
            context: context.clone(),
            buffers,
        };
        Ok(Arc::new(this, GFP_KERNEL)?)
    }
}

/// The command that submits a job with this payload, which keeps what the job has `used`.
///
/// # Errors
///
/// [`ENOMEM`].
fn job(
    gpu: &Gpu,
    used: &Arc<Used>,
    payload: Chunks,
    ring: Option<u8>,
    event: Option<ReservedEvent>,
) -> Result<ListArc<Command>> {
    let context = &used.context;
    let fixed = Submit3d {
        size: u32::try_from(payload.len())?.into(),
        ..Default::default()
    };
    let mut request = Request::<commands::Submit3d>::new(context.id(), &fixed);
    request.payload(payload);
    request.fence(ring.map_or(HostFence::Common, HostFence::Ring), event);
    // With a mirror queue, this error says that the job has touched what it may not.
    let lost_on_error = gpu.features.mirror.is_some();
    request.job(context.job().lost_on_error(lost_on_error));
    request.then(used.clone());
    request.build()
}

/// The buffers that the job names.
fn buffers(file: &File, args: &ExecBuffer) -> Result<KVVec<ARef<Object>>> {
    let count = args.num_bo_handles;
    if count > MAX_BUFFERS {
        return Err(EINVAL);
    }
    let mut buffers = KVVec::with_capacity(count as usize, GFP_KERNEL)?;
    let bytes = count as usize * size_of::<u32>();
    let addr = usize::try_from(args.bo_handles)?;
    let mut reader = UserSlice::new(UserPtr::from_addr(addr), bytes).reader();
    for _ in 0..count {
        let handle = reader.read::<u32>()?;
        buffers.push(Object::lookup(file, handle)?, GFP_KERNEL)?;
    }
    Ok(buffers)
}

fn clone_list(buffers: &[ARef<Object>]) -> Result<KVVec<ARef<Object>>> {
    let mut clone = KVVec::with_capacity(buffers.len(), GFP_KERNEL)?;
    for buffer in buffers {
        clone.push(buffer.clone(), GFP_KERNEL)?;
    }
    Ok(clone)
}

/// The registration, if the buffer is mirrored memory.
fn mirrored(object: &Object) -> Option<&Mirrored> {
    object.userptr()?.as_mirrored()
}

/// Has all mirrored memory where the device can reach it, for now.
fn make_ready(file: &File, buffers: &[ARef<Object>]) -> Result {
    let now = file.notifier_lock().now();
    for mirrored in buffers.iter().filter_map(|object| mirrored(object)) {
        mirrored.touch(now);
    }
    for mirrored in buffers.iter().filter_map(|object| mirrored(object)) {
        mirrored.make_ready()?;
    }
    Ok(())
}

/// Whether all mirrored memory is where the device can reach it.
fn is_ready(buffers: &[ARef<Object>], commits: &Commits) -> bool {
    let mut ranges = buffers.iter().filter_map(|object| mirrored(object));
    ranges.all(|mirrored| mirrored.range().is_ready(commits))
}

/// A copy of the command.
fn command_bytes(gpu: &Gpu, addr: u64, size: u32) -> Result<Chunks> {
    let size = size as usize;
    if size > MAX_COMMAND {
        return Err(ENOMEM);
    }
    let mut chunks = Chunks::zeroed(size, gpu.control.pieces(2))?;
    let addr = usize::try_from(addr)?;
    let mut reader = UserSlice::new(UserPtr::from_addr(addr), size).reader();
    for piece in chunks.pieces_mut() {
        reader.read_slice(piece)?;
    }
    Ok(chunks)
}
