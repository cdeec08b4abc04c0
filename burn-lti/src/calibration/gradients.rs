//! How much the teacher's loss depends on each direction of its residual stream.
//!
//! The loss is the cross-entropy of tokens that are drawn from the teacher's own distribution, one at each place with a
//! target. The second moments of its gradient are those of the KL to the teacher: how far its distribution moves with
//! the stream (the Fisher matrix). Those of the text's own tokens are led by what the teacher did not expect.
//!
//! The gradient goes back block by block, on streams that are there already: no more than one block is on a graph,
//! and none of the teacher's weights.

use std::sync::Arc;

use burn::data::dataloader::DataLoader;
use burn::prelude::*;
use burn::tensor::activation::{log_softmax, softmax};
use burn::tensor::backend::AutodiffBackend;
use burn::tensor::{DType, TensorData};
use faer::Mat;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::error::{CalibrationError, Result};
use super::features::flat;
use super::moments::matrix;
use super::stream::lengths;
use crate::compat;
use crate::decoder::{LayeredDecoder, Reader, TokenBatch};

/// Logits that are made at a time.
const LOGITS: usize = 1 << 22;

/// Second moments of the gradients of a teacher's loss by its residual stream, `[t_width, t_width]`: sums over all
/// tokens, and all places where the stream stands between two blocks.
#[derive(Clone, Debug)]
pub struct StreamGradients(pub(super) Mat<f64>);

impl StreamGradients {
    /// Adds gradients by the states `h`, both `[batch, tokens, t_width]`.
    fn add<B: Backend>(&mut self, h: Tensor<B, 3>, gradient: Tensor<B, 3>) -> Result<()> {
        // By states of length one: what reads the stream does so after a norm.
        let rows = flat(gradient).cast(DType::F32) * lengths(flat(h).cast(DType::F32));
        self.0 += matrix(rows.clone().transpose().matmul(rows), self.0.nrows())?;
        Ok(())
    }
}

/// Has `teacher` read all `batches`, and sends the gradient of its loss back through it. The `seed` draws the tokens of
/// the loss.
///
/// Memory holds the teacher's streams of one batch.
///
/// # Errors
///
/// [`CalibrationError`] where a number is none, or the decoder does not say what its norms make of the stream.
pub fn stream_gradients<A: AutodiffBackend>(
    teacher: &impl LayeredDecoder<A>,
    batches: &Arc<dyn DataLoader<A::InnerBackend, TokenBatch<A::InnerBackend>>>,
    seed: u64,
) -> Result<StreamGradients> {
    let teacher = teacher.clone().no_grad();
    let width = teacher.head().weight.dims()[0];
    let mut gradients = StreamGradients(Mat::zeros(width, width));
    let mut rng = StdRng::seed_from_u64(seed);
    for batch in batches.iter() {
        let on_graph = TokenBatch::<A>::from_inner(&batch);
        let context = teacher.context(&on_graph);
        let mut h = teacher.embed(&on_graph);
        let mut streams = Vec::new();
        for layer in 0..teacher.layers() {
            let attended = h.clone() + teacher.attention(layer, h.clone(), &context);
            let output = attended.clone() + teacher.feed_forward(layer, attended.clone());
            streams.push([h, attended].map(Tensor::inner));
            h = output;
        }
        let h = h.inner();
        let mut gradient = before_head(&teacher, h.clone(), &batch, &mut rng)?;
        gradients.add(h, gradient.clone())?;
        for (layer, [h, attended]) in streams.into_iter().enumerate().rev() {
            let block = |h| teacher.feed_forward(layer, h);
            gradient = before_block::<A>(attended.clone(), gradient, block)?;
            gradients.add(attended, gradient.clone())?;
            let block = |h| teacher.attention(layer, h, &context);
            gradient = before_block::<A>(h.clone(), gradient, block)?;
            gradients.add(h, gradient.clone())?;
        }
    }
    Ok(gradients)
}

/// The gradient by what `block` reads, from that by the stream `behind` it, both `[batch, tokens, d_model]`.
fn before_block<A: AutodiffBackend>(
    h: Tensor<A::InnerBackend, 3>,
    behind: Tensor<A::InnerBackend, 3>,
    block: impl FnOnce(Tensor<A, 3>) -> Tensor<A, 3>,
) -> Result<Tensor<A::InnerBackend, 3>> {
    gradient_of::<A>(h, |h| {
        let output = h.clone() + block(h);
        // This has exactly that gradient.
        Ok(compat::total(output * Tensor::from_inner(behind)))
    })
}

/// The gradient by the last states `h [batch, tokens, d_model]`.
fn before_head<A: AutodiffBackend>(
    teacher: &impl LayeredDecoder<A>,
    h: Tensor<A::InnerBackend, 3>,
    batch: &TokenBatch<A::InnerBackend>,
    rng: &mut StdRng,
) -> Result<Tensor<A::InnerBackend, 3>> {
    let shape @ [sequences, tokens, width] = h.dims();
    let rows = sequences * tokens;
    let head = teacher.head();
    let most = (LOGITS / head.weight.dims()[1]).max(1);
    let h = h.reshape([1, rows, width]);
    let mask = batch.mask.clone().reshape([rows, 1]).cast(DType::F32);
    let mut parts = Vec::new();
    for first in (0..rows).step_by(most) {
        let count = most.min(rows - first);
        let mask = mask.clone().narrow(0, first, count);
        let part = h.clone().narrow(1, first, count);
        parts.push(gradient_of::<A>(part, |h| {
            let read = teacher.normed(Reader::Head, h);
            let read = flat(read.ok_or_else(CalibrationError::no_norms)?);
            let logits = head.capped(read.matmul(head.weight.clone()));
            let logits = logits.cast(DType::F32);
            let drawn = Tensor::from_inner(drawn(logits.clone().inner(), rng));
            let found = log_softmax(logits, 1).gather(1, drawn);
            Ok(compat::total(found * Tensor::from_inner(mask)).neg())
        })?);
    }
    Ok(Tensor::cat(parts, 1).reshape(shape))
}

/// A token of each row's distribution, `[rows, vocab] -> [rows, 1]`.
fn drawn<B: Backend>(logits: Tensor<B, 2>, rng: &mut StdRng) -> Tensor<B, 2, Int> {
    let [rows, vocab] = logits.dims();
    let places = (0..rows).map(|_| rng.random::<f32>());
    let places = TensorData::new(places.collect(), [rows, 1]);
    let places = Tensor::<B, 2>::from_data(places, (&logits.device(), DType::F32));
    let before = softmax(logits, 1).cumsum(1).lower_equal(places);
    // Rounding may leave the sum of all below one.
    before.int().sum_dim(1).clamp_max(vocab as i64 - 1)
}

/// Of what `loss` makes of `h`, by `h`.
fn gradient_of<A: AutodiffBackend>(
    h: Tensor<A::InnerBackend, 3>,
    loss: impl FnOnce(Tensor<A, 3>) -> Result<Tensor<A, 1>>,
) -> Result<Tensor<A::InnerBackend, 3>> {
    let h = Tensor::<A, 3>::from_inner(h).require_grad();
    let gradients = loss(h.clone())?.backward();
    h.grad(&gradients).ok_or_else(|| {
        CalibrationError::Refused(
            "no gradient goes back through the teacher's blocks: a `LayeredDecoder` that is to weigh its stream keeps \
             what it is given on the graph"
                .to_owned(),
        )
    })
}

#[cfg(test)]
mod tests {
    use burn::backend::{Autodiff, Flex};

    use super::*;

    type A = Autodiff<Flex>;

    #[test]
    fn tokens_are_drawn_as_often_as_their_distribution_has_them() {
        let rows = 4000;
        let odds = [0.2_f32, 0.0, 0.7, 0.1];
        let logits = odds.map(f32::ln).repeat(rows);
        let logits = TensorData::new(logits, [rows, odds.len()]);
        let logits = Tensor::<Flex, 2>::from_data(logits, &Default::default());
        let draw = |seed| -> Vec<i64> {
            let drawn = drawn(logits.clone(), &mut StdRng::seed_from_u64(seed));
            drawn.into_data().iter().collect()
        };
        let tokens = draw(3);
        for (token, odds) in odds.iter().enumerate() {
            let count = tokens.iter().filter(|it| **it == token as i64).count();
            let (part, odds) = (count as f64 / rows as f64, f64::from(*odds));
            // Five standard deviations of a part of so many draws.
            let bound = 5.0 * (odds * (1.0 - odds) / rows as f64).sqrt();
            assert!((part - odds).abs() <= bound, "{token}: {part}");
        }
        assert_eq!(tokens, draw(3));
        assert_ne!(tokens, draw(4));
    }

    #[test]
    fn the_gradient_before_a_block_is_through_it_and_beside_it() {
        let device = Default::default();
        let h = Tensor::<Flex, 3>::from_floats([[[1.0, -2.0]]], &device);
        let behind = Tensor::from_floats([[[3.0, 5.0]]], &device);
        let found = before_block::<A>(h, behind, |h| h.powi_scalar(2)).unwrap();
        // g + 2 h g
        let found: Vec<f32> = found.into_data().iter().collect();
        assert_eq!(found, [9.0, -15.0]);
    }

    #[test]
    fn a_decoder_off_the_graph_is_named() {
        let device = Default::default();
        let h = Tensor::<Flex, 3>::ones([1, 1, 2], &device);
        let apart = Tensor::<A, 1>::ones([1], &device).require_grad();
        let error = gradient_of::<A>(h, |_| Ok(apart)).unwrap_err();
        assert!(
            error.to_string().contains("keeps what it is given"),
            "{error}"
        );
    }

    #[test]
    fn gradients_count_by_states_of_length_one() {
        let device = Default::default();
        let mut gradients = StreamGradients(Mat::zeros(2, 2));
        let h = Tensor::<Flex, 3>::from_floats([[[3.0, 3.0], [0.0, 2.0_f32.sqrt()]]], &device);
        let gradient = Tensor::from_floats([[[1.0, 2.0], [0.0, 1.0]]], &device);
        gradients.add(h, gradient).unwrap();
        let expected = [[9.0, 18.0], [18.0, 37.0]];
        for (i, row) in expected.iter().enumerate() {
            for (j, expected) in row.iter().enumerate() {
                assert!((gradients.0[(i, j)] - expected).abs() < 1e-4);
            }
        }
    }
}
