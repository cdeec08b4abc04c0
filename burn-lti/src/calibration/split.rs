//! Which batches are fitted on, and which are held out to judge the fits by.

use burn::prelude::*;

use super::error::Result;
use super::moments::Moments;

/// Every n-th batch is held out of the fits.
pub(super) const HELD_OUT: usize = 4;

/// What a change must save on held-out tokens, as a part of the target's squared size: less is rounding.
pub(super) const WORTH: f64 = 1e-6;

/// Whether the fits leave this batch out.
pub(super) const fn is_held_out(batch: usize) -> bool {
    batch % HELD_OUT == HELD_OUT - 1
}

/// Sums over the tokens that are fitted on, and over those held out.
#[derive(Debug)]
pub(super) struct SplitMoments {
    pub(super) fitted: Moments,
    pub(super) held_out: Moments,
}

impl SplitMoments {
    pub(super) fn zeros(features: usize, d_model: usize) -> Self {
        Self {
            fitted: Moments::zeros(features, d_model),
            held_out: Moments::zeros(features, d_model),
        }
    }

    /// Adds the rows of a batch, as [`Moments::add`] has them.
    pub(super) fn add<B: Backend>(
        &mut self,
        batch: usize,
        features: Tensor<B, 2>,
        attention: Tensor<B, 2>,
        drift: Tensor<B, 2>,
    ) -> Result<()> {
        let sums = match is_held_out(batch) {
            true => &mut self.held_out,
            false => &mut self.fitted,
        };
        sums.add(features, attention, drift)
    }

    /// Over all tokens.
    pub(super) fn all(&self) -> Moments {
        self.fitted.plus(&self.held_out)
    }
}

#[cfg(test)]
mod tests {
    use burn::backend::Flex;

    use super::*;

    #[test]
    fn every_fourth_batch_is_held_out() {
        let device = Default::default();
        let mut sums = SplitMoments::zeros(1, 1);
        for batch in 0..8 {
            let rows = Tensor::<Flex, 2>::full([1, 1], 2.0_f32.powi(batch), &device);
            let nothing = Tensor::zeros([1, 1], &device);
            let added = sums.add(batch as usize, rows, nothing.clone(), nothing);
            added.unwrap();
        }
        let square = |batches: &[i32]| batches.iter().map(|b| 4.0_f64.powi(*b)).sum::<f64>();
        assert_eq!(sums.held_out.gram[(0, 0)], square(&[3, 7]));
        assert_eq!(sums.fitted.gram[(0, 0)], square(&[0, 1, 2, 4, 5, 6]));
        assert_eq!(sums.all().gram[(0, 0)], square(&[0, 1, 2, 3, 4, 5, 6, 7]));
    }
}
