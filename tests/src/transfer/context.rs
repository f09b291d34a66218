// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! What belongs to the host's context.

use virtgpu_client::{ioctl, Bytes, Device, Errno, Region};

use super::image::there_and_back;
use crate::ktap::TestResult;
use crate::support::{Env, Random, PAGE};
use crate::{check, check_err, skip};

/// Creating makes a context without capability set, after which there cannot be another.
pub(super) fn without_context_init(env: &Env) -> TestResult {
    let device = env.open()?;
    let image = device.create_picture(16, 16)?;
    let map = image.map()?;
    let region = Region::picture(16, 16);
    let data = there_and_back(&device, image.handle(), &map, &region, 8)?;
    check!(map.to_vec(0, 1024) == data[..1024], "it came back");
    check_err!(
        device.context_init_compute(1),
        Errno::EXIST,
        "CONTEXT_INIT after a picture"
    );
    Ok(())
}

/// A picture with known pixels, and its dma-buf.
fn shared(device: &Device, seed: u64) -> TestResult<(Vec<u8>, std::os::fd::OwnedFd)> {
    let image = device.create_picture(16, 16)?;
    let map = image.map()?;
    let data = Random(seed).bytes(1024);
    map.write(0, &data);
    image.to_host(&Region::picture(16, 16))?;
    map.fill(0);
    Ok((data, device.prime_export(image.handle())?))
}

/// Reads the picture back through another file's handle.
fn reads_back(device: &Device, handle: u32, data: &[u8], what: &str) -> TestResult {
    let mapping = virtgpu_client::Mapping::file(
        device,
        device.map_offset(handle)?,
        PAGE,
        rustix::mm::ProtFlags::READ | rustix::mm::ProtFlags::WRITE,
        rustix::mm::MapFlags::SHARED,
    )?;
    mapping.fill(0x11);
    device.transfer_from_host(handle, &Region::picture(16, 16))?;
    device.wait(handle)?;
    check!(
        mapping.to_vec(0, data.len()) == data,
        "{what}: the host's copy came back"
    );
    Ok(())
}

/// What a file has handles to before it has a context is attached when it has one.
pub(super) fn opened_before_the_context(env: &Env) -> TestResult {
    if !env.ours {
        skip!("Linux's driver never attaches what was opened before");
    }
    let first = env.compute()?;
    let (data, dmabuf) = shared(&first, 21)?;
    let (other_data, other) = shared(&first, 22)?;

    let second = env.open()?;
    let handle = second.prime_import(&dmabuf)?;
    let closed = second.prime_import(&other)?;
    second.gem_close(closed)?;
    second.context_init_compute(2)?;
    reads_back(&second, handle, &data, "before CONTEXT_INIT")?;
    let after = second.prime_import(&other)?;
    reads_back(&second, after, &other_data, "after CONTEXT_INIT")?;

    // The transfer itself makes the context.
    let third = env.open()?;
    let handle = third.prime_import(&dmabuf)?;
    reads_back(&third, handle, &data, "without CONTEXT_INIT")
}

/// A context has a resource until the last handle of its file is closed.
pub(super) fn two_handles(env: &Env) -> TestResult {
    const DROP_MASTER: u32 = ((b'd' as u32) << 8) | 0x1f;
    if !env.ours {
        skip!("Linux's driver detaches with the first handle");
    }
    let Some(path) = crate::handles::card() else {
        skip!("no primary node")
    };
    let device = Device::open_path(&path)?;
    // SAFETY: The ioctl takes no argument.
    let dropped = unsafe { ioctl::call(&device, DROP_MASTER, std::ptr::null_mut()) };
    if let Err(error) = dropped {
        skip!("cannot stop being master: {error}");
    }
    device.context_init_compute(1)?;
    let image = device.create_picture(16, 16)?;
    let map = image.map()?;
    let data = there_and_back(&device, image.handle(), &map, &Region::picture(16, 16), 23)?;
    let name = device.gem_flink(image.handle())?;
    let (second, third) = (device.gem_open(name)?, device.gem_open(name)?);
    device.gem_close(second)?;
    drop(image);
    reads_back(&device, third, &data[..1024], "the last handle")?;
    device.gem_close(third)?;
    Ok(())
}

/// Files see each other's pictures only through a handle of their own.
pub(super) fn of_another_context(env: &Env) -> TestResult {
    let (first, second) = (env.compute()?, env.compute()?);
    let (data, dmabuf) = shared(&first, 24)?;
    let handle = second.prime_import(&dmabuf)?;
    reads_back(&second, handle, &data, "a second file")?;
    // And the pages of the resource are the same for both.
    let again = first.prime_import(&dmabuf)?;
    reads_back(&first, again, &data, "the first file, again")?;
    first.gem_close(again)?;
    reads_back(&second, handle, &data, "the second file alone")
}
