// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Tests of igt-gpu-tools.

use std::time::Duration;

use crate::group::Group;
use crate::outcome::{Outcome, Result, Status};
use crate::program::{Output, Program};

const TREE: &str = "/igt";
const FOLDER: &str = "/usr/libexec/igt-gpu-tools";
/// None takes a minute, the slow ones of the debug kernel included.
const LIMIT: Duration = Duration::from_secs(240);
/// What a test returns if it has passed, has been skipped, or has failed: its lines say more.
const STATUSES: &[i32] = &[0, 77, 98];

/// Tests of what the DRM core does for any driver, with time limits of their own that a slow
/// machine can miss.
const TIMED: &[&str] = &[
    "syncobj_wait",
    "syncobj_timeline",
    "syncobj_eventfd",
    "sw_sync",
];

/// A group for each test program, given as `NAME` or `NAME:SUBTESTS`, where SUBTESTS are patterns
/// with commas between, `!` in front of those that are left out. After `--alone` come those that
/// run on this driver only.
pub(crate) fn groups(tests: &[String]) -> Vec<Group> {
    let mut alone = false;
    let mut groups = Vec::new();
    for test in tests {
        if test == "--alone" {
            alone = true;
            continue;
        }
        let (name, subtests) = test.split_once(':').unwrap_or((test, ""));
        let (program, patterns) = (name.to_string(), subtests.to_string());
        let mut group = Group::new(name, move || run(&program, &patterns));
        group.alone = alone;
        if TIMED.contains(&name) {
            let program = name.to_string();
            group.repeat = Some(Box::new(move |subtest| run(&program, subtest)));
        }
        groups.push(group);
    }
    groups
}

fn run(test: &str, subtests: &str) -> Result<Vec<Outcome>> {
    let mut program = Program::new(TREE, &format!("{FOLDER}/{test}"), LIMIT)
        .env("IGT_FORCE_DRIVER", "virtio_gpu");
    if !subtests.is_empty() {
        program = program.args(["--run-subtest", subtests]);
    }
    Ok(outcomes(&program.run()?))
}

fn outcomes(output: &Output) -> Vec<Outcome> {
    let mut outcomes = parse(&output.text);
    if let Some(problem) = output.problem(STATUSES) {
        let reason = format!("{problem}\n{}", output.tail(5));
        outcomes.push(Outcome::new("exit", Status::Fail(reason)));
    }
    outcomes
}

/// The result lines of a test, `Subtest NAME: RESULT (0.1s)`, and the reasons before them.
fn parse(text: &str) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    let (mut reasons, mut parent) = (Vec::new(), String::new());
    for line in text.lines() {
        let line = without_colours(line);
        let line = line.trim();
        if let Some(name) = line.strip_prefix("Starting subtest: ") {
            parent = name.to_string();
        }
        if let Some((name, result)) = result(line, &parent) {
            let reason = reasons.join("; ");
            let status = match result {
                "SUCCESS" => Status::Pass(String::new()),
                // What a fixture cannot have, all subtests after it lack.
                "SKIP" => Status::Skip(reason),
                _ => {
                    reasons.clear();
                    Status::Fail(format!("{result} {reason}"))
                }
            };
            outcomes.push(Outcome::new(name, status));
        } else if line.starts_with("Starting") {
            reasons.clear();
        } else if let Some(reason) = reason(line) {
            // What is logged is printed again when a test fails.
            if reasons.len() < 6 && !reasons.contains(&reason) {
                reasons.push(reason);
            }
        }
    }
    outcomes
}

/// Name and result, if this is a line with a result.
fn result<'a>(line: &'a str, parent: &str) -> Option<(String, &'a str)> {
    let (head, rest) = line.rsplit_once(" (")?;
    rest.strip_suffix("s)")?.parse::<f64>().ok()?;
    if let Some(rest) = head.strip_prefix("Subtest ") {
        let (name, result) = rest.rsplit_once(": ")?;
        return Some((name.to_string(), result));
    }
    if let Some(rest) = head.strip_prefix("Dynamic subtest ") {
        let (name, result) = rest.rsplit_once(": ")?;
        return Some((format!("{parent}@{name}"), result));
    }
    // A program without subtests.
    matches!(head, "SUCCESS" | "SKIP" | "FAIL" | "CRASH" | "TIMEOUT")
        .then(|| ("all".to_string(), head))
}

/// Why a test is skipped or fails, if the line says so.
fn reason(line: &str) -> Option<String> {
    let text = line.split_once("CRITICAL: ").map_or(line, |(_, text)| text);
    [
        "Test requirement: ",
        "No known gpu",
        "Failed assertion",
        "Last errno",
        "Received signal",
    ]
    .iter()
    .any(|start| text.starts_with(start))
    .then(|| text.to_string())
}

/// The line without escape sequences of terminals.
fn without_colours(line: &str) -> String {
    let mut clean = String::new();
    let mut rest = line;
    while let Some((before, after)) = rest.split_once('\x1b') {
        clean += before;
        rest = after.split_once('m').map_or("", |(_, after)| after);
    }
    clean + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_with_their_reasons() {
        let text = "\
IGT-Version: 2.5 (x86_64)
Starting subtest: one
\x1b[1mSubtest one: SUCCESS (0.886s)\x1b[0m
Starting subtest: two
(t:1) CRITICAL: Test assertion failure function f, file x.c:1:
(t:1) CRITICAL: Failed assertion: ret == 0
\x1b[1mSubtest two: FAIL (0.1s)\x1b[0m
Starting subtest: three
Starting dynamic subtest: part
\x1b[1mDynamic subtest part: CRASH (0.1s)\x1b[0m
Test requirement not met in function f, file x.c:2:
Test requirement: kernel_has_it()
\x1b[1mSubtest four: SKIP (0.000s)\x1b[0m
\x1b[1mSubtest five: SKIP (0.000s)\x1b[0m
";
        let found = parse(text);
        let names: Vec<_> = found.iter().map(|outcome| outcome.name.as_str()).collect();
        assert_eq!(names, ["one", "two", "three@part", "four", "five"]);
        assert_eq!(found[0].status, Status::Pass(String::new()));
        assert!(matches!(&found[1].status, Status::Fail(r) if r.contains("ret == 0")));
        assert!(matches!(&found[2].status, Status::Fail(r) if r.starts_with("CRASH")));
        for skipped in &found[3..] {
            assert!(matches!(&skipped.status, Status::Skip(r) if r.contains("kernel_has_it")));
        }
    }

    #[test]
    fn a_program_without_subtests() {
        assert_eq!(
            parse("\x1b[1mSUCCESS (0.027s)\x1b[0m\n"),
            [Outcome::pass("all")]
        );
        assert_eq!(parse("nothing (of this kind)\n"), []);
    }
}
