// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Programs on Mesa's drivers for virtio-gpu: virgl (OpenGL) and venus (Vulkan).

use std::time::Duration;

use crate::group::Group;
use crate::outcome::{Outcome, Result, Status};
use crate::piglit;
use crate::program::{Output, Program, MESA, NO_FALLBACK};
use crate::{killed, unplug};

const LIMIT: Duration = Duration::from_secs(180);

/// Tests of piglit that are programs of their own: of what moves data between guest and host, and
/// of fences.
const PIGLIT_PROGRAMS: &[&str] = &[
    "arb_copy_buffer-data-sync",
    "arb_copy_buffer-overlap",
    "arb_sync-repeat-wait",
    "arb_texture_buffer_object-data-sync",
    "copybuffersubdata",
    "draw-sync",
    "fbo-blit",
    "fbo-readpixels",
    "map_buffer_range_test",
    "occlusion_query",
    "pbo-readpixels-small",
    "pbo-teximage",
    "texsubimage-sync",
    "vbo-map-remap",
    "vbo-subdata-sync",
];

/// Cases of virtgpu-gles and virtgpu-vulkan: one of each may be beyond the host's renderer.
const GLES_FLOOR: usize = 11;
const VULKAN_FLOOR: usize = 10;

/// Of how many shader tests of [`PIGLIT_SPECS`] one is taken, unless `VIRTGPU_PIGLIT=all`.
const PIGLIT_STEP: usize = 6;

/// What a renderer without a GPU has, nearly all of it.
const PIGLIT_SPECS: &[&str] = &[
    "arb_arrays_of_arrays",
    "arb_compute_shader",
    "arb_enhanced_layouts",
    "arb_fragment_program",
    "arb_shader_storage_buffer_object",
    "arb_texture_rectangle",
    "arb_uniform_buffer_object",
    "arb_vertex_program",
    "ext_texture_array",
    "glsl-1.10",
    "glsl-1.20",
    "glsl-1.30",
    "glsl-1.40",
    "glsl-1.50",
];

/// OpenGL.
pub(crate) fn virgl() -> Result<Vec<Group>> {
    let mut tests = piglit::shader_tests()?;
    if std::env::var("VIRTGPU_PIGLIT").as_deref() != Ok("all") {
        tests.retain(|test| PIGLIT_SPECS.contains(&test.spec()));
        tests = tests.into_iter().step_by(PIGLIT_STEP).collect();
    }
    // What the host's renderer lacks is skipped.
    let shaders = tests.len() * 2 / 3;
    let programs = || {
        let mut outcomes = Vec::new();
        for name in PIGLIT_PROGRAMS {
            outcomes.extend(piglit::run_program(name)?);
        }
        Ok(outcomes)
    };
    Ok(vec![
        eglinfo(),
        gles(),
        Group::new("piglit", programs).floor(PIGLIT_PROGRAMS.len() * 2 / 3),
        Group::new("piglit-shaders", move || piglit::run_shader_tests(&tests)).floor(shaders),
        killed_gles(),
        unplug(),
    ])
}

/// Of OpenGL what does not take long.
pub(crate) fn short_virgl() -> Vec<Group> {
    vec![gles(), unplug()]
}

/// OpenGL on this project's own device, which computes in the memory of the same program.
pub(crate) fn reference() -> Vec<Group> {
    let together = || Ok(own(&gl("/job/virtgpu-gles").args(["together"]).run()?));
    vec![
        eglinfo(),
        gles(),
        Group::new("together", together).alone(),
        unplug(),
    ]
}

fn eglinfo() -> Group {
    Group::new("eglinfo", || {
        let output = gl("/usr/bin/eglinfo.x86_64-linux-gnu")
            .args(["-p", "surfaceless"])
            .run()?;
        Ok(vec![text("surfaceless", &output, "virgl (")])
    })
}

fn run_gles() -> Result<Vec<Outcome>> {
    Ok(own(&gl("/job/virtgpu-gles").run()?))
}

fn gles() -> Group {
    Group::new("gles", run_gles).strict().floor(GLES_FLOOR)
}

/// On this driver only: Linux's would wait for minutes for responses to its commands.
fn unplug() -> Group {
    let drawing = || gl("/job/virtgpu-gles").args(["endless"]);
    Group::new("unplug", move || unplug::run(drawing, run_gles)).alone()
}

/// On this driver only: Linux's does not count on a device to respond.
pub(crate) fn killed_gles() -> Group {
    let how = |what| move || gl("/job/virtgpu-gles").args([what]);
    let run = move || killed::run(how("busy"), how("endless"), run_gles);
    Group::new("killed", run).alone()
}

fn run_vulkan() -> Result<Vec<Outcome>> {
    Ok(own(&vulkan("/job/virtgpu-vulkan").run()?))
}

pub(crate) fn killed_vulkan() -> Group {
    let how = |what| move || vulkan("/job/virtgpu-vulkan").args([what]);
    let run = move || killed::run(how("busy"), how("endless"), run_vulkan);
    Group::new("killed", run).alone()
}

/// Of Vulkan what does not take long.
pub(crate) fn short_venus() -> Vec<Group> {
    vec![vulkan_cases()]
}

fn vulkan_cases() -> Group {
    Group::new("vulkan", run_vulkan)
        .strict()
        .floor(VULKAN_FLOOR)
}

/// Vulkan.
pub(crate) fn venus() -> Vec<Group> {
    let vulkaninfo = || {
        let output = vulkan("/usr/bin/vulkaninfo").run()?;
        Ok(vec![text("all", &output, "Virtio-GPU Venus")])
    };
    vec![
        Group::new("vulkaninfo", vulkaninfo),
        vulkan_cases(),
        Group::new("vkmark", vkmark).floor(SCENES.len() - 1),
        killed_vulkan(),
    ]
}

fn gl(path: &str) -> Program {
    Program::new(MESA, path, LIMIT).env(NO_FALLBACK.0, NO_FALLBACK.1)
}

fn vulkan(path: &str) -> Program {
    Program::new(MESA, path, LIMIT)
        .env("VK_DRIVER_FILES", "/usr/share/vulkan/icd.d/virtio_icd.json")
}

/// The output of a program must be the same on both drivers, and tell of the driver of Mesa that is
/// asked for.
fn text(name: &str, output: &Output, expected: &str) -> Outcome {
    let problem = output.problem(&[0]).or_else(|| {
        (!output.text.contains(expected)).then(|| format!("it does not say \"{expected}\""))
    });
    let status = match problem {
        Some(problem) => Status::Fail(format!("{problem}\n{}", output.tail(8))),
        None => Status::Pass(steady(&output.text)),
    };
    Outcome::new(name, status)
}

/// The lines that are the same each time a program runs: identities of devices are made anew, and
/// how much memory is free depends on others.
fn steady(text: &str) -> String {
    let changing = ["UUID", "budget", "usage", "LUID", " MB"];
    let lines: Vec<_> = text
        .lines()
        .filter(|line| !changing.iter().any(|word| line.contains(word)))
        .collect();
    lines.join("\n")
}

/// The results of this project's own programs, a line each: `ok NAME`, perhaps with `RATE a
/// second`, `skip NAME: REASON` or `not ok NAME: REASON`.
fn own(output: &Output) -> Vec<Outcome> {
    let mut outcomes: Vec<_> = output.text.lines().filter_map(own_line).collect();
    let failed = outcomes
        .iter()
        .any(|outcome| matches!(outcome.status, Status::Fail(_)));
    if let Some(problem) = output.problem(if failed { &[1] } else { &[0] }) {
        let reason = format!("{problem}\n{}", output.tail(8));
        outcomes.push(Outcome::new("exit", Status::Fail(reason)));
    }
    outcomes
}

fn own_line(line: &str) -> Option<Outcome> {
    if let Some(rest) = line.strip_prefix("ok ") {
        let (name, rate) = rest.split_once(' ').unwrap_or((rest, ""));
        let mut outcome = Outcome::pass(name);
        outcome.rate = rate
            .strip_suffix(" a second")
            .and_then(|rate| rate.parse().ok());
        return Some(outcome);
    }
    for (start, status) in [
        ("not ok ", Status::Fail as fn(String) -> Status),
        ("skip ", Status::Skip),
    ] {
        if let Some((name, reason)) = line
            .strip_prefix(start)
            .and_then(|rest| rest.split_once(": "))
        {
            return Some(Outcome::new(name, status(reason.to_string())));
        }
    }
    None
}

/// Frames of vkmark's scenes, drawn to images that no one shows.
fn vkmark() -> Result<Vec<Outcome>> {
    let output = vulkan("/usr/bin/vkmark")
        // The host can share no image with a display server, so images are copied to the guest.
        .env("MESA_VK_WSI_DEBUG", "sw")
        .args(["--winsys", "headless", "--size", "256x256"])
        .args(SCENES.iter().flat_map(|scene| ["-b", scene]))
        .run()?;
    let mut outcomes: Vec<_> = SCENES
        .iter()
        .map(|scene| {
            let name = scene.split(':').next().unwrap_or(scene);
            let rate = output.text.lines().find_map(|line| frames(line, name));
            let status = match rate {
                Some(rate) if rate > 0.0 => Status::Pass(String::new()),
                _ => Status::Fail(format!("no frames\n{}", output.tail(8))),
            };
            Outcome {
                rate,
                ..Outcome::new(name, status)
            }
        })
        .collect();
    if let Some(problem) = output.problem(&[0]) {
        let reason = format!("{problem}\n{}", output.tail(8));
        outcomes.push(Outcome::new("exit", Status::Fail(reason)));
    }
    Ok(outcomes)
}

const SCENES: &[&str] = &[
    "clear:duration=2",
    "vertex:duration=2",
    "texture:duration=2",
    "shading:duration=2",
    "cube:duration=2",
];

/// Frames a second, if this is the line of that scene: `[NAME] …: FPS: 42 FrameTime: …`.
fn frames(line: &str, name: &str) -> Option<f64> {
    let (_, rest) = line.split_once(&format!("[{name}]"))?;
    let (_, rest) = rest.split_once("FPS: ")?;
    rest.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_own_programs() {
        assert_eq!(own_line("ok clear"), Some(Outcome::pass("clear")));
        let frames = own_line("ok frames 41.5 a second").expect("a result");
        assert_eq!((frames.name.as_str(), frames.rate), ("frames", Some(41.5)));
        let failed = own_line("not ok texture: pixel 3: 4, not 5").expect("a result");
        assert_eq!(failed.status, Status::Fail("pixel 3: 4, not 5".into()));
        let skipped = own_line("skip compute: no OpenGL ES 3.1").expect("a result");
        assert_eq!(skipped.status, Status::Skip("no OpenGL ES 3.1".into()));
        assert_eq!(own_line("MESA: warning"), None);
    }

    #[test]
    fn frames_of_vkmark() {
        let line = "\u{1b}[36mInfo\u{1b}[0m: [clear] duration=1: FPS: 267 FrameTime: 3.745 ms";
        assert_eq!(frames(line, "clear"), Some(267.0));
        assert_eq!(frames(line, "cube"), None);
    }
}
