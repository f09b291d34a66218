// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Commands that the host responds to late, or in the wrong order, or not at all, and what hangs on
//! them: memory and ids.

use virtgpu_client::{compute, BlobOptions, Device, Errno, Exec, RegisterOptions};

use crate::isolation::{family, neglected, newcomer_works, short_limit, LIMIT};
use crate::ktap::{Family, TestResult};
use crate::sleep::sleeps;
use crate::support::memory::small_pages;
use crate::support::{eventually, procfs, Env, PAGE};
use crate::{cases, check, check_err};

/// The host creates resources of one client late, after it was asked to forget them.
pub(crate) const LATE: Family = family(
    "belated_creation",
    "--adversary late:6000 --adversary-on RESOURCE_CREATE_BLOB --adversary-on RESOURCE_MAP_BLOB --adversary-context silent",
    cases![released_in_the_end: 300],
);

/// The same, but it refuses to create them, late.
pub(crate) const LATE_REFUSED: Family = family(
    "belated_refusal",
    "--adversary late:6000 --adversary refuse --adversary-on RESOURCE_CREATE_BLOB --adversary-on RESOURCE_MAP_BLOB --adversary-context silent",
    cases![released_in_the_end: 300],
);

/// The host carries out, but does not respond to, what creates resources and gives them memory.
pub(crate) const SILENT_CREATION: Family = family(
    "belated_ids",
    "--adversary silence --adversary-on RESOURCE_CREATE_BLOB --adversary-on RESOURCE_ATTACH_BACKING",
    cases![ids_of_creations: 120],
);

/// The same with what shows them in the window.
pub(crate) const SILENT_MAPPING: Family = family(
    "belated_ids_mapped",
    "--adversary silence --adversary-on RESOURCE_MAP_BLOB",
    cases![ids_of_mapped: 120],
);

/// What was to be forgotten before the host has created it is released when the host has: nothing
/// is kept until the reset, nor does it keep the machine awake.
fn released_in_the_end(env: &Env) -> TestResult {
    short_limit(env)?;
    let device = neglected(env)?;
    let memory = small_pages(16 * PAGE)?;
    check_err!(
        device
            .register(&memory, RegisterOptions::pinned())
            .map(drop),
        Errno::BUSY,
        "REGISTER without a response in time"
    );
    check!(
        procfs::pinned_pages()? >= 16,
        "memory that the host may still create a resource of is not pinned"
    );
    // To be taken out of the window, too.
    drop(device.create_blob(&BlobOptions::host3d(4096, 1))?);
    drop(device.create_blob(&BlobOptions::guest(4096))?);
    drop(device);
    let mut pinned = Ok(-1);
    let none = eventually(LIMIT, || {
        pinned = procfs::pinned_pages();
        pinned == Ok(0)
    });
    check!(
        none,
        "{pinned:?} pages are pinned long after the host has responded"
    );
    newcomer_works(env)?;
    sleeps("mem")?;
    newcomer_works(env)
}

/// The job, and with it all that was sent before, has had its response.
fn round_trips(device: &Device) -> TestResult {
    let mut stream = compute::Stream::new();
    stream.delay(1);
    for _ in 0..10 {
        Exec::new(stream.as_bytes())
            .submit_with_fence(device)?
            .wait(Some(LIMIT))?;
    }
    Ok(())
}

/// An id is not given to another resource as long as the host has not responded to a command with
/// it.
fn not_used_again(
    what: &str,
    device: &Device,
    create: impl Fn() -> virtgpu_client::Result<u32>,
) -> TestResult {
    let old: Vec<u32> = (0..3).map(|_| create()).collect::<Result<_, _>>()?;
    round_trips(device)?;
    for _ in 0..6 {
        let new = create()?;
        check!(
            !old.contains(&new),
            "{what}: resource {new} is used again, the old ones were {old:?}"
        );
    }
    Ok(())
}

fn blob(device: &Device, options: &BlobOptions) -> virtgpu_client::Result<u32> {
    let blob = device.create_blob(options)?;
    Ok(device.resource_info(blob.handle())?.res_handle)
}

fn ids_of_creations(env: &Env) -> TestResult {
    let device = env.compute()?;
    not_used_again("a guest blob", &device, || {
        blob(&device, &BlobOptions::guest(4096))
    })?;
    let device = env.compute()?;
    not_used_again("a picture", &device, || {
        Ok(device.create_picture(4, 4)?.resource())
    })
}

fn ids_of_mapped(env: &Env) -> TestResult {
    let device = env.compute()?;
    not_used_again("a host blob", &device, || {
        blob(&device, &BlobOptions::host3d(4096, 1))
    })
}
