//! [`Expectation`]: what a training may bring, by those that were measured.

use burn_lti::map::Start;
use serde::Serialize;

use crate::recipe::{LearningRate, Optimizer, Recipe, Trained};

/// What a training may leave of the held-out KL that its student begins with.
///
/// It is for a training like those that were measured: of all weights by balanced steps, from a calibrated start,
/// at measured rates, in as many steps.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Expectation {
    /// Tokens of all its steps.
    pub tokens: usize,
    /// The least and the most that is left after so many in the curves, as a part of what it begins with.
    pub kl_left: [f64; 2],
}

/// Trainings of one student, each from its first step to its last: tokens, and the part of the KL that was
/// left. Each has more tokens than the one before.
struct Curve(&'static [(f64, f64)]);

/// `docs/figures.md`, "What trains, and at which rates" and "SmolLM2".
const CURVES: [Curve; 2] = [
    // stories260k, 8/4 heads to 4/2: 0.159 of 0.280, 0.094 of 0.315, 0.061 of 0.315
    Curve(&[(102_400.0, 0.569), (409_600.0, 0.300), (2_048_000.0, 0.195)]),
    // SmolLM2-135M-Instruct, 9/3 heads to 6/2: 0.177 of 0.215
    Curve(&[(102_400.0, 0.825)]),
];

/// No training of fewer steps was measured.
const FEWEST_STEPS: usize = 50;

impl Expectation {
    /// Of the training of `recipe`; none if nothing like it was measured.
    pub(super) fn of(recipe: &Recipe) -> Option<Self> {
        let train = &recipe.train;
        let is_measured = recipe.trained() == Trained::All
            && recipe.phase2.is_none()
            && recipe.lti.start == Start::Calibrated
            && !recipe.lti.map.has_other_axes()
            && train.learning_rate == LearningRate::Auto
            && train
                .optimizer
                .is_none_or(|optimizer| optimizer == Optimizer::Balanced)
            && train.rate.is_none_or(|rate| rate == 1.0)
            && train.steps >= FEWEST_STEPS;
        let tokens = train.steps.checked_mul(train.tokens_per_step())?;
        is_measured.then(|| {
            let left = CURVES.each_ref().map(|curve| curve.left(tokens as f64));
            let least = left.into_iter().fold(f64::INFINITY, f64::min);
            let most = left.into_iter().fold(0.0, f64::max);
            Self {
                tokens,
                kl_left: [least, most],
            }
        })
    }
}

impl Curve {
    /// Between two trainings along a line over the logarithm of their tokens; before the first along one
    /// from the start, and beyond the last no less than that.
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
        let points = [
            (0.0, 1.0),
            (50.0, 0.8),
            (100.0, 0.6),
            (200.0, 0.5),
            (400.0, 0.4),
            (1e9, 0.4),
        ];
        for (tokens, left) in points {
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
