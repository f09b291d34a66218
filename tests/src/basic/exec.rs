// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! EXECBUFFER, and the buffers that jobs list.

use virtgpu_client::protocol::virtio_gpu::blob_mem;
use virtgpu_client::protocol::{compute as wire, uapi};
use virtgpu_client::{compute, BlobOptions, Bytes, Errno, Exec};

use super::{delay, HALF_SECOND};
use crate::ktap::TestResult;
use crate::support::{job, raw, Env, PAGE};
use crate::{check, check_eq, check_err};

pub(super) fn rings(env: &Env) -> TestResult {
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

pub(super) fn bad_exec(env: &Env) -> TestResult {
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

pub(super) fn empty_exec(env: &Env) -> TestResult {
    let device = env.compute()?;
    Exec::new(&[])
        .submit_with_fence(&device)?
        .wait(Some(job::LIMIT))?;
    Ok(())
}

pub(super) fn long_command(env: &Env) -> TestResult {
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

pub(super) fn wait_busy(env: &Env) -> TestResult {
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

pub(super) fn many_buffers(env: &Env) -> TestResult {
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

pub(super) fn share_between_files(env: &Env) -> TestResult {
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

pub(super) fn close_while_busy(env: &Env) -> TestResult {
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
