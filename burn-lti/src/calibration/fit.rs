//! The value and output maps of one layer, by least squares in the maps' own parameters.
//!
//! With the attention patterns of a layer fixed, head `u` of the student puts out `F_u M_g O_u`: `F_u`
//! is what its pattern makes of the teacher's values, `M_g` the value map of its key/value head, `O_u`
//! its part of the output kernel. The sum over heads should be the target of
//! [`Moments`]. That is linear in `O` for given `M` and in `M` for given `O`, so both are fitted in turn.

use faer::Mat;

use super::error::{CalibrationError, Result};
use super::first_maps::first_maps;
use super::moments::Moments;
use super::out::{OutFit, OutMap};
use super::regularization::Regularization;
use super::split::{SplitMoments, WORTH};
use super::value_features::ValueFeatures;
use super::value_fit::improved;
use super::value_map::ValueMap;
use crate::map::MapKind;

/// What is fitted, and from what.
#[derive(Debug)]
pub(super) struct LayerFit<'a> {
    pub(super) features: ValueFeatures<'a>,
    /// The form of the value map.
    pub(super) value: MapKind,
    pub(super) out: &'a OutMap,
    /// By those held out regularization and rounds are chosen.
    pub(super) moments: &'a SplitMoments,
    /// For each key/value head, how the values of its members are turned before they are averaged.
    pub(super) aligned: Option<&'a [Vec<Mat<f64>>]>,
    /// Nothing is fitted: the maps stay those that the fit would begin from.
    pub(super) keeps_first: bool,
}

/// The maps of a layer.
#[derive(Clone, Debug)]
pub(super) struct Fitted {
    pub(super) value: ValueMap,
    pub(super) out: OutFit,
    pub(super) regularization: Regularization,
    /// Rounds of value and output that were worth it.
    pub(super) rounds: usize,
    /// Relative squared distance to the full target on held-out tokens, while these were no part of the
    /// fit: of the output alone, with the values as they began, and after all rounds.
    pub(super) residuals: [f64; 2],
}

/// The two maps of a layer that are fitted in turn.
type Maps = (ValueMap, OutFit);

impl LayerFit<'_> {
    /// Fits the layer with the best regularization for the held-out tokens, and at most so many rounds.
    ///
    /// # Errors
    ///
    /// [`CalibrationError::Singular`].
    pub(super) fn run(&self, strengths: &[f64], most_rounds: usize) -> Result<Fitted> {
        let fitted = &self.moments.fitted;
        let start = first_maps(&self.features, self.value, self.out, fitted, self.aligned)?;
        let regularization = match self.keeps_first {
            true => Regularization::NONE,
            false => self.regularization(&start, strengths)?,
        };
        let mut best = self.output(fitted, &start, regularization)?;
        let first = self.residual(&best);
        let (mut least, mut rounds) = (first, 0);
        let most_rounds = if regularization.ridge.is_finite() {
            most_rounds
        } else {
            0
        };
        for round in 1..=most_rounds {
            let next = self.round(fitted, &best, regularization)?;
            let residual = self.residual(&next);
            if residual > least - WORTH {
                break;
            }
            (best, least, rounds) = (next, residual, round);
        }
        // What was chosen by the held-out tokens is fitted once more, on all.
        let all = self.moments.all();
        let mut last = self.output(&all, &start, regularization)?;
        for _ in 0..rounds {
            last = self.round(&all, &last, regularization)?;
        }
        Ok(Fitted {
            value: last.0,
            out: last.1,
            regularization,
            rounds,
            residuals: [first, least],
        })
    }

    /// The strictest fit that held-out tokens bear out.
    fn regularization(&self, (value, out): &Maps, strengths: &[f64]) -> Result<Regularization> {
        let fitted = value.through(&self.features, &self.moments.fitted);
        let held_out = value.through(&self.features, &self.moments.held_out);
        let spectrum = self.out.spectrum(&fitted, &held_out, out)?;
        Regularization::choose(
            strengths,
            held_out.residual(&out.kernel),
            |one| match &spectrum {
                Some(spectrum) => Ok(spectrum.residual(one)),
                None => match self.out.fit(&fitted, one, out) {
                    Err(CalibrationError::Singular { .. }) => Ok(None),
                    out => out.map(|out| Some(held_out.residual(&out.kernel))),
                },
            },
        )
    }

    /// Values and output once more, in turn.
    fn round(
        &self,
        moments: &Moments,
        (value, out): &Maps,
        regularization: Regularization,
    ) -> Result<Maps> {
        let value = improved(&self.features, moments, value, &out.kernel, regularization)?;
        self.output(moments, &(value, out.clone()), regularization)
    }

    /// The output that goes with the value map.
    fn output(
        &self,
        moments: &Moments,
        (value, out): &Maps,
        regularization: Regularization,
    ) -> Result<Maps> {
        let out = self
            .out
            .fit(&value.through(&self.features, moments), regularization, out)?;
        Ok((value.clone(), out))
    }

    fn residual(&self, (value, out): &Maps) -> f64 {
        value
            .through(&self.features, &self.moments.held_out)
            .residual(&out.kernel)
    }
}
