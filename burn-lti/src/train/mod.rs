//! Training with Burn's Learner.
//!
//! [`Distiller`] is an ordinary trainable Burn module: give it to
//! [`Learner`](burn::train::Learner) and [`SupervisedTraining`](burn::train::SupervisedTraining).
//! [`StepStrategy`] is a training strategy for those who count optimizer steps instead of epochs;
//! [`StudentOptimizer`], [`WarmupDecay`] and [`StepClock`] are an optimizer with what comes before and
//! after its steps, a schedule and a count of steps that work under both. With a [`CheckpointDir`], a training
//! that was stopped goes on as if it had not been.

mod accumulate;
mod adam;
mod cached;
mod checkpoint;
mod clock;
mod distiller;
mod gradients;
mod measures;
mod metric;
mod optimizer;
mod rank_schedule;
mod renderer;
mod schedule;
mod strategy;
mod teacher;

pub use adam::{Adam, AdamConfig, MeasuredRates, TensorState};
pub use cached::CachedTeacher;
pub use checkpoint::{Broken, Checkpoint, CheckpointDir, CheckpointError, RunState};
pub use clock::StepClock;
pub use distiller::{Distiller, LayerPair};
pub use gradients::collect_gradients;
pub use measures::{Measured, RateRange, StepMeasures};
pub use metric::TokenMean;
pub use optimizer::StudentOptimizer;
pub use rank_schedule::RankSchedule;
pub use renderer::SilentRenderer;
pub use schedule::{Decay, WarmupDecay};
pub use strategy::{Ending, Outcome, StepHook, StepReport, StepStrategy, TrainError};
pub use teacher::{Teacher, TeacherTargets};
