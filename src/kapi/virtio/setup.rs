// SPDX-License-Identifier: GPL-2.0

//! Setting up the queues of a device, once each time that it comes up.
//!
//! C headers: [`include/linux/virtio.h`](srctree/include/linux/virtio.h),
//! [`include/linux/virtio_config.h`](srctree/include/linux/virtio_config.h)

use super::{
    binding::Binding,
    device::{
        Device,
        F_INDIRECT_DESC, //
    },
    queue::NewQueue,
    queue_set::{
        QueueSet,
        Virtqueue,
        LIVE, //
    },
};
use crate::kapi::bindings;
use core::ptr::{
    self,
    NonNull, //
};
use kernel::{
    error::to_result,
    prelude::*,
    sync::{
        atomic::Atomic,
        Arc,
        ArcBorrow,
        UniqueArc, //
    }, //
};

/// What is called when the device has used buffers.
pub(crate) trait QueueHandler: Send + Sync + 'static {
    /// Queue number `index` has used buffers, or is broken.
    ///
    /// Runs in hard interrupt context.
    fn used(this: ArcBorrow<'_, Self>, index: u32);
}

/// Drops what `Arc::into_raw` has made of an `Arc<H>`.
///
/// # Safety
///
/// `handler` is such a pointer, and the caller passes its ownership on.
unsafe fn drop_handler<H>(handler: *mut c_void) {
    // SAFETY: By the requirements of this function.
    drop(unsafe { Arc::from_raw(handler.cast::<H>().cast_const()) });
}

extern "C" fn callback<H: QueueHandler>(vq: *mut bindings::virtqueue) {
    // SAFETY: The virtio core calls with a valid queue of a device, whose `priv` was set by
    // `QueueSetup::find::<H>` and holds a reference as long as the queues exist.
    let (handler, index) = unsafe {
        (
            ArcBorrow::from_raw((*(*vq).vdev).priv_.cast::<H>().cast_const()),
            (*vq).index,
        )
    };

    H::used(handler, index);
}

/// The right to set up the queues of a device, which the bus gives to a driver once each time that
/// the device comes up.
///
/// Queues cannot be found twice:
///
/// ```compile_fail,E0382
/// fn probe<H: QueueHandler>(setup: QueueSetup<'_>, one: Arc<H>, other: Arc<H>) -> Result {
///     let _ = setup.find(one, [c"control"])?;
///     let _ = setup.find(other, [c"control"])?; // error[E0382]: use of moved value: `setup`
///     Ok(())
/// }
/// ```
pub(crate) struct QueueSetup<'a> {
    binding: &'a Binding,
}

impl<'a> QueueSetup<'a> {
    /// The device of `binding` comes up.
    pub(super) fn new(binding: &'a Binding) -> Self {
        Self { binding }
    }

    /// Sets up the first `N` queues of the device.
    ///
    /// They belong to the [`Binding`], and are gone when it ends or when the machine sleeps.
    ///
    /// # Errors
    ///
    /// Those of the transport; [`ENOENT`] if the device has fewer queues, [`ENOMEM`].
    pub(crate) fn find<H: QueueHandler, const N: usize>(
        self,
        handler: Arc<H>,
        names: [&'static CStr; N],
    ) -> Result<([NewQueue; N], Unready<'a>)> {
        let set = self
            .binding
            .set_up_queues(|vdev| find_queues(vdev, handler, names))?;
        if set.queues.len() < N {
            return Err(ENOENT);
        }
        let indirect = self.binding.device().has_feature(F_INDIRECT_DESC);
        // INVARIANT: The queues were just found, and all have a place in the set.
        let queues = core::array::from_fn(|index| NewQueue {
            indirect,
            index,
            set: set.clone(),
        });
        Ok((queues, Unready(self.binding)))
    }
}

/// A device with queues that does not know that its driver is ready.
///
/// The bus sets DRIVER_OK when the driver has been probed, if that was not done before.
pub(crate) struct Unready<'a>(&'a Binding);

impl Unready<'_> {
    /// Tells the device that the driver is ready, so that the queues can be used at once.
    pub(crate) fn ready(self) {
        // SAFETY: The device is coming up, so its driver is bound; its queues were just found, and
        // this was not said before, because it needs the one `Unready`.
        unsafe { bindings::kapi_virtio_device_ready(self.0.device().as_raw()) }
    }
}

/// Finds the first `N` queues of a bound device that has none; if there are fewer, those.
fn find_queues<H: QueueHandler, const N: usize>(
    vdev: &Device,
    handler: Arc<H>,
    names: [&'static CStr; N],
) -> Result<Arc<QueueSet>> {
    let mut infos = names.map(|name| bindings::virtqueue_info {
        name: name.as_char_ptr(),
        callback: Some(callback::<H>),
        ctx: false,
    });
    let mut vqs = [ptr::null_mut(); N];
    let mut set = UniqueArc::new(
        QueueSet {
            state: Atomic::new(LIVE),
            queues: KVec::with_capacity(N, GFP_KERNEL)?,
            drop_handler: drop_handler::<H>,
        },
        GFP_KERNEL,
    )?;

    // SAFETY: `priv` belongs to the driver. It must be set before an interrupt can come.
    unsafe { (*vdev.as_raw()).priv_ = Arc::into_raw(handler).cast_mut().cast() };

    // SAFETY: Both arrays have `N` entries; the device is bound and has no queues.
    let found = to_result(unsafe {
        bindings::kapi_virtio_find_vqs(
            vdev.as_raw(),
            N as c_uint,
            vqs.as_mut_ptr(),
            infos.as_mut_ptr(),
        )
    });
    if let Err(e) = found {
        // SAFETY: No queue exists, so nothing uses `priv`, which was set above.
        unsafe {
            let handler = (*vdev.as_raw()).priv_;
            (*vdev.as_raw()).priv_ = ptr::null_mut();
            drop_handler::<H>(handler);
        }
        return Err(e);
    }

    // INVARIANT: The queues were found, are empty, and `priv` is set.
    for vq in vqs.into_iter().filter_map(NonNull::new) {
        let owed = Atomic::new(0);
        // There is room for all.
        let _ = set.queues.push_within_capacity(Virtqueue { vq, owed });
    }
    Ok(set.into())
}
