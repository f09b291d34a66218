// SPDX-License-Identifier: GPL-2.0

//! The interrupts of the virtqueues: each goes to its queue.
//!
//! What is done here is on the way to the signalling of fences: nothing sleeps, and what is left to
//! do is a worker's.

use super::{
    control::ControlQueue,
    device::Transport, //
};
use crate::{
    kapi::{
        dma::fence::Signalling,
        virtio::QueueHandler, //
    },
    protocol::mirror::{
        EVENT_QUEUE,
        MIRROR_QUEUE, //
    },
};
use kernel::sync::{
    Arc,
    ArcBorrow, //
};

impl QueueHandler for Transport {
    fn used(this: ArcBorrow<'_, Self>, index: u32) {
        let this: Arc<Self> = this.into();
        let _section = Signalling::begin();
        if index == u32::from(MIRROR_QUEUE) {
            if !this.mirror.used() {
                this.lose(c"it broke the protocol of the mirror queue");
            }
        } else if index == u32::from(EVENT_QUEUE) {
            if !this.events.used() {
                this.lose(c"it broke the protocol of the event queue");
            }
            this.look_later();
        } else {
            ControlQueue::from(this).used();
        }
    }
}
