//! Which tokens see which.

use std::ops::Range;
use std::sync::Arc;

use burn::prelude::*;
use burn::tensor::TensorData;

use crate::host;

/// Which tokens see which, of a batch.
#[derive(Clone, Debug)]
pub struct AttentionMask<B: Backend> {
    seen: Seen<B>,
}

/// In the form that the device's attention reads.
#[derive(Clone, Debug)]
pub(super) enum Seen<B: Backend> {
    Spans(Arc<Spans>),
    /// `[batch or 1, 1, queries, keys]`: 0 where a query sees a key, minus infinity where not.
    Scores(Tensor<B, 4>),
}

impl<B: Backend> AttentionMask<B> {
    /// Each token sees the earlier tokens of its own document, and itself. `segments [batch, tokens]`.
    pub fn packed(segments: &Tensor<B, 2, Int>) -> Self {
        if host::is_host(&segments.device())
            && let Some(spans) = Spans::packed(segments)
        {
            return Self {
                seen: Seen::Spans(Arc::new(spans)),
            };
        }
        let [batch, tokens] = segments.dims();
        let segments = segments.clone().float();
        let queries = segments.clone().reshape([batch, tokens, 1]);
        let keys = segments.reshape([batch, 1, tokens]);
        let other_document = queries
            .repeat_dim(2, tokens)
            .not_equal(keys.repeat_dim(1, tokens));
        let scores = Tensor::<B, 3>::zeros([batch, tokens, tokens], &other_document.device())
            .mask_fill(other_document, f32::NEG_INFINITY);
        let causal = causal(0, tokens, &scores.device()).unsqueeze();
        let scores = scores + causal;
        Self {
            seen: Seen::Scores(scores.unsqueeze_dim(1)),
        }
    }

    /// Tokens that continue one document: query `i` sees all `past` keys and the first `i + 1` of its
    /// own.
    pub fn continuing(past: usize, tokens: usize, device: &B::Device) -> Self {
        let seen = match host::is_host(device) {
            true => Seen::Spans(Arc::new(Spans {
                first: vec![0; tokens],
                queries: tokens,
                past,
            })),
            false => Seen::Scores(causal(past, tokens, device).unsqueeze()),
        };
        Self { seen }
    }

    pub(super) const fn seen(&self) -> &Seen<B> {
        &self.seen
    }

    /// A term added to scores: `[batch or 1, 1, queries, keys]`, 0 where a query sees a key, minus infinity
    /// where not.
    pub fn scores(&self, device: &B::Device) -> Tensor<B, 4> {
        match &self.seen {
            Seen::Spans(spans) => spans.scores(device),
            Seen::Scores(scores) => scores.clone(),
        }
    }
}

/// Minus infinity where a key comes after a query, else 0: `[tokens, past + tokens]`, the queries
/// being the last `tokens`.
fn causal<B: Backend>(past: usize, tokens: usize, device: &B::Device) -> Tensor<B, 2> {
    let keys = past + tokens;
    let later = Tensor::<B, 2, Bool>::tril_mask([tokens, keys], past as i64, device);
    Tensor::zeros([tokens, keys], device).mask_fill(later, f32::NEG_INFINITY)
}

/// A query sees the keys from the first of its document to its own, without a gap.
#[derive(Debug)]
pub(super) struct Spans {
    /// The first key that each query sees: `[batch, queries]`, or `[queries]` for all of the batch.
    first: Vec<usize>,
    queries: usize,
    /// How many keys come before the first query's own.
    past: usize,
}

impl Spans {
    /// None where a document's tokens do not lie together.
    fn packed<B: Backend>(segments: &Tensor<B, 2, Int>) -> Option<Self> {
        let [_, queries] = segments.dims();
        let segments: Vec<i64> = segments.to_data().iter().collect();
        let mut first = Vec::with_capacity(segments.len());
        for row in segments.chunks_exact(queries.max(1)) {
            let mut begins = 0;
            for (token, segment) in row.iter().enumerate() {
                if *segment != row[begins] {
                    if row[..token].contains(segment) {
                        return None;
                    }
                    begins = token;
                }
                first.push(begins);
            }
        }
        Some(Self {
            first,
            queries,
            past: 0,
        })
    }

    /// The keys that this query sees.
    pub(super) fn of(&self, batch: usize, query: usize) -> Range<usize> {
        let index = (batch * self.queries + query) % self.first.len();
        self.first[index]..self.past + query + 1
    }

    pub(super) fn scores<B: Backend>(&self, device: &B::Device) -> Tensor<B, 4> {
        let (queries, keys) = (self.queries, self.past + self.queries);
        let rows = self.first.len();
        let mut scores = vec![f32::NEG_INFINITY; rows * keys];
        for row in 0..rows {
            scores[row * keys..][self.of(row / queries, row % queries)].fill(0.0);
        }
        let shape = [rows / queries.max(1), 1, queries, keys];
        Tensor::from_data(TensorData::new(scores, shape), device)
    }
}
