//! [`Shape`]: how many sequences, tokens and heads an attention has, and how far its scores go.

use burn::prelude::*;

use super::mask::AttentionMask;
use crate::geometry::Axes;

#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) batch: usize,
    pub(super) queries: usize,
    pub(super) keys: usize,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    /// Scores are `cap * tanh(score / cap)`, if there is one.
    pub(super) cap: Option<f64>,
}

impl Shape {
    /// Of what is asked of an attention.
    pub(super) fn of<B: Backend>(
        q: &Tensor<B, 3>,
        k: &Tensor<B, 3>,
        geometry: &Axes,
        mask: &AttentionMask<B>,
    ) -> Self {
        let ([batch, queries, _], [_, keys, _]) = (q.dims(), k.dims());
        let (query, kv) = (geometry.query, geometry.key_value);
        assert!(
            kv.heads > 0 && query.heads.is_multiple_of(kv.heads) && query.head_dim == kv.head_dim,
            "query heads come in equal groups, of the head size of their keys"
        );
        assert_eq!(
            (q.dims(), k.dims()),
            ([batch, queries, query.width()], [batch, keys, kv.width()]),
            "queries and keys are of the geometry"
        );
        let [of, ..] = mask.dims();
        assert!(
            mask.dims() == [of, queries, keys] && (of == 1 || of == batch),
            "the mask is for these queries and keys"
        );
        Self {
            batch,
            queries,
            keys,
            heads: query.heads,
            kv_heads: kv.heads,
            head_dim: query.head_dim,
            cap: mask.cap(),
        }
    }

    pub(super) const fn width(self) -> usize {
        self.heads * self.head_dim
    }

    pub(super) const fn kv_width(self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// The key/value head of a query head.
    pub(super) const fn kv_of(self, head: usize) -> usize {
        head / (self.heads / self.kv_heads)
    }
}
