// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Compiles the C programs of `docs/uapi.md`, so that tests can run them: the n-th is the function
//! `virtgpu_example_n` of the guest's programs.

use std::path::Path;
use std::process::Command;
use std::{env, fs};

/// What `text` has between each line "```c" and the next "```", if that is a whole program.
fn programs(text: &str) -> impl Iterator<Item = &str> {
    let blocks = text.split("\n```c\n").skip(1);
    blocks
        .filter_map(|rest| Some(rest.split_once("\n```\n")?.0))
        .filter(|block| block.contains("int main(void)"))
}

fn run(command: &mut Command) {
    let status = command.status().expect("a C compiler runs (set CC)");
    assert!(status.success(), "{command:?}: {status}");
}

fn main() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let document = top.join("docs/uapi.md");
    for path in [&document, &top.join("uapi")] {
        println!("cargo:rerun-if-changed={}", path.display());
    }
    println!("cargo:rerun-if-env-changed=CC");
    let folder = env::var_os("OUT_DIR").expect("cargo says where");
    let folder = Path::new(&folder);
    let text = fs::read_to_string(&document).expect("the document is there");
    let mut objects = Vec::new();
    for (number, program) in programs(&text).enumerate() {
        let source = folder.join(format!("example-{number}.c"));
        let object = source.with_extension("o");
        fs::write(&source, program.to_owned() + "\n").expect("the folder is writable");
        let compiler = env::var_os("CC").unwrap_or_else(|| "cc".into());
        run(Command::new(compiler)
            .args(["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror"])
            .arg(format!("-Dmain=virtgpu_example_{number}"))
            .arg("-I")
            .arg(top.join("uapi"))
            .arg("-c")
            .arg(&source)
            .arg("-o")
            .arg(&object));
        objects.push(object);
    }
    assert_eq!(objects.len(), 2, "programs in {}", document.display());
    let library = folder.join("libvirtgpu_examples.a");
    let _ = fs::remove_file(&library);
    run(Command::new("ar").arg("crs").arg(&library).args(&objects));
    println!("cargo:rustc-link-search=native={}", folder.display());
    println!("cargo:rustc-link-lib=static=virtgpu_examples");
}
