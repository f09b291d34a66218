// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! A picture on the device, the pipeline that paints it, and a copy of it that the CPU sees.

use ash::vk;
use virtgpu_render::Result;

use crate::device::{words, Buffer, Device};

/// Width and height in pixels.
pub(crate) const SIZE: u32 = 256;

const FORMAT: vk::Format = vk::Format::R8G8B8A8_UNORM;

/// The picture of [`virtgpu_render::pattern`], moved to the right.
const SHADERS: &str = "
struct Moved { by: u32 }
var<push_constant> moved: Moved;

@vertex fn everywhere(@builtin(vertex_index) i: u32) -> @builtin(position) vec4<f32> {
    return vec4<f32>(f32(i & 1u) * 4.0 - 1.0, f32(i >> 1u) * 4.0 - 1.0, 0.0, 1.0);
}

@fragment fn paint(@builtin(position) place: vec4<f32>) -> @location(0) vec4<f32> {
    let x = u32(place.x) + moved.by;
    let y = u32(place.y);
    return vec4<f32>(f32(x & 255u), f32(y & 255u), f32((x * 7u + y * 13u) & 255u), 255.0) / 255.0;
}";

/// All that is needed for painting; it lives until the process ends.
pub(crate) struct Picture<'a> {
    device: &'a Device,
    image: vk::Image,
    view: vk::ImageView,
    layout: vk::PipelineLayout,
    pipeline: vk::Pipeline,
    pub(crate) copy: Buffer<'a>,
}

impl<'a> Picture<'a> {
    pub(crate) fn new(device: &'a Device) -> Result<Self> {
        let (image, view) = Self::image(device)?;
        let (layout, pipeline) = Self::pipeline(device)?;
        Ok(Self {
            device,
            image,
            view,
            layout,
            pipeline,
            copy: device.buffer((SIZE * SIZE) as usize)?,
        })
    }

    fn image(device: &Device) -> Result<(vk::Image, vk::ImageView)> {
        let info = vk::ImageCreateInfo::default()
            .image_type(vk::ImageType::TYPE_2D)
            .format(FORMAT)
            .extent(vk::Extent3D {
                width: SIZE,
                height: SIZE,
                depth: 1,
            })
            .mip_levels(1)
            .array_layers(1)
            .samples(vk::SampleCountFlags::TYPE_1)
            .tiling(vk::ImageTiling::OPTIMAL)
            .usage(vk::ImageUsageFlags::COLOR_ATTACHMENT | vk::ImageUsageFlags::TRANSFER_SRC);
        // SAFETY: The image gets memory of its own, and the view is of all of it.
        unsafe {
            let image = device.vk.create_image(&info, None).map_err(words)?;
            let needs = device.vk.get_image_memory_requirements(image);
            let memory = device.allocate(needs, vk::MemoryPropertyFlags::DEVICE_LOCAL)?;
            device
                .vk
                .bind_image_memory(image, memory, 0)
                .map_err(words)?;
            let info = vk::ImageViewCreateInfo::default()
                .image(image)
                .view_type(vk::ImageViewType::TYPE_2D)
                .format(FORMAT)
                .subresource_range(everything());
            let view = device.vk.create_image_view(&info, None).map_err(words)?;
            Ok((image, view))
        }
    }

    fn pipeline(device: &Device) -> Result<(vk::PipelineLayout, vk::Pipeline)> {
        let shaders = device.shader(SHADERS)?;
        let constants = [vk::PushConstantRange::default()
            .stage_flags(vk::ShaderStageFlags::FRAGMENT)
            .size(4)];
        let info = vk::PipelineLayoutCreateInfo::default().push_constant_ranges(&constants);
        // SAFETY: The structure is complete.
        let layout = unsafe { device.vk.create_pipeline_layout(&info, None) }.map_err(words)?;
        let stage = |stage, name| {
            vk::PipelineShaderStageCreateInfo::default()
                .stage(stage)
                .module(shaders)
                .name(name)
        };
        let stages = [
            stage(vk::ShaderStageFlags::VERTEX, c"everywhere"),
            stage(vk::ShaderStageFlags::FRAGMENT, c"paint"),
        ];
        let vertices = vk::PipelineVertexInputStateCreateInfo::default();
        let assembly = vk::PipelineInputAssemblyStateCreateInfo::default()
            .topology(vk::PrimitiveTopology::TRIANGLE_LIST);
        let viewports = [vk::Viewport {
            width: SIZE as f32,
            height: SIZE as f32,
            max_depth: 1.0,
            ..Default::default()
        }];
        let scissors = [area()];
        let viewport = vk::PipelineViewportStateCreateInfo::default()
            .viewports(&viewports)
            .scissors(&scissors);
        let raster = vk::PipelineRasterizationStateCreateInfo::default().line_width(1.0);
        let samples = vk::PipelineMultisampleStateCreateInfo::default()
            .rasterization_samples(vk::SampleCountFlags::TYPE_1);
        let all = vk::ColorComponentFlags::RGBA;
        let blend = [vk::PipelineColorBlendAttachmentState::default().color_write_mask(all)];
        let blend = vk::PipelineColorBlendStateCreateInfo::default().attachments(&blend);
        let formats = [FORMAT];
        let mut rendering =
            vk::PipelineRenderingCreateInfo::default().color_attachment_formats(&formats);
        let info = vk::GraphicsPipelineCreateInfo::default()
            .stages(&stages)
            .vertex_input_state(&vertices)
            .input_assembly_state(&assembly)
            .viewport_state(&viewport)
            .rasterization_state(&raster)
            .multisample_state(&samples)
            .color_blend_state(&blend)
            .layout(layout)
            .push_next(&mut rendering);
        let none = vk::PipelineCache::null();
        // SAFETY: All that the structures point to lives during the call.
        let pipelines = unsafe { device.vk.create_graphics_pipelines(none, &[info], None) };
        Ok((layout, pipelines.map_err(|(_, error)| words(error))?[0]))
    }

    /// Commands that paint the picture, moved by `moved`, and copy it.
    pub(crate) fn paint(&self, commands: vk::CommandBuffer, moved: u32) {
        use vk::{AccessFlags as Access, ImageLayout as Layout, PipelineStageFlags as Stage};
        let change = |from: (Layout, Access), to: (Layout, Access)| {
            vk::ImageMemoryBarrier::default()
                .old_layout(from.0)
                .src_access_mask(from.1)
                .new_layout(to.0)
                .dst_access_mask(to.1)
                .image(self.image)
                .subresource_range(everything())
        };
        let attachment = (
            Layout::COLOR_ATTACHMENT_OPTIMAL,
            Access::COLOR_ATTACHMENT_WRITE,
        );
        let start = change((Layout::UNDEFINED, Access::empty()), attachment);
        let end = change(
            attachment,
            (Layout::TRANSFER_SRC_OPTIMAL, Access::TRANSFER_READ),
        );
        let attachments = [vk::RenderingAttachmentInfo::default()
            .image_view(self.view)
            .image_layout(Layout::COLOR_ATTACHMENT_OPTIMAL)
            .load_op(vk::AttachmentLoadOp::CLEAR)
            .store_op(vk::AttachmentStoreOp::STORE)];
        let rendering = vk::RenderingInfo::default()
            .render_area(area())
            .layer_count(1)
            .color_attachments(&attachments);
        let copy = vk::BufferImageCopy::default()
            .image_subresource(vk::ImageSubresourceLayers {
                aspect_mask: vk::ImageAspectFlags::COLOR,
                mip_level: 0,
                base_array_layer: 0,
                layer_count: 1,
            })
            .image_extent(vk::Extent3D {
                width: SIZE,
                height: SIZE,
                depth: 1,
            });
        let seen = vk::MemoryBarrier::default()
            .src_access_mask(Access::TRANSFER_WRITE)
            .dst_access_mask(Access::HOST_READ);
        let vk = &self.device.vk;
        let none = vk::DependencyFlags::empty();
        // SAFETY: The commands are being recorded; all that they name is the picture's own.
        unsafe {
            let output = Stage::COLOR_ATTACHMENT_OUTPUT;
            vk.cmd_pipeline_barrier(commands, Stage::TRANSFER, output, none, &[], &[], &[start]);
            vk.cmd_begin_rendering(commands, &rendering);
            vk.cmd_bind_pipeline(commands, vk::PipelineBindPoint::GRAPHICS, self.pipeline);
            let stage = vk::ShaderStageFlags::FRAGMENT;
            vk.cmd_push_constants(commands, self.layout, stage, 0, &moved.to_ne_bytes());
            vk.cmd_draw(commands, 3, 1, 0, 0);
            vk.cmd_end_rendering(commands);
            vk.cmd_pipeline_barrier(commands, output, Stage::TRANSFER, none, &[], &[], &[end]);
            let layout = Layout::TRANSFER_SRC_OPTIMAL;
            vk.cmd_copy_image_to_buffer(commands, self.image, layout, self.copy.buffer, &[copy]);
            vk.cmd_pipeline_barrier(
                commands,
                Stage::TRANSFER,
                Stage::HOST,
                none,
                &[seen],
                &[],
                &[],
            );
        }
    }
}

fn everything() -> vk::ImageSubresourceRange {
    vk::ImageSubresourceRange {
        aspect_mask: vk::ImageAspectFlags::COLOR,
        level_count: 1,
        layer_count: 1,
        ..Default::default()
    }
}

fn area() -> vk::Rect2D {
    vk::Rect2D {
        extent: vk::Extent2D {
            width: SIZE,
            height: SIZE,
        },
        ..Default::default()
    }
}
