// SPDX-License-Identifier: GPL-2.0

//! Buffers in guest pages that are allocated for them.
//!
//! The pages stay as long as the buffer, and the host is given all of their addresses when it is
//! created; that list is what limits how scattered they may be.

use super::{
    create_command,
    BlobParams,
    Entries,
    HostResource,
    Kind,
    Resource, //
};
use crate::{
    context::Context,
    drm::{
        Device,
        Object, //
    },
    gpu::Gpu,
    kapi::{
        mm::total_memory,
        virtio::Chunks, //
    },
    transport::control::RingQuota, //
};
use kernel::{
    page::{
        PAGE_SHIFT,
        PAGE_SIZE, //
    },
    prelude::*,
    sync::{
        aref::ARef,
        atomic::{
            ordering::Relaxed,
            Atomic, //
        },
        Arc, //
    },
};

/// Pages whose table `kvmalloc()` still takes.
const MAX_PAGES: usize = i32::MAX as usize / size_of::<usize>();

/// Creates an object with guest pages, of which the host does not know yet. Returns it with the
/// list of memory entries, and how many these are.
///
/// # Errors
///
/// [`EINVAL`] if the size wraps, [`ENOMEM`], [`ENOSPC`] if there are no more ids, [`E2BIG`] if the
/// pages are too scattered, [`ENODEV`].
pub(super) fn allocate(
    dev: &Device,
    params: BlobParams,
    kind: Kind,
) -> Result<(ARef<Object>, Chunks, u64)> {
    let gpu: &Arc<Gpu> = dev;
    let size = usize::try_from(params.size)?
        .checked_next_multiple_of(PAGE_SIZE)
        .ok_or(EINVAL)?;
    // More is not to be had, and the kernel warns of tables for absurd sizes.
    if size as u64 > total_memory() || size >> PAGE_SHIFT > MAX_PAGES {
        return Err(ENOMEM);
    }
    let host = HostResource::new(gpu)?;
    let object = Object::new_shmem(
        dev,
        size,
        Resource {
            host,
            params,
            mapping: None,
            kind,
            entries: Atomic::new(0),
        },
    )?;

    let mut entries = Entries::new(gpu, 0);
    match &gpu.mapper {
        Some(mapper) => object
            .map_for(mapper)?
            .for_each(|addr, len| entries.push(addr, len))?,
        None => object.for_each_run(|phys, len| entries.push(phys, len))?,
    }
    let (entries, count) = entries.finish()?;
    object.entries.store(count, Relaxed);
    Ok((object, entries, count))
}

/// Creates a blob in guest memory, with storage on the host besides if `params` say so.
///
/// # Errors
///
/// See [`super::create_blob`].
pub(super) fn create(
    dev: &Device,
    quota: &Arc<RingQuota>,
    context: Option<&Context>,
    params: BlobParams,
) -> Result<ARef<Object>> {
    let gpu: &Arc<Gpu> = dev;
    let (object, entries, count) = allocate(dev, params, Kind::Guest)?;
    let create = create_command(context, &object.host, &params, entries, count)?;
    let credit = gpu.control.credit(quota, [&create])?;
    object.host.set_sent(create.clone_arc());
    gpu.control
        .add(create, credit)
        .inspect_err(|_| object.host.set_not_sent())?;
    gpu.control.kick();
    Ok(object)
}
