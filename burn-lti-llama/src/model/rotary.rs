//! Rotary positions in the half-split convention of Hugging Face's Llama.

use burn::prelude::*;

/// Cosines and sines of every token's position: made once a forward pass, used by all layers.
///
/// A head's features `i` and `i + head_dim / 2` are one pair, turned by `position * theta^(-2i /
/// head_dim)` (Su et al. 2021, in the pairing of Hugging Face's `rotate_half`). Burn's own
/// `RotaryEncoding` pairs `2i` and `2i + 1` instead and would be silently wrong on these weights.
#[derive(Clone, Debug)]
pub struct Rotary<B: Backend> {
    /// `[batch, 1, tokens, head_dim / 2]`
    cos: Tensor<B, 4>,
    /// `[batch, 1, tokens, head_dim / 2]`
    sin: Tensor<B, 4>,
}

impl<B: Backend> Rotary<B> {
    /// The tables for `positions [batch, tokens]`.
    pub fn new(positions: &Tensor<B, 2, Int>, head_dim: usize, theta: f64) -> Self {
        let [batch, tokens] = positions.dims();
        let half = head_dim / 2;
        let frequencies: Vec<f32> = (0..half)
            .map(|i| theta.powf(-(2.0 * i as f64) / head_dim as f64) as f32)
            .collect();
        let frequencies = Tensor::<B, 1>::from_floats(frequencies.as_slice(), &positions.device());
        let angles = positions.clone().float().reshape([batch, 1, tokens, 1])
            * frequencies.reshape([1, 1, 1, half]);
        Self {
            cos: angles.clone().cos(),
            sin: angles.sin(),
        }
    }

    /// Turns `x [batch, heads, tokens, head_dim]` by its tokens' positions.
    pub fn apply(&self, x: Tensor<B, 4>) -> Tensor<B, 4> {
        let half = x.dims()[3] / 2;
        let first = x.clone().narrow(3, 0, half);
        let second = x.narrow(3, half, half);
        Tensor::cat(
            vec![
                first.clone() * self.cos.clone() - second.clone() * self.sin.clone(),
                second * self.cos.clone() + first * self.sin.clone(),
            ],
            3,
        )
    }
}
