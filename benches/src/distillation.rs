//! A training step as a run takes it: the same models, loss, optimizer and learner.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use burn::lr_scheduler::constant::ConstantLr;
use burn::optim::adaptor::OptimizerAdaptor;
use burn::optim::{AdamW, AdamWConfig};
use burn::tensor::backend::AutodiffBackend;
use burn::train::{ItemLazy, Learner, LearningComponentsMarker};
use burn_lti::decoder::TokenBatch;
use burn_lti::kernels::ProductPrecision;
use burn_lti::loss::DistillationLoss;
use burn_lti::map::MapKind;
use burn_lti::tensors::TensorSet;
use burn_lti::train::{Distiller, StudentOptimizer};
use burn_lti_llama::config::LlamaConfig;
use burn_lti_llama::distill::learning_student;
use burn_lti_llama::hf;
use burn_lti_llama::model::{LearningLlama, PlainLlama};
use burn_lti_llama::plan::Plan;
use burn_lti_llama::recipe::Recipe;

use crate::numbers::batch;

/// Weight of the teacher's distribution in the loss.
pub const ALPHA: f64 = 0.9;
/// Temperature of the loss.
pub const TEMPERATURE: f64 = 2.0;
/// Of the optimizer.
pub const LEARNING_RATE: f64 = 1e-3;
/// The largest norm of a gradient.
pub const GRAD_CLIP: f64 = 1.0;

/// What is distilled, and how much of it in a step.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Query heads of the student.
    pub heads: usize,
    /// Its key/value heads.
    pub kv_heads: usize,
    /// The form of the maps.
    pub map: MapKind,
    /// Sequences of a step.
    pub batch_size: usize,
    /// Tokens of a sequence.
    pub seq_len: usize,
    /// In which projections are multiplied.
    pub precision: ProductPrecision,
}

type Pupil<A> =
    Distiller<A, LearningLlama<A>, Arc<PlainLlama<<A as AutodiffBackend>::InnerBackend>>>;
type PupilOptimizer<A> = StudentOptimizer<OptimizerAdaptor<AdamW, Pupil<A>, A>>;
type PupilLearner<A> =
    Learner<LearningComponentsMarker<A, ConstantLr, Pupil<A>, PupilOptimizer<A>>>;

/// A teacher, what its student is, and a batch of text that was made up.
#[derive(Debug)]
pub struct Lesson<A: AutodiffBackend> {
    /// The student's recipe.
    pub recipe: Recipe,
    /// What the recipe means for the teacher.
    pub plan: Plan,
    /// The teacher's tensors.
    pub tensors: TensorSet<A::InnerBackend>,
    /// The teacher.
    pub teacher: Arc<PlainLlama<A::InnerBackend>>,
    /// Of every step.
    pub batch: TokenBatch<A>,
    device: A::Device,
}

impl<A: AutodiffBackend> Lesson<A> {
    /// Reads the teacher in the folder `dir`.
    ///
    /// # Errors
    ///
    /// If it cannot be read, or there is no such student of it.
    pub fn load(dir: &Path, shape: &Shape, device: &A::Device) -> Result<Self> {
        let config = LlamaConfig::from_dir(dir)?;
        let recipe = recipe(dir, shape)?;
        let plan = Plan::new(&recipe, &config)?;
        let tensors =
            hf::load_tensors::<A::InnerBackend>(dir, &config, recipe.teacher.dtype, device)?;
        let teacher = Arc::new(hf::plain_from_tensors(&config, &tensors, device)?);
        let batch = batch::<A>(shape.batch_size, shape.seq_len, config.vocab_size, device);
        Ok(Self {
            recipe,
            plan,
            tensors,
            teacher,
            batch,
            device: device.clone(),
        })
    }

    /// The student at its start.
    ///
    /// # Errors
    ///
    /// If a tensor of the teacher does not fit.
    pub fn student(&self) -> Result<LearningLlama<A>> {
        let student = learning_student::<A>(&self.plan, &self.tensors, &self.device);
        Ok(student?)
    }

    /// The student before its first step.
    ///
    /// # Errors
    ///
    /// As [`Self::student`].
    pub fn training(&self) -> Result<Training<A>> {
        let chunk_tokens = self.recipe.loss.chunk_tokens;
        let loss = DistillationLoss::new(ALPHA, TEMPERATURE, chunk_tokens)?;
        let width = self.plan.teacher.hidden_size;
        let train = &self.recipe.train;
        let (precision, _) = train.precision.on::<A::InnerBackend>(width, &self.device);
        let pupil =
            Distiller::new(self.student()?, self.teacher.clone(), loss)?.with_precision(precision);
        // The peers' defaults, which are PyTorch's.
        let adamw = AdamWConfig::new()
            .with_epsilon(1e-8)
            .with_weight_decay(1e-2)
            .init::<A, Pupil<A>>();
        let optimizer = StudentOptimizer::new(adamw).with_max_norm(GRAD_CLIP);
        Ok(Training {
            learner: Learner::new(pupil, optimizer, ConstantLr::new(LEARNING_RATE)),
            batch: self.batch.clone(),
        })
    }
}

/// A student in training.
pub struct Training<A: AutodiffBackend> {
    learner: PupilLearner<A>,
    batch: TokenBatch<A>,
}

impl<A: AutodiffBackend> Training<A> {
    /// The loss and its gradient.
    ///
    /// # Errors
    ///
    /// If the loss is of no token.
    pub fn gradient(&self) -> Result<f64> {
        let output = self.learner.train_step(self.batch.clone());
        output.item.sync().loss_mean().context("no token counts")
    }

    /// An optimizer step, and the loss before it.
    ///
    /// # Errors
    ///
    /// If the loss is of no token.
    pub fn step(&mut self) -> Result<f64> {
        self.learner.lr_step();
        let output = self.learner.train_step(self.batch.clone());
        let loss = output.item.sync().loss_mean();
        self.learner.optimizer_step(output.grads);
        loss.context("no token counts")
    }
}

/// The recipe of a student that begins where every program can begin: at `grouped`.
fn recipe(teacher: &Path, shape: &Shape) -> Result<Recipe> {
    let Shape {
        heads,
        kv_heads,
        map,
        batch_size,
        seq_len,
        precision,
    } = shape;
    let text = format!(
        "teacher.path = 'teacher'\n\
         student = {{ heads = {heads}, kv_heads = {kv_heads} }}\n\
         lti = {{ map = '{map}', start = 'grouped', train = 'maps' }}\n\
         train = {{ steps = 1, batch_size = {batch_size}, seq_len = {seq_len}, \
         precision = '{precision}' }}\n\
         data = {{ train = ['made-up'], valid = ['made-up'] }}"
    );
    let mut recipe = Recipe::parse(&text, Path::new("bench.toml"), &[])?;
    recipe.teacher.path = teacher.to_owned();
    Ok(recipe)
}
