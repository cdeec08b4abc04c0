//! A recipe carried out: plan, start, train, collapse, export, reload, compare.
//!
//! What ends up in the output folder:
//!
//! | file | what |
//! |---|---|
//! | `student/` | the collapsed student as a Hugging Face folder |
//! | `recipe.toml` | the recipe with every default and override resolved |
//! | `manifest.json` | what the run is made of: program, backend, hashes of teacher and text |
//! | `start.safetensors` | what a calibrated start calculated, with a report on each layer |
//! | `start.json` | the same report, and what the start is worth, of a student that was made and not trained |
//! | `metrics.jsonl` | one line a logged step, one an evaluation |
//! | `checkpoints/` | where the run can be taken up again |
//! | `tensorboard/` | the same numbers as events, if they are asked for |
//! | `evaluation.json` | what the exported student is worth: [`DocumentEvaluation`](crate::eval::DocumentEvaluation) |
//! | `summary.json` | the run in figures: [`Summary`] |
//! | `report.html` | the same as a page, if the command was asked for one |
//! | `files.json` | which of these files the run wrote, with sizes and hashes |
//! | `.lock` | held by the run that writes |
//!
//! | where to look | |
//! |---|---|
//! | `run` | the phases of a run in their order, and how it is taken up again |
//! | `training` | one phase under Burn's Learner |
//! | `module` | what is trained: a student beside its teacher |
//! | `progress` | where a run stands, as a checkpoint keeps it |
//! | `hook` | what happens between two steps: metrics, checkpoints, the decision to go on |
//! | `step_rows` | which sequences each step learns from |
//! | `on_policy`, `written` | sequences that the student goes on with itself, and what it wrote |
//! | `shapes` | the search for a shape that is small enough |
//! | `start` | what the student begins from, calculated or read |
//! | `units` | feed-forward blocks with fewer units, of a start that reads no text |
//! | `student` | the student before its first step |
//! | `export` | collapse, write, read back, compare |
//! | `output`, `file_list` | the output folder, and what in it a run wrote |
//! | `inputs` | what a run reads |
//! | `interrupt` | how a run is asked to stop |
//! | `shapes`, `search` | which shapes are small enough, and the one of them that is nearest |
//! | `vocabulary` | which of the teacher's tokens are kept |
//! | `teacher_cache` | a teacher's top tokens, written once |

mod card;
mod error;
mod export;
mod file_list;
mod hook;
mod inputs;
mod interrupt;
mod manifest;
mod metrics;
mod module;
mod new_student;
mod on_policy;
mod output;
mod progress;
mod run;
mod schedule;
mod search;
mod shapes;
mod start;
mod start_summary;
mod step_rows;
mod student;
mod summary;
mod teacher_cache;
mod tensorboard;
mod training;
mod units;
mod vocabulary;
mod width;
mod written;

use std::sync::Arc;

use burn::tensor::backend::AutodiffBackend;
use burn_lti::calibration::LayerReport;
use burn_lti::train::StepReport;

pub use error::DistillError;
pub use interrupt::Interrupt;
pub use manifest::{
    Compute, DataHashes, MAY_CHANGE, Manifest, ManifestError, Note, Program, Source, TeacherHashes,
    TextHash, TokensHash,
};
pub use metrics::{LoggedEvaluation, MetricsError};
pub use output::OutputDir;
pub use progress::PhaseEnd;
pub use run::{Job, Which, collapse_run};
pub use search::search_shape;
pub use shapes::{Shape, ShapeTable, Sizes, shapes};
pub use start_summary::StartSummary;
pub use student::{free_student, learning_student};
pub use summary::{Kept, Summary};
pub use teacher_cache::{CacheCheck, CacheOrder, cache_teacher, verify_cache};
pub use tensorboard::TensorBoard;

use crate::data::text_files;
use crate::eval::Evaluation;
use crate::hf::ModelFiles;
use crate::plan::{Plan, TextPlan};
use crate::recipe::Recipe;

/// What a run tells while it goes on.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// A part of the run begins.
    Stage(&'a str),
    /// So much of so much of the stage is done.
    Advanced(usize, usize),
    /// The student before its first step, after its last, and between two phases.
    Evaluation(&'a Evaluation),
    /// A layer of the start was calculated.
    Calibrated(&'a LayerReport),
    /// An optimizer step was taken, and how many there are in all.
    Step(&'a StepReport, usize),
    /// The run can be taken up again after this step.
    Saved(usize),
    /// Something that whoever reads the results should know.
    Note(&'a str),
}

/// Told of every event of a run. Shared with the training loop, hence the bounds.
pub type Listener = Arc<dyn Fn(Event<'_>) + Send + Sync>;

/// Carries `recipe` out on `device` and leaves the result in `out`: a [`Job`] without anyone who might
/// interrupt it.
///
/// # Errors
///
/// As [`Job::run`].
pub fn distill<A: AutodiffBackend>(
    recipe: &Recipe,
    out: &OutputDir,
    device: &A::Device,
    listener: &Listener,
) -> Result<Summary, DistillError> {
    Job::new(recipe, out)
        .with_listener(listener.clone())
        .run::<A>(device)
}

/// The recipe's plan: all that would keep it from being carried out is found, from the headers of the teacher's
/// files, the texts and the tokenizer. ([`Plan::new`] looks at a configuration alone.)
///
/// # Errors
///
/// [`DistillError::Plan`], or another [`DistillError`] of what is read.
pub fn plan(recipe: &Recipe) -> Result<Plan, DistillError> {
    let (mut plan, teacher) = planned(recipe)?;
    let tokenizer = teacher.tokenizer()?;
    teacher.check_weights()?;
    plan.text = Some(TextPlan::of(recipe, &tokenizer)?);
    Ok(plan)
}

/// The recipe's plan, from the teacher's configuration alone. The texts must be there, but are not read, unless the
/// student keeps some of the teacher's tokens: then tokenizer and texts are.
///
/// # Errors
///
/// [`DistillError::Plan`], or another [`DistillError`] of the configuration or a text that is not there.
pub fn plan_of_config(recipe: &Recipe) -> Result<Plan, DistillError> {
    planned(recipe).map(|(plan, _)| plan)
}

/// The plan, and the teacher that it is of.
fn planned(recipe: &Recipe) -> Result<(Plan, ModelFiles), DistillError> {
    let (teacher, vocabulary) = vocabulary::teacher_files(recipe)?;
    let mut plan = Plan::new(recipe, teacher.config())?;
    plan.vocabulary = vocabulary;
    let [train, valid] = [&recipe.data.train, &recipe.data.valid].map(|paths| text_files(paths));
    let mut texts = train?.into_iter().chain(valid?);
    match texts.find(|text| !text.is_file()) {
        Some(text) => Err(DistillError::Refused(format!(
            "there is no text file {}: correct the paths in [data] of the recipe",
            text.display()
        ))),
        None => Ok((plan, teacher)),
    }
}
