// SPDX-License-Identifier: GPL-2.0

//! Events that userspace reads from an open file.
//!
//! A file has room for a few kilobytes of events that have not been read. An event takes its room
//! when it is sent; where there is none, the sender gets the event back, and is told by
//! [`Driver::events_read`](super::Driver::events_read) when to try again. Or it takes it ahead, as
//! a [`ReservedEvent`], which can be sent anywhere.
//!
//! # Examples
//!
//! ```ignore
//! #[derive(Clone, Copy, Immutable, IntoBytes)]
//! #[repr(C)]
//! struct Done {
//!     header: [u32; 2],
//!     job: u64,
//! }
//!
//! impl Payload for Done {
//!     const TYPE: u32 = 0x8000_0000;
//! }
//!
//! let events: &Arc<EventQueue> = file.events();
//! // Where one may sleep:
//! let event = Event::new()?;
//! // Anywhere but in interrupts:
//! let sent = events.send(event, Done { header: [0; 2], job: 7 });
//! ```
//!
//! C headers: [`include/drm/drm_file.h`](srctree/include/drm/drm_file.h),
//! [`include/uapi/drm/drm.h`](srctree/include/uapi/drm/drm.h)

use super::{
    device::Driver,
    file::File, //
};
use crate::kapi::bindings;
use core::{
    marker::PhantomData,
    mem::MaybeUninit,
    ptr::NonNull, //
};
use kernel::{
    error::to_result,
    new_spinlock,
    prelude::*,
    sync::{
        atomic::{
            ordering::Full,
            AtomicFlag, //
        },
        Arc,
        SpinLock, //
    },
    types::Opaque, //
};
use zerocopy::{
    Immutable,
    IntoBytes, //
};

/// What userspace reads: a structure that begins with the fields of `struct drm_event`, which are
/// filled in when it is sent.
pub(crate) trait Payload: Copy + Immutable + IntoBytes + Send {
    /// `drm_event::type`. Those of drivers begin at 0x8000_0000.
    const TYPE: u32;
}

#[repr(C)]
struct Node<P> {
    raw: Opaque<bindings::drm_pending_event>,
    payload: MaybeUninit<P>,
}

/// Writes a payload with its header, and returns the header.
///
/// # Safety
///
/// `node` is valid for writes.
unsafe fn fill<P: Payload>(node: *mut Node<P>, payload: P) -> *mut bindings::drm_event {
    const {
        assert!(size_of::<P>() >= size_of::<bindings::drm_event>());
        assert!(align_of::<P>() >= align_of::<bindings::drm_event>());
    }
    // SAFETY: By the requirements of this function. The payload has room for the header, by the
    // assertions, and is initialized to its last byte.
    unsafe {
        let header: *mut bindings::drm_event = (&raw mut (*node).payload).cast();
        (*node).payload.write(payload);
        header.write(bindings::drm_event {
            type_: P::TYPE,
            length: size_of::<P>() as u32,
        });
        header
    }
}

/// Memory for one event, allocated ahead, so that sending needs none.
pub(crate) struct Event<P: Payload>(KBox<Node<P>>);

// SAFETY: Until it is sent, an event is memory that has one user.
unsafe impl<P: Payload> Send for Event<P> {}

impl<P: Payload> Event<P> {
    /// Allocates an event.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    pub(crate) fn new() -> Result<Self> {
        Ok(Self(KBox::new(
            Node {
                raw: Opaque::new(bindings::drm_pending_event::default()),
                payload: MaybeUninit::uninit(),
            },
            GFP_KERNEL,
        )?))
    }
}

/// Why an event was not sent, and the event.
pub(crate) enum Unsent<P: Payload> {
    /// Userspace has not read enough of those before it.
    NoRoom(Event<P>),
    /// The file is being closed.
    Closed(Event<P>),
}

/// Where the events of an open file go. May outlive the file.
///
/// # Invariants
///
/// As long as `file` is `Some`, it is a valid `struct drm_file`, whose events have not been
/// released.
#[pin_data]
pub(crate) struct EventQueue {
    /// Protects only itself; held while an event is sent. Inside it are only locks of the kernel.
    #[pin]
    file: SpinLock<Option<NonNull<bindings::drm_file>>>,
}

// SAFETY: The file is used under the lock, with functions that may be called from any thread.
unsafe impl Send for EventQueue {}

// SAFETY: As above.
unsafe impl Sync for EventQueue {}

impl EventQueue {
    /// The queue of `file`.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    ///
    /// # Safety
    ///
    /// `file` is valid until [`EventQueue::close`] is called, which is before its events are
    /// released, if any was sent.
    pub(super) unsafe fn new(file: NonNull<bindings::drm_file>) -> Result<Arc<Self>> {
        // INVARIANT: By the requirements of this function.
        Arc::pin_init(
            pin_init!(Self {
                file <- new_spinlock!(Some(file), "EventQueue::file"),
            }),
            GFP_KERNEL,
        )
    }

    /// Lets nothing more be sent.
    pub(super) fn close(&self) {
        *self.file.lock() = None;
    }

    /// Sends an event. Does not sleep.
    ///
    /// # Errors
    ///
    /// Gives the event back, with the reason.
    pub(crate) fn send<P: Payload>(&self, event: Event<P>, payload: P) -> Result<(), Unsent<P>> {
        let guard = self.file.lock();
        let Some(file) = *guard else {
            return Err(Unsent::Closed(event));
        };
        let node = KBox::into_raw(event.0);
        let pending: *mut bindings::drm_pending_event = node.cast();

        // SAFETY: The node is ours. By the type invariant the file is valid as long as the lock is
        // held, and it keeps its device.
        let reserved = unsafe {
            let header = fill(node, payload);
            let dev = (*(*file.as_ptr()).minor).dev;
            let reserved = to_result(bindings::drm_event_reserve_init(
                dev,
                file.as_ptr(),
                pending,
                header,
            ));
            if reserved.is_ok() {
                // The memory is from kmalloc(), and the core's from now on; `pending` is at its
                // start.
                bindings::drm_send_event(dev, pending);
            }
            reserved
        };
        reserved.map_err(|_| {
            // SAFETY: The core has not taken the node, which is from `into_raw`.
            Unsent::NoRoom(Event(unsafe { KBox::from_raw(node) }))
        })
    }
}

/// An event that has its room, so that sending it cannot fail. May outlive the file, whose end ends
/// the event.
///
/// Dropping it unsent returns the room. That must happen where one may sleep, since it may drop
/// the last reference to the device.
///
/// # Invariants
///
/// This owns a reference to `dev`. Unless `sent` is set, `pending` is reserved on a file of `dev`,
/// and was neither sent nor cancelled.
pub(crate) struct ReservedEvent {
    dev: NonNull<bindings::drm_device>,
    pending: NonNull<bindings::drm_pending_event>,
    sent: AtomicFlag,
}

// SAFETY: The functions that use the event may be called from any thread.
unsafe impl Send for ReservedEvent {}

// SAFETY: Only who sets `sent` uses the event.
unsafe impl Sync for ReservedEvent {}

impl<D: Driver> File<D> {
    /// Takes room for an event, to be sent later.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`], also if there is no room.
    pub(crate) fn reserve_event<P: Payload>(&self, payload: P) -> Result<ReservedEvent> {
        let event = Event::new()?;
        let node = KBox::into_raw(event.0);
        let pending: *mut bindings::drm_pending_event = node.cast();

        // SAFETY: The node is ours; the file is valid, and keeps its device.
        let (dev, reserved) = unsafe {
            let header = fill(node, payload);
            let dev = (*(*self.as_raw()).minor).dev;
            let reserved = to_result(bindings::drm_event_reserve_init(
                dev,
                self.as_raw(),
                pending,
                header,
            ));
            (dev, reserved)
        };
        if let Err(e) = reserved {
            // SAFETY: The core has not taken the node, which is from `into_raw`.
            drop(unsafe { KBox::from_raw(node) });
            return Err(e);
        }
        // INVARIANT: The event was just reserved; the reference is taken here.
        // SAFETY: The device is valid; neither pointer is null.
        unsafe {
            bindings::drm_dev_get(dev);
            Ok(ReservedEvent {
                dev: NonNull::new_unchecked(dev),
                pending: NonNull::new_unchecked(pending),
                sent: AtomicFlag::new(false),
            })
        }
    }
}

/// An event that has its room, and whose payload is said when it is sent. Otherwise like a
/// [`ReservedEvent`].
pub(crate) struct BlankEvent<P: Payload> {
    /// Reserved with a `P`.
    reserved: ReservedEvent,
    _payload: PhantomData<P>,
}

impl<P: Payload> BlankEvent<P> {
    /// Sends the event, unless that was done. May be called in any context.
    pub(crate) fn send(&self, payload: P) {
        if self.reserved.sent.xchg(true, Full) {
            return;
        }
        // SAFETY: The node is a `Node<P>`, and no one uses it before it is sent, which only who has
        // set `sent` does; the rest is as in `ReservedEvent::send`.
        unsafe {
            fill(self.reserved.pending.cast::<Node<P>>().as_ptr(), payload);
            bindings::drm_send_event(self.reserved.dev.as_ptr(), self.reserved.pending.as_ptr());
        }
    }
}

impl<D: Driver> File<D> {
    /// As [`File::reserve_event`], for an event whose payload is not known yet.
    ///
    /// # Errors
    ///
    /// As there.
    pub(crate) fn reserve_blank_event<P: Payload + Default>(&self) -> Result<BlankEvent<P>> {
        Ok(BlankEvent {
            reserved: self.reserve_event(P::default())?,
            _payload: PhantomData,
        })
    }
}

impl ReservedEvent {
    /// Sends the event, unless that was done. May be called in any context.
    pub(crate) fn send(&self) {
        if self.sent.xchg(true, Full) {
            return;
        }
        // SAFETY: By the type invariant the device is valid, and the event, whose memory is from
        // kmalloc(), is reserved. If its file is gone, the core frees it.
        unsafe { bindings::drm_send_event(self.dev.as_ptr(), self.pending.as_ptr()) }
    }
}

impl Drop for ReservedEvent {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the device is valid, the event is reserved unless it was
        // sent, and the reference is ours.
        unsafe {
            if !self.sent.xchg(true, Full) {
                bindings::drm_event_cancel_free(self.dev.as_ptr(), self.pending.as_ptr());
            }
            bindings::drm_dev_put(self.dev.as_ptr());
        }
    }
}
