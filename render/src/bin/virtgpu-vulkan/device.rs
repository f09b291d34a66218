// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! The device, its memory, and jobs for its queue.

use ash::vk;
use virtgpu_render::Result;

/// Longer than anything here takes, in nanoseconds.
const LIMIT: u64 = 120_000_000_000;

/// The words of what Vulkan says.
pub(crate) fn words(error: vk::Result) -> String {
    error.to_string()
}

/// The first device, with a queue for everything. It lives until the process ends.
pub(crate) struct Device {
    pub(crate) vk: ash::Device,
    pub(crate) name: String,
    pub(crate) queue: vk::Queue,
    /// Exports fences as sync files, if the driver can do that.
    pub(crate) fence_fd: Option<ash::khr::external_fence_fd::Device>,
    memory: vk::PhysicalDeviceMemoryProperties,
    pool: vk::CommandPool,
    _entry: ash::Entry,
    _instance: ash::Instance,
}

impl Device {
    pub(crate) fn new() -> Result<Self> {
        // SAFETY: libvulkan of the tree; its initialisation has no requirements.
        let entry = unsafe { ash::Entry::load() }.map_err(|error| error.to_string())?;
        let application = vk::ApplicationInfo::default().api_version(vk::API_VERSION_1_3);
        let info = vk::InstanceCreateInfo::default().application_info(&application);
        // SAFETY: All that the structures point to lives during the call; so in all of this
        // function.
        let instance = unsafe { entry.create_instance(&info, None) }.map_err(words)?;
        // SAFETY: As above.
        let physical = unsafe { instance.enumerate_physical_devices() }.map_err(words)?;
        let &physical = physical.first().ok_or("there is no device")?;
        // SAFETY: A device of this instance.
        let (properties, memory, queues, extensions) = unsafe {
            (
                instance.get_physical_device_properties(physical),
                instance.get_physical_device_memory_properties(physical),
                instance.get_physical_device_queue_family_properties(physical),
                instance
                    .enumerate_device_extension_properties(physical)
                    .map_err(words)?,
            )
        };
        let name = properties.device_name_as_c_str();
        let name = name.unwrap_or_default().to_string_lossy().into_owned();
        let all = vk::QueueFlags::GRAPHICS | vk::QueueFlags::COMPUTE;
        let family = queues
            .iter()
            .position(|family| family.queue_flags.contains(all))
            .ok_or("no queue can draw and compute")? as u32;
        let priorities = [1.0];
        let queue = [vk::DeviceQueueCreateInfo::default()
            .queue_family_index(family)
            .queue_priorities(&priorities)];
        let fence_fd = extensions
            .iter()
            .any(|e| e.extension_name_as_c_str() == Ok(ash::khr::external_fence_fd::NAME));
        let enabled: Vec<_> = fence_fd
            .then_some(ash::khr::external_fence_fd::NAME.as_ptr())
            .into_iter()
            .collect();
        let mut v12 = vk::PhysicalDeviceVulkan12Features::default().timeline_semaphore(true);
        let mut v13 = vk::PhysicalDeviceVulkan13Features::default().dynamic_rendering(true);
        let info = vk::DeviceCreateInfo::default()
            .queue_create_infos(&queue)
            .enabled_extension_names(&enabled)
            .push_next(&mut v12)
            .push_next(&mut v13);
        // SAFETY: As above.
        let vk = unsafe { instance.create_device(physical, &info, None) }.map_err(words)?;
        let info = vk::CommandPoolCreateInfo::default().queue_family_index(family);
        // SAFETY: The queue was asked for.
        let (queue, pool) = unsafe {
            let pool = vk.create_command_pool(&info, None).map_err(words)?;
            (vk.get_device_queue(family, 0), pool)
        };
        Ok(Self {
            fence_fd: fence_fd.then(|| ash::khr::external_fence_fd::Device::new(&instance, &vk)),
            vk,
            name,
            queue,
            memory,
            pool,
            _entry: entry,
            _instance: instance,
        })
    }

    /// Memory that the CPU and the device both see, for something with these requirements.
    pub(crate) fn allocate(
        &self,
        needs: vk::MemoryRequirements,
        properties: vk::MemoryPropertyFlags,
    ) -> Result<vk::DeviceMemory> {
        let count = self.memory.memory_type_count as usize;
        let kind = self.memory.memory_types[..count]
            .iter()
            .enumerate()
            .position(|(index, kind)| {
                needs.memory_type_bits & (1 << index) != 0
                    && kind.property_flags.contains(properties)
            })
            .ok_or("no memory of the kind that is needed")?;
        let info = vk::MemoryAllocateInfo::default()
            .allocation_size(needs.size)
            .memory_type_index(kind as u32);
        // SAFETY: The structure is complete.
        unsafe { self.vk.allocate_memory(&info, None) }.map_err(words)
    }

    /// A buffer that the CPU sees, too.
    pub(crate) fn buffer(&self, count: usize) -> Result<Buffer<'_>> {
        let usage = vk::BufferUsageFlags::STORAGE_BUFFER
            | vk::BufferUsageFlags::TRANSFER_SRC
            | vk::BufferUsageFlags::TRANSFER_DST;
        let size = (count * 4) as u64;
        let info = vk::BufferCreateInfo::default().size(size).usage(usage);
        let properties =
            vk::MemoryPropertyFlags::HOST_VISIBLE | vk::MemoryPropertyFlags::HOST_COHERENT;
        // SAFETY: The buffer gets memory of its own, all of which is mapped.
        unsafe {
            let buffer = self.vk.create_buffer(&info, None).map_err(words)?;
            let memory =
                self.allocate(self.vk.get_buffer_memory_requirements(buffer), properties)?;
            self.vk
                .bind_buffer_memory(buffer, memory, 0)
                .map_err(words)?;
            let start = self
                .vk
                .map_memory(memory, 0, size, vk::MemoryMapFlags::empty())
                .map_err(words)?;
            Ok(Buffer {
                device: self,
                buffer,
                memory,
                start: start.cast(),
                count,
            })
        }
    }

    /// A command buffer with the commands that `record` writes.
    pub(crate) fn record(
        &self,
        record: impl FnOnce(vk::CommandBuffer),
    ) -> Result<vk::CommandBuffer> {
        let info = vk::CommandBufferAllocateInfo::default()
            .command_pool(self.pool)
            .command_buffer_count(1);
        // SAFETY: The pool is used by this thread only.
        unsafe {
            let commands = self.vk.allocate_command_buffers(&info).map_err(words)?[0];
            self.vk
                .begin_command_buffer(commands, &vk::CommandBufferBeginInfo::default())
                .map_err(words)?;
            record(commands);
            self.vk.end_command_buffer(commands).map_err(words)?;
            Ok(commands)
        }
    }

    /// Submits a command buffer, which signals the fence.
    pub(crate) fn submit(&self, commands: vk::CommandBuffer, fence: vk::Fence) -> Result<()> {
        let list = [commands];
        let job = vk::SubmitInfo::default().command_buffers(&list);
        // SAFETY: Whoever recorded it keeps what it names until it has ended.
        unsafe { self.vk.queue_submit(self.queue, &[job], fence) }.map_err(words)
    }

    /// A fence that is not signalled.
    pub(crate) fn fence(&self) -> Result<vk::Fence> {
        // SAFETY: There is nothing to be said about it.
        unsafe { self.vk.create_fence(&vk::FenceCreateInfo::default(), None) }.map_err(words)
    }

    /// Waits for a fence, and makes it unsignalled again.
    pub(crate) fn wait(&self, fence: vk::Fence) -> Result<()> {
        // SAFETY: A fence of this device.
        unsafe {
            self.vk
                .wait_for_fences(&[fence], true, LIMIT)
                .map_err(words)?;
            self.vk.reset_fences(&[fence]).map_err(words)
        }
    }

    /// Submits commands and waits for their end.
    pub(crate) fn run(&self, record: impl FnOnce(vk::CommandBuffer)) -> Result<()> {
        let (commands, fence) = (self.record(record)?, self.fence()?);
        self.submit(commands, fence)?;
        self.wait(fence)?;
        // SAFETY: No one uses them any more.
        unsafe {
            self.vk.free_command_buffers(self.pool, &[commands]);
            self.vk.destroy_fence(fence, None);
        }
        Ok(())
    }

    /// What `source`, in WGSL, is in SPIR-V.
    pub(crate) fn shader(&self, source: &str) -> Result<vk::ShaderModule> {
        let module = naga::front::wgsl::parse_str(source).map_err(|error| error.to_string())?;
        let mut validator = naga::valid::Validator::new(
            naga::valid::ValidationFlags::all(),
            naga::valid::Capabilities::all(),
        );
        let info = validator
            .validate(&module)
            .map_err(|error| error.to_string())?;
        let options = naga::back::spv::Options::default();
        let code = naga::back::spv::write_vec(&module, &info, &options, None)
            .map_err(|error| error.to_string())?;
        let info = vk::ShaderModuleCreateInfo::default().code(&code);
        // SAFETY: The code was validated.
        unsafe { self.vk.create_shader_module(&info, None) }.map_err(words)
    }
}

/// A buffer and its memory, mapped.
pub(crate) struct Buffer<'a> {
    device: &'a Device,
    pub(crate) buffer: vk::Buffer,
    memory: vk::DeviceMemory,
    start: *mut u32,
    pub(crate) count: usize,
}

impl Buffer<'_> {
    /// All words, when no job is running.
    pub(crate) fn read(&self) -> Vec<u32> {
        (0..self.count)
            // SAFETY: Within the mapping, which is made of words.
            .map(|index| unsafe { self.start.add(index).read_volatile() })
            .collect()
    }

    /// Replaces the first words.
    pub(crate) fn write(&self, data: &[u32]) {
        assert!(data.len() <= self.count);
        for (index, word) in data.iter().enumerate() {
            // SAFETY: Within the mapping, which is made of words.
            unsafe { self.start.add(index).write_volatile(*word) };
        }
    }
}

impl Drop for Buffer<'_> {
    fn drop(&mut self) {
        // SAFETY: No job is running, and the names are its own. Freeing unmaps.
        unsafe {
            self.device.vk.destroy_buffer(self.buffer, None);
            self.device.vk.free_memory(self.memory, None);
        }
    }
}
