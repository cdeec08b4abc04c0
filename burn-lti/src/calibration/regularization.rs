//! How strictly a layer is fitted, chosen by tokens held out of the fit.

use super::error::Result;
use super::split::WORTH;

/// How strictly a layer is fitted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Regularization {
    /// Added to the diagonal, as a part of its mean. An infinite one keeps what there was.
    pub(super) ridge: f64,
    /// How much of the way back to the teacher's residual stream the layer should take.
    pub(super) strength: f64,
}

/// Ridges to choose from. The first keeps what there was.
const RIDGES: [f64; 9] = [f64::INFINITY, 1.0, 1e-1, 3e-2, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6];

impl Regularization {
    /// What there was is kept.
    pub(super) const NONE: Self = Self {
        ridge: f64::INFINITY,
        strength: 1.0,
    };

    /// Of all ridges with each of `strengths` the one with the least `residual` on held-out tokens, the
    /// stricter of two that are as good. `unfitted` is the residual of no fit at all.
    ///
    /// `residual` is `None` with a ridge too little for the rounding of the sums; another one will do.
    pub(super) fn choose(
        strengths: &[f64],
        unfitted: f64,
        residual: impl Fn(Self) -> Result<Option<f64>>,
    ) -> Result<Self> {
        let mut best = Self::NONE;
        let mut least = unfitted;
        for &strength in strengths {
            for ridge in RIDGES {
                let one = Self { ridge, strength };
                let Some(residual) = residual(one)? else {
                    continue;
                };
                if residual < least - WORTH {
                    (best, least) = (one, residual);
                }
            }
        }
        Ok(best)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_residual_wins_and_the_stricter_of_equals() {
        let strengths = [1.0, 0.5];
        let chosen = |residual: &dyn Fn(Regularization) -> Option<f64>| {
            Regularization::choose(&strengths, 0.5, |one| Ok(residual(one))).unwrap()
        };
        // Less of a ridge is no better from 1e-2 on, and 1e-6 cannot be solved with.
        let found = chosen(&|one| match one.ridge {
            1e-6 => None,
            ridge => Some(0.1 + ridge.max(1e-2) + one.strength / 10.0),
        });
        let expected = Regularization {
            ridge: 1e-2,
            strength: 0.5,
        };
        assert_eq!(found, expected);
    }

    #[test]
    fn no_fit_is_better_than_one_that_saves_no_more_than_rounding() {
        for residual in [Some(0.5 - WORTH / 2.0), Some(f64::NAN), None] {
            let found = Regularization::choose(&[1.0], 0.5, |_| Ok(residual)).unwrap();
            assert!(found.ridge.is_infinite() && found.strength == 1.0);
        }
    }
}
