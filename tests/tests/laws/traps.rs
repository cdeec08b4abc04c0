//! Where Burn's backends differ, and the toolkit must not: masks, whole numbers.
//!
//! The others have their tests elsewhere: half precision in `half.rs`, the products that must be
//! flattened in `memory.rs`.

use std::sync::Arc;

use burn::nn::EmbeddingConfig;
use burn::prelude::*;
use burn::tensor::TensorData;
use burn::tensor::backend::AutodiffBackend;
use burn::train::TrainStep;
use burn_lti::decoder::{Head, TokenBatch};
use burn_lti::loss::{DistillationLoss, LossInput, TeacherTokens};
use burn_lti::parameters::set_trainable;
use burn_lti::train::Distiller;
use burn_lti_llama::model::PlainLlama;
use burn_lti_tests::llama::{batch_of, load};
use burn_lti_tests::numbers::{Numbers, bits, values};
use burn_lti_tests::on_every_backend;
use burn_lti_tests::params::parameters;
use burn_lti_tests::toy::packed_batch;

on_every_backend![
    a_token_sees_neither_later_ones_nor_other_documents,
    whole_numbers_of_every_host_type_are_the_same_tokens,
    tokens_beyond_sixteen_bits_are_kept,
    a_step_writes_into_no_weight,
];

/// Burn's own attention reads a boolean mask the other way round on libtorch. Here a token that must
/// not be seen is exchanged, and no bit may change where it is hidden.
fn a_token_sees_neither_later_ones_nor_other_documents<A: AutodiffBackend>(device: A::Device) {
    let model = load::<A::InnerBackend>("tied", &device);
    // Two documents, of 5 and 4 tokens.
    let segments = [1, 1, 1, 1, 1, 2, 2, 2, 2];
    let positions = [0, 1, 2, 3, 4, 0, 1, 2, 3];
    let tokens = Numbers::new(8).ids(9, 61);
    let rows = |tokens: &[i64]| {
        let batch = batch_of([1, 9], tokens, &positions, &segments, &device);
        let logits: Tensor<A::InnerBackend, 3> = model.logits(&batch);
        let bits = bits(&logits);
        let rows: Vec<Vec<u32>> = bits.chunks_exact(61).map(<[u32]>::to_vec).collect();
        rows
    };
    let before = rows(&tokens);
    for changed in 0..9 {
        let mut other = tokens.clone();
        other[changed] = (other[changed] + 1) % 61;
        for (row, (after, before)) in rows(&other).iter().zip(&before).enumerate() {
            let sees = row >= changed && segments[row] == segments[changed];
            assert_eq!(after != before, sees, "token {changed} seen from {row}");
        }
    }
}

/// Burn's libtorch takes a transposed view for a tensor of its own, and works in place on it: whatever
/// multiplied a tied head element by element would overwrite the embedding.
fn a_step_writes_into_no_weight<A: AutodiffBackend>(device: A::Device) {
    for name in ["tied", "untied_bias"] {
        let teacher = Arc::new(load::<A::InnerBackend>("tied", &device));
        let student = set_trainable(load::<A>(name, &device), |_| true);
        let batch = packed_batch(61, 2, &device);
        let seen = || {
            let student = parameters(&student).into_values().map(|one| one.bits);
            let teacher = parameters(teacher.as_ref())
                .into_values()
                .map(|one| one.bits);
            let whole = [
                &batch.tokens,
                &batch.targets,
                &batch.positions,
                &batch.segments,
            ];
            let whole = whole.map(|ints| ints.to_data().iter::<i64>().collect::<Vec<_>>());
            let weights: Vec<Vec<u32>> = student.chain(teacher).collect();
            (weights, whole, bits(&batch.mask))
        };
        let before = seen();
        let loss = DistillationLoss::new(0.7, 2.0, 5).expect("settings");
        let pupil = Distiller::new(student.clone(), teacher.clone(), loss);
        let output = TrainStep::step(&pupil.expect("one vocabulary"), batch.clone());
        assert!(!output.grads.is_empty());
        assert!(before == seen(), "{name}");
    }
}

/// The default integers of ndarray and libtorch have 64 bits, those of the others 32.
fn whole_numbers_of_every_host_type_are_the_same_tokens<A: AutodiffBackend>(device: A::Device) {
    let model = load::<A::InnerBackend>("tied", &device);
    let ids = Numbers::new(9).ids(6, 61);
    let shape = [1, 6];
    let narrow: Vec<i32> = ids.iter().map(|id| *id as i32).collect();
    let unsigned: Vec<u32> = ids.iter().map(|id| *id as u32).collect();
    let logits = |data: TensorData| logits(&model, data, &device);
    let expected = logits(TensorData::new(ids, shape));
    assert_eq!(logits(TensorData::new(narrow, shape)), expected);
    assert_eq!(logits(TensorData::new(unsigned, shape)), expected);
}

fn logits<B: Backend>(model: &PlainLlama<B>, tokens: TensorData, device: &B::Device) -> Vec<u32> {
    let tokens = Tensor::<B, 2, Int>::from_data(tokens, device);
    let batch = TokenBatch {
        positions: Tensor::arange(0..tokens.dims()[1] as i64, device).unsqueeze(),
        segments: tokens.ones_like(),
        targets: tokens.zeros_like(),
        mask: Tensor::zeros(tokens.dims(), device),
        rows: Vec::new(),
        tokens,
    };
    bits(&model.logits(&batch))
}

/// In the look-up of an embedding, and in the loss, as a target and as the likeliest token.
fn tokens_beyond_sixteen_bits_are_kept<A: AutodiffBackend>(device: A::Device) {
    type Inner<A> = <A as AutodiffBackend>::InnerBackend;
    const VOCAB: usize = 70_000;
    let token = 65_536 + 7;
    let table: Vec<f32> = (0..VOCAB).map(|row| row as f32).collect();
    let mut embedding = EmbeddingConfig::new(VOCAB, 1).init::<Inner<A>>(&device);
    let table = Tensor::<Inner<A>, 2>::from_data(TensorData::new(table, [VOCAB, 1]), &device);
    embedding.weight = embedding.weight.map(|_| table.clone());
    let ids = Tensor::<Inner<A>, 2, Int>::from_data(TensorData::new(vec![token], [1, 1]), &device);
    assert_eq!(values(&embedding.forward(ids)), [f64::from(token)]);

    // One hidden feature; the head makes `token` likelier than all others by far.
    let mut logits = vec![0.0f32; VOCAB];
    logits[token as usize] = 50.0;
    let head = || Head {
        weight: Tensor::<Inner<A>, 2>::from_data(
            TensorData::new(logits.clone(), [1, VOCAB]),
            &device,
        ),
        trains: false,
        cap: None,
    };
    let targets = TensorData::new(vec![token], [1]);
    let sums = DistillationLoss::KL.evaluate(LossInput {
        student_hidden: Tensor::ones([1, 1], &device),
        student_head: head(),
        teacher: TeacherTokens::Hidden {
            hidden: Tensor::ones([1, 1], &device),
            head: head(),
        },
        features: Vec::new(),
        targets: Tensor::from_data(targets, &device),
        mask: Tensor::ones([1], &device),
    });
    let sums = sums.read();
    // 70 000 e^-50 is nothing in float32: all the probability is on the token.
    assert_eq!(sums.student_ce_mean(), Some(0.0));
    assert_eq!(sums.top1_agreement(), Some(1.0));
}
