//! [`StepStrategy`]: Burn's training loop for those who count optimizer steps.

use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};

use burn::data::dataloader::Progress;
use burn::module::AutodiffModule;
use burn::optim::GradientsParams;
use burn::train::{
    EventProcessorTraining, InferenceStep, Interrupter, ItemLazy, Learner, LearnerEvent,
    LearningComponentsTypes, SupervisedLearningStrategy, SupervisedTrainingEventProcessor,
    TrainLoader, TrainStep, TrainingComponents, TrainingItem, TrainingModel, ValidLoader,
};
use thiserror::Error;

use super::accumulate::MeanGradient;
use super::{Measured, StepClock, StepMeasures};
use crate::loss::LossSums;

/// Why a training could not go on.
#[derive(Debug, Clone, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum TrainError {
    /// The loss or its gradient is no longer a number.
    #[error(
        "{what} is not finite at step {step}: the model is as it was before that step; \
         lower the learning rate, or look at the data of that step"
    )]
    NotFinite {
        /// `the loss` or `the gradient`.
        what: &'static str,
        /// The step, counted from 1.
        step: usize,
    },
    /// The training data holds no batch, or the training was to go on from beyond its end.
    #[error("{0}")]
    Refused(String),
}

/// Why a training that nothing went wrong with took no more steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It took them all.
    Finished,
    /// The [`StepHook`] had enough.
    Stopped,
    /// Burn's [`Interrupter`] was asked to stop.
    Interrupted,
}

/// How a training ended. Burn's `launch` returns a model in any case, so look here afterwards. Clones
/// read the same value.
#[derive(Clone, Debug, Default)]
pub struct Outcome(Arc<Mutex<Option<Result<Ending, TrainError>>>>);

impl Outcome {
    /// How it ended; `None` before it has.
    ///
    /// # Errors
    ///
    /// [`TrainError`] if the training could not go on.
    pub fn get(&self) -> Option<Result<Ending, TrainError>> {
        let outcome = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        outcome.clone()
    }

    fn set(&self, outcome: Result<Ending, TrainError>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(outcome);
    }
}

/// What one optimizer step did.
#[derive(Clone, Copy, Debug)]
pub struct StepReport {
    /// The step, counted from 1.
    pub step: usize,
    /// Its learning rate.
    pub learning_rate: f64,
    /// Its loss, over all its micro-batches.
    pub sums: LossSums,
    /// What the optimizer measured, if it does.
    pub measured: Option<Measured>,
    /// Why it is the last one, if it is known to be.
    pub ending: Option<Ending>,
}

/// Someone who is told of every step of a training of `M`, and may end it.
pub trait StepHook<M>: Send {
    /// A step was taken, `model` is what it made. [`ControlFlow::Break`] ends the training here.
    ///
    /// The place to evaluate, and to save: see [`CheckpointDir`](super::CheckpointDir).
    fn on_step(&mut self, report: &StepReport, model: &M) -> ControlFlow<()>;

    /// The held-out data was evaluated, after the last of all steps.
    fn on_validation(&mut self, _sums: &LossSums) {}
}

/// Trains for a number of optimizer steps, going through the training data as often as it takes.
///
/// Give it to `SupervisedTraining` as `TrainingStrategy::Custom`. The schedule advances once a step,
/// every step is reported to the hook and to Burn's metrics, the held-out data is evaluated after the
/// last, and a loss that is no longer finite ends the run before it reaches the weights. When Burn's
/// [`Interrupter`] asks to stop, the step under way is finished and reported as the last. Model and
/// data stay on the device they were made on.
///
/// It does not read what `SupervisedTraining` knows of epochs, accumulation, checkpoints and early
/// stopping: what is here stands for them.
pub struct StepStrategy<LC: LearningComponentsTypes> {
    steps: usize,
    resumed_at: usize,
    micro_batches: NonZeroUsize,
    validates: bool,
    measures: Option<StepMeasures>,
    clock: StepClock,
    hook: Arc<Mutex<dyn StepHook<TrainingModel<LC>>>>,
    outcome: Outcome,
}

impl<LC: LearningComponentsTypes> StepStrategy<LC> {
    /// A strategy of `steps` optimizer steps, each told to `hook`.
    pub fn new(steps: usize, hook: Arc<Mutex<dyn StepHook<TrainingModel<LC>>>>) -> Self {
        Self {
            steps,
            resumed_at: 0,
            micro_batches: NonZeroUsize::MIN,
            validates: true,
            measures: None,
            clock: StepClock::new(),
            hook,
            outcome: Outcome::default(),
        }
    }

    /// Takes `micro_batches` batches of the loader for each step, or what is left of them where the
    /// data ends.
    ///
    /// The gradient is that of the mean over all their tokens. So with batches of `b / k` sequences,
    /// `k` of them visit what one batch of `b` sequences does, in less memory.
    pub fn with_accumulation(mut self, micro_batches: NonZeroUsize) -> Self {
        self.micro_batches = micro_batches;
        self
    }

    /// Goes on after `step` steps that were already taken, of model and optimizer as they were then.
    ///
    /// The schedule and the clock are brought there, and the batches of those steps are read and
    /// left aside. So give schedule and loader as at the first step. The same batches come again if the
    /// loader was made with the same data and seed, was not read before, and has at most one worker
    /// thread: then Burn shuffles each time through in an order that follows from its seed.
    pub fn resuming_at(mut self, step: usize) -> Self {
        self.resumed_at = step;
        self
    }

    /// Leaves the held-out data alone, for callers that evaluate on their own.
    pub fn without_validation(mut self) -> Self {
        self.validates = false;
        self
    }

    /// Reports what a [`StudentOptimizer`](super::StudentOptimizer) measures, stops when the norm of the
    /// gradients is not finite, and tells of each step's loss, as measured rates need it.
    pub fn with_measures(mut self, measures: StepMeasures) -> Self {
        self.measures = Some(measures);
        self
    }

    /// Keeps `clock` at the number of steps taken. A [`StudentOptimizer`](super::StudentOptimizer) may
    /// have the same one.
    pub fn with_clock(mut self, clock: StepClock) -> Self {
        self.clock = clock;
        self
    }

    /// A handle on how the training ended.
    pub fn outcome(&self) -> Outcome {
        self.outcome.clone()
    }

    fn tell<R>(&self, tell: impl FnOnce(&mut dyn StepHook<TrainingModel<LC>>) -> R) -> R {
        let mut hook = self.hook.lock().unwrap_or_else(PoisonError::into_inner);
        tell(&mut *hook)
    }
}

/// Models whose steps yield [`LossSums`].
type Input<M> = <M as TrainStep>::Input;
type Output<M> = <M as TrainStep>::Output;
type ValidOutput<M> = <M as InferenceStep>::Output;

impl<LC> SupervisedLearningStrategy<LC> for StepStrategy<LC>
where
    LC: LearningComponentsTypes,
    Output<LC::TrainingModel>: ItemLazy<ItemSync = LossSums> + Clone,
    ValidOutput<LC::InferenceModel>: ItemLazy<ItemSync = LossSums> + Clone,
{
    fn fit(
        &self,
        components: TrainingComponents<LC>,
        mut learner: Learner<LC>,
        train: TrainLoader<LC>,
        valid: ValidLoader<LC>,
        _starting_epoch: usize,
    ) -> (TrainingModel<LC>, SupervisedTrainingEventProcessor<LC>) {
        let mut events = components.event_processor;
        let outcome = self.train(&mut learner, &mut events, &train, &components.interrupter);
        events.process_train(LearnerEvent::EndEpoch(1));
        if self.validates && outcome == Ok(Ending::Finished) {
            self.validate(&learner, &mut events, &valid);
        }
        self.outcome.set(outcome);
        (learner.model(), events)
    }
}

impl<LC> StepStrategy<LC>
where
    LC: LearningComponentsTypes,
    Output<LC::TrainingModel>: ItemLazy<ItemSync = LossSums> + Clone,
    ValidOutput<LC::InferenceModel>: ItemLazy<ItemSync = LossSums> + Clone,
{
    fn train(
        &self,
        learner: &mut Learner<LC>,
        events: &mut SupervisedTrainingEventProcessor<LC>,
        train: &TrainLoader<LC>,
        interrupter: &Interrupter,
    ) -> Result<Ending, TrainError> {
        self.clock.set(self.resumed_at);
        if self.resumed_at > self.steps {
            return Err(TrainError::Refused(format!(
                "cannot go on from step {} of a training of {}: ask for more steps",
                self.resumed_at, self.steps
            )));
        }
        if self.resumed_at == self.steps {
            return Ok(Ending::Finished);
        }
        let mut step = 0;
        loop {
            let mut batches = train.iter().peekable();
            if batches.peek().is_none() {
                let what = "the training data holds no batch: give more text or a shorter seq_len";
                return Err(TrainError::Refused(what.to_owned()));
            }
            while batches.peek().is_some() {
                step += 1;
                learner.lr_step();
                let micro_batches = batches.by_ref().take(self.micro_batches.get());
                if step <= self.resumed_at {
                    micro_batches.for_each(drop);
                    continue;
                }
                let ending = self.step(learner, events, micro_batches, step, interrupter)?;
                if let Some(ending) = ending {
                    return Ok(ending);
                }
            }
        }
    }

    /// One optimizer step, and why it was the last one, if it was.
    fn step(
        &self,
        learner: &mut Learner<LC>,
        events: &mut SupervisedTrainingEventProcessor<LC>,
        micro_batches: impl Iterator<Item = Input<LC::TrainingModel>>,
        step: usize,
        interrupter: &Interrupter,
    ) -> Result<Option<Ending>, TrainError> {
        let gradient = self.gradient(learner, micro_batches, step)?;
        if let Some((measures, loss)) = self.measures.as_ref().zip(gradient.sums.excess_mean()) {
            measures.set_loss(loss);
        }
        learner.optimizer_step(gradient.gradients);
        let measured = self.measures.as_ref().and_then(StepMeasures::last);
        if measured.is_some_and(|measured| !measured.grad_norm.is_finite()) {
            let what = "the gradient";
            return Err(TrainError::NotFinite { what, step });
        }
        self.clock.set(step);

        let ending = if step == self.steps {
            Some(Ending::Finished)
        } else {
            interrupter.should_stop().then_some(Ending::Interrupted)
        };
        let report = StepReport {
            step,
            learning_rate: learner.lr_current(),
            sums: gradient.sums,
            measured,
            ending,
        };
        let progress = Progress {
            items_processed: step,
            items_total: self.steps,
        };
        for output in gradient.outputs {
            events.process_train(LearnerEvent::ProcessedItem(TrainingItem::new(
                output,
                progress.clone(),
                progress.clone(),
                Some(step),
                Some(report.learning_rate),
            )));
        }
        Ok(
            match self.tell(|hook| hook.on_step(&report, &learner.model())) {
                ControlFlow::Continue(()) => ending,
                ControlFlow::Break(()) => ending.or(Some(Ending::Stopped)),
            },
        )
    }

    /// The gradient of the mean over all tokens of the micro-batches.
    fn gradient(
        &self,
        learner: &Learner<LC>,
        micro_batches: impl Iterator<Item = Input<LC::TrainingModel>>,
        step: usize,
    ) -> Result<StepGradient<Output<LC::TrainingModel>>, TrainError> {
        let model = learner.model();
        let mut mean = MeanGradient::default();
        let mut sums = LossSums::default();
        let mut outputs = Vec::new();
        for batch in micro_batches {
            let output = learner.train_step(batch);
            let batch_sums = output.item.clone().sync();
            if !batch_sums.is_finite() {
                let what = "the loss";
                return Err(TrainError::NotFinite { what, step });
            }
            mean.add(&model, output.grads, batch_sums.tokens);
            sums += batch_sums;
            outputs.push(output.item);
        }
        Ok(StepGradient {
            gradients: mean.into_gradients(),
            sums,
            outputs,
        })
    }

    fn validate(
        &self,
        learner: &Learner<LC>,
        events: &mut SupervisedTrainingEventProcessor<LC>,
        valid: &ValidLoader<LC>,
    ) {
        let model = learner.model().valid();
        let mut sums = LossSums::default();
        let mut batches = valid.iter();
        while let Some(batch) = batches.next() {
            let output = model.step(batch);
            sums += output.clone().sync();
            let progress = batches.progress();
            let item = TrainingItem::new(output, progress.clone(), progress, None, None);
            events.process_valid(LearnerEvent::ProcessedItem(item));
        }
        events.process_valid(LearnerEvent::EndEpoch(1));
        self.tell(|hook| hook.on_validation(&sums));
    }
}

/// What the micro-batches of a step amount to.
struct StepGradient<O> {
    gradients: GradientsParams,
    sums: LossSums,
    outputs: Vec<O>,
}
