//! [`Whitening`]: coordinates in which all directions of a map change the outputs alike.

use std::collections::BTreeMap;

use burn::prelude::*;
use burn::tensor::TensorData;
use faer::Mat;

use super::error::Result;
use super::map_values::row_major;
use super::moments::floats;
use super::solve::{added_to_diagonal, eigen, mean_diagonal};
use crate::decoder::{LayeredDecoder, TokenBatch};
use crate::geometry::{Role, Site};
use crate::map::{LtiParts, Side, lti_parts};

/// What a Gram matrix is damped by, as a part of its mean diagonal.
const DAMPING: f64 = 1e-2;
/// And `C C^T`, whose small directions the outputs of a layer hardly have. Without it a map would grow
/// along them beyond what float32 can add up.
const KERNEL_DAMPING: f64 = 1e-4;

/// For each map of a student, coordinates in which it is easy to learn.
///
/// A step along the gradient of a map changes the outputs of its projection most where its inputs are
/// large. With `G` the Gram matrix of the student's inputs of a projection, a map `R` of its outputs
/// (`K = C R`) has the Gram matrix `P = C^T G C` before it: in the coordinates `V = P^(1/2) R` every
/// direction counts alike. For a map `L` of its inputs (`K = L^T C`) these are `V = (C C^T)^(1/2) L G^(1/2)`.
/// Grams are damped by a part of their mean diagonal.
///
/// The map itself stays what it is. An optimizer that moves `V` moves the map by `S U T`, where `U` is what
/// it would do with the gradient `S g T`, and `S`, `T` are the inverses of these roots.
#[derive(Clone, Debug)]
pub struct Whitening<B: Backend> {
    /// `S` and `T` by the name of the map's tensor; one that is absent is the identity.
    factors: BTreeMap<String, [Option<Tensor<B, 2>>; 2]>,
}

impl<B: Backend> Whitening<B> {
    /// Of the maps of heads of `student` that are any linear maps, on what it reads in `batches`.
    ///
    /// # Errors
    ///
    /// [`CalibrationError::NotFinite`](super::CalibrationError::NotFinite).
    pub fn of_maps(
        student: &impl LayeredDecoder<B>,
        batches: impl IntoIterator<Item = TokenBatch<B>>,
    ) -> Result<Self> {
        let parts = lti_parts(student);
        let mut factors = BTreeMap::new();
        let is_dense = |parts: &LtiParts<B>| {
            let mut sides = [Side::Left, Side::Right].into_iter();
            sides.any(|side| parts.is_dense(side))
        };
        if !parts.values().any(is_dense) {
            return Ok(Self { factors });
        }
        let grams = Grams::of(student, batches)?;
        for (layer, [stream, heads]) in grams.0.iter().enumerate() {
            for role in Role::ATTENTION {
                let Some(name) = student.site_name(Site::new(layer, role)) else {
                    continue;
                };
                let side = Side::along(role, role.mapped_axis());
                let of_heads = side.and_then(|side| Some((side, parts.get(&name)?)));
                let Some((side, parts)) = of_heads.filter(|(side, parts)| parts.is_dense(*side))
                else {
                    continue;
                };
                // What a map of the other side makes of it is what this one is applied to.
                let Some(c) = parts.kernel_before(side) else {
                    continue;
                };
                let device = c.device();
                let root = |matrix: &Mat<f64>, damping| -> Result<Option<Tensor<B, 2>>> {
                    let root = inverse_root(matrix, damping)?;
                    let shape = [root.nrows(), root.ncols()];
                    let data = TensorData::new(row_major(&root), shape);
                    Ok(Some(Tensor::from_data(data, &device)))
                };
                let c = matrix(c)?;
                let pair = match side {
                    Side::Right => [root(&(c.transpose() * stream * &c), DAMPING)?, None],
                    Side::Left => [
                        root(&(&c * c.transpose()), KERNEL_DAMPING)?,
                        root(heads, DAMPING)?,
                    ],
                };
                factors.insert(format!("{name}.{}.w", side.name()), pair);
            }
        }
        Ok(Self { factors })
    }

    /// The same for a module that has the student as its field `field`.
    pub fn under(self, field: &str) -> Self {
        let factors = self.factors.into_iter();
        Self {
            factors: factors
                .map(|(name, pair)| (format!("{field}.{name}"), pair))
                .collect(),
        }
    }

    /// `S` and `T` of the tensor of that name; `None` if it has no coordinates of its own.
    pub fn factors(&self, name: &str) -> Option<&[Option<Tensor<B, 2>>; 2]> {
        self.factors.get(name)
    }

    /// `S m T` for a gradient or a step of the tensor of that name; as it is where there is no such map.
    pub(crate) fn apply(&self, name: &str, m: Tensor<B, 2>) -> Tensor<B, 2> {
        let Some([left, right]) = self.factors.get(name) else {
            return m;
        };
        let m = match left {
            Some(left) => left.clone().cast(m.dtype()).matmul(m),
            None => m,
        };
        match right {
            Some(right) => {
                let right = right.clone().cast(m.dtype());
                m.matmul(right)
            }
            None => m,
        }
    }
}

/// Of each layer, the Gram matrices of what query, key and value read, and of what out reads: sums over
/// all tokens, in float64.
struct Grams(Vec<[Mat<f64>; 2]>);

impl Grams {
    fn of<B: Backend>(
        student: &impl LayeredDecoder<B>,
        batches: impl IntoIterator<Item = TokenBatch<B>>,
    ) -> Result<Self> {
        let mut grams: Vec<Option<[Mat<f64>; 2]>> = vec![None; student.layers()];
        for batch in batches {
            let context = student.context(&batch);
            let mut h = student.embed(&batch);
            for (layer, sums) in grams.iter_mut().enumerate() {
                let [stream, heads] = student.attention_inputs(layer, h.clone(), &context);
                let of_batch = [gram(stream)?, gram(heads)?];
                *sums = Some(match sums.take() {
                    Some([one, two]) => [one + &of_batch[0], two + &of_batch[1]],
                    None => of_batch,
                });
                h = h.clone() + student.attention(layer, h, &context);
                h = h.clone() + student.feed_forward(layer, h);
            }
        }
        Ok(Self(grams.into_iter().flatten().collect()))
    }
}

/// `x^T x` of all rows.
fn gram<B: Backend>(x: Tensor<B, 3>) -> Result<Mat<f64>> {
    let rows: Tensor<B, 2> = x.flatten(0, 1);
    matrix(rows.clone().transpose().matmul(rows))
}

fn matrix<B: Backend>(tensor: Tensor<B, 2>) -> Result<Mat<f64>> {
    let [rows, columns] = tensor.dims();
    let values = floats(tensor)?;
    let at = |row, column| f64::from(values[row * columns + column]);
    Ok(Mat::from_fn(rows, columns, at))
}

/// `(M + damping * mean diagonal)^(-1/2)` of a symmetric positive semidefinite matrix.
fn inverse_root(matrix: &Mat<f64>, damping: f64) -> Result<Mat<f64>> {
    let added = added_to_diagonal(mean_diagonal(matrix), damping);
    let (vectors, values) = eigen(matrix)?;
    // What rounding made negative is nothing.
    let scaled = Mat::from_fn(vectors.nrows(), vectors.ncols(), |row, column| {
        vectors[(row, column)] / (values[column].max(0.0) + added).sqrt()
    });
    Ok(scaled * vectors.transpose())
}
