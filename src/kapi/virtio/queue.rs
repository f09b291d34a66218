// SPDX-License-Identifier: GPL-2.0

//! Virtqueues.
//!
//! C header: [`include/linux/virtio.h`](srctree/include/linux/virtio.h)

use super::{
    device::Device,
    message::Message, //
};
use crate::kapi::bindings;
use core::{
    marker::PhantomData,
    ptr::{
        self,
        NonNull, //
    },
};
use kernel::{
    device::Core,
    error::to_result,
    list::ListArc,
    prelude::*,
    sync::{
        aref::ARef,
        Arc,
        ArcBorrow, //
    }, //
};

/// What is called when the device has used buffers.
pub(crate) trait QueueHandler: Send + Sync + 'static {
    /// Queue number `index` has used buffers, or is broken.
    ///
    /// Runs in hard interrupt context.
    fn used(this: ArcBorrow<'_, Self>, index: u32);
}

/// The queues of a device, all together.
///
/// # Invariants
///
/// `find_vqs` has succeeded on `vdev`, whose `priv` is a reference count of an `Arc<H>`. Neither
/// has been undone.
struct QueueSet<H: QueueHandler> {
    vdev: ARef<Device>,
    _handler: PhantomData<Arc<H>>,
}

impl<H: QueueHandler> Drop for QueueSet<H> {
    fn drop(&mut self) {
        // A queue's memory must not go while the device knows it.
        self.vdev.reset();
        let vdev = self.vdev.as_raw();
        // SAFETY: By the type invariant the queues exist, and the last `Queue` is gone, so nobody
        // uses them. The device is reset. After `del_vqs` no callback runs, so the reference that
        // `priv` holds can go.
        unsafe {
            bindings::kapi_virtio_del_vqs(vdev);
            let handler = (*vdev).priv_.cast::<H>().cast_const();
            (*vdev).priv_ = ptr::null_mut();
            drop(Arc::from_raw(handler));
        }
    }
}

extern "C" fn callback<H: QueueHandler>(vq: *mut bindings::virtqueue) {
    // SAFETY: The virtio core calls with a valid queue of a device, whose `priv` was set by
    // `find_queues::<H>` and holds a reference as long as the queues exist.
    let (handler, index) = unsafe {
        (
            ArcBorrow::from_raw((*(*vq).vdev).priv_.cast::<H>().cast_const()),
            (*vq).index,
        )
    };

    H::used(handler, index);
}

/// A virtqueue, which owns the messages that it carries.
///
/// Dropping a queue resets the device, and dropping the last one takes the queues down. Both
/// sleep.
///
/// # Invariants
///
/// `vq` is a queue of the device in `set`. Every token in it is a `ListArc<Message<S, O>>` turned
/// into a raw pointer.
pub(crate) struct Queue<H: QueueHandler, S: Send + Sync, O: Send> {
    vq: NonNull<bindings::virtqueue>,
    set: Arc<QueueSet<H>>,
    _messages: PhantomData<ListArc<Message<S, O>>>,
}

// SAFETY: The functions of a virtqueue may be called from any thread, one at a time, which
// `&mut self` ensures; messages may be sent.
unsafe impl<H: QueueHandler, S: Send + Sync, O: Send> Send for Queue<H, S, O> {}

// SAFETY: Through a shared reference only constants can be read.
unsafe impl<H: QueueHandler, S: Send + Sync, O: Send> Sync for Queue<H, S, O> {}

/// A virtqueue that carries nothing yet.
///
/// # Invariants
///
/// `vq` is a queue of the device in `set`, and empty.
pub(crate) struct NewQueue<H: QueueHandler> {
    vq: NonNull<bindings::virtqueue>,
    set: Arc<QueueSet<H>>,
}

impl<H: QueueHandler> NewQueue<H> {
    /// Decides what the queue carries.
    pub(crate) fn carrying<S: Send + Sync, O: Send>(self) -> Queue<H, S, O> {
        // INVARIANT: There are no tokens.
        Queue {
            vq: self.vq,
            set: self.set,
            _messages: PhantomData,
        }
    }
}

/// Sets up the first `N` queues of a device that is being probed.
///
/// # Errors
///
/// Those of the transport; [`ENOENT`] if the device has fewer queues.
pub(crate) fn find_queues<H: QueueHandler, const N: usize>(
    vdev: &Device<Core<'_>>,
    handler: Arc<H>,
    names: [&'static CStr; N],
) -> Result<[NewQueue<H>; N]> {
    let mut infos = names.map(|name| bindings::virtqueue_info {
        name: name.as_char_ptr(),
        callback: Some(callback::<H>),
        ctx: false,
    });
    let mut vqs = [ptr::null_mut(); N];

    // SAFETY: `priv` belongs to the driver. It must be set before an interrupt can come.
    unsafe { (*vdev.as_raw()).priv_ = Arc::into_raw(handler).cast_mut().cast() };

    // SAFETY: Both arrays have `N` entries; the device is being probed.
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
            let handler = (*vdev.as_raw()).priv_.cast::<H>().cast_const();
            (*vdev.as_raw()).priv_ = ptr::null_mut();
            drop(Arc::from_raw(handler));
        }
        return Err(e);
    }

    // INVARIANT: The queues were found, and `priv` set.
    let set = QueueSet::<H> {
        vdev: vdev.into(),
        _handler: PhantomData,
    };
    let set = Arc::new(set, GFP_KERNEL)?;
    if vqs.iter().any(|vq| vq.is_null()) {
        return Err(ENOENT);
    }
    // INVARIANT: The queues are those of `set`, and empty.
    Ok(vqs.map(|vq| NewQueue {
        // The check above leaves no null pointer.
        vq: NonNull::new(vq).unwrap_or(NonNull::dangling()),
        set: set.clone(),
    }))
}

impl<H: QueueHandler, S: Send + Sync, O: Send> Queue<H, S, O> {
    /// Descriptors in the ring.
    pub(crate) fn size(&self) -> usize {
        // SAFETY: By the type invariant the queue is valid.
        unsafe { bindings::virtqueue_get_vring_size(self.vq.as_ptr()) as usize }
    }

    /// Hands a message to the device; [`Queue::kick`] tells the device.
    ///
    /// Takes at most [`Message::descriptors`] descriptors, one where the device has indirect ones
    /// and there is memory for a table. Does not sleep.
    ///
    /// # Errors
    ///
    /// The message comes back with [`ENOSPC`] if the ring is full, [`EIO`] if it is broken,
    /// [`ENOMEM`] if the memory cannot be mapped for the device.
    pub(crate) fn add(
        &mut self,
        mut message: ListArc<Message<S, O>>,
    ) -> Result<(), (ListArc<Message<S, O>>, Error)> {
        let (table, outs, ins) = Message::scatterlist(&mut message);
        let mut lists = if outs > 0 {
            // SAFETY: The table has `outs + ins` entries.
            [table, unsafe { table.add(outs) }]
        } else {
            [table, ptr::null_mut()]
        };
        let token = ListArc::into_raw(message);

        // INVARIANT: The new token is a `ListArc`.
        // SAFETY: By the type invariant the queue is valid, and `&mut self` excludes others. The
        // buffers are part of the message, which the queue owns until it gives the token back. The
        // lists are only read during the call.
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
        added.map_err(|e| {
            // SAFETY: On failure the queue has not taken the token, which came from `into_raw`.
            (unsafe { ListArc::from_raw(token) }, e)
        })
    }

    /// Tells the device that there are new messages, unless it does not want to know.
    pub(crate) fn kick(&mut self) {
        // SAFETY: By the type invariant the queue is valid, and `&mut self` excludes others.
        unsafe {
            if bindings::virtqueue_kick_prepare(self.vq.as_ptr()) {
                bindings::virtqueue_notify(self.vq.as_ptr());
            }
        }
    }

    /// The next message that the device has used, and how many bytes it claims to have written.
    pub(crate) fn take_used(&mut self) -> Option<(ListArc<Message<S, O>>, u32)> {
        let mut len = 0;
        // SAFETY: By the type invariant the queue is valid, and `&mut self` excludes others.
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
        // SAFETY: By the type invariant the queue is valid, and `&mut self` excludes others.
        unsafe { bindings::virtqueue_disable_cb(self.vq.as_ptr()) }
    }

    /// Allows callbacks. Returns false if messages have been used in the meantime, for which no
    /// callback may come.
    #[must_use]
    pub(crate) fn enable_callback(&mut self) -> bool {
        // SAFETY: By the type invariant the queue is valid, and `&mut self` excludes others.
        unsafe { bindings::virtqueue_enable_cb(self.vq.as_ptr()) }
    }

    /// As [`Queue::enable_callback`], but the device is asked to call only when it has used most of
    /// the messages that it has now.
    #[must_use]
    pub(crate) fn enable_callback_delayed(&mut self) -> bool {
        // SAFETY: By the type invariant the queue is valid, and `&mut self` excludes others.
        unsafe { bindings::virtqueue_enable_cb_delayed(self.vq.as_ptr()) }
    }

    /// Whether the device has broken the rules of the ring.
    pub(crate) fn is_broken(&self) -> bool {
        // SAFETY: By the type invariant the queue is valid.
        unsafe { bindings::virtqueue_is_broken(self.vq.as_ptr()) }
    }

    /// Takes back a message that the device never used.
    ///
    /// The device must have been reset: until then it may write into the message.
    pub(crate) fn detach_unused(&mut self) -> Option<ListArc<Message<S, O>>> {
        // SAFETY: By the type invariant the queue is valid, and `&mut self` excludes others.
        let token = unsafe { bindings::virtqueue_detach_unused_buf(self.vq.as_ptr()) };
        if token.is_null() {
            return None;
        }
        // SAFETY: By the type invariant the token is a `ListArc` turned raw; the queue has given
        // it up.
        Some(unsafe { ListArc::from_raw(token.cast::<Message<S, O>>()) })
    }
}

impl<H: QueueHandler, S: Send + Sync, O: Send> Drop for Queue<H, S, O> {
    fn drop(&mut self) {
        self.set.vdev.reset();
        while let Some(message) = self.detach_unused() {
            drop(message);
        }
    }
}
