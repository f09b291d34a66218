// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Shared virtual memory: jobs use any pointer of the process. Whatever a CPU access could do at
//! that address, the device's can do, too, and what would be refused to a CPU costs that context
//! alone.

mod bad;
mod basic;
mod beside;
mod exclusive;
mod hostile;
mod knobs;
mod mm;
mod room;
mod rules;
mod scarce;
mod silent;
mod spaces;
mod storm;
mod support;

use crate::ktap::Family;

pub(crate) use self::hostile::FAMILIES as HOSTILE;

/// Those for a well-behaved device.
pub(crate) const FAMILIES: &[Family] = &[
    basic::FAMILY,
    bad::FAMILY,
    mm::FAMILY,
    beside::FAMILY,
    silent::FAMILY,
    rules::FAMILY,
    scarce::FAMILY,
    scarce::SCARCER,
    rules::LOST,
    room::FEW,
    room::FULL,
    room::ONE,
    spaces::FAMILY,
    storm::FAMILY,
    exclusive::FAMILY,
    exclusive::CROWDED,
    knobs::FAMILY,
];
