// SPDX-License-Identifier: GPL-2.0

//! The commands of the control queue, each tied to what it sends and to what the device responds.
//!
//! [`Request`](super::Request) is made of one, and [`Sent`](super::Sent) reads the response, so
//! that no one says twice how a command succeeds, or reads the response to one as that to another.

use crate::protocol::{
    virtio_gpu::{
        self as wire,
        command,
        response,
        Header, //
    },
    virtio_gpu_image as image,
};
use zerocopy::{
    FromBytes,
    Immutable,
    IntoBytes, //
};

/// A command that the driver sends to the host.
pub(crate) trait CommandToHost {
    /// The fixed part of the request, which begins with a header.
    type Fixed: IntoBytes + Immutable;
    /// The fixed part of a response that means success.
    type Response: FromBytes + IntoBytes + Default;
    /// The [`command`].
    const COMMAND: u32;
    /// The [`response`] that means success.
    const SUCCESS: u32;
}

macro_rules! commands {
    ($($name:ident: $command:ident, $fixed:ty => $success:ident, $response:ty;)*) => {
        $(
            #[doc = concat!("`", stringify!($command), "`")]
            pub(crate) struct $name;

            impl CommandToHost for $name {
                type Fixed = $fixed;
                type Response = $response;
                const COMMAND: u32 = command::$command;
                const SUCCESS: u32 = response::$success;
            }
        )*
    };
}

commands! {
    GetCapsetInfo: GET_CAPSET_INFO, wire::GetCapsetInfo => OK_CAPSET_INFO, wire::ResponseCapsetInfo;
    // Behind the header is the capability set, of any length.
    GetCapset: GET_CAPSET, wire::GetCapset => OK_CAPSET, Header;
    CtxCreate: CTX_CREATE, wire::CtxCreate => OK_NODATA, Header;
    CtxDestroy: CTX_DESTROY, wire::CtxDestroy => OK_NODATA, Header;
    CtxAttachResource: CTX_ATTACH_RESOURCE, wire::ResourceCommand => OK_NODATA, Header;
    CtxDetachResource: CTX_DETACH_RESOURCE, wire::ResourceCommand => OK_NODATA, Header;
    ResourceCreate2d: RESOURCE_CREATE_2D, image::ResourceCreate2d => OK_NODATA, Header;
    ResourceCreate3d: RESOURCE_CREATE_3D, image::ResourceCreate3d => OK_NODATA, Header;
    ResourceCreateBlob: RESOURCE_CREATE_BLOB, wire::ResourceCreateBlob => OK_NODATA, Header;
    ResourceAttachBacking: RESOURCE_ATTACH_BACKING, wire::ResourceAttachBacking => OK_NODATA, Header;
    ResourceDetachBacking: RESOURCE_DETACH_BACKING, wire::ResourceCommand => OK_NODATA, Header;
    ResourceMapBlob: RESOURCE_MAP_BLOB, wire::ResourceMapBlob => OK_MAP_INFO, wire::ResponseMapInfo;
    ResourceUnmapBlob: RESOURCE_UNMAP_BLOB, wire::ResourceCommand => OK_NODATA, Header;
    ResourceAssignUuid: RESOURCE_ASSIGN_UUID, wire::ResourceCommand
        => OK_RESOURCE_UUID, wire::ResponseResourceUuid;
    ResourceUnref: RESOURCE_UNREF, wire::ResourceCommand => OK_NODATA, Header;
    Submit3d: SUBMIT_3D, wire::Submit3d => OK_NODATA, Header;
    TransferToHost2d: TRANSFER_TO_HOST_2D, image::TransferToHost2d => OK_NODATA, Header;
    TransferToHost3d: TRANSFER_TO_HOST_3D, image::TransferHost3d => OK_NODATA, Header;
    TransferFromHost3d: TRANSFER_FROM_HOST_3D, image::TransferHost3d => OK_NODATA, Header;
}
