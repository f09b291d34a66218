# SPDX-License-Identifier: GPL-2.0
"""Reads suites: what there is to run, and which families a guest gets.

A suite is a file tests/suites/NAME.toml:

  description = "one line for LIST=1"
  order = 10              # suites are named, and their commands run, in this order
  kernel = "stock"        # of its guests, unless a run says otherwise
  driver = "ours"
  default = false         # only when asked for by name

  [[command]]             # something that runs here
  name = "protocol"
  run = "cargo test …"    # a shell command
  format = "cargo"        # cargo, ktap, or status (the default: one test)
  show = "REGEX"          # lines of its output that are printed as they are

  [[guest]]               # a guest
  name = "all"
  families = ["pin"]      # of virtgpu-tests; ["*"] are all that apply to the
                          # kernel and driver, want a well-behaved device and are
                          # not named by another run of the suite
  except = ["slow"]       # families that "*" leaves out
  except_suites = ["big"] # suites whose named families "*" leaves out
  each_device = "REGEX"   # instead: each family that wants a device with arguments
                          # of its own, if they match, on such a device; with `families`, those
  guests = 2              # how many guests share these families
  share = 3               # of the families every third, others for each commit; all if the suite
                          # was named, or with VIRTGPU_ALL=1
  first = "…"             # a shell command that prints KTAP, before the families
  expect = "…"            # a shell command here that prints names of tests, one a line;
                          # one that the guest does not report is a failure
  waits = true            # it mostly waits, so others run beside it
  job = "…"               # instead: a shell command that prints KTAP
  env = "NAME=value"      # for the job
  host_env = ["NAME"]     # variables that the job gets from this environment, if set
  show = "REGEX"          # as with commands
  kernel, driver, device, mem, cpus, timeout, device_args, module_args, append, display,
  iommu, host_gpu, trees, files  # as the options of vm.sh; $NAME in device_args is a
                          # variable of this environment
"""

import re
import subprocess
import tomllib

from . import environment, families
from .environment import PROJECT, TESTS
from .result import OTHERS

# Options of vm.sh with a value, and those without.
OPTIONS = ("device", "mem", "cpus", "timeout", "device_args", "module_args", "append", "host_gpu",
           "trees", "files")
FLAGS = ("display", "iommu")


def load(suite):
    """What the file of a suite says."""
    with open(f"{TESTS}/suites/{suite}.toml", "rb") as f:
        return tomllib.load(f)


class Guest:
    """A guest of a suite."""

    def __init__(self, suite, spec, run):
        self.suite, self.spec, self.run = suite, spec, run
        self.name, self.folder = f"{suite}/{run['name']}", f"{suite}-{run['name']}"
        self.kernel, self.driver = self.option("kernel", "stock"), self.option("driver", "ours")

    def option(self, key, default=None):
        """What the guest says, or else its suite."""
        return self.run.get(key, self.spec.get(key, default))

    def vm_options(self):
        """The options of vm.sh, without the guest's name and the job."""
        options = ["--kernel", self.kernel, "--driver", self.driver]
        for key in OPTIONS:
            if self.option(key) is not None:
                options.append(f"--{key.replace('_', '-')}={self.option(key)}")
        return options + [f"--{flag}" for flag in FLAGS if self.option(flag)]

    def job(self, wanted):
        """The command that runs these families, or what the guest has instead."""
        job = self.run.get("job")
        if not job:
            names = "$VIRTGPU_CASE" if self.run.get("each_device") else " ".join(wanted)
            job = f"virtgpu-tests run {names}"
        if self.run.get("first"):
            job = f"{self.run['first']}; {job}"
        if self.option("env"):
            job = f"export {self.option('env')}; {job}"
        return job

    def wanted_families(self, report):
        """The families that the guest runs; none if it has a job instead."""
        if self.run.get("job"):
            return []
        offered, wanted = families.offered(), list(self.run["families"])
        if "*" in wanted:
            left_out = self.left_out()
            wanted = [f.name for f in offered.values()
                      if f.applies(self.kernel, self.driver) and not f.device
                      and f.name not in left_out]
        for f in wanted:
            if f not in offered:
                report.add(f"{self.suite}/{f}", "not ok", None,
                           "virtgpu-tests knows no such family")
        wanted = [f for f in wanted if f in offered]
        return self.of_this_commit(report, wanted) if environment.shares() else wanted

    def left_out(self):
        """The families that "*" does not mean."""
        specs = [self.spec] + [load(other) for other in self.run.get("except_suites", [])]
        named = {f for s in specs for g in s["guest"] for f in g.get("families", [])}
        return named | set(self.run.get("except", []))

    def of_this_commit(self, report, wanted):
        """Those of the families whose turn it is."""
        share = self.run.get("share", 1)
        turn = int(environment.commit()[:8] or "0", 16) % share
        mine = [f for at, f in enumerate(wanted) if at % share == turn]
        for f in wanted:
            if f not in mine:
                report.add(f"{self.suite}/{f}", "skip", None, OTHERS)
        return mine

    def expected_tests(self):
        """The names of the tests that the guest has to report."""
        if not self.run.get("expect"):
            return []
        return subprocess.run(["sh", "-c", self.run["expect"]], cwd=PROJECT,
                              stdout=subprocess.PIPE, text=True, check=True).stdout.split()


def guests(suite, spec):
    """The guests of a suite, `each_device` spelt out."""
    for run in spec.get("guest", []):
        guest = Guest(suite, spec, run)
        if not run.get("each_device"):
            yield guest
            continue
        names = run.get("families") or [
            f.name for f in families.offered().values()
            if f.device and re.search(run["each_device"], f.device)
            and f.applies(guest.kernel, guest.driver)]
        count = run.get("guests", 1)
        for part in range(count):
            yield Guest(suite, spec, dict(run, name=f"{run['name']}-{part + 1}",
                                          families=names[part::count]))
