//! [`PhaseSchedule`]: how long a phase is, at which rates it learns, and with which optimizer.

use burn::tensor::backend::AutodiffBackend;
use burn_lti::calibration::Whitening;
use burn_lti::train::{
    Adam, AdamConfig, MeasuredRates, StepMeasures, StudentOptimizer, WarmupDecay,
};

use super::progress::Phase;
use crate::recipe::{LearningRate, Optimizer, Recipe, TrainSection, Trained};

/// What Adam's steps of all weights promise, as a part of the loss, where others promise one. On stories260k one
/// is too little for so many tensors, and six is too much (`docs/figures.md`).
const PROMISE_OF_ALL: f64 = 2.0;

/// The steps of a phase and the rate at which it learns.
#[derive(Clone, Copy, Debug)]
pub(super) struct PhaseSchedule {
    pub(super) steps: usize,
    pub(super) warmup: usize,
    learning_rate: LearningRate,
    optimizer: Optimizer,
    /// What measured rates are multiplied by, besides the recipe's own number.
    promise: f64,
    final_lr_fraction: f64,
    /// Of the order of the data.
    pub(super) seed: u64,
}

impl PhaseSchedule {
    /// Of a phase of this recipe.
    pub(super) fn new(recipe: &Recipe, phase: Phase) -> Self {
        let train = &recipe.train;
        let trained = match (phase, &recipe.phase2) {
            (Phase::Second, Some(phase2)) => phase2.train.into(),
            _ => recipe.trained(),
        };
        let of = |steps, fraction, learning_rate: LearningRate, last: Option<f64>, seed| {
            let optimizer = recipe.optimizer(trained, learning_rate);
            Self {
                optimizer,
                promise: match (optimizer, trained) {
                    (Optimizer::Adam, Trained::All) => PROMISE_OF_ALL,
                    _ => 1.0,
                },
                steps,
                warmup: (fraction * steps as f64) as usize,
                learning_rate,
                final_lr_fraction: last.unwrap_or(learning_rate.final_lr_fraction()),
                seed,
            }
        };
        match (phase, &recipe.phase2) {
            (Phase::Second, Some(phase2)) => of(
                phase2.steps,
                phase2.warmup_fraction,
                phase2.learning_rate(train),
                phase2.final_lr_fraction,
                // Another order than in the first phase.
                train.seed.wrapping_add(1),
            ),
            _ => of(
                train.steps,
                train.warmup_fraction,
                train.learning_rate,
                train.final_lr_fraction,
                train.seed,
            ),
        }
    }

    /// The rates times `factor`.
    pub(super) fn learning_rates(&self, train: &TrainSection, factor: f64) -> WarmupDecay {
        let peak = factor
            * match self.learning_rate {
                LearningRate::Auto => self.promise * train.rate.unwrap_or(1.0),
                LearningRate::Number(rate) => rate,
            };
        let decay = train.decay.unwrap_or(self.learning_rate.decay());
        WarmupDecay::new(peak, self.steps, self.warmup, decay, self.final_lr_fraction)
    }

    /// The optimizer of these steps.
    pub(super) fn optimizer<A: AutodiffBackend>(
        &self,
        train: &TrainSection,
        whitening: Option<Whitening<A::InnerBackend>>,
    ) -> StudentOptimizer<Adam<A>> {
        let measures = StepMeasures::new();
        let adam = Adam::new(AdamConfig {
            betas: train.betas,
            epsilon: train.eps.unwrap_or(self.learning_rate.eps()),
            weight_decay: train.weight_decay,
        });
        let adam = match self.learning_rate {
            LearningRate::Auto => {
                adam.with_measured_rates(MeasuredRates::new(self.warmup), measures.clone())
            }
            LearningRate::Number(_) => adam,
        };
        let adam = match whitening {
            Some(whitening) => adam.with_whitening(whitening.under("student")),
            None => adam,
        };
        let adam = match self.optimizer {
            Optimizer::Adam => adam,
            Optimizer::Balanced => adam.with_balanced(|name| Optimizer::Balanced.balances(name)),
        };
        StudentOptimizer::new(adam)
            .with_measures(measures)
            .with_max_norm(train.grad_clip.unwrap_or(self.learning_rate.grad_clip()))
    }
}
