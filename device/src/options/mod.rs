// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! What the device offers and how it misbehaves, as the command line says.
//!
//! Options are read once, before there is a guest. `--virgl-renderer` adds the capability sets of
//! the renderer when it has started; after that nothing changes them.

pub mod capset;
pub mod cli;

use crate::mirror::Limits;
use crate::misbehave::adversary::Adversary;
use crate::misbehave::mutant::Mutant;
use capset::Capset;

/// What the device offers.
#[derive(Debug)]
pub struct Options {
    /// Offer contexts: `VIRGL` and `CONTEXT_INIT`.
    pub virgl: bool,
    /// Bytes of the host-visible window, 0 for none.
    pub hostmem: u64,
    /// Let virglrenderer carry out OpenGL, and offer its capability sets, too.
    pub virgl_renderer: bool,
    /// Capability sets.
    pub capsets: Vec<Capset>,
    /// Bytes to which blob sizes are aligned, 0 to offer no `BLOB_ALIGNMENT`.
    pub blob_alignment: u32,
    /// Offer `ACCESS_PLATFORM`.
    pub access_platform: bool,
    /// Offer `RING_INDIRECT_DESC`.
    pub indirect: bool,
    /// Most descriptors of a queue.
    pub queue_size: usize,
    /// What the mirror extension offers, if it is offered.
    pub mirror: Option<Limits>,
    /// Atomic accesses to addresses are not coherent with those of the guest.
    pub exclusive_atomics: bool,
    /// Rewrite the pages of marked resources, see `--hammer`.
    pub hammer: bool,
    /// How to break the contract.
    pub mutants: Vec<Mutant>,
    /// How to misbehave.
    pub adversary: Adversary,
}
