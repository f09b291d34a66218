// SPDX-License-Identifier: GPL-2.0

//! Fences: events that other drivers and userspace can wait for.
//!
//! C header: [`include/linux/dma-fence.h`](srctree/include/linux/dma-fence.h)

use crate::kapi::{
    bindings,
    sync, //
};
use core::{
    marker::PhantomData,
    mem::MaybeUninit,
    ptr::{
        self,
        NonNull, //
    },
};
use kernel::{
    prelude::*,
    sync::aref::{
        ARef,
        AlwaysRefCounted, //
    },
    types::Opaque, //
};

/// A fence, of any driver.
///
/// # Invariants
///
/// A valid `struct dma_fence`.
#[repr(transparent)]
pub(crate) struct Fence(Opaque<bindings::dma_fence>);

// SAFETY: The functions of a fence may be called from any thread, and so may the last put.
unsafe impl Send for Fence {}

// SAFETY: The functions of a fence may be called concurrently.
unsafe impl Sync for Fence {}

// SAFETY: The functions count references; the memory is freed with the last one.
unsafe impl AlwaysRefCounted for Fence {
    fn inc_ref(&self) {
        // SAFETY: The existence of a reference guarantees that the count is non-zero.
        unsafe { bindings::kapi_dma_fence_get(self.as_raw()) };
    }

    unsafe fn dec_ref(obj: NonNull<Self>) {
        // SAFETY: The caller passes a reference on.
        unsafe { bindings::kapi_dma_fence_put(obj.as_ptr().cast()) }
    }
}

impl Fence {
    pub(in crate::kapi) fn as_raw(&self) -> *mut bindings::dma_fence {
        self.0.get()
    }

    /// Takes over a reference that C code returned.
    ///
    /// # Safety
    ///
    /// `raw` is a valid fence, and the caller owns a reference to it.
    pub(in crate::kapi) unsafe fn from_owned(raw: NonNull<bindings::dma_fence>) -> ARef<Self> {
        // SAFETY: By the requirements of this function.
        unsafe { ARef::from_raw(raw.cast()) }
    }

    /// Whether the fence still refers to functions of the module that made it.
    fn needs_module(&self) -> bool {
        // SAFETY: By the type invariant the fence is valid. The pointer is only compared, and may
        // be cleared meanwhile.
        unsafe { !(&raw const (*self.as_raw()).ops).read_volatile().is_null() }
    }

    /// Waits for all fences inside this one that are not of timeline `context`, for `ms`
    /// milliseconds at most.
    ///
    /// # Errors
    ///
    /// [`EBUSY`] when the time is over, [`ERESTARTSYS`] on a signal.
    pub(crate) fn wait_for_others(&self, context: u64, ms: u32) -> Result {
        // SAFETY: By the type invariant the fence is valid.
        let left = unsafe {
            bindings::kapi_dma_fence_wait_others(self.as_raw(), context, sync::jiffies(ms))
        };
        match left {
            0 => Err(EBUSY),
            left if left < 0 => Err(Error::from_errno(left as c_int)),
            _ => Ok(()),
        }
    }
}

/// Allocates `count` timelines, and returns the first.
pub(crate) fn allocate_timelines(count: u32) -> u64 {
    // SAFETY: Can always be called; the count is not zero.
    unsafe { bindings::dma_fence_context_alloc(count.max(1)) }
}

/// The names that a driver's fences show in debugfs and trace events.
pub(crate) trait TimelineNames: 'static {
    /// Of the driver.
    const DRIVER: &'static CStr;
    /// Of the timeline.
    const TIMELINE: &'static CStr;
}

struct Ops<T>(PhantomData<T>);

impl<T: TimelineNames> Ops<T> {
    // Without `release` and `wait`, a signalled fence does not need this module any more.
    const OPS: bindings::dma_fence_ops = bindings::dma_fence_ops {
        get_driver_name: Some(Self::driver_name),
        get_timeline_name: Some(Self::timeline_name),
        enable_signaling: None,
        signaled: None,
        wait: None,
        release: None,
        set_deadline: None,
    };

    extern "C" fn driver_name(_fence: *mut bindings::dma_fence) -> *const c_char {
        T::DRIVER.as_char_ptr()
    }

    extern "C" fn timeline_name(_fence: *mut bindings::dma_fence) -> *const c_char {
        T::TIMELINE.as_char_ptr()
    }
}

/// A fence that only its maker knows, without a place in its timeline.
///
/// Who compares two fences reads their numbers, so a fence must have its own before anybody else
/// sees it. There is no way to a [`Fence`] but [`UnpublishedFence::publish`], which takes the
/// number:
///
/// ```compile_fail,E0382
/// fn publish_twice(unpublished: UnpublishedFence) {
///     let _ = unpublished.publish(1);
///     let _ = unpublished.publish(2); // error[E0382]: use of moved value: `unpublished`
/// }
/// ```
/// Dropping it drops the fence, for which no one can wait.
///
/// # Invariants
///
/// Not signalled. The other references, if any, belong to a [`PendingSyncFile`], whose file is not
/// published.
///
/// [`PendingSyncFile`]: super::sync_file::PendingSyncFile
pub(crate) struct UnpublishedFence {
    fence: ARef<Fence>,
}

impl UnpublishedFence {
    /// A fence on timeline `context`.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    pub(crate) fn new<T: TimelineNames>(context: u64) -> Result<Self> {
        let memory: KBox<MaybeUninit<bindings::dma_fence>> = KBox::new_uninit(GFP_KERNEL)?;
        let raw = KBox::into_raw(memory).cast::<bindings::dma_fence>();

        // SAFETY: `raw` is valid for writes. The table is static. Without a lock the fence uses
        // its own. The last put frees the memory with `kfree_rcu()`, which fits `KBox`, as there
        // is nothing to drop.
        unsafe {
            bindings::dma_fence_init64(raw, const { &Ops::<T>::OPS }, ptr::null_mut(), context, 0)
        };
        // INVARIANT: New fences are not signalled, and there is no other reference to them.
        // SAFETY: A new fence has one reference, which is ours, and is not null.
        let fence = unsafe { ARef::from_raw(NonNull::new_unchecked(raw.cast())) };
        Ok(Self { fence })
    }

    /// Gives the fence its place in its timeline. Returns the promise to signal it, and the fence,
    /// to hand on to those who wait. Does not sleep.
    ///
    /// Numbers must ascend in a timeline, in the order in which its fences are signalled.
    pub(crate) fn publish(self, seqno: u64) -> (DriverFence, ARef<Fence>) {
        // SAFETY: The fence is valid, and by the type invariant no other code reads the number.
        unsafe { (*self.fence.as_raw()).seqno = seqno };
        let published = self.fence.clone();
        // INVARIANT: Not signalled, by the invariant of `self`, which was the only one that might.
        (DriverFence { fence: self.fence }, published)
    }

    /// The fence, for code that does not share it until it is published.
    pub(super) fn as_raw(&self) -> *mut bindings::dma_fence {
        self.fence.as_raw()
    }
}

/// A fence that this driver promises to signal.
///
/// Dropping it signals it with `-ECANCELED`.
///
/// # Invariants
/// Not signalled. Only this may signal it.
pub(crate) struct DriverFence {
    fence: ARef<Fence>,
}

impl DriverFence {
    /// Signals the fence. May be called in any context.
    pub(crate) fn signal(self, outcome: Result) {
        let this = core::mem::ManuallyDrop::new(self);
        this.finish(outcome);
        // SAFETY: `this` is never dropped, so the reference is moved out once.
        drop(unsafe { ptr::read(&this.fence) });
    }

    fn finish(&self, outcome: Result) {
        let raw = self.fence.as_raw();
        // SAFETY: The fence is valid and, by the type invariant, not signalled, so that the error
        // may be set.
        unsafe {
            if let Err(e) = outcome {
                bindings::kapi_dma_fence_set_error(raw, e.to_errno());
            }
            bindings::dma_fence_signal(raw);
        }
    }
}

impl Drop for DriverFence {
    fn drop(&mut self) {
        self.finish(Err(ECANCELED));
    }
}

/// Makes sure that the kernel lets a fence outlive the module that made it.
///
/// Others keep a fence for as long as they like, also when the module is gone. That is right only
/// if the kernel drops the fence's table of functions as it is signalled
/// (`dma_fence_signal_timestamp_locked()`), which older kernels do not do.
///
/// # Errors
///
/// [`EOPNOTSUPP`] if a signalled fence still refers to the module, [`ENOMEM`].
pub(crate) fn check_independence<T: TimelineNames>() -> Result {
    let (fence, kept) = UnpublishedFence::new::<T>(allocate_timelines(1))?.publish(1);
    fence.signal(Ok(()));
    if kept.needs_module() {
        return Err(EOPNOTSUPP);
    }
    Ok(())
}

/// Tells lockdep that what happens as long as this lives is needed to signal fences.
///
/// # Invariants
///
/// The cookie is that of the begin, whose end follows once, on the same thread.
pub(crate) struct Signalling {
    cookie: bool,
    _not_send: kernel::types::NotThreadSafe,
}

impl Signalling {
    /// Begins a critical section of signalling.
    pub(crate) fn begin() -> Self {
        // INVARIANT: This is the begin.
        Self {
            // SAFETY: May be called in any context.
            cookie: unsafe { bindings::kapi_dma_fence_begin_signalling() },
            _not_send: kernel::types::NotThreadSafe,
        }
    }
}

impl Drop for Signalling {
    fn drop(&mut self) {
        // SAFETY: By the type invariant this ends the section that `begin` began.
        unsafe { bindings::kapi_dma_fence_end_signalling(self.cookie) }
    }
}

/// A node for one more point of a timeline syncobj, allocated ahead.
///
/// # Invariants
///
/// From `dma_fence_chain_alloc()`, not initialized.
pub(crate) struct ChainNode(NonNull<bindings::dma_fence_chain>);

impl ChainNode {
    /// Allocates a node.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    pub(crate) fn new() -> Result<Self> {
        // SAFETY: Can always be called.
        let raw = unsafe { bindings::kapi_dma_fence_chain_alloc() };
        // INVARIANT: Just allocated.
        NonNull::new(raw).map(Self).ok_or(ENOMEM)
    }

    /// Gives the node up to a C function that takes it over.
    pub(in crate::kapi) fn into_raw(self) -> *mut bindings::dma_fence_chain {
        core::mem::ManuallyDrop::new(self).0.as_ptr()
    }
}

impl Drop for ChainNode {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the node was never used.
        unsafe { bindings::kapi_dma_fence_chain_free(self.0.as_ptr()) }
    }
}

#[kunit_tests(virtgpu_userptr_fence)]
mod tests {
    use super::*;

    struct Names;

    impl TimelineNames for Names {
        const DRIVER: &'static CStr = c"test";
        const TIMELINE: &'static CStr = c"test";
    }

    extern "C" fn wait(_fence: *mut bindings::dma_fence, _intr: bool, timeout: c_long) -> c_long {
        timeout
    }

    const WITH_WAIT: bindings::dma_fence_ops = bindings::dma_fence_ops {
        wait: Some(wait),
        ..Ops::<Names>::OPS
    };

    #[test]
    fn signalled_fences_are_independent() -> Result {
        let (fence, kept) = UnpublishedFence::new::<Names>(allocate_timelines(1))?.publish(1);
        assert!(kept.needs_module());
        fence.signal(Err(EIO));
        assert!(!kept.needs_module());
        check_independence::<Names>()
    }

    /// What the check finds: a fence with a function of its own for waiting keeps its table.
    #[test]
    fn others_are_not() -> Result {
        let (fence, kept) = UnpublishedFence::new::<Names>(allocate_timelines(1))?.publish(1);
        // SAFETY: There is no other reference to the fence, and the table is static.
        unsafe { (*kept.as_raw()).ops = const { &WITH_WAIT } };
        fence.signal(Ok(()));
        assert!(kept.needs_module());
        Ok(())
    }
}
