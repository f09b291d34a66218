// SPDX-License-Identifier: GPL-2.0

//! The device: what it offers, and what all files share.
//!
//! It is made when the device is probed and lives as long as anyone has something of it, also when
//! the hardware is gone: from then on the transport refuses commands, and what is released is
//! released without the host. Ids of resources, contexts and spaces are handed out here, and come
//! back only when the host has confirmed that it knows nothing of them.

pub(crate) mod capsets;
mod counters;
mod features;
mod knobs;
mod lifecycle;
mod reachable;

pub(crate) use self::{
    capsets::Capsets,
    counters::Counters,
    features::Features,
    knobs::Knobs,
    lifecycle::VirtioGpu,
    reachable::{
        DeviceMappings,
        Reachable,
        ReachedBy, //
    },
};

use crate::{
    kapi::{
        dma::{
            map::Mapper,
            TimelineNames, //
        },
        drm::range::RangeAllocator,
        ida::Ida, //
    },
    transport::{
        control::{
            ControlQueue,
            RingQuota, //
        },
        Transport, //
    },
};
use kernel::{
    prelude::*,
    sync::Arc, //
};

/// The window through which host blobs are mapped.
pub(crate) struct HostVisible {
    /// Physical address.
    pub(crate) base: u64,
    /// Bytes of the window that are in use.
    pub(crate) ranges: Arc<RangeAllocator>,
}

/// A virtio-gpu device.
pub(crate) struct Gpu {
    /// Its state, and its queues.
    pub(crate) transport: Arc<Transport>,
    /// Its control queue.
    pub(crate) control: ControlQueue,
    /// What was negotiated.
    pub(crate) features: Features,
    /// Its capability sets.
    pub(crate) capsets: Capsets,
    /// The driver's own part of the control queue, for commands that belong to no file.
    pub(crate) quota: Arc<RingQuota>,
    /// Resource ids.
    pub(crate) resource_ids: Arc<Ida>,
    /// Context ids.
    pub(crate) context_ids: Arc<Ida>,
    /// Ids of spaces on the mirror queue.
    pub(crate) space_ids: Arc<Ida>,
    /// The window for host blobs, if the device has one.
    pub(crate) host_visible: Option<HostVisible>,
    /// Translates addresses, if the device wants that.
    pub(crate) mapper: Option<Arc<Mapper>>,
    /// What it can reach.
    pub(crate) mappings: Arc<DeviceMappings>,
    /// What has happened.
    pub(crate) counters: Arc<Counters>,
    /// What is made to happen.
    pub(crate) knobs: Knobs,
}

impl Gpu {
    /// Whether the device works on copies of guest memory, which are brought up to date by
    /// transfers only, so that nothing can be shared with it.
    pub(crate) fn bounces(&self) -> bool {
        self.mapper.as_ref().is_some_and(|mapper| mapper.bounces())
    }

    /// Whether user memory can be registered.
    pub(crate) fn has_userptr(&self) -> bool {
        self.features.blob && !self.bounces()
    }
}

/// Names of this driver's fences.
pub(crate) struct Timeline;

impl TimelineNames for Timeline {
    const DRIVER: &'static CStr = c"virtio_gpu";
    const TIMELINE: &'static CStr = c"controlq";
}
