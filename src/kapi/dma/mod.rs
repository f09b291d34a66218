// SPDX-License-Identifier: GPL-2.0

//! Fences, and addresses as a device sees them.

pub(crate) mod fence;
pub(crate) mod map;
pub(crate) mod resv;
pub(crate) mod sync_file;

pub(crate) use self::{
    fence::{
        DriverFence,
        Fence,
        TimelineNames,
        UnpublishedFence, //
    },
    resv::Resv, //
};
