// SPDX-License-Identifier: GPL-2.0

//! Memory that stays where it is until the registration ends.

use super::params::{
    Params,
    Source, //
};
use crate::{
    context::Context,
    driver::{
        Device,
        File,
        Object, //
    },
    gpu::Gpu,
    kapi::{
        dma::map::Mapper,
        mm::{
            PinnedVm,
            Pins, //
        }, //
    },
    resource::{
        self,
        userptr::Userptr,
        BlobParams,
        Entries,
        Kind,
        Lifetime,
        Resource, //
    },
};
use kernel::{
    fs::LocalFile,
    page::PAGE_SHIFT,
    prelude::*,
    sync::aref::ARef, //
};

/// Addresses that the device was given in place of physical ones; undone when this is dropped.
struct DmaMapping {
    mapper: Mapper,
    /// Address and length in bytes.
    mapped: KVVec<(u64, usize)>,
    write: bool,
}

impl Drop for DmaMapping {
    fn drop(&mut self) {
        for &(addr, len) in &self.mapped {
            self.mapper.unmap(addr, len, self.write);
        }
    }
}

/// Pinned pages, charged to their owner.
///
/// The fields are dropped in their order: the device's addresses go before the pages do.
pub(crate) struct Pinned {
    _dma: Option<DmaMapping>,
    pins: Pins,
    _charge: PinnedVm,
}

impl Pinned {
    fn new(params: &Params) -> Result<Self> {
        let charge = PinnedVm::charge(params.len >> PAGE_SHIFT)?;
        let pins = match params.source {
            Source::Address(addr) => Pins::of_user_range(addr, params.len, params.write)?,
            Source::File(fd, offset) => {
                let file = LocalFile::fget(fd)?;
                let access = file.flags() & kernel::fs::file::flags::O_ACCMODE;
                // A descriptor that cannot be read is not for the device to read either.
                if access == kernel::fs::file::flags::O_WRONLY {
                    return Err(EACCES);
                }
                // Without write permission only the device's good will protects the file, also
                // against a registration that is read-only by name.
                if access != kernel::fs::file::flags::O_RDWR {
                    return Err(EPERM);
                }
                Pins::of_file_range(&file, offset, params.len, params.write)?
            }
        };
        Ok(Self {
            _dma: None,
            pins,
            _charge: charge,
        })
    }

    /// Passes the memory to `entries`, translated for the device if it wants that.
    fn list(&mut self, gpu: &Gpu, entries: &mut Entries) -> Result {
        let Some(mapper) = &gpu.mapper else {
            for run in self.pins.runs() {
                entries.push(run.phys, run.len)?;
            }
            return Ok(());
        };
        let mut dma = DmaMapping {
            mapper: mapper.clone(),
            mapped: KVVec::with_capacity(self.pins.runs().len(), GFP_KERNEL)?,
            write: self.pins.is_writable(),
        };
        for run in self.pins.runs() {
            let len = run.len as usize;
            let addr = dma.mapper.map(run.phys, len, dma.write)?;
            dma.mapped.push((addr, len), GFP_KERNEL)?;
            entries.push(addr, run.len)?;
        }
        self._dma = Some(dma);
        Ok(())
    }

    /// Pages that are pinned.
    pub(crate) fn pages(&self) -> usize {
        self.pins.pages()
    }
}

/// Registers memory and has the host confirm it; returns the object, without handle.
///
/// # Errors
///
/// Those of [`Pins`] and [`PinnedVm`], [`E2BIG`] if the memory is too scattered for one command,
/// [`ENODEV`], and that of the host.
pub(crate) fn register(
    dev: &Device,
    file: &File,
    context: Option<&Context>,
    params: &Params,
) -> Result<ARef<Object>> {
    let gpu = &file.gpu;
    let control = &gpu.control;
    let blob = BlobParams {
        mem: params.blob_mem,
        flags: context.map_or(0, Context::userptr_wire_flags),
        size: params.wire_size,
        id: params.blob_id,
        defer_mapping: false,
    };
    let addr = match params.source {
        Source::Address(addr) => addr as u64,
        Source::File(..) => 0,
    };

    control.check()?;
    let mut pinned = Pinned::new(params)?;
    let mut entries = Entries::new(gpu);
    pinned.list(gpu, &mut entries)?;
    let (entries, count) = entries.finish()?;

    let lifetime = Lifetime::new(gpu)?;
    let create = resource::create_command(context, lifetime.id(), &blob, entries, count)?;
    let attach = match context {
        Some(context) => Some(context.attachment(&lifetime, true)?),
        None => None,
    };
    let object = Object::new_private(
        dev,
        params.len,
        Resource {
            lifetime,
            params: blob,
            kind: Kind::Userptr(Userptr::new(pinned, addr, params.flags)),
            entries: count,
        },
    )?;

    // From here on, dropping the object tells the host to forget it, and waits until it has.
    let created = create.clone_arc();
    let attached = attach.as_ref().map(|attach| attach.clone_arc());
    // One credit for both: who holds one must not wait for another.
    let attach_slots = attach.as_ref().map_or(0, |attach| attach.descriptors());
    let mut credit = control.credit(&file.share, create.descriptors() + attach_slots)?;
    let attach_credit = credit.split(attach_slots)?;
    object.lifetime.set_sent(created.clone());
    control
        .add(create, credit)
        .inspect_err(|_| object.lifetime.set_not_sent())?;
    if let Some(attach) = attach {
        control.add(attach, attach_credit)?;
    }
    control.kick();

    control.wait(&created)?.to_result()?;
    if let Some(attached) = attached {
        control.wait(&attached)?.to_result()?;
    }
    Ok(object)
}
