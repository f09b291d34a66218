// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Shader tests of piglit, many of them in one process.

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::outcome::{Outcome, Result, Status};
use crate::program::{Program, MESA, NO_FALLBACK};

const FOLDER: &str = "/usr/lib/x86_64-linux-gnu/piglit";
/// Of a process with at most [`BATCH`] tests.
const LIMIT: Duration = Duration::from_secs(300);
const BATCH: usize = 40;

/// A file with a test.
#[derive(Clone, Debug)]
pub(crate) struct Test {
    /// Below the folder of piglit.
    path: String,
    /// What piglit calls it.
    name: String,
}

impl Test {
    /// The specification that it belongs to.
    pub(crate) fn spec(&self) -> &str {
        let path = self.path.trim_start_matches("tests/spec/");
        path.split('/').next().unwrap_or_default()
    }
}

/// The shader tests. piglit names tests by their files, so of those that are called the same only
/// the first is taken.
pub(crate) fn shader_tests() -> Result<Vec<Test>> {
    let mut paths = Vec::new();
    let folder = format!("{MESA}{FOLDER}");
    collect(Path::new(&format!("{folder}/tests/spec")), &mut paths)?;
    paths.sort();
    let mut names = HashSet::new();
    let mut tests = Vec::new();
    for path in paths {
        let Some(path) = path.strip_prefix(&format!("{folder}/")) else {
            continue;
        };
        let file = path.rsplit('/').next().unwrap_or(path);
        let name = file.trim_end_matches(".shader_test").to_string();
        if names.insert(name.clone()) {
            tests.push(Test {
                path: path.to_string(),
                name,
            });
        }
    }
    Ok(tests)
}

fn collect(folder: &Path, paths: &mut Vec<String>) -> Result {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            collect(&entry.path(), paths)?;
        } else if entry.path().extension().is_some_and(|e| e == "shader_test") {
            paths.push(entry.path().to_string_lossy().into_owned());
        }
    }
    Ok(())
}

fn program(name: &str) -> Program {
    Program::new(MESA, &format!("{FOLDER}/bin/{name}"), LIMIT)
        .env("PIGLIT_SOURCE_DIR", FOLDER)
        .env("PIGLIT_PLATFORM", "surfaceless_egl")
        .env(NO_FALLBACK.0, NO_FALLBACK.1)
}

/// Runs shader tests. One that fails may have had the host lose the context, or have taken the
/// process along, so those after it get a new process.
pub(crate) fn run_shader_tests(tests: &[Test]) -> Result<Vec<Outcome>> {
    let mut outcomes = Vec::new();
    let mut left = tests;
    while !left.is_empty() {
        let batch = &left[..left.len().min(BATCH)];
        let found = run_batch(batch)?;
        left = &left[found.len()..];
        outcomes.extend(found);
    }
    Ok(outcomes)
}

/// Results of tests up to the first that fails, of at least one.
fn run_batch(batch: &[Test]) -> Result<Vec<Outcome>> {
    let paths: Vec<_> = batch
        .iter()
        .map(|test| format!("{FOLDER}/{}", test.path))
        .collect();
    let output = program("shader_runner")
        .args(paths.iter().map(String::as_str))
        .args(["-auto", "-fbo", "-report-subtests"])
        .run()?;
    let mut found = parse(&output.text).into_iter();
    let mut outcomes = Vec::new();
    for test in batch {
        let status = match found.next() {
            Some(outcome) if outcome.name == test.name => outcome.status,
            // It returns 1 if a test has failed.
            _ => {
                let how = output.problem(&[0, 1]);
                let how = how.unwrap_or("no result was printed".into());
                Status::Fail(format!("{how}\n{}", output.tail(5)))
            }
        };
        let failed = matches!(status, Status::Fail(_));
        let name = format!("{}@{}", test.spec(), test.name);
        outcomes.push(Outcome::new(name, status));
        if failed {
            break;
        }
    }
    Ok(outcomes)
}

/// A program of its own, which tests one thing.
pub(crate) fn run_program(name: &str) -> Result<Vec<Outcome>> {
    let output = program(name).args(["-auto", "-fbo"]).run()?;
    let status = output
        .text
        .lines()
        .rev()
        .find_map(|line| {
            line.strip_prefix("PIGLIT: {\"result\": \"")?
                .split('"')
                .next()
        })
        .map(|result| status(result, &output.tail(6)));
    let status = match (status, output.problem(&[0, 1])) {
        (Some(status), None) => status,
        (_, problem) => {
            let how = problem.unwrap_or("no result was printed".into());
            Status::Fail(format!("{how}\n{}", output.tail(5)))
        }
    };
    Ok(vec![Outcome::new(name, status)])
}

fn status(result: &str, text: &str) -> Status {
    match result {
        "pass" => Status::Pass(String::new()),
        "skip" => Status::Skip(
            text.lines()
                .rev()
                .nth(1)
                .unwrap_or("piglit gives no reason")
                .into(),
        ),
        other => Status::Fail(format!("{other}\n{text}")),
    }
}

/// Lines `PIGLIT: {"subtest": {"NAME" : "RESULT"}}`, with what was printed before each.
fn parse(text: &str) -> Vec<Outcome> {
    let mut outcomes: Vec<Outcome> = Vec::new();
    let mut before: Vec<&str> = Vec::new();
    for line in text.lines() {
        let words: Vec<_> = line.split('"').collect();
        match words[..] {
            ["PIGLIT: {", "subtest", _, name, _, result, ..] => {
                before.push(line);
                outcomes.push(Outcome::new(name, status(result, &before.join("\n"))));
                before.clear();
            }
            _ if line.starts_with("PIGLIT TEST:") => before.clear(),
            _ if line.trim().is_empty() => {}
            _ => before.push(line),
        }
    }
    outcomes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subtests() {
        let text = "\
PIGLIT TEST: 1 - and
PIGLIT: {\"subtest\": {\"and\" : \"pass\"}}
PIGLIT TEST: 2 - or
wrong colour
PIGLIT: {\"subtest\": {\"or\" : \"fail\"}}
needs GLSL 9
PIGLIT: {\"subtest\": {\"xor\" : \"skip\"}}
";
        let found = parse(text);
        assert_eq!(found[0], Outcome::pass("and"));
        assert!(matches!(&found[1].status, Status::Fail(r) if r.contains("wrong colour")));
        assert_eq!(found[2].status, Status::Skip("needs GLSL 9".into()));
        assert_eq!(found.len(), 3);
    }
}
