// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! What can never succeed, and how an ioctl may fail (`docs/uapi.md`).

use virtgpu_client::protocol::uapi::{self, nr};
use virtgpu_client::protocol::virtio_gpu::{blob_flag, blob_mem};
use virtgpu_client::Errno;
use zerocopy::FromBytes;

use crate::call::Call;
use crate::support::PAGE;

const PAGE_MASK: u64 = PAGE as u64 - 1;

/// Whether an ioctl is the driver's and not the DRM core's.
pub(crate) fn is_driver(nr: u32) -> bool {
    (uapi::COMMAND_BASE..0xa0).contains(&nr)
}

/// Whether an ioctl of the driver may fail so.
pub(crate) fn is_documented(error: Errno) -> bool {
    [
        Errno::NODEV,
        Errno::FAULT,
        Errno::NOMEM,
        Errno::BUSY,
        Errno::INVAL,
        Errno::IO,
        Errno::INTR,
        Errno::NOENT,
        Errno::EXIST,
        Errno::NOSYS,
        Errno::ALREADY,
        Errno::ACCESS,
        Errno::PERM,
        Errno::TOOBIG,
        Errno::NOSPC,
        Errno::OPNOTSUPP,
        Errno::MFILE,
        Errno::BADF,
        Errno::TIME,
    ]
    .contains(&error)
        // The file is not the driver's at all.
        || error == Errno::NOTTY
}

/// Why the call can never succeed, if it cannot.
pub(crate) fn never(call: &Call) -> Option<&'static str> {
    match call.nr.checked_sub(uapi::COMMAND_BASE)? {
        nr::EXECBUFFER => check(call, execbuffer),
        nr::GETPARAM => check(call, getparam),
        // Everything in them is the host's.
        nr::RESOURCE_CREATE | nr::TRANSFER_FROM_HOST | nr::TRANSFER_TO_HOST => None,
        nr::RESOURCE_INFO | nr::BO_QUERY => None,
        // Padding and unknown flags are ignored, as Linux's driver does.
        nr::MAP | nr::WAIT => None,
        nr::GET_CAPS => check(call, |caps: &uapi::GetCaps| {
            (caps.size == 0).then_some("size 0")
        }),
        nr::RESOURCE_CREATE_BLOB if call.size < uapi::RESOURCE_CREATE_BLOB_MIN_SIZE => {
            Some("a structure that is too short")
        }
        nr::RESOURCE_CREATE_BLOB => check(call, blob),
        nr::CONTEXT_INIT => check(call, |init: &uapi::ContextInit| {
            (init.num_params > 4).then_some("too many parameters")
        }),
        nr::USERPTR_REGISTER if call.size < size_of::<uapi::UserptrRegister>() => {
            Some("a structure that is too short")
        }
        nr::USERPTR_REGISTER => check(call, register),
        nr::USERPTR_PREFETCH if call.size < size_of::<uapi::UserptrPrefetch>() => {
            Some("a structure that is too short")
        }
        nr::USERPTR_PREFETCH => check(call, prefetch),
        nr::SVM_ENABLE if call.size < size_of::<uapi::SvmEnable>() => {
            Some("a structure that is too short")
        }
        nr::SVM_ENABLE => check(call, svm_enable),
        nr::SVM_PREFETCH if call.size < size_of::<uapi::SvmPrefetch>() => {
            Some("a structure that is too short")
        }
        nr::SVM_PREFETCH => check(call, svm_prefetch),
        nr::SVM_WAIT if call.size < size_of::<uapi::SvmWait>() => {
            Some("a structure that is too short")
        }
        nr::SVM_WAIT => check(call, svm_wait),
        nr::SVM_QUERY => None,
        _ => Some("an unknown number"),
    }
}

/// Validates the structure as the driver sees it.
fn check<T: FromBytes>(
    call: &Call,
    rule: impl FnOnce(&T) -> Option<&'static str>,
) -> Option<&'static str> {
    let seen = call.seen(size_of::<T>());
    rule(&T::read_from_bytes(&seen).ok()?)
}

fn execbuffer(exec: &uapi::ExecBuffer) -> Option<&'static str> {
    let known = uapi::EXECBUF_FENCE_FD_IN | uapi::EXECBUF_FENCE_FD_OUT | uapi::EXECBUF_RING_IDX;
    if exec.flags & !known != 0 {
        return Some("an unknown flag");
    }
    if exec.num_bo_handles > 0x10000 || exec.num_in_syncobjs > 0x10000 {
        return Some("a list that is too long");
    }
    if exec.num_out_syncobjs > 0x10000 {
        return Some("a list that is too long");
    }
    (exec.size > 16 << 20).then_some("a command that is too long")
}

fn getparam(get: &uapi::GetParam) -> Option<&'static str> {
    use uapi::param::{BLOB_ALIGNMENT, THREE_D_FEATURES, USERPTR_MEMORY_MODELS, USERPTR_MODES};
    match get.param {
        THREE_D_FEATURES..=BLOB_ALIGNMENT | USERPTR_MODES..=USERPTR_MEMORY_MODELS => None,
        _ => Some("an unknown parameter"),
    }
}

fn blob(blob: &uapi::ResourceCreateBlob) -> Option<&'static str> {
    if ![blob_mem::GUEST, blob_mem::HOST3D, blob_mem::HOST3D_GUEST].contains(&blob.blob_mem) {
        return Some("an unknown kind of memory");
    }
    if blob.size == 0 {
        return Some("size 0");
    }
    if blob.blob_mem == blob_mem::GUEST && (blob.blob_id != 0 || blob.cmd_size != 0) {
        return Some("guest memory with a host object");
    }
    if blob.blob_flags & uapi::BLOB_FLAG_USE_USERPTR != 0 {
        if blob.pad != 0 || blob.rocm != [0; 2] {
            return Some("dirty padding");
        }
        let known = uapi::BLOB_FLAG_USE_USERPTR | uapi::BLOB_FLAG_USERPTR_RDONLY;
        return (blob.blob_flags & !known != 0).then_some("an unknown flag");
    }
    let known = blob_flag::USE_MAPPABLE | blob_flag::USE_SHAREABLE | blob_flag::USE_CROSS_DEVICE;
    (blob.blob_flags & !known != 0).then_some("an unknown flag")
}

fn register(register: &uapi::UserptrRegister) -> Option<&'static str> {
    let has = |flag| register.flags & flag != 0;
    if register.flags >= uapi::USERPTR_SPARSE << 1 {
        return Some("an unknown flag");
    }
    if register.pad != 0 {
        return Some("dirty padding");
    }
    if has(uapi::USERPTR_PINNED) == has(uapi::USERPTR_MIRRORED) {
        return Some("no mode, or two");
    }
    if has(uapi::USERPTR_PINNED) && has(uapi::USERPTR_EVENT | uapi::USERPTR_SPARSE) {
        return Some("flags that are for mirrored memory");
    }
    if register.size == 0 || register.size & PAGE_MASK != 0 {
        return Some("a size that is not whole pages");
    }
    if has(uapi::USERPTR_FD) {
        if has(uapi::USERPTR_MIRRORED) || register.addr != 0 {
            return Some("a file that is mirrored, or has an address");
        }
        return (register.fd_offset & PAGE_MASK != 0).then_some("an unaligned offset");
    }
    if register.fd != 0 || register.fd_offset != 0 {
        return Some("a file without the flag");
    }
    if register.addr == 0 || register.addr & PAGE_MASK != 0 {
        return Some("an unaligned address");
    }
    match register.addr.checked_add(register.size) {
        // With page tables of five levels.
        Some(end) if end < 1 << 56 => None,
        _ => Some("an address outside of user memory"),
    }
}

fn prefetch(prefetch: &uapi::UserptrPrefetch) -> Option<&'static str> {
    if prefetch.flags != 0 {
        return Some("an unknown flag");
    }
    if prefetch.length == 0 || (prefetch.length | prefetch.offset) & PAGE_MASK != 0 {
        return Some("a range that is not whole pages");
    }
    match prefetch.offset.checked_add(prefetch.length) {
        Some(_) => None,
        None => Some("a range that wraps"),
    }
}

fn svm_enable(enable: &uapi::SvmEnable) -> Option<&'static str> {
    if enable.flags & !(uapi::SVM_EVENT | uapi::SVM_EXACT) != 0 {
        return Some("an unknown flag");
    }
    if enable.workers > uapi::SVM_MAX_WORKERS {
        return Some("too many threads");
    }
    (enable.pad != 0).then_some("dirty padding")
}

fn svm_prefetch(prefetch: &uapi::SvmPrefetch) -> Option<&'static str> {
    if prefetch.flags & !uapi::SVM_PREFETCH_WRITE != 0 {
        return Some("an unknown flag");
    }
    if prefetch.pad != 0 {
        return Some("dirty padding");
    }
    if prefetch.length == 0 || (prefetch.length | prefetch.addr) & PAGE_MASK != 0 {
        return Some("a range that is not whole pages");
    }
    match prefetch.addr.checked_add(prefetch.length) {
        // With page tables of five levels.
        Some(end) if end < 1 << 56 => None,
        _ => Some("an address outside of user memory"),
    }
}

fn svm_wait(wait: &uapi::SvmWait) -> Option<&'static str> {
    use uapi::svm_wait::{LE, RING};
    if wait.flags != 0 || wait.pad != 0 {
        return Some("dirty padding");
    }
    if wait.op > LE {
        return Some("an unknown operation");
    }
    if wait.op == RING {
        if (wait.addr | wait.value | wait.mask) != 0 {
            return Some("a ring with a value");
        }
        return (wait.ring >= 64).then_some("a ring that no context has");
    }
    if wait.ring != 0 {
        return Some("a value with a ring");
    }
    (wait.addr & 7 != 0).then_some("an unaligned address")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call::number_of;

    #[test]
    fn good_ones_may_succeed() {
        let good = uapi::UserptrRegister {
            addr: 0x3000_0000_0000,
            size: 4096,
            flags: uapi::USERPTR_MIRRORED | uapi::USERPTR_SPARSE,
            blob_mem: 1,
            ..Default::default()
        };
        let mut call = Call::virtgpu(3, nr::USERPTR_REGISTER, &good);
        assert_eq!(never(&call), None);
        call.size -= 1;
        assert!(never(&call).is_some());
        let wait = uapi::Wait {
            handle: 1,
            flags: uapi::WAIT_NOWAIT | 2,
        };
        assert_eq!(never(&Call::virtgpu(3, nr::WAIT, &wait)), None);
        let value = uapi::SvmWait {
            addr: 0x3000_0000_0008,
            mask: u64::MAX,
            op: uapi::svm_wait::NE,
            ..Default::default()
        };
        assert_eq!(never(&Call::virtgpu(3, nr::SVM_WAIT, &value)), None);
        let ring = uapi::SvmWait {
            op: uapi::svm_wait::RING,
            ..value
        };
        assert!(never(&Call::virtgpu(3, nr::SVM_WAIT, &ring)).is_some());
    }

    #[test]
    fn bad_ones_may_not() {
        let unknown = Call::core(3, number_of(0x50), &[]);
        assert!(never(&unknown).is_some());
        let caps = uapi::GetCaps::default();
        assert!(never(&Call::virtgpu(3, nr::GET_CAPS, &caps)).is_some());
        let reserved = uapi::ResourceCreateBlob {
            blob_mem: 1,
            blob_flags: uapi::BLOB_FLAG_USE_USERPTR,
            size: 4096,
            blob_hints: 0x1000,
            rocm: [0, 1],
            ..Default::default()
        };
        let mut call = Call::virtgpu(3, nr::RESOURCE_CREATE_BLOB, &reserved);
        assert!(never(&call).is_some());
        // The driver does not see what the number does not cover.
        call.size = 56;
        assert_eq!(never(&call), None);
        // Only ROCm's form has anything there.
        let other = uapi::ResourceCreateBlob {
            blob_flags: 0,
            ..reserved
        };
        let other = Call::virtgpu(3, nr::RESOURCE_CREATE_BLOB, &other);
        assert_eq!(never(&other), None);
    }
}
