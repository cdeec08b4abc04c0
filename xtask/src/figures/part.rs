//! [`Part`]: a table of runs that can be carried out again, as `benches/figures` says it.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

/// Where parts are said, a TOML file each.
const FOLDER: &str = "benches/figures";

/// A table: runs of rows and columns, over seeds.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Part {
    /// The name of its file.
    #[serde(skip)]
    pub(crate) name: String,
    /// The recipe of all runs that name no other, below the repository's root.
    recipe: PathBuf,
    /// Overrides of all runs.
    #[serde(default)]
    set: Vec<String>,
    /// The values of `train.seed`.
    pub(crate) seeds: Vec<u64>,
    /// What is said of the held-out KL before training: nothing if absent.
    pub(crate) before: Option<String>,
    /// What the first column is called.
    pub(crate) title: String,
    pub(crate) columns: Vec<Column>,
    pub(crate) rows: Vec<Row>,
}

/// A figure of every row.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Column {
    pub(crate) name: String,
    /// Overrides of its runs.
    #[serde(default)]
    set: Vec<String>,
    /// The figure is the held-out KL on the way, after so many steps, and not that of the student that is
    /// exported.
    pub(crate) at_step: Option<usize>,
}

/// Runs of one kind.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Row {
    pub(crate) name: String,
    /// Another recipe than that of the part.
    recipe: Option<PathBuf>,
    /// The method of a rival, which takes recipe and overrides in the command's place: one that
    /// `benches/peers/rivals.py` knows.
    pub(crate) by: Option<String>,
    /// Overrides of its runs.
    #[serde(default)]
    set: Vec<String>,
    /// The names of its columns; all if absent.
    columns: Option<BTreeSet<String>>,
}

/// A run of the command, or of a rival: two with the same are one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Run {
    pub(crate) recipe: PathBuf,
    /// The rival's method, if it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) by: Option<String>,
    pub(crate) set: Vec<String>,
    pub(crate) seed: u64,
}

impl Part {
    /// All of them, by name.
    pub(crate) fn all(root: &Path) -> Result<Vec<Self>> {
        let folder = root.join(FOLDER);
        let entries = fs::read_dir(&folder).with_context(|| FOLDER.to_owned())?;
        let paths: Result<Vec<PathBuf>> = entries.map(|entry| Ok(entry?.path())).collect();
        let mut paths = paths?;
        paths.retain(|path| path.extension() == Some(OsStr::new("toml")));
        paths.sort();
        paths.iter().map(|path| Self::read(path)).collect()
    }

    fn read(path: &Path) -> Result<Self> {
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        let read = || Self::parse(&name, &fs::read_to_string(path)?);
        read().with_context(|| path.display().to_string())
    }

    pub(crate) fn parse(name: &str, text: &str) -> Result<Self> {
        let mut part: Self = toml::from_str(text)?;
        part.name = name.to_owned();
        ensure!(
            !part.seeds.is_empty() && !part.columns.is_empty() && !part.rows.is_empty(),
            "a part has seeds, columns and rows"
        );
        let known: BTreeSet<&String> = part.columns.iter().map(|column| &column.name).collect();
        let named = part
            .rows
            .iter()
            .flat_map(|row| row.columns.iter().flatten());
        for column in named {
            ensure!(known.contains(column), "there is no column `{column}`");
        }
        Ok(part)
    }

    /// The runs of a figure, one for each seed. None if the row leaves the column out.
    pub(crate) fn runs_of(&self, row: &Row, column: &Column) -> Option<Vec<Run>> {
        let has = |names: &BTreeSet<String>| names.contains(&column.name);
        row.columns.as_ref().is_none_or(has).then(|| {
            let set: Vec<String> = [&self.set, &row.set, &column.set]
                .into_iter()
                .flatten()
                .cloned()
                .collect();
            let run = |&seed: &u64| Run {
                recipe: row.recipe.as_ref().unwrap_or(&self.recipe).clone(),
                by: row.by.clone(),
                set: set.clone(),
                seed,
            };
            self.seeds.iter().map(run).collect()
        })
    }

    /// Every run once: seed by seed, so that a part that is not whole has something to say of all rows.
    pub(crate) fn runs(&self) -> Vec<Run> {
        let figures = self.rows.iter().flat_map(|row| {
            let runs = self.columns.iter().map(|column| self.runs_of(row, column));
            runs.flatten()
        });
        let mut runs = figures.collect::<Vec<_>>().concat();
        runs.sort_by_key(|run| self.seeds.iter().position(|seed| *seed == run.seed));
        let mut once: Vec<Run> = Vec::new();
        for run in runs {
            if !once.contains(&run) {
                once.push(run);
            }
        }
        once
    }
}

impl Run {
    /// What `burn-lti distill` is called with, or `rivals.py`, but for where its results go.
    pub(crate) fn args(&self) -> Vec<String> {
        let mut args = vec![self.recipe.display().to_string()];
        let seed = format!("train.seed={}", self.seed);
        for set in self.set.iter().chain([&seed]) {
            args.extend(["--set".to_owned(), set.clone()]);
        }
        if let Some(method) = &self.by {
            args.extend(["--method".to_owned(), method.clone()]);
        }
        args
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"
        title = "trains"
        recipe = "recipes/a.toml"
        set = ["x=1"]
        seeds = [0, 1]
        [[columns]]
        name = "10 steps"
        set = ["train.steps=10"]
        [[columns]]
        name = "5 of them"
        set = ["train.steps=10"]
        at_step = 5
        [[rows]]
        name = "all"
        [[rows]]
        name = "maps"
        set = ["lti.train=maps"]
        recipe = "recipes/b.toml"
        columns = ["10 steps"]
        [[rows]]
        name = "the mean of heads"
        set = ["student.heads=4"]
        by = "mean"
        columns = ["10 steps"]
    "#;

    #[test]
    fn a_run_is_made_of_its_row_and_its_column() {
        let part = Part::parse("p", TEXT).unwrap();
        let runs = part.runs();
        let lines: Vec<String> = runs.iter().map(|run| run.args().join(" ")).collect();
        assert_eq!(
            lines,
            [
                "recipes/a.toml --set x=1 --set train.steps=10 --set train.seed=0",
                "recipes/b.toml --set x=1 --set lti.train=maps --set train.steps=10 --set train.seed=0",
                "recipes/a.toml --set x=1 --set student.heads=4 --set train.steps=10 --set train.seed=0 --method mean",
                "recipes/a.toml --set x=1 --set train.steps=10 --set train.seed=1",
                "recipes/b.toml --set x=1 --set lti.train=maps --set train.steps=10 --set train.seed=1",
                "recipes/a.toml --set x=1 --set student.heads=4 --set train.steps=10 --set train.seed=1 --method mean",
            ]
        );
        assert_eq!(part.runs_of(&part.rows[1], &part.columns[1]), None);
    }

    /// What was committed before there were rivals is read as it was.
    #[test]
    fn a_run_of_the_command_says_nothing_of_rivals() {
        let runs = Part::parse("p", TEXT).unwrap().runs();
        let written = |run: &Run| serde_json::to_value(run).unwrap();
        assert!(written(&runs[0]).get("by").is_none());
        assert_eq!(written(&runs[2])["by"], "mean");
        for run in &runs {
            assert_eq!(&serde_json::from_value::<Run>(written(run)).unwrap(), run);
        }
        let rival = &runs[2];
        let ours = Run {
            by: None,
            ..rival.clone()
        };
        assert_ne!(&ours, rival);
    }

    #[test]
    fn what_is_misspelt_is_an_error() {
        let error = |text: &str| format!("{:#}", Part::parse("p", text).unwrap_err());
        let column = TEXT.replace("columns = [\"10 steps\"]", "columns = [\"11 steps\"]");
        assert!(error(&column).contains("no column `11 steps`"));
        assert!(error(&TEXT.replace("at_step", "at_stp")).contains("at_stp"));
        assert!(error(&TEXT.replace("[0, 1]", "[]")).contains("seeds"));
    }
}
