// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! The few commands of Vulkan that are needed to get responses and a queue, as venus has them on
//! the wire: numbers are little-endian and packed, a pointer is a u64 that is 0 or 1 and what it
//! points to, an array is its length as a u64 and its elements.
//!
//! The names of commands and structures are those of Vulkan and of its extension
//! `VK_MESA_venus_protocol`.

/// Commands.
mod command {
    pub(super) const CREATE_INSTANCE: u32 = 0;
    pub(super) const ENUMERATE_PHYSICAL_DEVICES: u32 = 2;
    pub(super) const CREATE_DEVICE: u32 = 11;
    pub(super) const ENUMERATE_INSTANCE_VERSION: u32 = 137;
    pub(super) const GET_DEVICE_QUEUE2: u32 = 155;
    pub(super) const SET_REPLY_COMMAND_STREAM: u32 = 178;
}

/// `VkStructureType`.
mod structure {
    pub(super) const APPLICATION_INFO: u32 = 0;
    pub(super) const INSTANCE_CREATE_INFO: u32 = 1;
    pub(super) const DEVICE_QUEUE_CREATE_INFO: u32 = 2;
    pub(super) const DEVICE_CREATE_INFO: u32 = 3;
    pub(super) const DEVICE_QUEUE_INFO_2: u32 = 1_000_145_003;
    pub(super) const DEVICE_QUEUE_TIMELINE_INFO: u32 = 1_000_384_005;
}

/// There is a response to the command.
const GENERATE_REPLY: u32 = 1;
/// `VK_API_VERSION_1_1`, which has `vkGetDeviceQueue2`.
const API_VERSION: u32 = (1 << 22) | (1 << 12);
const NULL: u64 = 0;
const PRESENT: u64 = 1;

/// Names of objects, which the guest chooses.
mod object {
    pub(super) const INSTANCE: u64 = 1;
    pub(super) const PHYSICAL_DEVICE: u64 = 2;
    pub(super) const DEVICE: u64 = 3;
    pub(super) const QUEUE: u64 = 4;
}

/// Commands in a row.
#[derive(Default)]
pub(super) struct Stream(Vec<u8>);

impl Stream {
    /// Where in the response to [`Stream::version`] the version is: behind the command, the result
    /// and a pointer.
    pub(super) const VERSION_AT: usize = 4 + 4 + 8;
    /// With what the response to [`Stream::bind_queue`] starts, if all of it went well.
    pub(super) const LAST_OF_BIND_QUEUE: u32 = command::GET_DEVICE_QUEUE2;

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    fn u32(&mut self, value: u32) -> &mut Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn u64(&mut self, value: u64) -> &mut Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn command(&mut self, number: u32, flags: u32) -> &mut Self {
        self.u32(number).u32(flags)
    }

    /// A count and an array that has no elements.
    fn empty(&mut self) -> &mut Self {
        self.u32(0).u64(NULL)
    }

    /// Responses go to the first `size` bytes of a resource.
    pub(super) fn reply_to(&mut self, resource: u32, size: u64) {
        let offset = 0;
        self.command(command::SET_REPLY_COMMAND_STREAM, 0)
            .u64(PRESENT)
            .u32(resource)
            .u64(offset)
            .u64(size);
    }

    /// Asks for the version and wants no response.
    pub(super) fn nothing(&mut self) {
        self.command(command::ENUMERATE_INSTANCE_VERSION, 0)
            .u64(PRESENT);
    }

    /// Asks for the version.
    pub(super) fn version(&mut self) {
        self.command(command::ENUMERATE_INSTANCE_VERSION, GENERATE_REPLY)
            .u64(PRESENT);
    }

    /// Makes a queue of the first device, for fences of ring `ring`. The last command has a
    /// response.
    pub(super) fn bind_queue(&mut self, ring: u32) {
        let (flags, version, count, family, index) = (0, 0, 1, 0, 0);
        self.command(command::CREATE_INSTANCE, 0)
            .u64(PRESENT)
            .u32(structure::INSTANCE_CREATE_INFO)
            .u64(NULL)
            .u32(flags)
            .u64(PRESENT)
            .u32(structure::APPLICATION_INFO)
            .u64(NULL)
            .u64(NULL) // name of the application
            .u32(version)
            .u64(NULL) // name of the engine
            .u32(version)
            .u32(API_VERSION)
            .empty() // layers
            .empty() // extensions
            .u64(NULL) // allocator
            .u64(PRESENT)
            .u64(object::INSTANCE);
        self.command(command::ENUMERATE_PHYSICAL_DEVICES, 0)
            .u64(object::INSTANCE)
            .u64(PRESENT)
            .u32(count)
            .u64(count.into())
            .u64(object::PHYSICAL_DEVICE);
        self.command(command::CREATE_DEVICE, 0)
            .u64(object::PHYSICAL_DEVICE)
            .u64(PRESENT)
            .u32(structure::DEVICE_CREATE_INFO)
            .u64(NULL)
            .u32(flags)
            .u32(count)
            .u64(count.into())
            .u32(structure::DEVICE_QUEUE_CREATE_INFO)
            .u64(NULL)
            .u32(flags)
            .u32(family)
            .u32(count)
            .u64(count.into())
            .u32(1_f32.to_bits()) // priority
            .empty() // layers
            .empty() // extensions
            .u64(NULL) // features
            .u64(NULL) // allocator
            .u64(PRESENT)
            .u64(object::DEVICE);
        self.command(command::GET_DEVICE_QUEUE2, GENERATE_REPLY)
            .u64(object::DEVICE)
            .u64(PRESENT)
            .u32(structure::DEVICE_QUEUE_INFO_2)
            .u64(PRESENT)
            .u32(structure::DEVICE_QUEUE_TIMELINE_INFO)
            .u64(NULL)
            .u32(ring)
            .u32(flags)
            .u32(family)
            .u32(index)
            .u64(PRESENT)
            .u64(object::QUEUE);
    }
}
