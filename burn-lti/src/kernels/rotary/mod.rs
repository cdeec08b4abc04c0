//! `x cos + rotate_half(x) sin`

mod cpu;

use burn::prelude::*;
use burn::tensor::TensorData;

use super::form::{Form, is_rust};
use super::graph::{Operation, apply};

/// Cosines and sines that rotate the pairs of a head's features, feature `i` with `i + head_dim / 2`. They
/// have no gradient.
#[derive(Clone, Debug)]
pub struct RotaryTable<B: Backend> {
    /// `[rows, head_dim]`
    cos: Tensor<B, 2>,
    /// `[rows, head_dim]`
    sin: Tensor<B, 2>,
    /// `[head_dim, head_dim]`: sends `(first, second)` to `(-second, first)`. Among tensor operations a product
    /// with so small a matrix is cheaper on every backend than cutting halves out and joining them again.
    rotate_half: Tensor<B, 2>,
}

impl<B: Backend> RotaryTable<B> {
    /// Rotations by angles whose cosines and sines these are, `[rows, head_dim]` each.
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
        let mut rotate_half = vec![0.0f32; size * size];
        for feature in 0..half {
            rotate_half[(feature + half) * size + feature] = -1.0;
            rotate_half[feature * size + feature + half] = 1.0;
        }
        let rotate_half = TensorData::new(rotate_half, [size, size]);
        Self {
            rotate_half: Tensor::<B, 2>::from_data(rotate_half, &cos.device()).cast(cos.dtype()),
            cos,
            sin,
        }
    }
}

/// Rotates each pair of features of each head: `(a cos - b sin, b cos + a sin)` (Su et al. 2021, in the pairing
/// of Hugging Face's `rotate_half`).
///
/// # Shapes
///
/// `x` and the result: `[rows, heads * head_dim]`.
///
/// # Panics
///
/// If the table is of other rows, or of a head size that does not divide the width.
pub fn apply_rotary<B: Backend>(x: Tensor<B, 2>, table: &RotaryTable<B>) -> Tensor<B, 2> {
    let RotaryTable {
        cos,
        sin,
        rotate_half,
    } = table.clone();
    let ([rows, width], [of, size]) = (x.dims(), cos.dims());
    assert!(
        rows == of && width.is_multiple_of(size),
        "there is a turn for each row, and a head of its size"
    );
    let form = Form::of(is_rust, [&x, &cos, &sin]);
    apply(Rotary, form, [x, cos, sin, rotate_half])
}

/// `d x = g cos + (g sin) rotate_half^T`, `g` being the gradient of the output.
#[derive(Clone, Copy, Debug)]
struct Rotary;

impl Operation<4, 2> for Rotary {
    /// Cosines, sines and the matrix of `rotate_half`.
    type Saved<B: Backend> = [Tensor<B, 2>; 3];

    fn forward<B: Backend>(
        &self,
        form: Form,
        [x, table @ ..]: [Tensor<B, 2>; 4],
        [wanted, ..]: [bool; 4],
    ) -> (Tensor<B, 2>, Option<Self::Saved<B>>) {
        let [cos, sin, rotate_half] = table.map(Tensor::detach);
        let saved = wanted.then(|| [cos.clone(), sin.clone(), rotate_half.clone()]);
        let output = match form {
            Form::Tensors => {
                let shape = x.dims();
                let [x, cos, sin] = by_head([x, cos, sin]);
                let rotated = product(x.clone(), rotate_half);
                (x * cos + rotated * sin).reshape(shape)
            }
            Form::Cpu => cpu::rotate::<B, false>(x, cos, sin),
        };
        (output, saved)
    }

    fn backward<B: Backend>(
        &self,
        form: Form,
        [cos, sin, rotate_half]: Self::Saved<B>,
        gradient: Tensor<B, 2>,
        _: [bool; 4],
    ) -> [Option<Tensor<B, 2>>; 4] {
        let gradient = match form {
            Form::Tensors => {
                let shape = gradient.dims();
                let [gradient, cos, sin] = by_head([gradient, cos, sin]);
                let rotated = product(gradient.clone() * sin, rotate_half.transpose());
                (gradient * cos + rotated).reshape(shape)
            }
            Form::Cpu => cpu::rotate::<B, true>(gradient, cos, sin),
        };
        [Some(gradient), None, None, None]
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

/// Each head of `x [rows, heads, head_dim]` times `matrix [head_dim, head_dim]`.
fn product<B: Backend>(x: Tensor<B, 3>, matrix: Tensor<B, 2>) -> Tensor<B, 3> {
    let shape = x.dims();
    let rows: Tensor<B, 2> = x.flatten(0, 1);
    rows.matmul(matrix).reshape(shape)
}
