// SPDX-License-Identifier: GPL-2.0

//! Events that userspace reads from an open file.
//!
//! A file has room for a few kilobytes of events that have not been read. An event takes its room
//! when it is sent; where there is none, the sender gets the event back, and is told by
//! [`Driver::events_read`](super::Driver::events_read) when to try again.
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

use crate::kapi::bindings;
use core::{
    mem::MaybeUninit,
    ptr::NonNull, //
};
use kernel::{
    error::to_result,
    new_spinlock,
    prelude::*,
    sync::{
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

/// Memory for one event, allocated ahead, so that sending needs none.
pub(crate) struct Event<P: Payload>(KBox<Node<P>>);

// SAFETY: Until it is sent, an event is memory that nobody else uses.
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
        const {
            assert!(size_of::<P>() >= size_of::<bindings::drm_event>());
            assert!(align_of::<P>() >= align_of::<bindings::drm_event>());
        }
        let guard = self.file.lock();
        let Some(file) = *guard else {
            return Err(Unsent::Closed(event));
        };
        let node = KBox::into_raw(event.0);
        let pending: *mut bindings::drm_pending_event = node.cast();

        // SAFETY: The node is ours. Its payload has room for the header, by the assertions, and is
        // initialized to its last byte. By the type invariant the file is valid as long as the lock
        // is held, and it keeps its device.
        let reserved = unsafe {
            let header: *mut bindings::drm_event = (&raw mut (*node).payload).cast();
            (*node).payload.write(payload);
            header.write(bindings::drm_event {
                type_: P::TYPE,
                length: size_of::<P>() as u32,
            });
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
