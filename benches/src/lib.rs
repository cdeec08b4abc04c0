//! What the benches share: random tensors and a batch.

use burn::backend::Autodiff;
use burn::prelude::*;
use burn::tensor::Distribution;
use burn_lti::decoder::TokenBatch;

/// The autodiff backends that are measured.
pub type FlexTrain = Autodiff<burn::backend::Flex>;
/// The autodiff backends that are measured.
pub type NdArrayTrain = Autodiff<burn::backend::NdArray>;

/// Normal numbers of this standard deviation.
pub fn normal<B: Backend, const D: usize>(
    shape: [usize; D],
    std: f64,
    device: &B::Device,
) -> Tensor<B, D> {
    Tensor::random(shape, Distribution::Normal(0.0, std), device)
}

/// Random tokens, a document a row.
pub fn batch<B: Backend>(
    rows: usize,
    tokens: usize,
    vocab: usize,
    device: &B::Device,
) -> TokenBatch<B> {
    let random = || {
        Tensor::<B, 2>::random(
            [rows, tokens],
            Distribution::Uniform(0.0, vocab as f64),
            device,
        )
        .int()
    };
    TokenBatch {
        tokens: random(),
        positions: Tensor::arange(0..tokens as i64, device)
            .unsqueeze::<2>()
            .expand([rows, tokens]),
        segments: Tensor::ones([rows, tokens], device),
        targets: random(),
        mask: Tensor::ones([rows, tokens], device),
        rows: Vec::new(),
    }
}
