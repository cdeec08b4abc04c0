//! [`TopKRows`]: sequences and the teacher's distributions on them.

use std::fmt;

use half::f16;
use serde::{Deserialize, Serialize};

/// The float type in which log-probabilities are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LogProbType {
    /// `float32`.
    #[serde(rename = "float32")]
    F32,
    /// `float16`: IEEE half precision. See [what it costs](super#half-precision).
    #[serde(rename = "float16")]
    F16,
}

impl LogProbType {
    /// The name, as in `index.json`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::F16 => "float16",
        }
    }

    /// The number of this type that is nearest.
    pub(super) fn round(self, value: f32) -> f32 {
        match self {
            Self::F32 => value,
            Self::F16 => f16::from_f32(value).to_f32(),
        }
    }

    /// How far `value`, a number of this type, can be from what was rounded to it: half a unit in the
    /// last place, which in float16 is 2^-24 and no less below 2^-14.
    pub(super) fn rounding(self, value: f32) -> f64 {
        let value = f64::from(value.abs());
        match self {
            Self::F32 => value * f64::from(f32::EPSILON) / 2.0,
            Self::F16 => f64::max(value / 2048.0, f64::exp2(-25.0)),
        }
    }
}

impl fmt::Display for LogProbType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

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

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};
    use serde_json::json;

    use super::*;

    #[test]
    fn no_number_is_rounded_further_than_said() {
        let mut rng = StdRng::seed_from_u64(0);
        for _ in 0..10_000 {
            let value = -f32::exp2(rng.random_range(-40.0..15.0));
            for kind in [LogProbType::F32, LogProbType::F16] {
                let rounded = kind.round(value);
                let moved = f64::abs(f64::from(rounded) - f64::from(value));
                assert!(
                    moved <= kind.rounding(rounded),
                    "{value} to {rounded} in {kind}"
                );
            }
        }
        // A number half-way between two of float16, and the least above 0.
        let half_way = -(1.0 + f32::exp2(-11.0));
        assert_eq!(LogProbType::F16.round(half_way), -1.0);
        assert_eq!(LogProbType::F16.rounding(-1.0), f64::exp2(-11.0));
        assert_eq!(LogProbType::F16.round(-f32::exp2(-25.0)), 0.0);
    }

    #[test]
    fn float_types_are_named_in_the_index() {
        for kind in [LogProbType::F32, LogProbType::F16] {
            assert_eq!(serde_json::to_value(kind).unwrap(), json!(kind.name()));
        }
    }
}
