// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Registrations whose arguments make no sense: addresses, sizes, flags, padding, structure sizes,
//! interruptions. Each is refused with the right errno and changes nothing.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use rustix::mm::{MapFlags, ProtFlags};
use virtgpu_client::protocol::uapi;
use virtgpu_client::protocol::virtio_gpu::blob_mem;
use virtgpu_client::{ioctl, Errno, Mapping, Memfd, Memory};
use zerocopy::IntoBytes;

use crate::ktap::{Driver, Family, Kernel, TestResult};
use crate::support::memory::small_pages;
use crate::support::unchanged::Refusing;
use crate::support::{errno, raw, Env, P, PAGE};
use crate::{cases, check, check_eq};

pub(crate) const FAMILY: Family = Family {
    name: "bad_input",
    kernel: Kernel::Any,
    driver: Driver::Ours,
    device: "",
    leak_check: true,
    cases: cases![
        unaligned,
        zero_and_wrapping,
        kernel_and_non_canonical,
        huge_sizes,
        flags,
        other_fields,
        fd_fields,
        argument_pointer,
        create_blob_sizes,
        rocm_addresses,
        rocm_flags,
        signals,
    ],
};

fn unaligned(env: &Env) -> TestResult {
    let refusing = Refusing::new(env)?;
    let memory = small_pages(16 * PAGE)?;
    let addr = memory.as_ptr() as u64;
    for (a, s) in [
        (1, P),
        (8, P),
        (2048, P),
        (4095, P),
        (0, 1),
        (0, 4095),
        (0, P + 1),
        (0, 2 * P - 1),
        (100, 100),
    ] {
        refusing.register(
            Errno::INVAL,
            &format!("{s} bytes at {a} in a page"),
            raw::pinned(addr + a, s),
        )?;
    }
    Ok(())
}

fn zero_and_wrapping(env: &Env) -> TestResult {
    let refusing = Refusing::new(env)?;
    let memory = small_pages(16 * PAGE)?;
    let addr = memory.as_ptr() as u64;
    for (a, s) in [
        (addr, 0),
        (0, 0),
        (0, P),
        (addr, !(P - 1)),
        (P, !(P - 1)),
        (!(P - 1), 2 * P),
        (1 << 63, (1 << 63) | P),
        (addr, addr.wrapping_neg() + P),
    ] {
        refusing.register(
            Errno::INVAL,
            &format!("{s:#x} bytes at {a:#x}"),
            raw::pinned(a, s),
        )?;
    }
    Ok(())
}

fn kernel_and_non_canonical(env: &Env) -> TestResult {
    let refusing = Refusing::new(env)?;
    for (a, s) in [
        (P, P),
        (0xffff_8000_0000_0000, P),
        (0xffff_ffff_8000_0000, P),
        (0xffff_ffff_ff60_0000, P),
        (0xffff_8880_0000_0000, 16 * P),
        (0xffff_ffff_ffff_e000, P),
        (0x8000_0000_0000, P),
        (0x0100_0000_0000_0000, P),
        (1 << 63, P),
        (0x7fff_ffff_e000, 4 * P),
        (0x7fff_ffff_f000, P),
    ] {
        refusing.register(
            Errno::FAULT,
            &format!("{s:#x} bytes at {a:#x}"),
            raw::pinned(a, s),
        )?;
    }
    Ok(())
}

/// Sizes far beyond what is mapped, without wrapping.
fn huge_sizes(env: &Env) -> TestResult {
    let refusing = Refusing::new(env)?;
    let memory = small_pages(16 * PAGE)?;
    let addr = memory.as_ptr() as u64;
    for size in [
        17 * P,
        1 << 32,
        (1 << 32) + P,
        1 << 40,
        1 << 44,
        0xffff_ffff_f000,
        1 << 52,
        1 << 62,
        1 << 63,
        !(P - 1) - addr,
    ] {
        // More than the host can take, or not all of it mapped: which is found first is no promise.
        // (The first has room for its 17th page refused only if nothing is mapped behind.)
        if size == 17 * P && mapped_behind(&memory) {
            continue;
        }
        refusing.one_of(
            &[Errno::FAULT, Errno::TOOBIG, Errno::NOMEM],
            &format!("{size:#x} bytes at {addr:#x}"),
            |device| raw::register(device, raw::pinned(addr, size)),
        )?;
    }
    for size in [u64::MAX, u64::MAX - 1, u64::MAX - 4096, 1] {
        refusing.register(
            Errno::INVAL,
            &format!("size {size:#x}"),
            raw::pinned(addr, size),
        )?;
    }
    Ok(())
}

fn mapped_behind(memory: &Mapping) -> bool {
    let end = memory.as_ptr() as usize + memory.len();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    maps.lines()
        .filter_map(|line| {
            let (start, rest) = line.split_once('-')?;
            let stop = rest.split(' ').next()?;
            Some((
                usize::from_str_radix(start, 16).ok()?,
                usize::from_str_radix(stop, 16).ok()?,
            ))
        })
        .any(|(start, stop)| start <= end && end < stop)
}

fn flags(env: &Env) -> TestResult {
    use uapi::*;
    let refusing = Refusing::new(env)?;
    let memory = small_pages(PAGE)?;
    let good = raw::pinned(memory.as_ptr() as u64, P);
    let mut wrong = vec![
        ("no mode", 0),
        ("only RDONLY", USERPTR_RDONLY),
        ("only PREFAULT", USERPTR_PREFAULT),
        ("two modes", USERPTR_PINNED | USERPTR_MIRRORED),
        ("FD and MIRRORED", USERPTR_FD | USERPTR_MIRRORED),
        ("EVENT and PINNED", USERPTR_PINNED | USERPTR_EVENT),
        ("SPARSE and PINNED", USERPTR_PINNED | USERPTR_SPARSE),
        ("all of them", 127),
    ];
    for bit in 7..32 {
        wrong.push(("unknown", USERPTR_PINNED | (1 << bit)));
    }
    for (what, flags) in wrong {
        refusing.register(
            Errno::INVAL,
            &format!("flags {flags:#x} ({what})"),
            UserptrRegister { flags, ..good },
        )?;
    }
    let modes = refusing.device.userptr_modes()?;
    if modes & USERPTR_MODE_MIRRORED == 0 {
        for flags in [
            USERPTR_MIRRORED,
            USERPTR_MIRRORED | USERPTR_RDONLY,
            USERPTR_MIRRORED | USERPTR_EVENT | USERPTR_SPARSE,
        ] {
            refusing.register(
                Errno::OPNOTSUPP,
                &format!("flags {flags:#x} (mirrored)"),
                UserptrRegister { flags, ..good },
            )?;
        }
    }
    Ok(())
}

fn other_fields(env: &Env) -> TestResult {
    use uapi::UserptrRegister as R;
    let refusing = Refusing::new(env)?;
    let memory = small_pages(PAGE)?;
    let good = raw::pinned(memory.as_ptr() as u64, P);
    for (what, register) in [
        ("pad 1", R { pad: 1, ..good }),
        (
            "pad 2^63",
            R {
                pad: 1 << 63,
                ..good
            },
        ),
        ("fd 1 without FD", R { fd: 1, ..good }),
        ("fd -1 without FD", R { fd: -1, ..good }),
        (
            "fd_offset without FD",
            R {
                fd_offset: P,
                ..good
            },
        ),
        ("blob_id of guest memory", R { blob_id: 1, ..good }),
        (
            "blob_mem 0",
            R {
                blob_mem: 0,
                ..good
            },
        ),
        (
            "blob_mem HOST3D",
            R {
                blob_mem: blob_mem::HOST3D,
                ..good
            },
        ),
        (
            "blob_mem 4",
            R {
                blob_mem: 4,
                ..good
            },
        ),
        (
            "blob_mem 2^32 - 1",
            R {
                blob_mem: u32::MAX,
                ..good
            },
        ),
    ] {
        refusing.register(Errno::INVAL, what, register)?;
    }
    // What the kernel only writes may hold anything; cookie is the program's own.
    let register = R {
        bo_handle: 77,
        res_handle: 77,
        memory_model: 77,
        cookie: u64::MAX,
        ..good
    };
    let handle = raw::register(&refusing.device, register)?;
    check!(handle != 77 && handle != 0, "a handle came back");
    refusing.device.gem_close(handle)?;
    Ok(())
}

fn fd_fields(env: &Env) -> TestResult {
    use std::os::fd::{AsFd, AsRawFd};
    use uapi::UserptrRegister as R;
    let refusing = Refusing::new(env)?;
    let memfd = Memfd::new(4 * P)?;
    let good = R {
        flags: uapi::USERPTR_PINNED | uapi::USERPTR_FD,
        fd: memfd.as_fd().as_raw_fd(),
        addr: 0,
        ..raw::pinned(0, P)
    };
    for (what, register) in [
        ("an address with FD", R { addr: P, ..good }),
        (
            "offset 1",
            R {
                fd_offset: 1,
                ..good
            },
        ),
        ("size 0", R { size: 0, ..good }),
        ("size 100", R { size: 100, ..good }),
        (
            "a range that wraps",
            R {
                fd_offset: !(P - 1),
                size: 2 * P,
                ..good
            },
        ),
        (
            "a negative offset",
            R {
                fd_offset: 1 << 63,
                ..good
            },
        ),
        (
            "a range behind the end",
            R {
                fd_offset: 4 * P,
                ..good
            },
        ),
        (
            "a range over the end",
            R {
                fd_offset: 2 * P,
                size: 3 * P,
                ..good
            },
        ),
        (
            "a mapped-only mode",
            R {
                flags: good.flags | uapi::USERPTR_SPARSE,
                ..good
            },
        ),
    ] {
        refusing.register(Errno::INVAL, what, register)?;
    }
    let handle = raw::register(&refusing.device, good)?;
    refusing.device.gem_close(handle)?;
    Ok(())
}

/// The structure itself at an address that is none.
fn argument_pointer(env: &Env) -> TestResult {
    let refusing = Refusing::new(env)?;
    for nr in [
        uapi::nr::USERPTR_REGISTER,
        uapi::nr::BO_QUERY,
        uapi::nr::USERPTR_PREFETCH,
        uapi::nr::RESOURCE_CREATE_BLOB,
        uapi::nr::EXECBUFFER,
        uapi::nr::GETPARAM,
        uapi::nr::GET_CAPS,
        uapi::nr::CONTEXT_INIT,
        uapi::nr::MAP,
        uapi::nr::RESOURCE_INFO,
        uapi::nr::WAIT,
    ] {
        for address in [0_usize, 8, 1 << 63] {
            refusing.refuse(
                Errno::FAULT,
                &format!("ioctl {nr:#x} at {address:#x}"),
                |d| {
                    let number = ioctl::virtgpu(nr, 72);
                    // SAFETY: No structure can be there: the kernel must refuse.
                    unsafe { ioctl::call_once(d, number, address as *mut _) }
                },
            )?;
        }
    }
    Ok(())
}

/// Bytes 0 to 256: below 48 too short, from there on read as if followed by zeros.
fn create_blob_sizes(env: &Env) -> TestResult {
    let refusing = Refusing::new(env)?;
    for bytes in 0..=256_usize {
        let mut buffer = [0xee_u8; 512];
        let create = uapi::ResourceCreateBlob {
            blob_mem: blob_mem::GUEST,
            blob_flags: 1,
            size: P,
            ..Default::default()
        };
        buffer[..bytes].fill(0);
        let known = bytes.min(create.as_bytes().len());
        buffer[..known].copy_from_slice(&create.as_bytes()[..known]);
        let number = ioctl::virtgpu(uapi::nr::RESOURCE_CREATE_BLOB, bytes);
        let call = |device: &virtgpu_client::Device, buffer: &mut [u8; 512]| {
            // SAFETY: The buffer is longer than the ioctl's size says.
            unsafe { ioctl::call_once(device, number, buffer.as_mut_ptr().cast()) }
        };
        if bytes < uapi::RESOURCE_CREATE_BLOB_MIN_SIZE {
            refusing.refuse(Errno::INVAL, &format!("{bytes} bytes"), |device| {
                call(device, &mut buffer)
            })?;
        } else {
            let result = call(&refusing.device, &mut buffer);
            check!(
                result == Ok(0),
                "{bytes} bytes: {}",
                errno::describe(&result)
            );
            let handle = u32::from_ne_bytes(buffer[8..12].try_into().expect("4 bytes"));
            check_eq!(
                refusing.device.resource_info(handle)?.blob_mem,
                blob_mem::GUEST,
                "blob_mem with {bytes} bytes"
            );
            refusing.device.gem_close(handle)?;
        }
        check!(
            buffer[bytes..].iter().all(|&byte| byte == 0xee),
            "{bytes} bytes: nothing is written behind the structure"
        );
    }
    Ok(())
}

fn rocm(addr: u64, size: u64, flags: u32) -> uapi::ResourceCreateBlob {
    uapi::ResourceCreateBlob {
        blob_mem: blob_mem::HOST3D_GUEST,
        blob_flags: uapi::BLOB_FLAG_USE_USERPTR | flags,
        size,
        blob_id: 1,
        blob_hints: addr as u32,
        pad2: (addr >> 32) as u32,
        ..Default::default()
    }
}

fn create(
    refusing: &Refusing,
    error: Errno,
    what: &str,
    mut blob: uapi::ResourceCreateBlob,
) -> TestResult {
    refusing.refuse(error, what, |device| {
        raw::call(device, uapi::nr::RESOURCE_CREATE_BLOB, &mut blob)
    })
}

/// The same addresses through ROCm's form, which takes unaligned ones.
fn rocm_addresses(env: &Env) -> TestResult {
    let refusing = Refusing::new(env)?;
    let memory = small_pages(4 * PAGE)?;
    let addr = memory.as_ptr() as u64;
    for (error, a, s) in [
        (Errno::INVAL, addr, 0),
        (Errno::INVAL, addr, u64::MAX),
        (Errno::INVAL, addr + 100, u64::MAX - addr),
        (Errno::INVAL, u64::MAX, 2),
        (Errno::INVAL, 0, P),
        (Errno::FAULT, P + 100, 100),
        (Errno::FAULT, 0xffff_8000_0000_0000, P),
        (Errno::FAULT, 0xffff_8000_0000_0123, 77),
        (Errno::FAULT, 1 << 63, P),
        (Errno::FAULT, 0x7fff_ffff_efff, 2),
    ] {
        create(
            &refusing,
            error,
            &format!("{s:#x} bytes at {a:#x}"),
            rocm(a, s, 0),
        )?;
    }
    let nothing = Mapping::anonymous_with(PAGE, ProtFlags::empty(), MapFlags::PRIVATE)?;
    create(
        &refusing,
        Errno::FAULT,
        "PROT_NONE",
        rocm(nothing.as_ptr() as u64, P, 0),
    )
}

fn rocm_flags(env: &Env) -> TestResult {
    use uapi::ResourceCreateBlob as B;
    let refusing = Refusing::new(env)?;
    let memory = small_pages(4 * PAGE)?;
    let good = rocm(memory.as_ptr() as u64, P, 0);
    for (what, blob) in [
        (
            "SVM",
            B {
                blob_flags: 0x28,
                ..good
            },
        ),
        (
            "flag 0x40",
            B {
                blob_flags: 0x48,
                ..good
            },
        ),
        (
            "read-only without user memory",
            B {
                blob_flags: 0x10,
                blob_hints: 0,
                pad2: 0,
                ..good
            },
        ),
        (
            "HOST3D",
            B {
                blob_mem: blob_mem::HOST3D,
                ..good
            },
        ),
    ] {
        create(&refusing, Errno::INVAL, what, blob)?;
    }
    Ok(())
}

/// A storm of signals that kill no one: pinned memory is registered all the same, and a process
/// whose library does not try again notices nothing.
fn signals(env: &Env) -> TestResult {
    static SIGNALS: AtomicU64 = AtomicU64::new(0);
    extern "C" fn handler(_: i32) {
        SIGNALS.fetch_add(1, Ordering::Relaxed);
    }
    let refusing = Refusing::new(env)?;
    let memory = small_pages(1024 * PAGE)?;
    // SAFETY: The handler adds to a number; the structures are valid.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as extern "C" fn(i32) as usize;
        libc::sigaction(libc::SIGALRM, &raw const action, std::ptr::null_mut());
    }
    let timer = |microseconds| {
        let value = libc::timeval {
            tv_sec: 0,
            tv_usec: microseconds,
        };
        let timer = libc::itimerval {
            it_interval: value,
            it_value: value,
        };
        // SAFETY: A valid structure.
        unsafe { libc::setitimer(libc::ITIMER_REAL, &raw const timer, std::ptr::null_mut()) };
    };
    let (rounds, mut met) = (env.iterations(200), 0);
    for round in 0..rounds {
        let pages = 1 + round * 1000 / rounds;
        let register = || {
            raw::register(
                &refusing.device,
                raw::pinned(memory.as_ptr() as u64, pages * P),
            )
        };
        // The first signal comes in the middle, wherever that is on this machine.
        let start = Instant::now();
        refusing.device.gem_close(register()?)?;
        let whole = start.elapsed().as_micros() as i64;
        let before = SIGNALS.load(Ordering::Relaxed);
        timer((whole * (1 + round as i64 % 8) / 8).clamp(1, 999_999));
        let result = register();
        met += u64::from(SIGNALS.load(Ordering::Relaxed) > before);
        timer(0);
        match result {
            Ok(handle) => refusing.device.gem_close(handle)?,
            other => check!(false, "{pages} pages: {}", errno::describe(&other)),
        }
    }
    println!("    # signals came in {met} of {rounds} rounds");
    check!(met > 0, "no signal came");
    // Nothing is left of it.
    refusing.register(Errno::INVAL, "the state afterwards", raw::pinned(1, P))?;
    let none = crate::support::eventually(std::time::Duration::from_secs(60), || {
        crate::support::procfs::vm_pin() == Ok(0)
    });
    check!(none, "VmPin is 0 in the end");
    Ok(())
}
