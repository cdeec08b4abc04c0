//! The residual stream of a student that is narrower: which directions of the teacher's it has, and the teacher as far
//! as it is fitted to them (see `narrow.rs`).

use burn::prelude::*;
use burn::tensor::{DType, TensorData};
use faer::Mat;

use super::directions::directions;
use super::error::Result;
use super::features::flat;
use super::map_values::row_major;
use super::moments::matrix;
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
        let rows = rows.clone() / lengths(rows) * present;
        self.0 += matrix(rows.clone().transpose().matmul(rows), width)?;
        Ok(())
    }

    /// So many directions of the stream, weighed by second moments of the loss's `gradients`, if they are given.
    pub(super) fn basis<B: Backend>(
        &self,
        gradients: Option<&Mat<f64>>,
        count: usize,
        device: &B::Device,
    ) -> Result<Basis<B>> {
        let [into, back] = directions(&self.0, gradients, count)?;
        // States that lie in these directions keep their mean square.
        let scale = (count as f64 / self.0.nrows() as f64).sqrt();
        // Each out of its own numbers: on libtorch a transposed tensor that is divided takes the other with it.
        Ok(Basis {
            into: tensor(&(faer::Scale(scale) * into), device),
            back: tensor(&(faer::Scale(1.0 / scale) * back), device),
        })
    }
}

/// The root mean square of each row, `[rows, width] -> [rows, 1]`: what a norm divides by.
pub(super) fn lengths<B: Backend>(rows: Tensor<B, 2>) -> Tensor<B, 2> {
    let squares = rows.powi_scalar(2).mean_dim(1);
    squares.add_scalar(f32::MIN_POSITIVE).sqrt()
}

/// Of the numbers of a matrix, in float32.
pub(super) fn tensor<B: Backend>(matrix: &Mat<f64>, device: &B::Device) -> Tensor<B, 2> {
    let data = TensorData::new(row_major(matrix), [matrix.nrows(), matrix.ncols()]);
    Tensor::from_data(data, (device, DType::F32))
}
