// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Execution of operations on the memory of resources.
//!
//! Memory that the guest can write is worked on in blocks, which are read into private memory once,
//! so that no value is looked at twice.

use std::time::{Duration, Instant};

use virtgpu_protocol::compute::{op, Op};
use zerocopy::IntoBytes;

use super::operand::{Place, Stop};
use super::{accesses, gemm, shape, Environment, Failure};

/// Bytes worked on at a time: a part of a first-level cache.
const BLOCK: usize = 16 << 10;
/// Steps of cheap operations between looks at the cancel flag.
const STEPS: u64 = 4096;
/// How long `SPIN_UNTIL` polls without sleeping.
const SPIN: Duration = Duration::from_micros(100);
/// How often it looks afterwards.
const POLL: Duration = Duration::from_micros(50);

/// Executes well-formed operations in order, up to the first that fails.
///
/// # Errors
///
/// If one fails. What the operations before it did stays done.
pub fn execute(ops: &[Op], environment: &Environment<'_>) -> Result<(), Failure> {
    for (index, op) in ops.iter().enumerate() {
        if environment.cancel.is_set() {
            return Err(Failure::Cancelled);
        }
        one(op, environment).map_err(|stop| match stop {
            Stop::Fault => Failure::Fault(index),
            Stop::Address(address) => Failure::Address(index, address),
            Stop::TimedOut => Failure::TimedOut(index),
            Stop::Cancelled => Failure::Cancelled,
        })?;
    }
    Ok(())
}

fn one(op: &Op, environment: &Environment<'_>) -> Result<(), Stop> {
    // Nothing is touched unless everything that will be may be.
    for access in accesses(op) {
        let memory = (environment.memory)(access.resource).ok_or(Stop::Fault)?;
        memory.check(access.offset, access.length)?;
    }
    let place = |operand| Place::new(operand, environment);
    let cancelled = || environment.cancel.is_set();
    let length = op.length.get();
    let imm = [op.imm[0].get(), op.imm[1].get()];
    match op.op.get() {
        op::FILL => fill(&place(&op.dst)?, length, imm[0], &cancelled),
        op::COPY => {
            let (dst, src) = (place(&op.dst)?, place(&op.src[0])?);
            blocks(length, &cancelled, |offset, block| {
                src.read(offset, block)?;
                dst.write(offset, block)
            })
        }
        op::CRC32C => {
            let (dst, src) = (place(&op.dst)?, place(&op.src[0])?);
            let mut crc = 0;
            blocks(length, &cancelled, |offset, block| {
                src.read(offset, block)?;
                crc = crc32c::crc32c_append(crc, block);
                Ok(())
            })?;
            dst.write(0, &crc.to_le_bytes())
        }
        op::ADD_U32 => {
            let dst = place(&op.dst)?;
            blocks(length, &cancelled, |offset, block| {
                dst.read(offset, block)?;
                add_u32(block, imm[0] as u32);
                dst.write(offset, block)
            })
        }
        op::SAXPY_F32 => {
            let (dst, src) = (place(&op.dst)?, place(&op.src[0])?);
            let a = f32::from_bits(imm[0] as u32);
            let mut x = vec![0; BLOCK];
            blocks(length, &cancelled, |offset, block| {
                let x = &mut x[..block.len()];
                src.read(offset, x)?;
                dst.read(offset, block)?;
                saxpy(a, x, block);
                dst.write(offset, block)
            })
        }
        op::GEMM_F32 => {
            let (m, n, k) = shape::dimensions(op);
            let (dst, a, b) = (place(&op.dst)?, place(&op.src[0])?, place(&op.src[1])?);
            gemm::gemm(m, n, k, &a, &b, &dst, &cancelled)
        }
        op::ATOMIC_ADD_U64 => {
            let dst = place(&op.dst)?;
            for step in 0..length / 8 {
                if step % STEPS == 0 && cancelled() {
                    return Err(Stop::Cancelled);
                }
                dst.add(imm[0])?;
            }
            Ok(())
        }
        op::STRIDE_READ => {
            let (dst, src) = (place(&op.dst)?, place(&op.src[0])?);
            let (mut sum, mut offset, mut step) = (0u64, 0u64, 0u64);
            while offset < length {
                if step % STEPS == 0 && cancelled() {
                    return Err(Stop::Cancelled);
                }
                let mut byte = [0];
                src.read(offset, &mut byte)?;
                sum = sum.wrapping_add(u64::from(byte[0]));
                offset = offset.saturating_add(imm[0]);
                step += 1;
            }
            dst.write(0, &sum.to_le_bytes())
        }
        op::POINTER_CHASE => {
            let (dst, src) = (place(&op.dst)?, place(&op.src[0])?);
            let mut offset = src.offset;
            for step in 0..imm[0] {
                if step % STEPS == 0 && cancelled() {
                    return Err(Stop::Cancelled);
                }
                offset = src.read_u64(offset)?;
            }
            dst.write(0, &offset.to_le_bytes())
        }
        op::DELAY_US => {
            if environment.cancel.sleep(Duration::from_micros(imm[0])) {
                return Err(Stop::Cancelled);
            }
            Ok(())
        }
        op::SPIN_UNTIL => spin_until(
            &place(&op.src[0])?,
            imm[0],
            Duration::from_micros(imm[1]),
            environment,
        ),
        op::STAT => {
            let stat = (environment.stat)(op.src[0].resource_id.get());
            let bytes = stat.as_bytes();
            let length = bytes.len().min(length.try_into().unwrap_or(usize::MAX));
            place(&op.dst)?.write(0, &bytes[..length])
        }
        // Refused by `check`.
        _ => Err(Stop::Fault),
    }
}

/// Calls `f` with the offset of, and a buffer for, each block of `length` bytes.
fn blocks(
    length: u64,
    cancelled: &dyn Fn() -> bool,
    mut f: impl FnMut(u64, &mut [u8]) -> Result<(), Stop>,
) -> Result<(), Stop> {
    let mut buffer = vec![0; length.min(BLOCK as u64) as usize];
    let mut offset = 0;
    while offset < length {
        if cancelled() {
            return Err(Stop::Cancelled);
        }
        let take = (length - offset).min(BLOCK as u64);
        f(offset, &mut buffer[..take as usize])?;
        offset += take;
    }
    Ok(())
}

fn fill(
    dst: &Place<'_>,
    length: u64,
    value: u64,
    cancelled: &dyn Fn() -> bool,
) -> Result<(), Stop> {
    let pattern = value.to_le_bytes().repeat(BLOCK / 8);
    blocks(length, cancelled, |offset, block| {
        dst.write(offset, &pattern[..block.len()])
    })
}

fn add_u32(block: &mut [u8], value: u32) {
    for word in block.chunks_exact_mut(4) {
        let old = u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
        word.copy_from_slice(&old.wrapping_add(value).to_le_bytes());
    }
}

/// `y = a * x + y`, multiplied and added with two roundings.
fn saxpy(a: f32, x: &[u8], y: &mut [u8]) {
    for (x, y) in x.chunks_exact(4).zip(y.chunks_exact_mut(4)) {
        let product = a * f32::from_le_bytes([x[0], x[1], x[2], x[3]]);
        let sum = product + f32::from_le_bytes([y[0], y[1], y[2], y[3]]);
        y.copy_from_slice(&sum.to_le_bytes());
    }
}

fn spin_until(
    src: &Place<'_>,
    value: u64,
    limit: Duration,
    environment: &Environment<'_>,
) -> Result<(), Stop> {
    let start = Instant::now();
    loop {
        if src.read_u64(src.offset)? == value {
            return Ok(());
        }
        let elapsed = start.elapsed();
        if elapsed >= limit {
            return Err(Stop::TimedOut);
        }
        if elapsed < SPIN {
            if environment.cancel.is_set() {
                return Err(Stop::Cancelled);
            }
            std::hint::spin_loop();
        } else if environment.cancel.sleep(POLL.min(limit - elapsed)) {
            return Err(Stop::Cancelled);
        }
    }
}
