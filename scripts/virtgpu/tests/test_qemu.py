# SPDX-License-Identifier: GPL-2.0
"""Shows which time limit qemu.py keeps when a guest hangs."""

import argparse
import tempfile
import types
import unittest
from unittest import mock

from .. import monitor, qemu


class Limits(unittest.TestCase):
    @mock.patch.object(qemu, "command_line", lambda *args: ["sleep", "60"])
    @mock.patch.object(qemu, "START_SECONDS", 2)
    @mock.patch.object(monitor, "where_it_hangs", lambda *args: "asleep")
    def hang(self, console):
        """Why a guest was ended whose log is this."""
        args = argparse.Namespace(kernel="stock", timeout=1, interactive=False, quiet=True)
        clock = types.SimpleNamespace(stood_still=0)
        with tempfile.TemporaryDirectory() as run:
            with open(f"{run}/console.log", "w") as f:
                f.write(console)
            return qemu.run_until_it_ends(args, run, None, None, clock)[1]

    def test_a_hung_boot_is_no_long_job(self):
        self.assertEqual(self.hang("[    1.4] hpet0: 3 comparators\n"), qemu.NEVER_STARTED)
        self.assertEqual(self.hang("VIRTGPU-GUEST-START\n"), "killed after 1 s (asleep)")
