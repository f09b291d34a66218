// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! What USERPTR_PREFETCH takes and refuses, however memory is registered.

use virtgpu_client::protocol::uapi;
use virtgpu_client::{Device, Errno, Registration};

use crate::ktap::TestResult;
use crate::support::{raw, P};
use crate::{check_eq, check_err};

/// Tries it on a registration of ten pages.
pub(crate) fn arguments<M>(device: &Device, userptr: &Registration<'_, M>) -> TestResult {
    for (offset, length) in [(0, 10 * P), (0, P), (3 * P, 7 * P), (9 * P, P)] {
        check_eq!(
            userptr.prefetch(offset, length)?,
            length,
            "bytes done of {length} at {offset}"
        );
    }
    for (offset, length) in [
        (0, 11 * P),
        (10 * P, P),
        (1, P),
        (0, 100),
        (!4095, P),
        (P, !4095),
    ] {
        check_err!(
            userptr.prefetch(offset, length),
            Errno::INVAL,
            "{length:#x} bytes at {offset:#x}"
        );
    }
    let wrong = |bo_handle, flags| {
        let mut wrong = uapi::UserptrPrefetch {
            bo_handle,
            flags,
            length: P,
            ..Default::default()
        };
        raw::call(device, uapi::nr::USERPTR_PREFETCH, &mut wrong)
    };
    check_err!(wrong(userptr.handle(), 1), Errno::INVAL, "flags 1");
    check_err!(wrong(12345, 0), Errno::NOENT, "unknown handle");
    let blob = device.create_blob(&virtgpu_client::BlobOptions::guest(P))?;
    check_err!(wrong(blob.handle(), 0), Errno::INVAL, "a blob");
    Ok(())
}
