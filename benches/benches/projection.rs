//! One learn-to-init projection, forward and backward: the kernel out of its map, the product, and
//! the gradients of the map and the input.

#![allow(missing_docs)] // criterion's macros make public items

use burn::tensor::Tensor;
use burn::tensor::backend::AutodiffBackend;
use burn_lti::dense::{HeadGrid, LtiDenseConfig, MapKind, ProjectionKind};
use burn_lti::start::Start;
use burn_lti_benches::{FlexTrain, NdArrayTrain, normal};
use criterion::{Criterion, criterion_group, criterion_main};

const TOKENS: usize = 512;

struct Case {
    name: &'static str,
    d_model: usize,
    kind: ProjectionKind,
    teacher: HeadGrid,
    student: HeadGrid,
    map: MapKind,
}

const SMOL: Case = Case {
    name: "smol_q_factored",
    d_model: 576,
    kind: ProjectionKind::Qkv,
    teacher: HeadGrid::new(9, 64),
    student: HeadGrid::new(3, 64),
    map: MapKind::Factored,
};

const LLAMA_8B: Case = Case {
    name: "llama8b_q_factored",
    d_model: 4096,
    teacher: HeadGrid::new(32, 128),
    student: HeadGrid::new(16, 128),
    ..SMOL
};

const CASES: [Case; 5] = [
    SMOL,
    Case {
        name: "smol_out_factored",
        kind: ProjectionKind::Output,
        ..SMOL
    },
    Case {
        name: "smol_q_general",
        map: MapKind::General,
        ..SMOL
    },
    LLAMA_8B,
    Case {
        name: "llama8b_out_factored",
        kind: ProjectionKind::Output,
        ..LLAMA_8B
    },
];

fn projection<A: AutodiffBackend>(criterion: &mut Criterion, backend: &str) {
    let device = A::Device::default();
    let mut group = criterion.benchmark_group(format!("projection/{backend}"));
    group.sample_size(10);
    for case in CASES {
        let config = LtiDenseConfig::new(case.kind, case.d_model, case.teacher, case.student)
            .with_map(case.map)
            .with_start(Start::Lecun, 0);
        let c = normal::<A, 3>(config.c_shape(), 0.02, &device);
        let Ok(dense) = config.init(c) else {
            continue; // the cases above are valid
        };
        let [d_input, _] = config.widths();
        let input = normal::<A, 2>([TOKENS, d_input], 1.0, &device).require_grad();
        group.bench_function(case.name, |bencher| {
            bencher.iter(|| {
                let output: Tensor<A, 2> = dense.forward(input.clone());
                let gradients = output.square().mean().backward();
                input.grad(&gradients)
            });
        });
    }
}

fn all(criterion: &mut Criterion) {
    projection::<FlexTrain>(criterion, "flex");
    projection::<NdArrayTrain>(criterion, "ndarray");
}

criterion_group!(benches, all);
criterion_main!(benches);
