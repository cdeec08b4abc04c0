//! One phase of a run: a student, its optimizer, and the steps it takes under Burn's Learner.

use std::collections::HashSet;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::optim::AdamWConfig;
use burn::prelude::*;
use burn::tensor::backend::AutodiffBackend;
use burn::train::logger::InMemoryMetricLogger;
use burn::train::{Learner, SupervisedTraining, TrainingStrategy};
use burn_lti::loss::{DistillationLoss, FeatureLoss, LossSchedule};
use burn_lti::parameters::tie;
use burn_lti::train::{
    Checkpoint, Distiller, RankSchedule, SilentRenderer, StepClock, StepStrategy, StudentOptimizer,
    WarmupCosine,
};

use super::DistillError;
use super::hook::Hook;
use super::inputs::RunInputs;
use super::module::{DistillationModule, ModuleOptimizer, Student};
use crate::data::loader;
use crate::recipe::{GrowSection, Recipe};

/// The steps of a phase and the rate at which it learns.
#[derive(Clone, Copy, Debug)]
pub(super) struct PhaseSchedule {
    pub(super) steps: usize,
    pub(super) learning_rate: f64,
    pub(super) warmup_fraction: f64,
    pub(super) final_lr_fraction: f64,
    /// Of the order of the data.
    pub(super) seed: u64,
}

impl PhaseSchedule {
    fn learning_rates(&self) -> WarmupCosine {
        let warmup = (self.warmup_fraction * self.steps as f64) as usize;
        WarmupCosine::new(
            self.learning_rate,
            self.steps,
            warmup,
            self.final_lr_fraction,
        )
    }
}

/// A student in training.
pub(super) struct Trainer<A: AutodiffBackend, M: Student<A>> {
    pub(super) module: DistillationModule<A, M>,
    pub(super) optimizer: ModuleOptimizer<A, M>,
    clock: StepClock,
    schedule: PhaseSchedule,
    /// Steps of this phase taken before.
    taken: usize,
}

impl<A: AutodiffBackend, M: Student<A>> Trainer<A, M> {
    /// `student` before its first step. The loss's schedules go over the steps of `schedule`.
    pub(super) fn new(
        student: M,
        recipe: &Recipe,
        inputs: &RunInputs<A>,
        schedule: PhaseSchedule,
        device: &A::Device,
    ) -> Result<Self, DistillError> {
        let clock = StepClock::new();
        let loss = loss(recipe, schedule.steps)?;
        let mut module = Distiller::new(student, inputs.training_teacher.clone(), loss)?;
        if let Some(feature) = &inputs.plan.loss.feature {
            module = module.with_pairs(feature.pairs.iter().copied())?;
            if feature.projector {
                module = module.with_projectors(inputs.plan.teacher.hidden_size, device);
            }
        }
        let [beta_1, beta_2] = recipe.train.betas;
        let adamw = AdamWConfig::new()
            .with_beta_1(beta_1 as f32)
            .with_beta_2(beta_2 as f32)
            .with_epsilon(recipe.train.eps as f32)
            .with_weight_decay(recipe.train.weight_decay as f32)
            .init::<A, DistillationModule<A, M>>();
        let optimizer = StudentOptimizer::new(adamw)
            .with_max_norm(recipe.train.grad_clip)
            .with_ranks(ranks(recipe))
            .with_clock(clock.clone());
        Ok(Self {
            module: module.with_clock(clock.clone()),
            optimizer,
            clock,
            schedule,
            taken: 0,
        })
    }

    /// The student after the `taken` steps of this phase that `checkpoint` was saved at.
    pub(super) fn restored(
        self,
        checkpoint: &Checkpoint,
        taken: usize,
    ) -> Result<Self, DistillError> {
        let (module, optimizer) = checkpoint.restore_into(self.module, self.optimizer)?;
        Ok(Self {
            // Each parameter was restored on its own.
            module: tie(module),
            optimizer,
            taken,
            ..self
        })
    }

    /// Elements of all parameters of the student that train.
    pub(super) fn trainable_parameters(&self) -> usize {
        count_trainable(self.module.student())
    }

    /// Takes the steps, until they are all taken or `hook` ends them, and gives the student back. The
    /// hook says afterwards how it ended.
    pub(super) fn train(
        self,
        recipe: &Recipe,
        inputs: &RunInputs<A>,
        device: &A::Device,
        hook: &Arc<Mutex<Hook<A, M>>>,
    ) -> Result<M::InnerModule, DistillError> {
        let settings = &recipe.train;
        let micro_batches = NonZeroUsize::new(settings.accumulate).unwrap_or(NonZeroUsize::MIN);
        let strategy = StepStrategy::new(self.schedule.steps, hook.clone())
            .with_accumulation(micro_batches)
            .with_norm(self.optimizer.norm())
            .with_clock(self.clock)
            .resuming_at(self.taken)
            .without_validation();
        let outcome = strategy.outcome();
        let batches = loader(
            inputs.train.clone(),
            settings.batch_size / micro_batches,
            Some(self.schedule.seed),
            device,
        );
        let learner = Learner::new(self.module, self.optimizer, self.schedule.learning_rates());
        let result = SupervisedTraining::new(Path::new(""), batches, inputs.valid.clone())
            .with_application_logger(None)
            .with_metric_logger(InMemoryMetricLogger::default())
            .renderer(SilentRenderer)
            .with_training_strategy(TrainingStrategy::Custom(Arc::new(strategy)))
            .launch(learner);
        let failure = hook
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .failure
            .take();
        match (failure, outcome.get()) {
            (Some(failure), _) => Err(failure),
            (None, Some(Err(error))) => Err(error.into()),
            (None, _) => Ok(result.model.into_student()),
        }
    }
}

/// When the ranks of the recipe's maps become active, if not all are from the first step.
fn ranks(recipe: &Recipe) -> Option<RankSchedule> {
    let GrowSection { from, every } = recipe.lti.grow?;
    Some(RankSchedule {
        from: NonZeroUsize::new(from)?,
        every: NonZeroUsize::new(every)?,
    })
}

/// The recipe's loss, its schedules over `steps`.
fn loss(recipe: &Recipe, steps: usize) -> Result<LossSchedule, DistillError> {
    let section = &recipe.loss;
    let (alpha, temperature) = (section.alpha, section.temperature);
    let mut loss = DistillationLoss::new(alpha.start(), temperature.start(), section.chunk_tokens)?
        .with_divergence(section.divergence)?
        .with_sparse(section.sparse);
    if let Some(feature) = &section.feature {
        loss = loss.with_feature(FeatureLoss::new(feature.kind, feature.weight.start())?);
    }
    let mut loss_schedule = LossSchedule::new(loss, steps)
        .with_alpha(alpha)?
        .with_temperature(temperature)?;
    if let Some(feature) = &section.feature {
        loss_schedule = loss_schedule.with_feature_weight(feature.weight)?;
    }
    Ok(loss_schedule)
}

/// Elements of all parameters that train, a shared one counted once.
fn count_trainable<B: Backend, M: Module<B>>(module: &M) -> usize {
    #[derive(Default)]
    struct Count {
        seen: HashSet<ParamId>,
        elements: usize,
    }
    impl<B: Backend> ModuleVisitor<B> for Count {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
            if param.is_require_grad() && self.seen.insert(param.id) {
                self.elements += param.shape().num_elements();
            }
        }
    }
    let mut count = Count::default();
    module.visit(&mut count);
    count.elements
}
