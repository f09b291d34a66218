// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! What the driver or the host refuses moves nothing.

use virtgpu_client::protocol::uapi::{self, Box3d};
use virtgpu_client::protocol::virtio_gpu_image::target;
use virtgpu_client::{BlobOptions, Bytes, Errno, Region, RegisterOptions};

use super::image::{cuboid, picture_of, there_and_back};
use crate::ktap::TestResult;
use crate::support::memory::small_pages;
use crate::support::unchanged::Refusing;
use crate::support::{Env, PAGE};
use crate::{check, check_eq, check_err, skip};

/// What the host refuses moves nothing.
pub(super) fn wrong_boxes(env: &Env) -> TestResult {
    let device = env.compute()?;
    let image = device.create_picture(16, 16)?;
    let map = image.map()?;
    let whole = Region::picture(16, 16);
    let data = there_and_back(&device, image.handle(), &map, &whole, 9)?;
    let full = whole.region;
    let wrong = [
        (
            "no pixels",
            Region {
                region: Box3d { w: 0, ..full },
                ..whole
            },
        ),
        (
            "no rows",
            Region {
                region: Box3d { h: 0, ..full },
                ..whole
            },
        ),
        (
            "no slices",
            Region {
                region: Box3d { d: 0, ..full },
                ..whole
            },
        ),
        (
            "a pixel too many",
            Region {
                region: Box3d { w: 17, ..full },
                ..whole
            },
        ),
        (
            "a row too many",
            Region {
                region: Box3d { h: 17, ..full },
                ..whole
            },
        ),
        (
            "a slice too many",
            Region {
                region: Box3d { d: 2, ..full },
                ..whole
            },
        ),
        (
            "beside it",
            Region {
                region: Box3d {
                    x: 16,
                    w: 1,
                    ..full
                },
                ..whole
            },
        ),
        (
            "coordinates that wrap",
            Region {
                region: Box3d {
                    x: u32::MAX,
                    w: 2,
                    ..full
                },
                ..whole
            },
        ),
        (
            "everything at once",
            Region {
                region: cuboid([u32::MAX; 3], [u32::MAX; 3]),
                ..whole
            },
        ),
        ("a level that is not there", Region { level: 1, ..whole }),
        (
            "level 2^32 - 1",
            Region {
                level: u32::MAX,
                ..whole
            },
        ),
        (
            "past the end of the memory",
            Region {
                offset: PAGE as u32 - 1023,
                ..whole
            },
        ),
        (
            "at the very end",
            Region {
                offset: u32::MAX,
                ..whole
            },
        ),
    ];
    map.fill(0x77);
    for (what, region) in &wrong {
        // The host says no, later.
        image.from_host(region)?;
        check!(
            map.to_vec(0, PAGE).iter().all(|&byte| byte == 0x77),
            "from the host: {what}"
        );
        image.to_host(region)?;
    }
    image.from_host(&whole)?;
    check!(
        map.to_vec(0, 1024) == data[..1024],
        "the host's copy is as it was"
    );
    Ok(())
}

/// Both ioctls refuse the same.
fn refuse_transfers(
    refusing: &Refusing,
    error: Errno,
    what: &str,
    handle: u32,
    region: &Region,
) -> TestResult {
    refusing.refuse(error, &format!("TRANSFER_TO_HOST, {what}"), |device| {
        device.transfer_to_host(handle, region)
    })?;
    refusing.refuse(error, &format!("TRANSFER_FROM_HOST, {what}"), |device| {
        device.transfer_from_host(handle, region)
    })
}

pub(super) fn refused(env: &Env) -> TestResult {
    let refusing = Refusing::new(env)?;
    let device = &refusing.device;
    let image = device.create_picture(16, 16)?;
    let whole = Region::picture(16, 16);
    let strided = [
        Region {
            stride: 64,
            ..whole
        },
        Region {
            layer_stride: 1024,
            ..whole
        },
    ];
    for region in &strided {
        refuse_transfers(&refusing, Errno::INVAL, "strides", image.handle(), region)?;
    }
    let guest = device.create_blob(&BlobOptions::guest(PAGE as u64))?;
    refuse_transfers(
        &refusing,
        Errno::INVAL,
        "a guest blob",
        guest.handle(),
        &whole,
    )?;
    if env.ours {
        // Linux's driver leaves it to the host to find that there is nothing to copy.
        let host = device.create_blob(&BlobOptions::host3d(PAGE as u64, 1))?;
        refuse_transfers(
            &refusing,
            Errno::INVAL,
            "a host blob",
            host.handle(),
            &whole,
        )?;
        let memory = small_pages(PAGE)?;
        let userptr = device.register(&memory, RegisterOptions::pinned())?;
        refuse_transfers(
            &refusing,
            Errno::INVAL,
            "user memory",
            userptr.handle(),
            &whole,
        )?;
        let mirrored = device.register(&memory, RegisterOptions::mirrored())?;
        refuse_transfers(
            &refusing,
            Errno::INVAL,
            "mirrored memory",
            mirrored.handle(),
            &whole,
        )?;
    }
    Ok(())
}

pub(super) fn bad_handles(env: &Env) -> TestResult {
    let refusing = Refusing::new(env)?;
    let other = env.compute()?;
    let of_other: Vec<_> = (0..8)
        .map(|_| other.create_picture(4, 4))
        .collect::<Result<_, _>>()?;
    let region = Region::picture(4, 4);
    for handle in [0, 12345, u32::MAX, of_other[7].handle()] {
        let what = format!("handle {handle}");
        refuse_transfers(&refusing, Errno::NOENT, &what, handle, &region)?;
    }
    if env.ours {
        // More than there is; Linux's driver tries.
        refusing.one_of(&[Errno::NOMEM], "4 GiB", |device| {
            device
                .create_image(&mut uapi::ResourceCreate {
                    size: u32::MAX,
                    ..picture_of(4, 4)
                })
                .map(drop)
        })?;
    }
    Ok(())
}

/// RESOURCE_CREATE does not wait for the host; that it has refused is told by what comes next.
pub(super) fn refused_by_the_host(env: &Env) -> TestResult {
    if !env.ours {
        skip!("Linux's driver forgets what the host responds");
    }
    let device = env.compute()?;
    for (what, mut create, error) in [
        (
            "a format",
            uapi::ResourceCreate {
                format: 9999,
                ..picture_of(4, 4)
            },
            Errno::INVAL,
        ),
        (
            "a target",
            uapi::ResourceCreate {
                target: 99,
                ..picture_of(4, 4)
            },
            Errno::INVAL,
        ),
        (
            "no rows",
            uapi::ResourceCreate {
                size: PAGE as u32,
                height: 0,
                ..picture_of(4, 4)
            },
            Errno::INVAL,
        ),
        (
            "more than the host has",
            uapi::ResourceCreate {
                target: target::TEXTURE_3D,
                depth: 2048,
                width: 2048,
                height: 2048,
                size: PAGE as u32,
                ..picture_of(4, 4)
            },
            Errno::NOMEM,
        ),
    ] {
        let image = device.create_image(&mut create)?;
        check_err!(device.wait(image.handle()), error, "WAIT, {what}");
        check_err!(
            device.wait_with(image.handle(), uapi::WAIT_NOWAIT),
            error,
            "WAIT with NOWAIT, {what}"
        );
        let region = Region::picture(1, 1);
        check_err!(
            device.transfer_to_host(image.handle(), &region),
            error,
            "TRANSFER_TO_HOST, {what}"
        );
        check_err!(
            device.transfer_from_host(image.handle(), &region),
            error,
            "TRANSFER_FROM_HOST, {what}"
        );
        check_eq!(
            device.query(image.handle())?.mapped_bytes,
            0,
            "what the host has, {what}"
        );
        // The guest's part is there.
        image.map()?.write_u32(0, 1);
    }
    // A blob that the host refuses tells as well: it has no room for this one.
    let blob = device.create_blob(&BlobOptions {
        flags: 0,
        ..BlobOptions::host3d(1 << 40, 1)
    })?;
    check_err!(device.wait(blob.handle()), Errno::NOMEM, "WAIT for a blob");
    Ok(())
}
