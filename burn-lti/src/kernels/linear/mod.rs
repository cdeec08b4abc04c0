//! `input weight`

mod bfloat16;
mod cpu;
mod packed;
#[cfg(test)]
mod tests;

use burn::nn::Linear;
use burn::prelude::*;
use burn::tensor::DType;

pub(crate) use packed::PackedWeight;

use super::ProductPrecision;
use super::cpu::Matrix;
use super::form::{Form, is_cpu};
use super::graph::{Operation, apply};

/// `input [..., d_input] -> [..., d_output]`, what a [`Linear`] makes of it.
///
/// The input's axes but the last are joined first: Burn's gradient of a product with more than two is
/// batched, and summed afterwards.
///
/// # Panics
///
/// As any Burn layer, if the last axis of `input` is not `d_input`.
pub fn linear<B: Backend, const D: usize>(input: Tensor<B, D>, linear: &Linear<B>) -> Tensor<B, D> {
    let bias = linear.bias.as_ref().map(|bias| bias.val());
    projected(input, linear.weight.val(), bias)
}

/// `input [..., d_input]` times `weight [d_input, d_output]`, and `bias [d_output]` added.
pub(crate) fn projected<B: Backend, const D: usize>(
    input: Tensor<B, D>,
    weight: Tensor<B, 2>,
    bias: Option<Tensor<B, 1>>,
) -> Tensor<B, D> {
    let [d_input, d_output] = weight.dims();
    let mut shape = input.dims();
    let rows = shape[..D - 1].iter().product::<usize>();
    shape[D - 1] = d_output;
    let output = multiplied(input.reshape([rows, d_input]), weight);
    plus(output, bias).reshape(shape)
}

/// `output [rows, d_output]`, and `bias [d_output]` added to each row.
fn plus<B: Backend>(output: Tensor<B, 2>, bias: Option<Tensor<B, 1>>) -> Tensor<B, 2> {
    match bias {
        Some(bias) => {
            let dtype = output.dtype();
            output + bias.cast(dtype).unsqueeze()
        }
        None => output,
    }
}

/// Logits: `states [n, d]` times `head [d, vocab]`.
pub(crate) fn head_product<B: Backend>(states: Tensor<B, 2>, head: Tensor<B, 2>) -> Tensor<B, 2> {
    product(ProductPrecision::current(), states, head, cpu::wide)
}

/// What a gradient of logits makes of the states: `gradient [n, vocab]` times `head [vocab, d]`.
pub(crate) fn product_through_head<B: Backend>(
    gradient: Tensor<B, 2>,
    head: Tensor<B, 2>,
) -> Tensor<B, 2> {
    product(ProductPrecision::current(), gradient, head, cpu::deep)
}

/// What gradients of logits make of a head `[d, vocab]`, summed up over chunks of tokens.
pub(crate) struct HeadGradient<B: Backend> {
    /// As the head lies: `[vocab, d]` if that is a view of a table of embeddings. Nobody else has it.
    sum: Option<Tensor<B, 2>>,
    of_table: bool,
}

impl<B: Backend> HeadGradient<B> {
    /// Of no token yet.
    pub(crate) fn new(head: &Tensor<B, 2>) -> Self {
        let matrix = Matrix::of(head);
        Self {
            sum: None,
            of_table: matrix.is_some_and(|head| head.numbers.steps[0] == 1),
        }
    }

    /// Adds that of `n` tokens: `states [n, d]`, turned, times `gradient [n, vocab]`.
    pub(crate) fn add(&mut self, states: Tensor<B, 2>, gradient: Tensor<B, 2>) {
        let precision = ProductPrecision::current();
        let [left, right] = match self.of_table {
            true => [gradient.transpose(), states],
            false => [states.transpose(), gradient],
        };
        self.sum = Some(match self.sum.take() {
            None => product(precision, left, right, cpu::balanced),
            Some(sum) => {
                let write = of(precision, cpu::balanced);
                match cpu::added(sum, [&left, &right], write) {
                    Ok(sum) => sum,
                    Err(sum) => sum + of_tensors(precision, left, right),
                }
            }
        });
    }

    /// `[d, vocab]`, as the head a view of a table if it is one. None of no token.
    pub(crate) fn finish(self) -> Option<Tensor<B, 2>> {
        self.sum.map(|sum| match self.of_table {
            true => sum.transpose(),
            false => sum,
        })
    }
}

/// On a CPU, on no graph, in float32 in the pieces of `write`; else by the backend.
fn product<B: Backend>(
    precision: ProductPrecision,
    left: Tensor<B, 2>,
    right: Tensor<B, 2>,
    write: cpu::Write,
) -> Tensor<B, 2> {
    cpu::product(&left, &right, of(precision, write))
        .unwrap_or_else(|| of_tensors(precision, left, right))
}

/// In float32 in the pieces of `write`.
fn of(precision: ProductPrecision, write: cpu::Write) -> cpu::Write {
    match precision {
        ProductPrecision::Float32 => write,
        ProductPrecision::BFloat16 => bfloat16::of_factors,
    }
}

/// `[m, k]` times `[k, n]`.
fn multiplied<B: Backend>(left: Tensor<B, 2>, right: Tensor<B, 2>) -> Tensor<B, 2> {
    let precision = ProductPrecision::current();
    match Form::of(is_cpu, [&left, &right]) {
        Form::Tensors => of_tensors(precision, left, right),
        form @ Form::Cpu => apply(Product(precision), form, [left, right]),
    }
}

/// By the backend, on a graph too.
fn of_tensors<B: Backend>(
    precision: ProductPrecision,
    left: Tensor<B, 2>,
    right: Tensor<B, 2>,
) -> Tensor<B, 2> {
    match precision {
        ProductPrecision::BFloat16 if left.dtype() == DType::F32 => {
            let [left, right] = [left, right].map(|factor| factor.cast(DType::BF16));
            left.matmul(right).cast(DType::F32)
        }
        _ => left.matmul(right),
    }
}

/// With `g` the gradient of the product, `d left = g right^T`, `d right = left^T g`, in the same precision.
#[derive(Clone, Copy, Debug)]
struct Product(ProductPrecision);

impl Operation<2, 2> for Product {
    /// Of either factor, what the gradient of the other needs.
    type Saved<B: Backend> = [Option<Tensor<B, 2>>; 2];

    fn forward<B: Backend>(
        &self,
        _: Form,
        [left, right]: [Tensor<B, 2>; 2],
        [of_left, of_right]: [bool; 2],
    ) -> (Tensor<B, 2>, Option<Self::Saved<B>>) {
        let saved = [
            of_right.then(|| left.clone()),
            of_left.then(|| right.clone()),
        ];
        (product(self.0, left, right, cpu::balanced), Some(saved))
    }

    fn backward<B: Backend>(
        &self,
        _: Form,
        saved: Self::Saved<B>,
        gradient: Tensor<B, 2>,
        [of_left, of_right]: [bool; 2],
    ) -> [Option<Tensor<B, 2>>; 2] {
        let [left, right] = saved.map(|factor| factor.map(Tensor::transpose));
        let right = right.filter(|_| of_left);
        let left = left.filter(|_| of_right);
        [
            right.map(|right| product(self.0, gradient.clone(), right, cpu::balanced)),
            left.map(|left| product(self.0, left, gradient, cpu::balanced)),
        ]
    }
}
