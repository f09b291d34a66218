// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! How long a function of the kernel takes, sleeping included, by the function graph tracer.

use std::fs::{self, OpenOptions};
use std::io::Write;

use crate::setup::Result;

const FOLDER: &str = "/sys/kernel/tracing";

/// Times calls of one function; ends on drop.
pub(crate) struct Tracer {
    function: &'static str,
}

fn set(file: &str, value: &str) -> Result {
    let path = format!("{FOLDER}/{file}");
    let mut open = OpenOptions::new().write(true).truncate(true).open(&path);
    let written = open.as_mut().map(|file| file.write_all(value.as_bytes()));
    match written {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(format!("{path}: {error}").into()),
        Err(error) => Err(format!("{path}: {error}").into()),
    }
}

impl Tracer {
    /// Times `function`, a C function of the kernel.
    pub(crate) fn new(function: &'static str) -> Result<Self> {
        let tracer = Self { function };
        set("tracing_on", "0")?;
        set("current_tracer", "nop")?;
        set("set_ftrace_filter", function)?;
        set("max_graph_depth", "1")?;
        set("current_tracer", "function_graph")?;
        Ok(tracer)
    }

    /// Forgets what was timed.
    pub(crate) fn clear(&self) -> Result {
        set("trace", "")
    }

    /// Times the calls that `run` causes.
    pub(crate) fn during<T>(&self, run: impl FnOnce() -> Result<T>) -> Result<T> {
        set("tracing_on", "1")?;
        let result = run();
        set("tracing_on", "0")?;
        result
    }

    /// What was timed since it was cleared, in nanoseconds.
    pub(crate) fn times(&self) -> Result<Vec<f64>> {
        let text = fs::read_to_string(format!("{FOLDER}/trace"))?;
        text.lines()
            .filter_map(|line| duration(line).transpose())
            .collect::<Result<_>>()
            .map_err(|error| format!("the trace of {}: {error}", self.function).into())
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        for (file, value) in [
            ("current_tracer", "nop"),
            ("set_ftrace_filter", ""),
            ("max_graph_depth", "0"),
            ("tracing_on", "1"),
        ] {
            let _ = set(file, value);
        }
    }
}

/// The nanoseconds in a line like ` 0) ! 123.456 us  |  function();`, if it is the end of a call.
fn duration(line: &str) -> Result<Option<f64>> {
    let Some((left, _)) = line.split_once('|') else {
        return Ok(None);
    };
    let mut words = left.split_whitespace().rev();
    let (Some("us"), Some(number)) = (words.next(), words.next()) else {
        return Ok(None);
    };
    Ok(Some(number.parse::<f64>()? * 1e3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        let of = |line| duration(line).expect("a duration");
        assert_eq!(of(" 0)   1.500 us    |  function();"), Some(1500.0));
        assert_eq!(of(" 1) ! 123.000 us  |  } /* function */"), Some(123_000.0));
        assert_eq!(of(" 1)               |  function() {"), None);
        assert_eq!(of("# CPU  DURATION                  FUNCTION CALLS"), None);
        assert_eq!(of(" ------------------------------------------"), None);
        assert!(duration(" 0)   many us | x();").is_err());
    }
}
