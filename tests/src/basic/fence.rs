// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Fences: sync_files and syncobjs.

use std::time::Duration;

use virtgpu_client::protocol::uapi;
use virtgpu_client::{compute, BlobOptions, Bytes, Device, Errno, Exec, SyncStatus};

use super::{delay, HALF_SECOND};
use crate::ktap::TestResult;
use crate::support::{job, raw, Env, PAGE};
use crate::{check, check_eq, check_err};

pub(super) fn out_fence(env: &Env) -> TestResult {
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

pub(super) fn in_fence(env: &Env) -> TestResult {
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

pub(super) fn syncobj_binary(env: &Env) -> TestResult {
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

pub(super) fn syncobj_timeline(env: &Env) -> TestResult {
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

pub(super) fn bad_syncobj(env: &Env) -> TestResult {
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
