// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! The ioctls of Linux's virtgpu interface, with arguments that are good more often than not.

use virtgpu_client::protocol::compute;
use virtgpu_client::protocol::uapi::{self, context_param, nr, ContextSetParam};
use virtgpu_client::protocol::virtio_gpu::{blob_flag, blob_mem};
use zerocopy::IntoBytes;

use crate::call::Call;
use crate::layout::{Scratch, DATA_SIZE};
use crate::pick::{self, chance, one_of};
use crate::support::{Random, PAGE};
use crate::world::{DrmFile, World};
use crate::{jobs, sys};

/// What calls are made from.
pub(crate) struct Maker<'a> {
    pub(crate) world: &'a World,
    pub(crate) random: &'a mut Random,
    pub(crate) scratch: &'a Scratch,
}

/// Where in a thread's data what lies.
pub(crate) const COMMAND: usize = 0;
const HANDLES: usize = 16 * PAGE;
const IN_SYNCOBJS: usize = 18 * PAGE;
const OUT_SYNCOBJS: usize = 20 * PAGE;
const PARAMS: usize = 22 * PAGE;
const NAME: usize = 23 * PAGE;
/// What the kernel writes.
pub(crate) const RESULTS: usize = 24 * PAGE;

impl Maker<'_> {
    /// The handle of a buffer, most often one that exists.
    pub(crate) fn handle(&mut self, file: &DrmFile) -> u32 {
        match one_of(self.random, &file.buffers) {
            Some(buffer) if !chance(self.random, 1, 12) => buffer.handle,
            _ => pick::number(self.random) as u32,
        }
    }

    /// The address of what an argument points to.
    pub(crate) fn pointer(&mut self, good: usize) -> u64 {
        if chance(self.random, 1, 16) {
            return pick::bad_pointer(self.random, self.scratch) as u64;
        }
        (self.scratch.data + good) as u64
    }

    /// Puts bytes where arguments can point to.
    pub(crate) fn store(&self, at: usize, bytes: &[u8]) {
        let length = bytes.len().min(DATA_SIZE - at);
        // Own memory, which is always there.
        let _ = sys::write_memory(self.scratch.data + at, &bytes[..length]);
    }

    /// Any of them.
    pub(crate) fn standard(&mut self, file: &DrmFile) -> Call {
        match self.random.below(20) {
            0 => self.map(file),
            1 => self.getparam(file),
            2 => self.resource_create(file),
            3 => self.resource_info(file),
            4 => self.transfer(file),
            5 | 6 => self.wait(file),
            7 => self.get_caps(file),
            8..=11 => self.blob(file),
            12 => self.context_init(file),
            _ => self.execbuffer(file),
        }
    }

    pub(crate) fn map(&mut self, file: &DrmFile) -> Call {
        let map = uapi::Map {
            handle: self.handle(file),
            ..Default::default()
        };
        Call::virtgpu(file.fd, nr::MAP, &map)
    }

    fn getparam(&mut self, file: &DrmFile) -> Call {
        let params = [
            self.random.below(11),
            uapi::param::USERPTR_MODES,
            uapi::param::USERPTR_MEMORY_MODELS,
        ];
        let get = uapi::GetParam {
            param: params[self.random.below(3) as usize],
            value: self.pointer(RESULTS),
        };
        Call::virtgpu(file.fd, nr::GETPARAM, &get)
    }

    fn resource_create(&mut self, file: &DrmFile) -> Call {
        let random = &mut *self.random;
        let create = uapi::ResourceCreate {
            target: random.below(9) as u32,
            format: [1, 2, 67, 64, 31, 200][random.below(6) as usize],
            bind: random.below(1 << 20) as u32,
            width: random.below(128) as u32,
            height: random.below(64) as u32,
            depth: random.below(3) as u32,
            array_size: random.below(3) as u32,
            last_level: random.below(3) as u32,
            size: random.below(1 << 16) as u32,
            ..Default::default()
        };
        Call::virtgpu(file.fd, nr::RESOURCE_CREATE, &create)
    }

    /// A picture that any device takes.
    pub(crate) fn picture(&mut self, file: &DrmFile) -> Call {
        let create = uapi::ResourceCreate {
            target: 2,
            format: 67,
            width: 64,
            height: 64,
            depth: 1,
            array_size: 1,
            size: 4 * 64 * 64,
            ..Default::default()
        };
        Call::virtgpu(file.fd, nr::RESOURCE_CREATE, &create)
    }

    fn resource_info(&mut self, file: &DrmFile) -> Call {
        let info = uapi::ResourceInfo {
            bo_handle: self.handle(file),
            ..Default::default()
        };
        Call::virtgpu(file.fd, nr::RESOURCE_INFO, &info)
    }

    fn transfer(&mut self, file: &DrmFile) -> Call {
        let handle = self.handle(file);
        self.transfer_of(file, handle)
    }

    /// A transfer of a buffer.
    pub(crate) fn transfer_of(&mut self, file: &DrmFile, handle: u32) -> Call {
        let random = &mut *self.random;
        let mut small = || random.below(33) as u32;
        let transfer = uapi::Transfer {
            bo_handle: handle,
            region: uapi::Box3d {
                x: small(),
                y: small(),
                z: 0,
                w: small(),
                h: small(),
                d: 1,
            },
            offset: small() * 4,
            ..Default::default()
        };
        let number = match self.random.below(2) {
            0 => nr::TRANSFER_FROM_HOST,
            _ => nr::TRANSFER_TO_HOST,
        };
        Call::virtgpu(file.fd, number, &transfer)
    }

    pub(crate) fn wait(&mut self, file: &DrmFile) -> Call {
        let wait = uapi::Wait {
            handle: self.handle(file),
            flags: self.random.below(2) as u32,
        };
        Call::virtgpu(file.fd, nr::WAIT, &wait)
    }

    fn get_caps(&mut self, file: &DrmFile) -> Call {
        let caps = uapi::GetCaps {
            cap_set_id: [compute::CAPSET_ID, compute::CAPSET_ID, 8][self.random.below(3) as usize],
            cap_set_ver: [1, 1, 0, 2][self.random.below(4) as usize],
            addr: self.pointer(RESULTS),
            size: 1 + self.random.below(64) as u32,
            pad: 0,
        };
        Call::virtgpu(file.fd, nr::GET_CAPS, &caps)
    }

    /// CONTEXT_INIT for jobs of the compute context.
    pub(crate) fn compute_context(&mut self, file: &DrmFile) -> Call {
        let params = [
            ContextSetParam {
                param: context_param::CAPSET_ID,
                value: u64::from(compute::CAPSET_ID),
            },
            ContextSetParam {
                param: context_param::NUM_RINGS,
                value: 4,
            },
        ];
        self.context_with(file, &params)
    }

    fn context_with(&mut self, file: &DrmFile, params: &[ContextSetParam]) -> Call {
        self.store(PARAMS, params.as_bytes());
        let init = uapi::ContextInit {
            num_params: params.len() as u32,
            pad: 0,
            ctx_set_params: self.pointer(PARAMS),
        };
        Call::virtgpu(file.fd, nr::CONTEXT_INIT, &init)
    }

    fn context_init(&mut self, file: &DrmFile) -> Call {
        let name_length = self.random.below(100) as usize;
        let mut name = self.random.bytes(name_length);
        name.push(0);
        self.store(NAME, &name);
        let params: Vec<_> = (0..self.random.below(6))
            .map(|_| {
                let param = 1 + self.random.below(5);
                let value = match param {
                    context_param::CAPSET_ID => u64::from(compute::CAPSET_ID),
                    context_param::DEBUG_NAME => self.pointer(NAME),
                    context_param::POLL_RINGS_MASK => self.random.below(16),
                    _ => self.random.below(66),
                };
                ContextSetParam { param, value }
            })
            .collect();
        self.context_with(file, &params)
    }

    fn blob(&mut self, file: &DrmFile) -> Call {
        let mem = 1 + self.random.below(3) as u32;
        let host = mem != blob_mem::GUEST;
        let mut blob = uapi::ResourceCreateBlob {
            blob_mem: mem,
            blob_flags: self.random.below(4) as u32,
            size: (1 + self.random.below(64)) * PAGE as u64,
            blob_id: if host { self.random.below(4) } else { 0 },
            blob_hints: self.random.below(2) as u32,
            ..Default::default()
        };
        if chance(self.random, 1, 6) {
            // ROCm's form.
            let (start, length) = pick::range(self.random);
            blob.blob_mem = blob_mem::GUEST;
            blob.blob_flags = uapi::BLOB_FLAG_USE_USERPTR | ((self.random.below(2) as u32) << 4);
            blob.blob_id = 0;
            blob.blob_hints = start as u32;
            blob.pad2 = (start >> 32) as u32;
            blob.size = length as u64 - self.random.below(100);
        } else {
            if host && chance(self.random, 1, 4) {
                blob.cmd_size = 4 * self.random.below(64) as u32;
                blob.cmd = self.pointer(COMMAND);
            }
            if self.random.below(8) == 0 {
                blob.blob_flags |= blob_flag::USE_CROSS_DEVICE;
            }
        }
        let mut call = Call::virtgpu(file.fd, nr::RESOURCE_CREATE_BLOB, &blob);
        call.size = [48, 56, 64, 72][self.random.below(4) as usize];
        call.bytes.truncate(call.size);
        call
    }

    /// EXECBUFFER with some of the file's buffers and fences.
    pub(crate) fn execbuffer(&mut self, file: &DrmFile) -> Call {
        let mut buffers = file.buffers.clone();
        while buffers.len() > 4 || (!buffers.is_empty() && chance(self.random, 1, 3)) {
            let index = self.random.below(buffers.len() as u64) as usize;
            buffers.swap_remove(index);
        }
        let job = jobs::job(self.random, &buffers);
        self.store(COMMAND, &job);
        let mut handles: Vec<u32> = buffers.iter().map(|buffer| buffer.handle).collect();
        if chance(self.random, 1, 16) {
            handles.push(self.handle(file));
        }
        self.store(HANDLES, handles.as_bytes());
        let num_in_syncobjs = self.syncobjs(file, IN_SYNCOBJS, true);
        let num_out_syncobjs = self.syncobjs(file, OUT_SYNCOBJS, false);
        let flags = match self.random.below(8) {
            0..=2 => 0,
            3 | 4 => uapi::EXECBUF_FENCE_FD_OUT,
            5 => uapi::EXECBUF_RING_IDX,
            6 => uapi::EXECBUF_FENCE_FD_OUT | uapi::EXECBUF_RING_IDX,
            _ => self.random.below(8) as u32,
        };
        let exec = uapi::ExecBuffer {
            flags,
            size: job.len() as u32,
            command: self.pointer(COMMAND),
            bo_handles: self.pointer(HANDLES),
            num_bo_handles: handles.len() as u32,
            fence_fd: match flags & uapi::EXECBUF_FENCE_FD_IN {
                0 => -1,
                _ if chance(self.random, 1, 8) => self.world.any_fd(self.random),
                _ => self.world.fence(self.random),
            },
            ring_idx: self.random.below(5) as u32,
            syncobj_stride: match self.random.below(6) {
                0 => self.random.below(33) as u32,
                _ => 16,
            },
            num_in_syncobjs,
            num_out_syncobjs,
            in_syncobjs: self.pointer(IN_SYNCOBJS),
            out_syncobjs: self.pointer(OUT_SYNCOBJS),
        };
        Call::virtgpu(file.fd, nr::EXECBUFFER, &exec)
    }

    /// Puts an array of syncobjs at an offset; their number.
    fn syncobjs(&mut self, file: &DrmFile, at: usize, resets: bool) -> u32 {
        if file.syncobjs.is_empty() || !chance(self.random, 1, 4) {
            return 0;
        }
        let list: Vec<_> = (0..1 + self.random.below(3))
            .map(|_| uapi::ExecBufferSyncobj {
                handle: one_of(self.random, &file.syncobjs).copied().unwrap_or(1),
                flags: match (resets, self.random.below(16)) {
                    (_, 0) => pick::number(self.random) as u32,
                    (true, 1..=4) => uapi::EXECBUF_SYNCOBJ_RESET,
                    _ => 0,
                },
                point: match self.random.below(4) {
                    0 | 1 => 0,
                    2 => 1 + self.random.below(8),
                    _ => pick::number(self.random),
                },
            })
            .collect();
        self.store(at, list.as_bytes());
        list.len() as u32
    }
}
