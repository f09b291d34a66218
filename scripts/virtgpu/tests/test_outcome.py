# SPDX-License-Identifier: GPL-2.0
"""Shows what outcome.py makes of a guest's log and of its devices."""

import argparse
import tempfile
import types
import unittest
from unittest import mock

from .. import device, outcome
from .fakes import LEAK, case, family

CONSOLE = f"""VIRTGPU-GUEST-START
VIRTGPU-GUEST-JOB
VIRTGPU-GUEST-CASE a jiffies=4294900000
VIRTGPU-GUEST-RMMOD ok
VIRTGPU-GUEST-CASE-END a rc=0
VIRTGPU-GUEST-CASE b jiffies=4294910000
[    9.0] {LEAK}\r
VIRTGPU-GUEST-RMMOD failed
VIRTGPU-GUEST-END
unreferenced object 0xffff888004ab8400 (size 192):
  comm "insmod", pid 93, jiffies 4294909999
VIRTGPU-GUEST-TAINTED 12800
VIRTGPU-GUEST-DONE rc=1
"""
GOOD_LOG = """VIRTGPU-GUEST-START
[    9.0] virtgpu_userptr virtio0: device lost: it does not respond
VIRTGPU-GUEST-TAINTED 12288
VIRTGPU-GUEST-DONE rc=0
"""
FOUND = GOOD_LOG.replace("device lost", "device found")


def gpu(arguments="", status=0, killed=False):
    """A device that has ended."""
    d = device.Device.__new__(device.Device)
    d.run, d.events, d.arguments, d.case = "", "events.jsonl", arguments, None
    d.status, d.killed, d.stopped = status, killed, False
    d.requests = d.mistreated = 0
    return d


class Outcome(unittest.TestCase):
    def validate(self, log, cases=(), kernel="stock", gpus=None):
        """What outcome.py says of a guest whose log is this."""
        args = argparse.Namespace(kernel=kernel, cases=list(cases))
        with tempfile.TemporaryDirectory() as run:
            with open(f"{run}/console.log", "w") as f:
                f.write(log)
            return outcome.validate(args, run, types.SimpleNamespace(returncode=0), None, gpus)

    def errors(self, *devices, kernel="stock", log=GOOD_LOG, events=([], 9, 1)):
        """What is wrong with a guest whose log is this and that has had these devices, with such
        event logs."""
        def check_events(run, log, unfinished):
            return list(events[0]), *events[1:]

        with mock.patch.object(device, "check_events", check_events):
            gpus = types.SimpleNamespace(all=list(devices))
            return self.validate(log, kernel=kernel, gpus=gpus)["errors"]

    def test_lines_belong_to_cases(self):
        result = self.validate(CONSOLE, [family(name, "") for name in "abc"])
        a, b = result["cases"]
        leaked = "unreferenced object 0xffff888004ab8400 (size 192):"
        self.assertEqual(a, case("a", 0, [leaked]))
        self.assertIsNone(b["rc"])
        self.assertIn("the module could not be unloaded", b["errors"])
        self.assertTrue(any("KASAN" in e for e in b["errors"]))
        self.assertTrue(any("taint" in e for e in b["errors"]))
        self.assertFalse(result["scan"])
        self.assertFalse(result["ok"])

    def test_good_devices_are_not_given_up(self):
        def lost(*devices, log=GOOD_LOG):
            return any("a good device was lost" in e for e in self.errors(*devices, log=log))

        self.assertTrue(lost(gpu()))
        self.assertFalse(lost(gpu("--adversary silence")))
        self.assertFalse(lost(gpu(status=-9, killed=True)))
        reset = GOOD_LOG.replace("it does not respond", "its bus resets it")
        self.assertFalse(lost(gpu(), log=reset))

    def test_devices_end_well(self):
        good = [gpu(), gpu("--adversary exit --adversary-from 40", 1),
                gpu("--adversary exit:7", 7), gpu(status=-9, killed=True)]
        bad = [gpu(status=1), gpu(status=-6), gpu(status=None), gpu("--adversary exit", 0),
               gpu("--adversary exit", -6), gpu(status=-6, killed=True)]
        for d in good + bad:
            with self.subTest(arguments=d.arguments, status=d.status, killed=d.killed):
                self.assertEqual(bool(self.errors(d, log=FOUND)), d in bad)

    def test_devices_misbehave_as_they_are_told(self):
        def never(arguments, events):
            return any("never did" in e for e in self.errors(gpu(arguments), events=events))

        self.assertTrue(never("--adversary silence", ([], 9, 0)))
        self.assertFalse(never("--adversary silence", ([], 9, 1)))
        self.assertFalse(never("--adversary silence", ([], 0, 0)))
        self.assertFalse(never("", ([], 9, 0)))

    def test_lockdep_is_looked_at(self):
        on = FOUND.replace("VIRTGPU-GUEST-TAINTED",
                           "VIRTGPU-GUEST-LOCKDEP on\nVIRTGPU-GUEST-TAINTED")
        self.assertTrue(self.errors(gpu(), kernel="debug", log=FOUND))
        self.assertFalse(self.errors(gpu(), kernel="debug", log=on))
        self.assertFalse(self.errors(gpu(), kernel="stock", log=FOUND))
