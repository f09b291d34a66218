// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Memory that is none, or that must not be shared: registering it is no error, using it is.

use std::fs::{self, OpenOptions};

use virtgpu_client::protocol::uapi;
use virtgpu_client::{BlobOptions, Bytes, Device, Errno, RegisterOptions};

use super::support::{family, open, Mirror, READ_ONLY, SPARSE, WHOLE};
use crate::bad_memory::secret;
use crate::ktap::{Family, TestResult};
use crate::support::errno::describe;
use crate::support::place::{Pages, Place, NONE, READ, RW};
use crate::support::{Env, PAGE};
use crate::{cases, check, check_eq, check_err, skip};

pub(crate) const FAMILY: Family = family(
    "mm_special",
    cases![
        device_memory,
        own_guest_blob,
        own_host_blob,
        secret_memory,
        shadow_stack,
        kernel_pages,
        never_readable,
        beside_usable_memory,
    ],
);

const SIZE: usize = 4 * PAGE;

/// No job gets at it, whatever the rights asked for, and the context lives on.
fn unusable(device: &Device, place: &Place, what: &str) -> TestResult {
    for options in [WHOLE, READ_ONLY] {
        let mirror = Mirror::with(device, place, options)?;
        mirror.refused(what, Errno::FAULT)?;
    }
    let sparse = Mirror::with(device, place, SPARSE)?;
    check_err!(
        sparse.userptr.prefetch(0, PAGE as u64),
        Errno::FAULT,
        "prefetching {what}"
    );
    let good = Place::base(SIZE)?;
    let mirror = Mirror::new(device, &good)?;
    mirror.coherent_all_over("plain memory, afterwards")
}

/// Memory of a PCI device, mapped by root.
fn device_memory(env: &Env) -> TestResult {
    let device = open(env)?;
    let mut tried = 0;
    for pci in fs::read_dir("/sys/bus/pci/devices")?.flatten() {
        for number in 0..6 {
            let path = pci.path().join(format!("resource{number}"));
            let Ok(file) = OpenOptions::new().read(true).write(true).open(&path) else {
                continue;
            };
            let place = Place::reserve(Pages::Base, PAGE)?;
            let mapped = place.map_file(0, PAGE, &file, 0, [RW, libc::MAP_SHARED]);
            if mapped.is_err() {
                continue;
            }
            tried += 1;
            let what = path.display().to_string();
            for options in [WHOLE, READ_ONLY] {
                Mirror::with(&device, &place, options)?.refused(&what, Errno::FAULT)?;
            }
        }
    }
    if tried == 0 {
        skip!("no PCI resource can be mapped");
    }
    Ok(())
}

/// Our own buffers, through which the driver would end up in its own fault handlers.
fn own_blob(device: &Device, options: &BlobOptions<'_>) -> TestResult {
    let blob = device.create_blob(options)?;
    let place = Place::reserve(Pages::Base, SIZE)?;
    let offset = blob.map_offset()?;
    place.map_file(0, SIZE, device, offset, [RW, libc::MAP_SHARED])?;
    unusable(device, &place, "a buffer that no one has touched")?;
    place.write_u64(0, 1);
    unusable(device, &place, "a buffer")
}

fn own_guest_blob(env: &Env) -> TestResult {
    let device = open(env)?;
    own_blob(&device, &BlobOptions::guest(SIZE as u64))
}

fn own_host_blob(env: &Env) -> TestResult {
    let device = open(env)?;
    if device.getparam(uapi::param::HOST_VISIBLE)? == 0 {
        skip!("the device has no host-visible memory");
    }
    own_blob(&device, &BlobOptions::host3d(SIZE as u64, 1))
}

/// Not even the kernel has it mapped.
fn secret_memory(env: &Env) -> TestResult {
    let device = open(env)?;
    let fd = secret(SIZE as u64)?;
    let place = Place::reserve(Pages::Base, SIZE)?;
    place.map_file(0, SIZE, &fd, 0, [RW, libc::MAP_SHARED])?;
    unusable(&device, &place, "secret memory that no one has touched")?;
    place.write_u64(0, 1);
    unusable(&device, &place, "secret memory")
}

/// Where only calls and returns may write, and the device as little as the program.
fn shadow_stack(env: &Env) -> TestResult {
    let device = open(env)?;
    let place = Place::shadow_stack(SIZE)?;
    let what = "a shadow stack";
    for options in [
        WHOLE.flag(uapi::USERPTR_PREFAULT),
        RegisterOptions::pinned(),
    ] {
        check_err!(
            device.register(&place, options).map(drop),
            Errno::FAULT,
            "registering {what}"
        );
    }
    Mirror::new(&device, &place)?.refused(what, Errno::FAULT)?;
    let sparse = Mirror::with(&device, &place, SPARSE)?;
    check_err!(
        sparse.userptr.prefetch(0, PAGE as u64),
        Errno::FAULT,
        "prefetching {what}"
    );
    // As for the program.
    let reader = Mirror::with(&device, &place, READ_ONLY)?;
    check_eq!(reader.peek(0)?, 0, "what {what} begins with");
    Ok(())
}

/// The pages that the kernel maps into every process, to be read.
fn kernel_pages(env: &Env) -> TestResult {
    let device = open(env)?;
    let maps = fs::read_to_string("/proc/self/maps")?;
    let Some(line) = maps.lines().find(|line| line.ends_with("[vvar]")) else {
        skip!("no [vvar] in this process");
    };
    let start = line.split('-').next().unwrap_or_default();
    let Ok(start) = u64::from_str_radix(start, 16) else {
        skip!("{line}");
    };
    // SAFETY: The kernel's own pages; the device must not write to them, and no one here uses them.
    let userptr = unsafe { device.register_raw(start, PAGE as u64, SPARSE)? };
    let result = userptr.prefetch(0, PAGE as u64);
    check!(
        matches!(result, Err(Errno::PERM | Errno::FAULT)),
        "[vvar], to be written: {}",
        describe(&result)
    );
    Ok(())
}

fn never_readable(env: &Env) -> TestResult {
    let device = open(env)?;
    let place = Place::reserve(Pages::Base, SIZE)?;
    place.map_with(0, SIZE, NONE, libc::MAP_PRIVATE)?;
    unusable(&device, &place, "PROT_NONE")?;
    place.map_with(0, SIZE, READ, libc::MAP_PRIVATE)?;
    Mirror::new(&device, &place)?.refused("PROT_READ", Errno::PERM)?;
    let reader = Mirror::with(&device, &place, READ_ONLY)?;
    reader.agrees("PROT_READ")
}

/// A part that cannot be used spoils the whole, unless jobs say what they use.
fn beside_usable_memory(env: &Env) -> TestResult {
    let device = open(env)?;
    let fd = secret(PAGE as u64)?;
    let place = Place::base(4 * SIZE)?;
    place.map_file(SIZE, PAGE, &fd, 0, [RW, libc::MAP_SHARED])?;
    Mirror::new(&device, &place)?.refused("secret memory in the middle", Errno::FAULT)?;
    let sparse = Mirror::with(&device, &place, SPARSE)?;
    sparse.prefetch(0, SIZE)?;
    sparse.prefetch(2 * SIZE, 2 * SIZE)?;
    sparse.coherent("before it", SIZE - PAGE)?;
    sparse.coherent("behind it", 2 * SIZE)?;
    check_err!(
        sparse.userptr.prefetch(SIZE as u64, PAGE as u64),
        Errno::FAULT,
        "secret memory"
    );
    sparse.fails("a write to it", &sparse.writing(SIZE, 1))
}
