// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Images: resources whose storage is the device's own, and the guest memory behind them.
//!
//! Where virglrenderer is used, the storage is the renderer's. Copies between an image and the
//! memory behind it are jobs of `transfer`, and may be going on when RESOURCE_DETACH_BACKING comes.

use std::sync::Arc;

use virtgpu_protocol::virtio_gpu::{self as wire, response};
use virtgpu_protocol::virtio_gpu_2d as wire2d;
use virtgpu_protocol::virtio_gpu_image as wire_image;

use super::resource::{total, MAX_ENTRIES};
use super::{parse, Failed, Outcome};
use crate::device::state::{Action, Storage};
use crate::device::Device;
use crate::log::Event;
use crate::memory::image::{Image, ImageError, Shape};
use crate::memory::segments::Segments;
use crate::virgl::CreateArgs;

/// The most bytes of storage of all images.
const MAX_IMAGE_BYTES: u64 = 2 << 30;

impl Device {
    pub(super) fn create_2d(&self, bytes: &[u8]) -> Result<Outcome, Failed> {
        let (request, _) = parse::<wire_image::ResourceCreate2d>(bytes)?;
        let format = request.format.get();
        if !wire_image::format::is_2d(format) {
            return Err(response::ERR_INVALID_PARAMETER);
        }
        if let Some(virgl) = &self.virgl {
            self.create_rendered(virgl, CreateArgs::from(request))?;
            return Outcome::OK;
        }
        let shape = Shape::picture(format, request.width.get(), request.height.get());
        self.create_image(request.resource_id.get(), &shape)
    }

    pub(super) fn create_3d(&self, bytes: &[u8]) -> Result<Outcome, Failed> {
        let (request, _) = parse::<wire_image::ResourceCreate3d>(bytes)?;
        if let Some(virgl) = &self.virgl {
            self.create_rendered(virgl, CreateArgs::from(request))?;
            return Outcome::OK;
        }
        self.create_image(request.resource_id.get(), &Shape::of(request))
    }

    fn create_image(&self, id: u32, shape: &Shape) -> Result<Outcome, Failed> {
        let image = Image::new(shape).map_err(image_failed)?;
        let size = image.size();
        let mut state = self.lock();
        if id == 0 || state.resources.contains_key(&id) {
            return Err(response::ERR_INVALID_RESOURCE_ID);
        }
        if state.image_bytes + size > MAX_IMAGE_BYTES {
            return Err(response::ERR_OUT_OF_MEMORY);
        }
        state.image_bytes += size;
        let storage = Storage::Image(Arc::new(image), None);
        self.insert(&mut state, id, storage, size, false)?;
        self.log.write(|| Event::Create {
            resource: id,
            kind: "image".into(),
            bytes: size,
            entries: 0,
            segments: 0,
            low: 0,
            high: 0,
        });
        Outcome::OK
    }

    /// An image, and its guest memory if it has any.
    pub(super) fn image(&self, id: u32) -> Result<(Arc<Image>, Option<Arc<Segments>>), Failed> {
        let mut state = self.lock();
        let resource = state
            .resource(id)
            .ok_or(response::ERR_INVALID_RESOURCE_ID)?;
        match &resource.storage {
            Storage::Image(image, backing) => Ok((
                image.clone(),
                backing.as_ref().map(|(memory, _)| memory.clone()),
            )),
            _ => Err(response::ERR_INVALID_PARAMETER),
        }
    }

    pub(super) fn attach_backing(&self, bytes: &[u8]) -> Result<Outcome, Failed> {
        let (request, rest) = parse::<wire::ResourceAttachBacking>(bytes)?;
        let (id, count) = (request.resource_id.get(), request.nr_entries.get());
        if self.lock().backing(id)?.is_some() {
            return Err(response::ERR_UNSPEC);
        }
        // Transfers say how the memory is used, so its size is what there is.
        let size = total(rest, count)?;
        if size == 0 {
            return Err(response::ERR_INVALID_PARAMETER);
        }
        let memory = Arc::new(self.segments(rest, count, size)?);
        let mut state = self.lock();
        if state.entries + u64::from(count) > MAX_ENTRIES {
            return Err(response::ERR_OUT_OF_MEMORY);
        }
        if let Some(virgl) = self.virgl.as_ref().filter(|_| state.is_rendered(id)) {
            let memory = memory.clone();
            virgl.call(move |renderer| renderer.attach_backing(id, memory))?;
        }
        *state.backing(id)? = Some((memory, count.into()));
        state.entries += u64::from(count);
        Outcome::OK
    }

    pub(super) fn detach_backing(&self, bytes: &[u8]) -> Result<Outcome, Failed> {
        let (request, _) = parse::<wire::ResourceCommand>(bytes)?;
        let id = request.resource_id.get();
        let mut state = self.lock();
        let resource = state
            .resource(id)
            .ok_or(response::ERR_INVALID_RESOURCE_ID)?;
        if let Storage::Guest(..) = &resource.storage {
            // Jobs may use it.
            return Ok(Outcome::Later(Action::DetachBacking(id)));
        }
        let image = matches!(&resource.storage, Storage::Image(..));
        let (memory, entries) = state.backing(id)?.take().ok_or(response::ERR_UNSPEC)?;
        if image {
            // Copies may use it, and it counts until they are over.
            let last = state.jobs;
            return Ok(Outcome::Later(Action::DetachImage {
                resource: id,
                entries,
                last,
            }));
        }
        state.entries -= entries;
        if let Some(virgl) = self.virgl.as_ref().filter(|_| state.is_rendered(id)) {
            virgl.call(move |renderer| {
                renderer.detach_backing(id);
                Ok(())
            })?;
        }
        drop(memory);
        Outcome::OK
    }

    /// RESOURCE_FLUSH, which has nothing to show: there are no scanouts.
    pub(super) fn flush(&self, bytes: &[u8]) -> Result<Outcome, Failed> {
        let (flush, _) = parse::<wire2d::ResourceFlush>(bytes)?;
        let mut state = self.lock();
        let resource = state.resource(flush.resource_id.get());
        match resource.map(|resource| &resource.storage) {
            None => Err(response::ERR_INVALID_RESOURCE_ID),
            Some(Storage::Image(..) | Storage::Rendered(_)) => Outcome::OK,
            Some(_) => Err(response::ERR_INVALID_PARAMETER),
        }
    }
}

/// The response for an image that cannot be, or cannot be copied.
pub(super) fn image_failed(error: ImageError) -> Failed {
    log::info!("image: {error}");
    match error {
        ImageError::TooLarge => response::ERR_OUT_OF_MEMORY,
        _ => response::ERR_INVALID_PARAMETER,
    }
}
