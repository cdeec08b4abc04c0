//! The residual stream of a student that is narrower: which directions of the teacher's it has, and the teacher as far
//! as it is fitted to them (see `narrow.rs`).

use burn::prelude::*;
use burn::tensor::{DType, TensorData};
use faer::Mat;

use super::error::{CalibrationError, Result};
use super::features::flat;
use super::map_values::row_major;
use super::moments::matrix;
use super::solve;
use crate::decoder::{LayeredDecoder, TokenBatch};
use crate::inject::with_values;
use crate::tensors::TensorSet;

/// The directions of the teacher's stream that the student's has.
#[derive(Clone)]
pub(super) struct Basis<B: Backend> {
    /// `P [t_width, s_width]`
    pub(super) into: Tensor<B, 2>,
    /// Its pseudoinverse, `[s_width, t_width]`.
    pub(super) back: Tensor<B, 2>,
}

/// The teacher at the student's width, as far as it is fitted.
pub(super) struct Narrow<B: Backend, T> {
    pub(super) basis: Basis<B>,
    /// By the teacher's names.
    pub(super) decoder: T,
}

impl<B: Backend, T: LayeredDecoder<B>> Narrow<B, T> {
    /// Nothing of `teacher` is fitted yet.
    pub(super) fn new(teacher: &T, basis: Basis<B>) -> Self {
        Self {
            basis,
            decoder: teacher.clone(),
        }
    }

    /// With these tensors, of the student's width.
    pub(super) fn filled(self, tensors: &TensorSet<B>) -> Self {
        let values = tensors.iter();
        let values = values.map(|(name, named)| (name.to_owned(), named.tensor.clone()));
        Self {
            decoder: with_values(self.decoder, values.collect()),
            ..self
        }
    }
}

/// Second moments of the teacher's states, each of length one, `[t_width, t_width]`.
pub(super) struct StreamGram(Mat<f64>);

impl StreamGram {
    pub(super) fn zeros(width: usize) -> Self {
        Self(Mat::zeros(width, width))
    }

    /// Adds the states `h [batch, tokens, t_width]`.
    pub(super) fn add<B: Backend>(&mut self, h: Tensor<B, 3>, batch: &TokenBatch<B>) -> Result<()> {
        let rows = flat(h).cast(DType::F32);
        let [count, width] = rows.dims();
        let present = batch.segments.clone().greater_elem(0).float();
        let present = present.reshape([count, 1]).cast(DType::F32);
        let size = rows.clone().powi_scalar(2).mean_dim(1);
        let rows = rows / size.add_scalar(f32::MIN_POSITIVE).sqrt() * present;
        self.0 += matrix(rows.clone().transpose().matmul(rows), width)?;
        Ok(())
    }

    /// The directions, so many, in which most of them lies.
    pub(super) fn basis<B: Backend>(&self, count: usize, device: &B::Device) -> Result<Basis<B>> {
        let width = self.0.nrows();
        if count > width || count == 0 {
            return Err(CalibrationError::Refused(format!(
                "the teacher's residual stream has {width} features, of which a student cannot keep {count}: keep from \
                 1 to {width}"
            )));
        }
        let (vectors, _) = solve::eigen(&self.0)?;
        // The largest eigenvalue is the last. States that lie in these directions keep their mean square.
        let scale = (count as f64 / width as f64).sqrt();
        let leading = Mat::from_fn(width, count, |i, j| scale * vectors[(i, width - 1 - j)]);
        // Each out of its own numbers: on libtorch a transposed tensor that is divided takes the other with it.
        let back = faer::Scale(1.0 / (scale * scale)) * leading.transpose();
        Ok(Basis {
            into: tensor(&leading, device),
            back: tensor(&back, device),
        })
    }
}

/// Of the numbers of a matrix, in float32.
pub(super) fn tensor<B: Backend>(matrix: &Mat<f64>, device: &B::Device) -> Tensor<B, 2> {
    let data = TensorData::new(row_major(matrix), [matrix.nrows(), matrix.ncols()]);
    Tensor::from_data(data, (device, DType::F32))
}
