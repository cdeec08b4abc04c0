//! How the next token is chosen.

use std::cmp::Ordering;

use burn_lti::kernels::softmax_weights;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::error::GenerationError;

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

impl Sampling {
    /// [`Random`](Self::Random), its values checked.
    ///
    /// # Errors
    ///
    /// - [`GenerationError::Temperature`]: `temperature` is not a number above 0.
    /// - [`GenerationError::TopP`]: `top_p` is not above 0 and at most 1.
    pub fn random(temperature: f64, top_p: f64, seed: u64) -> Result<Self, GenerationError> {
        if !(temperature.is_finite() && temperature > 0.0) {
            return Err(GenerationError::Temperature { temperature });
        }
        if !(top_p > 0.0 && top_p <= 1.0) {
            return Err(GenerationError::TopP { top_p });
        }
        Ok(Self::Random {
            temperature,
            top_p,
            seed,
        })
    }

    /// The random numbers of one row, the same whatever rows are generated beside it.
    pub(super) fn rng(self, row: u64) -> StdRng {
        let seed = match self {
            Self::Greedy => 0,
            Self::Random { seed, .. } => seed,
        };
        // Far apart, so that row 1 of a seed is not row 0 of the next; row 0 has the seed itself.
        StdRng::seed_from_u64(seed.wrapping_add(row.wrapping_mul(0x9E37_79B9_7F4A_7C15)))
    }

    /// The token chosen by these logits, `[vocab]`; `None` where one of them, or the highest, is no
    /// finite number. `room` is memory to be used again.
    pub(super) fn choose(
        self,
        logits: &[f32],
        rng: &mut StdRng,
        room: &mut Vec<f32>,
    ) -> Option<u32> {
        match self {
            Self::Greedy => Some(first(logits, highest(logits)?)),
            Self::Random {
                temperature, top_p, ..
            } => {
                let total = softmax_weights(logits, temperature, room)?;
                Some(sample(room, total, top_p, rng))
            }
        }
    }
}

/// The highest logit. A single one that is not a number makes the result so; minus infinity is a
/// token that cannot be.
fn highest(logits: &[f32]) -> Option<f32> {
    let highest = logits.iter().fold(f32::NEG_INFINITY, |highest, logit| {
        match *logit > highest || logit.is_nan() {
            true => *logit,
            false => highest,
        }
    });
    Some(highest).filter(|highest| highest.is_finite())
}

fn first(logits: &[f32], wanted: f32) -> u32 {
    let index = logits.iter().position(|logit| *logit == wanted);
    index.unwrap_or(0) as u32
}

/// A token of these weights, whose sum is `total`. Tokens are gone through in the order of their ids: what a
/// random number means does not depend on how the nucleus was found.
fn sample(weights: &[f32], total: f64, top_p: f64, rng: &mut StdRng) -> u32 {
    if top_p >= 1.0 {
        let all = weighted(weights).filter(|token| token.weight > 0.0);
        return drawn(all, total, rng);
    }
    let nucleus = nucleus(weights, total, top_p);
    let weight = nucleus.iter().map(|token| token.weight).sum();
    drawn(nucleus.into_iter(), weight, rng)
}

fn drawn(tokens: impl Iterator<Item = Weighted>, weight: f64, rng: &mut StdRng) -> u32 {
    let mut draw = rng.random::<f64>() * weight;
    let mut drawn = 0;
    for token in tokens {
        drawn = token.id;
        draw -= token.weight;
        if draw < 0.0 {
            break;
        }
    }
    drawn
}

/// A token and its probability, but for a factor common to all.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Weighted {
    weight: f64,
    id: u32,
}

impl Weighted {
    /// Heavier ones first; of equals, the one with the lower id.
    fn order(&self, other: &Self) -> Ordering {
        let by_weight = other.weight.total_cmp(&self.weight);
        by_weight.then(self.id.cmp(&other.id))
    }
}

/// Tokens that are looked at together: most blocks have none that can be in a nucleus.
const BLOCK: usize = 64;

/// The fewest of the likeliest tokens that together have a probability, in the order of their ids.
///
/// Never sorts the vocabulary: time grows with its size, and no faster. `weights [vocab]`, of which the highest
/// is 1, and their sum.
fn nucleus(weights: &[f32], total: f64, top_p: f64) -> Vec<Weighted> {
    // All tokens that are lighter than this weigh less than what is left out, so none of them is in. That
    // leaves hundreds of tens of thousands, if the model knows anything.
    let lightest = ((1.0 - top_p) * total / weights.len() as f64).min(1.0);
    let mut candidates = Vec::new();
    for (block, from) in weights.chunks(BLOCK).zip((0..).step_by(BLOCK)) {
        let heaviest = block.iter().copied().fold(0.0, f32::max);
        if f64::from(heaviest) >= lightest {
            let tokens = weighted(block).filter(|token| token.weight >= lightest);
            candidates.extend(tokens.map(|token| Weighted {
                id: token.id + from,
                ..token
            }));
        }
    }
    let goal = top_p * total;
    // The first `begin` weigh less than the goal, the first `end` do not; both are the heaviest of all.
    // Halving what is between them takes half as long each time.
    let (mut begin, mut end) = (0, candidates.len());
    let mut before = 0.0;
    while end - begin > 1 {
        let half = (end - begin) / 2;
        let between = &mut candidates[begin..end];
        between.select_nth_unstable_by(half, Weighted::order);
        let heavier: f64 = between[..half].iter().map(|token| token.weight).sum();
        match before + heavier >= goal {
            true => end = begin + half,
            false => {
                begin += half;
                before += heavier;
            }
        }
    }
    candidates.truncate(end);
    candidates.sort_unstable_by_key(|token| token.id);
    candidates
}

fn weighted(weights: &[f32]) -> impl Iterator<Item = Weighted> {
    let weighted = |(weight, id): (&f32, u32)| Weighted {
        weight: f64::from(*weight),
        id,
    };
    weights.iter().zip(0..).map(weighted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choose(sampling: Sampling, logits: &[f32], rng: &mut StdRng) -> Option<u32> {
        sampling.choose(logits, rng, &mut Vec::new())
    }

    fn random(temperature: f64, top_p: f64) -> Sampling {
        Sampling::random(temperature, top_p, 0).unwrap()
    }

    #[test]
    fn a_small_nucleus_is_greedy_and_a_full_one_is_not() {
        let logits = [0.0, 3.0, 2.9, -5.0];
        let mut rng = StdRng::seed_from_u64(1);
        let mut seen = [0; 4];
        for _ in 0..2000 {
            assert_eq!(choose(random(1.0, 1e-6), &logits, &mut rng), Some(1));
            let token = choose(random(1.0, 1.0), &logits, &mut rng).unwrap();
            seen[token as usize] += 1;
        }
        // Probabilities 0.026, 0.512, 0.463, 0.0002: four standard errors.
        let share = |count: i32| f64::from(count) / 2000.0;
        assert!((share(seen[1]) - 0.512).abs() < 4.0 * (0.25f64 / 2000.0).sqrt());
        assert!((share(seen[2]) - 0.463).abs() < 4.0 * (0.25f64 / 2000.0).sqrt());
    }

    #[test]
    fn a_low_temperature_is_greedy() {
        let mut rng = StdRng::seed_from_u64(1);
        let token = choose(random(1e-3, 1.0), &[0.0, 1.0, 0.9], &mut rng);
        assert_eq!(token, Some(1));
    }

    fn sum_of(weights: &[f32]) -> f64 {
        weights.iter().map(|weight| f64::from(*weight)).sum()
    }

    /// The nucleus as its definition reads, by sorting everything.
    fn by_sorting(weights: &[f32], top_p: f64) -> Vec<u32> {
        let mut all: Vec<Weighted> = weighted(weights).collect();
        all.sort_by(Weighted::order);
        let goal = top_p * sum_of(weights);
        let mut sum = 0.0;
        let enough = all.iter().position(|token| {
            sum += token.weight;
            sum >= goal
        });
        let kept = enough.map_or(all.len(), |index| index + 1);
        let mut ids: Vec<u32> = all[..kept].iter().map(|token| token.id).collect();
        ids.sort_unstable();
        ids
    }

    /// Weights are multiples of 2^-12, so that their sums are exact in any order, and many are equal.
    #[test]
    fn the_nucleus_is_the_fewest_of_the_likeliest() {
        let mut rng = StdRng::seed_from_u64(5);
        for round in 0..400 {
            let vocab = rng.random_range(1..300);
            let power = round % 6;
            let mut weights: Vec<f32> = (0..vocab)
                .map(|_| {
                    let weight = rng.random::<f32>().powi(power);
                    (weight * 4096.0).floor() / 4096.0
                })
                .collect();
            weights[rng.random_range(0..vocab)] = 1.0;
            for top_p in [1e-300, 0.125, 0.5, 0.9375, 0.9990234375] {
                let found = nucleus(&weights, sum_of(&weights), top_p);
                let ids: Vec<u32> = found.iter().map(|token| token.id).collect();
                assert_eq!(ids, by_sorting(&weights, top_p), "{top_p} of {weights:?}");
            }
        }
    }

    /// Within the nucleus every token is drawn by its share of it, and no token outside.
    #[test]
    fn the_nucleus_keeps_its_proportions() {
        // Probabilities 0.5, 0.3, 0.15 and 0.05: three are 95 %.
        let logits = [0.05f32, 0.5, 0.15, 0.3].map(f32::ln);
        let mut rng = StdRng::seed_from_u64(3);
        let draws = 20_000;
        let mut seen = [0; 4];
        for _ in 0..draws {
            seen[choose(random(1.0, 0.9), &logits, &mut rng).unwrap() as usize] += 1;
        }
        assert_eq!(seen[0], 0);
        for (token, probability) in [(1, 0.5), (2, 0.15), (3, 0.3)] {
            let expected = probability / 0.95;
            let error = (expected * (1.0f64 - expected) / f64::from(draws)).sqrt();
            let share = f64::from(seen[token]) / f64::from(draws);
            assert!((share - expected).abs() < 4.0 * error, "{token}: {share}");
        }
    }

    #[test]
    fn what_cannot_be_is_not_drawn() {
        let logits = [f32::NEG_INFINITY, 0.0, f32::NEG_INFINITY];
        for seed in 0..100 {
            let mut rng = StdRng::seed_from_u64(seed);
            assert_eq!(choose(random(1.0, 1.0), &logits, &mut rng), Some(1));
            assert_eq!(choose(random(5.0, 0.9), &logits, &mut rng), Some(1));
        }
    }

    #[test]
    fn logits_that_are_no_numbers_choose_nothing() {
        let mut rng = StdRng::seed_from_u64(0);
        let infinite = [f32::NEG_INFINITY; 2];
        for logits in [
            [0.0, f32::NAN],
            [f32::NAN, 0.0],
            [f32::INFINITY, 0.0],
            infinite,
        ] {
            for sampling in [Sampling::Greedy, random(1.0, 1.0), random(1.0, 0.5)] {
                assert_eq!(choose(sampling, &logits, &mut rng), None);
            }
        }
    }

    #[test]
    fn rows_have_random_numbers_of_their_own() {
        let numbers = |seed, row| random_of(seed).rng(row).random::<u64>();
        let mut all: Vec<u64> = (0..20)
            .flat_map(|seed| (0..20).map(move |row| numbers(seed, row)))
            .collect();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 400);
        assert_eq!(numbers(7, 3), numbers(7, 3));
    }

    fn random_of(seed: u64) -> Sampling {
        Sampling::random(1.0, 1.0, seed).unwrap()
    }

    #[test]
    fn values_out_of_range_are_errors() {
        for temperature in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            let error = Sampling::random(temperature, 1.0, 0).unwrap_err();
            assert!(matches!(error, GenerationError::Temperature { .. }));
        }
        for top_p in [0.0, -0.5, 1.5, f64::NAN] {
            let error = Sampling::random(1.0, top_p, 0).unwrap_err();
            assert!(matches!(error, GenerationError::TopP { .. }));
        }
    }
}
