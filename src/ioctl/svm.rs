// SPDX-License-Identifier: GPL-2.0

//! Shared virtual memory: SVM_ENABLE, SVM_PREFETCH, SVM_WAIT and SVM_QUERY.
//!
//! A file has one address space, that of the process which has enabled it. The file may be handed
//! on, but SVM_PREFETCH and jobs are refused to other processes, whose addresses mean something
//! else.

use crate::{
    drm::{
        Device,
        File,
        GpuDriver, //
    },
    kapi::drm::ioctl::Ioctl,
    protocol::uapi::{
        self,
        nr,
        svm_wait, //
    },
    svm::{
        Comparison,
        Params,
        Svm,
        Until, //
    },
};
use kernel::{
    page::PAGE_SIZE,
    prelude::*,
    sync::Arc, //
};

/// The address space of the file, in the process that it is of.
fn address_space(file: &File) -> Result<&Arc<Svm>> {
    let svm = file.svm().ok_or(EINVAL)?;
    svm.check_process()?;
    Ok(svm)
}

/// DRM_VIRTGPU_SVM_ENABLE.
pub(super) struct SvmEnable;

impl Ioctl<GpuDriver> for SvmEnable {
    type Args = uapi::SvmEnable;

    const NR: u32 = nr::SVM_ENABLE;
    const NAME: &'static CStr = c"VIRTGPU_SVM_ENABLE";
    const MIN_SIZE: usize = size_of::<uapi::SvmEnable>();

    fn call(_dev: &Device, file: &File, args: &mut Self::Args) -> Result {
        let max_faults = file.gpu.features.faults.ok_or(EOPNOTSUPP)?;
        let known = uapi::SVM_EVENT | uapi::SVM_EXACT;
        if args.flags & !known != 0 || args.workers > uapi::SVM_MAX_WORKERS || args.pad != 0 {
            return Err(EINVAL);
        }
        file.gpu.transport.check()?;
        let event = if args.flags & uapi::SVM_EVENT != 0 {
            Some(file.reserve_blank_event()?)
        } else {
            None
        };
        let svm = file.enable_svm(Params {
            workers: args.workers as usize,
            exact: args.flags & uapi::SVM_EXACT != 0,
            event,
            cookie: args.cookie,
        })?;
        args.va_end = svm.va_end() as u64;
        args.max_faults = max_faults as u32;
        Ok(())
    }
}

/// DRM_VIRTGPU_SVM_PREFETCH.
pub(super) struct SvmPrefetch;

impl Ioctl<GpuDriver> for SvmPrefetch {
    type Args = uapi::SvmPrefetch;

    const NR: u32 = nr::SVM_PREFETCH;
    const NAME: &'static CStr = c"VIRTGPU_SVM_PREFETCH";
    const MIN_SIZE: usize = size_of::<uapi::SvmPrefetch>();

    fn call(_dev: &Device, file: &File, args: &mut Self::Args) -> Result {
        args.done = 0;
        let svm = address_space(file)?;
        let end = args.addr.checked_add(args.length).ok_or(EINVAL)?;
        let aligned = (args.addr | args.length) % PAGE_SIZE as u64 == 0;
        let known = args.flags & !uapi::SVM_PREFETCH_WRITE == 0 && args.pad == 0;
        if !aligned || !known || args.length == 0 || end > svm.va_end() as u64 {
            return Err(EINVAL);
        }
        svm.check()?;
        let which = usize::try_from(args.addr)?..usize::try_from(end)?;
        let (done, outcome) = svm.prefetch(which, args.flags & uapi::SVM_PREFETCH_WRITE != 0);
        args.done = done as u64;
        outcome
    }
}

/// DRM_VIRTGPU_SVM_WAIT.
pub(super) struct SvmWait;

impl Ioctl<GpuDriver> for SvmWait {
    type Args = uapi::SvmWait;

    const NR: u32 = nr::SVM_WAIT;
    const NAME: &'static CStr = c"VIRTGPU_SVM_WAIT";
    const MIN_SIZE: usize = size_of::<uapi::SvmWait>();

    fn call(_dev: &Device, file: &File, args: &mut Self::Args) -> Result {
        let svm = address_space(file)?;
        if args.flags != 0 || args.pad != 0 {
            return Err(EINVAL);
        }
        let how = match args.op {
            svm_wait::RING => {
                if args.ring >= svm.context().rings() || args.addr | args.value | args.mask != 0 {
                    return Err(EINVAL);
                }
                return svm.wait(Until::Ring(args.ring), args.deadline_ns);
            }
            svm_wait::EQ => Comparison::Equal,
            svm_wait::NE => Comparison::NotEqual,
            svm_wait::GT => Comparison::Greater,
            svm_wait::GE => Comparison::GreaterOrEqual,
            svm_wait::LT => Comparison::Less,
            svm_wait::LE => Comparison::LessOrEqual,
            _ => return Err(EINVAL),
        };
        if args.ring != 0 || args.addr % size_of::<u64>() as u64 != 0 {
            return Err(EINVAL);
        }
        let until = Until::Compares {
            addr: usize::try_from(args.addr)?,
            value: args.value,
            mask: args.mask,
            how,
        };
        svm.wait(until, args.deadline_ns)
    }
}

/// DRM_VIRTGPU_SVM_QUERY.
pub(super) struct SvmQuery;

impl Ioctl<GpuDriver> for SvmQuery {
    type Args = uapi::SvmQuery;

    const NR: u32 = nr::SVM_QUERY;
    const NAME: &'static CStr = c"VIRTGPU_SVM_QUERY";
    const MIN_SIZE: usize = size_of::<uapi::SvmQuery>();

    fn call(_dev: &Device, file: &File, args: &mut Self::Args) -> Result {
        *args = address_space(file)?.query();
        Ok(())
    }
}
