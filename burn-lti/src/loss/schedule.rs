//! [`Schedule`] and [`LossSchedule`]: settings of the loss that move while training goes on.

use std::f64::consts::PI;

use super::settings::{check_alpha, check_temperature};
use super::{DistillationLoss, FeatureDistance, FeatureLoss, LossError};

/// The way from a start to an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Curve {
    /// A straight line.
    Linear,
    /// Half a cosine: slow at both ends.
    Cosine,
}

/// A value by optimizer step, as MaxText's `CombinedDistillationStrategy` computes it.
///
/// With `p = min(step / steps, 1)` a line is `start + (end - start) p`, a cosine
/// `end + (start - end) (1 + cos(pi p)) / 2`. The end is held.
///
/// ```
/// use burn_lti::loss::{Curve, Schedule};
///
/// let temperature = Schedule::new(Curve::Linear, 4.0, 1.0);
/// assert_eq!(temperature.at(50, 100), 2.5);
/// assert_eq!(temperature.at(150, 100), 1.0);
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    start: f64,
    /// The way to somewhere else; a constant has none.
    to: Option<(Curve, f64)>,
}

impl Schedule {
    /// The same value throughout.
    pub const fn constant(value: f64) -> Self {
        Self {
            start: value,
            to: None,
        }
    }

    /// From `start` to `end` along `curve`.
    pub const fn new(curve: Curve, start: f64, end: f64) -> Self {
        Self {
            start,
            to: Some((curve, end)),
        }
    }

    /// The first value.
    pub const fn start(&self) -> f64 {
        self.start
    }

    /// The curve and the last value; `None` of a constant.
    pub const fn to(&self) -> Option<(Curve, f64)> {
        self.to
    }

    /// The lowest and the highest value there will be.
    pub fn range(&self) -> (f64, f64) {
        let end = self.to.map_or(self.start, |(_, end)| end);
        (self.start.min(end), self.start.max(end))
    }

    /// The first and the last value, between which all others lie.
    fn ends(&self) -> impl Iterator<Item = f64> {
        let (lowest, highest) = self.range();
        [lowest, highest].into_iter()
    }

    /// The value in optimizer step `step`, counted from 0, of `steps`.
    pub fn at(&self, step: usize, steps: usize) -> f64 {
        let Some((curve, end)) = self.to else {
            return self.start;
        };
        let progress = (step as f64 / steps.max(1) as f64).min(1.0);
        match curve {
            Curve::Linear => self.start + (end - self.start) * progress,
            Curve::Cosine => end + (self.start - end) * 0.5 * (1.0 + (PI * progress).cos()),
        }
    }
}

impl From<f64> for Schedule {
    fn from(value: f64) -> Self {
        Self::constant(value)
    }
}

/// A [`DistillationLoss`] whose mix moves by optimizer step.
///
/// ```
/// use burn_lti::loss::{Curve, DistillationLoss, LossSchedule, Schedule};
///
/// let loss = LossSchedule::new(DistillationLoss::KL, 200)
///     .with_temperature(Schedule::new(Curve::Linear, 4.0, 1.0))?;
/// assert_eq!(loss.at(100).temperature(), 2.5);
/// # Ok::<_, burn_lti::loss::LossError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LossSchedule {
    loss: DistillationLoss,
    alpha: Schedule,
    temperature: Schedule,
    feature_weight: Schedule,
    steps: usize,
}

impl LossSchedule {
    /// The loss over `steps` optimizer steps, which holds until a setting is told to move.
    pub fn new(loss: DistillationLoss, steps: usize) -> Self {
        let feature_weight = loss.feature.map_or(0.0, |feature| feature.weight);
        Self {
            loss,
            alpha: loss.alpha.into(),
            temperature: loss.temperature.into(),
            feature_weight: feature_weight.into(),
            steps,
        }
    }

    /// Moves `alpha`.
    ///
    /// # Errors
    ///
    /// [`LossError::Setting`] if it leaves its range at either end.
    pub fn with_alpha(self, alpha: Schedule) -> Result<Self, LossError> {
        alpha.ends().try_for_each(check_alpha)?;
        Ok(Self { alpha, ..self })
    }

    /// Moves the temperature.
    ///
    /// # Errors
    ///
    /// [`LossError::Setting`] if it leaves its range at either end.
    pub fn with_temperature(self, temperature: Schedule) -> Result<Self, LossError> {
        temperature.ends().try_for_each(check_temperature)?;
        Ok(Self {
            temperature,
            ..self
        })
    }

    /// Moves the weight of the feature loss; of a loss without one, nothing.
    ///
    /// # Errors
    ///
    /// [`LossError::Setting`] if it leaves its range at either end.
    pub fn with_feature_weight(self, feature_weight: Schedule) -> Result<Self, LossError> {
        let check = |weight| FeatureLoss::new(FeatureDistance::default(), weight).map(|_| ());
        feature_weight.ends().try_for_each(check)?;
        Ok(Self {
            feature_weight,
            ..self
        })
    }

    /// The loss in optimizer step `step`, counted from 0.
    pub fn at(&self, step: usize) -> DistillationLoss {
        let value = |schedule: &Schedule| schedule.at(step, self.steps);
        DistillationLoss {
            alpha: value(&self.alpha),
            temperature: value(&self.temperature),
            feature: self.loss.feature.map(|feature| FeatureLoss {
                weight: value(&self.feature_weight),
                ..feature
            }),
            ..self.loss
        }
    }
}

/// The loss throughout.
impl From<DistillationLoss> for LossSchedule {
    fn from(loss: DistillationLoss) -> Self {
        Self::new(loss, 1)
    }
}
