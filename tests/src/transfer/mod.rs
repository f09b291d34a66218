// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Resources that are not blobs: RESOURCE_CREATE, TRANSFER_TO_HOST and TRANSFER_FROM_HOST, and what
//! belongs to the host's context. What is read back has been in the storage of the host: the
//! guest's memory is overwritten in between.

mod context;
mod flat;
mod image;
mod order;
mod refused;

use crate::cases;
use crate::ktap::{Driver, Family, Kernel};

use self::context::{
    of_another_context, opened_before_the_context, two_handles, without_context_init,
};
use self::flat::{
    flat_blobs, flat_one_way, flat_picture, flat_pictures_only, flat_refused_by_the_host,
    no_contexts,
};
pub(crate) use self::image::{
    boxes, buffer, created, formats, layers, levels, many_pages, picture,
};
use self::order::of_both_kinds_of_memory;
pub(crate) use self::order::{closed_at_once, in_order};
use self::refused::{bad_handles, refused, refused_by_the_host, wrong_boxes};

pub(crate) const FAMILY: Family = Family {
    name: "transfer",
    kernel: Kernel::Any,
    driver: Driver::Both,
    device: "",
    leak_check: true,
    cases: cases![
        created,
        picture,
        boxes,
        levels,
        layers,
        buffer,
        many_pages,
        formats,
        without_context_init,
        wrong_boxes,
        in_order,
        closed_at_once,
        of_both_kinds_of_memory,
        refused,
        bad_handles,
        refused_by_the_host,
        opened_before_the_context,
        two_handles,
        of_another_context,
    ],
};

/// The device wants DMA addresses, and the driver synchronizes what has to be.
pub(crate) const ACCESS_PLATFORM: Family = Family {
    name: "transfer_access_platform",
    kernel: Kernel::Any,
    driver: Driver::Both,
    device: "--access-platform",
    leak_check: true,
    cases: cases![picture, boxes, buffer, many_pages, in_order, closed_at_once],
};

/// A device without contexts.
pub(crate) const NO_VIRGL: Family = Family {
    name: "no_virgl",
    kernel: Kernel::Any,
    driver: Driver::Both,
    device: "--no-virgl",
    // The device counts what is left in a context only.
    leak_check: false,
    cases: cases![
        no_contexts,
        flat_picture,
        flat_pictures_only,
        flat_one_way,
        flat_refused_by_the_host,
        flat_blobs,
    ],
};

const HALF_SECOND: u64 = 500_000;
