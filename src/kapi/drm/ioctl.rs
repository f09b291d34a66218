// SPDX-License-Identifier: GPL-2.0

//! Tables of ioctls.
//!
//! C header: [`include/drm/drm_ioctl.h`](srctree/include/drm/drm_ioctl.h)

use super::{
    device::{
        Device,
        Driver, //
    },
    file::File,
};
use crate::kapi::bindings;
use kernel::{
    error::from_result,
    prelude::*, //
};
use zerocopy::{
    FromBytes,
    IntoBytes, //
};

/// First number of a driver's ioctls.
const BASE: u32 = bindings::DRM_COMMAND_BASE;
/// Numbers that a table covers.
pub(crate) const TABLE_LEN: usize = 0x60;

/// An ioctl of driver `D`, which all users of the render node may call.
pub(crate) trait Ioctl<D: Driver> {
    /// The structure that userspace passes and gets back.
    type Args: FromBytes + IntoBytes;

    /// Its number, from `DRM_COMMAND_BASE` on.
    const NR: u32;

    /// Its name, for the log.
    const NAME: &'static CStr;

    /// Bytes that userspace must pass at least. The DRM core takes the rest as zero.
    const MIN_SIZE: usize = 0;

    /// Does it.
    ///
    /// # Errors
    ///
    /// Go to userspace.
    fn call(dev: &Device<D>, file: &File<D>, args: &mut Self::Args) -> Result;
}

extern "C" fn call<D: Driver, I: Ioctl<D>>(
    dev: *mut bindings::drm_device,
    data: *mut c_void,
    file: *mut bindings::drm_file,
) -> c_int {
    from_result(|| {
        // SAFETY: The core calls with a device and an open file of this driver, and with
        // `size_of::<I::Args>()` initialized bytes at least, aligned for any scalar, for the use of
        // this call. All bytes are valid for `I::Args`.
        let (dev, file, args) = unsafe {
            (
                Device::<D>::from_raw(dev),
                File::<D>::from_raw(file),
                &mut *data.cast::<I::Args>(),
            )
        };
        I::call(dev, file, args)?;
        Ok(0)
    })
}

/// The ioctls of a driver.
pub(crate) struct IoctlTable {
    descriptors: [bindings::drm_ioctl_desc; TABLE_LEN],
    min_sizes: [u16; TABLE_LEN],
}

// SAFETY: The pointers in it are those of static strings and functions.
unsafe impl Sync for IoctlTable {}

impl IoctlTable {
    /// No ioctls.
    pub(crate) const fn new() -> Self {
        Self {
            descriptors: [const {
                bindings::drm_ioctl_desc {
                    cmd: 0,
                    flags: 0,
                    func: None,
                    name: core::ptr::null(),
                }
            }; TABLE_LEN],
            min_sizes: [0; TABLE_LEN],
        }
    }

    /// Adds ioctl `I`.
    pub(crate) const fn with<D: Driver, I: Ioctl<D>>(mut self) -> Self {
        let index = I::NR as usize;
        self.descriptors[index] = bindings::drm_ioctl_desc {
            cmd: kernel::ioctl::_IOWR::<I::Args>(bindings::DRM_IOCTL_BASE as u32, BASE + I::NR),
            flags: bindings::drm_ioctl_flags_DRM_RENDER_ALLOW,
            func: Some(call::<D, I>),
            name: kernel::str::as_char_ptr_in_const_context(I::NAME),
        };
        self.min_sizes[index] = I::MIN_SIZE as u16;
        self
    }

    pub(super) const fn descriptors(&self) -> &[bindings::drm_ioctl_desc] {
        &self.descriptors
    }

    fn admits(&self, cmd: c_uint) -> bool {
        let nr = kernel::ioctl::_IOC_NR(cmd).wrapping_sub(BASE) as usize;
        match self.min_sizes.get(nr) {
            Some(&min) => kernel::ioctl::_IOC_SIZE(cmd) >= usize::from(min),
            None => true,
        }
    }
}

pub(super) extern "C" fn unlocked_ioctl<D: Driver>(
    file: *mut bindings::file,
    cmd: c_uint,
    arg: c_ulong,
) -> c_long {
    if !D::IOCTLS.admits(cmd) {
        return EINVAL.to_errno() as c_long;
    }
    // SAFETY: The arguments are those of the VFS.
    unsafe { bindings::drm_ioctl(file, cmd, arg) }
}

#[cfg(CONFIG_COMPAT)]
pub(super) extern "C" fn compat_ioctl<D: Driver>(
    file: *mut bindings::file,
    cmd: c_uint,
    arg: c_ulong,
) -> c_long {
    if !D::IOCTLS.admits(cmd) {
        return EINVAL.to_errno() as c_long;
    }
    // SAFETY: The arguments are those of the VFS.
    unsafe { bindings::drm_compat_ioctl(file, cmd, arg) }
}
