// SPDX-License-Identifier: GPL-2.0

//! virtio-gpu guest driver for rendering and compute, with user memory.
//!
//! # Layers
//!
//! A module uses what is in it, and modules of layers with lower numbers, but nothing beside or
//! above it. Suite `lint` reads this table and checks that (`scripts/virtgpu/lint/layers.py`).
//!
//! | layer | module | what |
//! |---|---|---|
//! | 10 | [`driver`] | what the module loader and the DRM core call |
//! | 9 | [`ioctl`] | reads and validates the arguments of each ioctl |
//! | 8 | [`submit`] | jobs: what they wait for, queueing, what they signal |
//! | 8 | [`userptr`] | registration of user memory |
//! | 8 | [`debugfs`] | what is shown of a device and its users, in debugfs and fdinfo |
//! | 7 | [`file`] | what the driver keeps of an open file |
//! | 6 | [`resource`] | buffers and their life on the host |
//! | 6 | [`svm`] | the address space of a process, whose faults are served |
//! | 5 | [`mirror`] | following a process's pages |
//! | 4 | [`context`] | a context on the host, and its rings |
//! | 3 | [`gpu`] | the device: probe, removal, what it offers and can reach; counters and knobs |
//! | 2 | [`transport`] | the device's state, its end, and the virtqueues |
//! | 2 | [`drm`] | the driver's name, and the types of the DRM core as it has them |
//! | 1 | [`trace`] | trace events |
//! | 1 | [`kapi`] | safe abstractions over C kernel interfaces; all `unsafe` is there, but for trace events |
//! | 0 | [`protocol`] | wire structures and pure logic, shared with the device and the tests |
//! | 0 | [`module_parameters`] | the module's parameters, as `module!` makes them |
//!
//! # Lock order
//!
//! Outer to inner. A lock in one line may be taken while one of a line above is held, never the
//! other way round.
//!
//! 1. `FileData::attached`, then `Svm::revoking` (mutexes, the second killable; the first is held
//!    while the host creates a context or an address space, the second while INVALIDATE is
//!    acknowledged)
//! 2. `mmap_lock` (the kernel's; held by mmap of a host-visible buffer) Inside of it the lock of a
//!    folio (the kernel's; held while a page that the device gets alone is mapped), in which only 7
//!    and those below are taken
//! 3. `HostMemory::mapping` (mutex; held while a mapping is requested)
//! 4. `DeviceMappings::live`, `Shared::backing`, `Capsets::cache`, `RangeAllocator::lock`,
//!    `Space::destroy`, `Bound::registration` (mutexes, one at
//!    a time; some are held across an allocation, `Shared::backing` also until MAP has a response).
//!    Inside of them `Mapper::live` (mutex; held while memory is mapped for DMA or unmapped)
//! 5. `Mirrored::outer` (killable mutex, one at a time; held while pages are faulted in, hence
//!    outside `mmap_lock`, and until MAP has a response). Inside of it `Residents::evicting`, then
//!    `Residents::ranges` (a killable mutex and a mutex, one each per file; the first is held while
//!    INVALIDATE is acknowledged, the second across an allocation)
//! 6. `dma_resv` of the buffers of a job (ww mutexes; held while the job is queued, never across a
//!    wait for the device)
//! 7. `NotifierLock::commits` (mutex, one per file; taken by notifier callbacks, hence by memory
//!    reclaim: nothing is allocated with reclaim, faulted in or waited for under it)
//! 8. `HostResource::inner`, `PendingUnref::state`, `Releases::waiting`, `MirroredRange::spare`,
//!    `RangeEvents::state`, `DmaBufRevocation::detach`, `JobContext::destroy`,
//!    `PeerMappings::mapped`, `Windows::tree`, `Windows::changes`, `Windows::spare`,
//!    `Svm::streams`, `Svm::in_vain`, `Svm::shortages`, `Svm::loss`, `Svm::phase` (spinlocks)
//! 9. `EventSender::due`, `EventQueue::file` (spinlocks, never both; inside are locks of the
//!    kernel)
//! 10. `Control::inner`, `Mirror::inner`, `Events::inner` (spinlocks, interrupts off, one at a
//!     time). Inside of the last `Events::owners`, then `Svm::inbox`. Inside of the first and of
//!     `Events::owners` `Jobs::inner`, in which a file's event is sent
//! 11. `Control::done`, `Command::fence`, those of wait queues (spinlocks, interrupts off)
//!
//! `Mirrored::outer` is taken with none of 2 to 4 held, and its end removes the notifier with
//! nothing held that a callback takes.
//!
//! The state of the device is protected by `Control::inner`, too.
//!
//! Credits for the rings ([`transport::control::Credit`], [`transport::mirror::MirrorCredit`]) are
//! taken before any lock from 6 on.
#![crate_name = "virtgpu_userptr"]

use self::driver::VirtgpuUserptr;
use kernel::prelude::*;

mod context;
mod debugfs;
mod driver;
mod drm;
mod file;
mod gpu;
mod ioctl;
mod kapi;
mod mirror;
#[allow(
    dead_code,
    unreachable_pub,
    reason = "also describes what only the device and userspace use"
)]
#[path = "../protocol/src/lib.rs"]
mod protocol;
mod resource;
mod submit;
mod svm;
mod trace;
mod transport;
mod userptr;

module! {
    type: VirtgpuUserptr,
    name: "virtgpu_userptr",
    authors: ["virtio-gpu-userptr developers"],
    description: "virtio-gpu render driver with user memory",
    license: "GPL",
    imports_ns: ["DMA_BUF"],
    params: {
        ack_timeout_ms: u32 {
            default: 20000,
            description: "Milliseconds in which the device need not respond to anything, and longest wait for a response",
        },
        job_timeout_ms: u32 {
            default: 0,
            description: "Milliseconds in which a job must end, or its context is lost; 0 for no limit",
        },
        job_grace_ms: u32 {
            default: 2000,
            description: "Milliseconds that jobs may delay the invalidation of mirrored memory",
        },
        exclusive_slice_us: u32 {
            default: 500,
            description: "Microseconds that a device keeps a page for atomic accesses which a processor touches, 10000 at most",
        },
        modeset: i32 {
            default: -1,
            description: "0 keeps the driver away, 1 loads it although the command line says nomodeset",
        },
    },
}
