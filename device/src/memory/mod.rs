// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Memory: what resources are made of, and how it is accessed while others change it.
//!
//! Nothing here trusts memory to stay as it is. The guest writes its memory at any time, so
//! `access` reads and writes it with volatile accesses, never through references. What a space maps
//! may also be unmapped at any time, even in the middle of an access, which `guarded` turns into a
//! `Fault`.
//!
//! - `ram`: guest RAM as this process sees it; a snapshot keeps it mapped;
//! - [`segments`]: the memory of a resource, in pieces, as one;
//! - `hostmem`: blobs of the host and the window in which the guest sees them;
//! - `image`: the storage of images, and copies between it and guest memory;
//! - `area`: the addresses of a space in this process; `usage` counts the mappings that they take;
//! - `host`: what the host's kernel lets a process have.

mod access;
pub(crate) mod area;
pub(crate) mod guarded;
pub(crate) mod host;
pub(crate) mod hostmem;
pub(crate) mod image;
pub mod lent;
pub mod ram;
pub mod segments;
pub(crate) mod usage;

/// Bytes of a page of this process.
pub(crate) const PAGE: u64 = 4096;
