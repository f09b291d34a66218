// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Fault injection where the memory is mirrored, as in [`crate::faults`]: in the driver's own
//! calls, and in munmap, which calls it back and must not need memory for that. (fork cannot be
//! tested so: the fault may come after it, in the copy of a page of the stack, which kills the
//! process.)

use virtgpu_client::protocol::uapi;
use virtgpu_client::{Bytes, Errno, Memory};

use super::support::{family, open, Mirror, SPARSE};
use crate::faults::{each_fault, each_fault_of_a_handle};
use crate::ktap::{Family, Kernel, TestResult};
use crate::support::memory::small_pages;
use crate::support::place::Place;
use crate::support::{job, raw, Env, PAGE};
use crate::{cases, check_eq};

pub(crate) const FAMILY: Family = Family {
    kernel: Kernel::Debug,
    ..family(
        "mirrored_faults",
        cases![
            register: 600,
            prefetch: 600,
            execbuffer: 600,
            munmap: 600,
        ],
    )
};

const SIZE: usize = 16 * PAGE;

fn last_error() -> Errno {
    let error = std::io::Error::last_os_error();
    Errno::from_raw_os_error(error.raw_os_error().unwrap_or_default())
}

fn register(env: &Env) -> TestResult {
    let device = open(env)?;
    let memory = small_pages(SIZE)?;
    let mut register = raw::pinned(memory.as_ptr() as u64, SIZE as u64);
    register.flags = register.flags & !uapi::USERPTR_PINNED | uapi::USERPTR_MIRRORED;
    each_fault_of_a_handle("REGISTER, mirrored", &device, || {
        raw::register(&device, register)
    })
}

fn prefetch(env: &Env) -> TestResult {
    let device = open(env)?;
    let place = Place::base(SIZE)?;
    let mirror = Mirror::with(&device, &place, SPARSE)?;
    let data = mirror.scatter(1);
    each_fault(
        "PREFETCH, mirrored",
        || mirror.userptr.prefetch(0, SIZE as u64),
        |prefetched| {
            check_eq!(prefetched, SIZE as u64, "bytes prefetched");
            // So that there is something to do again. The swap cache has nothing of it.
            place.advise(0, SIZE, libc::MADV_DONTNEED)?;
            place.write(0, &data);
            Ok(())
        },
    )?;
    mirror.prefetch(0, SIZE)?;
    mirror.coherent_all_over("in the end")
}

fn execbuffer(env: &Env) -> TestResult {
    let device = open(env)?;
    let place = Place::base(SIZE)?;
    let mirror = Mirror::new(&device, &place)?;
    mirror.scatter(2);
    let reading = mirror.reading();
    each_fault(
        "EXECBUFFER with mirrored memory",
        || mirror.submit(&reading),
        |fence| {
            fence.wait(Some(job::LIMIT))?;
            place.advise(0, SIZE, libc::MADV_DONTNEED)
        },
    )?;
    mirror.agrees("in the end")?;
    mirror.coherent_all_over("in the end")
}

/// The kernel may lack memory to cut a mapping in two: then nothing is unmapped, and the device
/// keeps what it has or gets it again.
fn munmap(env: &Env) -> TestResult {
    let device = open(env)?;
    let place = Place::base(SIZE)?;
    let mirror = Mirror::new(&device, &place)?;
    mirror.scatter(3);
    mirror.agrees("before")?;
    let (start, length) = (place.address(4 * PAGE), 4 * PAGE);
    each_fault(
        "munmap",
        || {
            // SAFETY: A part of the place, which no one has a reference to.
            match unsafe { libc::munmap(start as *mut libc::c_void, length) } {
                0 => Ok(()),
                _ => Err(last_error()),
            }
        },
        |()| {
            mirror.refused("a hole", Errno::FAULT)?;
            place.map(4 * PAGE, length)?;
            mirror.agrees("mapped again")
        },
    )?;
    mirror.coherent_all_over("in the end")
}
