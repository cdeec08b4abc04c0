//! The tiny models in `fixtures/tiny_llama` and `fixtures/families`, and what transformers computed with them.

use std::fs;
use std::path::{Path, PathBuf};

use burn::prelude::*;
use burn_lti::decoder::TokenBatch;
use burn_lti_llama::hf;
use burn_lti_llama::model::PlainLlama;
use safetensors::SafeTensors;

use crate::numbers::int_tensor;

/// The fixtures that have weights.
pub const MODELS: [&str; 4] = ["tied", "untied_bias", "bf16", "f16"];

/// The folder of this repository's fixtures.
pub fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}

/// The folder of one tiny Llama.
pub fn model_dir(name: &str) -> PathBuf {
    fixtures().join("tiny_llama").join(name)
}

/// The tiny models of families that are computed here.
pub const FAMILIES: [&str; 18] = [
    "llama3",
    "llama_linear",
    "llama_yarn",
    "llama_dynamic",
    "mistral",
    "mistral_window",
    "ministral",
    "qwen2",
    "qwen2_window",
    "qwen3",
    "smollm3",
    "phi3",
    "phi3_partial",
    "granite",
    "olmo2",
    "olmo3",
    "gemma2",
    "gemma3",
];

/// The folder of one tiny model of a family.
pub fn family_dir(name: &str) -> PathBuf {
    fixtures().join("families").join(name)
}

/// One tiny Llama.
///
/// # Panics
///
/// If it cannot be loaded.
pub fn load<B: Backend>(name: &str, device: &B::Device) -> PlainLlama<B> {
    hf::load(&model_dir(name), device).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The tensors of a safetensors file.
pub struct TensorFile {
    path: PathBuf,
    bytes: Vec<u8>,
}

impl TensorFile {
    /// Reads a file.
    ///
    /// # Panics
    ///
    /// If it cannot be read.
    pub fn open(path: PathBuf) -> Self {
        let bytes = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Self { path, bytes }
    }

    /// The parsed file.
    ///
    /// # Panics
    ///
    /// If it is no safetensors file.
    pub fn tensors(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.bytes)
            .unwrap_or_else(|error| panic!("{}: {error}", self.path.display()))
    }

    /// Whether there is such a tensor.
    pub fn has(&self, name: &str) -> bool {
        self.tensors().tensor(name).is_ok()
    }

    fn raw<const N: usize>(&self, name: &str) -> (Vec<usize>, Vec<[u8; N]>) {
        let tensors = self.tensors();
        let view = tensors
            .tensor(name)
            .unwrap_or_else(|error| panic!("{}: {name}: {error}", self.path.display()));
        let (values, rest) = view.data().as_chunks::<N>();
        assert!(rest.is_empty(), "{name} is not made of {N} bytes a value");
        (view.shape().to_vec(), values.to_vec())
    }

    /// The axes and values of a float32 tensor.
    pub fn floats(&self, name: &str) -> (Vec<usize>, Vec<f32>) {
        let (shape, values) = self.raw(name);
        (shape, values.into_iter().map(f32::from_le_bytes).collect())
    }

    /// The axes and values of an int64 tensor.
    pub fn longs(&self, name: &str) -> (Vec<usize>, Vec<i64>) {
        let (shape, values) = self.raw(name);
        (shape, values.into_iter().map(i64::from_le_bytes).collect())
    }

    /// The axes and values of an int32 tensor.
    pub fn ints(&self, name: &str) -> (Vec<usize>, Vec<i32>) {
        let (shape, values) = self.raw(name);
        (shape, values.into_iter().map(i32::from_le_bytes).collect())
    }

    /// The axes and bits of a tensor of two bytes a value.
    pub fn halves(&self, name: &str) -> (Vec<usize>, Vec<u16>) {
        let (shape, values) = self.raw(name);
        (shape, values.into_iter().map(u16::from_le_bytes).collect())
    }
}

/// A batch of tokens without targets, for logits.
///
/// # Panics
///
/// If the three differ in shape.
pub fn batch_of<B: Backend>(
    shape: [usize; 2],
    tokens: &[i64],
    positions: &[i64],
    segments: &[i64],
    device: &B::Device,
) -> TokenBatch<B> {
    TokenBatch {
        tokens: int_tensor(tokens, shape, device),
        positions: int_tensor(positions, shape, device),
        segments: int_tensor(segments, shape, device),
        targets: Tensor::zeros(shape, device),
        mask: Tensor::zeros(shape, device),
        rows: Vec::new(),
    }
}

/// Whole sequences, one document a row.
pub fn causal_batch<B: Backend>(
    shape: [usize; 2],
    tokens: &[i64],
    device: &B::Device,
) -> TokenBatch<B> {
    let [rows, length] = shape;
    let positions: Vec<i64> = (0..rows).flat_map(|_| 0..length as i64).collect();
    batch_of(shape, tokens, &positions, &vec![1; rows * length], device)
}
