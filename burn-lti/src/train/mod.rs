//! Training with Burn's Learner.
//!
//! [`Distiller`] is an ordinary trainable Burn module: give it to
//! [`Learner`](burn::train::Learner) and [`SupervisedTraining`](burn::train::SupervisedTraining).
//! [`StepStrategy`] is a training strategy for those who count optimizer steps instead of epochs;
//! [`GlobalNormClip`], [`WarmupCosine`] and [`StepClock`] are an optimizer wrapper, a schedule and a
//! count of steps that work under both. [`Tied`] is the wrapper that a student with shared parameters
//! needs, and [`Growing`] lets the pairs of a map join one after another. With a [`CheckpointDir`], a training that was stopped goes on as if it had not been.

mod accumulate;
mod cached;
mod checkpoint;
mod clock;
mod distiller;
mod growth;
mod metric;
mod optimizer;
mod renderer;
mod schedule;
mod strategy;
mod teacher;
mod tied;

pub use cached::CachedTeacher;
pub use checkpoint::{Broken, Checkpoint, CheckpointDir, CheckpointError, RunState};
pub use clock::StepClock;
pub use distiller::{Distiller, LayerPair};
pub use growth::{Growing, Growth};
pub use metric::TokenMean;
pub use optimizer::{GlobalNormClip, GradNorm, SharedOptimizer};
pub use renderer::SilentRenderer;
pub use schedule::WarmupCosine;
pub use strategy::{Ending, Outcome, StepHook, StepReport, StepStrategy, TrainError};
pub use teacher::{Lesson, Teacher};
pub use tied::{Tied, collect_gradients};
