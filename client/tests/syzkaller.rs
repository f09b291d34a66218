// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Compares the description of the ioctls for syzkaller, `docs/syzkaller/dev_virtgpu.txt`, with the
//! C headers: sizes of structures, offsets of fields, and the names of constants.
//!
//! It reads as much of syzkaller's language as that file uses.

mod c_headers;

use std::collections::{BTreeMap, BTreeSet};

use c_headers::Fact;
use virtgpu_client::protocol::uapi;

const TEXT: &str = include_str!("../../docs/syzkaller/dev_virtgpu.txt");

/// A field: its name, its size, and where it starts.
struct Field {
    name: String,
    size: u64,
    offset: u64,
}

#[derive(Default)]
struct Description {
    /// Sizes of resources, structures and unions.
    sizes: BTreeMap<String, u64>,
    structures: BTreeMap<String, Vec<Field>>,
    /// Names of structures and unions.
    aggregates: BTreeSet<String>,
    /// Names in lists of flags and in `const[…]`.
    constants: BTreeSet<String>,
    calls: Vec<String>,
}

/// The arguments of `name[a, b[c, d], e]`.
fn arguments(text: &str) -> Vec<&str> {
    let Some((_, rest)) = text.split_once('[') else {
        return Vec::new();
    };
    let inner = rest.strip_suffix(']').expect("a closing bracket");
    let (mut depth, mut start, mut list) = (0, 0, Vec::new());
    for (at, character) in inner.char_indices() {
        match character {
            '[' => depth += 1,
            ']' => depth -= 1,
            ',' if depth == 0 => {
                list.push(inner[start..at].trim());
                start = at + 1;
            }
            _ => {}
        }
    }
    list.push(inner[start..].trim());
    list
}

impl Description {
    fn size(&self, kind: &str) -> u64 {
        let name = kind.split('[').next().unwrap_or_default();
        let list = arguments(kind);
        match name {
            "int8" => 1,
            "int32" => 4,
            "int64" | "ptr64" | "vma64" => 8,
            // Those of the kernel that other descriptions have.
            "fd_memfd" | "fd" | "drm_gem_handle" | "drm_syncobj" => 4,
            "fileoff" => 8,
            "const" | "flags" | "len" | "bytesize" => self.size(list[1]),
            "array" => self.size(list[0]) * list[1].parse::<u64>().expect("a fixed length"),
            _ => *self
                .sizes
                .get(name)
                .unwrap_or_else(|| panic!("unknown type {kind}")),
        }
    }

    fn note_constants(&mut self, text: &str) {
        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let names = words.filter(|word| word.contains("VIRTGPU_") && !word.ends_with("_ROCM"));
        self.constants.extend(names.map(str::to_string));
    }

    fn parse(text: &str) -> Self {
        let aggregate = |line: &str| {
            let name = line.strip_suffix(" {").or(line.strip_suffix(" ["))?;
            Some(name.to_string())
        };
        let mut all = Self {
            aggregates: text.lines().filter_map(aggregate).collect(),
            ..Self::default()
        };
        // What a structure needs may come after it.
        while {
            let before = all.sizes.len();
            all.pass(text);
            all.sizes.len() > before
        } {}
        all
    }

    fn known(&self, kind: &str) -> bool {
        let mut words = kind.split(['[', ']', ',', ' ']);
        let known = |word| !self.aggregates.contains(word) || self.sizes.contains_key(word);
        // What a pointer leads to is not part of the structure.
        kind.starts_with("ptr64") || words.all(known)
    }

    fn pass(&mut self, text: &str) {
        let mut lines = text.lines().filter(|line| !line.starts_with('#'));
        while let Some(line) = lines.next() {
            if let Some(rest) = line.strip_prefix("resource ") {
                let (name, base) = rest.split_once('[').expect("a base");
                let base = base.split(']').next().expect("a base");
                let size = self.size(base);
                self.sizes.insert(name.to_string(), size);
            } else if let Some((call, rest)) = line.split_once('(') {
                if !self.calls.contains(&call.to_string()) {
                    self.calls.push(call.to_string());
                }
                self.note_constants(rest);
            } else if let Some(name) = line.strip_suffix(" {").or(line.strip_suffix(" [")) {
                let body: Vec<_> = lines
                    .by_ref()
                    .take_while(|line| !matches!(*line, "}" | "]"))
                    .map(field)
                    .collect();
                self.aggregate(name, &body, line.ends_with('['));
            } else if !line.starts_with("define") {
                self.note_constants(line);
            }
        }
    }

    fn aggregate(&mut self, name: &str, body: &[(String, String)], union: bool) {
        for (_, kind) in body {
            self.note_constants(kind);
        }
        if !body.iter().all(|(_, kind)| self.known(kind)) {
            return;
        }
        let mut fields = Vec::new();
        let mut end = 0;
        for (field, kind) in body {
            let size = self.size(kind);
            let offset = if union { 0 } else { end };
            end = if union { end.max(size) } else { end + size };
            fields.push(Field {
                name: field.clone(),
                size,
                offset,
            });
        }
        self.sizes.insert(name.to_string(), end);
        self.structures.insert(name.to_string(), fields);
    }
}

/// Name and type of a field, without its direction.
fn field(line: &str) -> (String, String) {
    let mut parts = line.split('\t').filter(|part| !part.is_empty());
    let name = parts.next().expect("a name").to_string();
    (name, parts.next().expect("a type").to_string())
}

fn description() -> Description {
    Description::parse(TEXT)
}

/// All structures are read, and have no holes: syzkaller would fill them, C would not.
#[test]
fn alignment() {
    let all = description();
    assert!(all.structures.len() > 15, "{}", all.structures.len());
    for (name, fields) in &all.structures {
        for field in fields.iter().filter(|field| field.size <= 8) {
            assert_eq!(field.offset % field.size, 0, "{name}.{}", field.name);
        }
    }
}

#[test]
fn structures_are_those_of_the_headers() {
    let all = description();
    let mut facts = Vec::new();
    for (name, fields) in &all.structures {
        let Some((structure, variant)) = name
            .starts_with("drm_virtgpu_")
            .then(|| name.split_once('$').unwrap_or((name, "")))
        else {
            continue;
        };
        if variant == "rocm" {
            let longest = size_of::<uapi::ResourceCreateBlob>() as u64;
            assert_eq!(all.sizes[name], longest, "{name}");
            continue;
        }
        facts.push(Fact {
            expression: format!("sizeof(struct {structure})"),
            value: all.sizes[name],
        });
        for Field { name, offset, size } in fields {
            facts.push(Fact {
                expression: format!("offsetof(struct {structure}, {name})"),
                value: *offset,
            });
            facts.push(Fact {
                expression: format!("sizeof(((struct {structure} *)0)->{name})"),
                value: *size,
            });
        }
    }
    c_headers::check(&facts);
}

#[test]
fn constants_exist() {
    let all = description();
    assert!(all.constants.len() > 50, "{}", all.constants.len());
    let exists = |name: &String| Fact {
        expression: format!("({name}) * 0"),
        value: 0,
    };
    let facts: Vec<_> = all.constants.iter().map(exists).collect();
    c_headers::check(&facts);
}

/// Each ioctl of the driver is described, ROCm's form by its own number.
#[test]
fn nothing_is_left_out() {
    use uapi::nr;
    let all = description();
    for (name, number) in [
        ("MAP", nr::MAP),
        ("EXECBUFFER", nr::EXECBUFFER),
        ("GETPARAM", nr::GETPARAM),
        ("RESOURCE_CREATE", nr::RESOURCE_CREATE),
        ("RESOURCE_INFO", nr::RESOURCE_INFO),
        ("TRANSFER_FROM_HOST", nr::TRANSFER_FROM_HOST),
        ("TRANSFER_TO_HOST", nr::TRANSFER_TO_HOST),
        ("WAIT", nr::WAIT),
        ("GET_CAPS", nr::GET_CAPS),
        ("RESOURCE_CREATE_BLOB", nr::RESOURCE_CREATE_BLOB),
        ("CONTEXT_INIT", nr::CONTEXT_INIT),
        ("USERPTR_REGISTER", nr::USERPTR_REGISTER),
        ("BO_QUERY", nr::BO_QUERY),
        ("USERPTR_PREFETCH", nr::USERPTR_PREFETCH),
        ("SVM_ENABLE", nr::SVM_ENABLE),
        ("SVM_PREFETCH", nr::SVM_PREFETCH),
        ("SVM_WAIT", nr::SVM_WAIT),
        ("SVM_QUERY", nr::SVM_QUERY),
    ] {
        let call = format!("ioctl$VIRTGPU_{name}");
        assert!(all.calls.contains(&call), "{call}, {number:#x}");
        assert!(all.constants.contains(&format!("DRM_IOCTL_VIRTGPU_{name}")));
    }
    let rocm = virtgpu_client::ioctl::virtgpu(
        nr::RESOURCE_CREATE_BLOB,
        size_of::<uapi::ResourceCreateBlob>(),
    );
    let define = TEXT.lines().find(|line| line.starts_with("define"));
    assert!(define.is_some_and(|line| line.ends_with(&format!("{rocm:#x}"))));
}

/// A wrong description must be noticed.
#[test]
fn the_comparison_can_fail() {
    let wrong = TEXT.replace("\thandle\tdrm_gem_handle\t(in)\n\tpad", "\tpad");
    assert_ne!(wrong, TEXT);
    let all = Description::parse(&wrong);
    let fact = Fact {
        expression: "sizeof(struct drm_virtgpu_map)".into(),
        value: all.sizes["drm_virtgpu_map"],
    };
    c_headers::compile(&[fact]).expect_err("a structure that is too short");
}
