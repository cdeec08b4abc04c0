//! [`Schedule`]: a setting of the loss that moves while training goes on.

use std::f64::consts::PI;

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
