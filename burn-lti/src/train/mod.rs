//! Training with Burn's Learner.
//!
//! [`Distiller`] is an ordinary trainable Burn module: give it to
//! [`Learner`](burn::train::Learner) and [`SupervisedTraining`](burn::train::SupervisedTraining).
//! [`StepStrategy`] is a training strategy for those who count optimizer steps instead of epochs;
//! [`GlobalNormClip`] and [`WarmupCosine`] are an optimizer wrapper and a schedule that work under
//! both, and [`Tied`] the wrapper that a student with shared parameters needs.

mod distiller;
mod metric;
mod optimizer;
mod renderer;
mod schedule;
mod strategy;
mod tied;

pub use distiller::Distiller;
pub use metric::TokenMean;
pub use optimizer::{GlobalNormClip, GradNorm};
pub use renderer::SilentRenderer;
pub use schedule::WarmupCosine;
pub use strategy::{StepObserver, StepReport, StepStrategy, TrainError};
pub use tied::{Tied, collect_gradients};
