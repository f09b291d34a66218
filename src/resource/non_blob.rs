// SPDX-License-Identifier: GPL-2.0

//! Resources that are not blobs: storage on the host, and guest pages that transfers copy from and
//! to.

use super::{
    guest,
    BlobParams,
    HostResource,
    Kind, //
};
use crate::{
    drm::{
        Device,
        Object, //
    },
    gpu::{
        Gpu,
        Timeline, //
    },
    kapi::{
        dma::{
            fence::allocate_timelines,
            UnpublishedFence, //
        },
        drm::reservation::Reservation, //
    },
    protocol::{
        uapi::ResourceCreate,
        virtio_gpu::{
            ResourceAttachBacking, //
        },
        virtio_gpu_image::{
            ResourceCreate2d,
            ResourceCreate3d, //
        }, //
    },
    transport::control::{
        commands,
        Command,
        Request,
        RingQuota, //
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

/// The command that creates `resource`: a 3D one where the device has contexts, else a 2D one.
fn create_command(
    gpu: &Gpu,
    resource: &HostResource,
    args: &ResourceCreate,
) -> Result<ListArc<Command>> {
    let id = resource.id();
    // No context: it belongs to those that it is attached to.
    if gpu.features.virgl {
        let fixed = ResourceCreate3d {
            resource_id: id.into(),
            target: args.target.into(),
            format: args.format.into(),
            bind: args.bind.into(),
            width: args.width.into(),
            height: args.height.into(),
            depth: args.depth.into(),
            array_size: args.array_size.into(),
            last_level: args.last_level.into(),
            nr_samples: args.nr_samples.into(),
            flags: args.flags.into(),
            ..Default::default()
        };
        let mut request = Request::<commands::ResourceCreate3d>::new(0, &fixed);
        request.about(resource.shared_id());
        request.build()
    } else {
        let fixed = ResourceCreate2d {
            resource_id: id.into(),
            format: args.format.into(),
            width: args.width.into(),
            height: args.height.into(),
            ..Default::default()
        };
        let mut request = Request::<commands::ResourceCreate2d>::new(0, &fixed);
        request.about(resource.shared_id());
        request.build()
    }
}

/// Creates a resource, gives the host its pages, and does not wait for the responses. The buffer is
/// busy until they have come. The commands take room of `quota`.
///
/// # Errors
///
/// [`ENOMEM`], [`E2BIG`] if the memory is too scattered, [`ENOSPC`] if there are no more ids,
/// [`EBUSY`] if there was no room in the ring, [`ERESTARTSYS`], [`ENODEV`].
pub(crate) fn create(
    dev: &Device,
    quota: &Arc<RingQuota>,
    size: u64,
    args: &ResourceCreate,
) -> Result<ARef<Object>> {
    let gpu: &Arc<Gpu> = dev;
    let params = BlobParams {
        size,
        ..Default::default()
    };
    let (object, entries, count) = guest::allocate(dev, params, Kind::NonBlob)?;
    let create = create_command(gpu, &object.host, args)?;

    let fixed = ResourceAttachBacking {
        resource_id: object.id().into(),
        nr_entries: u32::try_from(count).map_err(|_| E2BIG)?.into(),
        ..Default::default()
    };
    let mut attach = Request::<commands::ResourceAttachBacking>::new(0, &fixed);
    attach.payload(entries);
    attach.about(object.host.shared_id());
    let attach = attach.build()?;
    let fence = UnpublishedFence::new::<Timeline>(allocate_timelines(1))?;

    // One credit for both: who holds one must not wait for another.
    let mut credit = gpu.control.credit(quota, [&create, &attach])?;
    let attach_credit = credit.split(&attach)?;
    let locked = [object.clone()];
    let reservation = Reservation::lock(&locked)?;
    object.host.set_sent(create.clone_arc());
    gpu.control
        .add(create, credit)
        .inspect_err(|_| object.host.set_not_sent())?;
    object.host.set_backing(attach.clone_arc());
    let (fence, notification) = gpu.control.send_fenced(attach, fence, attach_credit)?;
    reservation.add_writer(&fence);
    // An exit to the host, hence without the locks.
    drop(notification);
    Ok(object)
}
