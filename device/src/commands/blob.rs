// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Blobs: their memory is lent by the guest, is the host's, or is what a space maps later.
//!
//! The guest maps blobs of the host in the window that it shares with the device. Mapping waits for
//! jobs that write the blob, and for the frontend to show the window, so [`Device::map`] and
//! [`Device::unmap`] are called by `deferred` when their turn has come.

use std::sync::Arc;

use virtgpu_protocol::virtio_gpu::{self as wire, blob_flag, blob_mem, capset, response};

use super::resource::bounds;
use super::{parse, Failed, Outcome};
use crate::device::state::{Action, Resource, State, Storage, Window};
use crate::device::Device;
use crate::log::Event;
use crate::memory::hostmem::WindowError;
use crate::memory::segments::Segments;
use crate::memory::PAGE;
use crate::misbehave::hammer;

impl Device {
    pub(super) fn create_blob(&self, bytes: &[u8]) -> Result<Outcome, Failed> {
        let (request, rest) = parse::<wire::ResourceCreateBlob>(bytes)?;
        let id = request.resource_id.get();
        let size = request.size.get();
        let flags = request.blob_flags.get();
        let count = request.nr_entries.get();
        let memory = request.blob_mem.get();
        let known = blob_flag::USE_MAPPABLE
            | blob_flag::USE_SHAREABLE
            | blob_flag::USE_CROSS_DEVICE
            | blob_flag::USE_USERPTR;
        let alignment = u64::from(self.options.blob_alignment.max(1));
        // Contexts have no objects that a blob could be; an id is ignored where it may be given.
        let wrong_id = memory == blob_mem::GUEST && request.blob_id.get() != 0;
        if size == 0 || size % alignment != 0 || flags & !known != 0 || wrong_id {
            return Err(response::ERR_INVALID_PARAMETER);
        }
        let ctx = request.hdr.ctx_id.get();
        let (capset, free) = {
            let mut state = self.lock();
            let capset = match ctx {
                0 => None,
                _ => Some(
                    state
                        .context(ctx)
                        .ok_or(response::ERR_INVALID_CONTEXT_ID)?
                        .capset,
                ),
            };
            (capset, !state.resources.contains_key(&id))
        };
        if id == 0 || !free {
            return Err(response::ERR_INVALID_RESOURCE_ID);
        }
        // The flag is AMD's and means nothing, or something else, elsewhere.
        if flags & blob_flag::USE_USERPTR != 0 && capset != Some(capset::AMD) {
            return Err(response::ERR_INVALID_PARAMETER);
        }
        // What virgl's blobs would be is memory of its renderer.
        let hosts = capset.is_some_and(|capset| self.renders(capset).is_none());
        let host = match memory {
            blob_mem::GUEST | blob_mem::HOST3D_GUEST if count > 0 => false,
            blob_mem::GUEST | blob_mem::HOST3D_GUEST if self.is_mirrored() => {
                let marked = request.blob_id.get() & hammer::MARK != 0;
                return self.create_mirrored(ctx, id, size, self.options.hammer && marked);
            }
            blob_mem::HOST3D if count == 0 && hosts && size % PAGE == 0 => true,
            _ => return Err(response::ERR_INVALID_PARAMETER),
        };
        let guest = match host {
            true => None,
            false => Some(Arc::new(self.segments(rest, count, size)?)),
        };
        let range = || match self.log.is_on() && !host {
            true => bounds(&rest[..count as usize * size_of::<wire::MemEntry>()]),
            false => (0, 0),
        };
        let (low, high) = range();
        let mut state = self.lock();
        let segments = guest.as_ref().map_or(1, |g| g.count() as u64);
        let storage = match guest {
            Some(memory) => Storage::Guest(memory, u64::from(count)),
            None => {
                let blob = state
                    .host
                    .allocate(size)
                    .ok_or(response::ERR_OUT_OF_MEMORY)?;
                Storage::Host {
                    memory: Arc::new(Segments::from_host(blob.clone())),
                    blob,
                    shown: None,
                    written: false,
                }
            }
        };
        let mappable = host && flags & blob_flag::USE_MAPPABLE != 0;
        self.insert(&mut state, id, storage, size, mappable)?;
        self.log.write(|| Event::Create {
            resource: id,
            kind: match memory {
                blob_mem::GUEST => "guest",
                blob_mem::HOST3D => "host3d",
                _ => "host3d_guest",
            }
            .into(),
            bytes: size,
            entries: u64::from(count),
            segments,
            low,
            high,
        });
        Outcome::OK
    }

    /// Creates a resource whose memory comes from a space, later.
    fn create_mirrored(
        &self,
        ctx: u32,
        id: u32,
        size: u64,
        hammer: bool,
    ) -> Result<Outcome, Failed> {
        let area = self.mirror.area(ctx, size);
        let area = area.ok_or(response::ERR_INVALID_PARAMETER)?;
        let storage = Storage::Mirrored(Arc::new(Segments::mirrored(area.clone())));
        let mut state = self.lock();
        self.insert(&mut state, id, storage, size, false)?;
        self.log.write(|| Event::Create {
            resource: id,
            kind: "mirrored".into(),
            bytes: size,
            entries: 0,
            segments: 0,
            low: 0,
            high: 0,
        });
        self.mirror.adopt(id, area, hammer);
        Outcome::OK
    }

    pub(super) fn map_blob(&self, bytes: &[u8]) -> Result<Outcome, Failed> {
        let (request, _) = parse::<wire::ResourceMapBlob>(bytes)?;
        let (id, offset) = (request.resource_id.get(), request.offset.get());
        let mut state = self.lock();
        let resource = state
            .resource(id)
            .ok_or(response::ERR_INVALID_RESOURCE_ID)?;
        let size = resource.size;
        if !resource.mappable || state.is_shown(id) || !state.host.has_place(offset, size) {
            return Err(response::ERR_INVALID_PARAMETER);
        }
        Ok(Outcome::Later(Action::Map {
            resource: id,
            offset,
        }))
    }

    pub(super) fn unmap_blob(&self, bytes: &[u8]) -> Result<Outcome, Failed> {
        let (request, _) = parse::<wire::ResourceCommand>(bytes)?;
        let id = request.resource_id.get();
        let mut state = self.lock();
        state
            .resource(id)
            .ok_or(response::ERR_INVALID_RESOURCE_ID)?;
        if !state.is_shown(id) {
            return Err(response::ERR_INVALID_PARAMETER);
        }
        Ok(Outcome::Later(Action::Unmap(id)))
    }

    /// Shows a blob in the window at `offset`.
    pub(super) fn map(&self, state: &mut State, id: u32, offset: u64) -> Result<(), Failed> {
        let state = &mut *state;
        if state.window != Window::There {
            return Err(response::ERR_UNSPEC);
        }
        // An UNREF that came later waits behind this.
        let resource = state
            .resources
            .get_mut(&id)
            .ok_or(response::ERR_INVALID_RESOURCE_ID)?;
        // Jobs in fault mode must not write meanwhile.
        let held: Vec<_> = resource.lent.values().map(|lent| lent.hold()).collect();
        let Storage::Host {
            blob,
            shown: shown @ None,
            written,
            ..
        } = &mut resource.storage
        else {
            return Err(response::ERR_INVALID_PARAMETER);
        };
        state
            .host
            .show(blob, offset, *written)
            .map_err(|error| match error {
                WindowError::Place => response::ERR_INVALID_PARAMETER,
                WindowError::Io(error) => {
                    log::error!("window: {error}");
                    response::ERR_OUT_OF_MEMORY
                }
            })?;
        drop(held);
        *shown = Some(offset);
        // From now on the guest can write it.
        *written = true;
        self.log.write(|| Event::Map {
            resource: id,
            offset,
        });
        Ok(())
    }

    /// Takes a blob out of the window.
    pub(super) fn unmap(&self, state: &mut State, id: u32) -> Result<(), Failed> {
        let state = &mut *state;
        let Some(Resource {
            storage: Storage::Host { blob, shown, .. },
            lent,
            ..
        }) = state.resources.get_mut(&id)
        else {
            return Err(response::ERR_INVALID_RESOURCE_ID);
        };
        let held: Vec<_> = lent.values().map(|lent| lent.hold()).collect();
        let offset = shown.ok_or(response::ERR_INVALID_PARAMETER)?;
        state.host.hide(blob, offset, true).map_err(|error| {
            log::error!("window: {error}");
            response::ERR_OUT_OF_MEMORY
        })?;
        drop(held);
        *shown = None;
        self.log.write(|| Event::Unmap { resource: id });
        Ok(())
    }
}
