// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! The last actions of each thread, where the parent process finds them when a round has hung or
//! died.

use std::cell::Cell;
use std::fmt::Write;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicUsize, Ordering};

use crate::sys;

/// Actions kept of each thread.
const DEPTH: usize = 4;
/// Bytes of an action's text.
const TEXT: usize = 480;
/// Threads whose actions are kept.
const THREADS: usize = 64;

struct Record {
    length: AtomicUsize,
    text: [AtomicU8; TEXT],
}

struct Ring {
    next: AtomicUsize,
    records: [Record; DEPTH],
}

static RINGS: AtomicPtr<[Ring; THREADS]> = AtomicPtr::new(std::ptr::null_mut());
static PRINT: AtomicBool = AtomicBool::new(false);

thread_local! {
    static THREAD: Cell<usize> = const { Cell::new(0) };
}

/// Makes the memory that processes share; once, before they are forked.
pub(crate) fn start(print: bool) -> Result<(), i32> {
    PRINT.store(print, Ordering::Relaxed);
    let address = sys::share(size_of::<[Ring; THREADS]>())?;
    RINGS.store(address as *mut [Ring; THREADS], Ordering::Release);
    Ok(())
}

fn rings() -> Option<&'static [Ring; THREADS]> {
    let rings = RINGS.load(Ordering::Acquire);
    // SAFETY: Null, or memory that is never unmapped and that starts as zeros, which are valid for
    // atomics.
    unsafe { rings.as_ref() }
}

/// Forgets all, before a round.
pub(crate) fn clear() {
    for ring in rings().into_iter().flatten() {
        ring.next.store(0, Ordering::Relaxed);
        for record in &ring.records {
            record.length.store(0, Ordering::Relaxed);
        }
    }
}

/// Says which thread this is.
pub(crate) fn this_is(thread: usize) {
    THREAD.set(thread % THREADS);
}

/// Notes what is about to be done.
pub(crate) fn note(text: impl FnOnce() -> String) {
    let text = text();
    if PRINT.load(Ordering::Relaxed) {
        println!("    # {}: {text}", THREAD.get());
    }
    let Some(ring) = rings().map(|rings| &rings[THREAD.get()]) else {
        return;
    };
    let record = &ring.records[ring.next.fetch_add(1, Ordering::Relaxed) % DEPTH];
    write(record, 0, &text);
}

/// Notes how it has ended.
pub(crate) fn ended<T: std::fmt::Debug>(result: &Result<T, i32>) {
    let Some(ring) = rings().map(|rings| &rings[THREAD.get()]) else {
        return;
    };
    let last = ring.next.load(Ordering::Relaxed).wrapping_sub(1);
    let record = &ring.records[last % DEPTH];
    let mut text = String::new();
    let _ = write!(text, " = {result:?}");
    write(record, record.length.load(Ordering::Relaxed), &text);
}

fn write(record: &Record, from: usize, text: &str) {
    let room = record.text.iter().skip(from);
    let mut length = from;
    for (place, byte) in room.zip(text.bytes()) {
        place.store(byte, Ordering::Relaxed);
        length += 1;
    }
    record.length.store(length, Ordering::Relaxed);
}

/// The last actions of all threads, the newest last.
pub(crate) fn last() -> String {
    let mut text = String::new();
    for (thread, ring) in rings().into_iter().flatten().enumerate() {
        let next = ring.next.load(Ordering::Relaxed);
        for index in next.saturating_sub(DEPTH)..next {
            let record = &ring.records[index % DEPTH];
            let length = record.length.load(Ordering::Relaxed).min(TEXT);
            let bytes: Vec<u8> = record.text[..length]
                .iter()
                .map(|byte| byte.load(Ordering::Relaxed))
                .collect();
            let _ = writeln!(text, "{thread}: {}", String::from_utf8_lossy(&bytes));
        }
    }
    text
}
