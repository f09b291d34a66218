// SPDX-License-Identifier: GPL-2.0

//! Which files get the spaces of the device.
//!
//! A page may be registered any number of times, and each registration is a space. So that one file
//! does not take all of them, a file has a quota, a quarter, and the last quarter is for files that
//! have no space: there may be more of them than four. Where a quarter is little, the file may have
//! what one program needs, if the others leave it.

use super::{
    Inner,
    MirrorQuota, //
};
use crate::transport::Transport;
use kernel::{
    prelude::*,
    sync::{
        atomic::{
            ordering::Full,
            AtomicFlag, //
        },
        Arc, //
    }, //
};

/// What a file may have although it is more than a quarter.
const FEW: usize = 16;

/// One of the spaces that the device has, for a file.
pub(crate) struct SpaceSlot {
    transport: Arc<Transport>,
    quota: Arc<MirrorQuota>,
    /// It was given back.
    returned: AtomicFlag,
}

impl SpaceSlot {
    /// Takes one of the `most` spaces of a device with a mirror queue for the file that `quota` is
    /// of.
    ///
    /// # Errors
    ///
    /// [`ENOSPC`] if there are no more for it.
    pub(crate) fn new(
        transport: &Arc<Transport>,
        quota: &Arc<MirrorQuota>,
        most: usize,
    ) -> Result<Self> {
        if !transport.mirror.inner.lock().take_space(quota, most) {
            return Err(ENOSPC);
        }
        Ok(Self {
            transport: transport.clone(),
            quota: quota.clone(),
            returned: AtomicFlag::new(false),
        })
    }

    /// The device has ended the space, so the file may have another one.
    pub(crate) fn give_back(&self) {
        if !self.returned.xchg(true, Full) {
            let mut inner = self.transport.mirror.inner.lock();
            inner.return_space(&self.quota);
        }
    }
}

impl Drop for SpaceSlot {
    fn drop(&mut self) {
        self.give_back();
    }
}

impl Inner {
    /// Takes one of the `most` spaces of the device for the file of `quota`, if it may have one
    /// more.
    fn take_space(&mut self, quota: &MirrorQuota, most: usize) -> bool {
        let free = most.saturating_sub(self.spaces);
        let own = quota.spaces.access_mut(self);
        // The one of a small device is for the first who comes.
        let kept = if *own == 0 { 0 } else { most.div_ceil(4) };
        if *own >= (most / 4).max(FEW) || free <= kept {
            return false;
        }
        *own += 1;
        self.spaces += 1;
        true
    }

    /// Takes one of them back.
    fn return_space(&mut self, quota: &MirrorQuota) {
        *quota.spaces.access_mut(self) -= 1;
        self.spaces -= 1;
    }
}

#[kunit_tests(virtgpu_userptr_spaces)]
mod tests {
    use super::{
        super::Mirror,
        *, //
    };
    /// A device of `most` spaces, and how many each of several files has got that take all they
    /// can, one after the other.
    fn shares<const N: usize>(most: usize) -> Result<[usize; N]> {
        let mirror = Arc::pin_init(Mirror::new(), GFP_KERNEL)?;
        let mut shares = [0; N];
        let mut files = KVec::new();
        for share in &mut shares {
            let quota = MirrorQuota::of(&mirror)?;
            while mirror.inner.lock().take_space(&quota, most) {
                *share += 1;
            }
            files.push(quota, GFP_KERNEL)?;
        }
        // All come back, and all is as at first.
        for (quota, share) in files.iter().zip(shares) {
            for _ in 0..share {
                mirror.inner.lock().return_space(quota);
            }
        }
        assert_eq!(mirror.inner.lock().spaces, 0);
        Ok(shares)
    }

    #[test]
    fn a_file_has_a_quarter() -> Result {
        assert_eq!(shares(16384)?, [4096, 4096, 4096, 1, 1, 1, 1, 1]);
        assert_eq!(shares(64)?, [16, 16, 16, 1, 1, 1, 1, 1]);
        Ok(())
    }

    #[test]
    fn a_small_device_serves_several_files() -> Result {
        assert_eq!(shares(40)?, [16, 14, 1, 1, 1, 1, 1, 1]);
        assert_eq!(shares(8)?, [6, 1, 1, 0]);
        assert_eq!(shares(3)?, [2, 1, 0]);
        assert_eq!(shares(2)?, [1, 1, 0]);
        assert_eq!(shares(1)?, [1, 0]);
        assert_eq!(shares(0)?, [0]);
        Ok(())
    }

    #[test]
    fn what_comes_back_is_for_the_same_file() -> Result {
        let mirror = Arc::pin_init(Mirror::new(), GFP_KERNEL)?;
        let quota = MirrorQuota::of(&mirror)?;
        let mut inner = mirror.inner.lock();
        while inner.take_space(&quota, 64) {}
        inner.return_space(&quota);
        assert!(inner.take_space(&quota, 64));
        assert!(!inner.take_space(&quota, 64));
        // Any number that a device may name.
        assert!(inner.take_space(&quota, u32::MAX as usize));
        Ok(())
    }
}
