// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! What the driver says of itself and of the host, and contexts.

use virtgpu_client::protocol::{compute as wire, uapi, virtio_gpu::MAX_RINGS};
use virtgpu_client::{compute, BlobOptions, Bytes, Device, Errno, Exec};

use crate::ktap::TestResult;
use crate::support::{raw, Env, PAGE};
use crate::{check, check_eq, check_err, skip};

pub(super) fn version(env: &Env) -> TestResult {
    let version = env.open()?.version()?;
    check_eq!(version.name, "virtio_gpu", "driver name");
    check_eq!((version.major, version.minor), (0, 1), "driver version");
    Ok(())
}

pub(super) fn parameters(env: &Env) -> TestResult {
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

pub(super) fn bad_parameters(env: &Env) -> TestResult {
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

pub(super) fn capset(env: &Env) -> TestResult {
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

pub(super) fn bad_capset(env: &Env) -> TestResult {
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

pub(super) fn context_twice(env: &Env) -> TestResult {
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

pub(super) fn params(list: &[(u64, u64)]) -> Vec<uapi::ContextSetParam> {
    list.iter()
        .map(|&(param, value)| uapi::ContextSetParam { param, value })
        .collect()
}

fn init(device: &Device, list: &[(u64, u64)]) -> Result<(), Errno> {
    // SAFETY: The callers pass no DEBUG_NAME but one that is valid, or that the kernel must refuse.
    unsafe { device.context_init(&params(list)) }
}

pub(super) fn bad_context(env: &Env) -> TestResult {
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
        (
            "a ring too many",
            vec![(CAPSET_ID, id), (NUM_RINGS, u64::from(MAX_RINGS) + 1)],
        ),
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

pub(super) fn context_debug_name(env: &Env) -> TestResult {
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

pub(super) fn failed_context_init_changes_nothing(env: &Env) -> TestResult {
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

pub(super) fn before_context_init(env: &Env) -> TestResult {
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
