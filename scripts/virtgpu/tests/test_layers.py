# SPDX-License-Identifier: GPL-2.0
"""Shows that lint/layers.py finds each way in which a module can use what is not below it.

A small tree in which all is well must pass; with each line of BAD it must not. The tree itself is
looked at, too.
"""

import os
import shutil
import tempfile
import unittest

from ..environment import PROJECT
from ..lint import layers

GOOD = {
    "src/main.rs": """
//! | layer | module | what |
//! |---|---|---|
//! | 3 | [`driver`] | |
//! | 2 | [`top`] | |
//! | 2 | [`beside`] | |
//! | 1 | [`middle`] | |
//! | 0 | [`drm`] | |
//! | 0 | [`module_parameters`] | |
use self::top::Something;
mod beside;
mod driver;
mod drm;
mod middle;
mod top;
module! {
    type: Something,
}
""",
    "src/driver.rs": """
use crate::{drm::{self, Device, File, Object}, middle::{self, part::Deep}, top::Something};
impl drm::Driver for Driver {
    type Data = Arc<middle::Gpu>;
    type File = Something;
    type Object = Deep;
}
""",
    "src/drm.rs": "pub(crate) type File = kernel::File<Driver>;\n",
    "src/beside.rs": """
use crate::{middle::{self, part::{Deep, Other as Another}}, module_parameters};
use kernel::{prelude::*, sync::Arc};
use middle::top;
""",
    "src/middle/mod.rs": """
mod part;
/// [`crate::top::Something`] is none, and neither is `crate::beside`.
/* use crate::top; /* crate::top */ crate::top */
pub(crate) use self::part::Deep;
const TEXT: &str = "use crate::top; \\" crate::top";
const RAW: &CStr = cr#"crate::top " crate::top"#;
fn quote<'a>(it: &'a str) -> char { '"' }
fn captured() -> impl Sized + use<'static> { crate::module_parameters::number.value() }
""",
    "src/middle/part.rs": """
use super::TEXT;
pub(in crate::middle) struct Deep;
mod tests {
    use super::*;
    use super::super::RAW;
    use crate::middle::quote;
}
use super::RAW;
""",
    "src/top.rs": """
use super::middle;
use crate::drm::{Device, File, Object};
fn f() { crate::middle::quote(""); }
""",
}

# Where it is added, what, and which lines must be found wrong; None for the whole file.
BAD = [
    ("src/middle/part.rs", "use crate::top;", "crate::top of top (layer 2)"),
    ("src/middle/part.rs", "use crate::{middle::part, top::{a, b::c}};",
     "crate::top::b::c of top (layer 2)"),
    ("src/middle/part.rs", "pub(crate) use super::super::top::Something as Other;",
     "super::super::top::Something of"),
    ("src/middle/part.rs", "mod tests { use super::super::super::beside; }",
     "super::super::super::beside of"),
    ("src/middle/mod.rs", "fn f() { let x = crate::top::Something::new(); }",
     "crate::top::Something::new of top"),
    ("src/middle/mod.rs", "impl crate::top::Trait for RAW {}", "crate::top::Trait of top"),
    ("src/middle/mod.rs", "macro_rules! m { () => { $crate::top::f() } }", "$crate::top::f of top"),
    ("src/middle/mod.rs", "mod a { mod b {} fn f() { super::super::top::f() } }",
     "super::super::top::f of top"),
    ("src/middle/mod.rs", "fn g() { '\\''; crate::top::f() }", "crate::top::f of top"),
    ("src/middle/mod.rs", "use crate::Something;", "crate::Something, which is of the root"),
    ("src/middle/mod.rs", "use crate::*;", "crate::*, which is of the root"),
    ("src/beside.rs", "use crate::top;", "crate::top of top (layer 2)"),
    ("src/beside.rs", "use crate::drm::{Object, File};",
     "crate::drm::File, whose data is of top (layer 2)"),
    ("src/middle/mod.rs", "fn f(file: &crate::drm::File) {}",
     "crate::drm::File, whose data is of top (layer 2)"),
    ("src/drm.rs", "mod tests { use super::Device; fn f(x: crate::middle::X) {} }",
     "crate::middle::X of middle"),
    ("src/main.rs", "mod more;", "module more is not in the table"),
    ("src/main.rs", "//! | 7 | [`less`] | |", "a module less, which there is not"),
    ("src/main.rs", "//! | 0 | [`top`] | |", "a module twice"),
]


def write(top, files):
    for name, text in files.items():
        os.makedirs(os.path.dirname(f"{top}/{name}"), exist_ok=True)
        with open(f"{top}/{name}", "w") as f:
            f.write(text)


class Layers(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.top = folder.name

    def test_what_is_right_is_found_right(self):
        write(self.top, GOOD)
        self.assertEqual(layers.check(self.top), [])

    def test_each_wrong_line_is_found(self):
        for name, text, message in BAD:
            with self.subTest(text):
                write(self.top, {**GOOD, name: GOOD[name] + text + "\n"})
                found = [wrong for wrong in layers.check(self.top) if message in wrong]
                in_root = name == "src/main.rs"
                line = GOOD[name].count("\n") + 1
                place = f"{name}:" if in_root else f"{name}:{line}: "
                self.assertTrue(found and found[0].startswith(place), layers.check(self.top))

    def test_the_table_upside_down_is_wrong(self):
        shutil.copytree(f"{PROJECT}/src", f"{self.top}/src")
        with open(f"{PROJECT}/src/main.rs") as f:
            root = f.read()
        turned = layers.ROW.sub(lambda m: m[0].replace(m[1], str(99 - int(m[1])), 1), root)
        write(self.top, {"src/main.rs": turned})
        self.assertGreater(len(layers.check(self.top)), 100)

    def test_an_import_in_the_lowest_layer_is_found(self):
        shutil.copytree(f"{PROJECT}/src", f"{self.top}/src")
        before = layers.check(self.top)
        with open(f"{self.top}/src/kapi/task.rs", "a") as f:
            f.write("use crate::driver::VirtgpuUserptr;\n")
        self.assertEqual(len(layers.check(self.top)), len(before) + 1)
