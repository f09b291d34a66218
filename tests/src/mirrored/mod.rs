// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Mirrored user memory: the device follows the page tables of this process. Whatever the kernel
//! does with a page, both sides see the same bytes, and the device was told before the page went.

mod basic;
mod events;
mod faults;
pub(crate) mod fences;
mod flood;
mod hammer;
mod hmm_tests;
mod hostile;
mod knobs;
mod mm_cma;
mod mm_exit;
mod mm_file;
mod mm_fork;
mod mm_huge;
mod mm_huge_file;
mod mm_kill;
mod mm_migrate;
mod mm_protect;
mod mm_reclaim;
mod mm_special;
mod mm_unmap;
mod mm_userfaultfd;
mod mutant_killers;
mod race;
mod scarce;
mod stress;
mod stress_threads;
pub(crate) mod support;

pub(crate) use support::open as open_mirrored;

use crate::ktap::Family;

/// Those for a well-behaved device, also a slow one.
pub(crate) const FAMILIES: &[Family] = &[
    basic::FAMILY,
    events::FAMILY,
    mm_unmap::FAMILY,
    mm_protect::FAMILY,
    mm_fork::FAMILY,
    mm_reclaim::FAMILY,
    mm_cma::FAMILY,
    mm_exit::FAMILY,
    mm_file::FAMILY,
    mm_migrate::FAMILY,
    mm_huge::FAMILY,
    mm_huge_file::FAMILY,
    mm_kill::FAMILY,
    mm_special::FAMILY,
    mm_userfaultfd::FAMILY,
    hmm_tests::FAMILY,
    fences::FAMILY,
    faults::FAMILY,
    knobs::FAMILY,
    hammer::FAMILY,
    stress::FAMILY,
    mutant_killers::RACES,
    mutant_killers::HAMMERED,
    mutant_killers::SLOW,
    scarce::FAMILY,
    scarce::LOST,
    flood::FAMILY,
    mm_kill::EVICTING,
];

/// Those for devices that misbehave.
pub(crate) const HOSTILE: &[Family] = hostile::FAMILIES;
