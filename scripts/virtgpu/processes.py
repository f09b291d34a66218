# SPDX-License-Identifier: GPL-2.0
"""Waits for processes, and knows what they have cost."""

import os
import resource


def children_seconds():
    """The processor time of all processes that were started and have ended."""
    return seconds(resource.getrusage(resource.RUSAGE_CHILDREN))


def seconds(usage):
    return usage.ru_utime + usage.ru_stime


def wait(process):
    """Waits for a process; returns its exit status and the processor time of all that it has
    started."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, seconds(usage)
