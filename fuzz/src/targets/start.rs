//! A calculated start, whose hash is right: what the hash does not keep out.

use burn::backend::Flex;
use burn::prelude::*;
use burn::tensor::DType;
use burn_lti::calibration::{CalibratedStart, FittedOn, HeadChoice, LayerReport};
use burn_lti::files::{TensorFile, sha256};
use burn_lti::map::MapKind;
use burn_lti::tensors::TensorSet;

use super::{folder, more_seeds, weights, write};
use crate::Target;
use crate::memory::BOUND;

type Start = CalibratedStart<Flex>;

/// `start.safetensors`. One that is read is written, and read again the same.
pub fn start() -> Target {
    let dir = folder();
    let path = dir.path().join("start.safetensors");
    some_start().save(&path).expect("a start");
    let seed = std::fs::read(&path).expect("it was written");
    Target {
        seeds: [vec![seed], more_seeds("start")].concat(),
        words: weights::WORDS,
        bound: BOUND,
        check: Box::new(move |bytes| {
            let _kept = &dir;
            write(&path, &with_hash(bytes).unwrap_or_else(|| bytes.to_vec()));
            let load = || Start::load(&path, DType::F32, &Default::default());
            let Ok(read) = load() else {
                return false;
            };
            read.save(&path).expect("a start that was read is written");
            let again = load().expect("it was written");
            assert_eq!(values(&again), values(&read));
            assert_eq!(again.layers, read.layers);
            true
        }),
    }
}

/// The file as its writer would have sealed it; `None` if it is no file of tensors.
fn with_hash(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut file = TensorFile::from_bytes(bytes).ok()?;
    let tensors = file.tensors.iter();
    let hashes = tensors.map(|(name, view)| format!("{name} {}\n", sha256(view.data())));
    let hash = sha256(hashes.collect::<String>().as_bytes());
    file.metadata.as_mut()?.insert("sha256".to_owned(), hash);
    file.to_bytes().ok()
}

/// Bits, so that what is no number equals itself.
fn values(start: &Start) -> Vec<(String, Vec<usize>, Vec<u32>)> {
    let tensors = start.tensors.iter();
    tensors
        .map(|(name, named)| {
            let values = named.tensor.to_f32().expect("float32");
            let bits = values.into_iter().map(f32::to_bits).collect();
            (name.to_owned(), named.tensor.shape(), bits)
        })
        .collect()
}

fn some_start() -> Start {
    let device = Default::default();
    let mut tensors = TensorSet::new();
    let ones = |shape: [usize; 2]| Tensor::<Flex, 2>::ones(shape, &device);
    tensors.insert("layers.0.q.right.a", "AxisMap", ones([4, 2]));
    tensors.insert("layers.0.mlp.weight", "Linear", ones([2, 3]));
    let report = LayerReport {
        layer: 0,
        heads: HeadChoice {
            query: vec![1],
            key_value: vec![vec![0]],
        },
        stream: FittedOn::Student,
        value: MapKind::General,
        out: MapKind::Factored,
        residual_of_output: 0.5,
        residual: 0.25,
        rounds: 2,
        ridge: Some(1e-3),
        strength: 0.5,
        uneven: None,
        units: None,
        feed_forward_residual: None,
        seconds: 1.5,
    };
    Start {
        tensors,
        layers: vec![report],
    }
}
