//! [`Results`]: what the runs of a part came to, in a file that grows with every run.

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tempfile::NamedTempFile;

use super::part::Run;

/// Where results are committed.
const FOLDER: &str = "docs/results";

/// The runs of a part that were carried out.
#[derive(Debug, Default, Deserialize, Serialize)]
pub(crate) struct Results {
    runs: Vec<Outcome>,
}

/// What a run came to.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Outcome {
    #[serde(flatten)]
    pub(crate) run: Run,
    /// The commit that was checked out when it ended.
    commit: String,
    /// The held-out KL on the way, by steps.
    pub(crate) curve: Vec<(usize, f64)>,
    /// `summary.json` of the run, without its report on layers.
    summary: Value,
}

impl Results {
    pub(crate) fn path(root: &Path, part: &str) -> PathBuf {
        root.join(FOLDER).join(part).with_extension("json")
    }

    /// Those of the file `path`; none if there is no such file.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        match fs::read_to_string(path) {
            Ok(text) => serde_json::from_str(&text).with_context(|| path.display().to_string()),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error).with_context(|| path.display().to_string()),
        }
    }

    /// Writes the file whole or not at all.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let write = || {
            let folder = path.parent().context("a file has a folder")?;
            fs::create_dir_all(folder)?;
            let mut file = NamedTempFile::new_in(folder)?;
            serde_json::to_writer_pretty(&mut file, self)?;
            file.write_all(b"\n")?;
            file.persist(path)?;
            Ok::<_, anyhow::Error>(())
        };
        write().with_context(|| format!("cannot write {}", path.display()))
    }

    pub(crate) fn of(&self, run: &Run) -> Option<&Outcome> {
        self.runs.iter().find(|outcome| outcome.run == *run)
    }

    pub(crate) fn push(&mut self, outcome: Outcome) {
        self.runs.retain(|other| other.run != outcome.run);
        self.runs.push(outcome);
    }

    /// Drops runs that no table asks for any more.
    pub(crate) fn keep(&mut self, runs: &[Run]) {
        self.runs.retain(|outcome| runs.contains(&outcome.run));
    }
}

impl Outcome {
    /// Of the run whose results are in the folder `out`.
    pub(crate) fn read(run: &Run, commit: &str, out: &Path) -> Result<Self> {
        let summary = fs::read_to_string(out.join("summary.json"))?;
        let mut summary: Value = serde_json::from_str(&summary)?;
        if let Some(figures) = summary.as_object_mut() {
            figures.remove("layers");
        }
        let mut curve = Vec::new();
        for line in BufReader::new(fs::File::open(out.join("metrics.jsonl"))?).lines() {
            let line: Value = serde_json::from_str(&line?)?;
            let kl = line.pointer("/eval/kl").and_then(Value::as_f64);
            if let (Some(step), Some(kl)) = (line["step"].as_u64(), kl) {
                curve.push((usize::try_from(step)?, kl));
            }
        }
        Ok(Self {
            run: run.clone(),
            commit: commit.to_owned(),
            curve,
            summary,
        })
    }

    /// The number `key` of the summary.
    pub(crate) fn number(&self, key: &str) -> Option<f64> {
        self.summary.get(key)?.as_f64()
    }

    /// How often the run went back to better weights.
    pub(crate) fn rollbacks(&self) -> u64 {
        let rollbacks = self.summary.get("rollbacks").and_then(Value::as_u64);
        rollbacks.unwrap_or_default()
    }

    #[cfg(test)]
    pub(crate) fn test(run: Run, before: f64, after: f64, rollbacks: u64) -> Self {
        Self {
            run,
            commit: "0".to_owned(),
            curve: vec![(5, (before + after) / 2.0)],
            summary: serde_json::json!({
                "kl_start": before, "kl_end": after, "rollbacks": rollbacks
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_read_back_as_they_were_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = Results::path(dir.path(), "p");
        let mut results = Results::read(&path).unwrap();
        let run = Run {
            recipe: "recipes/a.toml".into(),
            by: None,
            set: vec!["train.steps=10".to_owned()],
            seed: 1,
        };
        results.push(Outcome::test(run.clone(), 0.5, 0.3, 0));
        results.push(Outcome::test(run.clone(), 0.5, 0.25, 1));
        results.write(&path).unwrap();

        let mut results = Results::read(&path).unwrap();
        let found = results.of(&run).unwrap();
        assert_eq!(found.number("kl_end"), Some(0.25), "the later one counts");
        assert_eq!((found.rollbacks(), found.curve[0].0), (1, 5));
        results.keep(&[]);
        assert!(results.of(&run).is_none());
    }

    #[test]
    fn the_curve_is_what_was_held_out() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        write("summary.json", "{\"kl_end\": 0.25}");
        let lines = [
            "{\"step\": 1, \"kl\": 0.4}",
            "{\"step\": 2, \"kl\": 0.3, \"eval\": {\"kl\": 0.35}}",
        ];
        write("metrics.jsonl", &lines.join("\n"));
        let run = Run {
            recipe: "a".into(),
            by: None,
            set: Vec::new(),
            seed: 0,
        };
        let outcome = Outcome::read(&run, "c", dir.path()).unwrap();
        assert_eq!(outcome.curve, [(2, 0.35)]);
        assert_eq!(outcome.rollbacks(), 0);
    }
}
