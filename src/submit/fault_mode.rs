// SPDX-License-Identifier: GPL-2.0

//! EXECBUFFER of a context in fault mode.
//!
//! Such a job may be stalled for any time, so there is no fence that anybody could wait for: the
//! host responds when it has accepted the job, and programs learn of its end by SVM_WAIT or an
//! event. What it waits for itself is waited for here, before it is sent.

use super::{
    buffers,
    clone_list,
    command_bytes,
    deps::InFences,
    fence_event,
    RoomGivenBack, //
};
use crate::{
    drm::{
        File,
        Object, //
    },
    file::Attachments,
    protocol::{
        uapi::{
            self,
            ExecBuffer, //
        },
        virtio_gpu::Submit3d,
    },
    resource::{
        Begun,
        Use, //
    },
    svm::Svm,
    transport::control::{
        commands,
        HostFence,
        Request, //
    },
};
use kernel::{
    error::code::EALREADY,
    prelude::*,
    rbtree::RBTree,
    sync::{
        aref::ARef,
        Arc, //
    },
};

/// The buffers of a job, which stay attached to its context until it is over.
struct Listed {
    attachments: Arc<Attachments>,
    buffers: KVVec<(ARef<Object>, bool)>,
}

impl Listed {
    fn new(attachments: &Arc<Attachments>, buffers: KVVec<ARef<Object>>) -> Result<Self> {
        let mut this = Self {
            attachments: attachments.clone(),
            buffers: KVVec::with_capacity(buffers.len(), GFP_KERNEL)?,
        };
        for buffer in buffers {
            let kept = attachments.keep(&buffer.host);
            // There is room.
            let _ = this.buffers.push((buffer, kept), GFP_KERNEL);
        }
        Ok(this)
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        for (buffer, _) in self.buffers.iter().filter(|(_, kept)| *kept) {
            self.attachments.close(&buffer.host);
        }
    }
}

/// Fails if a buffer is listed twice. Jobs with fences find that out as the reservations of their
/// buffers are locked.
///
/// # Errors
///
/// [`EALREADY`], [`ENOMEM`].
fn check_listed_once(listed: &[ARef<Object>]) -> Result {
    if listed.len() < 2 {
        return Ok(());
    }
    // `sort_unstable()` has objtool warn of functions that it does not know to be without a return.
    let mut ids = RBTree::new();
    for buffer in listed {
        let other = ids.try_create_and_insert(buffer.host.id(), (), GFP_KERNEL)?;
        if other.is_some() {
            return Err(EALREADY);
        }
    }
    Ok(())
}

/// EXECBUFFER.
///
/// # Errors
///
/// Those of [`submit`](super::submit), and
///
/// - [`EACCES`] in another process;
/// - [`EOPNOTSUPP`] for a fence that the job should signal, and for a buffer that others share.
pub(super) fn submit(file: &File, svm: &Arc<Svm>, args: &mut ExecBuffer) -> Result {
    svm.check_process()?;
    if args.flags & uapi::EXECBUF_RING_IDX == 0 {
        return Err(EINVAL);
    }
    if args.flags & uapi::EXECBUF_FENCE_FD_OUT != 0 || args.num_out_syncobjs != 0 {
        return Err(EOPNOTSUPP);
    }
    let gpu = &file.gpu;
    let context = svm.context();
    let timeline = context.timeline(args.ring_idx).ok_or(EINVAL)?;
    let ring = u8::try_from(args.ring_idx)?;
    svm.check()?;

    let listed = buffers(file, args)?;
    check_listed_once(&listed)?;
    for buffer in &listed {
        buffer.check_not_revoked()?;
        // Others could wait for one that they share.
        buffer.host.check_use(Use::FaultMode)?;
    }
    let payload = command_bytes(gpu, args.command, args.size)?;
    let ins = InFences::wait(file, args, timeline)?;
    let event = fence_event(file, context, Some(ring))?;
    let mut room = RoomGivenBack(event.as_ref().map(|_| file));

    // The job may be over, and drop its list, before the end of this call.
    let used = clone_list(&listed)?;
    let mut uses = KVVec::with_capacity(used.len(), GFP_KERNEL)?;
    let kept = KBox::new(Listed::new(file.attachments(), listed)?, GFP_KERNEL)?;
    let noted = svm.new_job(args.ring_idx, event, kept)?;
    let fixed = Submit3d {
        size: u32::try_from(payload.len())?.into(),
        ..Default::default()
    };
    let mut request = Request::<commands::Submit3d>::new(context.id(), &fixed);
    request.payload(payload);
    request.fence(HostFence::Ring(ring), None);
    // A response of this kind says that the device has lost the context.
    request.job(context.job().lost_on_error(true).in_fault_mode());
    request.then(noted.completion(context)?);
    let job = request.build()?;
    let credit = gpu.control.credit_patiently(&file.quota, &job)?;
    // Only now, as what is waited for above may take any time.
    for buffer in &used {
        // There is room.
        let _ = uses.push_within_capacity(buffer.host.begin_use(Use::FaultMode)?);
    }
    let notification = gpu
        .control
        .send_accepted(job, credit, |fence_id| noted.publish(fence_id))?;
    noted.sent();
    // An exit to the host.
    drop(notification);
    uses.into_iter().for_each(Begun::succeeds);
    room.0 = None;
    ins.reset();
    Ok(())
}
