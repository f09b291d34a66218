// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Jobs that only use memory that the program lends them.

use core::marker::PhantomData;
use std::sync::atomic::AtomicU64;

use super::{pointer, Input, Output};
use crate::compute::Stream;

/// A job of the compute context of the reference device, on memory of this process: operations that
/// run in order.
#[derive(Clone, Debug, Default)]
pub struct Job<'m> {
    stream: Stream,
    memory: PhantomData<&'m mut [u8]>,
}

/// All panic if the memory has not the length that they say.
impl<'m> Job<'m> {
    /// A job that does nothing.
    pub const fn new() -> Self {
        Self {
            stream: Stream::new(),
            memory: PhantomData,
        }
    }

    pub(super) fn stream(&self) -> &Stream {
        &self.stream
    }

    /// `to` = the bytes of `pattern`, repeated; a multiple of 8 bytes.
    pub fn fill(&mut self, to: Output<'m>, pattern: u64) -> &mut Self {
        multiple(to.length, 8);
        self.stream.fill(to.operand(), to.length, pattern);
        self
    }

    /// `to` = `from`, of the same length.
    pub fn copy(&mut self, to: Output<'m>, from: Input<'m>) -> &mut Self {
        exactly(from.length, to.length);
        self.stream.copy(to.operand(), from.operand(), to.length);
        self
    }

    /// `to` (4 bytes) = CRC32C of `from`.
    pub fn crc32c(&mut self, to: Output<'m>, from: Input<'m>) -> &mut Self {
        exactly(to.length, 4);
        self.stream
            .crc32c(to.operand(), from.operand(), from.length);
        self
    }

    /// Adds `value` to each u32 of `to`.
    pub fn add_u32(&mut self, to: Output<'m>, value: u32) -> &mut Self {
        multiple(to.length, 4);
        self.stream.add_u32(to.operand(), to.length, value);
        self
    }

    /// Each f32 of `to` += `a` * that of `from`, of the same length.
    pub fn saxpy(&mut self, to: Output<'m>, from: Input<'m>, a: f32) -> &mut Self {
        exactly(from.length, to.length);
        multiple(to.length, 4);
        self.stream
            .saxpy(to.operand(), from.operand(), to.length, a);
        self
    }

    /// `to` (m x n) = `a` (m x k) * `b` (k x n), row-major f32.
    pub fn gemm(
        &mut self,
        to: Output<'m>,
        [a, b]: [Input<'m>; 2],
        [m, n, k]: [u32; 3],
    ) -> &mut Self {
        let bytes = |rows, columns| u64::from(rows) * u64::from(columns) * 4;
        exactly(to.length, bytes(m, n));
        exactly(a.length, bytes(m, k));
        exactly(b.length, bytes(k, n));
        self.stream
            .gemm(to.operand(), [a.operand(), b.operand()], [m, n, k]);
        self
    }

    /// Adds `value` to `word`, `times` times, atomically: others may use it at the same time.
    pub fn atomic_add(&mut self, word: &'m AtomicU64, value: u64, times: u64) -> &mut Self {
        self.stream
            .atomic_add(Output::word(word).operand(), value, times);
        self
    }

    /// `word` = `value`: a user fence, which [`wait_value`](super::AddressSpace::wait_value) can
    /// wait for.
    pub fn store(&mut self, word: &'m AtomicU64, value: u64) -> &mut Self {
        self.fill(Output::word(word), value)
    }

    /// `to` (8 bytes) = sum of the bytes of `from` at multiples of `stride`.
    pub fn stride_read(&mut self, to: Output<'m>, from: Input<'m>, stride: u64) -> &mut Self {
        exactly(to.length, 8);
        self.stream
            .stride_read(to.operand(), from.operand(), from.length, stride);
        self
    }

    /// Follows a chain of pointers: reads the address of the next at `first`, and so on, `steps`
    /// times; `to` (8 bytes) = the last one read.
    ///
    /// A chain that leads out of the memory of the process costs the context, and nothing else: the
    /// device only reads.
    pub fn pointer_chase<T: ?Sized>(
        &mut self,
        to: Output<'m>,
        first: *const T,
        steps: u64,
    ) -> &mut Self {
        exactly(to.length, 8);
        self.stream
            .pointer_chase(to.operand(), pointer(first), steps);
        self
    }

    /// Waits until `word` equals `value`, for `microseconds` at most.
    pub fn spin_until(&mut self, word: &'m AtomicU64, value: u64, microseconds: u64) -> &mut Self {
        self.stream
            .spin_until(Output::word(word).operand(), value, microseconds);
        self
    }

    /// Waits for `microseconds`.
    pub fn delay(&mut self, microseconds: u64) -> &mut Self {
        self.stream.delay(microseconds);
        self
    }
}

fn multiple(length: u64, of: u64) {
    assert!(length % of == 0, "{length} bytes, not a multiple of {of}");
}

fn exactly(length: u64, expected: u64) {
    assert_eq!(length, expected, "bytes of memory");
}

#[cfg(test)]
mod tests {
    use virtgpu_protocol::compute::Operand;

    use super::*;

    fn bytes(job: &Job<'_>) -> Vec<u8> {
        job.stream.as_bytes().to_vec()
    }

    #[test]
    fn operands_are_pointers() {
        let mut words = [1_u64; 4];
        let address = words.as_ptr() as u64;
        let mut job = Job::new();
        job.fill(Output::from(&mut words[1..]).part(8, 16), 7);
        let mut expected = Stream::new();
        expected.fill(Operand::resource(0, address + 16), 16, 7);
        assert_eq!(bytes(&job), expected.as_bytes());
    }

    #[test]
    #[should_panic(expected = "bytes of memory")]
    fn lengths_agree() {
        let mut to = [0_u8; 8];
        Job::new().copy((&mut to).into(), (&[0_u8; 9]).into());
    }
}
