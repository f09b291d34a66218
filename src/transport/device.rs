// SPDX-License-Identifier: GPL-2.0

//! The device as the driver talks to it: its queues, its state, and the workers.
//!
//! [`Transport`] owns the three queues that carry something and decides in which [`State`] the
//! device is. The state is protected by the lock of the control queue, `Control::inner`, because
//! whoever sends a command looks at it and acts on it at once; whether the device is lost can also
//! be read without a lock. [`Transport::check`] is for those who need no more than that.
//!
//! The files beside this one have what happens to all queues at once: the end of a device in
//! `loss`, its sleep in `suspend`, its interrupts in `interrupt`, and the timer that notices its
//! silence in `watchdog`.

use super::{
    control::Control,
    event::Events,
    knobs::Knobs,
    mirror::Mirror, //
};
use crate::{
    kapi::{
        sync::Workqueue,
        virtio::{
            self,
            device::F_INDIRECT_DESC,
            Binding,
            QueueSetup, //
        },
    },
    protocol::mirror::{
        device_state,
        feature,
        MirrorConfig,
        CONFIG_OFFSET, //
    },
};
use core::mem::offset_of;
use kernel::{
    device, impl_has_delayed_work, impl_has_work, new_delayed_work, new_work,
    prelude::*,
    sync::{
        aref::ARef,
        atomic::{
            ordering::{
                Acquire,
                Full,
                Release, //
            },
            AtomicFlag, //
        },
        Arc, //
    },
    time::{
        Instant,
        Monotonic, //
    },
    workqueue::{
        DelayedWork,
        Work,
        WorkItem, //
    },
};

/// What is to happen when a device has been reset.
pub(crate) trait OnReset: Send + Sync {
    /// Called once, when the device is known not to access memory any more, and the commands that
    /// it knew have been completed. May sleep.
    fn reset(&self);

    /// Called if the device does not return from its reset. May sleep.
    fn overdue(&self);
}

/// How long a device may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timeouts {
    /// To respond to anything while something is to be responded to that is not a job, in
    /// milliseconds. Waits are bounded by it, too.
    pub(crate) response_ms: u32,
    /// To end a job, in milliseconds, until its context is lost; 0 for no limit.
    pub(crate) job_ms: u32,
    /// How long others may wait for a job, in milliseconds.
    pub(crate) grace_ms: u32,
}

/// A device, as the driver talks to it.
#[pin_data]
pub(crate) struct Transport {
    pub(super) binding: Arc<Binding>,
    pub(super) vdev: ARef<virtio::Device>,
    pub(super) timeouts: Timeouts,
    epoch: Instant<Monotonic>,
    pub(super) on_reset: Arc<dyn OnReset>,
    pub(super) knobs: Knobs,
    /// [`State::Running`] has ended for good. Changed with the state.
    pub(super) lost: AtomicFlag,
    /// The control queue.
    #[pin]
    pub(super) control: Control,
    /// The mirror queue; without ring if the device has none.
    #[pin]
    pub(super) mirror: Mirror,
    /// The event queue; without ring if the device has none.
    #[pin]
    pub(super) events: Events,
    /// The configuration space has changed since the worker has looked.
    changed: AtomicFlag,
    /// For what must not wait for a reset.
    pub(super) workqueue: Workqueue,
    pub(super) reset_workqueue: Workqueue,
    #[pin]
    complete_work: Work<Transport, 1>,
    #[pin]
    reset_work: Work<Transport, 2>,
    #[pin]
    reset_overdue: DelayedWork<Transport, 3>,
    #[pin]
    watchdog: DelayedWork<Transport, 4>,
    #[pin]
    event_work: Work<Transport, 5>,
}

impl_has_work! {
    impl HasWork<Self, 1> for Transport { self.complete_work }
    impl HasWork<Self, 2> for Transport { self.reset_work }
    impl HasWork<Self, 5> for Transport { self.event_work }
}
impl_has_delayed_work! {
    impl HasDelayedWork<Self, 3> for Transport { self.reset_overdue }
    impl HasDelayedWork<Self, 4> for Transport { self.watchdog }
}

impl Transport {
    /// A device without queues; [`Transport::start`] sets them up.
    ///
    /// When the device has been reset, `on_reset` is called.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    pub(crate) fn new(
        binding: &Arc<Binding>,
        timeouts: Timeouts,
        on_reset: Arc<dyn OnReset>,
    ) -> Result<Arc<Self>> {
        let workqueue = Workqueue::new(c"virtgpu-control")?;
        let reset_workqueue = Workqueue::new(c"virtgpu-reset")?;
        Arc::pin_init(
            try_pin_init!(Self {
                binding: binding.clone(),
                vdev: binding.device().into(),
                timeouts,
                epoch: Instant::now(),
                on_reset,
                knobs: Knobs::new(),
                lost: AtomicFlag::new(false),
                control <- Control::new(),
                mirror <- Mirror::new(),
                events <- Events::new(),
                changed: AtomicFlag::new(false),
                workqueue,
                reset_workqueue,
                complete_work <- new_work!("Transport::complete_work"),
                reset_work <- new_work!("Transport::reset_work"),
                reset_overdue <- new_delayed_work!("Transport::reset_overdue"),
                watchdog <- new_delayed_work!("Transport::watchdog"),
                event_work <- new_work!("Transport::event_work"),
            }),
            GFP_KERNEL,
        )
    }

    /// Finds the queues of the device, which is being probed, and makes it ready. With `mirror` it
    /// has the mirror queue and the event queue, which gets so many buffers.
    ///
    /// # Errors
    ///
    /// Those of the transport, [`ENOMEM`], and [`EINVAL`] if a ring is too small.
    pub(crate) fn start(self: &Arc<Self>, queues: QueueSetup<'_>, mirror: Option<usize>) -> Result {
        let (queue, cursor, unready) = if let Some(event_slots) = mirror {
            let names = [c"control", c"cursor", c"mirror", c"event"];
            let ([queue, cursor, mirror, event], unready) = queues.find(self.clone(), names)?;
            let faults = self.vdev.has_feature(feature::PAGE_FAULT);
            self.mirror.start(mirror.carrying(), faults)?;
            self.events.start(event.carrying(), event_slots)?;
            (queue.carrying(), cursor.carrying(), unready)
        } else {
            let names = [c"control", c"cursor"];
            let ([queue, cursor], unready) = queues.find(self.clone(), names)?;
            (queue.carrying(), cursor.carrying(), unready)
        };
        let indirect = self.vdev.has_feature(F_INDIRECT_DESC);
        let bytes = self.binding.message_room();
        self.control.start(queue, cursor, indirect, bytes)?;
        unready.ready();
        self.events.kick();
        Ok(())
    }

    /// What is made to happen to the queues.
    #[cfg(CONFIG_DEBUG_FS)]
    pub(crate) fn knobs(&self) -> &Knobs {
        &self.knobs
    }

    /// The name of the device, as in `/sys/bus/virtio/devices`.
    pub(crate) fn name(&self) -> &CStr {
        let device: &device::Device = (*self.vdev).as_ref();
        device.name()
    }

    /// How long the device may take to respond, in milliseconds.
    pub(crate) fn response_timeout_ms(&self) -> u32 {
        self.timeouts.response_ms
    }

    /// How long jobs may keep others waiting, in milliseconds.
    pub(crate) fn grace_ms(&self) -> u32 {
        self.timeouts.grace_ms
    }

    /// Whether the device is lost.
    pub(crate) fn is_lost(&self) -> bool {
        self.lost.load(Acquire)
    }

    /// Fails if the device is lost.
    ///
    /// # Errors
    ///
    /// [`ENODEV`].
    pub(crate) fn check(&self) -> Result {
        if self.is_lost() {
            return Err(ENODEV);
        }
        Ok(())
    }

    /// Milliseconds since the device was found.
    pub(super) fn now(&self) -> i64 {
        self.epoch.elapsed().as_millis()
    }

    /// Has the worker complete the commands that were responded to. May be called in any context.
    pub(super) fn complete_later(self: &Arc<Self>) {
        let _ = self.workqueue.enqueue::<Arc<Self>, 1>(self.clone());
    }

    /// The configuration space has changed. May be called in any context.
    pub(crate) fn config_changed(self: &Arc<Self>) {
        self.changed.store(true, Release);
        self.look_later();
    }

    /// Has the worker look at events and at the configuration. May be called in any context.
    pub(super) fn look_later(self: &Arc<Self>) {
        let _ = self.workqueue.enqueue::<Arc<Self>, 5>(self.clone());
    }

    /// Looks whether the device says that it is lost. Not to be called for a device that may be
    /// dead: some hosts fail hard then.
    fn look_at_state(self: &Arc<Self>) {
        let field = CONFIG_OFFSET + offset_of!(MirrorConfig, device_state);
        if !self.is_lost() && self.binding.config_read32(field) == Ok(device_state::LOST) {
            self.lose(c"it says so");
        }
    }
}

/// Completes commands that the device has responded to.
impl WorkItem<1> for Transport {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        this.control.complete_responded();
    }
}

/// Handles events and changes of the configuration.
impl WorkItem<5> for Transport {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        if this.changed.xchg(false, Full) && this.vdev.has_feature(feature::MIRROR) {
            this.look_at_state();
        }
        this.events.tell();
    }
}
