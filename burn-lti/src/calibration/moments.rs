//! Sums over calibration tokens: all that a least-squares fit needs of them.

use burn::prelude::*;
use burn::tensor::DType;
use faer::Mat;

use super::error::{CalibrationError, Result};
use crate::compat;

/// Second moments of what a kernel reads, `features`, and of what its product with a kernel should be.
///
/// The target of a row is `attention + strength * drift`: what the teacher's attention adds to its own
/// residual stream, and the way from the student's layer input to the teacher's. Both
/// are kept apart, so that the strength can be chosen afterwards. Sums are float64; the products of one
/// batch are float32.
#[derive(Clone, Debug)]
pub(super) struct Moments {
    /// `[features, features]`
    pub(super) gram: Mat<f64>,
    /// Features times attention, `[features, d_model]`.
    attention: Mat<f64>,
    /// Features times drift, `[features, d_model]`.
    drift: Mat<f64>,
    /// Squares of the target's two parts, and their product: attention, both, drift.
    squares: [f64; 3],
}

impl Moments {
    pub(super) fn zeros(features: usize, d_model: usize) -> Self {
        Self {
            gram: Mat::zeros(features, features),
            attention: Mat::zeros(features, d_model),
            drift: Mat::zeros(features, d_model),
            squares: [0.0; 3],
        }
    }

    pub(super) fn features(&self) -> usize {
        self.gram.nrows()
    }

    pub(super) fn d_model(&self) -> usize {
        self.attention.ncols()
    }

    /// Adds the rows of a batch: `features [rows, features]`, the others `[rows, d_model]`, each row
    /// already multiplied by the root of its weight.
    pub(super) fn add<B: Backend>(
        &mut self,
        features: Tensor<B, 2>,
        attention: Tensor<B, 2>,
        drift: Tensor<B, 2>,
    ) -> Result<()> {
        let square = |a: &Tensor<B, 2>, b: &Tensor<B, 2>| compat::total(a.clone() * b.clone());
        let squares = [
            square(&attention, &attention),
            square(&attention, &drift),
            square(&drift, &drift),
        ];
        let all = Tensor::cat(vec![features.clone(), attention, drift], 1);
        // What multiplies the features goes to the left: a row of the product is a column of the sums.
        self.add_products(&floats(all.transpose().matmul(features))?);
        for (sum, square) in self.squares.iter_mut().zip(squares) {
            *sum += f64::from(floats(square)?[0]);
        }
        Ok(())
    }

    /// `products [features + 2 * d_model, features]`, row-major.
    fn add_products(&mut self, products: &[f32]) {
        let height = self.features();
        let sums = [&mut self.gram, &mut self.attention, &mut self.drift];
        let columns = sums.into_iter().flat_map(|sum| sum.col_iter_mut());
        for (column, products) in columns.zip(products.chunks_exact(height)) {
            for (sum, product) in column.iter_mut().zip(products) {
                *sum += f64::from(*product);
            }
        }
    }

    /// Of both sets of rows.
    pub(super) fn plus(&self, other: &Self) -> Self {
        let mut sum = self.clone();
        sum.gram += &other.gram;
        sum.attention += &other.attention;
        sum.drift += &other.drift;
        for (square, more) in sum.squares.iter_mut().zip(other.squares) {
            *square += more;
        }
        sum
    }

    /// Of the features after a linear map that is one block for each of `blocks.len()` equal parts of
    /// the features: part `i` times `blocks[i]`.
    pub(super) fn through(&self, blocks: &[&Mat<f64>]) -> Self {
        let part = self.features() / blocks.len().max(1);
        let width: usize = blocks.iter().map(|block| block.ncols()).sum();
        let mut half = Mat::<f64>::zeros(self.features(), width);
        let mut gram = Mat::<f64>::zeros(width, width);
        let mut attention = Mat::<f64>::zeros(width, self.d_model());
        let mut drift = Mat::<f64>::zeros(width, self.d_model());
        let mut to = 0;
        for (index, block) in blocks.iter().enumerate() {
            let columns = self.gram.subcols(index * part, part) * *block;
            half.subcols_mut(to, block.ncols()).copy_from(&columns);
            to += block.ncols();
        }
        let mut to = 0;
        for (index, block) in blocks.iter().enumerate() {
            let transposed = block.transpose();
            let rows = transposed * half.subrows(index * part, part);
            gram.subrows_mut(to, block.ncols()).copy_from(&rows);
            for (into, from) in [(&mut attention, &self.attention), (&mut drift, &self.drift)] {
                let rows = transposed * from.subrows(index * part, part);
                into.subrows_mut(to, block.ncols()).copy_from(&rows);
            }
            to += block.ncols();
        }
        Self {
            gram,
            attention,
            drift,
            squares: self.squares,
        }
    }

    /// Features times the target of this strength, `[features, d_model]`.
    pub(super) fn cross(&self, strength: f64) -> Mat<f64> {
        &self.attention + faer::Scale(strength) * &self.drift
    }

    /// Squared size of the target of this strength.
    pub(super) fn energy(&self, strength: f64) -> f64 {
        let [attention, both, drift] = self.squares;
        attention + 2.0 * strength * both + strength * strength * drift
    }

    /// Squared distance between `features * kernel` and the target of full strength, as a part of that
    /// target's squared size. `kernel [features, d_model]`.
    pub(super) fn residual(&self, kernel: &Mat<f64>) -> f64 {
        let product = &self.gram * kernel;
        let cross = self.cross(1.0);
        let mut distance = self.energy(1.0);
        for column in 0..kernel.ncols() {
            for row in 0..kernel.nrows() {
                let value = kernel[(row, column)];
                distance += value * (product[(row, column)] - 2.0 * cross[(row, column)]);
            }
        }
        distance.max(0.0) / self.energy(1.0).max(f64::MIN_POSITIVE)
    }
}

/// The values of a tensor, row-major.
pub(super) fn floats<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Result<Vec<f32>> {
    let data = tensor.cast(DType::F32).into_data();
    let values: Vec<f32> = data.iter().collect();
    match all_finite(&values) {
        true => Ok(values),
        false => Err(CalibrationError::NotFinite),
    }
}

/// Not generic, so that it is compiled with the crate's own optimisation.
fn all_finite(values: &[f32]) -> bool {
    values.iter().all(|value| value.is_finite())
}

/// The values of a tensor as a matrix of so many rows.
pub(super) fn matrix<B: Backend, const D: usize>(
    tensor: Tensor<B, D>,
    rows: usize,
) -> Result<Mat<f64>> {
    let values = floats(tensor)?;
    let columns = values.len() / rows.max(1);
    Ok(Mat::from_fn(rows, columns, |row, column| {
        f64::from(values[row * columns + column])
    }))
}
