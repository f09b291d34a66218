// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! The functions of virglrenderer's `virglrenderer.h` that are used, of version 1 and later.
//!
//! The library is loaded at run time: the device can be built without it, and those who do not ask
//! for it do not need it.

use std::ffi::{c_char, c_int, c_void};

use libc::iovec;
use virtgpu_protocol::virtio_gpu_image::{target, ResourceCreate2d, ResourceCreate3d};

/// What the library is called.
const NAME: &str = "libvirglrenderer.so.1";

/// `VIRGL_RENDERER_USE_EGL`: the library makes its own OpenGL contexts.
pub(super) const USE_EGL: c_int = 1 << 0;
/// `VIRGL_RENDERER_USE_SURFACELESS`: no window system.
pub(super) const USE_SURFACELESS: c_int = 1 << 3;
/// `VIRGL_RENDERER_USE_GLES`: OpenGL ES rather than OpenGL.
pub(super) const USE_GLES: c_int = 1 << 4;
/// `VIRGL_RENDERER_USE_EXTERNAL_BLOB`: the virtual machine is another process. Without it the
/// library offers buffers that the guest maps, which are memory of this process.
pub(super) const USE_EXTERNAL_BLOB: c_int = 1 << 5;

/// `VIRGL_RES_BIND_RENDER_TARGET`.
const BIND_RENDER_TARGET: u32 = 1 << 1;
/// `VIRGL_RESOURCE_Y_0_TOP` of `virgl_hw.h`.
const Y_0_TOP: u32 = 1 << 0;

/// `struct virgl_renderer_callbacks`, version 1, and room for what later ones have.
#[repr(C)]
pub(super) struct Callbacks {
    pub(super) version: c_int,
    pub(super) write_fence: unsafe extern "C" fn(cookie: *mut c_void, fence: u32),
    pub(super) later: [usize; 8],
}

/// `struct virgl_renderer_resource_create_args`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct CreateArgs {
    pub(crate) handle: u32,
    pub(crate) target: u32,
    pub(crate) format: u32,
    pub(crate) bind: u32,
    pub(crate) width: u32,
    pub(crate) height: u32,
    pub(crate) depth: u32,
    pub(crate) array_size: u32,
    pub(crate) last_level: u32,
    pub(crate) nr_samples: u32,
    pub(crate) flags: u32,
}

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

/// `struct virgl_box`.
#[repr(C)]
pub(super) struct VirglBox {
    pub(super) x: u32,
    pub(super) y: u32,
    pub(super) z: u32,
    pub(super) w: u32,
    pub(super) h: u32,
    pub(super) d: u32,
}

/// Declares [`Library`]: a field for each function, named like it without `virgl_renderer_`.
macro_rules! library {
    ($(fn $name:ident($($argument:ty),* $(,)?) $(-> $result:ty)?;)*) => {
        /// The loaded library.
        pub(super) struct Library {
            $(pub(super) $name: unsafe extern "C" fn($($argument),*) $(-> $result)?,)*
            /// Keeps the functions where they are.
            _library: libloading::Library,
        }

        impl Library {
            /// Finds the functions.
            fn find(library: libloading::Library) -> Result<Self, libloading::Error> {
                Ok(Self {
                    // SAFETY: The types are those that the header declares.
                    $($name: unsafe {
                        *library.get(concat!("virgl_renderer_", stringify!($name), "\0").as_bytes())?
                    },)*
                    _library: library,
                })
            }
        }
    };
}

library! {
    fn init(*mut c_void, c_int, *mut Callbacks) -> c_int;
    fn poll();
    fn get_cap_set(u32, *mut u32, *mut u32);
    fn fill_caps(u32, u32, *mut c_void);
    fn context_create_with_flags(u32, u32, u32, *const c_char) -> c_int;
    fn context_destroy(u32);
    fn ctx_attach_resource(c_int, c_int);
    fn ctx_detach_resource(c_int, c_int);
    fn resource_create(*mut CreateArgs, *mut iovec, u32) -> c_int;
    fn resource_attach_iov(c_int, *mut iovec, c_int) -> c_int;
    fn resource_detach_iov(c_int, *mut *mut iovec, *mut c_int);
    fn resource_unref(u32);
    fn transfer_read_iov(
        u32, u32, u32, u32, u32, *mut VirglBox, u64, *mut iovec, c_int
    ) -> c_int;
    fn transfer_write_iov(
        u32, u32, c_int, u32, u32, *mut VirglBox, u64, *mut iovec, u32
    ) -> c_int;
    fn submit_cmd(*mut c_void, c_int, c_int) -> c_int;
    fn create_fence(c_int, u32) -> c_int;
}

impl Library {
    /// Loads it.
    pub(super) fn load() -> Result<Self, String> {
        if cfg!(target_feature = "crt-static") {
            return Err(format!("a static executable cannot load {NAME}"));
        }
        // SAFETY: Its initialisers ask for nothing.
        let library = unsafe { libloading::Library::new(NAME) }.map_err(|e| e.to_string())?;
        Self::find(library).map_err(|e| e.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_feature = "crt-static")]
    fn static_executables_are_refused() {
        let error = Library::load().err().unwrap();
        assert!(error.contains("static"), "{error}");
    }
}
