// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! What makes an operation well-formed, and which memory it touches.
//!
//! Both depend on the operation alone: not on what resources there are, nor on what is in memory.
//! The same ranges decide which resources a job holds, what the event log says that it touches, and
//! what is checked before it touches anything.

use virtgpu_protocol::compute::{op, Op, Operand, Stat, MAX_DELAY_US};

/// An operation that means nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed: {0}")]
pub struct Malformed(pub &'static str);

/// A range of memory that an operation touches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// The resource, 0 for the context's address space.
    pub resource: u32,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// Whether it is written.
    pub write: bool,
    /// Whether every byte is touched, unless the operation fails.
    pub whole: bool,
}

/// The dimensions of `GEMM_F32`: (m, n, k).
#[must_use]
pub(crate) fn dimensions(op: &Op) -> (u64, u64, u64) {
    let mn = op.imm[0].get();
    (mn & 0xffff_ffff, mn >> 32, op.imm[1].get() & 0xffff_ffff)
}

/// Bytes of a matrix of f32.
fn matrix(rows: u64, columns: u64) -> Option<u64> {
    rows.checked_mul(columns)?.checked_mul(4)
}

/// The memory that a well-formed operation touches. `POINTER_CHASE` touches more of its source, as
/// it goes.
pub fn accesses(op: &Op) -> impl Iterator<Item = Access> + use<> {
    let length = op.length.get();
    let (m, n, k) = dimensions(op);
    let matrix = |rows, columns| matrix(rows, columns).unwrap_or(u64::MAX);
    // Bytes of dst, src[0], src[1].
    let [dst, first, second] = match op.op.get() {
        op::FILL | op::ADD_U32 => [Some(length), None, None],
        op::COPY | op::SAXPY_F32 => [Some(length), Some(length), None],
        op::CRC32C => [Some(4), Some(length), None],
        op::GEMM_F32 => [Some(length), Some(matrix(m, k)), Some(matrix(k, n))],
        op::ATOMIC_ADD_U64 => [Some(8), None, None],
        op::STRIDE_READ => [Some(8), Some(length), None],
        op::POINTER_CHASE => [
            Some(8),
            Some(if op.imm[0].get() == 0 { 0 } else { 8 }),
            None,
        ],
        op::SPIN_UNTIL => [None, Some(8), None],
        op::STAT => [Some(length), None, None],
        _ => [None; 3],
    };
    let whole = match op.op.get() {
        op::GEMM_F32 => m > 0 && n > 0,
        op::ATOMIC_ADD_U64 => length > 0,
        op::STRIDE_READ => op.imm[0].get() == 1,
        op::STAT => length <= size_of::<Stat>() as u64,
        _ => true,
    };
    let access = |operand: &Operand, length: Option<u64>, write| {
        Some(Access {
            whole,
            resource: operand.resource_id.get(),
            offset: operand.offset.get(),
            length: length?,
            write,
        })
    };
    [
        access(&op.src[0], first, false),
        access(&op.src[1], second, false),
        access(&op.dst, dst, true),
    ]
    .into_iter()
    .flatten()
}

/// Checks whether `op` is well-formed.
///
/// # Errors
///
/// If it is not.
pub fn check(op: &Op) -> Result<(), Malformed> {
    let malformed = |what| Err(Malformed(what));
    let length = op.length.get();
    let imm = [op.imm[0].get(), op.imm[1].get()];
    if op.flags.get() != 0 {
        return malformed("flags");
    }
    if [&op.dst, &op.src[0], &op.src[1]]
        .iter()
        .any(|o| o.padding.get() != 0)
    {
        return malformed("padding");
    }
    match op.op.get() {
        op::FILL if length % 8 != 0 => malformed("length is no multiple of 8"),
        op::ADD_U32 | op::SAXPY_F32 if length % 4 != 0 => malformed("length is no multiple of 4"),
        op::ADD_U32 | op::SAXPY_F32 if imm[0] >> 32 != 0 => malformed("immediate value"),
        op::COPY if overlap(op) => malformed("source and destination overlap"),
        op::GEMM_F32 => {
            let (m, n, k) = dimensions(op);
            let sizes = (matrix(m, n), matrix(m, k), matrix(k, n));
            match sizes {
                (Some(c), Some(_), Some(_)) if c == length && imm[1] >> 32 == 0 => Ok(()),
                _ => malformed("dimensions"),
            }
        }
        op::ATOMIC_ADD_U64 if length % 8 != 0 => malformed("length is no multiple of 8"),
        op::ATOMIC_ADD_U64 if op.dst.offset.get() % 8 != 0 => malformed("unaligned atomic"),
        op::STRIDE_READ if imm[0] == 0 => malformed("stride is 0"),
        op::DELAY_US if imm[0] > MAX_DELAY_US => malformed("delay is too long"),
        op::SPIN_UNTIL if imm[1] > MAX_DELAY_US => malformed("time-out is too long"),
        op::FILL..op::END => Ok(()),
        _ => malformed("unknown operation"),
    }
}

/// Whether source and destination of `COPY` overlap.
fn overlap(op: &Op) -> bool {
    let (dst, src, length) = (&op.dst, &op.src[0], op.length.get());
    dst.resource_id == src.resource_id && dst.offset.get().abs_diff(src.offset.get()) < length
}
