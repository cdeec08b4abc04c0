//! The recipe of `recipes/stories260k.toml` on the real teacher beside the repository.
//!
//! Needs `../shared/teachers/stories260k` and `../shared/data/stories`; started by
//! `cargo xtask test --suite real`. The logits to compare with, which transformers computed, are
//! taken from the file in `BURN_LTI_REAL_LOGITS`, or from `../shared/golden/stories260k`.
//!
//! One test after another: each uses both cores, and their times are printed.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::backend::{Autodiff, Flex, NdArray};
use burn::prelude::*;
use burn::tensor::backend::AutodiffBackend;
use burn_lti::decoder::TokenBatch;
use burn_lti_llama::distill::{Listener, OutputDir, Summary, distill};
use burn_lti_llama::hf;
use burn_lti_llama::recipe::Recipe;
use safetensors::SafeTensors;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn teacher() -> PathBuf {
    repository().join("../shared/teachers/stories260k")
}

fn recipe(overrides: &[&str]) -> Recipe {
    let overrides: Vec<String> = overrides.iter().map(|set| (*set).to_owned()).collect();
    Recipe::load(&repository().join("recipes/stories260k.toml"), &overrides)
        .expect("the recipe is valid")
}

fn run<A: AutodiffBackend>(overrides: &[&str]) -> (Summary, tempfile::TempDir) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let out = OutputDir::prepare(dir.path(), false).expect("an empty folder is usable");
    let silent: Listener = Arc::new(|_| {});
    let summary = distill::<A>(&recipe(overrides), &out, &Default::default(), &silent)
        .expect("the recipe runs");
    eprintln!("{overrides:?}: {:#}", summary.to_json());
    (summary, dir)
}

/// The whole of `model.safetensors`, to compare bits.
fn weights(model: &Path) -> Vec<u8> {
    std::fs::read(model.join("model.safetensors")).expect("the weights are there")
}

fn logits_agree_with_transformers<B: Backend>(backend: &str) {
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

    let device = Default::default();
    let model = hf::load::<B>(&teacher(), &device).expect("the teacher loads");
    let tokens_tensor =
        Tensor::<B, 2, Int>::from_data(TensorData::new(ids, [rows, tokens]), &device);
    let batch = TokenBatch {
        positions: Tensor::arange(0..tokens as i64, &device)
            .unsqueeze::<2>()
            .expand([rows, tokens]),
        segments: tokens_tensor.ones_like(),
        targets: tokens_tensor.zeros_like(),
        mask: Tensor::zeros([rows, tokens], &device),
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
    eprintln!("{backend}: largest difference to transformers {difference:e}");
    assert!(difference <= 2e-4, "{backend}: {difference}");
}

#[test]
fn real_teacher() {
    logits_agree_with_transformers::<Flex>("flex");
    logits_agree_with_transformers::<NdArray>("ndarray");

    let before = weights(&teacher());
    let (grouped, dir) = run::<Autodiff<Flex>>(&[]);
    assert_eq!(grouped.steps, 200);
    assert_eq!(grouped.trainable_parameters, 1680);
    let kl_start = grouped.kl_start.expect("there is held-out text");
    assert!((2.9..3.1).contains(&kl_start), "grouped start: {kl_start}");
    assert!(grouped.kl_end.expect("there is held-out text") <= 0.80);
    assert!(grouped.collapse_max_abs_logit_diff.expect("compared") <= 1e-4);
    let student = hf::load::<Flex>(&dir.path().join("student"), &Default::default());
    assert_eq!(student.expect("it loads").config().num_attention_heads, 4);

    let (lecun, _dir) = run::<Autodiff<Flex>>(&["lti.start=lecun"]);
    assert!(lecun.kl_end.expect("there is held-out text") <= 2.4);

    // The same seed, the same bits; another seed, others.
    let short = ["train.steps=10", "train.eval_sequences=16"];
    let student = |seed: &str| {
        let (summary, dir) = run::<Autodiff<NdArray>>(&[short[0], short[1], seed]);
        (summary.kl_end, weights(&dir.path().join("student")))
    };
    let first = student("train.seed=0");
    assert!(
        first == student("train.seed=0"),
        "the same seed, other bits"
    );
    assert!(
        first.1 != student("train.seed=1").1,
        "the seed changes nothing"
    );

    assert!(before == weights(&teacher()), "the teacher's file changed");
}
