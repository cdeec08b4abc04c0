//! One phase of a run: a student, its optimizer, and the steps it takes under Burn's Learner.

use std::collections::HashSet;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::prelude::*;
use burn::tensor::backend::AutodiffBackend;
use burn::train::logger::InMemoryMetricLogger;
use burn::train::{Learner, SupervisedTraining, TrainingStrategy};
use burn_lti::calibration::Whitening;
use burn_lti::decoder::LayeredDecoder;
use burn_lti::loss::{DistillationLoss, FeatureLoss, LossSchedule};
use burn_lti::train::{
    Checkpoint, Distiller, RankSchedule, SilentRenderer, StepClock, StepStrategy, TrainError,
};

use super::DistillError;
use super::hook::{Hook, Setback};
use super::inputs::RunInputs;
use super::module::{DistillationModule, ModuleOptimizer, Student, Writer};
use super::on_policy::OnPolicy;
use super::schedule::PhaseSchedule;
use super::step_rows::{StepRows, cut};
use super::teacher_cache::the_teacher;
use crate::data::{TokenBatcher, loader, loader_by, of_each_length};
use crate::model::NotFinite;
use crate::recipe::{Coordinates, GrowSection, Recipe};

/// A student in training.
pub(super) struct Trainer<A: AutodiffBackend, M: Student<A>> {
    pub(super) module: DistillationModule<A, M>,
    pub(super) optimizer: ModuleOptimizer<A>,
    clock: StepClock,
    schedule: PhaseSchedule,
    /// Steps of this phase taken before.
    taken: usize,
    rate_factor: f64,
}

impl<A: AutodiffBackend, M: Student<A>> Trainer<A, M> {
    /// `student` before its first step. The loss's schedules go over the steps of `schedule`.
    pub(super) fn new(
        student: M,
        recipe: &Recipe,
        inputs: &RunInputs<A>,
        schedule: PhaseSchedule,
        whitening: Option<Whitening<A::InnerBackend>>,
        device: &A::Device,
    ) -> Result<Self, DistillError> {
        let clock = StepClock::new();
        let loss = loss(recipe, schedule.steps)?;
        let module = Distiller::new(student, inputs.training_teacher.clone(), loss)?;
        let mut module = module.with_precision(inputs.precision);
        if let Some(feature) = &inputs.plan.loss.feature {
            module = module.with_pairs(feature.pairs.iter().copied())?;
            if feature.projector {
                module = module.with_projectors(inputs.plan.teacher.hidden_size, device);
            }
        }
        let optimizer = schedule
            .optimizer(&recipe.train, whitening)
            .with_ranks(ranks(recipe))
            .with_clock(clock.clone());
        Ok(Self {
            module: module.with_clock(clock.clone()),
            optimizer,
            clock,
            schedule,
            taken: 0,
            rate_factor: 1.0,
        })
    }

    /// Goes on from the weights of `module` after `taken` steps, with an optimizer that begins anew.
    pub(super) fn going_on_from(self, module: DistillationModule<A, M>, taken: usize) -> Self {
        Self {
            module: module.with_clock(self.clock.clone()),
            taken,
            ..self
        }
    }

    /// Learns at so many times the rate.
    pub(super) fn with_rate_factor(self, rate_factor: f64) -> Self {
        Self {
            rate_factor,
            ..self
        }
    }

    /// The student after the `taken` steps of this phase that `checkpoint` was saved at.
    pub(super) fn restored(
        self,
        checkpoint: &Checkpoint,
        taken: usize,
    ) -> Result<Self, DistillError> {
        let (module, optimizer) = checkpoint.restore_into(self.module, self.optimizer)?;
        Ok(Self {
            module,
            optimizer,
            taken,
            ..self
        })
    }

    /// Elements of all parameters of the student that train.
    pub(super) fn trainable_parameters(&self) -> usize {
        count_trainable(self.module.student())
    }

    /// Takes the steps, until they are all taken or `hook` ends them. The hook says afterwards how it
    /// ended.
    pub(super) fn train(
        self,
        recipe: &Recipe,
        inputs: &RunInputs<A>,
        device: &A::Device,
        hook: &Arc<Mutex<Hook<A, M>>>,
    ) -> Result<Attempt<A, M>, DistillError> {
        let settings = &recipe.train;
        let micro_batches = NonZeroUsize::new(settings.accumulate).unwrap_or(NonZeroUsize::MIN);
        let strategy = StepStrategy::new(self.schedule.steps, hook.clone())
            .with_accumulation(micro_batches)
            .with_measures(self.optimizer.measures())
            .with_clock(self.clock)
            .resuming_at(self.taken)
            .without_validation();
        let outcome = strategy.outcome();
        let batches = match OnPolicy::new(recipe, inputs, self.schedule)? {
            None => {
                let cut = cut(settings, self.schedule);
                loader_by(TokenBatcher, inputs.train.to_vec(), cut, device)
            }
            Some(mut on_policy) => {
                let mut hook = hook.lock().unwrap_or_else(PoisonError::into_inner);
                on_policy.take_up(hook.progress.on_policy.take());
                let student = || self.module.student().valid().into_writer();
                on_policy.write(self.taken, student)?;
                let batches = on_policy.loader(settings, device);
                hook.on_policy = Some(on_policy);
                batches
            }
        };
        let learner = Learner::new(
            self.module,
            self.optimizer,
            self.schedule.learning_rates(settings, self.rate_factor),
        );
        let result = SupervisedTraining::new(Path::new(""), batches, inputs.valid.clone())
            .with_application_logger(None)
            .with_metric_logger(InMemoryMetricLogger::default())
            .renderer(SilentRenderer)
            .with_training_strategy(TrainingStrategy::Custom(Arc::new(strategy)))
            .launch(learner);
        let mut hook = hook.lock().unwrap_or_else(PoisonError::into_inner);
        match (hook.failure.take(), hook.setback.take(), outcome.get()) {
            (Some(failure), _, _) => Err(failure),
            (None, Some(setback), _) => Ok(Attempt::SetBack(setback)),
            (None, None, Some(Err(error @ TrainError::NotFinite { step, .. }))) => {
                let mut rows = StepRows::new(&inputs.train, settings, self.schedule).of(step);
                rows.sort_unstable();
                let of_step = inputs.train.iter().filter(|it| rows.contains(&it.row));
                let batches = loader(of_step.cloned().collect(), rows.len(), None, device);
                for batch in batches.iter() {
                    NotFinite::check(&the_teacher(recipe), inputs.teacher.as_ref(), &batch)?;
                }
                Ok(Attempt::SetBack(Setback::NotFinite { error, rows }))
            }
            (None, None, Some(Err(error))) => Err(error.into()),
            (None, None, _) => Ok(Attempt::Over(result.model.into_student())),
        }
    }
}

/// How an attempt at the steps of a phase came out.
pub(super) enum Attempt<A: AutodiffBackend, M: Student<A>> {
    /// The phase is over, with the student of its last step.
    Over(M::InnerModule),
    /// It has to go back to its best weights.
    SetBack(Setback),
}

/// The coordinates in which the maps of `student`, the student of a phase's start, learn; none where the
/// recipe wants plain ones.
pub(super) fn whitening<A: AutodiffBackend>(
    recipe: &Recipe,
    inputs: &RunInputs<A>,
    student: &impl LayeredDecoder<A::InnerBackend>,
    device: &A::Device,
) -> Result<Option<Whitening<A::InnerBackend>>, DistillError> {
    /// Tokens that make a Gram matrix of a few hundred features.
    const TOKENS: usize = 8192;

    if recipe.coordinates() == Coordinates::Plain {
        return Ok(None);
    }
    let tokens_of_each = TOKENS / recipe.train.seq_len.all().len();
    let text = of_each_length(&inputs.train).flat_map(|of_one| {
        let sequences = tokens_of_each.div_ceil(of_one[0].len());
        of_one.iter().take(sequences).cloned()
    });
    let text = text.collect();
    let micro_batch = recipe.train.batch_size / recipe.train.accumulate.max(1);
    let batches = loader(text, micro_batch, None, device);
    Ok(Some(Whitening::of_maps(student, batches.iter())?))
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
