# SPDX-License-Identifier: GPL-2.0
"""Shows that lint/circles.py finds files that name each other, however they do, and `unsafe`.

A small tree in which all is well must pass; with each line of BAD it must not. The tree itself is
looked at, too.
"""

import tempfile
import unittest

from ..environment import PROJECT
from ..lint import circles
from .test_layers import write

GOOD = {
    "src/main.rs": "mod one;\nmod kapi;\n",
    "src/one/mod.rs": "mod a;\nmod b;\nmod c;\npub(crate) use self::a::{A, Other as Named};\n",
    "src/one/a.rs": "use super::b::B;\n// unsafe, super::c\n",
    "src/one/b.rs": "use crate::kapi::K;\nuse super::c::{self, C};\n",
    "src/one/c.rs": "use super::Shared;\nconst TEXT: &str = \"unsafe super::a\";\n",
    "src/kapi/mod.rs": "pub(crate) mod drm;\nfn f() { unsafe { g() } }\n",
    "src/kapi/drm/mod.rs": "mod device;\nmod file;\n",
    "src/kapi/drm/device.rs": "use super::file::File;\n",
    "src/kapi/drm/file.rs": "use super::device::Device;\n",
    "device/src/lib.rs": "mod high;\nmod low;\npub use high::A;\n",
    "device/src/main.rs": "use virtgpu_device::high;\n",
    "device/src/high/mod.rs": "mod a;\npub(crate) use a::A;\n",
    "device/src/high/a.rs": "use crate::low::L;\nfn f() { unsafe { g() } }\n",
    "device/src/low.rs": "use crate::low;\n",
}

# Where it is added, and what.
BAD = [
    ("src/one/b.rs", "use super::a::A;"),
    ("src/one/c.rs", "use super::a::A;"),
    # Through what the folder makes public again.
    ("src/one/c.rs", "use super::A;"),
    ("src/one/c.rs", "use crate::one::{Shared, A};"),
    ("src/one/c.rs", "fn f() -> super::A { super::b::g() }"),
    ("src/one/c.rs", "mod tests { use super::super::b::B; }"),
    ("src/one/c.rs", "fn f() { unsafe { g() } }"),
    ("src/one/mod.rs", "unsafe impl Send for A {}"),
    ("device/src/low.rs", "use crate::high::A;"),
    ("device/src/low.rs", "use crate::high::a::f;"),
    # Through the library's root, of which the program's file is none.
    ("device/src/low.rs", "use crate::A;"),
]


class Circles(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.top = folder.name
        write(self.top, GOOD)

    def test_what_is_right_is_found_right(self):
        self.assertEqual(circles.check(self.top), [])

    def test_what_is_wrong_is_found_wrong(self):
        for name, line in BAD:
            with self.subTest(name=name, line=line):
                write(self.top, {**GOOD, name: GOOD[name] + line + "\n"})
                found = circles.check(self.top)
                self.assertEqual(len(found), 1, found)
                self.assertIn(name + ":", found[0])

    def test_the_tree_is_looked_at(self):
        found = self.uses(circles.DRIVER)
        # Shared through a folder, and by the path of a file.
        self.assertIn(("mirror", "space"), found["mirror", "range"])
        self.assertIn(("mirror", "windows"), found["svm",])
        self.assertIsNotNone(circles.circle_from(("kapi", "drm", "device"), found))
        self.assertIn(("queues", "events"), self.uses(circles.DEVICE)["mirror",])

    @staticmethod
    def uses(crate):
        files = circles.modules(PROJECT, crate)
        texts = {module: circles.read(PROJECT, file) for module, file in files.items()}
        return circles.uses(files, texts)


if __name__ == "__main__":
    unittest.main()
