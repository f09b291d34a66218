// SPDX-License-Identifier: GPL-2.0

//! What userspace asks for, validated before anything else is done.

use crate::{
    gpu::Features,
    kapi::mm,
    protocol::{
        uapi::{
            self,
            UserptrRegister, //
        },
        virtio_gpu::blob_mem, //
    },
};
use kernel::{
    page::PAGE_SIZE,
    prelude::*, //
};

/// Where the memory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// Guest-virtual address in the current process.
    Address(usize),
    /// Descriptor of a memfd, and the offset in it in bytes.
    File(u32, u64),
}

impl Source {
    /// Guest-virtual address, 0 for a file.
    pub(crate) fn addr(&self) -> u64 {
        match self {
            Source::Address(addr) => *addr as u64,
            Source::File(..) => 0,
        }
    }
}

/// A registration that makes sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Params {
    /// Where the memory is.
    pub(crate) source: Source,
    /// Bytes, a multiple of the page size, not 0.
    pub(crate) len: usize,
    /// Whether the device may write.
    pub(crate) write: bool,
    /// For the host.
    pub(crate) blob_mem: u32,
    /// For the host.
    pub(crate) blob_id: u64,
    /// Bytes that the host is told, at most `len`.
    pub(crate) wire_size: u64,
    /// The device follows the page tables; else the pages are pinned.
    pub(crate) mirrored: bool,
    /// Jobs use only what was prefetched.
    pub(crate) sparse: bool,
    /// Make everything usable at once.
    pub(crate) prefault: bool,
    /// Tell the program when memory is gone, with this cookie.
    pub(crate) event: Option<u64>,
    /// As passed by userspace.
    pub(crate) flags: u32,
}

const KNOWN: u32 = uapi::USERPTR_PINNED
    | uapi::USERPTR_MIRRORED
    | uapi::USERPTR_RDONLY
    | uapi::USERPTR_FD
    | uapi::USERPTR_PREFAULT
    | uapi::USERPTR_EVENT
    | uapi::USERPTR_SPARSE;
/// Flags that mean something only where pages come and go.
const MIRRORED_ONLY: u32 = uapi::USERPTR_EVENT | uapi::USERPTR_SPARSE;

impl Params {
    /// Validates the arguments of USERPTR_REGISTER.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] for what can never be right, [`EOPNOTSUPP`] for what this device or driver does
    /// not do, [`EFAULT`] for addresses that are not user memory.
    pub(crate) fn new(args: &UserptrRegister, features: &Features) -> Result<Self> {
        let flags = args.flags;
        let has = |flag| flags & flag != 0;
        if flags & !KNOWN != 0 || args.pad != 0 {
            return Err(EINVAL);
        }
        if has(uapi::USERPTR_PINNED) == has(uapi::USERPTR_MIRRORED) {
            return Err(EINVAL);
        }
        if has(uapi::USERPTR_PINNED) && flags & MIRRORED_ONLY != 0 {
            return Err(EINVAL);
        }
        if has(uapi::USERPTR_MIRRORED) && has(uapi::USERPTR_FD) {
            return Err(EINVAL);
        }
        match args.blob_mem {
            blob_mem::GUEST if args.blob_id == 0 => {}
            blob_mem::HOST3D_GUEST if features.virgl => {}
            _ => return Err(EINVAL),
        }

        let len = usize::try_from(args.size)?;
        if len % PAGE_SIZE != 0 || !features.takes_blob_size(args.size) {
            return Err(EINVAL);
        }
        let source = if has(uapi::USERPTR_FD) {
            let end = args.fd_offset.checked_add(args.size).ok_or(EINVAL)?;
            if args.addr != 0
                || args.fd_offset % PAGE_SIZE as u64 != 0
                || i64::try_from(end).is_err()
            {
                return Err(EINVAL);
            }
            Source::File(u32::try_from(args.fd).map_err(|_| EBADF)?, args.fd_offset)
        } else {
            let addr = usize::try_from(args.addr)?;
            if addr == 0 || addr % PAGE_SIZE != 0 || args.fd != 0 || args.fd_offset != 0 {
                return Err(EINVAL);
            }
            addr.checked_add(len).ok_or(EINVAL)?;
            Source::Address(addr)
        };
        if has(uapi::USERPTR_MIRRORED) && features.mirror.is_none() {
            return Err(EOPNOTSUPP);
        }
        if let Source::Address(addr) = source {
            if !mm::is_user_range(addr, len) {
                return Err(EFAULT);
            }
        }
        Ok(Self {
            source,
            len,
            write: !has(uapi::USERPTR_RDONLY),
            blob_mem: args.blob_mem,
            blob_id: args.blob_id,
            wire_size: args.size,
            mirrored: has(uapi::USERPTR_MIRRORED),
            sparse: has(uapi::USERPTR_SPARSE),
            prefault: has(uapi::USERPTR_PREFAULT),
            event: has(uapi::USERPTR_EVENT).then_some(args.cookie),
            flags,
        })
    }

    /// Validates ROCm's form of RESOURCE_CREATE_BLOB: an address and a size of any alignment, of
    /// which the host is told as they are; the pages around them are registered.
    ///
    /// # Errors
    ///
    /// As [`Params::new`].
    pub(crate) fn from_blob(args: &uapi::ResourceCreateBlob, features: &Features) -> Result<Self> {
        let addr = u64::from(args.pad2) << 32 | u64::from(args.blob_hints);
        let addr = usize::try_from(addr)?;
        let size = usize::try_from(args.size)?;
        if addr == 0 || size == 0 || args.pad != 0 || args.rocm != [0; 2] || args.cmd_size != 0 {
            return Err(EINVAL);
        }
        let known = uapi::BLOB_FLAG_USE_USERPTR | uapi::BLOB_FLAG_USERPTR_RDONLY;
        if args.blob_flags & !known != 0 || !features.takes_blob_size(args.size) {
            return Err(EINVAL);
        }
        match args.blob_mem {
            blob_mem::GUEST if args.blob_id == 0 => {}
            blob_mem::HOST3D_GUEST if features.virgl => {}
            _ => return Err(EINVAL),
        }

        let end = addr.checked_add(size).ok_or(EINVAL)?;
        let start = addr & !(PAGE_SIZE - 1);
        let end = end.checked_next_multiple_of(PAGE_SIZE).ok_or(EINVAL)?;
        if !mm::is_user_range(start, end - start) {
            return Err(EFAULT);
        }
        let rdonly = args.blob_flags & uapi::BLOB_FLAG_USERPTR_RDONLY != 0;
        Ok(Self {
            source: Source::Address(start),
            len: end - start,
            write: !rdonly,
            blob_mem: args.blob_mem,
            blob_id: args.blob_id,
            wire_size: args.size,
            mirrored: false,
            sparse: false,
            prefault: false,
            event: None,
            flags: uapi::USERPTR_PINNED | if rdonly { uapi::USERPTR_RDONLY } else { 0 },
        })
    }
}

#[kunit_tests(virtgpu_userptr_params)]
mod tests {
    use super::*;

    const FEATURES: Features = Features {
        virgl: true,
        blob: true,
        context_init: true,
        uuid: false,
        blob_alignment: Some(65536),
        indirect: true,
        dma: false,
        mirror: None,
        faults: None,
        event_slots: None,
    };

    fn good() -> UserptrRegister {
        UserptrRegister {
            addr: 0x10000,
            size: 0x20000,
            flags: uapi::USERPTR_PINNED,
            blob_mem: blob_mem::GUEST,
            ..Default::default()
        }
    }

    fn parse(change: impl FnOnce(&mut UserptrRegister)) -> Result<Params> {
        let mut args = good();
        change(&mut args);
        Params::new(&args, &FEATURES)
    }

    #[test]
    fn address() {
        let params = parse(|_| {});
        assert!(matches!(
            params,
            Ok(Params {
                source: Source::Address(0x10000),
                len: 0x20000,
                write: true,
                ..
            })
        ));
    }

    #[test]
    fn read_only() {
        let params = parse(|args| args.flags |= uapi::USERPTR_RDONLY);
        assert!(matches!(params, Ok(Params { write: false, .. })));
    }

    #[test]
    fn shape() {
        assert_eq!(parse(|args| args.addr = 0), Err(EINVAL));
        assert_eq!(parse(|args| args.addr += 1), Err(EINVAL));
        assert_eq!(parse(|args| args.size = 0), Err(EINVAL));
        assert_eq!(parse(|args| args.size = 0x1000), Err(EINVAL));
        assert_eq!(
            parse(|args| args.size = 0u64.wrapping_sub(65536)),
            Err(EINVAL)
        );
        assert_eq!(parse(|args| args.pad = 1), Err(EINVAL));
        assert_eq!(parse(|args| args.fd = 3), Err(EINVAL));
        assert_eq!(parse(|args| args.blob_id = 1), Err(EINVAL));
        assert_eq!(parse(|args| args.blob_mem = blob_mem::HOST3D), Err(EINVAL));
    }

    #[test]
    fn modes() {
        assert_eq!(parse(|args| args.flags = 0), Err(EINVAL));
        assert_eq!(
            parse(|args| args.flags |= uapi::USERPTR_MIRRORED),
            Err(EINVAL)
        );
        assert_eq!(
            parse(|args| args.flags = uapi::USERPTR_MIRRORED),
            Err(EOPNOTSUPP)
        );
        assert_eq!(parse(|args| args.flags |= uapi::USERPTR_EVENT), Err(EINVAL));
        assert_eq!(parse(|args| args.flags |= 1 << 31), Err(EINVAL));
    }

    #[test]
    fn kernel_addresses() {
        let high = usize::MAX as u64 & !0xffff_ffff;
        assert_eq!(parse(|args| args.addr = high), Err(EFAULT));
    }

    #[test]
    fn file() {
        let params = parse(|args| {
            args.flags |= uapi::USERPTR_FD;
            args.addr = 0;
            args.fd = 5;
            args.fd_offset = 0x3000;
        });
        assert!(matches!(
            params,
            Ok(Params {
                source: Source::File(5, 0x3000),
                ..
            })
        ));
        assert_eq!(parse(|args| args.flags |= uapi::USERPTR_FD), Err(EINVAL));
    }

    #[test]
    fn rocm_rounds_to_pages() {
        let features = Features {
            blob_alignment: None,
            ..FEATURES
        };
        let args = uapi::ResourceCreateBlob {
            blob_mem: blob_mem::HOST3D_GUEST,
            blob_flags: uapi::BLOB_FLAG_USE_USERPTR,
            size: 0x1001,
            blob_id: 7,
            blob_hints: 0x10fff,
            ..Default::default()
        };
        let params = Params::from_blob(&args, &features);
        assert!(matches!(
            params,
            Ok(Params {
                source: Source::Address(0x10000),
                len: 0x2000,
                wire_size: 0x1001,
                blob_id: 7,
                ..
            })
        ));
    }
}
