// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! The cases.

use std::os::fd::{FromRawFd, OwnedFd};
use std::time::Instant;

use ash::vk;
use rustix::event::{poll, PollFd, PollFlags, Timespec};
use virtgpu_render::{bytes, pattern, same, same_picture, step, words, Case, Done, Result};

use crate::device::{self, Buffer, Device};
use crate::picture::{Picture, SIZE};

pub(crate) const CASES: &[Case<Device>] = &[
    ("device", device),
    ("memory", memory),
    ("much_memory", much_memory),
    ("fill", fill),
    ("copy", copy),
    ("compute", compute),
    ("picture", picture),
    ("frames", frames),
    ("jobs", jobs),
    ("timeline", timeline),
    ("fence_file", fence_file),
];

fn device(device: &Device) -> Result {
    if device.name.starts_with("Virtio-GPU Venus") {
        Ok(Done::Passed)
    } else {
        Err(format!("it is {}", device.name))
    }
}

/// What is written to memory is there.
fn memory(device: &Device) -> Result {
    let data = words(1, 4 << 20);
    let buffer = device.buffer(data.len())?;
    buffer.write(&data);
    same(&buffer.read(), |index| data[index])?;
    Ok(Done::Passed)
}

/// Memory is allocated, mapped and freed in another order than it was allocated, more of it all in
/// all than the device has room for at a time.
fn much_memory(device: &Device) -> Result {
    const WORDS: usize = 1 << 18;
    let mut buffers: Vec<(u32, Buffer<'_>)> = Vec::new();
    for number in 0..400_u32 {
        let buffer = device.buffer(WORDS)?;
        buffer.write(&words(number, 1024));
        buffers.push((number, buffer));
        if buffers.len() == 32 {
            let (number, buffer) = buffers.swap_remove((number as usize * 7) % 32);
            let expected = words(number, 1024);
            same(&buffer.read()[..1024], |index| expected[index])?;
        }
    }
    Ok(Done::Passed)
}

/// What the commands before have written is for the CPU and for commands after.
fn written(device: &Device, commands: vk::CommandBuffer) {
    let barrier = vk::MemoryBarrier::default()
        .src_access_mask(vk::AccessFlags::MEMORY_WRITE)
        .dst_access_mask(vk::AccessFlags::MEMORY_READ | vk::AccessFlags::HOST_READ);
    let all = vk::PipelineStageFlags::ALL_COMMANDS;
    let none = vk::DependencyFlags::empty();
    // SAFETY: The commands are being recorded.
    unsafe {
        let to = all | vk::PipelineStageFlags::HOST;
        device
            .vk
            .cmd_pipeline_barrier(commands, all, to, none, &[barrier], &[], &[]);
    }
}

fn fill(device: &Device) -> Result {
    let buffer = device.buffer(1 << 18)?;
    device.run(|commands| {
        // SAFETY: The commands are being recorded; the buffer lives until they have ended.
        unsafe {
            device
                .vk
                .cmd_fill_buffer(commands, buffer.buffer, 0, vk::WHOLE_SIZE, 0xcafe_f00d);
        }
        written(device, commands);
    })?;
    same(&buffer.read(), |_| 0xcafe_f00d)?;
    Ok(Done::Passed)
}

fn copy(device: &Device) -> Result {
    let data = words(2, 1 << 18);
    let (from, to) = (device.buffer(data.len())?, device.buffer(data.len())?);
    from.write(&data);
    device.run(|commands| {
        let whole = vk::BufferCopy::default().size((data.len() * 4) as u64);
        // SAFETY: The commands are being recorded; the buffers live until they have ended.
        unsafe {
            device
                .vk
                .cmd_copy_buffer(commands, from.buffer, to.buffer, &[whole]);
        }
        written(device, commands);
    })?;
    same(&to.read(), |index| data[index])?;
    Ok(Done::Passed)
}

/// A shader changes each word of a buffer, three times.
fn compute(device: &Device) -> Result {
    let data = words(3, 1 << 18);
    let buffer = device.buffer(data.len())?;
    buffer.write(&data);
    let shader = device.shader(
        "
@group(0) @binding(0) var<storage, read_write> data: array<u32>;
@compute @workgroup_size(64) fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    data[id.x] = data[id.x] * 1664525u + 1013904223u;
}",
    )?;
    let vk = &device.vk;
    let bindings = [vk::DescriptorSetLayoutBinding::default()
        .descriptor_type(vk::DescriptorType::STORAGE_BUFFER)
        .descriptor_count(1)
        .stage_flags(vk::ShaderStageFlags::COMPUTE)];
    let sizes = [vk::DescriptorPoolSize {
        ty: vk::DescriptorType::STORAGE_BUFFER,
        descriptor_count: 1,
    }];
    // SAFETY: All that the structures point to lives during the calls; what is made lives until
    // the process ends.
    let (layout, set, pipeline) = unsafe {
        let info = vk::DescriptorSetLayoutCreateInfo::default().bindings(&bindings);
        let sets = [vk
            .create_descriptor_set_layout(&info, None)
            .map_err(device::words)?];
        let info = vk::PipelineLayoutCreateInfo::default().set_layouts(&sets);
        let layout = vk
            .create_pipeline_layout(&info, None)
            .map_err(device::words)?;
        let info = vk::DescriptorPoolCreateInfo::default()
            .max_sets(1)
            .pool_sizes(&sizes);
        let pool = vk
            .create_descriptor_pool(&info, None)
            .map_err(device::words)?;
        let info = vk::DescriptorSetAllocateInfo::default()
            .descriptor_pool(pool)
            .set_layouts(&sets);
        let set = vk.allocate_descriptor_sets(&info).map_err(device::words)?[0];
        let whole = [vk::DescriptorBufferInfo::default()
            .buffer(buffer.buffer)
            .range(vk::WHOLE_SIZE)];
        let write = vk::WriteDescriptorSet::default()
            .dst_set(set)
            .descriptor_type(vk::DescriptorType::STORAGE_BUFFER)
            .buffer_info(&whole);
        vk.update_descriptor_sets(&[write], &[]);
        let stage = vk::PipelineShaderStageCreateInfo::default()
            .stage(vk::ShaderStageFlags::COMPUTE)
            .module(shader)
            .name(c"main");
        let info = vk::ComputePipelineCreateInfo::default()
            .stage(stage)
            .layout(layout);
        let pipelines = vk.create_compute_pipelines(vk::PipelineCache::null(), &[info], None);
        (
            layout,
            set,
            pipelines.map_err(|(_, error)| device::words(error))?[0],
        )
    };
    device.run(|commands| {
        for _ in 0..3 {
            let point = vk::PipelineBindPoint::COMPUTE;
            // SAFETY: The commands are being recorded; all that they name lives until they have
            // ended.
            unsafe {
                vk.cmd_bind_pipeline(commands, point, pipeline);
                vk.cmd_bind_descriptor_sets(commands, point, layout, 0, &[set], &[]);
                vk.cmd_dispatch(commands, (data.len() / 64) as u32, 1, 1);
            }
            written(device, commands);
        }
    })?;
    same(&buffer.read(), |index| step(step(step(data[index]))))?;
    Ok(Done::Passed)
}

/// A picture, painted by a shader.
fn picture(device: &Device) -> Result {
    let picture = Picture::new(device)?;
    device.run(|commands| picture.paint(commands, 0))?;
    same_picture(&bytes(&picture.copy.read()), SIZE as usize, pattern)?;
    Ok(Done::Passed)
}

/// Draws frames of a moving picture, one after the other, as long as they are right and `goes_on`
/// says so of the number of the next one.
fn draw(device: &Device, goes_on: impl Fn(u32) -> bool) -> Result<()> {
    let picture = Picture::new(device)?;
    for frame in (0..).take_while(|frame| goes_on(*frame)) {
        device.run(|commands| picture.paint(commands, frame))?;
        let row = &bytes(&picture.copy.read())[..(SIZE * 4) as usize];
        same_picture(row, SIZE as usize, |x, y| pattern(x + frame, y))?;
    }
    Ok(())
}

fn frames(device: &Device) -> Result {
    const FRAMES: u32 = 60;
    let start = Instant::now();
    draw(device, |frame| frame < FRAMES)?;
    Ok(Done::Rate(
        f64::from(FRAMES) / start.elapsed().as_secs_f64(),
    ))
}

/// Jobs of one command, each waited for.
fn jobs(device: &Device) -> Result {
    const JOBS: u32 = 300;
    let buffer = device.buffer(1024)?;
    let start = Instant::now();
    for job in 0..JOBS {
        device.run(|commands| {
            // SAFETY: The commands are being recorded; the buffer lives until they have ended.
            unsafe {
                device
                    .vk
                    .cmd_fill_buffer(commands, buffer.buffer, 0, 64, job);
            }
            written(device, commands);
        })?;
        same(&buffer.read()[..16], |_| job)?;
    }
    Ok(Done::Rate(f64::from(JOBS) / start.elapsed().as_secs_f64()))
}

/// Jobs that wait for each other by a timeline, and the CPU for some of its points.
fn timeline(device: &Device) -> Result {
    const LAST: u64 = 40;
    let buffer = device.buffer(LAST as usize)?;
    let vk = &device.vk;
    let mut kind =
        vk::SemaphoreTypeCreateInfo::default().semaphore_type(vk::SemaphoreType::TIMELINE);
    let info = vk::SemaphoreCreateInfo::default().push_next(&mut kind);
    // SAFETY: The structure is complete.
    let semaphore = unsafe { vk.create_semaphore(&info, None) }.map_err(device::words)?;
    for point in 1..=LAST {
        let commands = device.record(|commands| {
            // SAFETY: The commands are being recorded; the buffer lives until they have ended.
            unsafe {
                vk.cmd_fill_buffer(commands, buffer.buffer, (point - 1) * 4, 4, point as u32);
            }
            written(device, commands);
        })?;
        let (commands, semaphores) = ([commands], [semaphore]);
        let (before, after) = ([point - 1], [point]);
        let stages = [vk::PipelineStageFlags::ALL_COMMANDS];
        let mut values = vk::TimelineSemaphoreSubmitInfo::default()
            .wait_semaphore_values(&before)
            .signal_semaphore_values(&after);
        let job = vk::SubmitInfo::default()
            .wait_semaphores(&semaphores)
            .wait_dst_stage_mask(&stages)
            .command_buffers(&commands)
            .signal_semaphores(&semaphores)
            .push_next(&mut values);
        // SAFETY: All that the structures point to lives during the call, the rest until the job
        // has ended.
        unsafe { vk.queue_submit(device.queue, &[job], vk::Fence::null()) }
            .map_err(device::words)?;
    }
    for point in [LAST / 2, LAST] {
        let (semaphores, points) = ([semaphore], [point]);
        let info = vk::SemaphoreWaitInfo::default()
            .semaphores(&semaphores)
            .values(&points);
        // SAFETY: The structure is complete.
        unsafe { vk.wait_semaphores(&info, 120_000_000_000) }.map_err(device::words)?;
        same(&buffer.read()[..point as usize], |index| index as u32 + 1)?;
    }
    // SAFETY: All jobs have ended.
    unsafe { vk.destroy_semaphore(semaphore, None) };
    Ok(Done::Passed)
}

/// Draws until a frame is wrong, or the device is gone. Says so when the first frames are there.
pub(crate) fn endless(device: &Device) -> Result<()> {
    draw(device, |frame| {
        if frame == 10 {
            println!("drawing");
        }
        true
    })
}

/// Submits commands, with a fence that becomes a sync file; `None` for one that is signalled
/// already.
fn submit_with_file(
    device: &Device,
    files: &ash::khr::external_fence_fd::Device,
    commands: vk::CommandBuffer,
) -> Result<Option<OwnedFd>> {
    let kind = vk::ExternalFenceHandleTypeFlags::SYNC_FD;
    let mut export = vk::ExportFenceCreateInfo::default().handle_types(kind);
    let info = vk::FenceCreateInfo::default().push_next(&mut export);
    // SAFETY: The structure is complete.
    let fence = unsafe { device.vk.create_fence(&info, None) }.map_err(device::words)?;
    device.submit(commands, fence)?;
    let info = vk::FenceGetFdInfoKHR::default()
        .fence(fence)
        .handle_type(kind);
    // SAFETY: The structure is complete.
    let fd = unsafe { files.get_fence_fd(&info) }.map_err(device::words)?;
    // -1 stands for a fence that is signalled already.
    // SAFETY: The driver has just given us this file.
    Ok((fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd) }))
}

/// Has the device paint many pictures at a time, and waits for each time in the kernel. Says so
/// when it has work.
pub(crate) fn busy(device: &Device) -> Result<()> {
    const AT_ONCE: u32 = 100;
    let files = device.fence_fd.as_ref();
    let files = files.ok_or("no VK_KHR_external_fence_fd")?;
    let picture = Picture::new(device)?;
    loop {
        let commands = device.record(|commands| {
            for frame in 0..AT_ONCE {
                picture.paint(commands, frame);
            }
        })?;
        let file = submit_with_file(device, files, commands)?;
        println!("drawing");
        if let Some(file) = file {
            poll(&mut [PollFd::new(&file, PollFlags::IN)], None)
                .map_err(|error| error.to_string())?;
        }
    }
}

/// A fence becomes a sync file, which the kernel signals.
fn fence_file(device: &Device) -> Result {
    let Some(files) = &device.fence_fd else {
        return Ok(Done::Skipped("no VK_KHR_external_fence_fd".into()));
    };
    let buffer = device.buffer(1 << 18)?;
    let commands = device.record(|commands| {
        // SAFETY: The commands are being recorded; the buffer lives until they have ended.
        unsafe {
            device
                .vk
                .cmd_fill_buffer(commands, buffer.buffer, 0, vk::WHOLE_SIZE, 0x600d);
        }
        written(device, commands);
    })?;
    if let Some(file) = submit_with_file(device, files, commands)? {
        let limit = Timespec {
            tv_sec: 120,
            tv_nsec: 0,
        };
        let mut files = [PollFd::new(&file, PollFlags::IN)];
        match poll(&mut files, Some(&limit)) {
            Ok(1) => {}
            other => return Err(format!("poll of the sync file: {other:?}")),
        }
    }
    same(&buffer.read(), |_| 0x600d)?;
    Ok(Done::Passed)
}
