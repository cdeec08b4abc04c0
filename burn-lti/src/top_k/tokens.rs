//! A teacher's whole distributions become its top tokens.

use rayon::prelude::*;

/// The `k` likeliest tokens of each of some positions, and how likely the rest is.
///
/// # Shapes
///
/// `ids` and `log_probs` are `[positions, k]`, the others `[positions]`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TopTokens {
    /// The tokens, the likeliest first; of two alike the one with the lower id.
    pub ids: Vec<u32>,
    /// Their log-probabilities in nats.
    pub log_probs: Vec<f32>,
    /// Log of the probability of all others together; negative infinity where there are none.
    pub log_tail: Vec<f32>,
    /// The log-probability of the target in nats.
    pub target_log_prob: Vec<f32>,
}

impl TopTokens {
    /// Chooses them from `log_probs [positions, vocab]`, log-probabilities of whole distributions, and
    /// `targets [positions]`.
    ///
    /// The tail is summed up over all other tokens in float64. It is not the remainder of the `k`, which
    /// would be nothing but rounding where they are nearly all.
    ///
    /// # Panics
    ///
    /// If `k` is 0 or above `vocab`, or a target is not below `vocab`.
    pub fn of(log_probs: &[f32], vocab: usize, targets: &[u32], k: usize) -> Self {
        assert!(k > 0 && k <= vocab, "{k} of {vocab} tokens");
        let positions: Vec<Position> = log_probs
            .par_chunks_exact(vocab)
            .zip(targets)
            .map(|(row, target)| Position::of(row, *target, k))
            .collect();
        let mut all = Self::default();
        for position in positions {
            all.ids.extend(position.ids);
            all.log_probs.extend(position.log_probs);
            all.log_tail.push(position.log_tail);
            all.target_log_prob.push(position.target_log_prob);
        }
        all
    }
}

struct Position {
    ids: Vec<u32>,
    log_probs: Vec<f32>,
    log_tail: f32,
    target_log_prob: f32,
}

impl Position {
    fn of(row: &[f32], target: u32, k: usize) -> Self {
        let likelier = |a: &u32, b: &u32| {
            let (p, q) = (row[*a as usize], row[*b as usize]);
            q.total_cmp(&p).then(a.cmp(b))
        };
        let mut ids: Vec<u32> = (0..row.len() as u32).collect();
        if k < ids.len() {
            ids.select_nth_unstable_by(k, likelier);
        }
        let rest = ids.split_off(k);
        ids.sort_unstable_by(likelier);
        let shares = rest.iter().map(|id| f64::from(row[*id as usize]).exp());
        let tail: f64 = shares.sum();
        Self {
            // A rounding may lift the logarithm of a certainty above 0.
            log_probs: ids.iter().map(|id| row[*id as usize].min(0.0)).collect(),
            ids,
            log_tail: tail.ln() as f32,
            target_log_prob: row[target as usize].min(0.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_likeliest_come_first_and_the_rest_is_the_tail() {
        let probabilities: [f32; 5] = [0.1, 0.4, 0.05, 0.4, 0.05];
        let log_probs = probabilities.map(f32::ln);
        let top = TopTokens::of(&log_probs, 5, &[2], 3);
        assert_eq!(top.ids, [1, 3, 0]);
        assert_eq!(top.log_probs, [log_probs[1], log_probs[3], log_probs[0]]);
        assert!((top.log_tail[0] - 0.1_f32.ln()).abs() < 1e-6);
        assert_eq!(top.target_log_prob, [log_probs[2]]);
    }

    #[test]
    fn all_tokens_leave_no_tail() {
        let log_probs = [0.5_f32.ln(), 0.5_f32.ln(), 0.0, f32::NEG_INFINITY];
        let top = TopTokens::of(&log_probs, 2, &[0, 1], 2);
        assert_eq!(top.ids, [0, 1, 0, 1]);
        assert_eq!(top.log_tail, [f32::NEG_INFINITY; 2]);
    }
}
