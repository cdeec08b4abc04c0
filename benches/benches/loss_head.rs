//! The chunked head: logits, loss and gradient of 512 tokens of SmolLM2's width against the size of the
//! vocabulary.

#![allow(missing_docs)] // criterion's macros make public items

use anyhow::Result;
use burn::prelude::*;
use burn::tensor::backend::AutodiffBackend;
use burn_lti::decoder::Head;
use burn_lti::loss::{DistillationLoss, LossInput, TeacherTokens};
use burn_lti_benches::distillation::{ALPHA, TEMPERATURE};
use burn_lti_benches::numbers::{batch, uniform};
use burn_lti_benches::{for_each_backend, synchronised};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};

const TOKENS: usize = 512;
const D_MODEL: usize = 576;
/// The last two are those of SmolLM2 and of Llama 3.
const VOCABULARIES: [usize; 4] = [512, 8192, 49_152, 128_256];

fn loss_head<A: AutodiffBackend>(criterion: &mut Criterion, backend: &str) -> Result<()> {
    let device = A::Device::default();
    let mut group = criterion.benchmark_group(format!("loss_head/{backend}"));
    group.sample_size(10);
    let loss = DistillationLoss::new(ALPHA, TEMPERATURE, TOKENS)?;
    for vocab in VOCABULARIES {
        let head = |seed| Head {
            weight: uniform::<A::InnerBackend, 2>(seed, [D_MODEL, vocab], 0.1, &device),
            trains: false,
            cap: None,
        };
        let hidden = |seed| uniform::<A::InnerBackend, 2>(seed, [TOKENS, D_MODEL], 1.0, &device);
        let input = LossInput {
            student_hidden: hidden(5),
            student_head: head(6),
            teacher: TeacherTokens::Hidden {
                hidden: hidden(7),
                head: head(8),
            },
            features: Vec::new(),
            targets: batch::<A::InnerBackend>(1, TOKENS, vocab, &device)
                .targets
                .reshape([TOKENS]),
            mask: Tensor::ones([TOKENS], &device),
        };
        group.bench_function(BenchmarkId::from_parameter(vocab), |bencher| {
            bencher.iter(|| {
                synchronised::<A, _>(&device, || {
                    let gradient = loss.gradient(input.clone());
                    (gradient.sums.read(), gradient.hidden)
                })
            });
        });
    }
    Ok(())
}

fn all(criterion: &mut Criterion) {
    for_each_backend!(loss_head(criterion));
}

criterion_group!(benches, all);
criterion_main!(benches);
