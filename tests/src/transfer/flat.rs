// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! A device without contexts.

use virtgpu_client::protocol::uapi;
use virtgpu_client::protocol::virtio_gpu_image::{format, target};
use virtgpu_client::{BlobOptions, Bytes, Errno, Exec, Region, RegisterOptions};

use super::image::picture_of;
use crate::ktap::TestResult;
use crate::support::memory::small_pages;
use crate::support::{eventually, job, Env, PAGE};
use crate::{check, check_eq, check_err, skip};

pub(super) fn no_contexts(env: &Env) -> TestResult {
    let device = env.open()?;
    for param in [
        uapi::param::THREE_D_FEATURES,
        uapi::param::CONTEXT_INIT,
        uapi::param::EXPLICIT_DEBUG_NAME,
    ] {
        check_eq!(device.getparam(param)?, 0, "parameter {param}");
    }
    check_err!(device.context_init_compute(1), Errno::INVAL, "CONTEXT_INIT");
    check_err!(Exec::new(&[]).submit(&device), Errno::NOSYS, "EXECBUFFER");
    check_err!(device.caps(29, 1, &mut [0; 4]), Errno::NOSYS, "GET_CAPS");
    Ok(())
}

pub(super) fn flat_picture(env: &Env) -> TestResult {
    let device = env.open()?;
    for (width, height) in [(1, 1), (16, 16), (640, 480)] {
        let image = device.create_picture(width, height)?;
        let map = image.map()?;
        map.fill(0x42);
        image.to_host(&Region::picture(width, height))?;
        check!(!device.is_busy(image.handle())?, "idle after WAIT");
        check_eq!(map.to_vec(0, 1)[0], 0x42, "the guest's memory");
    }
    Ok(())
}

pub(super) fn flat_pictures_only(env: &Env) -> TestResult {
    let device = env.open()?;
    let good = picture_of(16, 16);
    for (what, create) in [
        (
            "a target",
            uapi::ResourceCreate {
                target: target::TEXTURE_3D,
                ..good
            },
        ),
        (
            "target 0",
            uapi::ResourceCreate {
                target: target::BUFFER,
                ..good
            },
        ),
        ("two slices", uapi::ResourceCreate { depth: 2, ..good }),
        (
            "two layers",
            uapi::ResourceCreate {
                array_size: 2,
                ..good
            },
        ),
        (
            "three levels",
            uapi::ResourceCreate {
                last_level: 2,
                ..good
            },
        ),
        (
            "two samples",
            uapi::ResourceCreate {
                nr_samples: 2,
                ..good
            },
        ),
    ] {
        let mut create = create;
        check_err!(
            device.create_image(&mut create).map(drop),
            Errno::INVAL,
            "{what}"
        );
    }
    // What says nothing is taken for one.
    let mut plain = uapi::ResourceCreate {
        depth: 0,
        array_size: 0,
        ..good
    };
    device.create_image(&mut plain)?;
    Ok(())
}

pub(super) fn flat_one_way(env: &Env) -> TestResult {
    let device = env.open()?;
    let image = device.create_picture(16, 16)?;
    let region = Region::picture(16, 16);
    check_err!(
        device.transfer_from_host(image.handle(), &region),
        Errno::NOSYS,
        "TRANSFER_FROM_HOST"
    );
    check_err!(
        device.transfer_from_host(12345, &region),
        Errno::NOSYS,
        "TRANSFER_FROM_HOST of nothing"
    );
    check_err!(
        device.transfer_to_host(12345, &region),
        Errno::NOENT,
        "TRANSFER_TO_HOST of nothing"
    );
    // What is for contexts only is not looked at.
    image.to_host(&Region {
        level: 3,
        stride: 64,
        layer_stride: 1,
        ..region
    })?;
    Ok(())
}

pub(super) fn flat_refused_by_the_host(env: &Env) -> TestResult {
    if !env.ours {
        skip!("Linux's driver forgets what the host responds");
    }
    let device = env.open()?;
    // One that only contexts know.
    let mut create = uapi::ResourceCreate {
        format: format::R8_UNORM,
        ..picture_of(4, 4)
    };
    let image = device.create_image(&mut create)?;
    check_err!(device.wait(image.handle()), Errno::INVAL, "WAIT");
    check_err!(
        device.transfer_to_host(image.handle(), &Region::picture(4, 4)),
        Errno::INVAL,
        "TRANSFER_TO_HOST"
    );
    Ok(())
}

pub(super) fn flat_blobs(env: &Env) -> TestResult {
    let device = env.open()?;
    let blob = device.create_blob(&BlobOptions::guest(PAGE as u64))?;
    blob.map()?.write_u32(0, 1);
    check_err!(
        device.transfer_to_host(blob.handle(), &Region::picture(4, 4)),
        Errno::INVAL,
        "TRANSFER_TO_HOST of a blob"
    );
    for options in [
        BlobOptions::host3d(PAGE as u64, 1),
        BlobOptions::host3d_guest(PAGE as u64, 1),
    ] {
        check_err!(
            device.create_blob(&options).map(drop),
            Errno::INVAL,
            "memory of the host, {options:?}"
        );
    }
    if env.ours {
        // No one uses it, but it can be registered.
        let memory = small_pages(PAGE)?;
        device
            .register(&memory, RegisterOptions::pinned())?
            .close()?;
    }
    check!(
        eventually(job::LIMIT, || device.is_busy(blob.handle()) == Ok(false)),
        "the blob is idle"
    );
    Ok(())
}
