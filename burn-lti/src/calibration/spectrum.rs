//! What every ridge and strength of a general output map leaves on held-out tokens, out of one
//! eigendecomposition.
//!
//! The fit of ridge `r` and strength `s` is `last + (G + r)^-1 (X_s - G last)`, with `X_s` the features
//! times attention and `s` times drift. In the basis of `G = U diag(g) U^T` its row `i` is
//! `L_i + d_i (E_i + s F_i)`, `d_i = 1 / (g_i + r)`: linear in `s`, and the same `L`, `E` and `F` for all
//! ridges. So the squared distance on other tokens is a quadratic form in `d`, whose matrices are made once.

use faer::Mat;

use super::error::Result;
use super::moments::Moments;
use super::regularization::Regularization;
use super::solve::{self, added_to_diagonal, dot};

/// The distance to the target, as a function of ridge and strength.
#[derive(Debug)]
pub(super) struct Spectrum {
    /// Eigenvalues of the Gram matrix that is fitted on, ascending.
    values: Vec<f64>,
    /// Squared size of the target.
    energy: f64,
    /// Of `L` alone.
    still: f64,
    /// Between `L` less the target and `E`, `F`, for each eigenvector.
    linear: [Vec<f64>; 2],
    /// Between `E` and `E`, `E` and `F`, `F` and `F`, for each two eigenvectors.
    square: [Mat<f64>; 3],
}

impl Spectrum {
    /// Of fits on `fitted` that begin at `last [features, d_model]`, judged by `held_out`. `onto` takes a
    /// kernel to the nearest that a map can make; it is linear and acts on `d_model` alone.
    ///
    /// # Errors
    ///
    /// If a sum is not finite.
    pub(super) fn new(
        fitted: &Moments,
        held_out: &Moments,
        last: &Mat<f64>,
        onto: impl Fn(&Mat<f64>) -> Mat<f64>,
    ) -> Result<Self> {
        let (basis, values) = solve::eigen(&fitted.gram)?;
        let projected = |kernel: &Mat<f64>| basis.transpose() * onto(kernel);
        let (none, full) = (fitted.cross(0.0), fitted.cross(1.0));
        let l = projected(last);
        let e = projected(&(&none - &fitted.gram * last));
        let f = projected(&(full - none));

        let gram = basis.transpose() * &held_out.gram * &basis;
        let cross = basis.transpose() * held_out.cross(1.0);
        let size = gram.nrows();
        let of_l = &gram * &l;
        let linear = |other: &Mat<f64>| {
            let of_row = |row: usize| {
                let columns = 0..l.ncols();
                let products = columns.map(|column| {
                    (of_l[(row, column)] - cross[(row, column)]) * other[(row, column)]
                });
                products.sum()
            };
            (0..size).map(of_row).collect()
        };
        let square = |a: &Mat<f64>, b: &Mat<f64>| {
            let inner = a * b.transpose();
            Mat::from_fn(size, size, |row, column| {
                gram[(row, column)] * inner[(row, column)]
            })
        };
        Ok(Self {
            values,
            energy: held_out.energy(1.0),
            still: dot(&l, &of_l) - 2.0 * dot(&l, &cross),
            linear: [linear(&e), linear(&f)],
            square: [square(&e, &e), square(&e, &f), square(&f, &f)],
        })
    }

    /// [`Moments::residual`] of the held-out tokens for this fit, or `None` where the ridge is too little
    /// for the rounding of the sums, or infinite: then nothing is fitted.
    pub(super) fn residual(
        &self,
        Regularization { ridge, strength }: Regularization,
    ) -> Option<f64> {
        if ridge.is_infinite() {
            return None;
        }
        let count = self.values.len();
        let mean = self.values.iter().sum::<f64>() / count.max(1) as f64;
        let added = added_to_diagonal(mean, ridge);
        let largest = self.values.last().copied().unwrap_or_default() + added;
        let least = self.values.first().copied().unwrap_or_default() + added;
        // What a Cholesky factorisation of so many rows can take for negative.
        if least <= 4.0 * count as f64 * f64::EPSILON * largest {
            return None;
        }
        let shrunk: Vec<f64> = self
            .values
            .iter()
            .map(|value| 1.0 / (value + added))
            .collect();
        let linear = |sums: &[f64]| -> f64 { sums.iter().zip(&shrunk).map(|(a, b)| a * b).sum() };
        let square = |sums: &Mat<f64>| -> f64 {
            let columns = sums.col_iter().zip(&shrunk);
            let of_column = |(column, scale): (faer::ColRef<'_, f64>, &f64)| -> f64 {
                scale * column.iter().zip(&shrunk).map(|(a, b)| a * b).sum::<f64>()
            };
            columns.map(of_column).sum()
        };
        let [of_e, of_f] = &self.linear;
        let [e, both, f] = &self.square;
        let distance = self.energy
            + self.still
            + 2.0 * (linear(of_e) + strength * linear(of_f))
            + square(e)
            + strength * (2.0 * square(both) + strength * square(f));
        Some(distance.max(0.0) / self.energy.max(f64::MIN_POSITIVE))
    }
}
