//! [`FeatureLoss`]: how far the student's attention outputs are from the teacher's.

use std::fmt;

use burn::prelude::*;
use serde::{Deserialize, Serialize};

use super::LossError;

/// The distance of two features.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FeatureDistance {
    /// `1 - cos(student, teacher)`. A norm below 1e-6 counts as 1e-6, and has no gradient, so that
    /// features of nothing make no infinity (optax's `cosine_distance` with its `safe_norm`).
    #[default]
    Cosine,
    /// The mean of the squared differences over the features.
    L2,
}

impl fmt::Display for FeatureDistance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cosine => "cosine",
            Self::L2 => "l2",
        })
    }
}

/// `weight` times the distance, averaged over pairs of layers and tokens with a target.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FeatureLoss {
    pub(super) distance: FeatureDistance,
    pub(super) weight: f64,
}

/// The same tokens' features in a layer of the student and in one of the teacher.
#[derive(Clone, Debug)]
pub struct FeaturePair<B: Backend> {
    /// `[n, d_model]`
    pub student: Tensor<B, 2>,
    /// `[n, d_model]`
    pub teacher: Tensor<B, 2>,
}

impl<B: Backend> FeaturePair<B> {
    /// Of these tokens, `[m]`.
    pub(super) fn select(&self, tokens: &Tensor<B, 1, Int>) -> Self {
        Self {
            student: self.student.clone().select(0, tokens.clone()),
            teacher: self.teacher.clone().select(0, tokens.clone()),
        }
    }
}

/// The smallest norm of a feature.
const MIN_NORM: f64 = 1e-6;

impl FeatureLoss {
    /// A feature loss with its weight checked.
    ///
    /// # Errors
    ///
    /// [`LossError::Setting`] if `weight` is negative or no finite number.
    pub fn new(distance: FeatureDistance, weight: f64) -> Result<Self, LossError> {
        match weight >= 0.0 && weight.is_finite() {
            true => Ok(Self { distance, weight }),
            false => Err(LossError::Setting(format!(
                "the weight of the feature loss is {weight}: choose a finite number, 0 or more"
            ))),
        }
    }

    /// The weight, `beta`.
    pub const fn weight(&self) -> f64 {
        self.weight
    }
}

impl FeatureDistance {
    /// The distance of each token, `[n, 1]`, in the float type of `like`.
    pub(super) fn value<B: Backend>(
        self,
        pair: &FeaturePair<B>,
        like: &Tensor<B, 2>,
    ) -> Tensor<B, 2> {
        let (student, teacher) = pair.cast(like);
        match self {
            Self::Cosine => {
                let cosine = (student.unit() * teacher.unit()).sum_dim(1);
                cosine.neg().add_scalar(1.0)
            }
            Self::L2 => (student.values - teacher.values).square().mean_dim(1),
        }
    }

    /// The distance's gradient with respect to the student's features, each row times its
    /// `weight [n, 1]`, in the float type of the features: `[n, d_model]`.
    pub(super) fn gradient<B: Backend>(
        self,
        pair: &FeaturePair<B>,
        weight: &Tensor<B, 2>,
    ) -> Tensor<B, 2> {
        let (student, teacher) = pair.cast(weight);
        let gradient = match self {
            Self::Cosine => {
                // The part of the teacher's direction that lies across the student's; all of it where
                // the student's norm is held at its least, and so is a constant.
                let (unit, towards) = (student.unit(), teacher.unit());
                let along = (unit.clone() * towards.clone()).sum_dim(1);
                let along = along.mask_fill(student.is_held(), 0.0);
                (unit * along - towards) / student.norm
            }
            Self::L2 => {
                let [_, features] = student.values.dims();
                (student.values - teacher.values).mul_scalar(2.0 / features as f64)
            }
        };
        (gradient * weight.clone()).cast(pair.student.dtype())
    }
}

impl<B: Backend> FeaturePair<B> {
    fn cast(&self, like: &Tensor<B, 2>) -> (Feature<B>, Feature<B>) {
        let feature = |values: &Tensor<B, 2>| Feature::new(values.clone().cast(like.dtype()));
        (feature(&self.student), feature(&self.teacher))
    }
}

/// Features `[n, d_model]` and their norms `[n, 1]`, none below the least.
struct Feature<B: Backend> {
    values: Tensor<B, 2>,
    norm: Tensor<B, 2>,
}

impl<B: Backend> Feature<B> {
    fn new(values: Tensor<B, 2>) -> Self {
        let norm = values.clone().square().sum_dim(1).sqrt();
        let norm = norm.clamp_min(MIN_NORM);
        Self { values, norm }
    }

    fn unit(&self) -> Tensor<B, 2> {
        self.values.clone() / self.norm.clone()
    }

    fn is_held(&self) -> Tensor<B, 2, Bool> {
        self.norm.clone().lower_equal_elem(MIN_NORM)
    }
}
