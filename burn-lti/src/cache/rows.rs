//! [`TopKRows`]: sequences and what the teacher said of them.

use super::LogProbType;

/// Rows of a cache, one after the other, each field row-major.
///
/// # Shapes
///
/// `ids` and `log_probs` are `[rows, seq_len, k]`, all others `[rows, seq_len]`, with `seq_len` and
/// `k` of the [`CacheHeader`](super::CacheHeader).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TopKRows {
    /// Input tokens.
    pub tokens: Vec<u32>,
    /// Number of each token's document in its row, from 1; 0 in the padding.
    pub segments: Vec<u32>,
    /// The token that follows each input; 0 where there is none.
    pub targets: Vec<u32>,
    /// Whether each input has a target.
    pub mask: Vec<bool>,
    /// The `k` tokens that the teacher finds likeliest to follow, the likeliest first.
    pub ids: Vec<u32>,
    /// Their log-probabilities in nats, at temperature 1, over the *whole* vocabulary.
    pub log_probs: Vec<f32>,
    /// Log of the probability of all other tokens together; negative infinity where there are none.
    pub log_tail: Vec<f32>,
    /// The log-probability of the target in nats; 0 where there is none.
    pub target_log_prob: Vec<f32>,
}

impl TopKRows {
    /// Adds the rows of `other`.
    pub(super) fn append(&mut self, mut other: Self) {
        self.tokens.append(&mut other.tokens);
        self.segments.append(&mut other.segments);
        self.targets.append(&mut other.targets);
        self.mask.append(&mut other.mask);
        self.ids.append(&mut other.ids);
        self.log_probs.append(&mut other.log_probs);
        self.log_tail.append(&mut other.log_tail);
        self.target_log_prob.append(&mut other.target_log_prob);
    }

    /// The rows as they are read back from a cache of this float type.
    pub(super) fn rounded(&self, log_prob_type: LogProbType) -> Self {
        let mut rounded = self.clone();
        for value in &mut rounded.log_probs {
            *value = log_prob_type.round(*value);
        }
        rounded
    }
}
