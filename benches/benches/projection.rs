//! One learn-to-init projection, forward and backward.

#![allow(missing_docs)] // criterion's macros make public items

use anyhow::Result;
use burn::tensor::backend::AutodiffBackend;
use burn_lti_benches::projection::CASES;
use burn_lti_benches::{for_each_backend, synchronised};
use criterion::{Criterion, criterion_group, criterion_main};

fn projection<A: AutodiffBackend>(criterion: &mut Criterion, backend: &str) -> Result<()> {
    let device = A::Device::default();
    let mut group = criterion.benchmark_group(format!("projection/{backend}"));
    group.sample_size(10);
    for case in CASES {
        let task = case.task::<A>(&device)?;
        group.bench_function(case.name, |bencher| {
            bencher.iter(|| synchronised::<A, _>(&device, || task.step()));
        });
    }
    Ok(())
}

fn all(criterion: &mut Criterion) {
    for_each_backend!(projection(criterion));
}

criterion_group!(benches, all);
criterion_main!(benches);
