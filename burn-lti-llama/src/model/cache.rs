//! Keys and values of tokens already seen.

use burn::prelude::*;

/// The cache of one layer.
#[derive(Clone, Debug)]
pub struct LayerCache<B: Backend> {
    /// Keys and values, `[batch, tokens, kv_heads * head_dim]` each.
    seen: Option<(Tensor<B, 3>, Tensor<B, 3>)>,
}

impl<B: Backend> LayerCache<B> {
    /// Adds the keys and values of new tokens and returns those of all tokens.
    pub(super) fn extend(
        &mut self,
        keys: Tensor<B, 3>,
        values: Tensor<B, 3>,
    ) -> (Tensor<B, 3>, Tensor<B, 3>) {
        let all = match self.seen.take() {
            Some((k, v)) => (
                Tensor::cat(vec![k, keys], 1),
                Tensor::cat(vec![v, values], 1),
            ),
            None => (keys, values),
        };
        self.seen = Some(all.clone());
        all
    }

    /// Leaves only these rows of the batch, in this order.
    fn keep_rows(&mut self, rows: &Tensor<B, 1, Int>) {
        let seen = self.seen.take();
        self.seen = seen.map(|(k, v)| (k.select(0, rows.clone()), v.select(0, rows.clone())));
    }
}

/// The caches of all layers, for sequences of one length that are generated together.
#[derive(Clone, Debug)]
pub struct KvCache<B: Backend> {
    pub(super) layers: Vec<LayerCache<B>>,
    /// How many tokens of each sequence are in it.
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

    /// Leaves only these sequences of the batch, in this order: `rows [kept]`, from 0.
    pub(super) fn keep_rows(&mut self, rows: &Tensor<B, 1, Int>) {
        for layer in &mut self.layers {
            layer.keep_rows(rows);
        }
    }
}
