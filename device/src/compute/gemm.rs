// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Matrix multiplication.
//!
//! Blocks of the matrices are copied into private memory. The blocks of k are walked in ascending
//! order for each block of the result, so each element is summed in the order that the protocol
//! prescribes.

use super::operand::{Place, Stop};

/// Rows of a block of the first matrix and of the result.
const ROWS: u64 = 64;
/// Columns of a block of the second matrix and of the result.
const COLUMNS: u64 = 256;
/// Columns of a block of the first matrix, rows of one of the second.
const DEPTH: u64 = 256;

/// `c` (m x n) = `a` (m x k) * `b` (k x n).
pub(super) fn gemm(
    m: u64,
    n: u64,
    k: u64,
    a: &Place<'_>,
    b: &Place<'_>,
    c: &Place<'_>,
    cancelled: &dyn Fn() -> bool,
) -> Result<(), Stop> {
    let kernel = kernel();
    let mut block_a = Block::new(ROWS, DEPTH);
    let mut block_b = Block::new(DEPTH, COLUMNS);
    let mut block_c = Block::new(ROWS, COLUMNS);
    for row in (0..m).step_by(ROWS as usize) {
        for column in (0..n).step_by(COLUMNS as usize) {
            block_c.resize((m - row).min(ROWS), (n - column).min(COLUMNS));
            block_c.values.fill(0.0);
            // Without depth there is no other look.
            if cancelled() {
                return Err(Stop::Cancelled);
            }
            for depth in (0..k).step_by(DEPTH as usize) {
                if cancelled() {
                    return Err(Stop::Cancelled);
                }
                let deep = (k - depth).min(DEPTH);
                block_a.resize(block_c.rows, deep);
                block_a.load(a, k, row, depth)?;
                block_b.resize(deep, block_c.columns);
                block_b.load(b, n, depth, column)?;
                kernel(&block_a, &block_b, &mut block_c);
            }
            block_c.store(c, n, row, column)?;
        }
    }
    Ok(())
}

/// A block of a matrix, row by row.
///
/// # Invariants
///
/// `values` has `rows * columns` elements, `bytes` room for as many.
struct Block {
    rows: u64,
    columns: u64,
    values: Vec<f32>,
    bytes: Vec<u8>,
}

impl Block {
    /// An empty block with room for the given size.
    fn new(rows: u64, columns: u64) -> Self {
        let count = (rows * columns) as usize;
        Self {
            rows: 0,
            columns: 0,
            values: Vec::with_capacity(count),
            bytes: vec![0; columns as usize * 4],
        }
    }

    fn resize(&mut self, rows: u64, columns: u64) {
        self.rows = rows;
        self.columns = columns;
        self.values.resize((rows * columns) as usize, 0.0);
    }

    /// Byte offset of a row of the block in a matrix of `width` columns.
    fn offset(width: u64, row: u64, column: u64) -> Result<u64, Stop> {
        let element = row.checked_mul(width).and_then(|e| e.checked_add(column));
        element.and_then(|e| e.checked_mul(4)).ok_or(Stop::Fault)
    }

    /// Reads the block at (`row`, `column`) of a matrix of `width` columns.
    fn load(&mut self, from: &Place<'_>, width: u64, row: u64, column: u64) -> Result<(), Stop> {
        let columns = self.columns as usize;
        for (index, values) in self.values.chunks_exact_mut(columns).enumerate() {
            let bytes = &mut self.bytes[..columns * 4];
            from.read(Self::offset(width, row + index as u64, column)?, bytes)?;
            for (value, bytes) in values.iter_mut().zip(bytes.chunks_exact(4)) {
                *value = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            }
        }
        Ok(())
    }

    /// Writes the block to (`row`, `column`) of a matrix of `width` columns.
    fn store(&mut self, to: &Place<'_>, width: u64, row: u64, column: u64) -> Result<(), Stop> {
        let columns = self.columns as usize;
        for (index, values) in self.values.chunks_exact(columns).enumerate() {
            let bytes = &mut self.bytes[..columns * 4];
            for (value, bytes) in values.iter().zip(bytes.chunks_exact_mut(4)) {
                bytes.copy_from_slice(&value.to_le_bytes());
            }
            to.write(Self::offset(width, row + index as u64, column)?, bytes)?;
        }
        Ok(())
    }
}

/// The fastest [`multiply`] of this CPU.
fn kernel() -> fn(&Block, &Block, &mut Block) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        return |a, b, c| {
            // SAFETY: The CPU has AVX2.
            unsafe { multiply_avx2(a, b, c) }
        };
    }
    multiply
}

/// [`multiply`] in wider registers.
///
/// # Safety
///
/// The CPU must have AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn multiply_avx2(a: &Block, b: &Block, c: &mut Block) {
    multiply(a, b, c);
}

/// `c += a * b`. Each element's products are added in ascending order, each rounded before.
#[inline(always)]
fn multiply(a: &Block, b: &Block, c: &mut Block) {
    let (deep, columns) = (a.columns as usize, b.columns as usize);
    let rows = a.values.chunks_exact(deep);
    for (factors, sums) in rows.zip(c.values.chunks_exact_mut(columns)) {
        for (factor, row) in factors.iter().zip(b.values.chunks_exact(columns)) {
            for (sum, value) in sums.iter_mut().zip(row) {
                *sum += factor * value;
            }
        }
    }
}
