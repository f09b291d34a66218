// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! The cases. Where pictures are painted from integers, each pixel has one right value.

use std::time::Instant;

use glow::HasContext;
use virtgpu_render::{
    bytes, from_bytes, pattern, same, same_picture, step, words, Case, Done, Result,
};

use crate::context::{Context, SIZE};

pub(crate) const CASES: &[Case<Context>] = &[
    ("renderer", renderer),
    ("clear", clear),
    ("shader", shader),
    ("texture", texture),
    ("part_of_texture", part_of_texture),
    ("large_texture", large_texture),
    ("vertices", vertices),
    ("transform_feedback", transform_feedback),
    ("pixel_buffer_and_fence", pixel_buffer_and_fence),
    ("compute", compute),
    ("many_buffers", many_buffers),
    ("frames", frames),
];

/// A triangle that covers everything.
const EVERYWHERE: &str = "#version 310 es
void main() {
    vec2 p = vec2(float(gl_VertexID & 1), float(gl_VertexID >> 1)) * 4.0 - 1.0;
    gl_Position = vec4(p, 0.0, 1.0);
}";

/// The picture of [`pattern`], moved by `moved` to the right.
const PATTERN: &str = "#version 310 es
precision highp float;
precision highp int;
uniform int moved;
out vec4 colour;
void main() {
    ivec2 p = ivec2(gl_FragCoord.xy) + ivec2(moved, 0);
    colour = vec4(ivec4(p.x & 255, p.y & 255, (p.x * 7 + p.y * 13) & 255, 255)) / 255.0;
}";

/// A texture, texel by texel.
const TEXELS: &str = "#version 310 es
precision highp float;
precision highp sampler2D;
uniform sampler2D texels;
out vec4 colour;
void main() {
    colour = texelFetch(texels, ivec2(gl_FragCoord.xy), 0);
}";

fn renderer(context: &Context) -> Result {
    // SAFETY: The context is current.
    let name = unsafe { context.gl.get_parameter_string(glow::RENDERER) };
    if name.contains("virgl") {
        Ok(Done::Passed)
    } else {
        Err(format!("it is {name}"))
    }
}

/// Four rectangles, each cleared with a colour of its own.
fn clear(context: &Context) -> Result {
    let target = context.target()?;
    let gl = &context.gl;
    let half = SIZE / 2;
    let colour = |x: u32, y: u32| match (x < half, y < half) {
        (true, true) => [255, 0, 0, 255],
        (false, true) => [0, 255, 0, 255],
        (true, false) => [0, 0, 255, 51],
        (false, false) => [102, 153, 204, 0],
    };
    // SAFETY: The context is current.
    unsafe {
        gl.enable(glow::SCISSOR_TEST);
        for (x, y) in [(0, 0), (half, 0), (0, half), (half, half)] {
            let [r, g, b, a] = colour(x, y).map(|byte| f32::from(byte) / 255.0);
            gl.scissor(x as i32, y as i32, half as i32, half as i32);
            gl.clear_color(r, g, b, a);
            gl.clear(glow::COLOR_BUFFER_BIT);
        }
        gl.disable(glow::SCISSOR_TEST);
    }
    same_picture(&target.pixels()?, SIZE as usize, colour)?;
    Ok(Done::Passed)
}

fn shader(context: &Context) -> Result {
    let target = context.target()?;
    let program = context.program(
        &[
            (glow::VERTEX_SHADER, EVERYWHERE),
            (glow::FRAGMENT_SHADER, PATTERN),
        ],
        None,
    )?;
    // SAFETY: The context is current, and the program is its own.
    unsafe {
        context.gl.use_program(Some(program));
        context.gl.draw_arrays(glow::TRIANGLES, 0, 3);
    }
    same_picture(&target.pixels()?, SIZE as usize, pattern)?;
    // SAFETY: As above.
    unsafe { context.gl.delete_program(program) };
    Ok(Done::Passed)
}

/// A square texture with these texels.
fn new_texture(context: &Context, size: u32, texels: &[u8]) -> Result<glow::Texture> {
    assert_eq!(texels.len(), (size * size * 4) as usize);
    let gl = &context.gl;
    // SAFETY: The context is current; all texels are there.
    unsafe {
        let texture = gl.create_texture()?;
        gl.bind_texture(glow::TEXTURE_2D, Some(texture));
        for filter in [glow::TEXTURE_MIN_FILTER, glow::TEXTURE_MAG_FILTER] {
            gl.tex_parameter_i32(glow::TEXTURE_2D, filter, glow::NEAREST as i32);
        }
        gl.tex_image_2d(
            glow::TEXTURE_2D,
            0,
            glow::RGBA8 as i32,
            size as i32,
            size as i32,
            0,
            glow::RGBA,
            glow::UNSIGNED_BYTE,
            glow::PixelUnpackData::Slice(Some(texels)),
        );
        Ok(texture)
    }
}

/// Paints the texture that is bound.
fn paint_texture(context: &Context) -> Result<()> {
    let program = context.program(
        &[
            (glow::VERTEX_SHADER, EVERYWHERE),
            (glow::FRAGMENT_SHADER, TEXELS),
        ],
        None,
    )?;
    // SAFETY: The context is current, and the program is its own.
    unsafe {
        context.gl.use_program(Some(program));
        context.gl.draw_arrays(glow::TRIANGLES, 0, 3);
        context.gl.delete_program(program);
    }
    context.check()
}

fn texture(context: &Context) -> Result {
    let target = context.target()?;
    let texels = words(1, (SIZE * SIZE) as usize);
    let texture = new_texture(context, SIZE, &bytes(&texels))?;
    paint_texture(context)?;
    same(&from_bytes(&target.pixels()?), |index| texels[index])?;
    // SAFETY: The context is current, and the texture is its own.
    unsafe { context.gl.delete_texture(texture) };
    Ok(Done::Passed)
}

/// A rectangle of a texture is replaced after it was used.
fn part_of_texture(context: &Context) -> Result {
    let target = context.target()?;
    let (x, y, width, height) = (17, 5, 64, 32);
    let (old, new) = (words(2, (SIZE * SIZE) as usize), words(3, width * height));
    let texture = new_texture(context, SIZE, &bytes(&old))?;
    paint_texture(context)?;
    // SAFETY: The context is current; all texels are there.
    unsafe {
        context.gl.tex_sub_image_2d(
            glow::TEXTURE_2D,
            0,
            x,
            y,
            width as i32,
            height as i32,
            glow::RGBA,
            glow::UNSIGNED_BYTE,
            glow::PixelUnpackData::Slice(Some(&bytes(&new))),
        );
    }
    paint_texture(context)?;
    let (x, y) = (x as usize, y as usize);
    same(&from_bytes(&target.pixels()?), |index| {
        let (column, row) = (index % SIZE as usize, index / SIZE as usize);
        if (x..x + width).contains(&column) && (y..y + height).contains(&row) {
            new[(row - y) * width + column - x]
        } else {
            old[index]
        }
    })?;
    // SAFETY: The context is current, and the texture is its own.
    unsafe { context.gl.delete_texture(texture) };
    Ok(Done::Passed)
}

/// 4 MiB to the host and back.
fn large_texture(context: &Context) -> Result {
    const LARGE: u32 = 1024;
    let gl = &context.gl;
    let texels = words(4, (LARGE * LARGE) as usize);
    let texture = new_texture(context, LARGE, &bytes(&texels))?;
    let mut found = vec![0; texels.len() * 4];
    // SAFETY: The context is current; there is room for all texels.
    unsafe {
        let frame = gl.create_framebuffer()?;
        gl.bind_framebuffer(glow::FRAMEBUFFER, Some(frame));
        gl.framebuffer_texture_2d(
            glow::FRAMEBUFFER,
            glow::COLOR_ATTACHMENT0,
            glow::TEXTURE_2D,
            Some(texture),
            0,
        );
        gl.read_pixels(
            0,
            0,
            LARGE as i32,
            LARGE as i32,
            glow::RGBA,
            glow::UNSIGNED_BYTE,
            glow::PixelPackData::Slice(Some(&mut found)),
        );
        gl.delete_framebuffer(frame);
        gl.delete_texture(texture);
    }
    context.check()?;
    same(&from_bytes(&found), |index| texels[index])?;
    Ok(Done::Passed)
}

/// A point for each pixel, with its colour in a buffer; then half of the colours change.
fn vertices(context: &Context) -> Result {
    let vertex = "#version 310 es
layout(location = 0) in vec4 colour;
out vec4 shade;
void main() {
    vec2 p = vec2(float(gl_VertexID % 256), float(gl_VertexID / 256)) + 0.5;
    gl_Position = vec4(p / 128.0 - 1.0, 0.0, 1.0);
    gl_PointSize = 1.0;
    shade = colour;
}";
    let fragment = "#version 310 es
precision highp float;
in vec4 shade;
out vec4 colour;
void main() { colour = shade; }";
    let target = context.target()?;
    let sources = [
        (glow::VERTEX_SHADER, vertex),
        (glow::FRAGMENT_SHADER, fragment),
    ];
    let program = context.program(&sources, None)?;
    let count = (SIZE * SIZE) as usize;
    let (old, new) = (words(5, count), words(6, count / 2));
    let gl = &context.gl;
    // SAFETY: The context is current, all names are made here, and the buffer has all colours.
    unsafe {
        let array = gl.create_vertex_array()?;
        gl.bind_vertex_array(Some(array));
        let buffer = gl.create_buffer()?;
        gl.bind_buffer(glow::ARRAY_BUFFER, Some(buffer));
        gl.buffer_data_u8_slice(glow::ARRAY_BUFFER, &bytes(&old), glow::DYNAMIC_DRAW);
        gl.enable_vertex_attrib_array(0);
        gl.vertex_attrib_pointer_f32(0, 4, glow::UNSIGNED_BYTE, true, 4, 0);
        gl.use_program(Some(program));
        gl.draw_arrays(glow::POINTS, 0, count as i32);
        same(&from_bytes(&target.pixels()?), |index| old[index])?;
        gl.buffer_sub_data_u8_slice(glow::ARRAY_BUFFER, 0, &bytes(&new));
        gl.draw_arrays(glow::POINTS, 0, count as i32);
        same(&from_bytes(&target.pixels()?), |index| {
            *new.get(index).unwrap_or(&old[index])
        })?;
        gl.bind_vertex_array(None);
        gl.delete_vertex_array(array);
        gl.delete_buffer(buffer);
        gl.delete_program(program);
    }
    Ok(Done::Passed)
}

/// A copy of the first `count` words of the buffer that is bound.
fn mapped(context: &Context, target: u32, count: usize) -> Result<Vec<u32>> {
    let gl = &context.gl;
    // SAFETY: The context is current; a mapping of that many words is read, then unmapped.
    unsafe {
        let start = gl.map_buffer_range(target, 0, (count * 4) as i32, glow::MAP_READ_BIT);
        if start.is_null() {
            return Err("the buffer cannot be mapped".into());
        }
        let found = std::slice::from_raw_parts(start.cast::<u32>(), count).to_vec();
        gl.unmap_buffer(target);
        Ok(found)
    }
}

fn transform_feedback(context: &Context) -> Result {
    let vertex = "#version 310 es
flat out highp uint result;
void main() {
    highp uint n = uint(gl_VertexID);
    result = n * 1664525u + 1013904223u;
    gl_Position = vec4(0.0);
}";
    let fragment = "#version 310 es
void main() {}";
    let sources = [
        (glow::VERTEX_SHADER, vertex),
        (glow::FRAGMENT_SHADER, fragment),
    ];
    let program = context.program(&sources, Some("result"))?;
    // Nothing is drawn, but OpenGL wants something that could be drawn on.
    let _target = context.target()?;
    let count = 4096;
    let gl = &context.gl;
    // SAFETY: The context is current, all names are made here, and the buffer has room.
    unsafe {
        let buffer = gl.create_buffer()?;
        gl.bind_buffer(glow::TRANSFORM_FEEDBACK_BUFFER, Some(buffer));
        gl.buffer_data_size(
            glow::TRANSFORM_FEEDBACK_BUFFER,
            count * 4,
            glow::STREAM_READ,
        );
        gl.bind_buffer_base(glow::TRANSFORM_FEEDBACK_BUFFER, 0, Some(buffer));
        gl.use_program(Some(program));
        gl.enable(glow::RASTERIZER_DISCARD);
        gl.begin_transform_feedback(glow::POINTS);
        gl.draw_arrays(glow::POINTS, 0, count);
        gl.end_transform_feedback();
        gl.disable(glow::RASTERIZER_DISCARD);
        let found = mapped(context, glow::TRANSFORM_FEEDBACK_BUFFER, count as usize)?;
        gl.delete_buffer(buffer);
        gl.delete_program(program);
        same(&found, |index| step(index as u32))?;
    }
    context.check()?;
    Ok(Done::Passed)
}

/// Pixels go to a buffer, a fence says when they are there.
fn pixel_buffer_and_fence(context: &Context) -> Result {
    let target = context.target()?;
    let texels = words(7, (SIZE * SIZE) as usize);
    let texture = new_texture(context, SIZE, &bytes(&texels))?;
    paint_texture(context)?;
    let gl = &context.gl;
    // SAFETY: The context is current, all names are made here, and the buffer has room.
    unsafe {
        let buffer = gl.create_buffer()?;
        gl.bind_buffer(glow::PIXEL_PACK_BUFFER, Some(buffer));
        gl.buffer_data_size(
            glow::PIXEL_PACK_BUFFER,
            texels.len() as i32 * 4,
            glow::STREAM_READ,
        );
        gl.read_pixels(
            0,
            0,
            SIZE as i32,
            SIZE as i32,
            glow::RGBA,
            glow::UNSIGNED_BYTE,
            glow::PixelPackData::BufferOffset(0),
        );
        let fence = gl.fence_sync(glow::SYNC_GPU_COMMANDS_COMPLETE, 0)?;
        // -1 is no limit: the program as a whole has one.
        let waited = gl.client_wait_sync(fence, glow::SYNC_FLUSH_COMMANDS_BIT, -1);
        gl.delete_sync(fence);
        let found = mapped(context, glow::PIXEL_PACK_BUFFER, texels.len());
        gl.bind_buffer(glow::PIXEL_PACK_BUFFER, None);
        gl.delete_buffer(buffer);
        gl.delete_texture(texture);
        drop(target);
        if waited != glow::ALREADY_SIGNALED && waited != glow::CONDITION_SATISFIED {
            return Err(format!("waiting for the fence: {waited:#x}"));
        }
        same(&found?, |index| texels[index])?;
    }
    context.check()?;
    Ok(Done::Passed)
}

fn compute(context: &Context) -> Result {
    let source = "#version 310 es
layout(local_size_x = 64) in;
layout(std430, binding = 0) buffer Data { uint data[]; };
void main() {
    uint i = gl_GlobalInvocationID.x;
    data[i] = data[i] * 1664525u + 1013904223u;
}";
    let program = context.program(&[(glow::COMPUTE_SHADER, source)], None)?;
    let data = words(8, 1 << 16);
    let gl = &context.gl;
    // SAFETY: The context is current, all names are made here, and the buffer has all words.
    unsafe {
        let buffer = gl.create_buffer()?;
        gl.bind_buffer(glow::SHADER_STORAGE_BUFFER, Some(buffer));
        gl.buffer_data_u8_slice(
            glow::SHADER_STORAGE_BUFFER,
            &bytes(&data),
            glow::DYNAMIC_COPY,
        );
        gl.bind_buffer_base(glow::SHADER_STORAGE_BUFFER, 0, Some(buffer));
        gl.use_program(Some(program));
        gl.dispatch_compute(data.len() as u32 / 64, 1, 1);
        gl.memory_barrier(glow::BUFFER_UPDATE_BARRIER_BIT);
        let found = mapped(context, glow::SHADER_STORAGE_BUFFER, data.len())?;
        gl.delete_buffer(buffer);
        gl.delete_program(program);
        same(&found, |index| step(data[index]))?;
    }
    context.check()?;
    Ok(Done::Passed)
}

/// Many buffers at a time, copied to each other on the host.
fn many_buffers(context: &Context) -> Result {
    const WORDS: usize = 4096;
    let gl = &context.gl;
    // SAFETY: The context is current, all names are made here, and each buffer has all words.
    unsafe {
        let mut buffers = Vec::new();
        for number in 0..100 {
            let buffer = gl.create_buffer()?;
            gl.bind_buffer(glow::COPY_READ_BUFFER, Some(buffer));
            gl.buffer_data_u8_slice(
                glow::COPY_READ_BUFFER,
                &bytes(&words(number, WORDS)),
                glow::STATIC_COPY,
            );
            buffers.push(buffer);
        }
        let result = gl.create_buffer()?;
        gl.bind_buffer(glow::COPY_WRITE_BUFFER, Some(result));
        gl.buffer_data_size(
            glow::COPY_WRITE_BUFFER,
            (WORDS * 4) as i32,
            glow::STREAM_READ,
        );
        for (number, buffer) in buffers.into_iter().enumerate().rev() {
            gl.bind_buffer(glow::COPY_READ_BUFFER, Some(buffer));
            gl.copy_buffer_sub_data(
                glow::COPY_READ_BUFFER,
                glow::COPY_WRITE_BUFFER,
                0,
                0,
                (WORDS * 4) as i32,
            );
            gl.delete_buffer(buffer);
            let expected = words(number as u32, WORDS);
            same(&mapped(context, glow::COPY_WRITE_BUFFER, WORDS)?, |index| {
                expected[index]
            })?;
        }
        gl.delete_buffer(result);
    }
    context.check()?;
    Ok(Done::Passed)
}

/// The program that paints [`PATTERN`].
pub(crate) struct Painter<'a> {
    context: &'a Context,
    program: glow::Program,
}

impl<'a> Painter<'a> {
    pub(crate) fn new(context: &'a Context) -> Result<Self> {
        let sources = [
            (glow::VERTEX_SHADER, EVERYWHERE),
            (glow::FRAGMENT_SHADER, PATTERN),
        ];
        let program = context.program(&sources, None)?;
        Ok(Self { context, program })
    }
}

impl Drop for Painter<'_> {
    fn drop(&mut self) {
        // SAFETY: The context is current, and the program is its own.
        unsafe { self.context.gl.delete_program(self.program) };
    }
}

/// Paints the picture of [`pattern`], moved by `moved`.
pub(crate) fn paint(painter: &Painter<'_>, moved: u32) {
    let gl = &painter.context.gl;
    // SAFETY: The context is current, and the program is its own.
    unsafe {
        gl.use_program(Some(painter.program));
        let place = gl.get_uniform_location(painter.program, "moved");
        gl.uniform_1_i32(place.as_ref(), moved as i32);
        gl.draw_arrays(glow::TRIANGLES, 0, 3);
    }
}

/// Paints these pixels, SIZE × SIZE of them, by way of a texture.
pub(crate) fn show(context: &Context, pixels: &[u8]) -> Result<()> {
    let texture = new_texture(context, SIZE, pixels)?;
    paint_texture(context)?;
    // SAFETY: The context is current, and the texture is its own.
    unsafe { context.gl.delete_texture(texture) };
    Ok(())
}

/// Draws frames of a moving picture, and looks at one row of each, as long as they are right and
/// `goes_on` says so of the number of the next one.
fn draw(context: &Context, goes_on: impl Fn(u32) -> bool) -> Result<()> {
    let target = context.target()?;
    let painter = Painter::new(context)?;
    let mut row = vec![0; (SIZE * 4) as usize];
    for frame in (0..).take_while(|frame| goes_on(*frame)) {
        paint(&painter, frame);
        let y = frame % SIZE;
        target.read(0, y, SIZE, 1, &mut row)?;
        same_picture(&row, SIZE as usize, |x, _| pattern(x + frame, y))?;
    }
    Ok(())
}

fn frames(context: &Context) -> Result {
    const FRAMES: u32 = 100;
    let start = Instant::now();
    draw(context, |frame| frame < FRAMES)?;
    Ok(Done::Rate(
        f64::from(FRAMES) / start.elapsed().as_secs_f64(),
    ))
}

/// Draws until the device is gone, which a wrong frame or an error shows. Says so when the first
/// frames are there.
pub(crate) fn endless(context: &Context) -> Result<()> {
    draw(context, |frame| {
        if frame == 10 {
            println!("drawing");
        }
        true
    })
}

/// Draws without looking at it, so that the device has work all the time. Says so when it has some.
pub(crate) fn busy(context: &Context) -> Result<()> {
    const AT_ONCE: u32 = 200;
    let _target = context.target()?;
    let painter = Painter::new(context)?;
    for first in (0..).step_by(AT_ONCE as usize) {
        for frame in first..first + AT_ONCE {
            paint(&painter, frame);
        }
        // SAFETY: The context is current.
        unsafe { context.gl.flush() };
        if first == 0 {
            println!("drawing");
        }
        // SAFETY: The context is current.
        unsafe { context.gl.finish() };
        context.check()?;
    }
    Ok(())
}
