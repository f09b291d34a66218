// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! virglrenderer, as the one thread sees it that may call it.
//!
//! The library keeps pointers to guest memory and to what its callbacks get. Here is what keeps
//! them valid for as long: the memory behind each resource until it is detached, the list of fences
//! for ever.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::ffi::{c_int, c_void};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};

use libc::iovec;
use virtgpu_protocol::virtio_gpu::{capset, response};

use super::library::{
    Callbacks, CreateArgs, Library, VirglBox, USE_EGL, USE_EXTERNAL_BLOB, USE_GLES, USE_SURFACELESS,
};
use crate::memory::image::{Direction, Transfer};
use crate::memory::segments::Segments;
use crate::options::capset::Capset;
use crate::queues::control::Response;

/// The response with this error code.
type Failed = u32;

/// Capability set 1, which old programs ask for.
const VIRGL: u32 = 1;

/// Guest memory behind a resource.
struct Backing {
    /// The library keeps its address.
    entries: Box<[iovec]>,
    /// Keeps it mapped.
    _memory: Arc<Segments>,
}

/// A command whose response is due when the renderer is done with it.
struct Fence {
    id: u32,
    ctx: u32,
    done: Sender<Response>,
}

/// virglrenderer.
pub(crate) struct Renderer {
    library: Library,
    /// Fences that the library has reported; it has the address.
    reported: &'static Mutex<Vec<u32>>,
    /// Those it has not, in the order of their ids.
    fences: VecDeque<Fence>,
    last_fence: u32,
    contexts: BTreeSet<u32>,
    resources: BTreeSet<u32>,
    backings: HashMap<u32, Backing>,
}

/// Called by the library, on the thread that polls it.
unsafe extern "C" fn write_fence(cookie: *mut c_void, fence: u32) {
    // SAFETY: The cookie is `Renderer::reported`, which lives for ever.
    let reported = unsafe { &*cookie.cast::<Mutex<Vec<u32>>>() };
    let mut reported = reported.lock().unwrap_or_else(PoisonError::into_inner);
    reported.push(fence);
}

impl Renderer {
    /// Loads and starts the library. All else must be called on the same thread, because that is
    /// where its OpenGL contexts are current.
    pub(super) fn new() -> Result<Self, String> {
        let library = Library::load()?;
        let reported: &'static Mutex<Vec<u32>> = Box::leak(Box::default());
        let callbacks = Box::leak(Box::new(Callbacks {
            version: 1,
            write_fence,
            later: [0; 8],
        }));
        let cookie = std::ptr::from_ref(reported).cast_mut().cast();
        let flags = USE_EGL | USE_SURFACELESS | USE_GLES | USE_EXTERNAL_BLOB;
        // SAFETY: Both pointers stay valid; the callbacks of version 1 that are null are not called
        // with USE_EGL.
        let status = unsafe { (library.init)(cookie, flags, callbacks) };
        if status != 0 {
            return Err(format!("virgl_renderer_init returned {status}"));
        }
        Ok(Self {
            library,
            reported,
            fences: VecDeque::new(),
            last_fence: 0,
            contexts: BTreeSet::new(),
            resources: BTreeSet::new(),
            backings: HashMap::new(),
        })
    }

    /// The capability sets that it has.
    pub(super) fn capsets(&self) -> Vec<Capset> {
        let sets = [capset::VIRGL2, VIRGL].into_iter();
        sets.filter_map(|id| self.capset(id)).collect()
    }

    fn capset(&self, id: u32) -> Option<Capset> {
        let (mut version, mut size) = (0, 0);
        // SAFETY: Both pointers are valid.
        unsafe { (self.library.get_cap_set)(id, &raw mut version, &raw mut size) };
        // Words, so that it is aligned as the library's structures are.
        let mut words = vec![0_u32; (size as usize).div_ceil(4)];
        if words.is_empty() {
            return None;
        }
        // SAFETY: There is room for `size` bytes.
        unsafe { (self.library.fill_caps)(id, version, words.as_mut_ptr().cast()) };
        let mut data: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        data.truncate(size as usize);
        Some(Capset { id, version, data })
    }

    /// Creates a context of a capability set; 0 is that of those who know of none.
    pub(crate) fn create_context(&mut self, ctx: u32, set: u32, name: &[u8]) -> Result<(), Failed> {
        let set = if set == 0 { capset::VIRGL2 } else { set };
        let name: Vec<u8> = name.iter().copied().chain([0]).collect();
        let length = name.len() as u32 - 1;
        // SAFETY: The name is `length` bytes, and a zero after them.
        let status = unsafe {
            (self.library.context_create_with_flags)(ctx, set, length, name.as_ptr().cast())
        };
        check("context_create", status, response::ERR_OUT_OF_MEMORY)?;
        self.contexts.insert(ctx);
        Ok(())
    }

    /// Destroys a context. What it still had to draw is of no interest to anyone.
    pub(crate) fn destroy_context(&mut self, ctx: u32) {
        self.contexts.remove(&ctx);
        // SAFETY: It takes a number.
        unsafe { (self.library.context_destroy)(ctx) };
        self.fences.retain(|fence| {
            let stays = fence.ctx != ctx;
            if !stays {
                let _ = fence.done.send(Response::ok());
            }
            stays
        });
    }

    /// Lets a context use a resource.
    pub(crate) fn attach(&mut self, ctx: u32, resource: u32) {
        // SAFETY: It takes numbers.
        unsafe { (self.library.ctx_attach_resource)(ctx as c_int, resource as c_int) };
    }

    /// The opposite.
    pub(crate) fn detach(&mut self, ctx: u32, resource: u32) {
        // SAFETY: It takes numbers.
        unsafe { (self.library.ctx_detach_resource)(ctx as c_int, resource as c_int) };
    }

    /// Creates a resource without guest memory.
    pub(crate) fn create(&mut self, mut args: CreateArgs) -> Result<(), Failed> {
        // SAFETY: The structure is valid during the call; there are no entries.
        let status =
            unsafe { (self.library.resource_create)(&raw mut args, std::ptr::null_mut(), 0) };
        check("resource_create", status, response::ERR_INVALID_PARAMETER)?;
        self.resources.insert(args.handle);
        Ok(())
    }

    /// Destroys a resource, and lets go of its guest memory.
    pub(crate) fn unref(&mut self, resource: u32) {
        self.detach_backing(resource);
        if self.resources.remove(&resource) {
            // SAFETY: It takes a number.
            unsafe { (self.library.resource_unref)(resource) };
        }
    }

    /// Puts guest memory behind a resource that has none.
    pub(crate) fn attach_backing(
        &mut self,
        resource: u32,
        memory: Arc<Segments>,
    ) -> Result<(), Failed> {
        let mut entries = Vec::with_capacity(memory.count());
        let all = memory.each_guest_chunk(|host, length| {
            entries.push(iovec {
                iov_base: host.cast(),
                iov_len: length,
            });
        });
        all.map_err(|_| response::ERR_INVALID_PARAMETER)?;
        let mut entries = entries.into_boxed_slice();
        let count = c_int::try_from(entries.len()).map_err(|_| response::ERR_INVALID_PARAMETER)?;
        // SAFETY: The entries stay where they are, and are valid memory, until they are detached.
        let status = unsafe {
            (self.library.resource_attach_iov)(resource as c_int, entries.as_mut_ptr(), count)
        };
        check("resource_attach_iov", status, response::ERR_UNSPEC)?;
        let backing = Backing {
            entries,
            _memory: memory,
        };
        self.backings.insert(resource, backing);
        Ok(())
    }

    /// Detaches it.
    pub(crate) fn detach_backing(&mut self, resource: u32) {
        let Some(backing) = self.backings.remove(&resource) else {
            return;
        };
        let (mut entries, mut count) = (std::ptr::null_mut(), 0);
        // SAFETY: The pointers are valid. What is returned is ours.
        unsafe {
            (self.library.resource_detach_iov)(resource as c_int, &raw mut entries, &raw mut count);
        }
        // Until here the library could use them.
        drop(backing.entries);
    }

    /// Copies between a resource and its guest memory, on behalf of a context or, if that is 0, of
    /// no one.
    pub(crate) fn transfer(
        &mut self,
        ctx: u32,
        resource: u32,
        transfer: &Transfer,
        direction: Direction,
    ) -> Result<(), Failed> {
        let region = &transfer.region;
        let mut region = VirglBox {
            x: region.x,
            y: region.y,
            z: region.z,
            w: region.w,
            h: region.h,
            d: region.d,
        };
        let (level, stride, layer_stride) =
            (transfer.level, transfer.stride, transfer.layer_stride);
        let none = std::ptr::null_mut();
        // SAFETY: The box is valid during the call, and no entries mean those that are attached.
        let status = unsafe {
            match direction {
                Direction::ToHost => (self.library.transfer_write_iov)(
                    resource,
                    ctx,
                    level as c_int,
                    stride,
                    layer_stride,
                    &raw mut region,
                    transfer.offset,
                    none,
                    0,
                ),
                Direction::FromHost => (self.library.transfer_read_iov)(
                    resource,
                    ctx,
                    level,
                    stride,
                    layer_stride,
                    &raw mut region,
                    transfer.offset,
                    none,
                    0,
                ),
            }
        };
        check("transfer", status, response::ERR_INVALID_PARAMETER)
    }

    /// Executes the commands of a context.
    pub(crate) fn submit(&mut self, ctx: u32, mut commands: Vec<u32>) -> Result<(), Failed> {
        let count = c_int::try_from(commands.len()).map_err(|_| response::ERR_INVALID_PARAMETER)?;
        if count == 0 {
            return Ok(());
        }
        // SAFETY: They are `count` words.
        let status =
            unsafe { (self.library.submit_cmd)(commands.as_mut_ptr().cast(), ctx as c_int, count) };
        check("submit_cmd", status, response::ERR_UNSPEC)
    }

    /// Responds when all is drawn that a context has asked for so far.
    pub(super) fn fence(&mut self, ctx: u32, done: Sender<Response>) {
        self.last_fence = (self.last_fence + 1) & i32::MAX as u32;
        // SAFETY: It takes numbers.
        let status = unsafe { (self.library.create_fence)(self.last_fence as c_int, ctx) };
        match check("create_fence", status, response::ERR_OUT_OF_MEMORY) {
            Ok(()) => self.fences.push_back(Fence {
                id: self.last_fence,
                ctx,
                done,
            }),
            Err(code) => drop(done.send(Response::plain(code))),
        }
    }

    /// Whether there is anything that [`Self::poll`] could find.
    pub(super) fn is_drawing(&self) -> bool {
        !self.fences.is_empty()
    }

    /// Responds with what is drawn.
    pub(super) fn poll(&mut self) {
        // SAFETY: It takes nothing.
        unsafe { (self.library.poll)() };
        let reported = {
            let mut reported = self.reported.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *reported)
        };
        for id in reported {
            // The library may leave out those before one that it reports.
            let Some(last) = self.fences.iter().position(|fence| fence.id == id) else {
                continue;
            };
            for fence in self.fences.drain(..=last) {
                // No one waits any more after a reset.
                let _ = fence.done.send(Response::ok());
            }
        }
    }

    /// Destroys everything, and lets go of all guest memory.
    pub(super) fn reset(&mut self) {
        for ctx in std::mem::take(&mut self.contexts) {
            self.destroy_context(ctx);
        }
        for resource in std::mem::take(&mut self.resources) {
            self.detach_backing(resource);
            // SAFETY: It takes a number.
            unsafe { (self.library.resource_unref)(resource) };
        }
    }
}

/// What a function returned is a response: `code` if it was not 0.
fn check(function: &str, status: c_int, code: Failed) -> Result<(), Failed> {
    if status == 0 {
        return Ok(());
    }
    log::info!("virgl_renderer_{function} returned {status}");
    Err(code)
}
