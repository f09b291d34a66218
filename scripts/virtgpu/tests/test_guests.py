# SPDX-License-Identifier: GPL-2.0
"""Shows what guests.py makes of guests that end in this way or that."""

import contextlib
import io
import threading

from . import fakes
from .. import guests, result, suites
from .fakes import ALL, LEAK, LOCKUP, ONE, case, cases, document


class Guests(fakes.FakeGuests):
    def test_all_in_one_guest(self):
        r = self.run_guest([(document("a", "b", "c"), cases("a", "b", "c"))], ALL)
        self.assertFalse(r.failed)
        self.assertIn("s/b/guest_log_and_unload", r.names)

    def test_finding_names_its_case(self):
        ended = {"cases": [case("a"), case("b", 0, [LEAK]), case("c")]}
        r = self.run_guest([(document("a", "b", "c"), ended)], ALL)
        self.assertEqual(r.failed, {"s/b/guest_log_and_unload"})

    def test_the_rest_runs_in_the_next_guest(self):
        stuck = case("b", None, ["the module could not be unloaded"])
        r = self.run_guest([(document("a"), {"rc": 1, "cases": [case("a"), stuck]}),
                            (document("c"), cases("c"))], ALL)
        self.assertEqual(r.failed, {"s/b/guest_log_and_unload"})
        self.assertIn("s/c/works", r.names)
        self.assertIn("--families=c", r.commands[1])

    def test_no_family_is_lost(self):
        r = self.run_guest([([], {"marker": False, "errors": ["killed after 9 s"]})], ALL)
        self.assertLessEqual({"s/a", "s/b", "s/c", "s/g/guest_log_and_unload"}, r.failed)

    def test_a_silent_family_fails(self):
        r = self.run_guest([(document("a", "c"), cases("a", "b", "c"))], ALL)
        self.assertEqual(r.failed, {"s/b/guest_log_and_unload"})

    def test_status_without_failure_fails(self):
        ended = {"rc": 1, "cases": [case("a"), case("b", 1), case("c")]}
        r = self.run_guest([(document("a", "b", "c"), ended)], ALL)
        self.assertIn("s/b/guest_log_and_unload", r.failed)

    def test_a_pause_does_not_fail(self):
        paused = {"stood_still": 30, "scan": [LOCKUP]}
        r = self.run_guest([(document("a", status="not ok"), paused), (document("a"), {})], ONE)
        self.assertFalse(r.failed)
        self.assertIn("s/a/works", r.text)
        self.assertIn("stood still for 30", r.text)

    def test_a_pause_hides_no_finding(self):
        paused = {"stood_still": 30, "scan": [LEAK, LOCKUP]}
        r = self.run_guest([(document("a"), paused), (document("a"), {})], ONE)
        self.assertEqual(r.failed, {"s/g-paused/guest_log_and_unload"})

    def test_fails_twice(self):
        r = self.run_guest([(document("a"), {"stood_still": 30}),
                            (document("a", status="not ok"), {"stood_still": 30})], ONE)
        self.assertEqual(r.failed, {"s/a/works"})

    def test_short_pauses_count(self):
        r = self.run_guest([(document("a", status="not ok"), {"stood_still": 9})], ONE)
        self.assertEqual(r.failed, {"s/a/works"})

    def test_no_result_fails(self):
        r = self.run_guest([([], None)], ONE)
        self.assertIn("s/g/guest_log_and_unload", r.failed)

    def test_two_hung_boots_fail(self):
        report = result.Report()
        report.guests = [dict(fakes.GUEST, starts=2)]
        with contextlib.redirect_stdout(io.StringIO()):
            report.finish()
            self.assertEqual(report.results, [])
            report.guests *= 2
            report.finish()
        self.assertEqual([r.name for r in report.results], ["guests/boot"])

    def test_unchanged_guests_are_skipped(self):
        other = dict(ONE, job="y")
        with self.variables(VIRTGPU_CHANGED="1"):
            self.assertFalse(self.run_guest([(document("a"), {})], ONE).failed)
            again = self.run_guest([], ONE)
            bad = self.run_guest([(document("a", status="not ok"), {})], other)
            mended = self.run_guest([(document("a"), {})], other)
        self.assertEqual(again.names, ["s/g/guest_log_and_unload"])
        self.assertIn("has changed", again.text)
        self.assertTrue(bad.failed)
        self.assertFalse(mended.failed)

    def test_another_seed_is_no_other_input(self):
        guest = dict(ONE, host_env=["VIRTGPU_TESTS_SEED"],
                     device_args="--seed $VIRTGPU_TESTS_SEED")
        with self.variables(VIRTGPU_CHANGED="1", VIRTGPU_TESTS_SEED="7"):
            command = self.run_guest([(document("a"), {})], guest).commands[0]
        with self.variables(VIRTGPU_CHANGED="1", VIRTGPU_TESTS_SEED="8"):
            second = self.run_guest([], guest)
        self.assertIn("--device-args=--seed 7", command)
        self.assertIn("VIRTGPU_TESTS_SEED=7", command[-1])
        self.assertEqual(second.names, ["s/g/guest_log_and_unload"])
        self.assertFalse(second.failed)

    def test_every_family_has_its_turn(self):
        """And what is left out is said, and is no skip that should be expected."""
        guest, runs = dict(ALL, share=2), []
        for turn, mine in enumerate((["a", "c"], ["b"])):
            with self.variables(VIRTGPU_SHARE="1", VIRTGPU_COMMIT=f"0000000{turn}cafe"):
                runs.append(self.run_guest([(document(*mine), cases(*mine))], guest))
        whole = self.run_guest([(document("a", "b", "c"), cases("a", "b", "c"))], guest)
        self.assertFalse(any(r.failed for r in (*runs, whole)))
        self.assertIn("--families=a,c", runs[0].commands[0])
        self.assertIn("--families=b", runs[1].commands[0])
        self.assertIn(f"skip s/b # {result.OTHERS}", runs[0].text)
        self.assertNotIn("skip", whole.text.replace("0 skipped", ""))

    def test_guests_wait_for_their_suites_commands(self):
        begun, first, made = [], threading.Event(), {"b": threading.Event()}

        def run_guest(part, guest):
            begun.append((guest.suite, made["b"].is_set()))
            first.set()

        self.replace(guests, "run_guest", run_guest)
        runs = [suites.Guest("b", {"kernel": "debug"}, {"name": "g"}),
                suites.Guest("a", {"kernel": "stock"}, {"name": "g"})]
        workers = guests.run_all(None, runs, 1, made)
        first.wait()
        made["b"].set()
        for worker in workers:
            worker.join()
        self.assertEqual(begun, [("a", False), ("b", True)])
