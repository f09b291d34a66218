// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! A context without a window, and what is drawn on.

use glow::HasContext;
use khronos_egl as egl;
use virtgpu_render::Result;

/// EGL_PLATFORM_SURFACELESS_MESA.
const SURFACELESS: egl::Enum = 0x31dd;

/// Width and height of a [`Target`].
pub(crate) const SIZE: u32 = 256;

/// OpenGL ES 3.1, current in this thread as long as the program runs.
pub(crate) struct Context {
    pub(crate) gl: glow::Context,
    _egl: egl::DynamicInstance<egl::EGL1_5>,
}

impl Context {
    pub(crate) fn new() -> Result<Self> {
        // SAFETY: libEGL of the tree; its initialisation has no requirements.
        let egl = unsafe { egl::DynamicInstance::<egl::EGL1_5>::load_required() }
            .map_err(|error| error.to_string())?;
        let context = Self::make_current(&egl).map_err(|error| error.to_string());
        context?;
        // SAFETY: A context is current, and these are its functions.
        let gl = unsafe {
            glow::Context::from_loader_function(|name| {
                egl.get_proc_address(name)
                    .map_or(std::ptr::null(), |function| function as *const _)
            })
        };
        Ok(Self { gl, _egl: egl })
    }

    fn make_current(
        egl: &egl::DynamicInstance<egl::EGL1_5>,
    ) -> std::result::Result<(), egl::Error> {
        // SAFETY: This platform takes the default display and no attributes.
        let display = unsafe {
            egl.get_platform_display(SURFACELESS, egl::DEFAULT_DISPLAY, &[egl::ATTRIB_NONE])?
        };
        egl.initialize(display)?;
        egl.bind_api(egl::OPENGL_ES_API)?;
        let wanted = [
            egl::SURFACE_TYPE,
            egl::PBUFFER_BIT,
            egl::RENDERABLE_TYPE,
            egl::OPENGL_ES3_BIT,
            egl::NONE,
        ];
        let config = egl
            .choose_first_config(display, &wanted)?
            .ok_or(egl::Error::BadConfig)?;
        let version = [
            egl::CONTEXT_MAJOR_VERSION,
            3,
            egl::CONTEXT_MINOR_VERSION,
            1,
            egl::NONE,
        ];
        let context = egl.create_context(display, config, None, &version)?;
        egl.make_current(display, None, None, Some(context))
    }

    /// Fails if something before has made OpenGL complain.
    pub(crate) fn check(&self) -> Result<()> {
        // SAFETY: The context is current.
        match unsafe { self.gl.get_error() } {
            glow::NO_ERROR => Ok(()),
            error => Err(format!("OpenGL error {error:#x}")),
        }
    }

    /// Compiles and links.
    pub(crate) fn program(
        &self,
        sources: &[(u32, &str)],
        captured: Option<&str>,
    ) -> Result<glow::Program> {
        let gl = &self.gl;
        // SAFETY: The context is current, and all names are made here.
        unsafe {
            let program = gl.create_program()?;
            for (kind, source) in sources {
                let shader = gl.create_shader(*kind)?;
                gl.shader_source(shader, source);
                gl.compile_shader(shader);
                if !gl.get_shader_compile_status(shader) {
                    return Err(gl.get_shader_info_log(shader));
                }
                gl.attach_shader(program, shader);
                gl.delete_shader(shader);
            }
            if let Some(name) = captured {
                gl.transform_feedback_varyings(program, &[name], glow::SEPARATE_ATTRIBS);
            }
            gl.link_program(program);
            if !gl.get_program_link_status(program) {
                return Err(gl.get_program_info_log(program));
            }
            Ok(program)
        }
    }

    /// Creates what is drawn on, SIZE × SIZE pixels of RGBA bytes, and makes it current.
    pub(crate) fn target(&self) -> Result<Target<'_>> {
        let gl = &self.gl;
        // SAFETY: The context is current, and all names are made here.
        unsafe {
            let buffer = gl.create_renderbuffer()?;
            gl.bind_renderbuffer(glow::RENDERBUFFER, Some(buffer));
            gl.renderbuffer_storage(glow::RENDERBUFFER, glow::RGBA8, SIZE as i32, SIZE as i32);
            let frame = gl.create_framebuffer()?;
            gl.bind_framebuffer(glow::FRAMEBUFFER, Some(frame));
            gl.framebuffer_renderbuffer(
                glow::FRAMEBUFFER,
                glow::COLOR_ATTACHMENT0,
                glow::RENDERBUFFER,
                Some(buffer),
            );
            if gl.check_framebuffer_status(glow::FRAMEBUFFER) != glow::FRAMEBUFFER_COMPLETE {
                return Err("the framebuffer is not complete".into());
            }
            gl.viewport(0, 0, SIZE as i32, SIZE as i32);
            Ok(Target {
                context: self,
                buffer,
                frame,
            })
        }
    }
}

/// What is drawn on.
pub(crate) struct Target<'a> {
    context: &'a Context,
    buffer: glow::Renderbuffer,
    frame: glow::Framebuffer,
}

impl Target<'_> {
    /// All pixels, from the bottom row up.
    pub(crate) fn pixels(&self) -> Result<Vec<u8>> {
        let mut pixels = vec![0; (SIZE * SIZE * 4) as usize];
        self.read(0, 0, SIZE, SIZE, &mut pixels)?;
        Ok(pixels)
    }

    /// Some pixels.
    pub(crate) fn read(
        &self,
        x: u32,
        y: u32,
        width: u32,
        height: u32,
        into: &mut [u8],
    ) -> Result<()> {
        assert_eq!(into.len(), (width * height * 4) as usize);
        // SAFETY: The context is current; there is room for all pixels.
        unsafe {
            self.context.gl.read_pixels(
                x as i32,
                y as i32,
                width as i32,
                height as i32,
                glow::RGBA,
                glow::UNSIGNED_BYTE,
                glow::PixelPackData::Slice(Some(into)),
            );
        }
        self.context.check()
    }
}

impl Drop for Target<'_> {
    fn drop(&mut self) {
        // SAFETY: The context is current, and the names are its own.
        unsafe {
            self.context.gl.delete_framebuffer(self.frame);
            self.context.gl.delete_renderbuffer(self.buffer);
        }
    }
}
