//! [`Teacher`]: what a student learns from.

use burn::prelude::*;

use crate::decoder::{CausalLm, TokenBatch, Watch};
use crate::loss::TeacherTokens;

/// What a student learns from: a model that runs, or what one has said before.
pub trait Teacher<B: Backend>: std::fmt::Debug + Send + Sync {
    /// The number of tokens it knows.
    fn vocab_size(&self) -> usize;

    /// The number of layers whose attention outputs it can show; `None` if it shows none.
    fn attention_layers(&self) -> Option<usize>;

    /// What it says of a batch, and the attention outputs of these of its layers.
    fn teach(&self, batch: &TokenBatch<B>, attention_of: &[usize]) -> Lesson<B>;
}

/// What a teacher says of a batch.
#[derive(Clone, Debug)]
pub struct Lesson<B: Backend> {
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

    fn teach(&self, batch: &TokenBatch<B>, attention_of: &[usize]) -> Lesson<B> {
        let mut watch = Watch::attention_of(attention_of);
        let hidden = self.forward(batch, &mut watch);
        Lesson {
            tokens: TeacherTokens::Hidden {
                hidden: hidden.flatten(0, 1),
                head: self.head(),
            },
            attention: watch.into_outputs().unwrap_or_default(),
        }
    }
}
