// SPDX-License-Identifier: GPL-2.0

//! Virtqueues: rings in which messages go to the device and come back.
//!
//! A queue owns the messages in it. The device may write into one until it returns it or was reset,
//! and only then does the queue give it to someone else. Only one thread at a time uses a queue,
//! for which `&mut` stands; that the device's reset may come at any moment is a matter of
//! [`super::queue_set`].
//!
//! C header: [`include/linux/virtio.h`](srctree/include/linux/virtio.h)

use super::{
    message::Message,
    queue_set::{
        QueueSet,
        LIVE,
        RESET, //
    },
};
use crate::kapi::bindings;
use core::{
    marker::PhantomData,
    mem::MaybeUninit,
    ptr::{
        self,
        NonNull, //
    },
};
use kernel::{
    error::to_result,
    list::ListArc,
    prelude::*,
    sync::{
        atomic::ordering::{
            Acquire,
            Relaxed,
            Release, //
        },
        Arc, //
    }, //
};

/// A virtqueue that carries nothing yet.
///
/// # Invariants
///
/// `set` has a queue `index`, which is empty. There is one `NewQueue` or [`Queue`] for it.
pub(crate) struct NewQueue {
    /// The device understands indirect descriptors.
    pub(super) indirect: bool,
    pub(super) index: usize,
    pub(super) set: Arc<QueueSet>,
}

impl NewQueue {
    /// Decides what the queue carries.
    pub(crate) fn carrying<S: Send + Sync, O: Send>(self) -> Queue<S, O> {
        let vq = self.set.queues[self.index].vq;
        let size = match self.set.enter(LIVE, RESET) {
            // SAFETY: By the type invariant of the set the queue is valid.
            Some(_guard) => unsafe { bindings::virtqueue_get_vring_size(vq.as_ptr()) as usize },
            None => 0,
        };
        // INVARIANT: There are no tokens, and this was the one `NewQueue`.
        Queue {
            vq,
            size,
            indirect: self.indirect,
            index: self.index,
            set: self.set,
            _messages: PhantomData,
        }
    }
}

/// Whether there is memory for the table of a message of so many parts, now: the core allocates it
/// in the same way right afterwards.
fn has_memory_for_table(parts: usize) -> bool {
    /// Bytes that the core allocates for each: the descriptor, and what it has to remember of it.
    const ENTRY: usize = 16 + 16;

    KVec::<u8>::with_capacity(parts * ENTRY, GFP_ATOMIC | __GFP_NOWARN).is_ok()
}

/// Whether a message of so many parts can be added where `free` descriptors are free, of which it
/// may take `most`.
fn has_room(parts: usize, most: usize, free: usize, has_table: impl FnOnce() -> bool) -> bool {
    parts <= most.min(free) || (free > 0 && has_table())
}

/// A virtqueue.
///
/// It belongs to the [`Binding`](super::Binding) of its driver, and the messages in it to the
/// queue: dropping a `Queue` leaves them there until the device's queues are taken down.
///
/// # Invariants
///
/// `vq` is queue `index` of `set`. Every token in it is a `ListArc<Message<S, O>>` turned into a
/// raw pointer. There is one `Queue` for it.
pub(crate) struct Queue<S: Send + Sync, O: Send> {
    vq: NonNull<bindings::virtqueue>,
    size: usize,
    indirect: bool,
    index: usize,
    set: Arc<QueueSet>,
    _messages: PhantomData<ListArc<Message<S, O>>>,
}

// SAFETY: The functions of a virtqueue may be called from any thread, one at a time, which
// `&mut self` ensures; messages may be sent.
unsafe impl<S: Send + Sync, O: Send> Send for Queue<S, O> {}

// SAFETY: Through a shared reference only constants can be read, and whether the ring is broken.
unsafe impl<S: Send + Sync, O: Send> Sync for Queue<S, O> {}

/// The device must be notified of new messages in a queue.
///
/// Notifying it may be an exit to the host, so whoever holds a lock releases it first. It happens
/// when this is dropped, unless the device is reset before. May be dropped in any context.
#[must_use = "the device is notified when this is dropped, which must be after all locks"]
pub(crate) struct Notification {
    index: usize,
    set: Arc<QueueSet>,
}

impl Drop for Notification {
    fn drop(&mut self) {
        let queue = &self.set.queues[self.index];
        if let Some(_guard) = self.set.enter(LIVE, LIVE) {
            // SAFETY: By the type invariant of the set the queue is valid, and the device is not
            // reset before the guard is gone. This may run concurrently with all functions of the
            // queue.
            unsafe { bindings::virtqueue_notify(queue.vq.as_ptr()) };
        }
        let _ = queue.owed.fetch_sub(1, Release);
    }
}

impl<S: Send + Sync, O: Send> Queue<S, O> {
    /// Descriptors in the ring.
    pub(crate) fn size(&self) -> usize {
        self.size
    }

    /// Hands a message to the device; [`Queue::kick_prepare`] makes it visible. It may take `most`
    /// descriptors of those that are free.
    ///
    /// Returns how many descriptors it takes: at most [`Message::descriptors`], one where the
    /// device has indirect ones and there is memory for a table. Does not sleep.
    ///
    /// # Errors
    ///
    /// The message comes back with
    /// - [`ENODEV`] if the device has been reset;
    /// - [`ENOSPC`] if there are too few descriptors, for want of memory also where one would do;
    /// - [`EIO`] if the ring is broken;
    /// - [`ENOMEM`] if the memory cannot be mapped for the device.
    pub(crate) fn add(
        &mut self,
        mut message: ListArc<Message<S, O>>,
        most: usize,
    ) -> Result<usize, (ListArc<Message<S, O>>, Error)> {
        let Some(_guard) = self.set.enter(LIVE, LIVE) else {
            return Err((message, ENODEV));
        };
        // SAFETY: The queue is valid as long as the guard lives, and `&mut self` excludes others.
        let free = || unsafe { (*self.vq.as_ptr()).num_free as usize };
        let free_before = free();
        let parts = message.descriptors();
        // The core does not know of `most`. Without memory for a table it takes a descriptor for
        // each part; and if these are not there, it notifies the device at once, under the caller's
        // locks.
        let has_table = || self.indirect && has_memory_for_table(parts);
        if !has_room(parts, most, free_before, has_table) {
            return Err((message, ENOSPC));
        }
        let mut short = [const { MaybeUninit::uninit() }; _];
        let (table, outs, ins) = Message::scatterlist(&mut message, &mut short);
        let mut lists = if outs > 0 {
            // SAFETY: The table has `outs + ins` entries.
            [table, unsafe { table.add(outs) }]
        } else {
            [table, ptr::null_mut()]
        };
        let token = ListArc::into_raw(message);

        // INVARIANT: The new token is a `ListArc`. SAFETY: The queue is valid as long as the guard
        // lives, and `&mut self` excludes others. The buffers are part of the message, which the
        // queue owns until it returns the token. The lists are only read during the call.
        let added = to_result(unsafe {
            bindings::virtqueue_add_sgs(
                self.vq.as_ptr(),
                lists.as_mut_ptr(),
                c_uint::from(outs > 0),
                c_uint::from(ins > 0),
                token.cast_mut().cast(),
                bindings::GFP_ATOMIC,
            )
        });
        match added {
            Ok(()) => Ok(free_before - free()),
            Err(e) => {
                // SAFETY: The queue is valid as long as the guard lives.
                let broken = unsafe { bindings::virtqueue_is_broken(self.vq.as_ptr()) };
                // A packed ring says so also of memory that it could not map.
                let e = if e == EIO && !broken { ENOMEM } else { e };
                // SAFETY: On failure the queue has not taken the token, which came from `into_raw`.
                Err((unsafe { ListArc::from_raw(token) }, e))
            }
        }
    }

    /// Makes new messages visible to the device. Returns what is left to do, unless the device does
    /// not want to know.
    ///
    /// No thread depends on another for that: as long as a notification is on its way, the next
    /// one is made too.
    pub(crate) fn kick_prepare(&mut self) -> Option<Notification> {
        let _guard = self.set.enter(LIVE, LIVE)?;
        let owed = &self.set.queues[self.index].owed;
        // SAFETY: The queue is valid as long as the guard lives, and `&mut self` excludes others.
        let wanted = unsafe { bindings::virtqueue_kick_prepare(self.vq.as_ptr()) };
        if !wanted && owed.load(Acquire) == 0 {
            return None;
        }
        let _ = owed.fetch_add(1, Relaxed);
        Some(Notification {
            index: self.index,
            set: self.set.clone(),
        })
    }

    /// The next message that the device has used, and how many bytes it claims to have written.
    pub(crate) fn take_used(&mut self) -> Option<(ListArc<Message<S, O>>, u32)> {
        let _guard = self.set.enter(LIVE, RESET)?;
        let mut len = 0;
        // SAFETY: The queue is valid as long as the guard lives, and `&mut self` excludes others.
        let token = unsafe { bindings::virtqueue_get_buf(self.vq.as_ptr(), &mut len) };
        if token.is_null() {
            return None;
        }
        // SAFETY: By the type invariant the token is a `ListArc` turned raw; the queue has given
        // it up. The core returns a token once, whatever the device does.
        let message = unsafe { ListArc::from_raw(token.cast::<Message<S, O>>()) };
        Some((message, len))
    }

    /// Stops callbacks, if possible; they may come nevertheless.
    pub(crate) fn disable_callback(&mut self) {
        if let Some(_guard) = self.set.enter(LIVE, RESET) {
            // SAFETY: The queue is valid as long as the guard lives, and `&mut self` excludes
            // others.
            unsafe { bindings::virtqueue_disable_cb(self.vq.as_ptr()) }
        }
    }

    /// Allows callbacks. Returns false if messages have been used in the meantime, for which no
    /// callback may come.
    #[must_use]
    pub(crate) fn enable_callback(&mut self) -> bool {
        match self.set.enter(LIVE, RESET) {
            // SAFETY: The queue is valid as long as the guard lives, and `&mut self` excludes
            // others.
            Some(_guard) => unsafe { bindings::virtqueue_enable_cb(self.vq.as_ptr()) },
            None => true,
        }
    }

    /// As [`Queue::enable_callback`], but the device is asked to call only when it has used most of
    /// the messages that it has now.
    #[must_use]
    pub(crate) fn enable_callback_delayed(&mut self) -> bool {
        match self.set.enter(LIVE, RESET) {
            // SAFETY: The queue is valid as long as the guard lives, and `&mut self` excludes
            // others.
            Some(_guard) => unsafe { bindings::virtqueue_enable_cb_delayed(self.vq.as_ptr()) },
            None => true,
        }
    }

    /// Whether the device has broken the rules of the ring.
    pub(crate) fn is_broken(&self) -> bool {
        match self.set.enter(LIVE, RESET) {
            // SAFETY: The queue is valid as long as the guard lives.
            Some(_guard) => unsafe { bindings::virtqueue_is_broken(self.vq.as_ptr()) },
            None => false,
        }
    }

    /// Takes back a message that the device never used.
    ///
    /// There is none until the device has been reset: until then it may write into the message.
    pub(crate) fn detach_unused(&mut self) -> Option<ListArc<Message<S, O>>> {
        let _guard = self.set.enter(RESET, RESET)?;
        // SAFETY: The queue is valid as long as the guard lives, and `&mut self` excludes others.
        // The device has been reset.
        let token = unsafe { bindings::virtqueue_detach_unused_buf(self.vq.as_ptr()) };
        if token.is_null() {
            return None;
        }
        // SAFETY: By the type invariant the token is a `ListArc` turned raw; the queue has given
        // it up.
        Some(unsafe { ListArc::from_raw(token.cast::<Message<S, O>>()) })
    }
}

#[kunit_tests(virtgpu_userptr_queue)]
mod tests {
    use super::*;

    /// Descriptors that are free, but not for this message, are left to others.
    #[test]
    fn without_a_table() {
        assert!(has_room(3, 3, 3, || false));
        assert!(has_room(3, usize::MAX, 3, || false));
        assert!(!has_room(3, 2, 100, || false));
        assert!(!has_room(3, 3, 2, || false));
    }

    #[test]
    fn with_a_table() {
        assert!(has_room(3, 1, 1, || true));
        assert!(!has_room(3, 3, 0, || true));
        // No memory is asked for where it is not needed.
        assert!(has_room(3, 3, 3, || panic!("asked for memory")));
    }
}
