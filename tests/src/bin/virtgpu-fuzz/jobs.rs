// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Jobs for the reference device's compute context.

use virtgpu_client::compute::Stream;
use virtgpu_client::protocol::compute::Operand;

use crate::pick::{self, chance, one_of};
use crate::support::Random;
use crate::world::Buffer;

/// Most bytes that an operation goes over.
const LONGEST: u64 = 1 << 18;

/// Somewhere in one of the buffers, and how many bytes follow there.
fn place(random: &mut Random, buffers: &[Buffer]) -> (Operand, u64) {
    let Some(buffer) = one_of(random, buffers) else {
        return (Operand::resource(0, 0), 0);
    };
    let offset = random.below((buffer.size / 8).max(1)) * 8;
    let length = (buffer.size - offset.min(buffer.size)).min(LONGEST) & !7;
    (Operand::resource(buffer.resource, offset), length)
}

/// The bytes of a job. A job that fails takes its context with it, so most are right.
pub(crate) fn job(random: &mut Random, buffers: &[Buffer]) -> Vec<u8> {
    let mut buffers = buffers.to_vec();
    // Of what was imported, the host's name is not known.
    buffers.retain(|buffer| buffer.resource != 0);
    let mut stream = Stream::new();
    for _ in 0..random.below(4) {
        let (to, room) = place(random, &buffers);
        let (from, there) = place(random, &buffers);
        let length = room.min(there) & !7;
        match random.below(8) {
            0 | 1 if room >= 8 => stream.add_u32(to, room, 1),
            2 if room >= 8 => stream.fill(to, room, random.next()),
            3 if room >= 8 => stream.atomic_add(to, 1, 1 + random.below(8)),
            4 if room >= 8 && there >= 8 => stream.crc32c(to, from, there),
            5 if room >= 8 && there >= 8 => stream.stride_read(to, from, there, 64),
            // Not where the two overlap.
            6 if to.resource_id != from.resource_id => stream.copy(to, from, length),
            _ => stream.delay(match random.below(64) {
                0 => 300_000,
                _ => random.below(3000),
            }),
        };
    }
    let mut bytes = stream.as_bytes().to_vec();
    if chance(random, 1, 24) {
        // Not the immediate values: a long delay is nothing new.
        let end = bytes.len().min(64);
        pick::mutate(random, &mut bytes[..end]);
    }
    bytes
}
