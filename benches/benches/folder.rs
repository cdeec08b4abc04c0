//! What a run does before and after its steps, of a model shaped as SmolLM2-135M: the teacher read, the
//! student at its start, its maps folded away, the result written.

#![allow(missing_docs)] // criterion's macros make public items

use std::fs;

use anyhow::Result;
use burn::module::AutodiffModule;
use burn::tensor::backend::AutodiffBackend;
use burn_lti::collapse::collapse;
use burn_lti::kernels::ProductPrecision;
use burn_lti::map::{KernelPrecision, MapKind};
use burn_lti_benches::distillation::{Lesson, Shape};
use burn_lti_benches::random_teacher::{self, SMOLLM2_135M};
use burn_lti_benches::{for_each_backend, synchronised};
use burn_lti_llama::hf::{self, WeightType};
use burn_lti_llama::model::PlainLlama;
use criterion::{Criterion, criterion_group, criterion_main};

const SHAPE: Shape = Shape {
    heads: 3,
    kv_heads: 1,
    map: MapKind::Factored,
    batch_size: 1,
    seq_len: 1,
    precision: ProductPrecision::Float32,
};

fn folder<A: AutodiffBackend>(criterion: &mut Criterion, backend: &str) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (teacher, out) = (dir.path().join("teacher"), dir.path().join("student"));
    random_teacher::write(
        &random_teacher::config(SMOLLM2_135M)?,
        random_teacher::STD,
        &teacher,
    )?;
    fs::create_dir(&out)?;
    let device = A::Device::default();
    let mut group = criterion.benchmark_group(format!("folder/{backend}"));
    group.sample_size(10);
    group.bench_function("load", |bencher| {
        bencher.iter(|| {
            synchronised::<A, _>(&device, || hf::load::<A::InnerBackend>(&teacher, &device))
        });
    });
    let lesson = Lesson::<A>::load(&teacher, &SHAPE, &device)?;
    group.bench_function("start", |bencher| {
        bencher.iter(|| synchronised::<A, _>(&device, || lesson.student()));
    });
    let student = lesson.student()?.valid();
    let config = &lesson.plan.student;
    let folded = || -> Result<_> {
        let skeleton = PlainLlama::<A::InnerBackend>::init(config, &device);
        Ok(collapse(&student, KernelPrecision::Default)?.into_plain(skeleton)?)
    };
    group.bench_function("collapse", |bencher| {
        bencher.iter(|| synchronised::<A, _>(&device, folded));
    });
    let plain = folded()?;
    hf::export(&plain, WeightType::F32, &teacher, &out)?;
    group.bench_function("export", |bencher| {
        bencher.iter(|| hf::export(&plain, WeightType::F32, &teacher, &out));
    });
    Ok(())
}

fn all(criterion: &mut Criterion) {
    for_each_backend!(folder(criterion));
}

criterion_group!(benches, all);
criterion_main!(benches);
