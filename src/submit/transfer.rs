// SPDX-License-Identifier: GPL-2.0

//! Copies between the guest pages of a resource and its storage on the host.
//!
//! Where the CPU and the device see the same memory only after it was synchronized, a buffer's
//! transfers take turns, with each other and with jobs.

use super::deps::wait_unless_lost;
use crate::{
    context::Context,
    drm::{
        File,
        Object, //
    },
    gpu::Timeline,
    kapi::{
        dma::{
            fence::allocate_timelines,
            map::DmaMap,
            UnpublishedFence, //
        },
        drm::reservation::Reservation, //
    },
    protocol::{
        uapi::{
            Box3d,
            Transfer, //
        },
        virtio_gpu::{blob_mem, command},
        virtio_gpu_image::{
            Cuboid,
            Rect,
            TransferHost3d,
            TransferToHost2d, //
        }, //
    },
    resource::Kind,
    transport::control::{
        commands::{
            self,
            CommandToHost, //
        },
        Command,
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
};

/// The device's view of a buffer, where CPU and device see the same only after a synchronization.
fn unsynced(object: &Object) -> Option<&DmaMap> {
    object.dma().filter(|dma| dma.needs_sync())
}

/// The buffer, if it has both guest pages and storage on the host.
fn buffer(file: &File, args: &Transfer) -> Result<ARef<Object>> {
    let object = Object::lookup(file, args.bo_handle)?;
    match object.kind {
        // The host knows how rows and layers of such a resource lie.
        Kind::NonBlob if file.gpu.features.virgl && args.stride | args.layer_stride != 0 => {
            Err(EINVAL)
        }
        Kind::NonBlob => Ok(object),
        Kind::Guest if object.params.mem == blob_mem::HOST3D_GUEST => Ok(object),
        _ => Err(EINVAL),
    }
}

fn cuboid(region: &Box3d) -> Cuboid {
    Cuboid {
        x: region.x.into(),
        y: region.y.into(),
        z: region.z.into(),
        width: region.w.into(),
        height: region.h.into(),
        depth: region.d.into(),
    }
}

/// The command, and the fence to be signalled when it is done.
fn command_3d<C: CommandToHost<Fixed = TransferHost3d>>(
    context: Arc<Context>,
    object: &ARef<Object>,
    args: &Transfer,
) -> Result<(ListArc<Command>, UnpublishedFence)> {
    let fixed = TransferHost3d {
        region: cuboid(&args.region),
        offset: u64::from(args.offset).into(),
        resource_id: object.id().into(),
        level: args.level.into(),
        stride: args.stride.into(),
        layer_stride: args.layer_stride.into(),
        ..Default::default()
    };
    let mut request = Request::<C>::new(context.id(), &fixed);
    // After the jobs before it, which may be what it shows.
    let fence = UnpublishedFence::new::<Timeline>(context.own_timeline())?;
    request.fence(HostFence::Common, None);
    request.job(context.job());
    if C::COMMAND == command::TRANSFER_FROM_HOST_3D && unsynced(object).is_some() {
        request.sync_for_cpu(KBox::new(object.clone(), GFP_KERNEL)?);
    }
    // What the host thinks of the box is what the fence says.
    request.keep((context, object.clone()))?;
    Ok((request.build()?, fence))
}

/// The same for a device without contexts, which knows one direction and one plane.
fn command_2d(
    object: &ARef<Object>,
    args: &Transfer,
) -> Result<(ListArc<Command>, UnpublishedFence)> {
    let fixed = TransferToHost2d {
        rect: Rect {
            x: args.region.x.into(),
            y: args.region.y.into(),
            width: args.region.w.into(),
            height: args.region.h.into(),
        },
        offset: u64::from(args.offset).into(),
        resource_id: object.id().into(),
        ..Default::default()
    };
    let mut request = Request::<commands::TransferToHost2d>::new(0, &fixed);
    // Without jobs there is nothing that the host would have to wait for.
    let fence = UnpublishedFence::new::<Timeline>(allocate_timelines(1))?;
    request.keep(object.clone())?;
    Ok((request.build()?, fence))
}

/// Queues a transfer of `object`, which is busy until it is done.
fn queue(
    file: &File,
    object: ARef<Object>,
    command: ListArc<Command>,
    fence: UnpublishedFence,
) -> Result {
    let control = &file.gpu.control;
    let locked = [object];
    let object = &locked[0];
    loop {
        if unsynced(object).is_some() {
            wait_idle(file, object)?;
        }
        let credit = control.credit_patiently(&file.quota, &command)?;
        let reservation = Reservation::lock(&locked)?;
        if let Some(dma) = unsynced(object) {
            // The memory changes hands as a whole: the device must not have it yet, and gets it
            // before anybody else. Also for a transfer from the host, which may write parts of it
            // only.
            if !object.is_idle() {
                continue;
            }
            dma.sync_for_device();
        }
        let (published, notification) = control.send_fenced(command, fence, credit)?;
        reservation.add_writer(&published);
        drop(notification);
        return Ok(());
    }
}

/// Waits until nothing uses the buffer, or the device is lost.
fn wait_idle(file: &File, object: &Object) -> Result {
    wait_unless_lost(file, |ms| object.wait_idle(ms))
}

fn transfer_3d<C: CommandToHost<Fixed = TransferHost3d>>(
    file: &File,
    object: ARef<Object>,
    args: &Transfer,
) -> Result {
    let context = file.ensure_context()?.ok_or(ENOSYS)?;
    context.check()?;
    let (command, fence) = command_3d::<C>(context, &object, args)?;
    queue(file, object, command, fence)
}

/// TRANSFER_TO_HOST: copies from the guest pages to the host.
///
/// # Errors
///
/// [`ENOENT`] if there is no such buffer, [`EINVAL`] if it is not of two parts, or if `args` name
/// strides where the host has its own, that of the host if it has refused to create the resource,
/// [`EIO`] if the context is lost, [`ENOMEM`], [`ENODEV`], [`EBUSY`], [`ERESTARTSYS`]. That the
/// host refuses the box is not told.
pub(crate) fn to_host(file: &File, args: &Transfer) -> Result {
    let object = buffer(file, args)?;
    file.gpu.transport.check()?;
    object.host.check()?;
    if file.gpu.features.virgl {
        return transfer_3d::<commands::TransferToHost3d>(file, object, args);
    }
    let (command, fence) = command_2d(&object, args)?;
    queue(file, object, command, fence)
}

/// TRANSFER_FROM_HOST: copies from the host to the guest pages.
///
/// # Errors
///
/// As [`to_host`]; [`ENOSYS`] if the device has no contexts.
pub(crate) fn from_host(file: &File, args: &Transfer) -> Result {
    if !file.gpu.features.virgl {
        return Err(ENOSYS);
    }
    let object = buffer(file, args)?;
    file.gpu.transport.check()?;
    object.host.check()?;
    transfer_3d::<commands::TransferFromHost3d>(file, object, args)
}
