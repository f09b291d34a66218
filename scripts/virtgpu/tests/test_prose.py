# SPDX-License-Identifier: GPL-2.0
"""Shows that lint/prose.py finds long lines of prose, and nothing else that is long."""

import unittest

from ..lint import prose

LONG = "a long " * 15


class Prose(unittest.TestCase):
    def test_long_comments_are_found(self):
        text = f"// short\n    /// {LONG}\nlet x = \"{LONG}\";\n//! | {LONG}|\n// {'x' * 120}\n"
        self.assertEqual(list(prose.in_rust(text)), [2])

    def test_long_lines_of_markdown_are_found(self):
        text = f"{LONG}\n# {LONG}\n| {LONG}|\n```\n{LONG}\n```\n- {LONG}\n"
        self.assertEqual(list(prose.in_markdown(text)), [1, 7])
