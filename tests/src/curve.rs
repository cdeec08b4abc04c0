//! The losses of a short training: the same start and batch on every backend.

use std::path::PathBuf;
use std::sync::Arc;

use burn::tensor::backend::AutodiffBackend;
use burn_lti::decoder::{LtiSpec, TokenBatch};
use burn_lti::loss::DistillationLoss;
use burn_lti::tensors::TensorSet;
use burn_lti::train::Distiller;
use serde::{Deserialize, Serialize};

use crate::llama::fixtures;
use crate::numbers::Numbers;
use crate::params::edit;
use crate::toy::{PlainToy, ToyConfig};
use crate::training::{take_steps, train_maps_only};

/// Steps of a curve.
pub const STEPS: usize = 20;

/// By how much of itself every weight is changed to see how the curve moves: representable in
/// float32, far above its rounding, far below what is nonlinear.
pub const CHANGE: f64 = 1e-5;

/// The teacher of a curve.
pub fn teacher_config() -> ToyConfig {
    ToyConfig::new(4, 2)
}

/// The loss before each of [`STEPS`] AdamW steps of a toy student, half the heads of its toy teacher.
/// Every weight of the student is first multiplied by one plus or minus `change`.
///
/// # Panics
///
/// If the student cannot be made.
pub fn curve<A: AutodiffBackend>(change: f64, device: &A::Device) -> Vec<f64> {
    let (teacher_config, config) = (teacher_config(), ToyConfig::new(2, 1));
    let teacher: PlainToy<A::InnerBackend> = teacher_config.random(1, device);
    let tensors = TensorSet::<A>::from_inner(&TensorSet::collect(&teacher));
    let spec = LtiSpec::new(teacher_config.geometry);
    let student = config.learning(&tensors, &spec, device);
    let mut signs = Numbers::new(2);
    let student = edit(student, |_, values| {
        for value in values {
            let sign = if signs.below(2) == 0 { -1.0 } else { 1.0 };
            *value *= (1.0 + sign * change) as f32;
        }
    });
    let loss = DistillationLoss::new(0.7, 2.0, 5).expect("settings");
    let pupil = Distiller::new(train_maps_only(student), Arc::new(teacher), loss);
    let batch: TokenBatch<A> = config.batch(3, device);
    take_steps(pupil.expect("one vocabulary"), &batch, STEPS, 1e-2).1
}

/// The curve in float64, and that of weights changed by [`CHANGE`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Float64Curves {
    /// Of the weights as they are.
    pub exact: Vec<f64>,
    /// Of the changed weights.
    pub moved: Vec<f64>,
}

/// Where the curves in float64 are kept; `tests/float64.rs` makes and checks the file.
pub fn float64_file() -> PathBuf {
    fixtures().join("float64/curves.json")
}
