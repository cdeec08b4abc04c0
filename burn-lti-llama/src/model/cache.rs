//! Keys and values of tokens already seen.

use burn::prelude::*;

/// The cache of one layer.
#[derive(Clone, Debug)]
pub struct LayerCache<B: Backend> {
    /// Keys and values, `[batch, kv_heads, tokens, head_dim]` each.
    seen: Option<(Tensor<B, 4>, Tensor<B, 4>)>,
}

impl<B: Backend> LayerCache<B> {
    /// Adds the keys and values of new tokens and returns those of all tokens.
    pub(super) fn extend(
        &mut self,
        keys: Tensor<B, 4>,
        values: Tensor<B, 4>,
    ) -> (Tensor<B, 4>, Tensor<B, 4>) {
        let all = match self.seen.take() {
            Some((k, v)) => (
                Tensor::cat(vec![k, keys], 2),
                Tensor::cat(vec![v, values], 2),
            ),
            None => (keys, values),
        };
        self.seen = Some(all.clone());
        all
    }
}

/// The caches of all layers, for one sequence being generated.
#[derive(Clone, Debug)]
pub struct KvCache<B: Backend> {
    pub(super) layers: Vec<LayerCache<B>>,
    /// How many tokens are in it.
    pub(super) tokens: usize,
}

impl<B: Backend> KvCache<B> {
    /// An empty cache for `layers` layers.
    pub fn new(layers: usize) -> Self {
        Self {
            layers: vec![LayerCache { seen: None }; layers],
            tokens: 0,
        }
    }
}
