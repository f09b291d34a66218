// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Jobs for the compute context of the reference device.

use virtgpu_protocol::compute::{op, Op, Operand, Stat};
use zerocopy::IntoBytes;

use crate::Bytes;

/// A job: operations that run in order.
///
/// ```
/// use virtgpu_client::{compute::Stream, protocol::compute::Operand};
///
/// let mut job = Stream::new();
/// job.fill(Operand::resource(7, 0), 4096, 0)
///     .add_u32(Operand::resource(7, 0), 4096, 1);
/// assert_eq!(job.as_bytes().len(), 2 * 80);
/// ```
#[derive(Clone, Debug, Default)]
pub struct Stream {
    ops: Vec<Op>,
}

impl Stream {
    /// A job that does nothing.
    pub const fn new() -> Self {
        Self { ops: Vec::new() }
    }

    /// The bytes to submit.
    pub fn as_bytes(&self) -> &[u8] {
        self.ops.as_bytes()
    }

    /// Adds an operation as it is.
    pub fn push(&mut self, op: Op) -> &mut Self {
        self.ops.push(op);
        self
    }

    fn add(
        &mut self,
        op: u32,
        dst: Operand,
        src: [Operand; 2],
        length: u64,
        imm: [u64; 2],
    ) -> &mut Self {
        self.push(Op {
            op: op.into(),
            flags: 0.into(),
            dst,
            src,
            length: length.into(),
            imm: imm.map(Into::into),
        })
    }

    /// `dst[..length]` = the bytes of `pattern`, repeated.
    pub fn fill(&mut self, dst: Operand, length: u64, pattern: u64) -> &mut Self {
        self.add(op::FILL, dst, NO_SOURCE, length, [pattern, 0])
    }

    /// `dst[..length]` = `src[..length]`.
    pub fn copy(&mut self, dst: Operand, src: Operand, length: u64) -> &mut Self {
        self.add(op::COPY, dst, [src, NONE], length, [0, 0])
    }

    /// `dst` (u32) = CRC32C of `src[..length]`.
    pub fn crc32c(&mut self, dst: Operand, src: Operand, length: u64) -> &mut Self {
        self.add(op::CRC32C, dst, [src, NONE], length, [0, 0])
    }

    /// Adds `value` to each u32 of `dst[..length]`.
    pub fn add_u32(&mut self, dst: Operand, length: u64, value: u32) -> &mut Self {
        self.add(op::ADD_U32, dst, NO_SOURCE, length, [value.into(), 0])
    }

    /// Each f32 of `dst[..length]` += `a` * that of `src`.
    pub fn saxpy(&mut self, dst: Operand, src: Operand, length: u64, a: f32) -> &mut Self {
        self.add(
            op::SAXPY_F32,
            dst,
            [src, NONE],
            length,
            [a.to_bits().into(), 0],
        )
    }

    /// `dst` (m x n) = `a` (m x k) * `b` (k x n), row-major f32.
    pub fn gemm(&mut self, dst: Operand, [a, b]: [Operand; 2], [m, n, k]: [u32; 3]) -> &mut Self {
        self.add(
            op::GEMM_F32,
            dst,
            [a, b],
            u64::from(m) * u64::from(n) * 4,
            [u64::from(m) | (u64::from(n) << 32), k.into()],
        )
    }

    /// Adds `value` to the u64 at `dst`, `times` times.
    pub fn atomic_add(&mut self, dst: Operand, value: u64, times: u64) -> &mut Self {
        self.add(op::ATOMIC_ADD_U64, dst, NO_SOURCE, times * 8, [value, 0])
    }

    /// `dst` (u64) = sum of the bytes of `src[..length]` at multiples of `stride`.
    pub fn stride_read(
        &mut self,
        dst: Operand,
        src: Operand,
        length: u64,
        stride: u64,
    ) -> &mut Self {
        self.add(op::STRIDE_READ, dst, [src, NONE], length, [stride, 0])
    }

    /// Follows a chain of u64 offsets from `src` on, `steps` times; `dst` = the last one.
    pub fn pointer_chase(&mut self, dst: Operand, src: Operand, steps: u64) -> &mut Self {
        self.add(op::POINTER_CHASE, dst, [src, NONE], 0, [steps, 0])
    }

    /// Waits for `microseconds`.
    pub fn delay(&mut self, microseconds: u64) -> &mut Self {
        self.add(op::DELAY_US, NONE, NO_SOURCE, 0, [microseconds, 0])
    }

    /// `dst` = a [`Stat`]: the device's own counts.
    pub fn stat(&mut self, dst: Operand) -> &mut Self {
        self.stat_of(dst, 0)
    }

    /// The same, with the space of `resource`, if it has one.
    pub fn stat_of(&mut self, dst: Operand, resource: u32) -> &mut Self {
        let asked = [Operand::resource(resource, 0), NONE];
        self.add(op::STAT, dst, asked, size_of::<Stat>() as u64, [0, 0])
    }

    /// Waits until the u64 at `src` equals `value`, for `microseconds` at most.
    pub fn spin_until(&mut self, src: Operand, value: u64, microseconds: u64) -> &mut Self {
        self.add(op::SPIN_UNTIL, NONE, [src, NONE], 0, [value, microseconds])
    }
}

const NONE: Operand = Operand::resource(0, 0);
const NO_SOURCE: [Operand; 2] = [NONE, NONE];

/// What [`Stream::stat`] has written at `offset`, once the job is done.
///
/// # Panics
///
/// If that is not inside.
pub fn read_stat(memory: &impl Bytes, offset: usize) -> Stat {
    let mut stat = Stat::default();
    memory.read(offset, stat.as_mut_bytes());
    stat
}

/// CRC32C of `bytes`, as the device computes it, on the CPU.
///
/// ```
/// assert_eq!(virtgpu_client::compute::crc32c(0, b"123456789"), 0xe306_9283);
/// ```
pub fn crc32c(crc: u32, bytes: &[u8]) -> u32 {
    let mut crc = !crc;
    let mut chunks = bytes.chunks_exact(8);
    for chunk in &mut chunks {
        let low = crc ^ u32::from_le_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]);
        crc = TABLES[7][(low & 0xff) as usize]
            ^ TABLES[6][((low >> 8) & 0xff) as usize]
            ^ TABLES[5][((low >> 16) & 0xff) as usize]
            ^ TABLES[4][(low >> 24) as usize]
            ^ TABLES[3][chunk[4] as usize]
            ^ TABLES[2][chunk[5] as usize]
            ^ TABLES[1][chunk[6] as usize]
            ^ TABLES[0][chunk[7] as usize];
    }
    for byte in chunks.remainder() {
        crc = TABLES[0][((crc ^ u32::from(*byte)) & 0xff) as usize] ^ (crc >> 8);
    }
    !crc
}

/// Slicing by 8: `TABLES[n][b]` is the CRC of byte `b` followed by `n` zero bytes.
static TABLES: [[u32; 256]; 8] = tables();

const fn tables() -> [[u32; 256]; 8] {
    let mut tables = [[0; 256]; 8];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = (crc >> 1) ^ (if crc & 1 == 1 { 0x82f6_3b78 } else { 0 });
            bit += 1;
        }
        tables[0][byte] = crc;
        byte += 1;
    }
    let mut slice = 1;
    while slice < 8 {
        let mut byte = 0;
        while byte < 256 {
            let before = tables[slice - 1][byte];
            tables[slice][byte] = tables[0][(before & 0xff) as usize] ^ (before >> 8);
            byte += 1;
        }
        slice += 1;
    }
    tables
}
