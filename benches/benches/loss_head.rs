//! The chunked head: logits, loss and gradient of 512 tokens against the size of the vocabulary.

#![allow(missing_docs)] // criterion's macros make public items

use burn::backend::{Flex, NdArray};
use burn::prelude::*;
use burn_lti::decoder::Head;
use burn_lti::loss::{DistillationLoss, LossInput, TeacherTokens};
use burn_lti_benches::normal;
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};

const TOKENS: usize = 512;
const D_MODEL: usize = 64;

fn loss_head<B: Backend>(criterion: &mut Criterion, backend: &str) {
    let device = B::Device::default();
    let mut group = criterion.benchmark_group(format!("loss_head/{backend}"));
    group.sample_size(10);
    let Ok(loss) = DistillationLoss::new(0.9, 2.0, 128) else {
        return; // the settings above are valid
    };
    for vocab in [512, 4096, 32768] {
        let head = || Head {
            weight: normal::<B, 2>([D_MODEL, vocab], 0.2, &device),
            trains: false,
        };
        let hidden = || normal::<B, 2>([TOKENS, D_MODEL], 1.0, &device);
        let input = LossInput {
            student_hidden: hidden(),
            student_head: head(),
            teacher: TeacherTokens::Hidden {
                hidden: hidden(),
                head: head(),
            },
            features: Vec::new(),
            targets: Tensor::zeros([TOKENS], &device),
            mask: Tensor::ones([TOKENS], &device),
        };
        group.bench_function(BenchmarkId::from_parameter(vocab), |bencher| {
            bencher.iter(|| {
                let gradient = loss.gradient(input.clone());
                (gradient.sums.read(), gradient.hidden.into_data())
            });
        });
    }
}

fn all(criterion: &mut Criterion) {
    loss_head::<Flex>(criterion, "flex");
    loss_head::<NdArray>(criterion, "ndarray");
}

criterion_group!(benches, all);
criterion_main!(benches);
