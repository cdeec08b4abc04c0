//! What a language model offers to be distilled: hidden states and a head, not logits.

use burn::module::ModuleDisplay;
use burn::prelude::*;
use burn::tensor::backend::AutodiffBackend;

use super::FeatureTap;
use crate::inject::{InjectError, InjectRules, Injection, inject};
use crate::tensors::TensorSet;

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
    /// Which sequence of its data each row is, for a teacher whose outputs on each are in files; empty
    /// where nobody counts them.
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

/// A learning model whose teacher kernels and copied weights have not arrived.
///
/// Its maps exist, everything else is a promise of a shape. The only way on is
/// [`inject`](Self::inject), so no model without a teacher is ever run.
#[derive(Debug)]
pub struct AwaitingTeacher<M> {
    model: M,
}

impl<M> AwaitingTeacher<M> {
    /// Wraps a learning model made by [`learn_to_init`](crate::decoder::learn_to_init).
    pub const fn new(model: M) -> Self {
        Self { model }
    }

    /// The rules that follow from the model's own names. See [`InjectRules::by_name`].
    ///
    /// # Errors
    ///
    /// As [`InjectRules::by_name`].
    pub fn rules_by_name<B: Backend>(
        &self,
        new: impl IntoIterator<Item = String>,
    ) -> Result<InjectRules, InjectError>
    where
        M: Module<B>,
    {
        InjectRules::by_name(&self.model, new)
    }

    /// Brings the teacher in. See [`inject`].
    ///
    /// # Errors
    ///
    /// As [`inject`].
    pub fn inject<B: Backend>(
        self,
        teacher: &TensorSet<B>,
        rules: &InjectRules,
    ) -> Result<(M, Injection), InjectError>
    where
        M: Module<B>,
    {
        inject(self.model, teacher, rules)
    }
}
