//! Text generation with a key/value cache.

use burn::prelude::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::{Block, KvCache, Llama};

/// How the next token is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Sampling {
    /// The likeliest.
    Greedy,
    /// At random, by its probability.
    Random {
        /// Divides the logits: below 1 bolder, above 1 wilder. Must be above 0.
        temperature: f64,
        /// Only the likeliest tokens that together have this probability are considered (nucleus
        /// sampling, Holtzman et al. 2020). 1 considers all.
        top_p: f64,
        /// The same seed gives the same text.
        seed: u64,
    },
}

/// A continuation of at most so many tokens.
#[derive(Clone, Copy, Debug)]
pub struct Generation {
    max_tokens: usize,
    sampling: Sampling,
}

impl Generation {
    /// A continuation of at most `max_tokens` tokens.
    pub const fn new(max_tokens: usize, sampling: Sampling) -> Self {
        Self {
            max_tokens,
            sampling,
        }
    }

    /// Continues `prompt`, telling each token to `go_on` until it answers `false`. The token that
    /// ended it is part of the result. An empty prompt has no continuation.
    pub fn run<B: Backend, L: Block<B>>(
        &self,
        model: &Llama<B, L>,
        prompt: &[u32],
        mut go_on: impl FnMut(u32) -> bool,
    ) -> Vec<u32> {
        let device = model.devices()[0].clone();
        let mut cache = KvCache::new(model.config().num_hidden_layers);
        let mut rng = match self.sampling {
            Sampling::Random { seed, .. } => StdRng::seed_from_u64(seed),
            Sampling::Greedy => StdRng::seed_from_u64(0),
        };
        let mut generated = Vec::new();
        let mut pending = prompt.to_vec();
        while !pending.is_empty() && generated.len() < self.max_tokens {
            let ids: Vec<i64> = pending.iter().map(|id| i64::from(*id)).collect();
            let tokens = Tensor::<B, 1, Int>::from_data(ids.as_slice(), &device).unsqueeze();
            let logits = model.continue_logits(tokens, &mut cache);
            let [_, new, _] = logits.dims();
            let last: Vec<f32> = logits.narrow(1, new - 1, 1).into_data().iter().collect();
            let token = self.sampling.choose(&last, &mut rng);
            generated.push(token);
            if !go_on(token) {
                break;
            }
            pending = vec![token];
        }
        generated
    }
}

impl Sampling {
    fn choose(self, logits: &[f32], rng: &mut StdRng) -> u32 {
        match self {
            Self::Greedy => argmax(logits),
            Self::Random {
                temperature, top_p, ..
            } => sample(logits, temperature, top_p, rng),
        }
    }
}

fn argmax(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (token, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = token;
        }
    }
    best as u32
}

fn sample(logits: &[f32], temperature: f64, top_p: f64, rng: &mut StdRng) -> u32 {
    let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut candidates: Vec<(usize, f64)> = logits
        .iter()
        .map(|logit| (f64::from(logit - highest) / temperature).exp())
        .enumerate()
        .collect();
    candidates.sort_by(|a, b| b.1.total_cmp(&a.1));
    let total: f64 = candidates.iter().map(|(_, weight)| weight).sum();

    let mut nucleus = 0.0;
    let kept = candidates
        .iter()
        .position(|(_, weight)| {
            nucleus += weight;
            nucleus >= top_p * total
        })
        .map_or(candidates.len(), |index| index + 1);

    let mut draw = rng.random::<f64>() * nucleus.min(total);
    for (token, weight) in &candidates[..kept] {
        draw -= weight;
        if draw <= 0.0 {
            return *token as u32;
        }
    }
    candidates[kept - 1].0 as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_nucleus_is_greedy_and_a_full_one_is_not() {
        let logits = [0.0, 3.0, 2.9, -5.0];
        let mut rng = StdRng::seed_from_u64(1);
        let mut seen = [0; 4];
        for _ in 0..2000 {
            assert_eq!(sample(&logits, 1.0, 1e-6, &mut rng), 1);
            seen[sample(&logits, 1.0, 1.0, &mut rng) as usize] += 1;
        }
        // Probabilities 0.026, 0.512, 0.463, 0.0002: four standard errors.
        let share = |count: i32| f64::from(count) / 2000.0;
        assert!((share(seen[1]) - 0.512).abs() < 4.0 * (0.25f64 / 2000.0).sqrt());
        assert!((share(seen[2]) - 0.463).abs() < 4.0 * (0.25f64 / 2000.0).sqrt());
    }

    #[test]
    fn a_low_temperature_is_greedy() {
        let mut rng = StdRng::seed_from_u64(1);
        assert_eq!(sample(&[0.0, 1.0, 0.9], 1e-3, 1.0, &mut rng), 1);
    }
}
