// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Reading descriptor chains: what the driver wrote, and where the device may write.
//!
//! A [`RequestBuffer`] belongs to the thread that serves a queue. The driver can change the memory
//! of a chain at any time, so it is read once, into the buffer.

use std::ops::Deref;

use virtgpu_protocol::virtio_gpu::Header;
use virtio_queue::DescriptorChain;
use vm_memory::{Bytes, GuestAddress, GuestMemory};
use zerocopy::FromBytes;

use super::QUEUE_SIZE;
use crate::memory::ram::Memory;

/// The longest request: 16 million memory entries.
pub(crate) const MAX_REQUEST: usize = 256 << 20;

/// The longest response.
const LONGEST_RESPONSE: u64 = 64 << 10;

/// What was wrong with a descriptor chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ChainError {
    /// A descriptor is not in guest memory.
    #[error("a descriptor is not in guest memory")]
    Memory,
    /// The request is longer than the queue takes.
    #[error("the request is too long")]
    TooLong,
}

/// A buffer for requests, which keeps its memory.
#[derive(Debug, Default)]
pub(crate) struct RequestBuffer {
    bytes: Vec<u8>,
    filled: usize,
}

impl RequestBuffer {
    /// Memory kept between requests.
    const KEEP: usize = 32 << 20;

    /// Reads the device-readable part of `chain`, of at most `limit` bytes, and returns the
    /// device-writable buffers as far as a response can need them. After an error the buffer holds
    /// what was read before.
    pub(crate) fn read<M>(
        &mut self,
        chain: DescriptorChain<M>,
        limit: usize,
    ) -> (Vec<(u64, u32)>, Result<(), ChainError>)
    where
        M: Deref<Target = Memory> + Clone,
    {
        self.filled = 0;
        if self.bytes.len() > Self::KEEP {
            self.bytes = Vec::new();
        }
        let mut writable = Vec::new();
        let mut room = 0;
        let mut result = Ok(());
        let memory = chain.memory().clone();
        for descriptor in chain {
            if descriptor.is_write_only() {
                // No more than any response takes: they are kept until there is one.
                if room < LONGEST_RESPONSE && writable.len() < QUEUE_SIZE && descriptor.len() > 0 {
                    room += u64::from(descriptor.len());
                    writable.push((descriptor.addr().0, descriptor.len()));
                }
            } else if result.is_ok() {
                result = self.append(&memory, descriptor.addr(), descriptor.len() as usize, limit);
            }
        }
        (writable, result)
    }

    fn append<M>(
        &mut self,
        memory: &M,
        addr: GuestAddress,
        length: usize,
        limit: usize,
    ) -> Result<(), ChainError>
    where
        M: GuestMemory,
    {
        let end = self.filled + length;
        if end > limit {
            return Err(ChainError::TooLong);
        }
        if end > self.bytes.len() {
            // Double it, for chains of many small descriptors.
            self.bytes.resize(end.max(self.bytes.len() * 2), 0);
        }
        memory
            .read_slice(&mut self.bytes[self.filled..end], addr)
            .map_err(|_| ChainError::Memory)?;
        self.filled = end;
        Ok(())
    }

    /// The request.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.filled]
    }

    /// The request's header; zeroes where it is shorter.
    pub(crate) fn header(&self) -> Header {
        let mut bytes = [0; size_of::<Header>()];
        let length = bytes.len().min(self.filled);
        bytes[..length].copy_from_slice(&self.bytes[..length]);
        Header::read_from_bytes(&bytes).unwrap_or_default()
    }
}
