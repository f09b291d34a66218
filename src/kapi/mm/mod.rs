// SPDX-License-Identifier: GPL-2.0

//! Memory of user processes.

mod account;
mod pin;

pub(crate) use self::{
    account::PinnedVm,
    pin::{
        Pins,
        Run, //
    },
};
