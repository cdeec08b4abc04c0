//! The commands that write, how each begins, how it goes on, and what it makes.

use std::collections::BTreeMap;
use std::fs::DirEntry;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, ensure};

use super::inspect::{self, files_in};
use super::process::{Ended, Program};

/// The card of a model.
const CARD: &str = "README.md";

/// A command that writes one output.
pub(super) struct Job {
    pub(super) name: &'static str,
    /// What it is called with, but for its output.
    args: Vec<String>,
    /// The name of its output.
    out: &'static str,
    way_on: WayOn,
    /// It takes minutes: it is only killed.
    pub(super) never_ends: bool,
}

/// What one does where a command was stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WayOn {
    /// `--resume`, which says so where there is nothing left to do.
    Resume,
    /// The same again; it goes on by itself.
    Again,
    /// The same again, and `--overwrite` where there is anything.
    Overwrite,
    /// The same again where there is nothing. What is there is whole.
    OnceMore,
}

impl Job {
    /// All that this program has. Those of them that need a run find one in the workshop.
    pub(super) fn all(program: &Program) -> Result<Vec<Self>> {
        let help = program.output(&["help"])?;
        let named = |line: &str| line.split_whitespace().next().map(str::to_owned);
        let known: Vec<String> = help.lines().filter_map(named).collect();
        let job = |name: &'static str, args: &str, out: &'static str, way_on: WayOn| Self {
            name,
            args: args.split_whitespace().map(str::to_owned).collect(),
            out,
            way_on,
            never_ends: false,
        };
        let jobs = vec![
            job("distill", "distill recipe.toml", "run", WayOn::Resume),
            job(
                "start",
                "start recipe.toml --set lti.start=calibrated --set lti.map=general \
                 --set calibration.sequences=16",
                "run",
                WayOn::Overwrite,
            ),
            job(
                "cache-teacher",
                "cache-teacher recipe.toml --top-k 8 --half",
                "cache",
                WayOn::Again,
            ),
            job("collapse", "collapse run", "student", WayOn::OnceMore),
            job(
                "compare",
                "compare recipe.toml --starts grouped,lecun --seeds 1 --set train.steps=8",
                "starts",
                WayOn::Resume,
            ),
            job(
                "logits",
                "logits --model teacher --text train.txt --documents 16",
                "logits.safetensors",
                WayOn::Overwrite,
            ),
            job(
                "sample-corpus",
                "sample-corpus --model teacher --tokens 3000 --document-tokens 24",
                "corpus.jsonl",
                WayOn::Overwrite,
            ),
            job(
                "convert",
                "convert teacher",
                "teacher.gguf",
                WayOn::Overwrite,
            ),
            job(
                "convert",
                "convert teacher --dtype f16",
                "converted",
                WayOn::Overwrite,
            ),
            Self {
                never_ends: true,
                ..job("demo", "demo", "demo", WayOn::Again)
            },
        ];
        for job in &jobs {
            ensure!(
                known.iter().any(|it| it == job.name),
                "burn-lti has no command {}",
                job.name
            );
        }
        Ok(jobs)
    }

    pub(super) fn out_in(&self, folder: &Path) -> PathBuf {
        folder.join(self.out)
    }

    /// How long it runs where nothing happens, at most.
    pub(super) fn longest(&self) -> Duration {
        match self.never_ends {
            true => Duration::from_secs(3),
            false => Duration::MAX,
        }
    }

    pub(super) fn begins(&self, out: &Path) -> Vec<String> {
        let out = ["--out".to_owned(), out.display().to_string()];
        [&self.args[..], &out].concat()
    }

    pub(super) fn goes_on(&self, out: &Path) -> Vec<String> {
        let more = match self.way_on {
            WayOn::Resume => Some("--resume"),
            // Also over what an earlier attempt has left unfinished.
            WayOn::Overwrite if out.exists() => Some("--overwrite"),
            WayOn::Overwrite | WayOn::Again | WayOn::OnceMore => None,
        };
        let more = more.map(str::to_owned);
        self.begins(out).into_iter().chain(more).collect()
    }

    /// Whether there is nothing left to do, after a command that ended so.
    pub(super) fn is_done(&self, ended: &Ended, out: &Path) -> bool {
        let was_done = match self.way_on {
            WayOn::Resume => ended.says("is finished"),
            // What it made is whole, which is looked at, and it will not make it a second time.
            WayOn::OnceMore => ended.says("already holds files") && !is_empty(out),
            WayOn::Again | WayOn::Overwrite => false,
        };
        ended.succeeded() || (was_done && ended.is_told())
    }

    /// Whether the output is a folder that the command knows as its own, where a file of the user's may be.
    pub(super) fn is_begun(&self, out: &Path) -> bool {
        match self.way_on {
            WayOn::Resume => out.join("manifest.json").exists(),
            WayOn::Overwrite => out.join("recipe.toml").exists(),
            WayOn::Again | WayOn::OnceMore => false,
        }
    }

    /// Whether a file is written line by line while a run is under way.
    pub(super) fn is_a_log(&self, file: &Path) -> bool {
        file.file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with("metrics."))
            || file
                .components()
                .any(|part| part.as_os_str() == "tensorboard")
    }
}

/// Whether there is nothing, or nothing under a final name.
fn is_empty(out: &Path) -> bool {
    let is_final = |entry: &DirEntry| inspect::is_final(Path::new(&entry.file_name()));
    match out.read_dir() {
        Ok(entries) => !entries.flatten().any(|entry| is_final(&entry)),
        Err(_) => !out.exists(),
    }
}

/// What a command makes when nothing happens to it.
pub(super) struct Made {
    files: BTreeMap<PathBuf, Vec<u8>>,
}

impl Made {
    pub(super) fn of(out: &Path) -> Result<Self> {
        let mut files = files_in(out)?;
        // A page comes after the end, and a run is whole without it.
        let is_page = |file: &Path| file.extension().is_some_and(|end| end == "html");
        files.retain(|file, _| inspect::is_final(file) && !is_page(file));
        Ok(Self { files })
    }

    /// How long a file is.
    pub(super) fn length_of(&self, file: &Path) -> Option<usize> {
        self.files.get(file).map(Vec::len)
    }

    pub(super) fn bytes(&self) -> u64 {
        self.files.values().map(|bytes| bytes.len() as u64).sum()
    }

    /// The folders that come into being at once, with their files: those that hold a model. Its card comes last,
    /// with the figures of the run, and a model is whole without it.
    pub(super) fn models(&self) -> BTreeMap<&Path, Vec<&Path>> {
        let holds_config =
            |file: &&PathBuf| file.file_name().is_some_and(|name| name == "config.json");
        let configs = self.files.keys().filter(holds_config);
        let folders = configs.filter_map(|config| config.parent());
        let files_of = |folder: &Path| {
            let files = self.files.keys().map(PathBuf::as_path);
            let is_card = |file: &Path| file.file_name().is_some_and(|name| name == CARD);
            files
                .filter(|file| file.parent() == Some(folder) && !is_card(file))
                .collect()
        };
        folders.map(|folder| (folder, files_of(folder))).collect()
    }

    /// The first difference of an output to what it should be, of all that no clock and no path is in.
    pub(super) fn difference(&self, out: &Path) -> Result<Option<String>> {
        let found = files_in(out)?;
        for (file, bytes) in &self.files {
            let Some(other) = found.get(file) else {
                return Ok(Some(format!("{} is missing", file.display())));
            };
            if let Some(difference) = inspect::difference(file, bytes, other) {
                return Ok(Some(format!("{}: {difference}", file.display())));
            }
        }
        Ok(None)
    }
}
