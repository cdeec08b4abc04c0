//! Everything that a run reads.

use std::sync::Arc;

use burn::data::dataloader::DataLoader;
use burn::prelude::*;
use burn::tensor::backend::AutodiffBackend;
use burn_lti::calibration::choose_layers;
use burn_lti::decoder::{CausalLm, TokenBatch};
use burn_lti::kernels::ProductPrecision;
use burn_lti::loss::{DistillationLoss, LossInput};
use burn_lti::tensors::TensorSet;
use burn_lti::train::{CachedTeacher, Teacher, TeacherTargets};

use super::export::export_form;
use super::{DistillError, Event, Listener, Manifest, teacher_cache, vocabulary, width};
use crate::config::LlamaConfig;
use crate::data::{self, PackedSequence, of_each_length};
use crate::hf::{self, ExportForm, ModelFiles, kept_name};
use crate::model::PlainLlama;
use crate::plan::report::runs;
use crate::plan::{Plan, VocabularyPlan};
use crate::recipe::Recipe;
use crate::tokenizer::Tokenizer;

/// What runs of one teacher and one text read, whatever the shapes of their students.
pub(super) struct Loaded<A: AutodiffBackend> {
    /// Where the teacher is read, and which of its tokens are kept.
    files: ModelFiles,
    vocabulary: Option<VocabularyPlan>,
    tokenizer: Arc<Tokenizer>,
    train: Arc<[PackedSequence]>,
    /// All that counts.
    valid: Vec<PackedSequence>,
    export_form: ExportForm,
    tensors: TensorSet<A::InnerBackend>,
    teacher: Arc<PlainLlama<A::InnerBackend>>,
    training_teacher: Arc<TrainingTeacher<A::InnerBackend>>,
}

impl<A: AutodiffBackend> Loaded<A> {
    /// What `recipe` names.
    pub(super) fn read(recipe: &Recipe, device: &A::Device) -> Result<Self, DistillError> {
        let (files, vocabulary) = vocabulary::teacher_files(recipe)?;
        Self::read_of(recipe, files, vocabulary, device)
    }

    fn read_of(
        recipe: &Recipe,
        files: ModelFiles,
        vocabulary: Option<VocabularyPlan>,
        device: &A::Device,
    ) -> Result<Self, DistillError> {
        let tokenizer = files.tokenizer()?;
        let (seq_len, layout) = (&recipe.train.seq_len, recipe.data.documents);
        let field = recipe.data.field.as_deref();
        let loss_on = recipe.data.loss_on;
        let load =
            |paths, lens| data::load_sequences(paths, field, loss_on, &tokenizer, lens, layout);
        let train = load(&recipe.data.train, seq_len.all())?;
        // At the longest, a student is measured at all positions that it was trained at.
        let mut valid = load(&recipe.data.valid, &[seq_len.longest()])?;
        // What counts nothing says nothing.
        valid.retain(|sequence| sequence.num_targets() > 0);
        let cache = recipe
            .teacher
            .cache
            .as_ref()
            .map(|dir| teacher_cache::open_for(dir, &train, &files))
            .transpose()?;
        let export_form = export_form(recipe)?;
        let tensors = files.tensors(recipe.teacher.dtype, device)?;
        let teacher = Arc::new(hf::plain_from_tensors(files.config(), &tensors, device)?);
        let training_teacher = Arc::new(match cache {
            Some(cache) => TrainingTeacher::Cached(CachedTeacher::new(cache)),
            None => TrainingTeacher::Live(teacher.clone()),
        });
        Ok(Self {
            vocabulary,
            tokenizer: Arc::new(tokenizer),
            train: train.into(),
            valid,
            export_form,
            tensors,
            teacher,
            training_teacher,
            files,
        })
    }
}

/// Everything that a run reads.
pub(super) struct RunInputs<A: AutodiffBackend> {
    pub(super) plan: Plan,
    /// Where the teacher is read, and which of its tokens are kept.
    pub(super) files: ModelFiles,
    /// The teacher's at the student's width, those of its layers that the student keeps, by the student's numbers.
    pub(super) tensors: TensorSet<A::InnerBackend>,
    /// With which the student is compared.
    pub(super) teacher: Arc<PlainLlama<A::InnerBackend>>,
    /// Whose targets it learns.
    pub(super) training_teacher: Arc<TrainingTeacher<A::InnerBackend>>,
    pub(super) train: Arc<[PackedSequence]>,
    pub(super) tokenizer: Arc<Tokenizer>,
    pub(super) export_form: ExportForm,
    /// In which projections are multiplied in training.
    pub(super) precision: ProductPrecision,
    pub(super) valid: Arc<dyn DataLoader<A::InnerBackend, TokenBatch<A::InnerBackend>>>,
    /// The part of the held-out text that is watched during training.
    pub(super) watched: Arc<dyn DataLoader<A::InnerBackend, TokenBatch<A::InnerBackend>>>,
}

impl<A: AutodiffBackend> RunInputs<A> {
    /// `kept` are the layers of the teacher's that an earlier run of the recipe has chosen.
    pub(super) fn load(
        recipe: &Recipe,
        kept: Option<&[usize]>,
        device: &A::Device,
        listener: &Listener,
    ) -> Result<Self, DistillError> {
        // What is read fast and may be wrong comes before what takes its time.
        let (files, vocabulary) = vocabulary::teacher_files(recipe)?;
        precision::<A::InnerBackend>(recipe, files.config(), device)?;
        Plan::with_layers(recipe, files.config(), kept)?;
        let loaded = Loaded::read_of(recipe, files, vocabulary, device)?;
        Self::of(&loaded, recipe, kept, device, listener)
    }

    /// The same of what is `loaded` already, by a recipe that names the same teacher, texts and lengths.
    pub(super) fn of(
        loaded: &Loaded<A>,
        recipe: &Recipe,
        kept: Option<&[usize]>,
        device: &A::Device,
        listener: &Listener,
    ) -> Result<Self, DistillError> {
        let config = loaded.files.config();
        let mut plan = Plan::with_layers(recipe, config, kept)?;
        if plan.chooses_layers {
            listener(Event::Stage("choosing layers"));
            let count = plan.student.num_hidden_layers;
            let (teacher, train) = (&loaded.teacher, &loaded.train);
            let chosen = chosen_layers(teacher.as_ref(), train, count, device, listener)?;
            plan = Plan::with_layers(recipe, config, Some(&chosen))?;
        }
        let (precision, reason) = precision::<A::InnerBackend>(recipe, config, device)?;
        if let Some(reason) = reason {
            listener(Event::Note(&format!("products in {precision}: {reason}")));
        }
        plan.vocabulary = loaded.vocabulary;
        if let Some(vocabulary) = &plan.vocabulary {
            listener(Event::Note(&format!(
                "the student's vocabulary: {vocabulary}"
            )));
        }
        if let Some(kept) = &plan.kept_layers {
            let layers = runs(kept);
            listener(Event::Note(&format!(
                "the student keeps layers {layers} of the teacher's"
            )));
        }
        let (seq_len, train) = (&recipe.train.seq_len, &recipe.train);
        let longest = seq_len.longest();
        let first = |sequences: usize| {
            let count = seq_len.sequences_of(longest, sequences);
            loaded.valid.iter().take(count).cloned().collect()
        };
        let batch_size = seq_len.sequences_of(longest, train.batch_size);
        let held_out = |sequences| data::loader(sequences, batch_size, None, device);
        let tensors = for_student(&plan, train.seed, loaded.tensors.clone());
        let watched = train.watched_sequences().min(train.eval_sequences);
        Ok(Self {
            plan,
            files: loaded.files.clone(),
            tensors,
            teacher: loaded.teacher.clone(),
            training_teacher: loaded.training_teacher.clone(),
            train: loaded.train.clone(),
            tokenizer: loaded.tokenizer.clone(),
            export_form: loaded.export_form,
            precision,
            valid: held_out(first(train.eval_sequences)),
            watched: held_out(first(watched)),
        })
    }

    /// The teacher's tensors as the student of another plan takes them.
    pub(super) fn teacher_tensors(&self, plan: &Plan, seed: u64) -> TensorSet<A::InnerBackend> {
        for_student(plan, seed, TensorSet::collect(self.teacher.as_ref()))
    }

    /// The teacher's tensors at its own width, as maps of the width take them, by the student's numbers.
    pub(super) fn folded_teacher(&self) -> TensorSet<A::InnerBackend> {
        let tensors = of_layers(&self.plan, TensorSet::collect(self.teacher.as_ref()));
        width::folded(&self.plan, tensors)
    }
}

/// The teacher's `tensors` as the student of `plan` takes them.
fn for_student<B: Backend>(plan: &Plan, seed: u64, tensors: TensorSet<B>) -> TensorSet<B> {
    width::at_width(plan, seed, of_layers(plan, tensors))
}

/// Those of the teacher's `tensors` that the student keeps, by its numbers.
fn of_layers<B: Backend>(plan: &Plan, tensors: TensorSet<B>) -> TensorSet<B> {
    match &plan.kept_layers {
        Some(kept) => tensors.renamed(|name| kept_name(name, kept)),
        None => tensors,
    }
}

/// That of the recipe's training on this device, and why, where the recipe leaves it open. One that the device
/// lacks is refused.
fn precision<B: Backend>(
    recipe: &Recipe,
    config: &LlamaConfig,
    device: &B::Device,
) -> Result<(ProductPrecision, Option<String>), DistillError> {
    let (precision, reason) = recipe.train.precision.on::<B>(config.hidden_size, device);
    match precision.is_supported::<B>(device) {
        true => Ok((precision, reason)),
        false => Err(DistillError::Refused(format!(
            "train.precision is \"{precision}\", in which {} does not multiply on this device: set it to \
             \"float32\", or choose another backend or device (`burn-lti devices` lists them)",
            B::name(device)
        ))),
    }
}

/// Tokens of each of the two texts on which layers are chosen.
const TOKENS_OF_CHOICE: usize = 1024;

/// The layers of the teacher's that a student of so many keeps, measured on a little of the training text.
fn chosen_layers<B: Backend>(
    teacher: &PlainLlama<B>,
    train: &[PackedSequence],
    count: usize,
    device: &B::Device,
    listener: &Listener,
) -> Result<Vec<usize>, DistillError> {
    // Of long sequences the beginning will do; a text in which nothing counts says nothing.
    let beginnings = of_each_length(train).next().unwrap_or_default().iter();
    let beginnings = beginnings.map(|sequence| sequence.beginning(TOKENS_OF_CHOICE));
    let beginnings: Vec<_> = beginnings.filter(|it| it.num_targets() > 0).collect();
    let len = beginnings.first().map_or(1, PackedSequence::len);
    let of_each = TOKENS_OF_CHOICE
        .div_ceil(len)
        .min(beginnings.len() / 2)
        .max(1);
    // The same text twice is better than none.
    let first = beginnings.iter().take(of_each).cloned().collect();
    let second = beginnings.iter().rev().take(of_each).cloned().collect();
    let [fitted, held_out] = [first, second].map(|sequences: Vec<_>| {
        data::loader::<B>(sequences, of_each, None, device)
            .iter()
            .next()
    });
    let (Some(fitted), Some(held_out)) = (fitted, held_out) else {
        return Err(DistillError::Refused(format!(
            "no token counts in the first {TOKENS_OF_CHOICE} of any training sequence, by which layers could be \
             chosen: give other text, or name the layers in student.layers"
        )));
    };
    let targets = teacher.teach(&held_out, &[]).tokens;
    let kl = |stream| {
        let hidden = teacher.finished(stream);
        let input = LossInput::new(hidden, teacher.head(), targets.clone(), &held_out);
        let sums = DistillationLoss::KL.evaluate(input).read();
        sums.kl_mean().unwrap_or(f64::NAN)
    };
    let chosen = choose_layers(teacher, [&fitted, &held_out], count, kl, |done, all| {
        listener(Event::Advanced(done, all));
    });
    Ok(chosen?)
}

impl<A: AutodiffBackend> RunInputs<A> {
    /// A cache must have been written by the teacher itself.
    pub(super) fn check_cache(&self, manifest: &Manifest) -> Result<(), DistillError> {
        let TrainingTeacher::Cached(cached) = self.training_teacher.as_ref() else {
            return Ok(());
        };
        let (written, now) = (&cached.header().teacher_sha256, &manifest.teacher.tensors);
        let differs = |name: &&String| written.get(*name) != now.get(*name);
        match written.keys().chain(now.keys()).find(differs) {
            None => Ok(()),
            Some(tensor) => Err(DistillError::Refused(format!(
                "the teacher's top tokens were written by another teacher: its tensor {tensor} differs; \
                 write them again with `burn-lti cache-teacher`"
            ))),
        }
    }
}

/// Whose targets a student learns.
#[derive(Debug)]
pub(super) enum TrainingTeacher<B: Backend> {
    /// The model itself.
    Live(Arc<PlainLlama<B>>),
    /// Its top tokens, as they were written down.
    Cached(CachedTeacher),
}

impl<B: Backend> Teacher<B> for TrainingTeacher<B> {
    fn vocab_size(&self) -> usize {
        match self {
            Self::Live(model) => model.vocab_size(),
            Self::Cached(cached) => Teacher::<B>::vocab_size(cached),
        }
    }

    fn attention_layers(&self) -> Option<usize> {
        match self {
            Self::Live(model) => model.attention_layers(),
            Self::Cached(cached) => Teacher::<B>::attention_layers(cached),
        }
    }

    fn teach(&self, batch: &TokenBatch<B>, attention_of: &[usize]) -> TeacherTargets<B> {
        match self {
            Self::Live(model) => model.teach(batch, attention_of),
            Self::Cached(cached) => cached.teach(batch, attention_of),
        }
    }
}
