//! A whole training step, and its parts, on a model of the size of the stories260k teacher: 5
//! layers of width 64, 8/4 heads to 4/2, 16 x 128 tokens.

#![allow(missing_docs)] // criterion's macros make public items

use std::error::Error;
use std::path::Path;
use std::sync::Arc;

use burn::optim::AdamWConfig;
use burn::tensor::backend::AutodiffBackend;
use burn::train::TrainStep;
use burn_lti::decoder::{CausalLm, LtiSpec};
use burn_lti::inject::set_trainable;
use burn_lti::loss::DistillationLoss;
use burn_lti::tensors::TensorSet;
use burn_lti::train::{Distiller, GlobalNormClip};
use burn_lti_benches::{FlexTrain, NdArrayTrain, batch};
use burn_lti_llama::config::LlamaConfig;
use burn_lti_llama::model::PlainLlama;
use criterion::{Criterion, criterion_group, criterion_main};

const TEACHER: &str = r#"{
    "model_type": "llama", "vocab_size": 512, "hidden_size": 64, "intermediate_size": 172,
    "num_hidden_layers": 5, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 8,
    "tie_word_embeddings": true
}"#;

fn step<A: AutodiffBackend>(
    criterion: &mut Criterion,
    backend: &str,
) -> Result<(), Box<dyn Error>> {
    let device = A::Device::default();
    let config = LlamaConfig::from_json_str(TEACHER, Path::new("teacher"))?;
    let teacher = Arc::new(PlainLlama::<A::InnerBackend>::init(&config, &device));
    let tensors = TensorSet::from_inner(&TensorSet::collect(teacher.as_ref()));
    let halved = LlamaConfig {
        num_attention_heads: 4,
        num_key_value_heads: 2,
        ..config.clone()
    };
    let awaiting =
        PlainLlama::<A>::init(&halved, &device).learn_to_init(&LtiSpec::new(config.geometry()))?;
    let rules = awaiting.rules_by_name([])?;
    let (student, _) = awaiting.inject(&tensors, &rules)?;
    let student = set_trainable(student, |parameter| parameter.in_map);
    let batch = batch::<A>(16, 128, config.vocab_size, &device);

    let mut group = criterion.benchmark_group(format!("step/{backend}"));
    group.sample_size(10);
    group.bench_function("teacher forward", |bencher| {
        let inner = batch.inner();
        bencher.iter(|| teacher.hidden_states(&inner).into_data());
    });
    group.bench_function("student forward and backward", |bencher| {
        bencher.iter(|| student.hidden_states(&batch).sum().backward());
    });
    let distiller = Distiller::new(student, teacher.clone(), DistillationLoss::KL)?;
    group.bench_function("both and the loss", |bencher| {
        bencher.iter(|| TrainStep::step(&distiller, batch.clone()).item.read());
    });
    group.bench_function("whole step", |bencher| {
        let mut model = distiller.clone();
        let mut optimizer = GlobalNormClip::new(AdamWConfig::new().init::<A, _>(), 1.0);
        bencher.iter(|| {
            let output = TrainStep::step(&model, batch.clone());
            model = model.clone().optimize(&mut optimizer, 1e-4, output.grads);
            output.item.read()
        });
    });
    Ok(())
}

fn all(criterion: &mut Criterion) {
    for result in [
        step::<FlexTrain>(criterion, "flex"),
        step::<NdArrayTrain>(criterion, "ndarray"),
    ] {
        assert!(result.is_ok(), "{result:?}");
    }
}

criterion_group!(benches, all);
criterion_main!(benches);
