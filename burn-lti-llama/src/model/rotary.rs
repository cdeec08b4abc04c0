//! Rotary positions in the half-split convention of Hugging Face.

use burn::prelude::*;
use burn::tensor::DType;
use burn_lti::geometry::own_pairs;
use burn_lti::kernels::{RotaryTable, apply_rotary};

use crate::config::{LlamaConfig, Rope};

/// Cosines and sines of every token's position: made once a forward pass, used by all layers.
///
/// A head's features `i` and `i + head_dim / 2` are one pair, turned by the position times the frequency of
/// the pair ([`Rope`]), in the pairing of Hugging Face's `rotate_half`. Burn's own `RotaryEncoding` pairs `2i` and `2i + 1` instead and would be silently wrong on these weights.
#[derive(Clone, Debug)]
pub struct Rotary<B: Backend> {
    /// With one over the root of the head size in them.
    queries: RotaryTable<B>,
    keys: RotaryTable<B>,
}

impl<B: Backend> Rotary<B> {
    /// The tables for `positions [batch, tokens]` and heads of this size; of layers without a rotary embedding
    /// if there is none.
    pub fn new(
        positions: &Tensor<B, 2, Int>,
        head_dim: usize,
        rope: Option<&Rope>,
        dtype: DType,
    ) -> Self {
        let device = positions.device();
        let [batch, tokens] = positions.dims();
        let half = head_dim / 2;
        let frequencies = match rope {
            Some(rope) => rope.frequencies(head_dim),
            None => vec![0.0; half],
        };
        let frequencies: Vec<f32> = (0..head_dim)
            .map(|feature| frequencies[feature % half] as f32)
            .collect();
        let longer = rope.map_or(1.0, Rope::attention_factor);
        let frequencies = Tensor::<B, 1>::from_floats(frequencies.as_slice(), &device);
        let angles = positions.clone().float().reshape([batch * tokens, 1])
            * frequencies.reshape([1, head_dim]);
        // Angles of thousands of radians need float32, whatever their cosines become.
        let (cos, sin) = (angles.clone().cos(), angles.sin());
        let table = |scale: f64| {
            RotaryTable::new(
                (cos.clone() * scale).cast(dtype),
                (sin.clone() * scale).cast(dtype),
            )
        };
        Self {
            queries: table(longer / (head_dim as f64).sqrt()),
            keys: table(longer),
        }
    }

    /// Turns queries `[batch * tokens, heads * head_dim]` by their tokens' positions, and divides them by
    /// the root of the head size, so that their products with keys are scores.
    pub fn scaled_queries(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        apply_rotary(x, &self.queries)
    }

    /// Turns keys `[batch * tokens, kv_heads * head_dim]` by their tokens' positions.
    pub fn turn_keys(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        apply_rotary(x, &self.keys)
    }
}

/// Those of all layers.
#[derive(Clone, Debug)]
pub(super) struct Rotaries<B: Backend> {
    different: Vec<Rotary<B>>,
    /// Which of them each layer has.
    of_layers: Vec<usize>,
}

impl<B: Backend> Rotaries<B> {
    /// Those that a model has, for `positions [batch, tokens]`.
    pub(super) fn new(positions: &Tensor<B, 2, Int>, config: &LlamaConfig, dtype: DType) -> Self {
        let mut ropes: Vec<Option<&Rope>> = Vec::new();
        let of_layers = (0..config.num_hidden_layers).map(|layer| {
            let rope = config.rope_of(layer);
            ropes
                .iter()
                .position(|one| *one == rope)
                .unwrap_or_else(|| {
                    ropes.push(rope);
                    ropes.len() - 1
                })
        });
        let of_layers = of_layers.collect();
        let table = |rope| Rotary::new(positions, config.head_dim, rope, dtype);
        Self {
            different: ropes.into_iter().map(table).collect(),
            of_layers,
        }
    }

    /// That of a layer.
    pub(super) fn of(&self, layer: usize) -> &Rotary<B> {
        &self.different[self.of_layers[layer]]
    }
}

/// For each feature of a head of `size` features, of which `turning[1]` pairs turn, the feature of a head of `of`
/// features, of which `turning[0]` pairs do, that turns at the same frequency, or at the nearest. No feature is used
/// twice; `None` where none is left, in a larger head.
pub(super) fn rotary_features(of: usize, size: usize, turning: [usize; 2]) -> Vec<Option<usize>> {
    let [from, to] = turning;
    let still = own_pairs(of / 2 - from, size / 2 - to).into_iter();
    let still = still.map(|pair| pair.map(|pair| from + pair));
    let pairs: Vec<Option<usize>> = own_pairs(from, to).into_iter().chain(still).collect();
    let second = pairs.iter().map(|pair| pair.map(|pair| pair + of / 2));
    pairs.iter().copied().chain(second).collect()
}

#[cfg(test)]
mod tests {
    use super::rotary_features;

    #[test]
    fn equal_heads_keep_their_features() {
        let same: Vec<_> = (0..8).map(Some).collect();
        assert_eq!(rotary_features(8, 8, [4, 4]), same);
        assert_eq!(rotary_features(8, 8, [1, 1]), same);
    }

    #[test]
    fn half_a_head_keeps_every_other_pair() {
        let half = [Some(0), Some(2), Some(4), Some(6)];
        assert_eq!(rotary_features(8, 4, [4, 2]), half);
        assert_eq!(
            rotary_features(4, 8, [2, 4]),
            [Some(0), None, Some(1), None, Some(2), None, Some(3), None]
        );
    }

    #[test]
    fn what_turns_begins_as_what_turns() {
        // Two pairs of six and one of three turn.
        let features = rotary_features(12, 6, [2, 1]);
        assert_eq!(
            features,
            [Some(0), Some(2), Some(4), Some(6), Some(8), Some(10)]
        );
        // One of four, and three of eight.
        let features = rotary_features(8, 16, [1, 3]);
        let first = [Some(0), None, None, Some(1), None, Some(2), Some(3), None];
        let first: Vec<_> = first.into_iter().collect();
        assert_eq!(features[..8], first[..8]);
    }

    #[test]
    fn no_feature_is_used_twice_and_pairs_stay_together() {
        for of in (2..=64).step_by(2) {
            for size in (2..=64).step_by(2) {
                let features = rotary_features(of, size, [of / 2, size / 2]);
                let mut used: Vec<usize> = features.iter().flatten().copied().collect();
                assert_eq!(used.len(), of.min(size));
                used.sort_unstable();
                used.dedup();
                assert_eq!(used.len(), of.min(size), "{of} {size}");
                for pair in 0..size / 2 {
                    let second = features[pair].map(|feature| feature + of / 2);
                    assert_eq!(features[pair + size / 2], second);
                    assert!(features[pair].is_none_or(|feature| feature < of / 2));
                }
            }
        }
    }
}
