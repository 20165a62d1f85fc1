//! What a comparison found: the outcome of each phase, kept as JSON, and the page that is made of all of them, `RESULTS.md`.

pub(crate) mod goals;
pub(crate) mod machine;
pub(crate) mod plot;

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use goals::Goal;
use machine::Machine;
use plot::Plot;

/// What a phase found.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Outcome {
    /// What was measured, and how: a paragraph.
    pub(crate) about: String,
    pub(crate) tables: Vec<Table>,
    pub(crate) plots: Vec<Plot>,
    /// What it says of the goals.
    pub(crate) goals: Vec<Measured>,
    /// What was not as it must be. Empty: every answer was right.
    pub(crate) wrong: Vec<String>,
    /// Versions of what was measured against, by name.
    pub(crate) versions: BTreeMap<String, String>,
    /// All figures.
    pub(crate) raw: Value,
}

/// What was measured for a goal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Measured {
    pub(crate) goal: Goal,
    pub(crate) value: f64,
    /// Where the figure is from, where it isn't plain: the worst page.
    pub(crate) note: String,
}

/// A table: text to the left, figures to the right.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Table {
    pub(crate) title: String,
    /// How many columns are text.
    texts: usize,
    pub(crate) head: Vec<String>,
    pub(crate) rows: Vec<Vec<String>>,
}

/// An outcome with when and of what it was made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Kept {
    pub(crate) phase: String,
    /// UTC, to the minute.
    pub(crate) finished: String,
    pub(crate) commit: String,
    /// Whether it was one of the small measurements of `--quick`.
    pub(crate) is_quick: bool,
    pub(crate) seconds: f64,
    pub(crate) outcome: Outcome,
}

impl Outcome {
    /// Adds what was measured for a goal.
    pub(crate) fn measured(&mut self, goal: Goal, value: f64, note: impl Into<String>) {
        self.goals.push(Measured { goal, value, note: note.into() });
    }
}

impl Table {
    /// A table without rows, whose first `texts` columns are text.
    pub(crate) fn new(title: &str, texts: usize, head: &[&str]) -> Table {
        Table {
            title: title.to_owned(),
            texts,
            head: head.iter().map(|name| (*name).to_owned()).collect(),
            rows: Vec::new(),
        }
    }

    /// Adds a row.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    fn write(&self, out: &mut String) {
        let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
        if !self.title.is_empty() {
            *out += &format!("**{}**\n\n", self.title);
        }
        *out += &line(&self.head);
        let columns = self.head.len();
        let figures = columns.saturating_sub(self.texts);
        *out += &format!("|{}{}\n", " --- |".repeat(columns - figures), " ---: |".repeat(figures));
        self.rows.iter().for_each(|row| *out += &line(row));
        out.push('\n');
    }
}

/// Writes the page. `titles` are the phases in their order, each with its heading; `findings` is what people wrote, included as it is.
pub(crate) fn write_results(
    titles: &[(&str, &str)],
    kept: &BTreeMap<String, Kept>,
    machine: &Machine,
    findings: &str,
) -> String {
    let mut out = String::from(HEAD);
    if kept.values().any(|kept| kept.is_quick) {
        out += "**These are figures of `--quick`: they show that it runs, not how fast.**\n\n";
    }
    write_goals(kept, &mut out);
    machine_table(machine, kept).write(&mut out);
    if !findings.trim().is_empty() {
        out += &format!("## What was found\n\n{}\n\n", findings.trim());
    }
    for (phase, title) in titles {
        out += &format!("## {title}\n\n");
        match kept.get(*phase) {
            Some(kept) => write_outcome(kept, &mut out),
            None => out += &format!("Not measured yet: `loadtest compare --only {phase}`.\n\n"),
        }
    }
    out.truncate(out.trim_end().len());
    out.push('\n');
    out
}

const HEAD: &str = "# Results

Made by `cargo run --release -p loadtest -- compare` (`--full` for ten million events on Cassandra), which starts what it needs and can be stopped and started again.
Compared are figures of one run on one machine, where everything shares the processors: load, program and what it is
measured against. Look at the ratios first. Every answer that is timed is also compared with what it must show (of requests a second 2,000 are, beforehand), and rows are counted in the
tables. CPU is time on a processor, in the program and in the kernel for it; memory is the most that was resident at once.

";

fn write_goals(kept: &BTreeMap<String, Kept>, out: &mut String) {
    let mut table = Table::new("", 5, &["what", "against", "goal", "measured", ""]);
    for goal in Goal::ALL {
        // Of several phases that measured it, the worst counts.
        let all = kept.values().flat_map(|kept| &kept.outcome.goals).filter(|measured| measured.goal == goal);
        let found = all.max_by(|one, other| goal.badness(one.value).total_cmp(&goal.badness(other.value)));
        let (measured, verdict) = match found {
            Some(Measured { value, note, .. }) => {
                let note = if note.is_empty() { String::new() } else { format!(" ({note})") };
                let verdict = if goal.is_reached(*value) { "reached" } else { "**not reached**" };
                (format!("{}{note}", goal.show(*value)), verdict)
            }
            None => ("not measured yet".to_owned(), ""),
        };
        let (what, against) = goal.words();
        table.row([what.to_owned(), against.to_owned(), goal.bound(), measured, verdict.to_owned()]);
    }
    *out += "## Goals\n\n";
    table.write(out);
}

fn machine_table(machine: &Machine, kept: &BTreeMap<String, Kept>) -> Table {
    let mut table = Table::new("Machine and versions", 2, &["", ""]);
    let mut versions: BTreeMap<&str, &str> =
        machine.versions.iter().map(|(name, version)| (name.as_str(), version.as_str())).collect();
    let of_phases = kept.values().flat_map(|kept| &kept.outcome.versions);
    versions.extend(of_phases.map(|(name, version)| (name.as_str(), version.as_str())));
    table.row(["processor".to_owned(), format!("{} ({} cores)", machine.processor, machine.cores)]);
    table.row(["memory".to_owned(), format!("{:.0} GiB", machine.memory_bytes as f64 / f64::from(1 << 30))]);
    table.row(["kernel".to_owned(), machine.kernel.clone()]);
    for (name, version) in versions {
        table.row([name.to_owned(), version.to_owned()]);
    }
    table
}

fn write_outcome(kept: &Kept, out: &mut String) {
    let Kept { phase, finished, commit, seconds, outcome, .. } = kept;
    *out += &format!("{}\n\n", outcome.about);
    outcome.tables.iter().for_each(|table| table.write(out));
    for plot in &outcome.plots {
        *out += &format!("![{}](plots/{phase}-{}.svg)\n\n", plot.title, plot.name);
    }
    for wrong in &outcome.wrong {
        *out += &format!("- **WRONG**: {wrong}\n");
    }
    if outcome.wrong.is_empty() {
        *out += "Nothing was wrong. ";
    } else {
        out.push('\n');
    }
    let _ = writeln!(out, "Measured {finished}, commit {commit}, in {seconds:.0} s.\n");
}

/// A figure with as many digits as one can believe.
pub(crate) fn show(value: f64) -> String {
    match value.abs() {
        0.0..0.995 => format!("{value:.3}"),
        0.995..9.95 => format!("{value:.2}"),
        9.95..99.5 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

/// A number with a comma for each thousand.
pub(crate) fn thousands(value: f64) -> String {
    indicatif::HumanCount(value.round().max(0.0) as u64).to_string()
}

/// Bytes in megabytes.
pub(crate) fn megabytes(bytes: u64) -> String {
    format!("{:.0}", bytes as f64 / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_name_goals_findings_and_what_is_missing() {
        let mut outcome = Outcome { about: "Pages, in turn.".to_owned(), ..Outcome::default() };
        let mut table = Table::new("Pages", 1, &["page", "p50 ms"]);
        table.row(["first".to_owned(), show(0.5)]);
        outcome.tables.push(table);
        outcome.plots.push(Plot::lines("size", "Median by size", "events", "ms", Vec::new()));
        outcome.measured(Goal::PagesEmbeddedMedian, 1.25, "last of 10,000");
        outcome.measured(Goal::DevMemory, 300.0, "");
        let kept = Kept {
            phase: "pages".to_owned(),
            finished: "2026-01-01 00:00".to_owned(),
            commit: "abc1234".to_owned(),
            is_quick: false,
            seconds: 61.4,
            outcome,
        };
        let machine = Machine {
            processor: "Some CPU".to_owned(),
            cores: 2,
            memory_bytes: 24 << 30,
            kernel: "6.1".to_owned(),
            versions: BTreeMap::from([("rustc".to_owned(), "1.95".to_owned())]),
        };
        let titles = [("pages", "Pages"), ("decode", "Decoding")];
        let kept = BTreeMap::from([("pages".to_owned(), kept)]);
        insta::assert_snapshot!(write_results(&titles, &kept, &machine, "Found much.\n"));
    }

    #[test]
    fn figures_have_the_digits_that_one_can_believe() {
        assert_eq!([0.1234, 1.234, 12.34, 1234.5].map(show), ["0.123", "1.23", "12.3", "1234"]);
        assert_eq!(thousands(1_234_567.4), "1,234,567");
    }
}
