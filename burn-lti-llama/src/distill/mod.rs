//! A recipe carried out: plan, start, train, collapse, export, reload, compare.
//!
//! What ends up in the output folder:
//!
//! | file | what |
//! |---|---|
//! | `student/` | the collapsed student as a Hugging Face folder |
//! | `recipe.toml` | the recipe with every default and override resolved |
//! | `metrics.jsonl` | one line a logged step |
//! | `summary.json` | the run in figures: [`Summary`] |

mod error;
mod metrics;
mod output;
mod student;
mod summary;
mod training;

use std::sync::Arc;
use std::time::Instant;

use burn::data::dataloader::DataLoader;
use burn::module::AutodiffModule;
use burn::prelude::*;
use burn::tensor::DType;
use burn::tensor::backend::AutodiffBackend;
use burn_lti::collapse::collapse;
use burn_lti::decoder::{CausalLm, TokenBatch};
use burn_lti::tensors::TensorSet;
use burn_lti::train::StepReport;

pub use error::DistillError;
pub use output::OutputDir;
pub use student::{free_student, learning_student};
pub use summary::Summary;

use crate::config::LlamaConfig;
use crate::data::{self, PackedSequence};
use crate::eval::{Evaluation, evaluate};
use crate::hf;
use crate::model::PlainLlama;
use crate::plan::Plan;
use crate::recipe::{Recipe, Trained};
use crate::tokenizer::Tokenizer;

/// What a run tells while it goes on.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// A part of the run begins.
    Stage(&'a str),
    /// So much of so much of the stage is done.
    Advanced(usize, usize),
    /// The student before its first step, and after its last.
    Evaluation(&'a Evaluation),
    /// An optimizer step was taken, of so many.
    Step(&'a StepReport, usize),
}

/// Told of every event of a run. Shared with the training loop, hence the bounds.
pub type Listener = Arc<dyn Fn(Event<'_>) + Send + Sync>;

/// Carries `recipe` out on `device` and leaves the result in `out`.
///
/// # Errors
///
/// [`DistillError`] naming what went wrong and, where there is one, the way out. An earlier run's
/// results in `out` are taken away once everything is read; a run that fails after that leaves neither
/// `summary.json` nor `student`.
pub fn distill<A: AutodiffBackend>(
    recipe: &Recipe,
    out: &OutputDir,
    device: &A::Device,
    listener: &Listener,
) -> Result<Summary, DistillError> {
    let began = Instant::now();
    A::seed(device, recipe.train.seed);
    listener(Event::Stage("loading the teacher"));
    let setting = Setting::<A>::load(recipe, device)?;
    out.begin(recipe)?;

    listener(Event::Stage("starting the student"));
    let run = Run {
        recipe,
        out,
        device,
        listener,
        setting: &setting,
        began,
    };
    match recipe.lti.train {
        Trained::Maps => {
            let student = learning_student::<A>(recipe, &setting.plan, &setting.tensors, device)?;
            run.finish(student)
        }
        Trained::Projections | Trained::All => {
            let student = free_student::<A>(recipe, &setting.plan, &setting.tensors, device)?;
            run.finish(student)
        }
    }
}

/// Everything a run reads.
struct Setting<A: AutodiffBackend> {
    plan: Plan,
    tensors: TensorSet<A::InnerBackend>,
    teacher: Arc<PlainLlama<A::InnerBackend>>,
    train: Vec<PackedSequence>,
    valid: Arc<dyn DataLoader<A::InnerBackend, TokenBatch<A::InnerBackend>>>,
}

impl<A: AutodiffBackend> Setting<A> {
    fn load(recipe: &Recipe, device: &A::Device) -> Result<Self, DistillError> {
        // What is read fast and may be wrong comes before what takes its time.
        let path = &recipe.teacher.path;
        let config = LlamaConfig::from_dir(path)?;
        let plan = Plan::new(recipe, &config)?;
        let tokenizer = Tokenizer::from_dir(path, config.bos_token_id, &config.eos_token_ids)?;
        tokenizer.check_vocab(config.vocab_size)?;
        let load = |paths| data::load_sequences(paths, &tokenizer, recipe.train.seq_len);
        let train = load(&recipe.data.train)?;
        let mut valid = load(&recipe.data.valid)?;
        valid.truncate(recipe.train.eval_sequences);

        let tensors = hf::load_tensors(path, &config, recipe.teacher.dtype, device)?;
        let teacher = hf::plain_from_tensors(&config, &tensors, device)?;
        Ok(Self {
            plan,
            tensors,
            teacher: Arc::new(teacher),
            train,
            valid: data::loader(valid, recipe.train.batch_size, None, device),
        })
    }
}

/// A run whose student exists.
struct Run<'a, A: AutodiffBackend> {
    recipe: &'a Recipe,
    out: &'a OutputDir,
    device: &'a A::Device,
    listener: &'a Listener,
    setting: &'a Setting<A>,
    began: Instant,
}

impl<A: AutodiffBackend> Run<'_, A> {
    /// Trains, collapses, exports, reloads and compares.
    fn finish<M>(&self, student: M) -> Result<Summary, DistillError>
    where
        M: CausalLm<A> + AutodiffModule<A, InnerModule: CausalLm<A::InnerBackend>> + 'static,
    {
        let Self {
            recipe, setting, ..
        } = *self;
        let start = self.evaluate("evaluating the start", &student.valid());

        (self.listener)(Event::Stage("training"));
        let trained = training::train::<A, M>(
            student,
            setting,
            recipe,
            self.device,
            self.out,
            self.listener,
        )?;

        (self.listener)(Event::Stage("collapsing and exporting"));
        let plain = collapse(&trained.student, recipe.lti.precision)?.into_plain(PlainLlama::<
            A::InnerBackend,
        >::init(
            &setting.plan.student,
            self.device,
        ))?;
        let student_dir = self.out.unchecked_student_dir();
        let dtype = recipe.teacher.dtype;
        hf::export(&plain, dtype, &recipe.teacher.path, &student_dir)?;

        let reloaded = hf::load_as::<A::InnerBackend>(&student_dir, dtype, self.device)?;
        let difference = self.max_logit_difference(&trained.student, &reloaded)?;
        self.out.accept_student()?;
        let end = self.evaluate("evaluating the exported student", &reloaded);
        let summary = Summary::new(self.recipe, &setting.plan, &start, &end, &trained.counts)
            .with_collapse_difference(difference)
            .with_total_seconds(self.began.elapsed().as_secs_f64());
        self.out.write_summary(&summary)?;
        Ok(summary)
    }

    fn evaluate(&self, stage: &str, student: &impl CausalLm<A::InnerBackend>) -> Evaluation {
        (self.listener)(Event::Stage(stage));
        let evaluation = evaluate(
            student,
            self.setting.teacher.as_ref(),
            &self.setting.valid,
            |done, all| (self.listener)(Event::Advanced(done, all)),
        );
        (self.listener)(Event::Evaluation(&evaluation));
        evaluation
    }

    /// The largest difference between the logits of the model as trained and as reloaded, over the
    /// first held-out batch. `None` if there is no held-out batch.
    fn max_logit_difference(
        &self,
        trained: &impl CausalLm<A::InnerBackend>,
        reloaded: &impl CausalLm<A::InnerBackend>,
    ) -> Result<Option<f64>, DistillError> {
        let Some(batch) = self.setting.valid.iter().next() else {
            return Ok(None);
        };
        let largest = |values: Tensor<A::InnerBackend, 2>| values.abs().max().into_scalar().elem();
        let trained = logits(trained, &batch);
        let difference = largest(trained.clone() - logits(reloaded, &batch));
        let allowed = MAX_COLLAPSE_DIFFERENCE * f64::max(1.0, largest(trained));
        match difference <= allowed {
            true => Ok(Some(difference)),
            false => Err(DistillError::Collapse {
                difference,
                allowed,
            }),
        }
    }
}

/// Of the largest logit. Folding a map away may at most regroup sums of some thousand float32 terms,
/// each off by 6e-8 of its size: anything beyond this is no rounding.
const MAX_COLLAPSE_DIFFERENCE: f64 = 1e-4;

/// Logits of a batch, `[batch * tokens, vocab]`.
fn logits<B: Backend>(model: &impl CausalLm<B>, batch: &TokenBatch<B>) -> Tensor<B, 2> {
    let hidden = model.hidden_states(batch);
    let [rows, tokens, d_model] = hidden.dims();
    hidden
        .reshape([rows * tokens, d_model])
        .matmul(model.head().weight)
        .cast(DType::F32)
}

/// The recipe's plan, from the teacher's configuration alone. The texts must be there, but are not
/// read.
///
/// # Errors
///
/// [`DistillError::Config`], [`DistillError::Plan`], [`DistillError::NoText`].
pub fn plan(recipe: &Recipe) -> Result<Plan, DistillError> {
    let plan = Plan::new(recipe, &LlamaConfig::from_dir(&recipe.teacher.path)?)?;
    let mut texts = recipe.data.train.iter().chain(&recipe.data.valid);
    match texts.find(|text| !text.is_file()) {
        Some(text) => Err(DistillError::NoText { file: text.clone() }),
        None => Ok(plan),
    }
}
