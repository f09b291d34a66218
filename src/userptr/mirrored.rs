// SPDX-License-Identifier: GPL-2.0

//! The registration of mirrored memory.
//!
//! Nothing is looked up, and no page is touched: the memory may be replaced by another thread while
//! this runs, or unmapped. The notifier is there before the device is told of the space, and no MAP
//! is sent before a job or a prefetch asks for pages, so that there is no moment in which the
//! device could reach a page that has gone. If a step fails, dropping the object undoes those
//! before it, in the order in which a registration ends.

use super::params::{
    Params,
    Source, //
};
use crate::{
    context::Context,
    drm::{
        Device,
        File,
        Object, //
    },
    kapi::{
        dma::Resv,
        mm::is_anything_mapped,
        virtio::Chunks, //
    },
    mirror::{
        Jobs,
        Mirrored,
        MirroredRange,
        RangeEvents,
        RangeParams,
        Space, //
    },
    resource::{
        self,
        device_mapping::Memory,
        userptr::Userptr,
        BlobParams,
        DeviceMapping,
        HostResource,
        Kind,
        Resource, //
    },
};
use kernel::{
    current,
    mm::Mm,
    page::PAGE_SHIFT,
    prelude::*,
    sync::{
        aref::ARef,
        atomic::Atomic,
        Arc, //
    },
};

/// Registers mirrored memory; returns the object, without handle, and what makes it usable. Touches
/// none of the memory.
///
/// # Errors
///
/// [`EFAULT`] if nothing is mapped at all, [`ENOSPC`] if the device has no more spaces, [`ENOMEM`],
/// [`EINTR`] on a signal, those of
/// [`Releases::wait_for_room`](crate::resource::releases::Releases::wait_for_room), and that of the
/// host.
pub(crate) fn register(
    dev: &Device,
    file: &File,
    context: &Arc<Context>,
    params: &Params,
) -> Result<(ARef<Object>, Arc<Mirrored>)> {
    let gpu = &file.gpu;
    let Source::Address(addr) = params.source else {
        return Err(EINVAL);
    };
    file.releases().wait_for_room(gpu)?;
    if !is_anything_mapped(addr, params.len)? {
        return Err(EFAULT);
    }
    let mm: ARef<Mm> = {
        let task = current!();
        let mm: &Mm = task.mm().ok_or(EFAULT)?;
        mm.into()
    };
    let blob = BlobParams {
        mem: params.blob_mem,
        flags: context.userptr_wire_flags(),
        size: params.wire_size,
        id: params.blob_id,
        defer_mapping: false,
    };
    let pages = params.len >> PAGE_SHIFT;
    let events = params
        .event
        .map(|cookie| {
            RangeEvents::new(
                file.event_sender(),
                file.events(),
                addr as u64,
                pages,
                cookie,
            )
        })
        .transpose()?;
    let resv = Resv::new()?;
    let jobs = Jobs {
        context: context.clone(),
        resv: resv.clone(),
    };
    let memory = RangeParams {
        addr,
        base: 0,
        pages,
        write: params.write,
        sparse: params.sparse,
    };
    let space = Arc::new(
        Space::new(gpu, &file.mirror_quota, params.write)?,
        GFP_KERNEL,
    )?;
    let lock = file.notifier_lock();
    let range = MirroredRange::new(gpu, lock, space, Some(jobs), memory, events)?;

    let host = HostResource::new(gpu)?;
    let create = resource::create_command(Some(context), &host, &blob, Chunks::new(), 0)?;
    let attach = context.attachment(host.shared_id(), true)?;
    let mapping = DeviceMapping::new(gpu, host.id(), Memory::Mirrored(range.clone()))?;
    let mirrored = Mirrored::new(range.clone(), mm)?;
    let object = Object::new_private_with_resv(
        dev,
        params.len,
        resv,
        Resource {
            host,
            params: blob,
            mapping: Some(mapping),
            kind: Kind::Userptr(Userptr::mirrored(
                file.releases(),
                pages,
                addr as u64,
                params.flags,
                mirrored.clone(),
            )),
            entries: Atomic::new(0),
        },
    )?;

    // From here on, dropping the object ends what has begun.
    resource::userptr::create_on_host(&file.quota, &object, create, Some(attach))?;
    mirrored.begin(object.id(), blob.size, addr)?;
    Ok((object, mirrored))
}
