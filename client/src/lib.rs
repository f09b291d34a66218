// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Safe access to the virtgpu DRM interface and to its user memory extension.
//!
//! [`Device`] is one open file of a virtio-gpu render node. On it, [`Blob`] is memory that the
//! kernel or the host allocates, and [`Registration`] is memory of this process that the device
//! uses in place, without a copy. [`Exec`] submits a job, [`compute`] writes jobs for the reference
//! device, and [`Syncobj`] and [`SyncFile`] tell when a job is done. [`AddressSpace`] is a device
//! whose jobs use every address of this process.
//!
//! ```no_run
//! use virtgpu_client::{compute, Bytes, Device, Exec, Mapping, RegisterOptions};
//!
//! # fn main() -> virtgpu_client::Result<()> {
//! let device = Device::open()?;
//! device.context_init_compute(1)?;
//!
//! // Memory of this process; the device adds 1 to each of its 32-bit words.
//! let memory = Mapping::anonymous(1 << 20)?;
//! let userptr = device.register(&memory, RegisterOptions::pinned())?;
//! let mut job = compute::Stream::new();
//! job.add_u32(userptr.at(0), 1 << 20, 1);
//! let done = Exec::new(job.as_bytes())
//!     .buffers(&[userptr.handle()])
//!     .submit_with_fence(&device)?;
//! done.wait(None)?;
//! assert_eq!(memory.read_u32(0), 1);
//! # Ok(())
//! # }
//! ```
//!
//! # Memory that a device writes
//!
//! A device changes memory behind the compiler's back, so nothing here hands out references to it:
//! [`Mapping`] and [`BlobMap`] read and write by copying, through volatile accesses, and give the
//! raw pointer to callers that know when no job is running.

mod blob;
pub mod compute;
mod device;
pub mod drm;
mod event;
mod exec;
mod image;
pub mod ioctl;
mod memory;
mod svm;
mod sync;
mod userptr;

pub use blob::{Blob, BlobMap, BlobOptions};
pub use device::{render_nodes, Device, Version, DRIVER_NAME};
pub use event::Event;
pub use exec::Exec;
pub use image::{Image, Region};
pub use memory::{page_size, Bytes, Mapping, Memfd, Memory};
pub use svm::{
    pointer, AddressSpace, Comparison, Deadline, Input, Job, Output, Scope, SpaceOptions,
};
pub use sync::{SyncFile, SyncStatus, Syncobj};
pub use userptr::{RegisterOptions, Registration};

pub use rustix::io::Errno;
pub use virtgpu_protocol as protocol;

/// What every call here returns: the kernel's errno on failure.
pub type Result<T, E = Errno> = core::result::Result<T, E>;
