// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! The standard virtgpu ioctls, on this driver and on Linux's own: parameters, capability sets,
//! contexts, blobs of each kind, jobs on rings, fences, syncobjs, waiting, sharing.

use std::time::Duration;

use virtgpu_client::protocol::virtio_gpu::blob_mem;
use virtgpu_client::protocol::{compute as wire, uapi};
use virtgpu_client::{compute, BlobOptions, Bytes, Device, Errno, Exec, SyncStatus};

use crate::ktap::{Driver, Family, Kernel, TestResult};
use crate::support::{job, raw, Env, Random, PAGE};
use crate::{cases, check, check_eq, check_err, skip};

pub(crate) const FAMILY: Family = Family {
    name: "basic",
    kernel: Kernel::Any,
    driver: Driver::Both,
    device: "",
    leak_check: true,
    cases: cases![
        version,
        parameters,
        bad_parameters,
        capset,
        bad_capset,
        context_twice,
        bad_context,
        context_debug_name,
        failed_context_init_changes_nothing,
        before_context_init,
        blob_guest,
        blob_host3d,
        blob_host3d_guest,
        blob_bad,
        ignored_fields,
        blob_pages_are_zero,
        map_bad,
        info_bad,
        rings,
        bad_exec,
        empty_exec,
        long_command,
        out_fence,
        in_fence,
        syncobj_binary,
        syncobj_timeline,
        bad_syncobj,
        wait_busy,
        many_buffers,
        share_between_files,
        close_while_busy,
    ],
};

const HALF_SECOND: u64 = 500_000;

fn version(env: &Env) -> TestResult {
    let version = env.open()?.version()?;
    check_eq!(version.name, "virtio_gpu", "driver name");
    check_eq!((version.major, version.minor), (0, 1), "driver version");
    Ok(())
}

fn parameters(env: &Env) -> TestResult {
    use uapi::param::*;
    let device = env.open()?;
    for (name, param) in [
        ("3D_FEATURES", THREE_D_FEATURES),
        ("CAPSET_QUERY_FIX", CAPSET_QUERY_FIX),
        ("RESOURCE_BLOB", RESOURCE_BLOB),
        ("CONTEXT_INIT", CONTEXT_INIT),
        ("EXPLICIT_DEBUG_NAME", EXPLICIT_DEBUG_NAME),
    ] {
        check_eq!(device.getparam(param)?, 1, "{name}");
    }
    for (name, param) in [
        ("HOST_VISIBLE", HOST_VISIBLE),
        ("CROSS_DEVICE", CROSS_DEVICE),
    ] {
        check!(device.getparam(param)? <= 1, "{name} is 0 or 1");
    }
    let capsets = device.getparam(SUPPORTED_CAPSET_IDS)?;
    check!(
        capsets & (1 << wire::CAPSET_ID) != 0,
        "compute is among the capability sets {capsets:#x}"
    );
    if env.ours {
        let modes = device.getparam(USERPTR_MODES)?;
        let wanted = uapi::USERPTR_MODE_PINNED | uapi::USERPTR_MODE_FD;
        check_eq!(modes & wanted, wanted, "USERPTR_MODES");
        let models = device.getparam(USERPTR_MEMORY_MODELS)?;
        check_eq!(
            models & 0xf,
            uapi::memory_model::PERMANENT,
            "memory model of pinned memory"
        );
    } else {
        check_err!(
            device.getparam(USERPTR_MODES),
            Errno::INVAL,
            "USERPTR_MODES"
        );
    }
    Ok(())
}

fn bad_parameters(env: &Env) -> TestResult {
    let device = env.open()?;
    for param in [0, 10, 0xfff, 0x1002, u64::MAX] {
        check_err!(device.getparam(param), Errno::INVAL, "parameter {param:#x}");
    }
    for value in [0, 8, 1 << 63] {
        let mut getparam = uapi::GetParam {
            param: uapi::param::CAPSET_QUERY_FIX,
            value,
        };
        check_err!(
            raw::call(&device, uapi::nr::GETPARAM, &mut getparam),
            Errno::FAULT,
            "value at {value:#x}"
        );
    }
    Ok(())
}

fn capset(env: &Env) -> TestResult {
    let device = env.open()?;
    let capset = device.compute_caps()?;
    check_eq!(capset.version.get(), wire::CAPSET_VERSION, "version");
    check!(capset.max_rings.get() >= 4, "4 rings or more");
    for op in [wire::op::CRC32C, wire::op::SAXPY_F32, wire::op::GEMM_F32] {
        check!(capset.ops.get() & (1 << op) != 0, "operation {op} is there");
    }
    let mut short = [0; 4];
    device.caps(wire::CAPSET_ID, wire::CAPSET_VERSION, &mut short)?;
    check_eq!(
        u32::from_le_bytes(short),
        wire::CAPSET_VERSION,
        "4 bytes of it"
    );
    Ok(())
}

fn bad_capset(env: &Env) -> TestResult {
    let device = env.open()?;
    let mut buffer = [0; 64];
    for (id, version) in [(5, 1), (wire::CAPSET_ID, 1000), (64, 1), (u32::MAX, 1)] {
        check_err!(
            device.caps(id, version, &mut buffer),
            Errno::INVAL,
            "capability set {id} version {version}"
        );
    }
    check_err!(
        device.caps(wire::CAPSET_ID, wire::CAPSET_VERSION, &mut []),
        Errno::INVAL,
        "size 0"
    );
    let mut caps = uapi::GetCaps {
        cap_set_id: wire::CAPSET_ID,
        cap_set_ver: wire::CAPSET_VERSION,
        addr: 8,
        size: 24,
        pad: 0,
    };
    check_err!(
        raw::call(&device, uapi::nr::GET_CAPS, &mut caps),
        Errno::FAULT,
        "buffer at 8"
    );
    Ok(())
}

fn context_twice(env: &Env) -> TestResult {
    let device = env.compute()?;
    check_err!(
        device.context_init_compute(1),
        Errno::EXIST,
        "second CONTEXT_INIT"
    );
    // Another file has its own.
    env.compute()?;
    Ok(())
}

fn params(list: &[(u64, u64)]) -> Vec<uapi::ContextSetParam> {
    list.iter()
        .map(|&(param, value)| uapi::ContextSetParam { param, value })
        .collect()
}

fn init(device: &Device, list: &[(u64, u64)]) -> Result<(), Errno> {
    // SAFETY: The callers pass no DEBUG_NAME but one that is valid, or that the kernel must refuse.
    unsafe { device.context_init(&params(list)) }
}

fn bad_context(env: &Env) -> TestResult {
    use uapi::context_param::*;
    let id = u64::from(wire::CAPSET_ID);
    let mut bad: Vec<(&str, Vec<(u64, u64)>)> = vec![
        ("capability set 64", vec![(CAPSET_ID, 64)]),
        ("capability set 5", vec![(CAPSET_ID, 5)]),
        ("capability set 2^32", vec![(CAPSET_ID, 1 << 32)]),
        (
            "two capability sets",
            vec![(CAPSET_ID, id), (CAPSET_ID, id)],
        ),
        ("65 rings", vec![(CAPSET_ID, id), (NUM_RINGS, 65)]),
        ("rings twice", vec![(NUM_RINGS, 1), (NUM_RINGS, 1)]),
        (
            "poll a ring that is not there",
            vec![(CAPSET_ID, id), (NUM_RINGS, 1), (POLL_RINGS_MASK, 2)],
        ),
        ("parameter 0", vec![(0, 0)]),
        ("parameter 5", vec![(5, 0)]),
        ("five parameters", vec![(NUM_RINGS, 1); 5]),
    ];
    if env.ours {
        // Linux's driver warns about this one.
        bad.push(("no rings", vec![(CAPSET_ID, id), (NUM_RINGS, 0)]));
    }
    for (what, list) in &bad {
        let device = env.open()?;
        check_err!(init(&device, list), Errno::INVAL, "{what}");
    }
    let device = env.open()?;
    let mut wrong = uapi::ContextInit {
        num_params: 1,
        pad: 0,
        ctx_set_params: 8,
    };
    check_err!(
        raw::call(&device, uapi::nr::CONTEXT_INIT, &mut wrong),
        Errno::FAULT,
        "parameters at 8"
    );
    Ok(())
}

fn context_debug_name(env: &Env) -> TestResult {
    use uapi::context_param::*;
    let id = u64::from(wire::CAPSET_ID);
    let name = c"virtgpu-tests";
    let device = env.open()?;
    init(
        &device,
        &[(CAPSET_ID, id), (DEBUG_NAME, name.as_ptr() as u64)],
    )?;
    let device = env.open()?;
    check_err!(
        init(&device, &[(CAPSET_ID, id), (DEBUG_NAME, 8)]),
        Errno::FAULT,
        "name at 8"
    );
    Ok(())
}

fn failed_context_init_changes_nothing(env: &Env) -> TestResult {
    use uapi::context_param::*;
    if !env.ours {
        skip!("Linux's driver keeps the parameters before the wrong one");
    }
    let device = env.open()?;
    let id = u64::from(wire::CAPSET_ID);
    for _ in 0..2 {
        check_err!(
            init(&device, &[(CAPSET_ID, id), (NUM_RINGS, 2), (99, 0)]),
            Errno::INVAL,
            "unknown parameter"
        );
    }
    device.context_init_compute(1)?;
    let mut stream = compute::Stream::new();
    stream.delay(1);
    check_err!(
        Exec::new(stream.as_bytes()).ring(1).run(&device),
        Errno::INVAL,
        "second ring of a context with one"
    );
    Exec::new(stream.as_bytes()).ring(0).run(&device)?;
    Ok(())
}

fn before_context_init(env: &Env) -> TestResult {
    let device = env.open()?;
    device.getparam(uapi::param::RESOURCE_BLOB)?;
    device.compute_caps()?;
    let mut stream = compute::Stream::new();
    stream.delay(1);
    check_err!(
        Exec::new(stream.as_bytes()).ring(0).submit(&device),
        Errno::INVAL,
        "a ring without CONTEXT_INIT"
    );
    // Creating a blob makes a context, after which there cannot be another.
    let device = env.open()?;
    let blob = device.create_blob(&BlobOptions::guest(PAGE as u64))?;
    blob.map()?.write_u32(0, 1);
    check_err!(
        device.context_init_compute(1),
        Errno::EXIST,
        "CONTEXT_INIT after a blob"
    );
    Ok(())
}

/// Fills a blob by the CPU, lets the device compute on it, and looks at the result.
fn exercise(device: &Device, options: &BlobOptions<'_>) -> TestResult {
    let blob = device.create_blob(options)?;
    let map = blob.map()?;
    let length = options.size as usize;
    let data = Random(7).bytes(length);
    map.write(0, &data);
    let crc = job::crc(device, blob.at(0), options.size, blob.handle())?;
    check_eq!(crc, compute::crc32c(0, &data), "CRC32C by the device");
    let before = map.read_u32(length - 4);
    job::add(device, blob.at(0), options.size, 3, blob.handle())?;
    check_eq!(
        map.read_u32(length - 4),
        before.wrapping_add(3),
        "last word after ADD_U32"
    );
    let info = blob.info()?;
    check_eq!(info.bo_handle, blob.handle(), "handle in RESOURCE_INFO");
    check_eq!(
        info.res_handle,
        blob.resource(),
        "resource in RESOURCE_INFO"
    );
    check_eq!(info.size as u64, options.size, "size in RESOURCE_INFO");
    check_eq!(info.blob_mem, options.mem, "blob_mem in RESOURCE_INFO");
    check!(blob.resource() != 0 && blob.handle() != 0, "ids are not 0");
    // The mapping is a reference of its own.
    drop(blob);
    check_eq!(
        map.read_u32(length - 4),
        before.wrapping_add(3),
        "last word after the handle is closed"
    );
    Ok(())
}

fn blob_guest(env: &Env) -> TestResult {
    let device = env.compute()?;
    for size in [PAGE, 3 * PAGE, 1 << 20] {
        exercise(&device, &BlobOptions::guest(size as u64))?;
    }
    Ok(())
}

fn blob_host3d(env: &Env) -> TestResult {
    let device = env.compute()?;
    if device.getparam(uapi::param::HOST_VISIBLE)? == 0 {
        skip!("the device has no host-visible memory");
    }
    // Such memory is slow where it is emulated.
    for size in [PAGE, 4 * PAGE] {
        exercise(&device, &BlobOptions::host3d(size as u64, 1))?;
    }
    // The mapping is made at the first mmap.
    exercise(
        &device,
        &BlobOptions {
            hints: uapi::BLOB_HINT_DEFER_MAPPING,
            ..BlobOptions::host3d(PAGE as u64, 1)
        },
    )?;
    let hidden = device.create_blob(&BlobOptions {
        flags: 0,
        ..BlobOptions::host3d(PAGE as u64, 1)
    })?;
    check_err!(
        hidden.map().map(drop),
        Errno::INVAL,
        "mapping of a blob without MAPPABLE"
    );
    Ok(())
}

fn blob_host3d_guest(env: &Env) -> TestResult {
    let device = env.compute()?;
    exercise(&device, &BlobOptions::host3d_guest(1 << 20, 1))
}

fn blob_bad(env: &Env) -> TestResult {
    let device = env.compute()?;
    let good = BlobOptions::guest(PAGE as u64);
    let command = [0_u8; 8];
    for (what, options) in [
        ("blob_mem 0", BlobOptions { mem: 0, ..good }),
        ("blob_mem 4", BlobOptions { mem: 4, ..good }),
        (
            "flag 0x40",
            BlobOptions {
                flags: 0x40,
                ..good
            },
        ),
        (
            "flag 0x80000000",
            BlobOptions {
                flags: 1 << 31,
                ..good
            },
        ),
        (
            "blob_id of guest memory",
            BlobOptions { blob_id: 1, ..good },
        ),
        (
            "a command for guest memory",
            BlobOptions {
                command: &command,
                ..good
            },
        ),
        (
            "a command of 3 bytes",
            BlobOptions {
                command: &command[..3],
                ..BlobOptions::host3d(4096, 1)
            },
        ),
    ] {
        check_err!(
            device.create_blob(&options).map(drop),
            Errno::INVAL,
            "{what}"
        );
    }
    if env.ours {
        check_err!(
            device
                .create_blob(&BlobOptions { size: 0, ..good })
                .map(drop),
            Errno::INVAL,
            "size 0"
        );
        for size in [u64::MAX, u64::MAX - 4095, 1 << 63] {
            let result = device.create_blob(&BlobOptions { size, ..good }).map(drop);
            check!(
                matches!(
                    result,
                    Err(Errno::INVAL | Errno::NOMEM | Errno::NOSPC | Errno::TOOBIG)
                ),
                "size {size:#x} gives {result:?}"
            );
        }
    }
    Ok(())
}

fn blob_pages_are_zero(env: &Env) -> TestResult {
    let device = env.compute()?;
    for _ in 0..8 {
        let blob = device.create_blob(&BlobOptions::guest(1 << 20))?;
        let map = blob.map()?;
        check!(
            map.to_vec(0, 1 << 20).iter().all(|&byte| byte == 0),
            "a new blob is zero"
        );
        map.fill(0xaa);
    }
    Ok(())
}

/// What Linux's driver does not look at may hold anything: programs are built against headers that
/// are older or newer.
fn ignored_fields(env: &Env) -> TestResult {
    let ok = |what: &str, dirt: u32, result: Result<i32, Errno>| {
        check!(result == Ok(0), "{what} {dirt:#x}: {result:?}");
        Ok(())
    };
    for dirt in [1, 1 << 31, u32::MAX] {
        let device = env.open()?;
        let capset = (uapi::context_param::CAPSET_ID, u64::from(wire::CAPSET_ID));
        let list = params(&[capset]);
        let mut context = uapi::ContextInit {
            num_params: 1,
            pad: dirt,
            ctx_set_params: list.as_ptr() as u64,
        };
        let result = raw::call(&device, uapi::nr::CONTEXT_INIT, &mut context);
        ok("pad of CONTEXT_INIT", dirt, result)?;

        let mut bytes = [0_u8; 16];
        let mut caps = uapi::GetCaps {
            cap_set_id: wire::CAPSET_ID,
            cap_set_ver: wire::CAPSET_VERSION,
            addr: bytes.as_mut_ptr() as u64,
            size: bytes.len() as u32,
            pad: dirt,
        };
        let result = raw::call(&device, uapi::nr::GET_CAPS, &mut caps);
        ok("pad of GET_CAPS", dirt, result)?;

        // Without the hint that Linux knows, which is for memory of the host.
        let mut blob = uapi::ResourceCreateBlob {
            blob_mem: blob_mem::GUEST,
            blob_flags: 1,
            size: PAGE as u64,
            pad: dirt,
            blob_hints: dirt & !uapi::BLOB_HINT_DEFER_MAPPING,
            pad2: dirt,
            rocm: [u64::from(dirt); 2],
            ..Default::default()
        };
        let result = raw::call(&device, uapi::nr::RESOURCE_CREATE_BLOB, &mut blob);
        ok("padding and hints of RESOURCE_CREATE_BLOB", dirt, result)?;

        let mut map = uapi::Map {
            handle: blob.bo_handle,
            pad: dirt,
            ..Default::default()
        };
        let result = raw::call(&device, uapi::nr::MAP, &mut map);
        ok("pad of MAP", dirt, result)?;
        device.gem_close(blob.bo_handle)?;
    }

    let device = env.compute()?;
    let blob = device.create_blob(&BlobOptions::guest(PAGE as u64))?;
    let stream = delay(HALF_SECOND);
    Exec::new(stream.as_bytes())
        .ring(0)
        .buffers(&[blob.handle()])
        .submit(&device)?;
    let unknown = !uapi::WAIT_NOWAIT;
    check_err!(
        device.wait_with(blob.handle(), unknown | uapi::WAIT_NOWAIT),
        Errno::BUSY,
        "WAIT with NOWAIT and all unknown flags"
    );
    device.wait_with(blob.handle(), unknown)?;
    check!(!device.is_busy(blob.handle())?, "idle after WAIT");
    Ok(())
}

fn map_bad(env: &Env) -> TestResult {
    let device = env.compute()?;
    for handle in [0, 12345, u32::MAX] {
        check_err!(device.map_offset(handle), Errno::NOENT, "handle {handle}");
    }
    let blob = device.create_blob(&BlobOptions::guest(PAGE as u64))?;
    let offset = blob.map_offset()?;
    // The offset of one file's buffer is of no use in another.
    let other = env.open()?;
    let mapping = virtgpu_client::Mapping::file(
        &other,
        offset,
        PAGE,
        rustix::mm::ProtFlags::READ,
        rustix::mm::MapFlags::SHARED,
    );
    check_err!(
        mapping.map(drop),
        Errno::ACCESS,
        "mmap through another file"
    );
    // Nor is more of it than there is.
    let mapping = virtgpu_client::Mapping::file(
        &device,
        offset,
        2 * PAGE,
        rustix::mm::ProtFlags::READ,
        rustix::mm::MapFlags::SHARED,
    );
    check_err!(mapping.map(drop), Errno::INVAL, "mmap of twice the size");
    Ok(())
}

fn info_bad(env: &Env) -> TestResult {
    let device = env.compute()?;
    for handle in [0, 12345, u32::MAX] {
        check_err!(
            device.resource_info(handle),
            Errno::NOENT,
            "handle {handle}"
        );
        check_err!(
            device.wait(handle),
            Errno::NOENT,
            "WAIT for handle {handle}"
        );
    }
    Ok(())
}

fn rings(env: &Env) -> TestResult {
    let device = env.compute()?;
    let blob = device.create_blob(&BlobOptions::guest(PAGE as u64))?;
    let map = blob.map()?;
    // Ring 0 waits for what ring 1 does: they run side by side.
    let mut first = compute::Stream::new();
    first
        .spin_until(blob.at(0), 1, 10_000_000)
        .fill(blob.at(8), 8, 7);
    let waiting = Exec::new(first.as_bytes())
        .ring(0)
        .buffers(&[blob.handle()])
        .submit_with_fence(&device)?;
    let mut second = compute::Stream::new();
    second.fill(blob.at(0), 8, 1);
    Exec::new(second.as_bytes()).ring(1).run(&device)?;
    waiting.wait(Some(job::LIMIT))?;
    check_eq!(map.read_u64(8), 7, "what ring 0 wrote");
    for ring in [4, 63, 64, u32::MAX] {
        check_err!(
            Exec::new(second.as_bytes()).ring(ring).submit(&device),
            Errno::INVAL,
            "ring {ring} of 4"
        );
    }
    Ok(())
}

fn bad_exec(env: &Env) -> TestResult {
    let device = env.compute()?;
    let mut stream = compute::Stream::new();
    stream.delay(1);
    let good = uapi::ExecBuffer {
        size: stream.as_bytes().len() as u32,
        command: stream.as_bytes().as_ptr() as u64,
        fence_fd: -1,
        ..Default::default()
    };
    let exec = |change: &dyn Fn(&mut uapi::ExecBuffer)| {
        let mut exec = good;
        change(&mut exec);
        raw::call(&device, uapi::nr::EXECBUFFER, &mut exec)
    };
    check_eq!(exec(&|_| {})?, 0, "a good one");
    check_err!(exec(&|e| e.flags = 8), Errno::INVAL, "flag 8");
    check_err!(
        exec(&|e| e.flags = 1 << 31),
        Errno::INVAL,
        "flag 0x80000000"
    );
    check_err!(exec(&|e| e.command = 8), Errno::FAULT, "command at 8");
    check_err!(
        exec(&|e| {
            e.num_bo_handles = 1;
            e.bo_handles = 8;
        }),
        Errno::FAULT,
        "handles at 8"
    );
    for handle in [0_u32, 12345, u32::MAX] {
        check_err!(
            exec(&|e| {
                e.num_bo_handles = 1;
                e.bo_handles = (&raw const handle) as u64;
            }),
            Errno::NOENT,
            "buffer {handle}"
        );
    }
    check_err!(
        exec(&|e| {
            e.flags = uapi::EXECBUF_FENCE_FD_IN;
            e.fence_fd = -1;
        }),
        Errno::INVAL,
        "in-fence -1"
    );
    check_err!(
        exec(&|e| {
            e.flags = uapi::EXECBUF_FENCE_FD_IN;
            e.fence_fd = 0;
        }),
        Errno::INVAL,
        "an in-fence that is no sync_file"
    );
    if env.ours {
        // Linux's driver tries to allocate what it is told.
        for count in [u32::MAX, 1 << 30] {
            let result = exec(&|e| {
                e.num_bo_handles = count;
                e.bo_handles = (&raw const good) as u64;
            });
            check!(
                matches!(
                    result,
                    Err(Errno::INVAL | Errno::NOMEM | Errno::FAULT | Errno::TOOBIG)
                ),
                "{count} handles give {result:?}"
            );
            let result = exec(&|e| e.size = count);
            check!(
                matches!(
                    result,
                    Err(Errno::INVAL | Errno::NOMEM | Errno::FAULT | Errno::TOOBIG)
                ),
                "{count} bytes give {result:?}"
            );
        }
    }
    // What was garbage without the flags does not matter.
    let mut exec = uapi::ExecBuffer {
        flags: uapi::EXECBUF_FENCE_FD_OUT,
        fence_fd: 0x5a5a_5a5a,
        ring_idx: 99,
        ..good
    };
    raw::call(&device, uapi::nr::EXECBUFFER, &mut exec)?;
    check!(
        exec.fence_fd >= 0 && exec.fence_fd < 1000,
        "an out-fence came back"
    );
    Ok(())
}

fn empty_exec(env: &Env) -> TestResult {
    let device = env.compute()?;
    Exec::new(&[])
        .submit_with_fence(&device)?
        .wait(Some(job::LIMIT))?;
    Ok(())
}

fn long_command(env: &Env) -> TestResult {
    let device = env.compute()?;
    let max_ops = device.compute_caps()?.max_ops.get();
    let blob = device.create_blob(&BlobOptions::guest(PAGE as u64))?;
    let map = blob.map()?;
    let mut stream = compute::Stream::new();
    // A command of 80 KB, over many pages.
    let count = max_ops.min(1000);
    for _ in 0..count {
        stream.add_u32(blob.at(0), 4, 1);
    }
    job::run(&device, &stream, &[blob.handle()])?;
    check_eq!(map.read_u32(0), count, "each operation ran once");
    Ok(())
}

fn delay(microseconds: u64) -> compute::Stream {
    let mut stream = compute::Stream::new();
    stream.delay(microseconds);
    stream
}

fn out_fence(env: &Env) -> TestResult {
    let device = env.compute()?;
    let stream = delay(HALF_SECOND);
    let fence = Exec::new(stream.as_bytes())
        .ring(0)
        .submit_with_fence(&device)?;
    check_eq!(fence.status()?, SyncStatus::Active, "while the job runs");
    check_err!(fence.wait(Some(Duration::ZERO)), Errno::TIMEDOUT, "poll");
    fence.wait(Some(job::LIMIT))?;
    check_eq!(fence.status()?, SyncStatus::Signalled, "after the job");
    Ok(())
}

fn in_fence(env: &Env) -> TestResult {
    let device = env.compute()?;
    let blob = device.create_blob(&BlobOptions::guest(PAGE as u64))?;
    let map = blob.map()?;
    let mut first = compute::Stream::new();
    first.delay(HALF_SECOND / 2).fill(blob.at(0), 8, 1);
    let before = Exec::new(first.as_bytes())
        .ring(0)
        .submit_with_fence(&device)?;
    // On another ring, so that only the fence orders the two.
    let mut second = compute::Stream::new();
    second.copy(blob.at(8), blob.at(0), 8);
    Exec::new(second.as_bytes())
        .ring(1)
        .after(&before)
        .run(&device)?;
    check_eq!(
        map.read_u64(8),
        1,
        "the second job saw what the first wrote"
    );
    Ok(())
}

fn point(handle: u32, flags: u32, point: u64) -> uapi::ExecBufferSyncobj {
    uapi::ExecBufferSyncobj {
        handle,
        flags,
        point,
    }
}

fn syncobj_binary(env: &Env) -> TestResult {
    let device = env.compute()?;
    let blob = device.create_blob(&BlobOptions::guest(PAGE as u64))?;
    let map = blob.map()?;
    let syncobj = device.create_syncobj()?;
    let mut first = compute::Stream::new();
    first.delay(HALF_SECOND / 2).fill(blob.at(0), 8, 1);
    Exec::new(first.as_bytes())
        .ring(0)
        .signal_syncobjs(&[point(syncobj.handle(), 0, 0)])
        .submit(&device)?;
    check_err!(
        syncobj.wait(0, Duration::ZERO),
        Errno::TIME,
        "while the job runs"
    );
    let mut second = compute::Stream::new();
    second.copy(blob.at(8), blob.at(0), 8);
    Exec::new(second.as_bytes())
        .ring(1)
        .wait_syncobjs(&[point(syncobj.handle(), uapi::EXECBUF_SYNCOBJ_RESET, 0)])
        .run(&device)?;
    check_eq!(
        map.read_u64(8),
        1,
        "the second job saw what the first wrote"
    );
    check_err!(
        syncobj.export_sync_file().map(drop),
        Errno::INVAL,
        "a fence after RESET"
    );
    Ok(())
}

fn syncobj_timeline(env: &Env) -> TestResult {
    let device = env.compute()?;
    let blob = device.create_blob(&BlobOptions::guest(PAGE as u64))?;
    let map = blob.map()?;
    let syncobj = device.create_syncobj()?;
    for value in 1..=3 {
        let mut stream = compute::Stream::new();
        stream.delay(HALF_SECOND / 5).fill(blob.at(0), 8, value);
        Exec::new(stream.as_bytes())
            .ring(0)
            .signal_syncobjs(&[point(syncobj.handle(), 0, value)])
            .submit(&device)?;
    }
    syncobj.wait(2, job::LIMIT)?;
    check!(map.read_u64(0) >= 2, "the second job is done at point 2");
    let mut stream = compute::Stream::new();
    stream.copy(blob.at(8), blob.at(0), 8);
    Exec::new(stream.as_bytes())
        .ring(1)
        .wait_syncobjs(&[point(syncobj.handle(), 0, 3)])
        .run(&device)?;
    check_eq!(
        map.read_u64(8),
        3,
        "the job after point 3 saw the third job's write"
    );
    check_eq!(syncobj.query()?, 3, "the newest point");
    Ok(())
}

fn bad_syncobj(env: &Env) -> TestResult {
    let device = env.compute()?;
    let stream = delay(1);
    let syncobj = device.create_syncobj()?;
    let exec = Exec::new(stream.as_bytes());
    let unknown = [point(12345, 0, 0)];
    check_err!(
        exec.wait_syncobjs(&unknown).submit(&device),
        Errno::NOENT,
        "unknown in"
    );
    check_err!(
        exec.signal_syncobjs(&unknown).submit(&device),
        Errno::INVAL,
        "unknown out"
    );
    let flags = [point(syncobj.handle(), 2, 0)];
    check_err!(
        exec.wait_syncobjs(&flags).submit(&device),
        Errno::INVAL,
        "in flag 2"
    );
    let flags = [point(syncobj.handle(), uapi::EXECBUF_SYNCOBJ_RESET, 0)];
    check_err!(
        exec.signal_syncobjs(&flags).submit(&device),
        Errno::INVAL,
        "out flag RESET"
    );
    // There is no fence in it to wait for.
    let empty = [point(syncobj.handle(), 0, 0)];
    check_err!(
        exec.wait_syncobjs(&empty).submit(&device),
        Errno::INVAL,
        "no fence"
    );
    let mut wrong = uapi::ExecBuffer {
        size: stream.as_bytes().len() as u32,
        command: stream.as_bytes().as_ptr() as u64,
        syncobj_stride: 16,
        num_in_syncobjs: 1,
        in_syncobjs: 8,
        ..Default::default()
    };
    check_err!(
        raw::call(&device, uapi::nr::EXECBUFFER, &mut wrong),
        Errno::FAULT,
        "syncobjs at 8"
    );
    if env.ours {
        // A job that is refused takes no fence away.
        job_with_syncobj(&device, &syncobj)?;
        let taken = [
            point(syncobj.handle(), uapi::EXECBUF_SYNCOBJ_RESET, 0),
            point(12345, 0, 0),
        ];
        check_err!(
            exec.wait_syncobjs(&taken).submit(&device),
            Errno::NOENT,
            "one is unknown"
        );
        syncobj.export_sync_file()?;
    }
    Ok(())
}

fn job_with_syncobj(device: &Device, syncobj: &virtgpu_client::Syncobj<'_>) -> TestResult {
    let stream = delay(1);
    Exec::new(stream.as_bytes())
        .signal_syncobjs(&[point(syncobj.handle(), 0, 0)])
        .submit(device)?;
    syncobj.wait(0, job::LIMIT)?;
    Ok(())
}

fn wait_busy(env: &Env) -> TestResult {
    let device = env.compute()?;
    let blob = device.create_blob(&BlobOptions::guest(PAGE as u64))?;
    check!(!device.is_busy(blob.handle())?, "a new buffer is idle");
    let stream = delay(HALF_SECOND);
    Exec::new(stream.as_bytes())
        .ring(0)
        .buffers(&[blob.handle()])
        .submit(&device)?;
    check_err!(
        device.wait_with(blob.handle(), uapi::WAIT_NOWAIT),
        Errno::BUSY,
        "NOWAIT while the job runs"
    );
    device.wait(blob.handle())?;
    check!(!device.is_busy(blob.handle())?, "idle after WAIT");
    Ok(())
}

fn many_buffers(env: &Env) -> TestResult {
    let device = env.compute()?;
    let blobs = (0..64)
        .map(|_| device.create_blob(&BlobOptions::guest(PAGE as u64)))
        .collect::<Result<Vec<_>, _>>()?;
    let handles: Vec<_> = blobs.iter().map(virtgpu_client::Blob::handle).collect();
    let mut stream = compute::Stream::new();
    stream.delay(HALF_SECOND / 2);
    for blob in &blobs {
        stream.fill(blob.at(0), 8, u64::from(blob.handle()));
    }
    Exec::new(stream.as_bytes())
        .buffers(&handles)
        .submit(&device)?;
    for &handle in &handles {
        check!(device.is_busy(handle)?, "buffer {handle} is busy");
    }
    for blob in &blobs {
        device.wait(blob.handle())?;
        check_eq!(
            blob.map()?.read_u64(0),
            u64::from(blob.handle()),
            "its content"
        );
    }
    Ok(())
}

fn share_between_files(env: &Env) -> TestResult {
    let (first, second) = (env.compute()?, env.compute()?);
    let blob = first.create_blob(&BlobOptions {
        flags: 3,
        ..BlobOptions::guest(PAGE as u64)
    })?;
    blob.map()?.write_u32(0, 41);
    let dmabuf = first.prime_export(blob.handle())?;
    check_eq!(
        first.prime_import(&dmabuf)?,
        blob.handle(),
        "import in the same file"
    );
    let handle = second.prime_import(&dmabuf)?;
    let info = second.resource_info(handle)?;
    check_eq!(info.res_handle, blob.resource(), "the same resource");
    check_eq!(info.blob_mem, blob_mem::GUEST, "the same kind");
    let at = wire::Operand::resource(info.res_handle, 0);
    job::add(&second, at, 4, 1, handle)?;
    check_eq!(
        blob.map()?.read_u32(0),
        42,
        "what the second file's job wrote"
    );
    second.gem_close(handle)?;
    Ok(())
}

fn close_while_busy(env: &Env) -> TestResult {
    let device = env.compute()?;
    let blob = device.create_blob(&BlobOptions::guest(1 << 20))?;
    let map = blob.map()?;
    let mut stream = compute::Stream::new();
    stream
        .delay(HALF_SECOND / 2)
        .fill(blob.at(0), 1 << 20, 0x0101_0101_0101_0101);
    let fence = Exec::new(stream.as_bytes())
        .ring(0)
        .buffers(&[blob.handle()])
        .submit_with_fence(&device)?;
    drop(blob);
    fence.wait(Some(job::LIMIT))?;
    check_eq!(
        map.read_u32((1 << 20) - 4),
        0x0101_0101,
        "the job was not disturbed"
    );
    Ok(())
}
