//! How much the error of a token counts.
//!
//! An error in a token's residual stream reaches the loss through the token itself and through every token
//! that attends to it. Most tokens receive about as much attention as they give, and count once. A few
//! receive more than even patterns would give to the first of `n` tokens, which is the harmonic number of
//! `n`, at most `1 + ln n`. On those trained models rest their attention, the first token above all
//! (attention sinks: Xiao et al. 2023, arXiv 2309.17453), and some layer makes their streams orders of
//! magnitude larger than the others (massive activations: Sun et al. 2024, arXiv 2402.17762). Where the
//! student does not, no pattern above that layer is the teacher's, and one row in hundreds would not keep a
//! fit from that: such a token counts for all whose attention it has.

use burn::prelude::*;
use burn::tensor::DType;

use crate::decoder::{LayeredDecoder, TokenBatch};

/// How often the rows of `batch` count, `[batch * tokens, 1]`, as `teacher` attends: once, or as the
/// attention that they receive, the mean of all heads and layers.
pub(super) fn importance<B: Backend, T: LayeredDecoder<B>>(
    teacher: &T,
    batch: &TokenBatch<B>,
) -> Tensor<B, 2> {
    let context = teacher.context(batch);
    let mut h = teacher.embed(batch);
    let [sequences, tokens, _] = h.dims();
    let mut sum = Tensor::zeros([sequences * tokens, 1], (&h.device(), DType::F32));
    let layers = teacher.layers();
    for layer in 0..layers {
        sum = sum + received(teacher.attention_weights(layer, h.clone(), &context));
        let behind = h.clone() + teacher.attention(layer, h, &context);
        h = behind.clone() + teacher.feed_forward(layer, behind);
    }
    let mean = sum.div_scalar(layers as f64);
    let most_of_even = 1.0 + (tokens as f64).ln();
    let ordinary = mean.clone().lower_equal_elem(most_of_even);
    mean.mask_fill(ordinary, 1.0)
}

/// What each token receives, `[batch * tokens, 1]`, the mean of the heads, of
/// `weights [batch, heads, queries, tokens]`.
fn received<B: Backend>(weights: Tensor<B, 4>) -> Tensor<B, 2> {
    let [batch, _, _, tokens] = weights.dims();
    let of_heads = weights.cast(DType::F32).sum_dim(2);
    of_heads.mean_dim(1).reshape([batch * tokens, 1])
}

#[cfg(test)]
mod tests {
    use burn::backend::Flex;

    use super::*;

    #[test]
    fn attention_is_summed_over_queries_and_averaged_over_heads() {
        // Two sequences of three tokens: all attend to the first; each to itself, and to all before it.
        let first = [[1.0, 0.0, 0.0]; 3];
        let itself = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]];
        let before = [[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.25, 0.25, 0.5]];
        let weights = [[first, itself], [itself, before]];
        let weights = Tensor::<Flex, 4>::from_floats(weights, &Default::default());
        let found = received(weights);
        assert_eq!(found.dims(), [6, 1]);
        let found: Vec<f32> = found.into_data().iter().collect();
        assert_eq!(found, [2.0, 0.5, 0.5, 1.375, 0.875, 0.75]);
    }
}
