//! Which tokens see which, and how far their scores go.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use burn::prelude::*;
use burn::tensor::TensorData;

use crate::kernels::form::is_cpu;
use crate::kernels::soft_cap::assert_cap;

/// Which tokens see which, of a batch, and how far scores go.
#[derive(Clone, Debug)]
pub struct AttentionMask<B: Backend> {
    seen: Seen<B>,
    cap: Option<f64>,
}

/// In the form that the device's attention reads.
#[derive(Clone, Debug)]
enum Seen<B: Backend> {
    /// Of a CPU, with the scores if anybody has asked for them.
    Spans {
        spans: Arc<Spans>,
        device: B::Device,
        scores: Arc<OnceLock<Tensor<B, 4>>>,
    },
    /// `[batch or 1, 1, queries, keys]`: 0 where a query sees a key, minus infinity where not.
    Scores(Tensor<B, 4>),
}

impl<B: Backend> AttentionMask<B> {
    /// Each token sees the earlier tokens of its own document, and itself. `segments [batch, tokens]`.
    pub fn packed(segments: &Tensor<B, 2, Int>) -> Self {
        let device = segments.device();
        if is_cpu(&device)
            && let Some(spans) = Spans::packed(segments)
        {
            return Self::of_spans(spans, &device);
        }
        let [batch, tokens] = segments.dims();
        let segments = segments.clone().float();
        let queries = segments.clone().reshape([batch, tokens, 1]);
        let keys = segments.reshape([batch, 1, tokens]);
        let other_document = queries
            .repeat_dim(2, tokens)
            .not_equal(keys.repeat_dim(1, tokens));
        let scores = Tensor::<B, 3>::zeros([batch, tokens, tokens], &device)
            .mask_fill(other_document, f32::NEG_INFINITY);
        let scores = scores + causal(0, tokens, &device).unsqueeze();
        Self {
            seen: Seen::Scores(scores.unsqueeze_dim(1)),
            cap: None,
        }
    }

    /// Tokens that continue one document: query `i` sees all `past` keys and the first `i + 1` of its
    /// own.
    pub fn continuing(past: usize, tokens: usize, device: &B::Device) -> Self {
        if is_cpu(device) {
            let spans = Spans {
                first: vec![0; tokens],
                batch: 1,
                queries: tokens,
                past,
            };
            return Self::of_spans(spans, device);
        }
        Self {
            seen: Seen::Scores(causal(past, tokens, device).unsqueeze()),
            cap: None,
        }
    }

    /// The same, but that a token sees only the last `window` tokens up to its own, which is one of them.
    ///
    /// # Panics
    ///
    /// If the window is empty.
    pub fn within(&self, window: usize) -> Self {
        assert!(window > 0, "a token sees itself");
        match &self.seen {
            Seen::Spans { spans, device, .. } => Self {
                cap: self.cap,
                ..Self::of_spans(spans.within(window), device)
            },
            Seen::Scores(scores) => {
                let [_, _, queries, keys] = scores.dims();
                // Keys that come `window` or more before the query's own.
                let offset = (keys - queries) as i64 - window as i64;
                let device = scores.device();
                let far = Tensor::<B, 2, Bool>::tril_mask([queries, keys], offset, &device);
                let far = far.bool_not().unsqueeze::<4>();
                let far = far.expand(scores.shape());
                Self {
                    seen: Seen::Scores(scores.clone().mask_fill(far, f32::NEG_INFINITY)),
                    cap: self.cap,
                }
            }
        }
    }

    /// The same, but that scores go through [`soft_cap`](crate::kernels::soft_cap) before the softmax.
    ///
    /// # Panics
    ///
    /// If the cap is not positive and finite.
    pub fn capped(self, cap: f64) -> Self {
        assert_cap(cap);
        Self {
            cap: Some(cap),
            ..self
        }
    }

    pub(super) const fn cap(&self) -> Option<f64> {
        self.cap
    }

    fn of_spans(spans: Spans, device: &B::Device) -> Self {
        Self {
            seen: Seen::Spans {
                spans: Arc::new(spans),
                device: device.clone(),
                scores: Arc::default(),
            },
            cap: None,
        }
    }

    /// How many sequences, queries and keys it is for; one sequence is for all of a batch.
    pub fn dims(&self) -> [usize; 3] {
        match &self.seen {
            Seen::Spans { spans, .. } => [spans.batch, spans.queries, spans.past + spans.queries],
            Seen::Scores(scores) => {
                let [batch, _, queries, keys] = scores.dims();
                [batch, queries, keys]
            }
        }
    }

    /// A term added to scores, after their cap: `[batch or 1, 1, queries, keys]`, 0 where a query sees a key, minus infinity
    /// where not.
    pub fn scores(&self) -> Tensor<B, 4> {
        match &self.seen {
            Seen::Spans {
                spans,
                device,
                scores,
            } => scores.get_or_init(|| spans.scores(device)).clone(),
            Seen::Scores(scores) => scores.clone(),
        }
    }

    /// On a CPU, where each document's tokens lie together.
    pub(super) fn spans(&self) -> Option<&Arc<Spans>> {
        match &self.seen {
            Seen::Spans { spans, .. } => Some(spans),
            Seen::Scores(_) => None,
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
    /// The first key that each query sees: `[batch, queries]`.
    first: Vec<usize>,
    /// 1 if all sequences see the same.
    batch: usize,
    queries: usize,
    /// How many keys come before the first query's own.
    past: usize,
}

impl Spans {
    /// None where a document's tokens do not lie together.
    fn packed<B: Backend>(segments: &Tensor<B, 2, Int>) -> Option<Self> {
        let [batch, queries] = segments.dims();
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
            batch,
            queries,
            past: 0,
        })
    }

    fn within(&self, window: usize) -> Self {
        let first = self.first.iter().enumerate();
        let first = first.map(|(row, first)| {
            let own = self.past + row % self.queries;
            (*first).max((own + 1).saturating_sub(window))
        });
        Self {
            first: first.collect(),
            ..*self
        }
    }

    /// The keys that this query sees.
    pub(super) fn of(&self, batch: usize, query: usize) -> Range<usize> {
        let batch = if self.batch == 1 { 0 } else { batch };
        self.first[batch * self.queries + query]..self.past + query + 1
    }

    pub(super) fn scores<B: Backend>(&self, device: &B::Device) -> Tensor<B, 4> {
        let (batch, queries, keys) = (self.batch, self.queries, self.past + self.queries);
        let mut scores = vec![f32::NEG_INFINITY; batch * queries * keys];
        for row in 0..batch * queries {
            scores[row * keys..][self.of(row / queries, row % queries)].fill(0.0);
        }
        Tensor::from_data(TensorData::new(scores, [batch, 1, queries, keys]), device)
    }
}
