//! [`FeatureTap`]: the attention outputs of some layers, taken while a decoder runs.

use burn::prelude::*;

/// Takes the attention outputs of the layers asked for, while a decoder runs.
///
/// A decoder shows it the output of every layer's output projection, in order; it keeps those that were
/// asked for and lets the others go.
#[derive(Debug)]
pub struct FeatureTap<'a, B: Backend> {
    asked: &'a [usize],
    layer: usize,
    kept: Vec<Option<Tensor<B, 3>>>,
}

impl<'a, B: Backend> FeatureTap<'a, B> {
    /// Keeps nothing.
    pub const fn nothing() -> Self {
        Self {
            asked: &[],
            layer: 0,
            kept: Vec::new(),
        }
    }

    /// Keeps the outputs of these layers, counted from 0.
    pub fn attention_of(layers: &'a [usize]) -> Self {
        Self {
            asked: layers,
            layer: 0,
            kept: vec![None; layers.len()],
        }
    }

    /// The next layer's attention has put out this, `[batch, tokens, d_model]`.
    pub fn attention(&mut self, output: &Tensor<B, 3>) {
        for (kept, asked) in self.kept.iter_mut().zip(self.asked) {
            if *asked == self.layer {
                *kept = Some(output.clone());
            }
        }
        self.layer += 1;
    }

    /// The outputs in the order in which they were asked for; `None` if the decoder did not show all of
    /// them.
    pub fn into_outputs(self) -> Option<Vec<Tensor<B, 3>>> {
        self.kept.into_iter().collect()
    }
}
