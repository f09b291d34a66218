// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Commands of the control queue that virglrenderer carries out.

use virtgpu_protocol::virtio_gpu::response;
use virtgpu_protocol::virtio_gpu_image::{target, ResourceCreate2d, ResourceCreate3d};

use super::library::{CreateArgs, BIND_RENDER_TARGET, Y_0_TOP};
use super::renderer::Renderer;
use super::Virgl;
use crate::control::Failed;
use crate::device::Device;
use crate::event_log::Event;
use crate::state::Storage;

impl From<&ResourceCreate3d> for CreateArgs {
    fn from(request: &ResourceCreate3d) -> Self {
        Self {
            handle: request.resource_id.get(),
            target: request.target.get(),
            format: request.format.get(),
            bind: request.bind.get(),
            width: request.width.get(),
            height: request.height.get(),
            depth: request.depth.get(),
            array_size: request.array_size.get(),
            last_level: request.last_level.get(),
            nr_samples: request.nr_samples.get(),
            flags: request.flags.get(),
        }
    }
}

impl From<&ResourceCreate2d> for CreateArgs {
    fn from(request: &ResourceCreate2d) -> Self {
        Self {
            handle: request.resource_id.get(),
            target: target::TEXTURE_2D,
            format: request.format.get(),
            bind: BIND_RENDER_TARGET,
            width: request.width.get(),
            height: request.height.get(),
            depth: 1,
            array_size: 1,
            last_level: 0,
            nr_samples: 0,
            flags: Y_0_TOP,
        }
    }
}

impl Device {
    /// Whether contexts of this capability set are the renderer's; 0 is virgl's from before there
    /// were capability sets.
    pub(crate) fn renders(&self, capset: u32) -> Option<&Virgl> {
        self.virgl.as_ref().filter(|_| capset <= 2)
    }

    /// Creates a resource of the renderer.
    pub(crate) fn create_rendered(&self, virgl: &Virgl, args: CreateArgs) -> Result<(), Failed> {
        let id = args.handle;
        let mut state = self.lock();
        if id == 0 || state.resources.contains_key(&id) {
            return Err(response::ERR_INVALID_RESOURCE_ID);
        }
        self.insert(&mut state, id, Storage::Rendered(None), 0, false)?;
        if let Err(code) = virgl.call(move |renderer| renderer.create(args)) {
            state.resources.remove(&id);
            return Err(code);
        }
        self.log.write(|| Event::Create {
            resource: id,
            kind: "rendered".into(),
            bytes: 0,
            entries: 0,
            segments: 0,
            low: 0,
            high: 0,
        });
        Ok(())
    }

    /// Has the renderer do something that cannot fail, and waits until it has.
    pub(crate) fn tell_renderer(&self, f: impl FnOnce(&mut Renderer) + Send + 'static) {
        let Some(virgl) = &self.virgl else {
            return;
        };
        let told = virgl.call(|renderer| {
            f(renderer);
            Ok(())
        });
        if told.is_err() {
            log::error!("the renderer is gone");
        }
    }
}
