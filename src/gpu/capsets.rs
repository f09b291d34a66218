// SPDX-License-Identifier: GPL-2.0

//! Capability sets: what the device's contexts can do, in formats that only userspace knows.

use crate::{
    kapi::virtio::{
        self,
        Chunks, //
    },
    protocol::virtio_gpu::{capset, GetCapset, GetCapsetInfo},
    transport::control::{
        commands,
        ControlQueue,
        Request,
        RingQuota, //
    },
};
use kernel::{
    device, new_mutex,
    prelude::*,
    sync::{
        Arc,
        Mutex, //
    },
};

/// Most capability sets that a device can have; more is not believed.
const MAX_CAPSETS: u32 = 64;
/// Most that are kept; versions are for userspace to choose, and may be many.
const MAX_CACHED: usize = 16;
/// Most bytes of one; more is not believed.
const MAX_SIZE: u32 = 1 << 20;
/// Size in bytes of AMD's capability set.
const AMD_SIZE: u32 = 24;
/// Ids above this cannot be named in CONTEXT_INIT.
pub(crate) const MAX_ID: u32 = 63;

#[derive(Clone, Copy)]
struct Info {
    id: u32,
    max_version: u32,
    max_size: u32,
}

struct Cached {
    id: u32,
    version: u32,
    bytes: Arc<KVVec<u8>>,
}

/// The capability sets of a device.
pub(crate) struct Capsets {
    infos: KVec<Info>,
    /// Those that were read. Protects the list only; taken innermost, held while allocating.
    cache: Pin<KBox<Mutex<KVec<Cached>>>>,
}

impl Capsets {
    /// Asks the device for its `count` capability sets. Leaves out what it does not tell, tells
    /// twice, or tells in a way that makes no sense.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if it claims to have too many, [`ENODEV`] if it is lost, [`ENOMEM`].
    pub(super) fn query(
        vdev: &virtio::Device<device::Core<'_>>,
        control: &ControlQueue,
        quota: &Arc<RingQuota>,
        count: u32,
    ) -> Result<Self> {
        if count > MAX_CAPSETS {
            return Err(EINVAL);
        }
        let mut infos: KVec<Info> = KVec::with_capacity(count as usize, GFP_KERNEL)?;
        for index in 0..count {
            let fixed = GetCapsetInfo {
                capset_index: index.into(),
                ..Default::default()
            };
            let request = Request::<commands::GetCapsetInfo>::new(0, &fixed);
            let sent = match control.call(quota, request) {
                Ok(sent) => sent,
                Err(e) if e == ENODEV => return Err(e),
                Err(e) => {
                    dev_warn!(vdev, "capability set {}: {:?}\n", index, e);
                    if e == EBUSY || e == ERESTARTSYS {
                        // Nor would it tell the others.
                        break;
                    }
                    continue;
                }
            };
            let response = sent.response();
            let info = Info {
                id: response.capset_id.get(),
                max_version: response.capset_max_version.get(),
                max_size: response.capset_max_size.get(),
            };
            if info.max_size > MAX_SIZE || infos.iter().any(|other| other.id == info.id) {
                dev_warn!(vdev, "capability set {} makes no sense\n", index);
                continue;
            }
            infos.push(info, GFP_KERNEL)?;
        }
        Ok(Self {
            infos,
            cache: KBox::pin_init(new_mutex!(KVec::new(), "Capsets::cache"), GFP_KERNEL)?,
        })
    }

    /// Whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.infos.is_empty()
    }

    /// Mask of the ids.
    pub(crate) fn mask(&self) -> u64 {
        self.infos
            .iter()
            .filter(|info| info.id <= MAX_ID)
            .fold(0, |mask, info| mask | 1 << info.id)
    }

    /// Whether the capability set with AMD's id looks like AMD's: it has the size of
    /// `struct virgl_renderer_capset_hsakmt`.
    pub(crate) fn is_amd(&self) -> bool {
        self.infos
            .iter()
            .any(|info| info.id == capset::AMD && info.max_size == AMD_SIZE)
    }

    /// Whether there is one with `id`.
    pub(crate) fn contains(&self, id: u32) -> bool {
        id <= MAX_ID && self.infos.iter().any(|info| info.id == id)
    }

    /// The bytes of capability set `id` in `version`, read from the device once.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if there is none, [`ENODEV`] if the device does not respond.
    pub(crate) fn get(
        &self,
        control: &ControlQueue,
        quota: &Arc<RingQuota>,
        id: u32,
        version: u32,
    ) -> Result<Arc<KVVec<u8>>> {
        let info = self
            .infos
            .iter()
            .find(|info| info.id == id && info.max_version >= version)
            .ok_or(EINVAL)?;
        if let Some(found) = self.find(id, version) {
            return Ok(found);
        }

        let fixed = GetCapset {
            capset_id: id.into(),
            capset_version: version.into(),
            ..Default::default()
        };
        let size = info.max_size as usize;
        let mut request = Request::<commands::GetCapset>::new(0, &fixed);
        request.response_data(Chunks::zeroed(size, control.pieces(2))?);
        let sent = control.call(quota, request)?;
        let mut bytes = KVVec::from_elem(0, size, GFP_KERNEL)?;
        sent.read_data(&mut bytes);

        let bytes = Arc::new(bytes, GFP_KERNEL)?;
        let mut cache = self.cache.lock();
        if cache.len() < MAX_CACHED {
            let cached = Cached {
                id,
                version,
                bytes: bytes.clone(),
            };
            cache.push(cached, GFP_KERNEL)?;
        }
        Ok(bytes)
    }

    fn find(&self, id: u32, version: u32) -> Option<Arc<KVVec<u8>>> {
        self.cache
            .lock()
            .iter()
            .find(|cached| cached.id == id && cached.version == version)
            .map(|cached| cached.bytes.clone())
    }
}
