//! Rotary positions in the half-split convention of Hugging Face's Llama.

use burn::prelude::*;
use burn::tensor::{DType, TensorData};
use burn_lti::dense::HeadGrid;

/// Cosines and sines of every token's position: made once a forward pass, used by all layers.
///
/// A head's features `i` and `i + head_dim / 2` are one pair, turned by `position * theta^(-2i /
/// head_dim)` (Su et al. 2021, in the pairing of Hugging Face's `rotate_half`). Burn's own
/// `RotaryEncoding` pairs `2i` and `2i + 1` instead and would be silently wrong on these weights.
#[derive(Clone, Debug)]
pub struct Rotary<B: Backend> {
    query: Tables<B>,
    key: Tables<B>,
    /// `[head_dim, head_dim]`: sends `(first, second)` to `(-second, first)`. A product with so
    /// small a matrix is cheaper on every backend than cutting halves out and joining them again.
    quarter_turn: Tensor<B, 2>,
}

/// Tables as wide as the projection they turn, so that turning it is plain element-wise work. Those of the
/// queries have one over the root of the head size in them.
#[derive(Clone, Debug)]
struct Tables<B: Backend> {
    /// `[batch * tokens, heads * head_dim]`
    cos: Tensor<B, 2>,
    /// `[batch * tokens, heads * head_dim]`
    sin: Tensor<B, 2>,
}

impl<B: Backend> Rotary<B> {
    /// The tables for `positions [batch, tokens]` and these grids, which share their head size.
    pub fn new(
        positions: &Tensor<B, 2, Int>,
        query: HeadGrid,
        key_value: HeadGrid,
        theta: f64,
        dtype: DType,
    ) -> Self {
        let device = positions.device();
        let [batch, tokens] = positions.dims();
        let size = query.head_dim;
        let half = size / 2;
        let frequencies: Vec<f32> = (0..size)
            .map(|feature| theta.powf(-(2.0 * (feature % half) as f64) / size as f64) as f32)
            .collect();
        let frequencies = Tensor::<B, 1>::from_floats(frequencies.as_slice(), &device);
        let angles =
            positions.clone().float().reshape([batch * tokens, 1]) * frequencies.reshape([1, size]);
        // Angles of thousands of radians need float32, whatever their cosines become.
        let (cos, sin) = (angles.clone().cos(), angles.sin());
        let tables = |grid: HeadGrid, scale: f64| Tables {
            cos: (cos.clone() * scale).cast(dtype).repeat_dim(1, grid.heads),
            sin: (sin.clone() * scale).cast(dtype).repeat_dim(1, grid.heads),
        };
        Self {
            query: tables(query, 1.0 / (size as f64).sqrt()),
            key: tables(key_value, 1.0),
            quarter_turn: quarter_turn(size, &device).cast(dtype),
        }
    }

    /// Turns queries `[batch * tokens, heads * head_dim]` by their tokens' positions, and divides them by
    /// the root of the head size, so that their products with keys are scores.
    pub fn scaled_queries(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        self.turn(x, &self.query)
    }

    /// Turns keys `[batch * tokens, kv_heads * head_dim]` by their tokens' positions.
    pub fn turn_keys(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        self.turn(x, &self.key)
    }

    fn turn(&self, x: Tensor<B, 2>, tables: &Tables<B>) -> Tensor<B, 2> {
        let [rows, width] = x.dims();
        let [size, _] = self.quarter_turn.dims();
        let turned = x
            .clone()
            .reshape([rows * width / size, size])
            .matmul(self.quarter_turn.clone())
            .reshape([rows, width]);
        x * tables.cos.clone() + turned * tables.sin.clone()
    }
}

fn quarter_turn<B: Backend>(size: usize, device: &B::Device) -> Tensor<B, 2> {
    let half = size / 2;
    let mut matrix = vec![0.0f32; size * size];
    for feature in 0..half {
        matrix[(feature + half) * size + feature] = -1.0;
        matrix[feature * size + feature + half] = 1.0;
    }
    Tensor::from_data(TensorData::new(matrix, [size, size]), device)
}

/// For each feature of a head of `size` features, the feature of a head of `of` features that turns at the
/// same frequency, or at the nearest: pair `i` of `size / 2` turns by `theta^(-2i / size)`, so that the
/// pair `i * of / size` is the same. No feature is used twice; `None` where none is left, in a larger head.
pub(super) fn rotary_features(of: usize, size: usize) -> Vec<Option<usize>> {
    let (from, to) = (of / 2, size / 2);
    let mut pairs = vec![None; to];
    if to <= from {
        for (pair, source) in pairs.iter_mut().enumerate() {
            // To the nearest: a step from pair to pair is at least one, so none comes twice.
            *source = Some((2 * pair * from + to) / (2 * to));
        }
    } else {
        for source in 0..from {
            pairs[(2 * source * to + from) / (2 * from)] = Some(source);
        }
    }
    let second = pairs.iter().map(|pair| pair.map(|pair| pair + from));
    pairs.iter().copied().chain(second).collect()
}

#[cfg(test)]
mod tests {
    use super::rotary_features;

    #[test]
    fn equal_heads_keep_their_features() {
        let same: Vec<_> = (0..8).map(Some).collect();
        assert_eq!(rotary_features(8, 8), same);
    }

    #[test]
    fn half_a_head_keeps_every_other_pair() {
        assert_eq!(rotary_features(8, 4), [Some(0), Some(2), Some(4), Some(6)]);
        assert_eq!(
            rotary_features(4, 8),
            [Some(0), None, Some(1), None, Some(2), None, Some(3), None]
        );
    }

    #[test]
    fn no_feature_is_used_twice_and_pairs_stay_together() {
        for of in (2..=64).step_by(2) {
            for size in (2..=64).step_by(2) {
                let features = rotary_features(of, size);
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
