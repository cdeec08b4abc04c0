//! How much the error of a token counts.
//!
//! An error in a token's residual stream reaches the loss through the token itself and through every token
//! that attends to it. Of each of those it reaches the part that is the attention, and what counts is its
//! square. So a row counts `1 + r`: `r` is the squared attention that its token receives, summed over
//! queries, the mean of the teacher's heads and layers. That is little for a token among many that are
//! attended to evenly, and far more for those on which trained models rest their attention, the first of a
//! text above all (attention sinks: Xiao et al. 2023, arXiv 2309.17453). Some layer makes the streams of
//! these orders of magnitude larger than the others (massive activations: Sun et al. 2024, arXiv
//! 2402.17762). Where the student does not, no pattern above that layer is the teacher's, and one row in
//! hundreds would not keep a fit from that.

use burn::prelude::*;
use burn::tensor::DType;

/// What rows count, `[rows, 1]`, by the squares that they receive in each of the teacher's layers.
pub(super) fn of_rows<B: Backend>(received: Vec<Tensor<B, 2>>) -> Tensor<B, 2> {
    Tensor::cat(received, 1).mean_dim(1).add_scalar(1.0)
}

/// The squares that each token receives, `[batch * tokens, 1]`, the mean of the heads, of
/// `weights [batch, heads, queries, tokens]`.
pub(super) fn received<B: Backend>(weights: Tensor<B, 4>) -> Tensor<B, 2> {
    let [batch, _, _, tokens] = weights.dims();
    let of_heads = weights.cast(DType::F32).powi_scalar(2).sum_dim(2);
    of_heads.mean_dim(1).reshape([batch * tokens, 1])
}

#[cfg(test)]
mod tests {
    use burn::backend::Flex;

    use super::*;

    #[test]
    fn squared_attention_is_summed_over_queries_and_averaged_over_heads() {
        // Two sequences of three tokens: all attend to the first; each to itself, and to all before it.
        let first = [[1.0, 0.0, 0.0]; 3];
        let itself = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]];
        let before = [[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.25, 0.25, 0.5]];
        let weights = [[first, itself], [itself, before]];
        let weights = Tensor::<Flex, 4>::from_floats(weights, &Default::default());
        let found = received(weights);
        assert_eq!(found.dims(), [6, 1]);
        let found: Vec<f32> = found.into_data().iter().collect();
        assert_eq!(found, [2.0, 0.5, 0.5, 1.15625, 0.65625, 0.625]);
    }
}
