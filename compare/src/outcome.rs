// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! What tests say, and the comparison of two runs.

use std::collections::BTreeSet;

/// What can go wrong with the run itself.
pub(crate) type Result<T = (), E = Box<dyn std::error::Error>> = std::result::Result<T, E>;

/// How a test ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    /// With what it has shown, where that must be the same on both drivers.
    Pass(String),
    Skip(String),
    Fail(String),
}

/// A test and how it ended.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Outcome {
    pub(crate) name: String,
    pub(crate) status: Status,
    /// How often it did something in a second, if it says so.
    pub(crate) rate: Option<f64>,
}

impl Outcome {
    pub(crate) fn new(name: impl Into<String>, status: Status) -> Self {
        Self {
            name: name.into(),
            status,
            rate: None,
        }
    }

    pub(crate) fn pass(name: impl Into<String>) -> Self {
        Self::new(name, Status::Pass(String::new()))
    }
}

/// What a comparison comes to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Comparison {
    /// Passes on both, or on this driver only.
    Same,
    /// Passes on neither.
    Skip(String),
    /// Worse on this driver.
    Differs(String),
}

/// Compares two runs of the same tests; each test is in the result once, in the order of the runs.
/// At least `floor` have to pass on Linux's driver.
pub(crate) fn compare(
    theirs: &[Outcome],
    ours: &[Outcome],
    floor: usize,
) -> Vec<(String, Comparison)> {
    let mut results: Vec<(String, Comparison)> = Vec::new();
    for outcome in theirs.iter().chain(ours) {
        if results.iter().any(|(name, _)| *name == outcome.name) {
            continue;
        }
        let [theirs, ours] = [theirs, ours].map(|run| worst(run, &outcome.name).cloned());
        results.push((outcome.name.clone(), compare_one(theirs, ours)));
    }
    // Otherwise no one would notice that the programs do not run at all, or hardly any of them.
    let passed = passed(theirs);
    if passed < floor {
        let reason = format!("{passed} tests pass on Linux's driver, {floor} should");
        results.push(("baseline".into(), Comparison::Differs(reason)));
    }
    results
}

/// How many tests pass.
pub(crate) fn passed(run: &[Outcome]) -> usize {
    let names: BTreeSet<_> = run.iter().map(|outcome| &outcome.name).collect();
    names
        .into_iter()
        .filter(|name| matches!(worst(run, name), Some(Status::Pass(_))))
        .count()
}

/// How the test of this name ended; one that is there several times, when it went worst.
fn worst<'a>(run: &'a [Outcome], name: &str) -> Option<&'a Status> {
    let same = run.iter().filter(|outcome| outcome.name == name);
    same.map(|outcome| &outcome.status)
        .min_by_key(|status| match status {
            Status::Fail(_) => 0,
            Status::Skip(_) => 1,
            Status::Pass(_) => 2,
        })
}

/// The same for tests that must not fail on either.
pub(crate) fn strict(
    theirs: &[Outcome],
    ours: &[Outcome],
    floor: usize,
) -> Vec<(String, Comparison)> {
    let mut results = compare(theirs, ours, floor);
    for (name, comparison) in &mut results {
        for (run, driver) in [(theirs, "Linux's driver"), (ours, "this driver")] {
            if let Some(Status::Fail(reason)) = worst(run, name) {
                *comparison = Comparison::Differs(format!("on {driver}: {reason}"));
            }
        }
    }
    results
}

/// The results of tests that had no comparison: they must pass.
pub(crate) fn alone(ours: &[Outcome]) -> Vec<(String, Comparison)> {
    let mut results: Vec<_> = ours
        .iter()
        .map(|outcome| {
            (
                outcome.name.clone(),
                compare_one(None, Some(outcome.status.clone())),
            )
        })
        .collect();
    if !ours
        .iter()
        .any(|outcome| matches!(outcome.status, Status::Pass(_)))
    {
        results.push(("any".into(), Comparison::Differs("nothing passes".into())));
    }
    results
}

fn compare_one(theirs: Option<Status>, ours: Option<Status>) -> Comparison {
    use Status::{Fail, Pass, Skip};
    match (theirs, ours) {
        (Some(Pass(theirs)), Some(Pass(ours))) if theirs != ours => {
            Comparison::Differs(differences(&theirs, &ours))
        }
        (_, Some(Pass(_))) => Comparison::Same,
        (Some(Pass(_)), Some(Fail(reason))) => Comparison::Differs(reason),
        (Some(Pass(_)), Some(Skip(reason))) => {
            Comparison::Differs(format!("skipped on this driver only: {reason}"))
        }
        (Some(Pass(_)), None) => Comparison::Differs("did not run on this driver".into()),
        (Some(Skip(why)), Some(Fail(reason))) => Comparison::Differs(format!(
            "{reason}\n(on Linux's driver it is skipped: {why})"
        )),
        (Some(Skip(_)), Some(Skip(reason))) => Comparison::Skip(reason),
        (Some(Skip(reason)), None) => Comparison::Skip(reason),
        (Some(Fail(reason)), _) => Comparison::Skip(format!(
            "fails on Linux's driver, too: {}",
            first_line(&reason)
        )),
        (None, Some(Skip(reason))) => Comparison::Skip(reason),
        (None, Some(Fail(reason))) => Comparison::Differs(reason),
        (None, None) => Comparison::Skip("not run".into()),
    }
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

/// The first lines in which two texts differ.
fn differences(theirs: &str, ours: &str) -> String {
    let (mut left, mut right) = (theirs.lines(), ours.lines());
    let mut shown = Vec::new();
    loop {
        match (left.next(), right.next()) {
            (None, None) => break,
            (theirs, ours) if theirs != ours && shown.len() < 10 => {
                shown.push(format!("on Linux's driver: {}", theirs.unwrap_or("(end)")));
                shown.push(format!("on this driver:    {}", ours.unwrap_or("(end)")));
            }
            _ => {}
        }
    }
    shown.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pass(what: &str) -> Status {
        Status::Pass(what.into())
    }
    fn skip() -> Status {
        Status::Skip("why".into())
    }
    fn fail() -> Status {
        Status::Fail("how".into())
    }

    #[test]
    fn what_passes_there_must_pass_here() {
        assert_eq!(
            compare_one(Some(pass("")), Some(pass(""))),
            Comparison::Same
        );
        for ours in [Some(fail()), Some(skip()), None, Some(pass("else"))] {
            let result = compare_one(Some(pass("")), ours.clone());
            assert!(matches!(result, Comparison::Differs(_)), "{ours:?}");
        }
    }

    #[test]
    fn a_failure_on_this_driver_alone_counts() {
        for theirs in [Some(skip()), None] {
            let result = compare_one(theirs.clone(), Some(fail()));
            assert!(matches!(result, Comparison::Differs(_)), "{theirs:?}");
        }
    }

    #[test]
    fn what_passes_on_neither_is_skipped() {
        for (theirs, ours) in [
            (Some(skip()), Some(skip())),
            (Some(fail()), Some(fail())),
            (Some(fail()), Some(skip())),
            (Some(fail()), None),
            (Some(skip()), None),
            (None, Some(skip())),
        ] {
            let result = compare_one(theirs.clone(), ours.clone());
            assert!(
                matches!(result, Comparison::Skip(_)),
                "{theirs:?}, {ours:?}"
            );
        }
    }

    #[test]
    fn passing_here_alone_is_well() {
        for theirs in [Some(skip()), Some(fail()), None] {
            assert_eq!(compare_one(theirs, Some(pass("x"))), Comparison::Same);
        }
    }

    #[test]
    fn each_test_is_reported_once_and_a_dead_baseline_fails() {
        let theirs = [Outcome::pass("a"), Outcome::new("b", skip())];
        let ours = [Outcome::pass("c"), Outcome::pass("a")];
        let names: Vec<_> = compare(&theirs, &ours, 1)
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        assert_eq!(names, ["a", "b", "c"]);
        let results = compare(&theirs[1..], &ours, 1);
        assert!(
            matches!(results.last(), Some((name, Comparison::Differs(_))) if name == "baseline")
        );
        assert_eq!(compare(&[], &[], 1).len(), 1);
    }

    #[test]
    fn fewer_than_the_floor_are_no_baseline() {
        let some = [
            Outcome::pass("a"),
            Outcome::pass("b"),
            Outcome::pass("b"),
            Outcome::new("c", skip()),
            Outcome::new("d", fail()),
            Outcome::pass("d"),
        ];
        assert_eq!(passed(&some), 2);
        for (floor, good) in [(0, true), (2, true), (3, false)] {
            for results in [
                compare(&some, &some, floor),
                strict(&some[..4], &some, floor),
            ] {
                let missing = results.iter().any(|(name, _)| name == "baseline");
                assert_eq!(missing, !good, "{floor}");
            }
        }
    }

    #[test]
    fn the_worst_of_several_counts() {
        let once = [Outcome::pass("a")];
        for (twice, differs) in [
            ([Outcome::pass("a"), Outcome::new("a", fail())], true),
            ([Outcome::new("a", skip()), Outcome::pass("a")], true),
            ([Outcome::pass("a"), Outcome::pass("a")], false),
        ] {
            let results = compare(&once, &twice, 1);
            assert_eq!(results.len(), 1);
            assert_eq!(matches!(results[0].1, Comparison::Differs(_)), differs);
            assert_eq!(
                matches!(strict(&once, &twice, 1)[0].1, Comparison::Differs(_)),
                differs
            );
        }
    }

    #[test]
    fn strictly_nothing_may_fail() {
        let good = [Outcome::pass("a"), Outcome::new("b", skip())];
        let bad = [Outcome::new("a", fail()), Outcome::new("b", skip())];
        for (theirs, ours) in [(&bad, &bad), (&bad, &good), (&good, &bad)] {
            let results = strict(theirs, ours, 0);
            assert!(matches!(results[0].1, Comparison::Differs(_)));
            assert!(matches!(results[1].1, Comparison::Skip(_)));
        }
        assert_eq!(strict(&good, &good, 1)[0].1, Comparison::Same);
    }

    #[test]
    fn alone_everything_must_pass() {
        let ours = [
            Outcome::pass("a"),
            Outcome::new("b", fail()),
            Outcome::new("c", skip()),
        ];
        let results = alone(&ours);
        assert_eq!(results[0].1, Comparison::Same);
        assert!(matches!(results[1].1, Comparison::Differs(_)));
        assert!(matches!(results[2].1, Comparison::Skip(_)));
        assert_eq!(results.len(), 3);
        assert!(matches!(
            alone(&[]).as_slice(),
            [(_, Comparison::Differs(_))]
        ));
    }

    #[test]
    fn differences_are_shown() {
        let text = differences("a\nb\nc", "a\nx");
        assert_eq!(text.lines().count(), 4);
        assert!(text.contains("on this driver:    x"));
        assert!(text.contains("on this driver:    (end)"));
    }
}
