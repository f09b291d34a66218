// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Images of each kind, whole ones and boxes in them.

use virtgpu_client::protocol::uapi::{self, Box3d};
use virtgpu_client::protocol::virtio_gpu_image::{format, target};
use virtgpu_client::{compute, BlobMap, Bytes, Device, Memory, Region};

use crate::ktap::TestResult;
use crate::support::{raw, Env, Random, PAGE};
use crate::{check, check_eq};

/// A picture of 32-bit pixels, to be changed.
pub(super) fn picture_of(width: u32, height: u32) -> uapi::ResourceCreate {
    uapi::ResourceCreate {
        target: target::TEXTURE_2D,
        format: format::B8G8R8A8_UNORM,
        width,
        height,
        depth: 1,
        array_size: 1,
        size: 4 * width * height,
        ..Default::default()
    }
}

pub(super) fn cuboid(from: [u32; 3], sides: [u32; 3]) -> Box3d {
    Box3d {
        x: from[0],
        y: from[1],
        z: from[2],
        w: sides[0],
        h: sides[1],
        d: sides[2],
    }
}

pub(crate) fn created(env: &Env) -> TestResult {
    let device = env.compute()?;
    for (size, rounded) in [(0, PAGE), (1, PAGE), (PAGE, PAGE), (PAGE + 1, 2 * PAGE)] {
        let mut create = uapi::ResourceCreate {
            size: size as u32,
            ..picture_of(8, 8)
        };
        let image = device.create_image(&mut create)?;
        check!(
            image.handle() != 0 && image.resource() != 0,
            "size {size}: ids are not 0"
        );
        let mut info = uapi::ResourceInfo {
            bo_handle: image.handle(),
            blob_mem: 77,
            ..Default::default()
        };
        raw::call(&device, uapi::nr::RESOURCE_INFO, &mut info)?;
        check_eq!(info.res_handle, image.resource(), "resource");
        check_eq!(info.size as usize, rounded, "bytes in RESOURCE_INFO");
        check_eq!(
            info.blob_mem,
            77,
            "blob_mem of what is no blob is left alone"
        );
        device.wait(image.handle())?;
        check!(!device.is_busy(image.handle())?, "idle after WAIT");
        let map = image.map()?;
        check!(
            map.to_vec(0, PAGE).iter().all(|&byte| byte == 0),
            "new pages are zero"
        );
        map.fill(0xaa);
    }
    Ok(())
}

/// To the host, other bytes in the guest, and back.
pub(super) fn there_and_back(
    device: &Device,
    handle: u32,
    map: &BlobMap,
    region: &Region,
    seed: u64,
) -> TestResult<Vec<u8>> {
    let data = Random(seed).bytes(map.len());
    map.write(0, &data);
    device.transfer_to_host(handle, region)?;
    device.wait(handle)?;
    map.fill(0x5a);
    device.transfer_from_host(handle, region)?;
    device.wait(handle)?;
    Ok(data)
}

pub(crate) fn picture(env: &Env) -> TestResult {
    let device = env.compute()?;
    for (width, height) in [(1, 1), (16, 16), (100, 7), (64, 300)] {
        let image = device.create_picture(width, height)?;
        let map = image.map()?;
        let region = Region::picture(width, height);
        let data = there_and_back(&device, image.handle(), &map, &region, 1)?;
        let bytes = (4 * width * height) as usize;
        check!(
            map.to_vec(0, bytes) == data[..bytes],
            "{width} x {height} pixels came back"
        );
        check!(
            map.to_vec(bytes, map.len() - bytes)
                .iter()
                .all(|&byte| byte == 0x5a),
            "{width} x {height} pixels, and nothing behind them"
        );
    }
    Ok(())
}

/// Where the pixels of a box lie in guest memory: start and length of each row.
fn rows(region: &Region, stride: u32, layer: u32, pixel: u32) -> Vec<(usize, usize)> {
    let mut rows = Vec::new();
    for z in 0..region.region.d {
        for y in 0..region.region.h {
            let start = region.offset + z * layer + y * stride;
            rows.push((start as usize, (region.region.w * pixel) as usize));
        }
    }
    rows
}

/// A box goes to the host at one place in guest memory, and comes back at another.
fn moved(
    device: &Device,
    handle: u32,
    map: &BlobMap,
    (there, back): (Region, Region),
    (stride, layer, pixel): (u32, u32, u32),
    what: &str,
) -> TestResult {
    let length = map.len();
    let data = Random(u64::from(there.offset) + 3).bytes(length);
    map.write(0, &data);
    device.transfer_to_host(handle, &there)?;
    device.wait(handle)?;
    map.fill(0x5a);
    device.transfer_from_host(handle, &back)?;
    device.wait(handle)?;
    let mut want = vec![0x5a; length];
    let from = rows(&there, stride, layer, pixel);
    let to = rows(&back, stride, layer, pixel);
    for ((from, bytes), (to, _)) in from.into_iter().zip(to) {
        want[to..to + bytes].copy_from_slice(&data[from..from + bytes]);
    }
    let got = map.to_vec(0, length);
    let differs = got.iter().zip(&want).position(|(got, want)| got != want);
    check!(differs.is_none(), "{what}: byte {differs:?} differs");
    Ok(())
}

pub(crate) fn boxes(env: &Env) -> TestResult {
    let device = env.compute()?;
    let image = device.create_picture(32, 32)?;
    let map = image.map()?;
    for (from, sides) in [
        ([0, 0, 0], [1, 1, 1]),
        ([31, 31, 0], [1, 1, 1]),
        ([5, 7, 0], [3, 9, 1]),
        ([0, 31, 0], [32, 1, 1]),
        ([31, 0, 0], [1, 32, 1]),
    ] {
        for offsets in [(0, 4), (64, 0), (12, 12)] {
            let region = |offset| Region {
                region: cuboid(from, sides),
                offset,
                ..Default::default()
            };
            let both = (region(offsets.0), region(offsets.1));
            if both.0.offset.max(both.1.offset) + (sides[1] - 1) * 128 + sides[0] * 4 > 4096 {
                continue;
            }
            let what = format!("{from:?} {sides:?} at {offsets:?}");
            moved(&device, image.handle(), &map, both, (128, 4096, 4), &what)?;
        }
    }
    Ok(())
}

pub(crate) fn levels(env: &Env) -> TestResult {
    let device = env.compute()?;
    let image = device.create_image(&mut uapi::ResourceCreate {
        last_level: 4,
        size: 4 * PAGE as u32,
        ..picture_of(16, 8)
    })?;
    let map = image.map()?;
    // Each level gets its own bytes; then all are read back.
    let mut wanted = Vec::new();
    for level in 0..=4 {
        let sides = [(16 >> level).max(1), (8 >> level).max(1), 1];
        let region = Region {
            region: cuboid([0; 3], sides),
            level,
            ..Default::default()
        };
        let bytes = (4 * sides[0] * sides[1]) as usize;
        let data = Random(u64::from(level)).bytes(bytes);
        map.write(0, &data);
        image.to_host(&region)?;
        wanted.push((region, data));
    }
    for (region, data) in wanted {
        map.fill(0);
        image.from_host(&region)?;
        check!(
            map.to_vec(0, data.len()) == data,
            "level {} came back",
            region.level
        );
    }
    Ok(())
}

pub(crate) fn layers(env: &Env) -> TestResult {
    let device = env.compute()?;
    for (what, create, layers) in [
        (
            "3D",
            uapi::ResourceCreate {
                target: target::TEXTURE_3D,
                depth: 5,
                ..picture_of(8, 4)
            },
            5,
        ),
        (
            "cube",
            uapi::ResourceCreate {
                target: target::TEXTURE_CUBE,
                array_size: 6,
                ..picture_of(4, 4)
            },
            6,
        ),
        (
            "array",
            uapi::ResourceCreate {
                target: target::TEXTURE_2D_ARRAY,
                array_size: 3,
                ..picture_of(8, 8)
            },
            3,
        ),
    ] {
        let mut create = uapi::ResourceCreate {
            size: 4 * PAGE as u32,
            ..create
        };
        let image = device.create_image(&mut create)?;
        let map = image.map()?;
        let (width, height) = (create.width, create.height);
        let (stride, layer) = (4 * width, 4 * width * height);
        let all = cuboid([0; 3], [width, height, layers]);
        let inner = cuboid([1, 1, 1], [width - 2, height - 2, layers - 1]);
        for region in [all, inner] {
            let at = |offset| Region {
                region,
                offset,
                ..Default::default()
            };
            let both = (at(0), at(2048));
            moved(
                &device,
                image.handle(),
                &map,
                both,
                (stride, layer, 4),
                what,
            )?;
        }
    }
    Ok(())
}

pub(crate) fn buffer(env: &Env) -> TestResult {
    let device = env.compute()?;
    let image = device.create_buffer(3 * PAGE as u32)?;
    let map = image.map()?;
    let data = there_and_back(
        &device,
        image.handle(),
        &map,
        &Region::bytes(0, 3 * PAGE as u32),
        5,
    )?;
    check!(map.to_vec(0, 3 * PAGE) == data, "all bytes came back");
    // A part in the middle.
    map.fill(0);
    image.from_host(&Region::bytes(4001, 5003))?;
    check!(
        map.to_vec(4001, 5003) == data[4001..9004],
        "the part came back"
    );
    check_eq!(map.to_vec(4000, 1)[0], 0, "the byte before");
    check_eq!(map.to_vec(9004, 1)[0], 0, "the byte behind");
    Ok(())
}

pub(crate) fn many_pages(env: &Env) -> TestResult {
    let device = env.compute()?;
    let image = device.create_picture(1024, 2048)?;
    let map = image.map()?;
    let region = Region::picture(1024, 2048);
    let data = there_and_back(&device, image.handle(), &map, &region, 6)?;
    let got = map.to_vec(0, data.len());
    check_eq!(
        compute::crc32c(0, &got),
        compute::crc32c(0, &data),
        "CRC32C"
    );
    if env.ours {
        let query = device.query(image.handle())?;
        check_eq!(query.size, 8 << 20, "bytes in BO_QUERY");
        check_eq!(query.mapped_bytes, 8 << 20, "bytes that the host has");
        check_eq!(
            query.memory_model,
            uapi::memory_model::PERMANENT,
            "memory model"
        );
    }
    Ok(())
}

pub(crate) fn formats(env: &Env) -> TestResult {
    let device = env.compute()?;
    for (format, pixel) in [
        (format::R8_UNORM, 1),
        (format::R8G8_UNORM, 2),
        (format::R8G8B8_UNORM, 3),
        (format::R8G8B8A8_UNORM, 4),
        (format::R16G16B16A16_UNORM, 8),
        (format::R32G32B32A32_FLOAT, 16),
    ] {
        let mut create = uapi::ResourceCreate {
            format,
            size: PAGE as u32,
            ..picture_of(5, 6)
        };
        let image = device.create_image(&mut create)?;
        let map = image.map()?;
        let region = Region::picture(5, 6);
        let data = there_and_back(&device, image.handle(), &map, &region, pixel)?;
        let bytes = 5 * 6 * pixel as usize;
        check!(
            map.to_vec(0, bytes) == data[..bytes],
            "format {format}: {bytes} bytes came back"
        );
        check_eq!(
            map.to_vec(bytes, 1)[0],
            0x5a,
            "format {format}: the byte behind"
        );
    }
    Ok(())
}
