// SPDX-License-Identifier: GPL-2.0

//! The registration of pinned memory.
//!
//! The pages are charged and pinned before the host hears of them, and the host confirms the
//! resource before there is a handle. Memory that the device must not write is mapped into a space,
//! where the device enforces it, instead of listed in the resource, where only its good will
//! would.

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
    kapi::mm::{
        PinnedVm,
        Pins, //
    },
    mirror::Space,
    resource::{
        self,
        device_mapping::Memory,
        pinned::Pinned,
        userptr::Userptr,
        BlobParams,
        DeviceMapping,
        Entries,
        HostResource,
        Kind,
        Resource, //
    },
    transport::{
        event::SpaceOwner,
        mirror::SpaceOf, //
    },
};
use kernel::{
    fs::LocalFile,
    page::PAGE_SHIFT,
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

/// Pins the memory. What the caller could not write is taken only with `enforced`: if the device
/// cannot write it, either.
fn pin(params: &Params, enforced: bool) -> Result<Pinned> {
    let charge = PinnedVm::charge(params.len >> PAGE_SHIFT)?;
    let pins = match params.source {
        Source::Address(addr) => Pins::of_user_range(addr, params.len, params.write, enforced)?,
        Source::File(fd, offset) => {
            let file = LocalFile::fget(fd)?;
            let access = file.flags() & kernel::fs::file::flags::O_ACCMODE;
            // A descriptor that cannot be read is not for the device to read either.
            if access == kernel::fs::file::flags::O_WRONLY {
                return Err(EACCES);
            }
            // Without write permission only the device's good will protects the file, also
            // against a registration that is read-only by name.
            if access != kernel::fs::file::flags::O_RDWR && !enforced {
                return Err(EPERM);
            }
            Pins::of_file_range(&file, offset, params.len, params.write, enforced)?
        }
    };
    Ok(Pinned::new(pins, charge))
}

/// Registers memory and has the host confirm it; returns the object, without handle.
///
/// # Errors
///
/// Those of [`Pins`] and [`PinnedVm`], [`E2BIG`] if the memory is too scattered for one command,
/// those of [`Releases::wait_for_room`](crate::resource::releases::Releases::wait_for_room), and
/// that of the host.
pub(crate) fn register(
    dev: &Device,
    file: &File,
    context: Option<&Context>,
    params: &Params,
) -> Result<ARef<Object>> {
    let gpu = &file.gpu;
    let blob = BlobParams {
        mem: params.blob_mem,
        flags: context.map_or(0, Context::userptr_wire_flags),
        size: params.wire_size,
        id: params.blob_id,
        defer_mapping: false,
    };
    let addr = params.source.addr();

    file.releases().wait_for_room(gpu)?;
    // Memory entries would not keep the device from writing. A space has whole pages.
    let enforced =
        !params.write && gpu.features.mirror.is_some() && params.wire_size == params.len as u64;
    let pinned = pin(params, enforced)?;
    let host = HostResource::new(gpu)?;
    let (pages, runs) = (params.len >> PAGE_SHIFT, pinned.runs().len());
    let mapping = DeviceMapping::new(gpu, host.id(), Memory::Pinned(pinned))?;
    let mut entries = Entries::new(gpu, runs);
    let space = if enforced {
        let space = Space::new(gpu, &file.mirror_quota, false)?;
        Some(Arc::new(space, GFP_KERNEL)?)
    } else {
        mapping.push_pinned(&mut entries)?;
        None
    };
    let (entries, count) = entries.finish()?;

    let create = resource::create_command(context, &host, &blob, entries, count)?;
    let attach = match context {
        Some(context) => Some(context.attachment(host.shared_id(), true)?),
        None => None,
    };
    let object = Object::new_private(
        dev,
        params.len,
        Resource {
            host,
            params: blob,
            mapping: Some(mapping),
            kind: Kind::Userptr(match space.clone() {
                Some(space) => Userptr::in_space(file.releases(), pages, addr, params.flags, space),
                None => Userptr::new(file.releases(), pages, addr, params.flags),
            }),
            entries: Atomic::new(count),
        },
    )?;

    resource::userptr::create_on_host(&file.quota, &object, create, attach)?;
    if let (Some(space), Some(mapping)) = (space, &object.mapping) {
        let owner: Arc<dyn SpaceOwner> = space.loss().clone();
        space.create(SpaceOf::Resource(object.id()), blob.size, Some(owner))?;
        object.entries.store(mapping.map_pinned(&space)?, Relaxed);
    }
    Ok(object)
}
