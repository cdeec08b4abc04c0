//! Optimizer steps by hand, and Burn's Learner without a terminal.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Arc, Mutex};

use burn::data::dataloader::DataLoader;
use burn::lr_scheduler::LrScheduler;
use burn::module::{AutodiffModule, ModuleDisplay};
use burn::optim::{AdamWConfig, Optimizer};
use burn::prelude::*;
use burn::tensor::backend::AutodiffBackend;
use burn::train::logger::InMemoryMetricLogger;
use burn::train::{
    Interrupter, Learner, LearningComponentsMarker, SupervisedTraining, TrainStep, TrainingStrategy,
};
use burn_lti::decoder::{CausalLm, TokenBatch};
use burn_lti::loss::LossSums;
use burn_lti::parameters::set_trainable;
use burn_lti::train::{
    Distiller, Ending, SilentRenderer, StepHook, StepMeasures, StepReport, StepStrategy, TrainError,
};

/// The student with its maps, and the biases beside them, the only things that train.
pub fn train_maps_only<B: Backend, M: Module<B>>(student: M) -> M {
    set_trainable(student, |parameter| parameter.in_map)
}

/// AdamW with enough weight decay to move whatever it may move.
pub fn adamw() -> AdamWConfig {
    AdamWConfig::new().with_weight_decay(0.1)
}

/// Takes so many AdamW steps on one batch and returns the loss before each.
pub fn take_steps<A, M, T>(
    mut distiller: Distiller<A, M, Arc<T>>,
    batch: &TokenBatch<A>,
    steps: usize,
    learning_rate: f64,
) -> (Distiller<A, M, Arc<T>>, Vec<f64>)
where
    A: AutodiffBackend,
    M: CausalLm<A> + AutodiffModule<A, InnerModule: ModuleDisplay>,
    T: CausalLm<A::InnerBackend> + Sync,
{
    let mut optimizer = adamw().init::<A, Distiller<A, M, Arc<T>>>();
    let mut losses = Vec::new();
    for _ in 0..steps {
        let output = TrainStep::step(&distiller, batch.clone());
        losses.push(output.item.read().loss_mean().expect("tokens"));
        distiller = optimizer.step(learning_rate, distiller, output.grads);
    }
    (distiller, losses)
}

/// What a [`StepStrategy`] told.
#[derive(Default)]
pub struct Diary {
    /// Every step.
    pub steps: Vec<StepReport>,
    /// Every evaluation.
    pub validations: Vec<LossSums>,
}

impl<M> StepHook<M> for Diary {
    fn on_step(&mut self, report: &StepReport, _model: &M) -> ControlFlow<()> {
        self.steps.push(*report);
        ControlFlow::Continue(())
    }

    fn on_validation(&mut self, sums: &LossSums) {
        self.validations.push(*sums);
    }
}

/// A training that has ended.
pub struct Ended<D> {
    /// The model.
    pub model: D,
    /// What was told meanwhile.
    pub diary: Diary,
    /// How it ended, if well.
    pub ending: Option<Ending>,
    /// Why it could not go on, if it could not.
    pub error: Option<TrainError>,
}

/// What a training of a distiller is made of, for Burn.
pub type Components<A, M, T, O, S> = LearningComponentsMarker<A, S, Distiller<A, M, Arc<T>>, O>;

/// A distiller as it comes back.
pub type Distilled<A, M, T> =
    Distiller<<A as AutodiffBackend>::InnerBackend, <M as AutodiffModule<A>>::InnerModule, Arc<T>>;

/// Batches on the autodiff backend, and on the inner one.
pub type Loaders<A> = (
    Arc<dyn DataLoader<A, TokenBatch<A>>>,
    Arc<
        dyn DataLoader<
                <A as AutodiffBackend>::InnerBackend,
                TokenBatch<<A as AutodiffBackend>::InnerBackend>,
            >,
    >,
);

/// Trains for so many steps under Burn's Learner.
pub fn fit<A, M, T, O, S>(
    distiller: Distiller<A, M, Arc<T>>,
    optimizer: O,
    schedule: S,
    measures: Option<StepMeasures>,
    steps: usize,
    loaders: Loaders<A>,
) -> Ended<Distilled<A, M, T>>
where
    A: AutodiffBackend,
    M: CausalLm<A> + AutodiffModule<A, InnerModule: CausalLm<A::InnerBackend>> + 'static,
    T: CausalLm<A::InnerBackend> + Sync + 'static,
    O: Optimizer<Distiller<A, M, Arc<T>>, A> + 'static,
    S: LrScheduler + 'static,
{
    let never = Interrupter::new();
    fit_until(
        never, distiller, optimizer, schedule, measures, steps, loaders,
    )
}

/// [`fit`] with an interrupter.
pub fn fit_until<A, M, T, O, S>(
    interrupter: Interrupter,
    distiller: Distiller<A, M, Arc<T>>,
    optimizer: O,
    schedule: S,
    measures: Option<StepMeasures>,
    steps: usize,
    loaders: Loaders<A>,
) -> Ended<Distilled<A, M, T>>
where
    A: AutodiffBackend,
    M: CausalLm<A> + AutodiffModule<A, InnerModule: CausalLm<A::InnerBackend>> + 'static,
    T: CausalLm<A::InnerBackend> + Sync + 'static,
    O: Optimizer<Distiller<A, M, Arc<T>>, A> + 'static,
    S: LrScheduler + 'static,
{
    let diary = Arc::new(Mutex::new(Diary::default()));
    let mut strategy = StepStrategy::new(steps, diary.clone());
    if let Some(measures) = measures {
        strategy = strategy.with_measures(measures);
    }
    let learner = Learner::new(distiller, optimizer, schedule);
    let (model, outcome) = launch(interrupter, strategy, learner, loaders);
    let diary = std::mem::take(&mut *diary.lock().expect("no thread has panicked"));
    Ended {
        model,
        diary,
        ending: outcome.clone().ok(),
        error: outcome.err(),
    }
}

/// Trains under Burn's Learner by a strategy of one's own.
///
/// # Panics
///
/// If the training does not end.
pub fn launch<A, M, T, O, S>(
    interrupter: Interrupter,
    strategy: StepStrategy<Components<A, M, T, O, S>>,
    learner: Learner<Components<A, M, T, O, S>>,
    (train, valid): Loaders<A>,
) -> (Distilled<A, M, T>, Result<Ending, TrainError>)
where
    A: AutodiffBackend,
    M: CausalLm<A> + AutodiffModule<A, InnerModule: CausalLm<A::InnerBackend>> + 'static,
    T: CausalLm<A::InnerBackend> + Sync + 'static,
    O: Optimizer<Distiller<A, M, Arc<T>>, A> + 'static,
    S: LrScheduler + 'static,
{
    let outcome = strategy.outcome();
    assert_eq!(outcome.get(), None);
    let result = SupervisedTraining::new(Path::new(""), train, valid)
        .with_application_logger(None)
        .with_metric_logger(InMemoryMetricLogger::default())
        .renderer(SilentRenderer)
        .with_interrupter(interrupter)
        .with_training_strategy(TrainingStrategy::Custom(Arc::new(strategy)))
        .launch(learner);
    (result.model, outcome.get().expect("an outcome"))
}
