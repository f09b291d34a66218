// SPDX-License-Identifier: GPL-2.0

//! Notifications of changes to a range of a process's addresses.
//!
//! A driver that lets a device use the pages behind a range without holding them is told before the
//! kernel changes their page tables, and must have ended the device's access when its callbacks
//! return.
//!
//! C header: [`include/linux/mmu_notifier.h`](srctree/include/linux/mmu_notifier.h); see
//! `Documentation/mm/hmm.rst`.

use super::exclusive::Owner;
use crate::kapi::bindings;
use core::{
    cell::UnsafeCell,
    marker::PhantomData, //
};
use kernel::{
    container_of,
    error::to_result,
    mm::Mm,
    prelude::*,
    sync::{
        aref::ARef,
        atomic::{
            ordering::Full,
            AtomicFlag, //
        }, //
    },
    types::Opaque, //
};

/// What happens to the pages. With all but [`Change::Unmap`] and [`Change::Release`] the addresses
/// stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// The addresses are unmapped.
    Unmap,
    /// Pages are replaced or unmapped.
    Clear,
    /// Rights of the addresses change.
    ProtectionVma,
    /// Rights of pages change, as for a copy on write.
    ProtectionPage,
    /// Writes are to be noticed.
    SoftDirty,
    /// The process has ended or called exec: all its addresses go.
    Release,
    /// Pages move to the memory of a device or back.
    Migrate,
    /// A device uses pages alone.
    Exclusive,
    /// Something that this kernel has and this enum has not.
    Other,
}

impl Change {
    /// How many there are.
    pub(crate) const COUNT: usize = Self::ALL.len();

    /// All of them, in the order of their numbers.
    pub(crate) const ALL: [Self; 9] = [
        Self::Unmap,
        Self::Clear,
        Self::ProtectionVma,
        Self::ProtectionPage,
        Self::SoftDirty,
        Self::Release,
        Self::Migrate,
        Self::Exclusive,
        Self::Other,
    ];

    /// Its name, for statistics and traces.
    pub(crate) fn name(self) -> &'static CStr {
        match self {
            Self::Unmap => c"unmap",
            Self::Clear => c"clear",
            Self::ProtectionVma => c"protection_vma",
            Self::ProtectionPage => c"protection_page",
            Self::SoftDirty => c"soft_dirty",
            Self::Release => c"release",
            Self::Migrate => c"migrate",
            Self::Exclusive => c"exclusive",
            Self::Other => c"other",
        }
    }
}

/// Tells changes from one another that are under way at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ChangeId(usize);

impl ChangeId {
    /// That of a change which the kernel describes so, from its beginning to its end.
    pub(super) fn of(range: *const bindings::mmu_notifier_range) -> Self {
        Self(range.addr())
    }

    /// That of no change, for tests.
    #[cfg(CONFIG_KUNIT = "y")]
    pub(crate) const fn made_up(number: usize) -> Self {
        Self(number)
    }
}

/// One notification.
pub(crate) struct Invalidation<'a> {
    raw: *const bindings::mmu_notifier_range,
    notifier: *mut bindings::mmu_interval_notifier,
    sequence: c_ulong,
    /// First byte that is affected, counted from the start of the interval.
    pub(crate) first: usize,
    /// Last byte that is affected, inside the interval.
    pub(crate) last: usize,
    _lifetime: PhantomData<&'a ()>,
}

impl Invalidation<'_> {
    /// What happens.
    pub(crate) fn change(&self) -> Change {
        // SAFETY: The range is valid during the callback.
        match unsafe { (*self.raw).event } {
            bindings::mmu_notifier_event_MMU_NOTIFY_UNMAP => Change::Unmap,
            bindings::mmu_notifier_event_MMU_NOTIFY_CLEAR => Change::Clear,
            bindings::mmu_notifier_event_MMU_NOTIFY_PROTECTION_VMA => Change::ProtectionVma,
            bindings::mmu_notifier_event_MMU_NOTIFY_PROTECTION_PAGE => Change::ProtectionPage,
            bindings::mmu_notifier_event_MMU_NOTIFY_SOFT_DIRTY => Change::SoftDirty,
            bindings::mmu_notifier_event_MMU_NOTIFY_RELEASE => Change::Release,
            bindings::mmu_notifier_event_MMU_NOTIFY_MIGRATE => Change::Migrate,
            bindings::mmu_notifier_event_MMU_NOTIFY_EXCLUSIVE => Change::Exclusive,
            _ => Change::Other,
        }
    }

    /// Which change this is, to [`EndHandler::ended`](super::EndHandler::ended).
    pub(crate) fn id(&self) -> ChangeId {
        ChangeId::of(self.raw)
    }

    /// Whether the callback may sleep.
    pub(crate) fn may_block(&self) -> bool {
        // SAFETY: The range is valid during the callback.
        unsafe { bindings::kapi_mmu_range_blockable(self.raw) }
    }

    /// Whether a page is being made exclusive for `owner`: the only notification that need not make
    /// lookups stale, nor end the access to the page, if that is the owner's own.
    pub(crate) fn is_by(&self, owner: Owner) -> bool {
        // SAFETY: The range is valid during the callback, and an event of this kind has an owner.
        self.change() == Change::Exclusive && owner.is(unsafe { (*self.raw).owner })
    }

    /// Makes [`IntervalNotifier::is_stale`] true for all pages looked up before.
    ///
    /// Must be called in every callback that does not refuse, with the lock held under which the
    /// driver calls `is_stale`; unless the driver keeps account of that change itself, to its end.
    pub(crate) fn supersede(&self) {
        // SAFETY: The notifier is valid during the callback; the sequence is that of the callback.
        unsafe { bindings::kapi_mmu_interval_set_seq(self.notifier, self.sequence) }
    }
}

/// What the first pass over the affected notifiers has left to do.
pub(crate) enum Start<P> {
    /// Nothing: the device accesses the pages no more.
    Done,
    /// It would have to sleep, and may not. The device may access what it could access before.
    Refused,
    /// The second pass will do the rest.
    Unfinished(FinishNode<P>),
}

/// The driver's side of a notifier.
///
/// Both functions can run at the same time on several threads, and inside each other.
///
/// They run in whatever holds the pages: with `mmap_lock` or a page's lock held, in memory reclaim.
/// They must not allocate memory with direct reclaim, nor take a lock that is ever held while
/// a thread does so, nor wait interruptibly.
pub(crate) trait IntervalHandler: Send + Sync {
    /// What is carried from the first pass to the second.
    type Pending: Send;

    /// The first pass, over all notifiers of a range that changes.
    ///
    /// [`Start::Refused`] is for notifications that may not block only. With [`Start::Done`] the
    /// device has stopped to access the pages.
    fn start(&self, change: &Invalidation<'_>) -> Start<Self::Pending>;

    /// The second pass. On return the device has stopped to access the pages. May block.
    fn finish(&self, pending: FinishNode<Self::Pending>);
}

/// Memory for one unfinished notification, allocated ahead, since the callbacks cannot.
pub(crate) struct FinishNode<P>(KBox<Node<P>>);

#[repr(C)]
struct Node<P> {
    raw: Opaque<bindings::mmu_interval_notifier_finish>,
    value: UnsafeCell<Option<P>>,
}

// SAFETY: The node is used by one thread at a time: its owner or the core.
unsafe impl<P: Send> Send for Node<P> {}

impl<P> FinishNode<P> {
    /// Allocates a node.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    pub(crate) fn new() -> Result<Self> {
        Ok(Self(KBox::new(
            Node {
                raw: Opaque::uninit(),
                value: UnsafeCell::new(None),
            },
            GFP_KERNEL_ACCOUNT,
        )?))
    }

    /// Puts something into the node.
    pub(crate) fn set(&mut self, value: P) {
        *self.0.value.get_mut() = Some(value);
    }

    /// Takes it out again.
    pub(crate) fn take(&mut self) -> Option<P> {
        self.0.value.get_mut().take()
    }
}

/// A notifier for a range of addresses, which is called for as long as this lives, or until it is
/// removed.
///
/// Dropping it waits for callbacks that are running; it must not be dropped by a callback, nor
/// with a lock held that a callback takes.
///
/// # Invariants
///
/// `raw` was inserted for `mm`, and is removed by whoever sets `removed`.
#[pin_data(PinnedDrop)]
pub(crate) struct IntervalNotifier<H: IntervalHandler> {
    #[pin]
    raw: Opaque<bindings::mmu_interval_notifier>,
    /// What `raw` names also when it was removed.
    mm: ARef<Mm>,
    removed: AtomicFlag,
    start: usize,
    len: usize,
    handler: H,
}

// SAFETY: A notifier may be used and removed by any thread.
unsafe impl<H: IntervalHandler> Send for IntervalNotifier<H> {}

// SAFETY: All functions on a shared reference may be called concurrently.
unsafe impl<H: IntervalHandler> Sync for IntervalNotifier<H> {}

struct Ops<H>(PhantomData<H>);

impl<H: IntervalHandler> Ops<H> {
    const OPS: bindings::mmu_interval_notifier_ops = bindings::mmu_interval_notifier_ops {
        invalidate: None,
        invalidate_start: Some(IntervalNotifier::<H>::start_callback),
        invalidate_finish: Some(IntervalNotifier::<H>::finish_callback),
    };
}

impl<H: IntervalHandler> IntervalNotifier<H> {
    /// A notifier for `bytes` bytes at `addr` in the address space `mm`, which must be the current
    /// process's. Both are multiples of the page size.
    ///
    /// The handler is called from the moment of the insertion, before this returns.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`], [`EINTR`] on a signal, [`EOVERFLOW`] for a range that wraps or is empty.
    pub(crate) fn new<'a>(
        mm: &'a Mm,
        addr: usize,
        bytes: usize,
        handler: H,
    ) -> impl PinInit<Self, Error> + 'a
    where
        H: 'a,
    {
        try_pin_init!(Self {
            mm: mm.into(),
            removed: AtomicFlag::new(false),
            start: addr,
            len: bytes,
            // Callbacks use these fields, so that the insertion comes last.
            handler,
            raw <- Opaque::try_ffi_init(|slot| {
                // SAFETY: The slot is pinned memory, and `mm` is valid. The table is static. What
                // the callbacks use was initialized before.
                to_result(unsafe {
                    bindings::mmu_interval_notifier_insert(
                        slot,
                        mm.as_raw(),
                        addr,
                        bytes,
                        const { &Ops::<H>::OPS },
                    )
                })
            }),
        }? Error)
    }

    /// Removes the notifier, unless that was done: waits for callbacks that are running, after
    /// which none is called. What is looked up from then on never becomes stale, and only the
    /// caller can see to it that it is not used.
    ///
    /// As a drop, this must not be done by a callback, nor with a lock held that a callback takes.
    pub(crate) fn remove(&self) {
        if !self.removed.xchg(true, Full) {
            // SAFETY: By the type invariant the notifier is inserted, and this is who removes it.
            unsafe { bindings::mmu_interval_notifier_remove(self.raw.get()) }
        }
    }

    /// Whether the current thread's address space is the one that the notifier is for.
    pub(super) fn is_of_current(&self) -> bool {
        super::is_current(&self.mm)
    }

    /// Bytes of the interval.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// First address of the interval.
    pub(crate) fn start(&self) -> usize {
        self.start
    }

    pub(super) fn as_raw(&self) -> *mut bindings::mmu_interval_notifier {
        self.raw.get()
    }

    /// The notifier around a C one.
    ///
    /// # Safety
    ///
    /// `raw` is that of an `IntervalNotifier<H>` that lives for `'a`.
    unsafe fn from_raw<'a>(raw: *mut bindings::mmu_interval_notifier) -> &'a Self {
        let raw: *mut Opaque<bindings::mmu_interval_notifier> = raw.cast();
        // SAFETY: By the requirements of this function.
        unsafe { &*container_of!(raw, Self, raw) }
    }

    extern "C" fn start_callback(
        raw: *mut bindings::mmu_interval_notifier,
        range: *const bindings::mmu_notifier_range,
        sequence: c_ulong,
        finish: *mut *mut bindings::mmu_interval_notifier_finish,
    ) -> bool {
        // SAFETY: The core calls with a notifier that is inserted; removing waits for callbacks.
        let this = unsafe { Self::from_raw(raw) };
        // SAFETY: The range is valid during the callback.
        let (start, end) = unsafe { ((*range).start, (*range).end) };
        // The range may be longer than the interval, on both sides.
        let first = start.max(this.start) - this.start;
        let last = (end - 1).min(this.start + (this.len - 1)) - this.start;
        let change = Invalidation {
            raw: range,
            notifier: raw,
            sequence,
            first,
            last,
            _lifetime: PhantomData,
        };
        match this.handler.start(&change) {
            Start::Done => true,
            Start::Refused => false,
            Start::Unfinished(node) => {
                let node = KBox::into_raw(node.0);
                // SAFETY: The pointer is valid for a write during the callback; the core gives the
                // node back to `finish_callback`.
                unsafe { *finish = (*node).raw.get() };
                true
            }
        }
    }

    extern "C" fn finish_callback(finish: *mut bindings::mmu_interval_notifier_finish) {
        // SAFETY: The core calls with a node from `start_callback`, once, with its notifier in it,
        // which is inserted. `raw` is the first field of the node.
        let (this, node) = unsafe {
            (
                Self::from_raw((*finish).notifier),
                KBox::from_raw(finish.cast::<Node<H::Pending>>()),
            )
        };
        this.handler.finish(FinishNode(node));
    }
}

#[pinned_drop]
impl<H: IntervalHandler> PinnedDrop for IntervalNotifier<H> {
    fn drop(self: Pin<&mut Self>) {
        self.remove();
    }
}
