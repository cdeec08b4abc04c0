//! [`CachedTeacher`]: a teacher that does not run, because its outputs were saved.

use burn::prelude::*;
use burn::tensor::TensorData;

use super::{Teacher, TeacherTargets};
use crate::decoder::TokenBatch;
use crate::loss::{TeacherTokens, TopK};
use crate::top_k::{CacheHeader, TeacherCache, TopKRows};

/// A teacher's top tokens from a [`TeacherCache`], found by [`TokenBatch::rows`].
///
/// A batch whose rows are not the cache's has no targets: its loss is no number, which ends a training.
/// So check before that the cache is that of the data.
#[derive(Debug)]
pub struct CachedTeacher {
    cache: TeacherCache,
}

impl CachedTeacher {
    /// The teacher that wrote `cache`.
    pub const fn new(cache: TeacherCache) -> Self {
        Self { cache }
    }

    /// What the cache holds, and what it was made of.
    pub const fn header(&self) -> &CacheHeader {
        self.cache.header()
    }

    /// What was saved of each token of a batch, or of nothing known.
    fn rows(&self, rows: &[usize], tokens: usize) -> TopKRows {
        let k = self.cache.header().k;
        match self.cache.gather(rows) {
            Ok(found) if found.tokens.len() == tokens => found,
            _ => TopKRows {
                ids: (0..k as u32).cycle().take(tokens * k).collect(),
                log_probs: vec![f32::NAN; tokens * k],
                log_tail: vec![f32::NAN; tokens],
                target_log_prob: vec![f32::NAN; tokens],
                ..TopKRows::default()
            },
        }
    }
}

impl<B: Backend> Teacher<B> for CachedTeacher {
    fn vocab_size(&self) -> usize {
        self.cache.header().vocab_size
    }

    fn attention_layers(&self) -> Option<usize> {
        None
    }

    fn teach(&self, batch: &TokenBatch<B>, _attention_of: &[usize]) -> TeacherTargets<B> {
        let device = batch.tokens.device();
        let tokens = batch.tokens.shape().num_elements();
        let k = self.cache.header().k;
        let rows = self.rows(&batch.rows, tokens);
        let floats = |values: Vec<f32>, width: usize| {
            Tensor::from_data(TensorData::new(values, [tokens, width]), &device)
        };
        let ids: Vec<i32> = rows.ids.iter().map(|id| *id as i32).collect();
        TeacherTargets {
            tokens: TeacherTokens::TopK(TopK {
                ids: Tensor::from_data(TensorData::new(ids, [tokens, k]), &device),
                log_probs: floats(rows.log_probs, k),
                log_tail: floats(rows.log_tail, 1),
                target_log_prob: Some(floats(rows.target_log_prob, 1)),
            }),
            attention: Vec::new(),
        }
    }
}
