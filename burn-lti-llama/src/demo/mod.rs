//! The whole way on a machine that has nothing but this repository.
//!
//! The program writes stories by a [grammar], trains a small Llama on them, and
//! makes students with half its heads by the same [`distill`] that recipes use, one from each start.

mod error;
pub mod grammar;
mod teacher;
pub mod vocabulary;

use std::fs;
use std::path::Path;

use burn::tensor::backend::AutodiffBackend;
use burn_lti::files::write_atomically;
use burn_lti::map::Start;
use serde::Serialize;

pub use error::DemoError;
use grammar::StoryGrammar;

use crate::distill::{Event, Listener, OutputDir, Summary, distill};
use crate::recipe::Recipe;

/// What the demo found.
#[derive(Clone, Debug, Serialize)]
pub struct DemoReport {
    /// Parameters of the teacher.
    pub teacher_parameters: usize,
    /// Held-out cross-entropy of the teacher, nats per token.
    pub teacher_ce: Option<f64>,
    /// Bytes of the teacher's key/value cache per token, in float32.
    pub teacher_kv_cache_bytes_per_token: usize,
    /// One student from each start.
    pub students: Vec<DemoStudent>,
}

/// One student of the demo.
#[derive(Clone, Debug, Serialize)]
pub struct DemoStudent {
    /// Where its maps began.
    pub start: Start,
    /// Its run.
    pub summary: Summary,
}

const TRAIN_STORIES: usize = 6000;
const VALID_STORIES: usize = 200;

/// Students have half the teacher's heads. Everything else is the recipes' default.
const RECIPE: &str = r#"
[teacher]
path = "teacher"
[student]
heads = 4
kv_heads = 2
[train]
steps = 120
batch_size = 16
seq_len = 128
[data]
train = ["train.txt"]
valid = ["valid.txt"]
"#;

/// Runs the demo in `dir`, which must be empty or absent.
///
/// # Errors
///
/// [`DemoError`].
pub fn demo<A: AutodiffBackend>(
    dir: &Path,
    seed: u64,
    device: &A::Device,
    listener: &Listener,
) -> Result<DemoReport, DemoError> {
    OutputDir::check_empty(dir, "choose another --out, or take them away")?;
    write_stories(dir, seed)?;
    listener(Event::Stage("training a teacher on made-up stories"));
    let teacher_dir = dir.join("teacher");
    teacher::train::<A>(dir, &teacher_dir, seed, device, listener)?;

    let mut students = Vec::new();
    for start in Start::ALL {
        listener(Event::Stage(&format!("student, start {start}")));
        let mut recipe = Recipe::parse(RECIPE, &dir.join("demo.toml"), &[])?;
        recipe.lti.start = start;
        recipe.train.seed = seed;
        let out = OutputDir::prepare(&dir.join(start.to_string()), false)?;
        let summary = distill::<A>(&recipe, &out, device, listener)?;
        students.push(DemoStudent { start, summary });
    }
    let first = students.first().map(|student| &student.summary);
    Ok(DemoReport {
        teacher_parameters: first.map_or(0, |summary| summary.teacher_parameters),
        teacher_ce: first.and_then(|summary| summary.teacher_ce),
        teacher_kv_cache_bytes_per_token: first
            .map_or(0, |summary| summary.teacher_kv_cache_bytes_per_token),
        students,
    })
}

/// `train.txt` and `valid.txt`, a story a line, the latter from stories that the former has not.
fn write_stories(dir: &Path, seed: u64) -> Result<(), DemoError> {
    fs::create_dir_all(dir).map_err(|source| DemoError::Folder {
        dir: dir.to_owned(),
        source,
    })?;
    let train: Vec<String> = StoryGrammar::new(seed).take(TRAIN_STORIES).collect();
    let valid: Vec<String> = StoryGrammar::new(!seed)
        .filter(|story| !train.contains(story))
        .take(VALID_STORIES)
        .collect();
    for (name, stories) in [("train.txt", train), ("valid.txt", valid)] {
        let mut text = stories.join("\n");
        text.push('\n');
        write_atomically(&dir.join(name), text.as_bytes())?;
    }
    Ok(())
}
