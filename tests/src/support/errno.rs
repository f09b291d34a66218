// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Names of error numbers.

use virtgpu_client::Errno;

/// The symbolic name.
pub(crate) fn name(error: Errno) -> String {
    let known = [
        (Errno::PERM, "EPERM"),
        (Errno::NOENT, "ENOENT"),
        (Errno::INTR, "EINTR"),
        (Errno::IO, "EIO"),
        (Errno::TOOBIG, "E2BIG"),
        (Errno::BADF, "EBADF"),
        (Errno::AGAIN, "EAGAIN"),
        (Errno::NOMEM, "ENOMEM"),
        (Errno::ACCESS, "EACCES"),
        (Errno::FAULT, "EFAULT"),
        (Errno::BUSY, "EBUSY"),
        (Errno::EXIST, "EEXIST"),
        (Errno::NODEV, "ENODEV"),
        (Errno::INVAL, "EINVAL"),
        (Errno::NOTTY, "ENOTTY"),
        (Errno::NOSPC, "ENOSPC"),
        (Errno::NOSYS, "ENOSYS"),
        (Errno::TIME, "ETIME"),
        (Errno::ALREADY, "EALREADY"),
        (Errno::OPNOTSUPP, "EOPNOTSUPP"),
        (Errno::TIMEDOUT, "ETIMEDOUT"),
        (Errno::CANCELED, "ECANCELED"),
    ];
    match known.iter().find(|(number, _)| *number == error) {
        Some((_, name)) => (*name).to_string(),
        None => format!("errno {}", error.raw_os_error()),
    }
}

/// A result, in words.
pub(crate) fn describe<T>(result: &Result<T, Errno>) -> String {
    match result {
        Ok(_) => "success".to_string(),
        Err(error) => name(*error),
    }
}
