//! [`Teacher`]: what a student learns from.

use burn::prelude::*;

use crate::decoder::{CausalLm, FeatureTap, TokenBatch};
use crate::loss::TeacherTokens;

/// What a student learns from: a model that runs, or one's outputs in files.
pub trait Teacher<B: Backend>: std::fmt::Debug + Send + Sync {
    /// The number of tokens it knows.
    fn vocab_size(&self) -> usize;

    /// The number of layers whose attention outputs it can show; `None` if it shows none.
    fn attention_layers(&self) -> Option<usize>;

    /// Its outputs on a batch, and the attention outputs of these of its layers.
    fn teach(&self, batch: &TokenBatch<B>, attention_of: &[usize]) -> TeacherTargets<B>;
}

/// A teacher's outputs on a batch: what a student is to match.
#[derive(Clone, Debug)]
pub struct TeacherTargets<B: Backend> {
    /// Of each of the `batch * tokens` tokens.
    pub tokens: TeacherTokens<B>,
    /// The attention outputs asked for, `[batch, tokens, d_model]` each; none if the teacher cannot show
    /// them.
    pub attention: Vec<Tensor<B, 3>>,
}

impl<B: Backend, M: CausalLm<B> + Sync> Teacher<B> for M {
    fn vocab_size(&self) -> usize {
        let [_, vocab] = self.head().weight.dims();
        vocab
    }

    fn attention_layers(&self) -> Option<usize> {
        Some(self.layers())
    }

    fn teach(&self, batch: &TokenBatch<B>, attention_of: &[usize]) -> TeacherTargets<B> {
        let mut tap = FeatureTap::attention_of(attention_of);
        let hidden = self.forward(batch, &mut tap);
        TeacherTargets {
            tokens: TeacherTokens::Hidden {
                hidden: hidden.flatten(0, 1),
                head: self.head(),
            },
            attention: tap.into_outputs().unwrap_or_default(),
        }
    }
}
