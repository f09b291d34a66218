// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Facts about the C headers, checked by a C compiler.
//!
//! The kernel's headers are those in `$VIRTGPU_KERNEL_HEADERS` (the `include/uapi` of a kernel
//! tree, or the `include` of an installed set), else the system's. What older system headers lack
//! is skipped, and said so; with `$VIRTGPU_KERNEL_HEADERS` nothing may be missing. A system without
//! `<drm/drm.h>` skips everything.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A C expression and the value that it has.
pub(crate) struct Fact {
    /// Of integers.
    pub(crate) expression: String,
    /// What it must be.
    pub(crate) value: u64,
}

/// A C file that compiles if all facts are true.
fn source(facts: &[Fact]) -> String {
    let mut text = String::from(
        "#include <stddef.h>\n#include <linux/types.h>\n#include <drm/drm.h>\n\
         #include <drm/virtgpu_drm.h>\n#include <linux/sync_file.h>\n\
         #include \"drm/virtgpu_userptr_drm.h\"\n",
    );
    for Fact { expression, value } in facts {
        let _ = writeln!(
            text,
            "_Static_assert((unsigned long long)({expression}) == {value}ULL, \"{expression}\");"
        );
    }
    text
}

/// Compiles them; what the compiler says, if they are not true.
pub(crate) fn compile(facts: &[Fact]) -> Result<(), String> {
    static UNIQUE: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let number = UNIQUE.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let file = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("abi-{number}.c"));
    std::fs::write(&file, source(facts)).expect("the target directory is writable");

    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".to_string());
    let uapi = Path::new(env!("CARGO_MANIFEST_DIR")).join("../uapi");
    let mut command = Command::new(compiler);
    command.args(["-std=gnu11", "-fsyntax-only", "-Wall", "-Werror"]);
    if let Some(headers) = headers() {
        // Its drm/ first, the rest only for what the system lacks: the headers of a tree that were
        // not installed do not all compile.
        let only = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("headers-{number}"));
        let _ = std::fs::remove_dir_all(&only);
        std::fs::create_dir(&only).expect("the target directory is writable");
        std::os::unix::fs::symlink(Path::new(&headers).join("drm"), only.join("drm"))
            .expect("the target directory is writable");
        command.args(["-D__user=", "-isystem"]).arg(only);
        command.arg("-idirafter").arg(headers);
    }
    command.arg("-I").arg(uapi).arg(&file);
    let output = command.output().expect("a C compiler runs (set CC)");
    if output.status.success() {
        Ok(())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

fn headers() -> Option<String> {
    std::env::var("VIRTGPU_KERNEL_HEADERS")
        .ok()
        .filter(|path| !path.is_empty())
}

/// All facts that the headers are new enough for must be true.
pub(crate) fn check(facts: &[Fact]) {
    let Err(all) = compile(facts) else { return };
    if headers().is_some() {
        panic!("{all}");
    }
    if let Err(reason) = compile(&[]) {
        println!("SKIP the system has no kernel headers (set VIRTGPU_KERNEL_HEADERS): {reason}");
        return;
    }
    // Which of them does an old header not know at all? Those are skipped, the others must agree.
    let known: Vec<_> = facts
        .iter()
        .filter(|fact| {
            let exists = Fact {
                expression: format!("({}) * 0", fact.expression),
                value: 0,
            };
            compile(&[exists]).is_ok()
        })
        .map(|fact| Fact {
            expression: fact.expression.clone(),
            value: fact.value,
        })
        .filter(|fact| {
            // A structure that grew: its size, and the number of its ioctl, are those of before.
            let grew = fact.expression.contains("drm_virtgpu_resource_create_blob")
                || fact.expression == "DRM_IOCTL_VIRTGPU_RESOURCE_CREATE_BLOB"
                || fact.expression.contains("execbuffer)")
                || fact.expression == "DRM_IOCTL_VIRTGPU_EXECBUFFER";
            !grew || compile(std::slice::from_ref(fact)).is_ok()
        })
        .collect();
    println!(
        "the system's headers are too old for {} of {} facts (set VIRTGPU_KERNEL_HEADERS)",
        facts.len() - known.len(),
        facts.len()
    );
    compile(&known).unwrap();
}
