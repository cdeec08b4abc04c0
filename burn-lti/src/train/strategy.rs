//! [`StepStrategy`]: Burn's training loop for those who count optimizer steps.

use std::sync::{Arc, Mutex, PoisonError};

use burn::data::dataloader::Progress;
use burn::module::AutodiffModule;
use burn::train::{
    EventProcessorTraining, InferenceStep, ItemLazy, Learner, LearnerEvent,
    LearningComponentsTypes, SupervisedLearningStrategy, SupervisedTrainingEventProcessor,
    TrainLoader, TrainStep, TrainingComponents, TrainingItem, TrainingModel, ValidLoader,
};
use thiserror::Error;

use super::GradNorm;
use crate::loss::LossSums;

/// Why a training stopped before its last step.
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
    /// Burn's interrupter was asked to stop.
    #[error("interrupted after step {step}")]
    Interrupted {
        /// The last step taken.
        step: usize,
    },
    /// The training data holds no batch.
    #[error("the training data holds no batch: give more text or a shorter seq_len")]
    NoData,
}

/// What one optimizer step did.
#[derive(Clone, Copy, Debug)]
pub struct StepReport {
    /// The step, counted from 1.
    pub step: usize,
    /// Its learning rate.
    pub learning_rate: f64,
    /// Its loss.
    pub sums: LossSums,
    /// Norm of its gradients before clipping, if it was measured.
    pub grad_norm: Option<f64>,
}

/// Someone who is told of every step.
pub trait StepObserver: Send {
    /// A step was taken.
    fn on_step(&mut self, report: &StepReport);

    /// The held-out data was evaluated, after the last step.
    fn on_validation(&mut self, sums: &LossSums);
}

/// Trains for a number of optimizer steps, going through the training data as often as it takes.
///
/// Give it to `SupervisedTraining` as `TrainingStrategy::Custom`. The schedule advances once a step,
/// every step is reported to the observer and to Burn's metrics, the held-out data is evaluated
/// after the last, and a loss that is no longer finite ends the run before it reaches the weights.
/// Model and data stay on the device they were made on.
pub struct StepStrategy {
    steps: usize,
    validates: bool,
    norm: Option<GradNorm>,
    observer: Arc<Mutex<dyn StepObserver>>,
    error: Arc<Mutex<Option<TrainError>>>,
}

impl StepStrategy {
    /// A strategy of `steps` optimizer steps, each told to `observer`.
    pub fn new(steps: usize, observer: Arc<Mutex<dyn StepObserver>>) -> Self {
        Self {
            steps,
            validates: true,
            norm: None,
            observer,
            error: Arc::new(Mutex::new(None)),
        }
    }

    /// Leaves the held-out data alone, for callers that evaluate on their own.
    pub fn without_validation(mut self) -> Self {
        self.validates = false;
        self
    }

    /// Reports the norm that a [`GlobalNormClip`](super::GlobalNormClip) measures, and stops when it
    /// is not finite.
    pub fn with_norm(mut self, norm: GradNorm) -> Self {
        self.norm = Some(norm);
        self
    }

    /// A handle on why the training stopped early. Burn's `launch` returns a model in any case, so
    /// look here afterwards.
    pub fn error(&self) -> Arc<Mutex<Option<TrainError>>> {
        self.error.clone()
    }

    fn fail(&self, error: TrainError) {
        *self.error.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
    }

    fn failed(&self) -> bool {
        let error = self.error.lock().unwrap_or_else(PoisonError::into_inner);
        error.is_some()
    }

    fn observe(&self, tell: impl FnOnce(&mut dyn StepObserver)) {
        let mut observer = self.observer.lock().unwrap_or_else(PoisonError::into_inner);
        tell(&mut *observer);
    }
}

/// Models whose steps yield [`LossSums`].
type Output<M> = <M as TrainStep>::Output;
type ValidOutput<M> = <M as InferenceStep>::Output;

impl<LC> SupervisedLearningStrategy<LC> for StepStrategy
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
        let mut step = 0;
        'training: while step < self.steps {
            let before = step;
            for batch in train.iter() {
                step += 1;
                if let Err(error) = self.step(&mut learner, &mut events, batch, step) {
                    self.fail(error);
                    break 'training;
                }
                if step == self.steps {
                    break 'training;
                }
                if components.interrupter.should_stop() {
                    self.fail(TrainError::Interrupted { step });
                    break 'training;
                }
            }
            if step == before {
                self.fail(TrainError::NoData);
                break;
            }
        }
        events.process_train(LearnerEvent::EndEpoch(1));
        if self.validates && !self.failed() {
            self.validate(&learner, &mut events, &valid);
        }
        (learner.model(), events)
    }
}

impl StepStrategy {
    fn step<LC>(
        &self,
        learner: &mut Learner<LC>,
        events: &mut SupervisedTrainingEventProcessor<LC>,
        batch: <LC::TrainingModel as TrainStep>::Input,
        step: usize,
    ) -> Result<(), TrainError>
    where
        LC: LearningComponentsTypes,
        Output<LC::TrainingModel>: ItemLazy<ItemSync = LossSums> + Clone,
    {
        learner.lr_step();
        let output = learner.train_step(batch);
        let sums = output.item.clone().sync();
        if !sums.is_finite() {
            let what = "the loss";
            return Err(TrainError::NotFinite { what, step });
        }
        learner.optimizer_step(output.grads);
        let grad_norm = self.norm.as_ref().and_then(GradNorm::last);
        if grad_norm.is_some_and(|norm| !norm.is_finite()) {
            let what = "the gradient";
            return Err(TrainError::NotFinite { what, step });
        }
        let report = StepReport {
            step,
            learning_rate: learner.lr_current(),
            sums,
            grad_norm,
        };
        self.observe(|observer| observer.on_step(&report));
        let progress = Progress {
            items_processed: step,
            items_total: self.steps,
        };
        events.process_train(LearnerEvent::ProcessedItem(TrainingItem::new(
            output.item,
            progress.clone(),
            progress,
            Some(step),
            Some(learner.lr_current()),
        )));
        Ok(())
    }

    fn validate<LC>(
        &self,
        learner: &Learner<LC>,
        events: &mut SupervisedTrainingEventProcessor<LC>,
        valid: &ValidLoader<LC>,
    ) where
        LC: LearningComponentsTypes,
        ValidOutput<LC::InferenceModel>: ItemLazy<ItemSync = LossSums> + Clone,
    {
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
        self.observe(|observer| observer.on_validation(&sums));
    }
}
