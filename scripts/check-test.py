#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Self-test of check.py and of what vm.py makes of a guest's log; prints KTAP itself."""

import argparse
import contextlib
import glob
import io
import json
import os
import subprocess
import sys
import tempfile
import threading
import types

import check
import skips
import vm
from families import Family

GUEST = {"name": "x", "starts": 1, "cpu": 1.0, "boot": 1, "work": 1, "unload": 1, "stood_still": 0, "marker": True,
         "rc": 0, "errors": [], "scan": [], "cases": []}


def document(*families, status="ok"):
    """What virtgpu-tests prints for them."""
    lines = []
    for f in families:
        lines += ["KTAP version 1", "1..1", "    1..1", f"    {status} 1 works", f"{status} 1 {f}"]
    return lines


def run(guests, run, build):
    """Runs check.py with guests that say what they are told to; the names of what failed, the text, the commands."""
    commands, guests = [], list(guests)

    def feed(reader, report, suite, command, log, show=None):
        commands.append(command)
        lines, result = guests.pop(0)
        for line in lines:
            for r in reader.feed(line):
                report.add(f"{suite}/{r.name}", r.status, r.seconds, r.reason, r.notes)
        folder = f"{build}/logs/{command[2]}"
        os.makedirs(folder, exist_ok=True)
        if result is not None:
            with open(f"{folder}/result", "w") as f:
                json.dump(dict(GUEST, **result), f)
        return 0, 0.0

    offered = {n: Family(f"{n}\tany\tours\t--x\t") for n in ("a", "b", "c")}
    text = io.StringIO()
    check.BUILD, check.feed, check.families = build, feed, lambda: offered
    report = check.Report()
    with contextlib.redirect_stdout(text):
        check.run_guest(check.Part(report), "s", {"kernel": "stock"}, run)
        report.finish()
    assert not guests, "a guest was not started"
    failed = {r.name for r in report.results if r.status == "not ok"}
    return types.SimpleNamespace(failed=failed, names=[r.name for r in report.results], text=text.getvalue(),
                                 commands=commands)


def case(name, rc=0, errors=()):
    return {"name": name, "begun": True, "rc": rc, "errors": list(errors)}


ALL = {"name": "g", "each_device": ".", "families": ["a", "b", "c"]}
ONE = {"name": "g", "job": "x"}
LEAK = "BUG: KASAN: slab-use-after-free in foo+0x1/0x2"
LOCKUP = "watchdog: BUG: soft lockup - CPU#0 stuck for 62s! [sh:1]"


def all_in_one_guest(build):
    r = run([(document("a", "b", "c"), {"cases": [case("a"), case("b"), case("c")]})], ALL, build)
    return not r.failed and "s/b/guest_log_and_unload" in r.names


def finding_names_its_case(build):
    r = run([(document("a", "b", "c"), {"cases": [case("a"), case("b", 0, [LEAK]), case("c")]})], ALL, build)
    return r.failed == {"s/b/guest_log_and_unload"}


def the_rest_runs_in_the_next_guest(build):
    r = run([(document("a"), {"rc": 1, "cases": [case("a"), case("b", None, ["the module could not be unloaded"])]}),
             (document("c"), {"cases": [case("c")]})], ALL, build)
    return (r.failed == {"s/b/guest_log_and_unload"} and "s/c/works" in r.names
            and "--families=c" in r.commands[1])


def no_family_is_lost(build):
    r = run([([], {"marker": False, "errors": ["killed after 9 s"]})], ALL, build)
    return {"s/a", "s/b", "s/c", "s/g/guest_log_and_unload"} <= r.failed


def a_silent_family_fails(build):
    r = run([(document("a", "c"), {"cases": [case("a"), case("b"), case("c")]})], ALL, build)
    return r.failed == {"s/b/guest_log_and_unload"}


def status_without_failure_fails(build):
    r = run([(document("a", "b", "c"), {"rc": 1, "cases": [case("a"), case("b", 1), case("c")]})], ALL, build)
    return "s/b/guest_log_and_unload" in r.failed


def a_pause_does_not_fail(build):
    r = run([(document("a", status="not ok"), {"stood_still": 30, "scan": [LOCKUP]}),
             (document("a"), {})], ONE, build)
    return not r.failed and "s/a/works" in r.text and "stood still for 30" in r.text


def a_pause_hides_no_finding(build):
    r = run([(document("a"), {"stood_still": 30, "scan": [LEAK, LOCKUP]}), (document("a"), {})], ONE, build)
    return r.failed == {"s/g-paused/guest_log_and_unload"}


def another_seed_is_no_other_input(build):
    guest = dict(ONE, host_env=["VIRTGPU_TESTS_SEED"], device_args="--seed $VIRTGPU_TESTS_SEED")
    os.environ.update(VIRTGPU_CHANGED="1", VIRTGPU_TESTS_SEED="7")
    first = run([(document("a"), {})], guest, build)
    os.environ["VIRTGPU_TESTS_SEED"] = "8"
    second = run([], guest, build)
    for name in ("VIRTGPU_CHANGED", "VIRTGPU_TESTS_SEED"):
        del os.environ[name]
    command = first.commands[0]
    return ("--device-args=--seed 7" in command and "VIRTGPU_TESTS_SEED=7" in command[-1]
            and second.names == ["s/g/guest_log_and_unload"] and not second.failed)


def every_family_has_its_turn(build):
    """And what is left out is said, and is no skip that should be expected."""
    run_of = {}
    os.environ["VIRTGPU_SHARE"] = "1"
    for turn, mine in enumerate((["a", "c"], ["b"])):
        os.environ["VIRTGPU_COMMIT"] = f"0000000{turn}cafe"
        run_of[turn] = run([(document(*mine), {"cases": [case(f) for f in mine]})], dict(ALL, share=2), build)
    for name in ("VIRTGPU_SHARE", "VIRTGPU_COMMIT"):
        del os.environ[name]
    whole = run([(document("a", "b", "c"), {"cases": [case("a"), case("b"), case("c")]})], dict(ALL, share=2), build)
    return (not any(r.failed for r in (*run_of.values(), whole)) and "--families=a,c" in run_of[0].commands[0]
            and "--families=b" in run_of[1].commands[0] and f"skip s/b # {check.OTHERS}" in run_of[0].text
            and "skip" not in whole.text.replace("0 skipped", ""))


def guests_wait_for_their_suites_commands(build):
    begun, first, made = [], threading.Event(), {"b": threading.Event()}

    def run_guest(part, suite, spec, run):
        begun.append((suite, made["b"].is_set()))
        first.set()

    real, check.run_guest = check.run_guest, run_guest
    try:
        runs = [("b", {"kernel": "debug"}, {"name": "g"}), ("a", {"kernel": "stock"}, {"name": "g"})]
        workers = check.run_guests(None, runs, 1, made)
        first.wait()
        made["b"].set()
        for worker in workers:
            worker.join()
    finally:
        check.run_guest = real
    return begun == [("a", False), ("b", True)]


def fails_twice(build):
    r = run([(document("a"), {"stood_still": 30}), (document("a", status="not ok"), {"stood_still": 30})], ONE, build)
    return r.failed == {"s/a/works"}


def short_pauses_count(build):
    r = run([(document("a", status="not ok"), {"stood_still": 9})], ONE, build)
    return r.failed == {"s/a/works"}


def no_result_fails(build):
    r = run([([], None)], ONE, build)
    return "s/g/guest_log_and_unload" in r.failed


def two_hung_boots_fail(build):
    report = check.Report()
    report.guests = [dict(GUEST, starts=2)]
    with contextlib.redirect_stdout(io.StringIO()):
        report.finish()
        one = [r.name for r in report.results]
        report.guests *= 2
        report.finish()
    return not one and [r.name for r in report.results] == ["guests/boot"]


def unchanged_guests_are_skipped(build):
    os.environ["VIRTGPU_CHANGED"] = "1"
    try:
        first = run([(document("a"), {})], ONE, build)
        again = run([], ONE, build)
        other = run([(document("a", status="not ok"), {})], dict(ONE, job="y"), build)
        failed_before = run([(document("a"), {})], dict(ONE, job="y"), build)
    finally:
        del os.environ["VIRTGPU_CHANGED"]
    return (not first.failed and again.names == ["s/g/guest_log_and_unload"] and "has changed" in again.text
            and other.failed and not failed_before.failed)


SKIPS = """skips = [
    { test = "s/a/*", reason = "no *", why = "w" },
    { test = "{s,t}/b/x", reason = "no c", why = "w" },
    { test = "s/c/x", reason = "*", why = "w", maybe = true },
]
"""


def skip_problems(skipped, suites=("s", "t"), others=(), text=SKIPS):
    """What is wrong with these skips: the names of failures, and the text."""
    report, out = check.Report(), io.StringIO()
    with contextlib.redirect_stdout(out):
        for name, reason in skipped:
            report.add(name, "skip", None, reason)
        for name, status in others:
            report.add(name, status)
        report.check_skips(suites, text)
    failed = {r.name for r in report.results if r.status == "not ok" and r.name.startswith("skips/")}
    return failed, out.getvalue()


ALL_SKIPS = [("s/a/1", "no a"), ("s/b/x", "no c"), ("t/b/x", "no c")]


def expected_skips_pass(build):
    return not skip_problems(ALL_SKIPS)[0] and not skip_problems(ALL_SKIPS + [("s/c/x", "z")])[0]


def a_new_skip_fails(build):
    failed, text = skip_problems(ALL_SKIPS + [("s/d/x [1]", 'what "it" says')])
    # The line that it says to add is right.
    added = next(line.strip() for line in text.splitlines() if line.strip().startswith("{"))
    mended = SKIPS.replace("]\n", added + "\n]\n", 1)
    return (failed == {"skips/s/d/x_[1]"} and not skip_problems(ALL_SKIPS + [("s/d/x [1]", 'what "it" says')],
                                                               text=mended)[0])


def another_reason_fails(build):
    failed, _ = skip_problems([("s/a/1", "yes"), ("s/b/x", "no c"), ("t/b/x", "no c")])
    return "skips/s/a/1" in failed and skip_problems(ALL_SKIPS + [("s/b/x", "")])[0] == {"skips/s/b/x"}


def a_skip_that_is_missed_fails(build):
    return skip_problems(ALL_SKIPS[:2])[0] == {"skips/t/b/x"}


def only_whole_suites_miss_skips(build):
    run_by_name = skip_problems(ALL_SKIPS[:2], ["s"])[0]
    failed = skip_problems(ALL_SKIPS[:2], others=[("t/g/guest_log_and_unload", "not ok")])[0]
    unchanged = skip_problems(ALL_SKIPS[:2] + [("t/g/guest_log_and_unload", check.UNCHANGED)])[0]
    return not run_by_name and not failed and not unchanged


def a_bad_list_of_skips_fails(build):
    bad = ['skips = [{ test = "s/a", reason = "x" }]', 'skips = [{ test = "*/a", reason = "x", why = "y" }]',
           'skips = [{ test = "s/a", reason = "x", why = "y", unless = 1 }]', "[", "x = 1", "skips = [1]"]
    return all(skip_problems([], text=text)[0] == {"skips/list"} for text in bad)


def the_list_of_skips_is_right(build):
    top = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    with open(f"{top}/tests/skips.toml") as f:
        expected = skips.parse(f.read())
    suites = {os.path.basename(path)[:-len(".toml")] for path in glob.glob(f"{top}/tests/suites/*.toml")}
    return expected and {e.suite for e in expected} <= suites
def what_is_expected_must_come(build):
    r = run([(document("a"), {})], dict(ONE, expect="echo a/works; echo a/is_missing"), build)
    return r.failed == {"s/a/is_missing"} and "s/a/works" in r.names


def devices_are_those_that_match_or_are_named(build):
    check.families = lambda: {n: Family(f"{n}\tany\tours\t{d}\t") for n, d in (("a", "--x"), ("b", "--y"), ("c", ""))}
    named = lambda **run: [g["families"] for g in check.guests({"kernel": "stock", "guest": [dict(run, name="g")]})]
    return (named(each_device="x") == [["a"]] and named(each_device=".", guests=2) == [["a"], ["b"]]
            and named(each_device=".", families=["b", "unknown"]) == [["b", "unknown"]])


def what_cannot_be_listed_fails(build):
    try:
        run([], dict(ONE, expect="false"), build)
    except subprocess.CalledProcessError:
        return True
    return False


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


def lines_belong_to_cases(build):
    with open(f"{build}/console.log", "w") as f:
        f.write(CONSOLE)
    vm.PROJECT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    args = argparse.Namespace(kernel="stock", cases=[Family(f"{n}\tany\tours\t\t") for n in ("a", "b", "c")])
    result = vm.validate(args, build, types.SimpleNamespace(returncode=0), None, None)
    a, b = result["cases"]
    return (a == case("a", 0, ["unreferenced object 0xffff888004ab8400 (size 192):"]) and b["rc"] is None and "the module could not be unloaded" in b["errors"]
            and any("KASAN" in e for e in b["errors"]) and any("taint" in e for e in b["errors"])
            and not result["scan"] and not result["ok"])


GOOD_LOG = """VIRTGPU-GUEST-START
[    9.0] virtgpu_userptr virtio0: device lost: it does not answer
VIRTGPU-GUEST-TAINTED 12288
VIRTGPU-GUEST-DONE rc=0
"""


def device(arguments="", status=0, killed=False):
    d = vm.Device.__new__(vm.Device)
    d.run, d.events, d.arguments, d.case = "", "events.jsonl", arguments, None
    d.status, d.killed, d.stopped = status, killed, False
    d.requests = d.mistreated = 0
    return d


def errors(build, devices, kernel="stock", log=GOOD_LOG, events=([], 9, 1)):
    """What is wrong with a guest whose log is this and that has had these devices, with such event logs."""
    with open(f"{build}/console.log", "w") as f:
        f.write(log)
    vm.PROJECT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    vm.check_events = lambda run, log, unfinished: (list(events[0]), *events[1:])
    args = argparse.Namespace(cases=[], kernel=kernel)
    gpus = types.SimpleNamespace(all=devices)
    return vm.validate(args, build, types.SimpleNamespace(returncode=0), None, gpus)["errors"]


def good_devices_are_not_given_up(build):
    lost = lambda *devices: any("a good device was lost" in e for e in errors(build, devices))
    reset = GOOD_LOG.replace("it does not answer", "its bus resets it")
    return (lost(device()) and not lost(device("--adversary silence"))
            and not lost(device(status=-9, killed=True))
            and not any("a good device was lost" in e for e in errors(build, [device()], log=reset)))


def devices_end_well(build):
    log = GOOD_LOG.replace("device lost", "device found")
    bad = lambda d: bool(errors(build, [d], log=log))
    return (not bad(device()) and bad(device(status=1)) and bad(device(status=-6)) and bad(device(status=None))
            and not bad(device("--adversary exit --adversary-from 40", 1)) and bad(device("--adversary exit", 0))
            and bad(device("--adversary exit", -6)) and not bad(device("--adversary exit:7", 7))
            and not bad(device(status=-9, killed=True)) and bad(device(status=-6, killed=True)))


def devices_misbehave_as_they_are_told(build):
    never = lambda *devices, events: any("never did" in e for e in errors(build, devices, events=events))
    bad = device("--adversary silence")
    return (never(bad, events=([], 9, 0)) and not never(bad, events=([], 9, 1)) and not never(bad, events=([], 0, 0))
            and not never(device(), events=([], 9, 0)))


def lockdep_is_looked_at(build):
    log = GOOD_LOG.replace("device lost", "device found")
    on = log.replace("VIRTGPU-GUEST-TAINTED", "VIRTGPU-GUEST-LOCKDEP on\nVIRTGPU-GUEST-TAINTED")
    return (errors(build, [device()], "debug", log) and not errors(build, [device()], "debug", on)
            and not errors(build, [device()], "stock", log))


def a_hung_boot_is_no_long_job(build):
    def hang(console):
        with open(f"{build}/console.log", "w") as f:
            f.write(console)
        args = argparse.Namespace(kernel="stock", timeout=1, interactive=False, quiet=True)
        clock = types.SimpleNamespace(stood_still=0)
        return vm.run_qemu(args, build, None, None, clock)[1]
    vm.qemu_command = lambda *args: ["sleep", "60"]
    vm.where_it_hangs = lambda *args: "asleep"
    vm.START_SECONDS = 2
    return (hang("[    1.4] hpet0: 3 comparators\n") == vm.NEVER_STARTED
            and hang("VIRTGPU-GUEST-START\n") == "killed after 1 s (asleep)")


TESTS = [all_in_one_guest, finding_names_its_case, the_rest_runs_in_the_next_guest, no_family_is_lost,
         a_silent_family_fails, status_without_failure_fails, a_pause_does_not_fail, a_pause_hides_no_finding,
         fails_twice, short_pauses_count, no_result_fails, two_hung_boots_fail, unchanged_guests_are_skipped,
         another_seed_is_no_other_input, every_family_has_its_turn, guests_wait_for_their_suites_commands,
         expected_skips_pass, a_new_skip_fails, another_reason_fails, a_skip_that_is_missed_fails,
         only_whole_suites_miss_skips, a_bad_list_of_skips_fails, the_list_of_skips_is_right,
         what_is_expected_must_come, what_cannot_be_listed_fails,
         devices_are_those_that_match_or_are_named,
         lines_belong_to_cases, good_devices_are_not_given_up, devices_end_well, devices_misbehave_as_they_are_told,
         lockdep_is_looked_at, a_hung_boot_is_no_long_job]


def main():
    print("KTAP version 1")
    print(f"1..{len(TESTS)}")
    failed = 0
    for number, test in enumerate(TESTS, 1):
        with tempfile.TemporaryDirectory() as build:
            try:
                ok = test(build)
            except Exception as error:  # one test, not all
                print(f"# {error!r}")
                ok = False
        failed += not ok
        print(f"{'ok' if ok else 'not ok'} {number} {test.__name__}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
