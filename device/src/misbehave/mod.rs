// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Misbehaviour on purpose, so that tests of the driver have something to notice or to survive.
//!
//! - [`adversary`]: what a driver must survive: wrong, late and missing responses;
//! - [`mutant`]: a device that breaks the contract in one place while its responses look right,
//!   which tests or the check of the event log must notice;
//! - `hammer`: a thread that uses memory up to the moment at which it must not any more, so that a
//!   driver that gives the memory away too early is noticed.

pub mod adversary;
pub(crate) mod hammer;
pub mod mutant;
