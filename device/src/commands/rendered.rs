// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! What virglrenderer has to do with contexts and resources, where it is used.
//!
//! The renderer has a thread of its own, which takes no lock of the device: it may be waited for
//! with the state locked.

use virtgpu_protocol::virtio_gpu::response;

use super::Failed;
use crate::device::state::Storage;
use crate::device::Device;
use crate::log::Event;
use crate::virgl::{CreateArgs, Renderer, Virgl};

impl Device {
    /// Whether contexts of this capability set are the renderer's; 0 is virgl's from before there
    /// were capability sets.
    pub(super) fn renders(&self, capset: u32) -> Option<&Virgl> {
        self.virgl.as_ref().filter(|_| capset <= 2)
    }

    /// Creates a resource of the renderer.
    pub(super) fn create_rendered(&self, virgl: &Virgl, args: CreateArgs) -> Result<(), Failed> {
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
    pub(super) fn tell_renderer(&self, f: impl FnOnce(&mut Renderer) + Send + 'static) {
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
