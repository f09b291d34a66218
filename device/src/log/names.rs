// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Names of numbers of the protocol, for logs and options.
//!
//! What the event log and the command line call a command, a response or an operation is what the
//! protocol calls it. Which commands name a resource, and which have a status, is known here too,
//! because the log has to say it.

use virtgpu_protocol::compute::op;
use virtgpu_protocol::mirror::command as mirror;
use virtgpu_protocol::virtio_gpu::{command, response};
use zerocopy::little_endian::U32;
use zerocopy::FromBytes;

macro_rules! names {
    ($module:ident: $($name:ident)*) => {
        &[$((stringify!($name), $module::$name)),*]
    };
}

const COMMANDS: &[(&str, u32)] = names!(command:
    GET_DISPLAY_INFO RESOURCE_CREATE_2D RESOURCE_UNREF SET_SCANOUT RESOURCE_FLUSH
    TRANSFER_TO_HOST_2D RESOURCE_ATTACH_BACKING RESOURCE_DETACH_BACKING GET_CAPSET_INFO GET_CAPSET
    GET_EDID RESOURCE_ASSIGN_UUID RESOURCE_CREATE_BLOB SET_SCANOUT_BLOB CTX_CREATE CTX_DESTROY
    CTX_ATTACH_RESOURCE CTX_DETACH_RESOURCE RESOURCE_CREATE_3D TRANSFER_TO_HOST_3D
    TRANSFER_FROM_HOST_3D SUBMIT_3D RESOURCE_MAP_BLOB RESOURCE_UNMAP_BLOB UPDATE_CURSOR MOVE_CURSOR
);

const MIRROR_COMMANDS: &[(&str, u32)] =
    names!(mirror: SPACE_CREATE SPACE_DESTROY MAP INVALIDATE FAULT_RESOLVE);

const RESPONSES: &[(&str, u32)] = names!(response:
    OK_NODATA OK_DISPLAY_INFO OK_CAPSET_INFO OK_CAPSET OK_EDID OK_RESOURCE_UUID OK_MAP_INFO
    ERR_UNSPEC ERR_OUT_OF_MEMORY ERR_INVALID_SCANOUT_ID ERR_INVALID_RESOURCE_ID
    ERR_INVALID_CONTEXT_ID ERR_INVALID_PARAMETER
);

const OPERATIONS: &[(&str, u32)] = names!(op:
    FILL COPY CRC32C ADD_U32 SAXPY_F32 GEMM_F32 ATOMIC_ADD_U64 STRIDE_READ POINTER_CHASE DELAY_US
    SPIN_UNTIL STAT
);

fn name(names: &[(&'static str, u32)], number: u32) -> &'static str {
    names
        .iter()
        .find(|(_, n)| *n == number)
        .map_or("unknown", |(name, _)| name)
}

/// The name of a command of the control or the mirror queue.
#[must_use]
pub fn command(number: u32) -> &'static str {
    match is_mirror(number) {
        true => name(MIRROR_COMMANDS, number),
        false => name(COMMANDS, number),
    }
}

/// Whether it is a command of the mirror queue.
#[must_use]
pub fn is_mirror(number: u32) -> bool {
    MIRROR_COMMANDS.iter().any(|(_, n)| *n == number)
}

/// Whether a command of the mirror queue has a status as its response; unknown ones have.
#[must_use]
pub fn has_status(number: u32) -> bool {
    !matches!(
        number,
        mirror::SPACE_DESTROY | mirror::INVALIDATE | mirror::FAULT_RESOLVE
    )
}

/// The number of a command.
#[must_use]
pub fn command_number(name: &str) -> Option<u32> {
    let mut commands = COMMANDS.iter().chain(MIRROR_COMMANDS);
    let command = commands.find(|(n, _)| n.eq_ignore_ascii_case(name));
    command.map(|(_, number)| *number)
}

/// The id of the resource that command `number` of the control queue names, whose header `rest`
/// follows. All of them name it first.
#[must_use]
pub(crate) fn resource(number: u32, rest: &[u8]) -> Option<u32> {
    let names = matches!(
        number,
        command::RESOURCE_CREATE_2D
            | command::RESOURCE_CREATE_3D
            | command::RESOURCE_UNREF
            | command::RESOURCE_ATTACH_BACKING
            | command::RESOURCE_DETACH_BACKING
            | command::RESOURCE_ASSIGN_UUID
            | command::RESOURCE_CREATE_BLOB
            | command::CTX_ATTACH_RESOURCE
            | command::CTX_DETACH_RESOURCE
            | command::RESOURCE_MAP_BLOB
            | command::RESOURCE_UNMAP_BLOB
    );
    let (id, _) = U32::read_from_prefix(rest).ok()?;
    names.then_some(id.get())
}

/// The name of a response.
#[must_use]
pub fn response(number: u32) -> &'static str {
    name(RESPONSES, number)
}

/// The name of a compute operation.
#[must_use]
pub fn operation(number: u32) -> &'static str {
    name(OPERATIONS, number)
}
