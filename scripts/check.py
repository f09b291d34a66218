#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Runs test suites and reports one line a test. Started by check.sh, inside the
build root, when everything is built.

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

Guests run JOBS at a time (one a core, if nothing else is said), and as many again of
those that mostly wait; those in the debug kernel first, then those with the longest time
limit. Commands run one after the other beside them. A guest whose suite has commands
comes last, and begins when these are over: it may need what they have made.

Where a guest stops in the middle of its families (see vm.py --families), the next one
does the rest. A guest during which the machine stood still for more than ten seconds is
run once more: its results do not count, except for what no pause explains. A guest that
hung before its first process is started again by vm.py; more than one of them in a run
is a failure.

A skip that tests/skips.toml does not expect is a failure, and so is one that it expects in vain.

With VIRTGPU_CHANGED=1 a guest is skipped that has passed before with the same
inputs: kernel, module, device, programs, trees, scripts, and what its suite says.
"""

import glob
import hashlib
import json
import os
import queue
import re
import resource
import shlex
import subprocess
import sys
import threading
import time
import tomllib

import ktap
import skips
from families import families

PROJECT = "/project"
BUILD = PROJECT + "/build"
SUITES = PROJECT + "/tests/suites"
SKIPS = PROJECT + "/tests/skips.toml"
TARGET = BUILD + "/target/x86_64-unknown-linux-gnu/release"
# Each guest is a test itself.
GUEST_TEST = "/guest_log_and_unload"
# Why a guest was not started with VIRTGPU_CHANGED.
UNCHANGED = "nothing that goes into it has changed since it passed"
# Why a family is left out where `share` says so.
OTHERS = "it is the turn of others with this commit; ALL=1 runs all"


# More than this, and a guest has seen a machine that no user has.
STOOD_STILL_SECONDS = 10
# What a machine that stands still makes a kernel say.
PAUSES = re.compile(r"soft lockup|hard LOCKUP|rcu:? .*stall|workqueue lockup|blocked for more than|"
                    r"blocked in I/O wait|Call Trace:|killed after \d+ s")


class Part:
    """What one command or guest reports, counted apart."""

    def __init__(self, report):
        self.report, self.failed, self.results = report, 0, []

    def add(self, name, status, seconds=None, reason="", notes=()):
        self.failed += status not in ("ok", "skip")
        with self.report.lock:
            self.results.append(self.report.add(name, status, seconds, reason, notes))

    def print(self, line):
        with self.report.lock:
            print(line, flush=True)

    def discard(self):
        """What was reported does not count."""
        with self.report.lock:
            for result in self.results:
                self.report.results.remove(result)
        self.failed, self.results = 0, []


class Line:
    """A result that was printed."""

    def __init__(self, name, status, seconds, reason):
        self.name, self.status, self.seconds, self.reason = name, status, seconds, reason


class Report:
    """Counts and prints; the last line is the sum."""

    def __init__(self):
        self.lock = threading.Lock()
        self.results = []
        self.guests = []  # the results of vm.py
        self.start = time.monotonic()

    def add(self, name, status, seconds=None, reason="", notes=()):
        result = Line(name.replace(" ", "_"), status, seconds, reason)
        self.results.append(result)
        line = f"{status} {result.name}"
        if seconds is not None and status != "skip":
            line += f" ({seconds:.1f} s)"
        if reason:
            line += f" # {reason}"
        elif status == "skip":
            result.reason = "no reason given"
            line += f" # {result.reason}"
        print(line, flush=True)
        if status == "not ok":
            for note in list(notes)[-15:]:
                print(f"    {note}", flush=True)
        return result

    def check_skips(self, suites, text):
        """Compares the skips with those that `text` expects. `suites` are those that were run."""
        results = [r for r in self.results if not (r.status == "skip" and r.reason in (UNCHANGED, OTHERS))]
        # What fails may have kept others from being skipped, and so may a guest that was left out.
        broken = {r.name.partition("/")[0] for r in self.results if r.status == "not ok" or r not in results}
        try:
            wrong = skips.problems(skips.parse(text), results, set(suites) - broken)
        except (KeyError, TypeError, ValueError) as error:
            wrong = [("list", f"tests/skips.toml: {error}", [])]
        for name, reason, notes in wrong:
            self.add(f"skips/{name}", "not ok", None, reason, notes)

    def finish(self):
        hung = [g["name"] for g in self.guests if g["starts"] > 1]
        if len(hung) > 1:
            self.add("guests/boot", "not ok", None, f"hung before their first process: {', '.join(hung)}")
        if self.guests:
            print(f"# {len(self.guests)} guests, {sum(g['cpu'] for g in self.guests) / 60:.1f} CPU-minutes, "
                  f"of {cpu_seconds() / 60:.1f} in all; {(time.monotonic() - self.start) / 60:.1f} minutes")
            longest = sorted((r for r in self.results if r.seconds and not r.name.endswith(GUEST_TEST)),
                             key=lambda r: -r.seconds)
            print("# longest: " + ", ".join(f"{r.name} {r.seconds:.0f} s" for r in longest[:20]))
        count = lambda *status: sum(r.status in status for r in self.results)
        passed, skipped = count("ok"), count("skip")
        failures = [r for r in self.results if r.status not in ("ok", "skip")]
        if failures:
            print("failed:")
            for r in failures:
                print(f"    {r.name} # {r.reason}" if r.reason else f"    {r.name}")
        print(f"{passed} passed, {len(failures)} failed, {skipped} skipped", flush=True)
        return 1 if failures or not (passed or skipped) else 0


def cpu_seconds():
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def wait(process):
    """Waits for a process; returns its exit status and the processor time of all it has started."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, usage.ru_utime + usage.ru_stime


def feed(reader, report, suite, command, log, show=None):
    """Runs a command, reports what its output says, returns its exit status and processor time."""
    with open(log, "w") as out:
        p = subprocess.Popen(command, cwd=PROJECT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                             stderr=subprocess.STDOUT, text=True, errors="replace")
        for line in p.stdout:
            out.write(line)
            out.flush()
            if show and re.search(show, line):
                report.print(line.rstrip("\n"))
            for r in reader.feed(line.rstrip("\n")):
                report.add(f"{suite}/{r.name}", r.status, r.seconds, r.reason, r.notes)
        return wait(p)


def tail(path, lines=20):
    try:
        with open(path, errors="replace") as f:
            return [l.rstrip() for l in f.readlines()[-lines:]]
    except OSError:
        return []


def run_command(report, suite, run):
    name = f"{suite}/{run['name']}"
    log = f"{BUILD}/logs/{suite}-{run['name']}.log"
    shown = log.replace(PROJECT + "/", "")
    start = time.monotonic()
    form = run.get("format", "status")
    if form == "status":
        with open(log, "w") as out:
            status, cpu = wait(subprocess.Popen(["sh", "-c", run["run"]], cwd=PROJECT, stdin=subprocess.DEVNULL,
                                                stdout=out, stderr=out))
        report.print(f"# {name}: CPU {cpu:.1f} s")
        report.add(name, "not ok" if status else "ok", time.monotonic() - start,
                   f"exit status {status}, log: {shown}" if status else "", tail(log))
        return
    reader = ktap.Cargo() if form == "cargo" else ktap.Ktap()
    prefix = suite if form == "cargo" else name
    status, cpu = feed(reader, report, prefix, ["sh", "-c", run["run"]], log, run.get("show"))
    report.print(f"# {name}: {time.monotonic() - start:.1f} s; CPU {cpu:.1f} s")
    for r in reader.finish():
        report.add(f"{name}/{r.name}", r.status, None, r.reason, r.notes)
    if status and not report.failed:
        report.add(name, "not ok", time.monotonic() - start, f"exit status {status}, log: {shown}", tail(log))
    elif report.failed:
        report.print(f"    log: {shown}")


def load_suite(suite):
    with open(f"{SUITES}/{suite}.toml", "rb") as f:
        return tomllib.load(f)


def wanted_families(report, suite, spec, run, kernel, driver):
    """The families that a guest runs."""
    offered, wanted = families(), list(run["families"])
    if "*" in wanted:
        specs = [spec] + [load_suite(other) for other in run.get("except_suites", [])]
        named = {f for s in specs for g in s["guest"] for f in g.get("families", [])}
        named |= set(run.get("except", []))
        wanted = [f.name for f in offered.values()
                  if f.applies(kernel, driver) and not f.device and f.name not in named]
    for f in wanted:
        if f not in offered:
            report.add(f"{suite}/{f}", "not ok", None, "virtgpu-tests knows no such family")
    return [f for f in wanted if f in offered]


def of_this_commit(report, suite, run, wanted):
    """Those of the families whose turn it is."""
    share = run.get("share", 1)
    turn = int(os.environ.get("VIRTGPU_COMMIT", "")[:8] or "0", 16) % share
    mine = [f for at, f in enumerate(wanted) if at % share == turn]
    for f in wanted:
        if f not in mine:
            report.add(f"{suite}/{f}", "skip", None, OTHERS)
    return mine


def run_guest(report, suite, spec, run):
    """Runs a guest, and those that do what it could not."""
    option = lambda key, default=None: run.get(key, spec.get(key, default))
    kernel, driver = option("kernel", "stock"), option("driver", "ours")
    name, run_name = f"{suite}/{run['name']}", f"{suite}-{run['name']}"
    job, wanted = run.get("job"), []
    if not job:
        wanted = wanted_families(report, suite, spec, run, kernel, driver)
        if os.environ.get("VIRTGPU_SHARE"):
            wanted = of_this_commit(report, suite, run, wanted)
        if not wanted:
            report.add(name, "not ok", None, "no family of virtgpu-tests applies")
            return
        job = "virtgpu-tests run " + ("$VIRTGPU_CASE" if run.get("each_device") else " ".join(wanted))
    if run.get("first"):
        job = f"{run['first']}; {job}"
    if option("env"):
        job = f"export {option('env')}; {job}"
    command = [PROJECT + "/scripts/vm.py", "--kernel", kernel, "--driver", driver]
    for key in ("device", "mem", "cpus", "timeout", "device_args", "module_args", "append", "host_gpu", "trees",
                "files"):
        if option(key) is not None:
            command.append(f"--{key.replace('_', '-')}={option(key)}")
    command += [f"--{flag}" for flag in ("display", "iommu") if option(flag)]
    expected = expected_tests(run)
    # Before they have the seed of this commit, which changes nothing.
    key = inputs(command, job, wanted + expected, run, driver)
    for variable in option("host_env", []):
        if variable in os.environ:
            job = f"export {variable}={shlex.quote(os.environ[variable])}; {job}"
    command = [os.path.expandvars(word) if word.startswith("--device-args=") else word for word in command]
    passed = f"{BUILD}/passed/{key}"
    if os.environ.get("VIRTGPU_CHANGED") and os.path.exists(passed):
        report.add(name + GUEST_TEST, "skip", None, UNCHANGED)
        return
    if not run.get("each_device"):
        guest(report, suite, name, run_name, command + ["--", job], option("show"), expected)
    number = 1
    while run.get("each_device") and wanted:
        label = "" if number == 1 else f"-again-{number}"
        result = guest(report, suite, name + label, run_name + label,
                       command + [f"--families={','.join(wanted)}", "--", job], option("show"), expected)
        begun = {case["name"] for case in result["cases"]} if result else set()
        wanted = [f for f in wanted if f not in begun]
        number += 1
        if wanted and not begun:
            for f in wanted:
                report.add(f"{suite}/{f}", "not ok", None, "no guest came as far as this")
            break
        if wanted:
            report.print(f"# {name}: stopped; the next guest runs the other {len(wanted)} families")
    if not report.failed:
        os.makedirs(f"{BUILD}/passed", exist_ok=True)
        with open(passed, "w") as f:
            f.write(name + "\n")


def expected_tests(run):
    """The names of the tests that a guest has to report."""
    if not run.get("expect"):
        return []
    return subprocess.run(["sh", "-c", run["expect"]], cwd=PROJECT, stdout=subprocess.PIPE, text=True,
                          check=True).stdout.split()


def inputs(command, job, wanted, run, driver):
    """A hash of what decides how a guest ends."""
    key = hashlib.sha256(json.dumps([command, job, wanted], sort_keys=True).encode())
    kernel = command[2]
    environment = [f"VIRTGPU_KERNEL_{kernel.upper()}", "VIRTGPU_ACCEL", "VIRTGPU_ROOT"]
    environment += [v for v in os.environ if v.startswith("VIRTGPU_TREE_")]
    # Every commit has another seed, which changes nothing.
    environment += [v for v in run.get("host_env", []) if v != "VIRTGPU_TESTS_SEED"]
    for variable in sorted(environment):
        key.update(f"{variable}={os.environ.get(variable)};".encode())
    files = [f"{PROJECT}/scripts/{f}" for f in ("vm.py", "guest/init", "scan-log.sh", "check.py", "ktap.py",
                                                "families.py")]
    files += run.get("files", "").split(",") if run.get("files") else []
    if "--device=second" in command:
        files += glob.glob(f"{PROJECT}/tests/second-device/*.py")
    # Of the programs, those that the job names; families need one only.
    programs = {"virtgpu-device"} | set(re.findall(r"virtgpu-[a-z]+", job))
    files += [f"{TARGET}/{p}" for p in programs if os.path.exists(f"{TARGET}/{p}")]
    if "virtgpu-compare" in programs:
        folder = f"{BUILD}/target-dynamic/x86_64-unknown-linux-gnu/release"
        files += [f"{folder}/{p}" for p in ("virtgpu-gles", "virtgpu-vulkan", "virtgpu-device")]
    if driver != "c":
        files += [f"{BUILD}/module/{kernel}/virtgpu_userptr.ko", f"{BUILD}/test-module/{kernel}/virtgpu_test_exporter.ko"]
    for path in sorted(files):
        key.update(path.encode())
        if os.path.exists(path):
            with open(path, "rb") as f:
                key.update(hashlib.file_digest(f, "sha256").digest())
    return key.hexdigest()[:24]


def guest(report, suite, name, run_name, command, show, expected):
    """Runs one guest, and once more if the machine stood still meanwhile; returns what vm.py says."""
    for attempt in (1, 2):
        part = Part(report.report)
        result = guest_once(part, suite, name, run_name, command, show, expected)
        still = result["stood_still"] if result else 0
        if still <= STOOD_STILL_SECONDS or attempt == 2:
            if still > STOOD_STILL_SECONDS:
                part.print(f"# {name}: the machine stood still for {still} s again")
            report.failed += part.failed
            return result
        failed = [r.name for r in part.results if r.status == "not ok"]
        part.discard()
        part.print(f"# {name}: the machine stood still for {still} s. It is run once more, and what came out does "
                   f"not count{': failed ' + ', '.join(failed) if failed else ''}")
        everything = result["errors"] + result["scan"] + [e for c in result["cases"] for e in c["errors"]]
        unexplained = [e for e in everything if not PAUSES.search(e)]
        if unexplained:
            report.add(f"{name}-paused{GUEST_TEST}", "not ok", None, unexplained[0], unexplained[1:])
        folder = f"{BUILD}/logs/{run_name}"
        subprocess.run(["rm", "-rf", folder + "-paused"])
        os.rename(folder, folder + "-paused")


def guest_once(report, suite, name, run_name, command, show, expected):
    """Runs one guest and reports what it prints and how it ended."""
    start = time.monotonic()
    log = f"{BUILD}/logs/{run_name}.out"
    reader = ktap.Ktap()
    result_file = f"{BUILD}/logs/{run_name}/result"
    if os.path.exists(result_file):
        os.unlink(result_file)
    status, _ = feed(reader, report, suite, command[:1] + ["--name", run_name] + command[1:], log, show)
    for r in reader.finish():
        report.add(f"{name}/{r.name}", r.status, None, r.reason, r.notes)
    reported = {r.name for r in report.results}
    for test in expected:
        if f"{suite}/{test}" not in reported:
            report.add(f"{suite}/{test}", "not ok", None, "the guest did not report it")
    # The guest itself is a test: it must have ended well and left a clean log.
    try:
        with open(result_file) as f:
            result = json.load(f)
    except OSError:
        report.add(name + GUEST_TEST, "not ok", time.monotonic() - start,
                   f"the guest could not be started (status {status})", tail(log))
        return None
    with report.report.lock:
        report.report.guests.append(result)
    again = "its kernel hung at the first start, before its first process" if result["starts"] > 1 else ""
    for case in result["cases"]:
        problems, prefix = case["errors"], f"{suite}/{case['name']}/"
        mine = [r for r in report.results if r.name.startswith(prefix)]
        if case["rc"] is None and not problems:
            problems = ["the guest ended in the middle of it, or was not as before"]
        elif case["rc"] and not any(r.status == "not ok" for r in mine):
            problems.append(f"virtgpu-tests returned {case['rc']}, yet no test failed")
        elif not mine:
            problems.append("no test result was printed")
        report.add(f"{suite}/{case['name']}{GUEST_TEST}", "not ok" if problems else "ok", None,
                   problems[0] if problems else "", problems[1:])
    problems = result["errors"] + result["scan"]
    if result["marker"] and result["rc"] and not report.failed:
        problems.append(f"the job returned {result['rc']}, yet no test failed")
    report.add(name + GUEST_TEST, "not ok" if problems else "ok", time.monotonic() - start,
               problems[0] if problems else again, problems[1:])
    if report.failed:
        report.print(f"    logs: build/logs/{run_name}/")
    report.print(f"# {name}: boot {result['boot']} s, work {result['work']} s, unload {result['unload']} s; "
                 f"CPU {result['cpu']} s")
    return result


def guests(spec):
    """The guests of a suite, `each_device` spelt out."""
    for run in spec.get("guest", []):
        if not run.get("each_device"):
            yield run
            continue
        kernel, driver = run.get("kernel", spec["kernel"]), run.get("driver", spec.get("driver", "ours"))
        names = run.get("families") or [
            f.name for f in families().values()
            if f.device and re.search(run["each_device"], f.device) and f.applies(kernel, driver)]
        for part in range(run.get("guests", 1)):
            yield dict(run, name=f"{run['name']}-{part + 1}", families=names[part::run.get("guests", 1)])


def run_guests(report, runs, jobs, made):
    """Starts guests, `jobs` at a time, and as many of those that mostly wait; returns the threads. `made` has an
    event for each suite with commands, which its guests wait for."""
    def order(run):
        suite, spec, guest = run
        kernel = guest.get("kernel", spec.get("kernel"))
        return suite in made, kernel != "debug", -guest.get("timeout", spec.get("timeout", 0))

    def work(waiting):
        while True:
            try:
                suite, spec, run = waiting.get_nowait()
            except queue.Empty:
                return
            part = Part(report)
            if suite in made:
                made[suite].wait()
            try:
                run_guest(part, suite, spec, run)
            except Exception as error:  # must not pass for a run without failures
                part.add(f"{suite}/{run['name']}", "not ok", None, f"check.py: {error!r}")

    workers = []
    for waits in (False, True):
        waiting = queue.SimpleQueue()
        for run in sorted(runs, key=order):
            if run[2].get("waits", run[1].get("waits", False)) == waits:
                waiting.put(run)
        workers += [threading.Thread(target=work, args=[waiting]) for _ in range(min(jobs, waiting.qsize()))]
    for worker in workers:
        worker.start()
    return workers


def main():
    report = Report()
    os.makedirs(BUILD + "/logs", exist_ok=True)
    specs = [(suite, load_suite(suite)) for suite in sys.argv[1:]]
    runs = [(suite, spec, run) for suite, spec in specs for run in guests(spec)]
    jobs = int(os.environ.get("JOBS") or os.cpu_count())
    commands = {suite: spec["command"] for suite, spec in specs if "command" in spec}
    with_guests = {suite for suite, _, _ in runs}
    made = {suite: threading.Event() for suite in commands if suite in with_guests}
    workers = run_guests(report, runs, jobs, made)
    # First those that guests wait for.
    for suite in sorted(commands, key=lambda suite: suite not in made):
        try:
            for run in commands[suite]:
                run_command(Part(report), suite, run)
        finally:
            if suite in made:
                made[suite].set()
    for worker in workers:
        worker.join()
    with open(SKIPS) as f:
        report.check_skips([suite for suite, _ in specs], f.read())
    sys.exit(report.finish())


if __name__ == "__main__":
    main()
