// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! OpenGL and compute jobs on memory of this process, on one device at the same time.
//!
//! For the reference device with a renderer: Mesa draws in a context of its own, and the client
//! library submits jobs to another.

use std::alloc::{alloc_zeroed, dealloc, handle_alloc_error, Layout};
use std::ptr::NonNull;
use std::time::Duration;

use rustix::mm::{madvise, Advice};
use virtgpu_client::{compute, Bytes, Device, Exec, Memory, RegisterOptions, Registration};
use virtgpu_render::{from_bytes, pattern, same, same_picture, Case, Done, Result};

use crate::cases::{paint, show, Painter};
use crate::context::{Context, SIZE};

pub(crate) const CASES: &[Case<Context>] = &[
    ("pinned", |context| take_turns(context, Mode::Pinned)),
    ("mirrored", |context| take_turns(context, Mode::Mirrored)),
];

/// How the memory is registered.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Pinned,
    Mirrored,
}

/// How often each has its turn.
const TURNS: u32 = 12;
/// Bytes of a picture.
const BYTES: usize = (SIZE * SIZE * 4) as usize;
/// What a device uses begins and ends with a page.
const PAGE: usize = 4096;
/// Where the job finds what it waits for, and puts the checksum: in a page of their own, behind the
/// picture.
const GO: usize = BYTES;
const CHECKSUM: usize = BYTES + 8;
/// The most a job waits, in microseconds: a hang is an error.
const WAIT: u64 = 10_000_000;
/// The most that anyone waits for a job.
const LIMIT: Duration = Duration::from_secs(60);

/// Memory of the allocator's.
struct Heap {
    start: NonNull<u8>,
    layout: Layout,
}

impl Heap {
    fn new(length: usize) -> Result<Self> {
        let layout = Layout::from_size_align(length, PAGE).map_err(|error| error.to_string())?;
        assert!(length > 0);
        // SAFETY: It is not empty.
        let start = unsafe { alloc_zeroed(layout) };
        let Some(start) = NonNull::new(start) else {
            handle_alloc_error(layout)
        };
        Ok(Self { start, layout })
    }

    /// Gives the pages of the picture back: they are zero, and others, when they are used next.
    fn discard(&self) -> Result<()> {
        // SAFETY: The pages are this value's own, and no one has a reference to them.
        unsafe { madvise(self.start.as_ptr().cast(), BYTES, Advice::LinuxDontNeed) }
            .map_err(|error| error.to_string())
    }
}

impl Drop for Heap {
    fn drop(&mut self) {
        // SAFETY: It was allocated like that.
        unsafe { dealloc(self.start.as_ptr(), self.layout) };
    }
}

// SAFETY: The allocation belongs to this value until it is dropped, and there are no references to
// its bytes.
unsafe impl Memory for Heap {
    fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }
    fn len(&self) -> usize {
        self.layout.size()
    }
}

/// Errors of the client library, with what was done.
fn said<T>(what: &str, result: virtgpu_client::Result<T>) -> Result<T> {
    result.map_err(|error| format!("{what}: {error}"))
}

/// A job that waits for this process to write `turn`, adds `value` to every word of the picture,
/// and sums it up.
fn job(memory: &Registration<'_, &Heap>, turn: u32, value: u32) -> compute::Stream {
    let mut job = compute::Stream::new();
    job.spin_until(memory.at(GO as u64), u64::from(turn) + 1, WAIT)
        .add_u32(memory.at(0), BYTES as u64, value)
        .crc32c(memory.at(CHECKSUM as u64), memory.at(0), BYTES as u64);
    job
}

fn take_turns(context: &Context, mode: Mode) -> Result {
    let device = said("open", Device::open())?;
    said("context", device.context_init_compute(1))?;
    let heap = Heap::new(BYTES + PAGE)?;
    let options = match mode {
        Mode::Pinned => RegisterOptions::pinned(),
        Mode::Mirrored => RegisterOptions::mirrored(),
    };
    let memory = said("register", device.register(&heap, options))?;
    let target = context.target()?;
    let painter = Painter::new(context)?;
    for turn in 0..TURNS {
        let value = 0x0103_0507 * (turn + 1);
        if mode == Mode::Mirrored {
            heap.discard()?;
        }
        // OpenGL draws, and its picture becomes the job's input.
        paint(&painter, turn);
        heap.write(0, &target.pixels()?);
        let job = job(&memory, turn, value);
        let done = Exec::new(job.as_bytes())
            .ring(0)
            .buffers(&[memory.handle()])
            .submit_with_fence(&device);
        let done = said("submit", done)?;

        // OpenGL goes on while the job waits.
        let other = turn + 100;
        paint(&painter, other);
        same_picture(&target.pixels()?, SIZE as usize, |x, y| {
            pattern(x + other, y)
        })
        .map_err(|error| format!("turn {turn}, during the job: {error}"))?;
        let busy = said("busy", device.is_busy(memory.handle()))?;
        heap.write_u64(GO, u64::from(turn) + 1);
        said("job", done.wait(Some(LIMIT)))?;
        if !busy {
            return Err(format!("turn {turn}: the job did not wait"));
        }

        let found = heap.to_vec(0, BYTES);
        let expected = |index: usize| {
            let (x, y) = (index as u32 % SIZE, index as u32 / SIZE);
            u32::from_ne_bytes(pattern(x + turn, y)).wrapping_add(value)
        };
        same(&from_bytes(&found), expected)
            .map_err(|error| format!("turn {turn}, after the job: {error}"))?;
        let sum = compute::crc32c(0, &found);
        if heap.read_u32(CHECKSUM) != sum {
            let wrong = heap.read_u32(CHECKSUM);
            return Err(format!(
                "turn {turn}: the checksum is {wrong:#x}, not {sum:#x}"
            ));
        }
        // The job's output is what OpenGL shows next.
        show(context, &found)?;
        same(&from_bytes(&target.pixels()?), expected)
            .map_err(|error| format!("turn {turn}, as a texture: {error}"))?;
    }
    said("close", memory.close())?;
    Ok(Done::Passed)
}
