// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! The table and the JSON line.

use std::fmt::Write;

/// Measurements of one thing.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sample(pub(crate) Vec<f64>);

impl Sample {
    /// The middle one.
    pub(crate) fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        match sorted.len() {
            0 => f64::NAN,
            odd if odd % 2 == 1 => sorted[odd / 2],
            even => (sorted[even / 2 - 1] + sorted[even / 2]) / 2.0,
        }
    }

    fn least(&self) -> f64 {
        self.0.iter().copied().fold(f64::INFINITY, f64::min)
    }

    fn most(&self) -> f64 {
        self.0.iter().copied().fold(f64::NEG_INFINITY, f64::max)
    }
}

/// Which ratios are good enough.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Goal {
    /// No more than this.
    AtMost(f64),
    /// No less than this.
    AtLeast(f64),
    /// For information.
    None,
}

impl Goal {
    fn met(self, ratio: f64) -> bool {
        match self {
            Self::AtMost(most) => ratio <= most,
            Self::AtLeast(least) => ratio >= least,
            Self::None => true,
        }
    }

    fn text(self) -> String {
        match self {
            Self::AtMost(most) => format!("<= {most}"),
            Self::AtLeast(least) => format!(">= {least}"),
            Self::None => String::new(),
        }
    }
}

struct Row {
    id: String,
    what: String,
    unit: &'static str,
    value: Sample,
    baseline: Sample,
    ratio: f64,
    goal: Goal,
}

/// What was measured.
pub(crate) struct Report {
    rows: Vec<Row>,
}

impl Report {
    pub(crate) fn new() -> Self {
        Self { rows: Vec::new() }
    }

    /// Adds `value` against `baseline`; the ratio is that of the medians.
    pub(crate) fn add(
        &mut self,
        id: &str,
        what: &str,
        unit: &'static str,
        [value, baseline]: [Sample; 2],
        goal: Goal,
    ) {
        let ratio = value.median() / baseline.median();
        self.push(id, what, unit, [value, baseline], ratio, goal);
    }

    /// The same with the ratio the other way round, where more of the baseline is better.
    pub(crate) fn add_speedup(
        &mut self,
        id: &str,
        what: &str,
        unit: &'static str,
        [value, baseline]: [Sample; 2],
        goal: Goal,
    ) {
        let ratio = baseline.median() / value.median();
        self.push(id, what, unit, [value, baseline], ratio, goal);
    }

    fn push(
        &mut self,
        id: &str,
        what: &str,
        unit: &'static str,
        [value, baseline]: [Sample; 2],
        ratio: f64,
        goal: Goal,
    ) {
        eprintln!(
            "  {id}: {:.3} {unit} against {:.3}, ratio {ratio:.3}",
            value.median(),
            baseline.median()
        );
        self.rows.push(Row {
            id: id.into(),
            what: what.into(),
            unit,
            value,
            baseline,
            ratio,
            goal,
        });
    }

    /// Prints both forms.
    pub(crate) fn print(&self) {
        println!(
            "{:<22} {:>12} {:>12} {:>8} {:>8}  {:<4} {:<5} {:>22}  what",
            "id", "value", "baseline", "ratio", "goal", "met", "unit", "spread of value"
        );
        for row in &self.rows {
            println!(
                "{:<22} {:>12.3} {:>12.3} {:>8.3} {:>8}  {:<4} {:<5} {:>10.3} ..{:>9.3}  {}",
                row.id,
                row.value.median(),
                row.baseline.median(),
                row.ratio,
                row.goal.text(),
                if row.goal.met(row.ratio) { "yes" } else { "NO" },
                row.unit,
                row.value.least(),
                row.value.most(),
                row.what,
            );
        }
        println!("BENCH-JSON {}", self.json());
    }

    fn json(&self) -> String {
        let rows: Vec<_> = self.rows.iter().map(Row::json).collect();
        format!("{{\"rows\":[{}]}}", rows.join(","))
    }
}

impl Row {
    fn json(&self) -> String {
        let goal = match self.goal {
            Goal::AtMost(goal) | Goal::AtLeast(goal) => number(goal),
            Goal::None => "null".into(),
        };
        let mut text = String::new();
        let _ = write!(
            text,
            "{{\"id\":\"{}\",\"what\":\"{}\",\"unit\":\"{}\",\"value\":{},\"baseline\":{},\
             \"ratio\":{},\"goal\":{goal},\"goal_met\":{},\"runs\":{},\
             \"value_min\":{},\"value_max\":{},\"baseline_min\":{},\"baseline_max\":{}}}",
            self.id,
            self.what,
            self.unit,
            number(self.value.median()),
            number(self.baseline.median()),
            number(self.ratio),
            self.goal.met(self.ratio),
            self.value.0.len(),
            number(self.value.least()),
            number(self.value.most()),
            number(self.baseline.least()),
            number(self.baseline.most()),
        );
        text
    }
}

/// JSON has no infinities.
fn number(value: f64) -> String {
    if value.is_finite() {
        format!("{value}")
    } else {
        "null".into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(Sample(vec![3.0, 1.0, 2.0]).median(), 2.0);
        assert_eq!(Sample(vec![4.0, 1.0, 2.0, 3.0]).median(), 2.5);
    }

    #[test]
    fn goals() {
        assert!(Goal::AtMost(1.25).met(1.25) && !Goal::AtMost(1.25).met(1.26));
        assert!(Goal::AtLeast(10.0).met(10.0) && !Goal::AtLeast(10.0).met(9.9));
        assert!(!Goal::AtMost(1.0).met(f64::NAN) && !Goal::AtLeast(1.0).met(f64::NAN));
    }

    #[test]
    fn json_is_one_object() {
        let mut report = Report::new();
        let samples = [Sample(vec![1.0]), Sample(vec![2.0])];
        report.add("P0", "a test", "ns", samples, Goal::AtMost(1.0));
        let json = report.json();
        assert!(json.starts_with("{\"rows\":[{\"id\":\"P0\"") && json.ends_with("}]}"));
        assert!(json.contains("\"ratio\":0.5,\"goal\":1,\"goal_met\":true"));
    }
}
