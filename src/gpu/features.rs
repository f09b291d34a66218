// SPDX-License-Identifier: GPL-2.0

//! Feature bits: what the driver accepts, requires and makes of those that were negotiated.

use crate::{
    kapi::{
        task::HAS_USER_WORKERS,
        virtio::{
            self,
            device::{
                ConfigSpace,
                F_ACCESS_PLATFORM,
                F_INDIRECT_DESC,
                F_VERSION_1, //
            },
        }, //
    },
    protocol::{
        mirror::{
            self,
            MirrorConfig, //
        },
        virtio_gpu::{
            feature,
            Config, //
        }, //
    },
};
use core::mem::offset_of;
use kernel::{
    device,
    page::PAGE_SIZE,
    prelude::*, //
};

/// The feature bits that the driver understands.
pub(super) const UNDERSTOOD: &[u32] = &[
    feature::VIRGL,
    feature::RESOURCE_UUID,
    feature::RESOURCE_BLOB,
    feature::CONTEXT_INIT,
    feature::BLOB_ALIGNMENT,
    mirror::feature::MIRROR,
    mirror::feature::PAGE_FAULT,
];

/// Most faults of a space that the driver takes note of. A device that asks for more gets none.
const MAX_FAULTS: usize = 1024;

/// What the device says of its mirror queue.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MirrorFeatures {
    /// Most entries of a MAP.
    pub(crate) max_entries: u32,
    /// Most spaces at a time, at least one.
    pub(crate) max_spaces: u32,
}

/// What the device offers and the driver uses.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Features {
    /// Contexts and 3D commands.
    pub(crate) virgl: bool,
    /// Blob resources.
    pub(crate) blob: bool,
    /// Contexts of several kinds.
    pub(crate) context_init: bool,
    /// UUIDs for resources.
    pub(crate) uuid: bool,
    /// Bytes that blob sizes are multiples of, if the device asks for that.
    pub(crate) blob_alignment: Option<u32>,
    /// A command takes one descriptor, however many parts it has.
    pub(crate) indirect: bool,
    /// The device sees DMA addresses, not physical ones.
    pub(crate) dma: bool,
    /// The device can follow the page tables.
    pub(crate) mirror: Option<MirrorFeatures>,
    /// Most faults of a space that are not resolved, if the device faults and the driver can serve
    /// that.
    pub(crate) faults: Option<usize>,
    /// Buffers that the device wants in its event queue; `None` if it has no such queue.
    pub(crate) event_slots: Option<usize>,
}

/// Validates the negotiated features.
///
/// # Errors
///
/// [`ENODEV`] for a device from before virtio 1.0.
pub(super) fn validate(vdev: &virtio::Device<device::Core<'_>>) -> Result {
    if !vdev.has_feature(F_VERSION_1) {
        return Err(ENODEV);
    }
    Ok(())
}

impl Features {
    /// Reads the features of a device that is being probed.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if the alignment makes no sense, or the configuration space is too short.
    pub(super) fn new(vdev: &virtio::Device<device::Core<'_>>) -> Result<Self> {
        let config = vdev.config();
        let blob_alignment = if vdev.has_feature(feature::BLOB_ALIGNMENT) {
            let alignment = config.read32(offset_of!(Config, blob_alignment))?;
            if !alignment.is_power_of_two() {
                return Err(EINVAL);
            }
            // What a device takes that asks for less.
            Some(alignment.max(PAGE_SIZE as u32))
        } else {
            None
        };
        let dma = vdev.has_feature(F_ACCESS_PLATFORM);
        let (mirror, event_slots) = if vdev.has_feature(mirror::feature::MIRROR) {
            // All of it: a field is read when it changes.
            let faults = vdev.has_feature(mirror::feature::PAGE_FAULT);
            let len = if faults {
                size_of::<MirrorConfig>()
            } else {
                offset_of!(MirrorConfig, max_faults)
            };
            config.check(mirror::CONFIG_OFFSET + len)?;
            let field = mirror::CONFIG_OFFSET + offset_of!(MirrorConfig, event_slots);
            let slots = config.read32(field)? as usize;
            (Self::mirror(vdev, &config)?, Some(slots))
        } else {
            (None, None)
        };
        Ok(Self {
            virgl: vdev.has_feature(feature::VIRGL),
            blob: vdev.has_feature(feature::RESOURCE_BLOB),
            context_init: vdev.has_feature(feature::CONTEXT_INIT),
            uuid: vdev.has_feature(feature::RESOURCE_UUID),
            blob_alignment,
            indirect: vdev.has_feature(F_INDIRECT_DESC),
            dma,
            // Only jobs of contexts use it.
            mirror: mirror.filter(|_| !dma && vdev.has_feature(feature::VIRGL)),
            faults: Self::faults(vdev, &config)?
                .filter(|_| mirror.is_some() && !dma && vdev.has_feature(feature::VIRGL)),
            event_slots,
        })
    }

    /// Most faults of a space, if the device faults and the kernel has the threads that serve them.
    fn faults(
        vdev: &virtio::Device<device::Core<'_>>,
        config: &ConfigSpace<'_>,
    ) -> Result<Option<usize>> {
        let offered = vdev.has_feature(mirror::feature::MIRROR)
            && vdev.has_feature(mirror::feature::PAGE_FAULT)
            && vdev.has_feature(feature::CONTEXT_INIT);
        if !offered || !HAS_USER_WORKERS {
            return Ok(None);
        }
        let field = mirror::CONFIG_OFFSET + offset_of!(MirrorConfig, max_faults);
        let most = config.read32(field)? as usize;
        if most == 0 {
            return Err(EINVAL);
        }
        // Each has a place that is kept for it.
        Ok((most <= MAX_FAULTS).then_some(most))
    }

    /// Looks once more at what the device says of its mirror queue, after DRIVER_OK: before, it may
    /// not know what guest memory is made of.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if it makes no sense.
    pub(super) fn settle_mirror(&mut self, vdev: &virtio::Device<device::Core<'_>>) -> Result {
        if self.mirror.is_none() {
            return Ok(());
        }
        self.mirror = Self::mirror(vdev, &vdev.config())?;
        self.faults = self.faults.filter(|_| self.mirror.is_some());
        Ok(())
    }

    /// What a device with a mirror queue says of it; `None` if it is of no use to this driver.
    fn mirror(
        vdev: &virtio::Device<device::Core<'_>>,
        config: &ConfigSpace<'_>,
    ) -> Result<Option<MirrorFeatures>> {
        let field = |offset| config.read32(mirror::CONFIG_OFFSET + offset);
        let granularity = field(offset_of!(MirrorConfig, granularity))?;
        let max_entries = field(offset_of!(MirrorConfig, max_entries))?;
        if !granularity.is_power_of_two() || max_entries == 0 {
            return Err(EINVAL);
        }
        let version = field(offset_of!(MirrorConfig, mirror_version))?;
        // Pages move one by one.
        if version != mirror::VERSION || granularity as usize > PAGE_SIZE {
            dev_info!(
                vdev.as_ref(),
                "no mirrored memory: version {} of the mirror queue, memory in pieces of {} bytes{}\n",
                version,
                granularity,
                if granularity as usize > PAGE_SIZE {
                    " (is guest memory in huge pages of the host?)"
                } else {
                    ""
                }
            );
            return Ok(None);
        }
        let max_spaces = field(offset_of!(MirrorConfig, max_spaces))?;
        if max_spaces == 0 {
            dev_info!(vdev.as_ref(), "no mirrored memory: no spaces\n");
            return Ok(None);
        }
        Ok(Some(MirrorFeatures {
            max_entries,
            max_spaces,
        }))
    }

    /// Whether the device takes blobs of `size` bytes.
    pub(crate) fn takes_blob_size(&self, size: u64) -> bool {
        // A power of two, see `new`.
        let mask = u64::from(self.blob_alignment.unwrap_or(1)) - 1;
        size != 0 && size & mask == 0
    }
}
