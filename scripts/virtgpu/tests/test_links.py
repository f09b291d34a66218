# SPDX-License-Identifier: GPL-2.0
"""Shows that lint/links.py finds links that lead nowhere, in the line where they are."""

import os
import tempfile
import unittest

from ..lint import links

GOOD = """# One
[a](docs/two.md), [b
c](docs/two.md#1-first-part) and ![d](docs/two.md)
§1, "First part", [e](docs) `[f](none)`
```
[g](none)
```
[h](https://example.org/none) [i](#one)
"""
BAD = [
    ("[a](none.md)", "there is no none.md"),
    ("![a](docs/none.svg)", "there is no docs/none.svg"),
    ("[a](../two.md)", "there is no ../two.md"),
    ("[a](docs/two.md#none)", "docs/two.md has no heading #none"),
    ("[a](docs/two.md) §2", "docs/two.md has no §2"),
    ("[a](docs/two.md) §1, \"None\"", "docs/two.md has no heading \"None\""),
    ("[a](docs/two.md), \"Comment\"", "docs/two.md has no heading \"Comment\""),
    ("[a\nb](docs/two.md),\n\"None\"", "docs/two.md has no heading \"None\""),
]


class Links(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(folder.name)
        os.mkdir("docs")
        with open("docs/two.md", "w") as f:
            f.write("# Two\n## 1. First part\n```\n# Comment\n```\n")

    def found(self, text):
        with open("one.md", "w") as f:
            f.write(GOOD + text + "\n")
        return links.check(["one.md"])

    def test_what_is_right_is_found_right(self):
        self.assertEqual(self.found(""), [])

    def test_each_wrong_link_is_found(self):
        for text, message in BAD:
            with self.subTest(text):
                found = self.found(text)
                line = GOOD.count("\n") + 1 + text.partition("]")[0].count("\n")
                self.assertEqual(len(found), 1)
                self.assertTrue(found[0].startswith(f"one.md:{line}: "), found)
                self.assertTrue(found[0].endswith(": " + message), found)
