//! `x cos + quarter_turn(x) sin`

use burn::prelude::*;
use burn::tensor::TensorData;
use burn::tensor::ops::FloatTensor;
use pulp::Arch;
use rayon::prelude::*;

use super::lanes::{self, floats, floats_mut, whole_rows};
use super::operation::{Operation, apply, primitive, tensor};

/// Cosines and sines that turn the pairs of a head's features, feature `i` with `i + head_dim / 2`. They have
/// no gradient.
#[derive(Clone, Debug)]
pub struct PairTurns<B: Backend> {
    /// `[rows, head_dim]`
    cos: Tensor<B, 2>,
    /// `[rows, head_dim]`
    sin: Tensor<B, 2>,
    /// `[head_dim, head_dim]`: sends `(first, second)` to `(-second, first)`. Among tensor operations a product
    /// with so small a matrix is cheaper on every backend than cutting halves out and joining them again.
    quarter: Tensor<B, 2>,
}

impl<B: Backend> PairTurns<B> {
    /// Turns by angles whose cosines and sines these are, `[rows, head_dim]` each.
    ///
    /// # Panics
    ///
    /// If they differ in shape or float type, or a head of this size has no pairs.
    pub fn new(cos: Tensor<B, 2>, sin: Tensor<B, 2>) -> Self {
        let [_, size] = cos.dims();
        assert_eq!(
            (cos.dims(), cos.dtype()),
            (sin.dims(), sin.dtype()),
            "there is a sine for each cosine"
        );
        assert!(
            size > 0 && size.is_multiple_of(2),
            "features of a head come in pairs"
        );
        let half = size / 2;
        let mut quarter = vec![0.0f32; size * size];
        for feature in 0..half {
            quarter[(feature + half) * size + feature] = -1.0;
            quarter[feature * size + feature + half] = 1.0;
        }
        let quarter = TensorData::new(quarter, [size, size]);
        Self {
            quarter: Tensor::<B, 2>::from_data(quarter, &cos.device()).cast(cos.dtype()),
            cos,
            sin,
        }
    }
}

/// Turns each pair of features of each head: `(a cos - b sin, b cos + a sin)` (Su et al. 2021, in the pairing
/// of Hugging Face's `rotate_half`).
///
/// # Shapes
///
/// `x` and the result: `[rows, heads * head_dim]`.
///
/// # Panics
///
/// If the turns are of other rows, or of a head size that does not divide the width.
pub fn turn_pairs<B: Backend>(x: Tensor<B, 2>, turns: &PairTurns<B>) -> Tensor<B, 2> {
    let ([rows, width], [of, size]) = (x.dims(), turns.cos.dims());
    assert!(
        rows == of && width.is_multiple_of(size),
        "there is a turn for each row, and a head of its size"
    );
    let device = x.device();
    let inputs = [
        x,
        turns.cos.clone(),
        turns.sin.clone(),
        turns.quarter.clone(),
    ];
    tensor(apply::<B, _, 4>(TurnPairs, &device, inputs.map(primitive)))
}

/// `d x = g cos + (g sin) quarter^T`, `g` being the gradient of the output.
#[derive(Clone, Copy, Debug)]
struct TurnPairs;

impl Operation<4> for TurnPairs {
    /// Cosines, sines and the quarter turn.
    type Kept<I: Backend> = [FloatTensor<I>; 3];

    fn forward<I: Backend>(self, inputs: [FloatTensor<I>; 4]) -> FloatTensor<I> {
        let [x, cos, sin, quarter] = inputs.map(tensor::<I, 2>);
        match lanes::suit([&x, &cos, &sin]) {
            true => primitive(in_place::<I, false>(x, cos, sin)),
            false => self.plain::<I>([x, cos, sin, quarter].map(primitive)),
        }
    }

    fn forward_keeping<I: Backend>(
        self,
        inputs: [FloatTensor<I>; 4],
        _: [bool; 4],
    ) -> (FloatTensor<I>, Self::Kept<I>) {
        let [_, kept @ ..] = inputs.clone();
        (self.forward::<I>(inputs), kept)
    }

    fn backward<I: Backend>(
        self,
        kept: Self::Kept<I>,
        gradient: FloatTensor<I>,
        [wanted, ..]: [bool; 4],
    ) -> [Option<FloatTensor<I>>; 4] {
        if !wanted {
            return [None, None, None, None];
        }
        let ([cos, sin, quarter], gradient) = (kept.map(tensor::<I, 2>), tensor::<I, 2>(gradient));
        let gradient = match lanes::suit([&gradient, &cos, &sin]) {
            true => in_place::<I, true>(gradient, cos, sin),
            false => {
                let shape = gradient.dims();
                let [gradient, cos, sin] = by_head([gradient, cos, sin]);
                let turned = quarter_turned(gradient.clone() * sin, quarter.transpose());
                (gradient * cos + turned).reshape(shape)
            }
        };
        [Some(primitive(gradient)), None, None, None]
    }

    fn plain<B: Backend>(self, inputs: [FloatTensor<B>; 4]) -> FloatTensor<B> {
        let [x, cos, sin, quarter] = inputs.map(tensor::<B, 2>);
        let [cos, sin, quarter] = [cos, sin, quarter].map(Tensor::detach);
        let shape = x.dims();
        let [x, cos, sin] = by_head([x, cos, sin]);
        let turned = quarter_turned(x.clone(), quarter);
        primitive((x * cos + turned * sin).reshape(shape))
    }
}

/// `x [rows, heads * head_dim]` to `[rows, heads, head_dim]`, cosines and sines to `[rows, 1, head_dim]`.
fn by_head<B: Backend>([x, cos, sin]: [Tensor<B, 2>; 3]) -> [Tensor<B, 3>; 3] {
    let ([rows, width], [_, size]) = (x.dims(), cos.dims());
    [
        x.reshape([rows, width / size, size]),
        cos.unsqueeze_dim(1),
        sin.unsqueeze_dim(1),
    ]
}

fn quarter_turned<B: Backend>(x: Tensor<B, 3>, quarter: Tensor<B, 2>) -> Tensor<B, 3> {
    let shape = x.dims();
    let rows: Tensor<B, 2> = x.flatten(0, 1);
    rows.matmul(quarter).reshape(shape)
}

/// The turn, or with `BACK` what it makes of gradients.
fn in_place<I: Backend, const BACK: bool>(
    x: Tensor<I, 2>,
    cos: Tensor<I, 2>,
    sin: Tensor<I, 2>,
) -> Tensor<I, 2> {
    let device = x.device();
    let ([_, width], [_, size]) = (x.dims(), cos.dims());
    let (mut x, cos, sin) = (x.into_data(), cos.into_data(), sin.into_data());
    if width > 0 {
        let piece = whole_rows(width);
        let tables = piece / width * size;
        floats_mut(&mut x)
            .par_chunks_mut(piece)
            .zip(floats(&cos).par_chunks(tables))
            .zip(floats(&sin).par_chunks(tables))
            .for_each(|((x, cos), sin)| {
                Arch::new().dispatch(|| {
                    let tables = cos.chunks_exact(size).zip(sin.chunks_exact(size));
                    for (x, (cos, sin)) in x.chunks_exact_mut(width).zip(tables) {
                        for x in x.chunks_exact_mut(size) {
                            turn_head::<BACK>(x, cos, sin);
                        }
                    }
                });
            });
    }
    Tensor::from_data(x, &device)
}

#[inline(always)]
fn turn_head<const BACK: bool>(x: &mut [f32], cos: &[f32], sin: &[f32]) {
    let half = x.len() / 2;
    let (first, second) = x.split_at_mut(half);
    let ((cos, far_cos), (sin, far_sin)) = (cos.split_at(half), sin.split_at(half));
    for index in 0..half {
        let (a, b) = (first[index], second[index]);
        (first[index], second[index]) = match BACK {
            false => (
                a * cos[index] - b * sin[index],
                b * far_cos[index] + a * far_sin[index],
            ),
            true => (
                a * cos[index] + b * far_sin[index],
                b * far_cos[index] - a * sin[index],
            ),
        };
    }
}
