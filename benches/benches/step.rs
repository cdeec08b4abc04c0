//! A whole training step, and its parts, of models shaped as stories260k (16 x 128 tokens) and as
//! SmolLM2-135M (2 x 256 tokens).

#![allow(missing_docs)] // criterion's macros make public items

use anyhow::Result;
use burn::tensor::backend::AutodiffBackend;
use burn_lti::decoder::CausalLm;
use burn_lti::kernels::ProductPrecision;
use burn_lti::map::MapKind;
use burn_lti_benches::distillation::{Lesson, Shape};
use burn_lti_benches::random_teacher::{self, SMOLLM2_135M, STORIES_260K};
use burn_lti_benches::{for_each_backend, synchronised};
use criterion::{Criterion, criterion_group, criterion_main};

const STORIES: Shape = Shape {
    heads: 4,
    kv_heads: 2,
    map: MapKind::Factored,
    batch_size: 16,
    seq_len: 128,
    precision: ProductPrecision::Float32,
};
const SMOLLM2: Shape = Shape {
    heads: 3,
    kv_heads: 1,
    map: MapKind::Factored,
    batch_size: 2,
    seq_len: 256,
    precision: ProductPrecision::Float32,
};

fn step<A: AutodiffBackend>(criterion: &mut Criterion, backend: &str) -> Result<()> {
    for (name, teacher, shape) in [
        ("stories260k", STORIES_260K, STORIES),
        ("SmolLM2-135M", SMOLLM2_135M, SMOLLM2),
    ] {
        let dir = tempfile::tempdir()?;
        random_teacher::write(
            &random_teacher::config(teacher)?,
            random_teacher::STD,
            dir.path(),
        )?;
        let device = A::Device::default();
        let lesson = Lesson::<A>::load(dir.path(), &shape, &device)?;
        let mut group = criterion.benchmark_group(format!("step/{backend}/{name}"));
        group.sample_size(10);
        group.bench_function("teacher forward", |bencher| {
            let batch = lesson.batch.inner();
            bencher.iter(|| synchronised::<A, _>(&device, || lesson.teacher.hidden_states(&batch)));
        });
        let student = lesson.student()?;
        group.bench_function("student forward and backward", |bencher| {
            bencher.iter(|| {
                synchronised::<A, _>(&device, || {
                    student.hidden_states(&lesson.batch).sum().backward()
                })
            });
        });
        let mut training = lesson.training()?;
        group.bench_function("both and the loss", |bencher| {
            bencher.iter(|| synchronised::<A, _>(&device, || training.gradient()));
        });
        group.bench_function("whole step", |bencher| {
            bencher.iter(|| synchronised::<A, _>(&device, || training.step()));
        });
    }
    Ok(())
}

fn all(criterion: &mut Criterion) {
    for_each_backend!(step(criterion));
}

criterion_group!(benches, all);
criterion_main!(benches);
