//! What a language model offers to be distilled: hidden states and a head, not logits.

use burn::module::ModuleDisplay;
use burn::prelude::*;
use burn::tensor::backend::AutodiffBackend;

use super::FeatureTap;
use crate::kernels::soft_cap;

/// Packed token sequences, one row a window.
///
/// Documents lie side by side in a row: `segments` tells them apart, `positions` restart with each,
/// and a position of segment 0 is padding.
#[derive(Clone, Debug)]
pub struct TokenBatch<B: Backend> {
    /// Token ids, `[batch, tokens]`.
    pub tokens: Tensor<B, 2, Int>,
    /// Position of each token in its document, `[batch, tokens]`.
    pub positions: Tensor<B, 2, Int>,
    /// Number of each token's document in its row, from 1; 0 is padding. `[batch, tokens]`.
    pub segments: Tensor<B, 2, Int>,
    /// The token that follows, `[batch, tokens]`.
    pub targets: Tensor<B, 2, Int>,
    /// 1 where there is a target, 0 where there is none, `[batch, tokens]`.
    pub mask: Tensor<B, 2>,
    /// Which sequence of its data each row is, for a teacher whose outputs on each were saved; empty
    /// where they are not counted.
    pub rows: Vec<usize>,
}

impl<B: AutodiffBackend> TokenBatch<B> {
    /// The batch of the inner backend on this one.
    pub fn from_inner(batch: &TokenBatch<B::InnerBackend>) -> Self {
        Self {
            tokens: Tensor::from_inner(batch.tokens.clone()),
            positions: Tensor::from_inner(batch.positions.clone()),
            segments: Tensor::from_inner(batch.segments.clone()),
            targets: Tensor::from_inner(batch.targets.clone()),
            mask: Tensor::from_inner(batch.mask.clone()),
            rows: batch.rows.clone(),
        }
    }

    /// The same batch on the inner backend.
    pub fn inner(&self) -> TokenBatch<B::InnerBackend> {
        TokenBatch {
            tokens: self.tokens.clone().inner(),
            positions: self.positions.clone().inner(),
            segments: self.segments.clone().inner(),
            targets: self.targets.clone().inner(),
            mask: self.mask.clone().inner(),
            rows: self.rows.clone(),
        }
    }
}

/// The last projection of a language model, which the loss applies itself, in chunks of tokens.
#[derive(Clone, Debug)]
pub struct Head<B: Backend> {
    /// `[d_model, vocab]`. For a tied head, the embedding transposed. On libtorch Burn takes such a view
    /// for a tensor of its own: keep a clone alive where it goes into anything but a matrix product, or
    /// the embedding is overwritten.
    pub weight: Tensor<B, 2>,
    /// Whether it wants a gradient.
    pub trains: bool,
    /// Logits are what [`soft_cap`] makes of the products with the weight, if there is a cap.
    pub cap: Option<f64>,
}

impl<B: Backend> Head<B> {
    /// The logits that products with the weight stand for.
    pub fn capped<const D: usize>(&self, products: Tensor<B, D>) -> Tensor<B, D> {
        match self.cap {
            Some(cap) => soft_cap(products, cap),
            None => products,
        }
    }
}

/// A decoder that can teach or learn.
pub trait CausalLm<B: Backend>: Module<B> + ModuleDisplay {
    /// The final hidden states, as the head takes them: `[batch, tokens, d_model]`. On the way every
    /// layer's attention output is shown to `tap`.
    fn forward(&self, batch: &TokenBatch<B>, tap: &mut FeatureTap<'_, B>) -> Tensor<B, 3>;

    /// The number of layers.
    fn layers(&self) -> usize;

    /// The head.
    fn head(&self) -> Head<B>;

    /// The final hidden states alone, `[batch, tokens, d_model]`.
    fn hidden_states(&self, batch: &TokenBatch<B>) -> Tensor<B, 3> {
        self.forward(batch, &mut FeatureTap::nothing())
    }
}
