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
use crate::map::{LtiParts, RotaryShape, Side, lti_parts};

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
/// A map that commutes with a rotary embedding has coordinates for each pair of features that turns: with `k` the
/// teacher's heads there, read as complex numbers, `V = (E conj(k) k^T)^(1/2) R`. These mix heads by complex numbers
/// too, so that what the map keeps apart stays so; its Gram matrices are damped by a part of what their diagonals
/// are on the mean of all pairs.
///
/// The map itself stays what it is. An optimizer that moves `V` moves the map by `S U T`, where `U` is what
/// it would do with the gradient `S g T`, and `S`, `T` are the inverses of these roots.
#[derive(Clone, Debug)]
pub struct Whitening<B: Backend> {
    /// `S` and `T` by the name of the map's tensor; one that is absent is the identity.
    factors: BTreeMap<String, [Option<Tensor<B, 2>>; 2]>,
    /// Of rotary maps, an `S` for each pair, `[pairs, 2 * t_heads, 2 * t_heads]`.
    of_pairs: BTreeMap<String, Tensor<B, 3>>,
}

impl<B: Backend> Whitening<B> {
    /// Of the maps of heads of `student` that are any linear or rotary maps, on what it reads in `batches`.
    ///
    /// # Errors
    ///
    /// [`CalibrationError::NotFinite`](super::CalibrationError::NotFinite).
    pub fn of_maps(
        student: &impl LayeredDecoder<B>,
        batches: impl IntoIterator<Item = TokenBatch<B>>,
    ) -> Result<Self> {
        let parts = lti_parts(student);
        let sides = [Side::Left, Side::Right];
        let mut found = Self {
            factors: BTreeMap::new(),
            of_pairs: BTreeMap::new(),
        };
        let is_whitened = |parts: &LtiParts<B>| {
            let is_dense = sides.into_iter().any(|side| parts.is_dense(side));
            is_dense || parts.rotary(Side::Right).is_some()
        };
        if !parts.values().any(is_whitened) {
            return Ok(found);
        }
        let grams = Grams::of(student, batches)?;
        for (layer, [stream, heads]) in grams.0.iter().enumerate() {
            for role in Role::ATTENTION {
                let Some(name) = student.site_name(Site::new(layer, role)) else {
                    continue;
                };
                let side = Side::along(role, role.mapped_axis());
                let of_heads = side.and_then(|side| Some((side, parts.get(&name)?)));
                let Some((side, parts)) = of_heads
                    .filter(|(side, parts)| parts.is_dense(*side) || parts.rotary(*side).is_some())
                else {
                    continue;
                };
                // What a map of the other side makes of it is what this one is applied to.
                let Some(c) = parts.kernel_before(side) else {
                    continue;
                };
                let device = c.device();
                let root = |matrix: &Mat<f64>, damping| -> Result<Option<Tensor<B, 2>>> {
                    let root = inverse_root(matrix, damping * mean_diagonal(matrix))?;
                    let shape = [root.nrows(), root.ncols()];
                    let data = TensorData::new(row_major(&root), shape);
                    Ok(Some(Tensor::from_data(data, &device)))
                };
                let c = matrix(c)?;
                let map = format!("{name}.{}", side.name());
                if let Some(shape) = parts.rotary(side) {
                    let gram = c.transpose() * stream * &c;
                    let roots = pair_roots(&shape, &gram)?;
                    let [heads, _] = shape.heads;
                    let axes = [shape.pairs[1], 2 * heads, 2 * heads];
                    let roots = Tensor::from_data(TensorData::new(roots, axes), &device);
                    found.of_pairs.insert(format!("{map}.r"), roots);
                    let still = still_gram(&shape, &gram);
                    if still.nrows() > 0 {
                        let pair = [root(&still, DAMPING)?, None];
                        found.factors.insert(format!("{map}.w"), pair);
                    }
                    continue;
                }
                let pair = match side {
                    Side::Right => [root(&(c.transpose() * stream * &c), DAMPING)?, None],
                    Side::Left => [
                        root(&(&c * c.transpose()), KERNEL_DAMPING)?,
                        root(heads, DAMPING)?,
                    ],
                };
                found.factors.insert(format!("{map}.w"), pair);
            }
        }
        Ok(found)
    }

    /// The same for a module that has the student as its field `field`.
    pub fn under(self, field: &str) -> Self {
        Self {
            factors: under(self.factors, field),
            of_pairs: under(self.of_pairs, field),
        }
    }

    /// `S` and `T` of the tensor of that name; `None` if it has no coordinates of its own.
    pub fn factors(&self, name: &str) -> Option<&[Option<Tensor<B, 2>>; 2]> {
        self.factors.get(name)
    }

    /// The `S` of each pair of a rotary map's tensor of that name, over the real parts of the teacher's heads and
    /// their imaginary parts: `[pairs, 2 * t_heads, 2 * t_heads]`.
    pub fn of_pairs(&self, name: &str) -> Option<&Tensor<B, 3>> {
        self.of_pairs.get(name)
    }

    /// `S m T` for a gradient or a step of the tensor of that name and shape, in one row; as it is where there is
    /// no such map.
    pub(crate) fn apply(&self, name: &str, m: Tensor<B, 1>, shape: &[usize]) -> Tensor<B, 1> {
        match *shape {
            [rows, columns] => self
                .apply_factors(name, m.reshape([rows, columns]))
                .flatten(0, 1),
            [pairs, rows, columns] => match self.of_pairs.get(name) {
                Some(roots) => {
                    let m = m.reshape([pairs, rows, columns]);
                    roots.clone().cast(m.dtype()).matmul(m).flatten(0, 2)
                }
                None => m,
            },
            _ => m,
        }
    }

    fn apply_factors(&self, name: &str, m: Tensor<B, 2>) -> Tensor<B, 2> {
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

/// The inverse roots of a rotary map's Gram matrices, pair after pair, out of that of the teacher's features. As
/// real numbers `z = k (a + i b)` is `z_re = k_re a - k_im b`, `z_im = k_re b + k_im a`, and the Gram matrix of the
/// stacked `a, b` the sum of both.
fn pair_roots(shape: &RotaryShape, gram: &Mat<f64>) -> Result<Vec<f32>> {
    let ([heads, _], [size, _]) = (shape.heads, shape.sizes);
    let grams: Vec<Mat<f64>> = shape
        .sources()
        .into_iter()
        .map(|[re, im]| {
            let of = |one: usize, feature: usize, other: usize, second: usize| {
                gram[(one * size + feature, other * size + second)]
            };
            Mat::from_fn(2 * heads, 2 * heads, |row, column| {
                let (one, other) = (row % heads, column % heads);
                let same = of(one, re, other, re) + of(one, im, other, im);
                let turned = of(one, im, other, re) - of(one, re, other, im);
                match (row < heads, column < heads) {
                    (true, true) | (false, false) => same,
                    (true, false) => turned,
                    (false, true) => -turned,
                }
            })
        })
        .collect();
    let mean = grams.iter().map(mean_diagonal).sum::<f64>() / grams.len().max(1) as f64;
    let mut roots = Vec::new();
    for gram in &grams {
        roots.extend(row_major(&inverse_root(gram, DAMPING * mean)?));
    }
    Ok(roots)
}

/// The Gram matrix of the features that do not turn.
fn still_gram(shape: &RotaryShape, gram: &Mat<f64>) -> Mat<f64> {
    let still = shape.still(0);
    let heads = 0..shape.heads[0];
    let all: Vec<usize> = heads
        .flat_map(|head| {
            still
                .iter()
                .map(move |feature| head * shape.sizes[0] + feature)
        })
        .collect();
    Mat::from_fn(all.len(), all.len(), |row, column| {
        gram[(all[row], all[column])]
    })
}

/// The same under the name of a field.
fn under<T>(named: BTreeMap<String, T>, field: &str) -> BTreeMap<String, T> {
    let named = named.into_iter();
    named
        .map(|(name, one)| (format!("{field}.{name}"), one))
        .collect()
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

/// `(M + added)^(-1/2)` of a symmetric positive semidefinite matrix.
fn inverse_root(matrix: &Mat<f64>, added: f64) -> Result<Mat<f64>> {
    let added = added_to_diagonal(added, 1.0);
    let (vectors, values) = eigen(matrix)?;
    // What rounding made negative is nothing.
    let scaled = Mat::from_fn(vectors.nrows(), vectors.ncols(), |row, column| {
        vectors[(row, column)] / (values[column].max(0.0) + added).sqrt()
    });
    Ok(scaled * vectors.transpose())
}
