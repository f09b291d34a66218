// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! The operations of a compute context: checking them and executing them.
//!
//! A job is an array of operations. `shape` says whether one is well-formed and which memory it
//! touches, before anything is executed; `exec` executes it, with its operands from `operand` and
//! matrix products from `gemm`. Nothing here locks anything: a worker executes a job while the
//! guest and other workers write the same memory, and while pages of a space come and go. An access
//! that is not possible is a [`Failure`], which costs the job its context; in the address space of
//! a context it may wait until it is possible ([`Addresses`]).

mod exec;
mod gemm;
mod operand;
mod shape;

use virtgpu_protocol::compute::{op, Capset, Op, Stat, CAPSET_VERSION};
use virtgpu_protocol::virtio_gpu::MAX_RINGS;
use zerocopy::little_endian::{U32, U64};
use zerocopy::FromBytes;

use crate::cancel::Cancel;

pub use exec::execute;
pub use operand::{Addresses, Memory, Stop};
pub use shape::{accesses, check, Access, Malformed};

/// Operations in one job.
pub const MAX_OPS: u32 = 4096;

/// The capability set of the compute context.
#[must_use]
pub fn capset() -> Capset {
    Capset {
        version: U32::new(CAPSET_VERSION),
        max_rings: U32::new(MAX_RINGS),
        max_ops: U32::new(MAX_OPS),
        padding: U32::ZERO,
        ops: U64::new((1 << op::END) - (1 << op::FILL)),
    }
}

/// The operations that `payload` holds, all of them well-formed.
///
/// # Errors
///
/// If it is not an array of operations, they are too many, or one is malformed.
pub fn parse(payload: &[u8]) -> Result<Vec<Op>, Malformed> {
    let ops = <[Op]>::ref_from_bytes(payload).map_err(|_| Malformed("not whole operations"))?;
    if ops.len() > MAX_OPS as usize {
        return Err(Malformed("too many operations"));
    }
    ops.iter().try_for_each(check)?;
    Ok(ops.to_vec())
}

/// Why a job ended early.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// It touched what it may not: the context is lost.
    #[error("operation {0}: access outside what the context may touch")]
    Fault(usize),
    /// An access to this address was not possible: the context is lost.
    #[error("operation {0}: no access to address {1:#x}")]
    Address(usize, u64),
    /// `SPIN_UNTIL` did not see the value in time.
    #[error("operation {0}: timed out")]
    TimedOut(usize),
    /// The context or the device was torn down.
    #[error("cancelled")]
    Cancelled,
}

impl Failure {
    /// The same of operation `index`.
    #[must_use]
    pub fn at(self, index: usize) -> Self {
        match self {
            Self::Fault(_) => Self::Fault(index),
            Self::Address(_, address) => Self::Address(index, address),
            Self::TimedOut(_) => Self::TimedOut(index),
            Self::Cancelled => Self::Cancelled,
        }
    }
}

/// What a job may use while it runs.
pub struct Environment<'a> {
    /// The memory of the attached resources that the job names, and as resource 0 the addresses of
    /// its context, if it has any.
    pub memory: &'a dyn Fn(u32) -> Option<Memory<'a>>,
    /// Ends the job early.
    pub cancel: &'a Cancel,
    /// The device's counts, and those of the space of a resource.
    pub stat: &'a dyn Fn(u32) -> Stat,
}
