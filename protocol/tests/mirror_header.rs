// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Compares `protocol/src/mirror.rs` with `uapi/linux/virtio_gpu_mirror.h`, through a C compiler.
//!
//! Sizes and offsets of all fields, and all values. Each name that the header defines must be
//! compared, and each field of a Rust structure. (The header of the ioctls is compared in
//! `client/tests/abi.rs`.)

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use virtgpu_protocol::mirror;

/// A C expression and the value that Rust has for it.
struct Fact {
    expression: String,
    value: u64,
}

fn fact(expression: impl Into<String>, value: u64) -> Fact {
    Fact {
        expression: expression.into(),
        value,
    }
}

/// Size of a structure, offset and size of every field.
macro_rules! layout {
    ($facts:expr, $c:literal, $rust:ty, [$($c_field:literal = $field:ident),* $(,)?]) => {{
        let facts: &mut Vec<Fact> = $facts;
        facts.push(fact(format!("sizeof(struct {})", $c), size_of::<$rust>() as u64));
        let none = <$rust>::default();
        let mut bytes = 0;
        $({
            let size = size_of_val(&none.$field) as u64;
            bytes += size;
            facts.push(fact(
                format!("offsetof(struct {}, {})", $c, $c_field),
                core::mem::offset_of!($rust, $field) as u64,
            ));
            facts.push(fact(format!("sizeof(((struct {} *)0)->{})", $c, $c_field), size));
        })*
        assert_eq!(bytes, size_of::<$rust>() as u64, "fields of {} are missing here", $c);
    }};
}

fn structures(facts: &mut Vec<Fact>) {
    layout!(
        facts,
        "virtio_gpu_mirror_config",
        mirror::MirrorConfig,
        [
            "mirror_version" = mirror_version,
            "max_entries" = max_entries,
            "max_spaces" = max_spaces,
            "event_slots" = event_slots,
            "granularity" = granularity,
            "device_state" = device_state,
            "max_faults" = max_faults,
            "padding" = padding
        ]
    );
    layout!(
        facts,
        "virtio_gpu_mirror_hdr",
        mirror::Header,
        [
            "type" = kind,
            "flags" = flags,
            "space_id" = space_id,
            "padding" = padding
        ]
    );
    layout!(
        facts,
        "virtio_gpu_space_create",
        mirror::SpaceCreate,
        [
            "hdr" = hdr,
            "kind" = kind,
            "id" = id,
            "size" = size,
            "access" = access,
            "flags" = flags
        ]
    );
    layout!(
        facts,
        "virtio_gpu_space_destroy",
        mirror::SpaceDestroy,
        ["hdr" = hdr]
    );
    layout!(
        facts,
        "virtio_gpu_map",
        mirror::Map,
        [
            "hdr" = hdr,
            "start" = start,
            "length" = length,
            "nr_entries" = nr_entries,
            "padding" = padding
        ]
    );
    layout!(
        facts,
        "virtio_gpu_map_entry",
        mirror::MapEntry,
        ["addr" = addr, "length" = length, "access" = access]
    );
    layout!(
        facts,
        "virtio_gpu_invalidate",
        mirror::Invalidate,
        ["hdr" = hdr, "start" = start, "last" = last]
    );
    layout!(
        facts,
        "virtio_gpu_fault_resolve",
        mirror::FaultResolve,
        [
            "hdr" = hdr,
            "fault_id" = fault_id,
            "status" = status,
            "padding" = padding
        ]
    );
    layout!(
        facts,
        "virtio_gpu_mirror_event",
        mirror::Event,
        [
            "type" = kind,
            "space_id" = space_id,
            "access" = access,
            "info" = info,
            "address" = address,
            "id" = id
        ]
    );
}

fn values(facts: &mut Vec<Fact>) {
    use mirror::{
        access, command, device_state, event, feature, job_result, resolution, space_kind, status,
    };
    let values: &[(&str, u64)] = &[
        ("VIRTIO_GPU_F_MIRROR", feature::MIRROR.into()),
        ("VIRTIO_GPU_F_PAGE_FAULT", feature::PAGE_FAULT.into()),
        ("VIRTIO_GPU_MIRROR_VQ", mirror::MIRROR_QUEUE.into()),
        ("VIRTIO_GPU_EVENT_VQ", mirror::EVENT_QUEUE.into()),
        (
            "VIRTIO_GPU_MIRROR_MIN_QUEUE_SIZE",
            mirror::MIN_QUEUE_SIZE.into(),
        ),
        (
            "VIRTIO_GPU_MIRROR_RESERVED",
            mirror::RESERVED_DESCRIPTORS.into(),
        ),
        (
            "VIRTIO_GPU_MIRROR_CONFIG_OFFSET",
            mirror::CONFIG_OFFSET as u64,
        ),
        ("VIRTIO_GPU_MIRROR_VERSION", mirror::VERSION.into()),
        ("VIRTIO_GPU_DEVICE_STATE_OK", device_state::OK.into()),
        ("VIRTIO_GPU_DEVICE_STATE_LOST", device_state::LOST.into()),
        ("VIRTIO_GPU_CMD_SPACE_CREATE", command::SPACE_CREATE.into()),
        (
            "VIRTIO_GPU_CMD_SPACE_DESTROY",
            command::SPACE_DESTROY.into(),
        ),
        ("VIRTIO_GPU_CMD_MAP", command::MAP.into()),
        ("VIRTIO_GPU_CMD_INVALIDATE", command::INVALIDATE.into()),
        (
            "VIRTIO_GPU_CMD_FAULT_RESOLVE",
            command::FAULT_RESOLVE.into(),
        ),
        ("VIRTIO_GPU_MIRROR_OK", status::OK.into()),
        ("VIRTIO_GPU_MIRROR_INVALID", status::INVALID.into()),
        (
            "VIRTIO_GPU_MIRROR_NO_SUCH_SPACE",
            status::NO_SUCH_SPACE.into(),
        ),
        ("VIRTIO_GPU_MIRROR_NO_MEMORY", status::NO_MEMORY.into()),
        ("VIRTIO_GPU_MIRROR_LIMIT", status::LIMIT.into()),
        ("VIRTIO_GPU_ACCESS_READ", access::READ.into()),
        ("VIRTIO_GPU_ACCESS_WRITE", access::WRITE.into()),
        ("VIRTIO_GPU_ACCESS_ATOMIC", access::ATOMIC.into()),
        ("VIRTIO_GPU_ACCESS_EXCLUSIVE", access::EXCLUSIVE.into()),
        ("VIRTIO_GPU_SPACE_RESOURCE", space_kind::RESOURCE.into()),
        ("VIRTIO_GPU_SPACE_CONTEXT", space_kind::CONTEXT.into()),
        ("VIRTIO_GPU_SPACE_FAULTS", mirror::SPACE_FAULTS.into()),
        ("VIRTIO_GPU_FAULT_OK", resolution::OK.into()),
        (
            "VIRTIO_GPU_FAULT_BAD_ADDRESS",
            resolution::BAD_ADDRESS.into(),
        ),
        ("VIRTIO_GPU_FAULT_BAD_ACCESS", resolution::BAD_ACCESS.into()),
        ("VIRTIO_GPU_FAULT_RETRY", resolution::RETRY.into()),
        ("VIRTIO_GPU_EVENTQ_FAULT", event::FAULT.into()),
        ("VIRTIO_GPU_EVENTQ_SPACE_LOST", event::SPACE_LOST.into()),
        ("VIRTIO_GPU_EVENTQ_RING_DONE", event::RING_DONE.into()),
        ("VIRTIO_GPU_RING_DONE_OK", job_result::OK.into()),
        ("VIRTIO_GPU_RING_DONE_FAILED", job_result::FAILED.into()),
        ("VIRTIO_GPU_RING_DONE_FAULTED", job_result::FAULTED.into()),
        (
            "VIRTIO_GPU_RING_DONE_CANCELLED",
            job_result::CANCELLED.into(),
        ),
    ];
    facts.extend(values.iter().map(|&(name, value)| fact(name, value)));
}

fn uapi() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../uapi")
}

/// Compiles an assertion for each fact.
fn compile(header: &str, facts: &[Fact]) -> Result<(), String> {
    static UNIQUE: AtomicU32 = AtomicU32::new(0);
    let number = UNIQUE.fetch_add(1, Ordering::Relaxed);
    let mut text = format!("#include <stddef.h>\n#include <{header}>\n");
    for Fact { expression, value } in facts {
        let _ = writeln!(
            text,
            "_Static_assert((unsigned long long)({expression}) == {value}ULL, \"{expression}\");"
        );
    }
    let file = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("mirror-{number}.c"));
    std::fs::write(&file, text).expect("the target directory is writable");
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".to_string());
    let output = Command::new(compiler)
        .args(["-std=gnu11", "-fsyntax-only", "-Wall", "-Werror", "-I"])
        .arg(uapi())
        .arg(&file)
        .output()
        .expect("a C compiler runs (set CC)");
    if output.status.success() {
        Ok(())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

/// Whether the system can compile the header at all; says why not.
fn has_headers() -> bool {
    match compile("linux/types.h", &[]) {
        Ok(()) => true,
        Err(reason) => {
            println!("SKIP the system has no <linux/types.h>: {reason}");
            false
        }
    }
}

const HEADER: &str = "linux/virtio_gpu_mirror.h";

#[test]
fn layouts_and_values() {
    if !has_headers() {
        return;
    }
    let mut facts = Vec::new();
    structures(&mut facts);
    values(&mut facts);
    if let Err(all) = compile(HEADER, &facts) {
        panic!("{all}");
    }
}

/// A wrong value must be noticed.
#[test]
fn the_comparison_can_fail() {
    if !has_headers() {
        return;
    }
    let mut facts = Vec::new();
    structures(&mut facts);
    compile(HEADER, &facts).expect("the layouts agree");
    facts[1].value += 1;
    compile(HEADER, &facts).expect_err("a wrong offset is an error");
}

/// Names that a line of the header defines: of a constant, or of a structure.
fn defined(line: &str) -> Option<&str> {
    let line = line.trim_end();
    if let Some(rest) = line.strip_prefix("#define VIRTIO_GPU_") {
        let end = rest.find(char::is_whitespace)?;
        let start = "#define ".len();
        return line.get(start..start + "VIRTIO_GPU_".len() + end);
    }
    if let Some(rest) = line.strip_prefix("struct ") {
        return rest.strip_suffix(" {");
    }
    // Of an enumeration.
    let name = line.strip_prefix('\t')?.strip_suffix(',')?;
    let name = name.split(" = ").next()?;
    name.starts_with("VIRTIO_GPU_").then_some(name)
}

#[test]
fn every_name_is_compared() {
    let text = std::fs::read_to_string(uapi().join(HEADER)).expect("the header is there");
    let names: BTreeSet<_> = text.lines().filter_map(defined).collect();
    let mut facts = Vec::new();
    structures(&mut facts);
    values(&mut facts);
    let compared: BTreeSet<_> = facts
        .iter()
        .filter_map(|fact| {
            let whole = fact.expression.as_str();
            if whole.starts_with("VIRTIO_GPU_") {
                return Some(whole);
            }
            whole.strip_prefix("sizeof(struct ")?.strip_suffix(')')
        })
        .collect();
    assert_eq!(names, compared);
}
