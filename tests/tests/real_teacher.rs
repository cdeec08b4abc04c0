//! What the real teacher beside the repository computes, against transformers.
//!
//! Needs `../shared/teachers/stories260k`; started by `cargo xtask test --suite real`. The logits to
//! compare with are taken from the file in `BURN_LTI_REAL_LOGITS`, or from
//! `../shared/golden/stories260k`. What the recipe makes of the teacher is in the file of the same name
//! in `burn-lti-llama`.

use std::path::{Path, PathBuf};

use burn::prelude::*;
use burn::tensor::backend::AutodiffBackend;
use burn_lti::decoder::TokenBatch;
use burn_lti_llama::hf;
use burn_lti_tests::on_every_backend;
use safetensors::SafeTensors;

on_every_backend![logits_agree_with_transformers];

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn teacher() -> PathBuf {
    repository().join("../shared/teachers/stories260k")
}

fn logits_agree_with_transformers<A: AutodiffBackend>(device: A::Device) {
    type B<A> = <A as AutodiffBackend>::InnerBackend;
    let golden = std::env::var_os("BURN_LTI_REAL_LOGITS").map_or_else(
        || repository().join("../shared/golden/stories260k/logits.safetensors"),
        PathBuf::from,
    );
    let file = std::fs::read(&golden).expect("the golden logits are there");
    let golden = SafeTensors::deserialize(&file).expect("a safetensors file");
    let ids = golden.tensor("input_ids").expect("input_ids");
    let &[rows, tokens] = ids.shape() else {
        panic!("input_ids must be [rows, tokens], not {:?}", ids.shape());
    };
    let ids: Vec<i64> = match ids.dtype() {
        safetensors::Dtype::I32 => ids
            .data()
            .chunks_exact(4)
            .map(|b| i64::from(i32::from_le_bytes(b.try_into().unwrap())))
            .collect(),
        safetensors::Dtype::I64 => ids
            .data()
            .chunks_exact(8)
            .map(|b| i64::from_le_bytes(b.try_into().unwrap()))
            .collect(),
        other => panic!("input_ids are {other:?}, not integers"),
    };
    let expected: Vec<f32> = golden
        .tensor("logits")
        .expect("logits")
        .data()
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
        .collect();

    let model = hf::load::<B<A>>(&teacher(), &device).expect("the teacher loads");
    let tokens_tensor =
        Tensor::<B<A>, 2, Int>::from_data(TensorData::new(ids, [rows, tokens]), &device);
    let batch = TokenBatch {
        positions: Tensor::arange(0..tokens as i64, &device)
            .unsqueeze::<2>()
            .expand([rows, tokens]),
        segments: tokens_tensor.ones_like(),
        targets: tokens_tensor.zeros_like(),
        mask: Tensor::zeros([rows, tokens], &device),
        rows: Vec::new(),
        tokens: tokens_tensor,
    };
    let found: Vec<f32> = model.logits(&batch).into_data().iter().collect();
    assert_eq!(found.len(), expected.len());
    assert!(found.iter().all(|logit| logit.is_finite()));
    let difference = found
        .iter()
        .zip(&expected)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max);
    eprintln!(
        "{}: largest difference to transformers {difference:.2e}",
        A::name(&device)
    );
    assert!(difference <= 2e-4, "{difference}");
}
