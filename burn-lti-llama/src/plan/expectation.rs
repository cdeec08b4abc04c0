//! [`Expectation`]: what a training may bring, by those that were measured.

use burn_lti::map::Start;
use serde::Serialize;

use crate::recipe::{LearningRate, Recipe, Trained};

/// What a training may leave of the KL that its student began with.
///
/// Of trainings like those that were measured: all weights, from a calibrated start, at measured rates.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Expectation {
    /// Tokens of all its steps.
    pub tokens: usize,
    /// The lowest and the highest part of the start's KL that is left in the curves after so many.
    pub kl_left: [f64; 2],
}

/// Trainings of one student, each of so many tokens from its first step to its last, and what was left of
/// the start's KL.
struct Curve(&'static [(f64, f64)]);

/// `docs/figures.md`, the sections "What trains, and at which rates" and "SmolLM2".
const CURVES: [Curve; 2] = [
    // stories260k, 8/4 heads to 4/2, from 0.274
    Curve(&[(102_400.0, 0.587), (409_600.0, 0.410)]),
    // SmolLM2-135M-Instruct, 9/3 heads to 6/2, from 0.310
    Curve(&[(102_400.0, 0.7)]),
];

impl Expectation {
    /// Of the training of `recipe`; `None` if nothing like it was measured.
    pub(super) fn of(recipe: &Recipe) -> Option<Self> {
        let train = &recipe.train;
        let is_measured = recipe.trained() == Trained::All
            && recipe.lti.start == Start::Calibrated
            && train.learning_rate == LearningRate::Auto
            && train.rate.is_none_or(|rate| rate == 1.0);
        let tokens = train.steps.checked_mul(train.batch_size)?;
        let tokens = tokens.checked_mul(train.seq_len)?;
        is_measured.then(|| {
            let left = CURVES.each_ref().map(|curve| curve.left(tokens as f64));
            Self {
                tokens,
                kl_left: [
                    left.into_iter().fold(f64::INFINITY, f64::min),
                    left.into_iter().fold(0.0, f64::max),
                ],
            }
        })
    }
}

impl Curve {
    /// Between two trainings along a line over the logarithm of their tokens; before the first along one
    /// from the start, and beyond the last as that.
    fn left(&self, tokens: f64) -> f64 {
        let mut before = (0.0, 1.0);
        for &(at, left) in self.0 {
            if tokens < at {
                let part = match before.0 {
                    0.0 => tokens / at,
                    from => (tokens / from).ln() / (at / from).ln(),
                };
                return before.1 + part * (left - before.1);
            }
            before = (at, left);
        }
        before.1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_goes_through_what_was_measured() {
        let curve = Curve(&[(100.0, 0.6), (400.0, 0.4)]);
        for (tokens, left) in [
            (0.0, 1.0),
            (50.0, 0.8),
            (100.0, 0.6),
            (200.0, 0.5),
            (400.0, 0.4),
            (1e9, 0.4),
        ] {
            assert!((curve.left(tokens) - left).abs() < 1e-12, "{tokens}");
        }
    }

    #[test]
    fn more_tokens_leave_less() {
        for curve in &CURVES {
            let falls = |pair: &[(f64, f64)]| pair[0].0 < pair[1].0 && pair[0].1 > pair[1].1;
            assert!(curve.0.windows(2).all(falls));
        }
    }
}
