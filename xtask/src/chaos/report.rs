//! What was counted.

use std::fmt;

use anyhow::Result;
use serde::Serialize;
use serde_json::json;

/// The most failures that are named.
const NAMED: usize = 40;

/// What became of all commands.
pub(super) struct Report {
    pub(super) rows: Vec<Row>,
    /// What went wrong, one line each.
    pub(super) failures: Vec<String>,
    /// There are no small disks here: that takes root.
    pub(super) without_disks: bool,
}

/// What became of one command.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Row {
    pub(super) command: String,
    /// It was killed.
    pub(super) kills: usize,
    /// It came to its end after that, or after a disk was full.
    pub(super) ends: usize,
    pub(super) full_disks: usize,
    pub(super) locked_folders: usize,
    /// Two processes on one output.
    pub(super) pairs: usize,
    /// Both streams closed.
    pub(super) streams: usize,
    /// Files of the user's that were lost or changed.
    pub(super) lost: usize,
    /// Half files under a final name.
    pub(super) half: usize,
    /// Results that are not what an undisturbed command makes.
    pub(super) unlike: usize,
    /// It could not go on, or ended with a panic or without a word.
    pub(super) stuck: usize,
}

impl Report {
    pub(super) fn new<'a>(commands: impl Iterator<Item = &'a str>) -> Self {
        let row = |command: &str| Row {
            command: command.to_owned(),
            ..Row::default()
        };
        Self {
            rows: commands.map(row).collect(),
            failures: Vec::new(),
            without_disks: false,
        }
    }

    pub(super) fn to_json(&self, kills: usize, seed: u64) -> Result<String> {
        let value = json!({
            "kills": kills,
            "seed": seed,
            "without_disks": self.without_disks,
            "commands": self.rows,
            "all": self.all(),
        });
        Ok(format!("{value:#}\n"))
    }

    fn all(&self) -> Row {
        let mut all = Row {
            command: "all".to_owned(),
            ..Row::default()
        };
        for row in &self.rows {
            for (sum, (_, count)) in all.counts_mut().into_iter().zip(row.counts()) {
                *sum += count;
            }
        }
        all
    }
}

impl Row {
    fn counts(&self) -> [(&'static str, usize); 10] {
        [
            ("kills", self.kills),
            ("ends", self.ends),
            ("disks", self.full_disks),
            ("locked", self.locked_folders),
            ("pairs", self.pairs),
            ("streams", self.streams),
            ("lost", self.lost),
            ("half", self.half),
            ("unlike", self.unlike),
            ("stuck", self.stuck),
        ]
    }

    fn counts_mut(&mut self) -> [&mut usize; 10] {
        [
            &mut self.kills,
            &mut self.ends,
            &mut self.full_disks,
            &mut self.locked_folders,
            &mut self.pairs,
            &mut self.streams,
            &mut self.lost,
            &mut self.half,
            &mut self.unlike,
            &mut self.stuck,
        ]
    }
}

/// A table, and before it what went wrong.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for failure in self.failures.iter().take(NAMED) {
            writeln!(f, "broken: {failure}")?;
        }
        if let Some(more @ 1..) = self.failures.len().checked_sub(NAMED) {
            writeln!(f, "broken: and {more} more")?;
        }
        let all = self.all();
        let names = all.counts().map(|(name, _)| format!("{name:>8}")).concat();
        write!(f, "{:<14}{names}", "command")?;
        for row in self.rows.iter().chain([&all]) {
            let counts = row
                .counts()
                .map(|(_, count)| format!("{count:>8}"))
                .concat();
            write!(f, "\n{:<14}{counts}", row.command)?;
        }
        if self.without_disks {
            write!(
                f,
                "\nleft out: full disks and locked folders, which take Linux and root"
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_added_and_failures_named() {
        let mut report = Report::new(["distill", "logits"].into_iter());
        (report.rows[0].kills, report.rows[1].kills) = (3, 4);
        report.rows[1].stuck = 1;
        report.failures = vec!["a thing".to_owned(); NAMED + 2];
        let shown = report.to_string();
        assert!(shown.contains("and 2 more"), "{shown}");
        let all = shown.lines().last().unwrap();
        assert!(
            all.starts_with("all") && all.contains(" 7 ") && all.ends_with(" 1"),
            "{all}"
        );
        let json: serde_json::Value = serde_json::from_str(&report.to_json(7, 0).unwrap()).unwrap();
        assert_eq!(json["all"]["kills"], 7);
        assert_eq!(json["commands"][1]["stuck"], 1);
    }
}
