// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! How often each ioctl has succeeded, and failed with what, in all rounds.

use std::fmt::Write;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use virtgpu_client::protocol::uapi::nr;
use virtgpu_client::Errno;

use crate::call::number_of;
use crate::support::errno;
use crate::sys;

/// Errnos are smaller; 0 stands for success.
const ERRNOS: usize = 134;

struct Count {
    by_errno: [AtomicU64; ERRNOS],
}

impl Count {
    fn sum(&self) -> u64 {
        let counters = self.by_errno.iter();
        counters
            .map(|counter| counter.load(Ordering::Relaxed))
            .sum()
    }
}

static COUNTS: AtomicPtr<[Count; 256]> = AtomicPtr::new(std::ptr::null_mut());

/// The ioctls of the driver.
pub(crate) const KNOWN: &[(u32, &str)] = &[
    (nr::MAP, "MAP"),
    (nr::EXECBUFFER, "EXECBUFFER"),
    (nr::GETPARAM, "GETPARAM"),
    (nr::RESOURCE_CREATE, "RESOURCE_CREATE"),
    (nr::RESOURCE_INFO, "RESOURCE_INFO"),
    (nr::TRANSFER_FROM_HOST, "TRANSFER_FROM_HOST"),
    (nr::TRANSFER_TO_HOST, "TRANSFER_TO_HOST"),
    (nr::WAIT, "WAIT"),
    (nr::GET_CAPS, "GET_CAPS"),
    (nr::RESOURCE_CREATE_BLOB, "RESOURCE_CREATE_BLOB"),
    (nr::CONTEXT_INIT, "CONTEXT_INIT"),
    (nr::USERPTR_REGISTER, "USERPTR_REGISTER"),
    (nr::BO_QUERY, "BO_QUERY"),
    (nr::USERPTR_PREFETCH, "USERPTR_PREFETCH"),
    (nr::SVM_ENABLE, "SVM_ENABLE"),
    (nr::SVM_PREFETCH, "SVM_PREFETCH"),
    (nr::SVM_WAIT, "SVM_WAIT"),
    (nr::SVM_QUERY, "SVM_QUERY"),
];

/// Makes the memory that processes share; once, before they are forked.
pub(crate) fn start() -> Result<(), i32> {
    let address = sys::share(size_of::<[Count; 256]>())?;
    COUNTS.store(address as *mut [Count; 256], Ordering::Release);
    Ok(())
}

fn counts() -> Option<&'static [Count; 256]> {
    let counts = COUNTS.load(Ordering::Acquire);
    // SAFETY: Null, or memory that is never unmapped and that starts as zeros, which are valid for
    // atomics.
    unsafe { counts.as_ref() }
}

/// Counts a call that has ended.
pub(crate) fn ended<T>(nr: u32, result: &Result<T, i32>) {
    let errno = result.as_ref().err().copied().unwrap_or(0);
    let count = counts().and_then(|counts| counts.get(nr as usize));
    if let Some(counter) = count.and_then(|count| count.by_errno.get(errno as usize)) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

fn of(nr: u32) -> Option<&'static Count> {
    counts()?.get(number_of(nr) as usize)
}

/// How many calls of an ioctl of the driver have succeeded.
pub(crate) fn succeeded(nr: u32) -> u64 {
    of(nr).map_or(0, |count| count.by_errno[0].load(Ordering::Relaxed))
}

/// How its calls have ended, in words.
pub(crate) fn describe(nr: u32) -> String {
    let Some(count) = of(nr) else {
        return String::new();
    };
    let mut text = format!("{} calls, {} succeeded", count.sum(), succeeded(nr));
    for (number, counter) in count.by_errno.iter().enumerate().skip(1) {
        let times = counter.load(Ordering::Relaxed);
        if times > 0 {
            let name = errno::name(Errno::from_raw_os_error(number as i32));
            let _ = write!(text, ", {times} {name}");
        }
    }
    text
}

/// How many calls there were at all.
pub(crate) fn all() -> u64 {
    counts().into_iter().flatten().map(Count::sum).sum()
}
