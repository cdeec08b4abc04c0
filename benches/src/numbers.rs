//! Numbers that other programs can make too: `peers/common.py` makes the same.

use burn::prelude::*;
use burn::tensor::TensorData;
use burn_lti::decoder::TokenBatch;

/// The golden ratio in 64 bits, by which the counter of splitmix64 goes on.
const STEP: u64 = 0x9E37_79B9_7F4A_7C15;

/// Number `index` of the sequence `seed`, by splitmix64 (Steele, Lea and Flood 2014).
pub fn bits(seed: u64, index: u64) -> u64 {
    let counter = index.wrapping_add(seed << 40).wrapping_add(1);
    let z = counter.wrapping_mul(STEP);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// So many numbers, evenly spread around 0 with this standard deviation.
pub fn uniform_values(seed: u64, count: usize, std: f64) -> Vec<f32> {
    let scale = std * 3.0_f64.sqrt();
    (0..count as u64)
        .map(|index| {
            let part = (bits(seed, index) >> 40) as f64 / f64::from(1 << 24);
            (scale * (2.0 * part - 1.0)) as f32
        })
        .collect()
}

/// A tensor of [`uniform_values`].
pub fn uniform<B: Backend, const D: usize>(
    seed: u64,
    shape: [usize; D],
    std: f64,
    device: &B::Device,
) -> Tensor<B, D> {
    let values = uniform_values(seed, shape.iter().product(), std);
    Tensor::from_data(TensorData::new(values, shape), device)
}

/// Tokens and, by another sequence, the tokens to guess; a document a row.
pub fn batch<B: Backend>(
    rows: usize,
    tokens: usize,
    vocab: usize,
    device: &B::Device,
) -> TokenBatch<B> {
    let drawn = |seed| {
        let values =
            (0..(rows * tokens) as u64).map(|index| (bits(seed, index) % vocab as u64) as i64);
        let data = TensorData::new(values.collect::<Vec<i64>>(), [rows, tokens]);
        Tensor::<B, 2, Int>::from_data(data, device)
    };
    TokenBatch {
        tokens: drawn(1),
        positions: Tensor::arange(0..tokens as i64, device)
            .unsqueeze::<2>()
            .expand([rows, tokens]),
        segments: Tensor::ones([rows, tokens], device),
        targets: drawn(2),
        mask: Tensor::ones([rows, tokens], device),
        rows: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The values of `python3 -m unittest` in `peers/common.py`'s own test.
    #[test]
    fn the_numbers_are_those_of_the_peers() {
        assert_eq!(bits(0, 0), 0xE220_A839_7B1D_CDAF);
        let values = uniform_values(7, 100_000, 2.0);
        let mean = values.iter().sum::<f32>() / values.len() as f32;
        let square = values.iter().map(|value| value * value).sum::<f32>() / values.len() as f32;
        // A mean of so many is off by its standard deviation over their root: 0.006.
        assert!(mean.abs() < 0.03 && (square.sqrt() - 2.0).abs() < 0.03);
    }
}
