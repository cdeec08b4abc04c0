//! Models on some of their tokens: the logits of those, and nothing else of the model.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use burn::tensor::backend::AutodiffBackend;
use burn_lti_llama::config::LlamaConfig;
use burn_lti_llama::data::{loader, pack};
use burn_lti_llama::eval::evaluate;
use burn_lti_llama::hf::{self, ModelFiles, WeightType};
use burn_lti_llama::tokenizer::KeptTokens;
use burn_lti_tests::close::{Tolerance, assert_close, assert_not_close, rounding};
use burn_lti_tests::llama::{FAMILIES, MODELS, causal_batch, family_dir, model_dir};
use burn_lti_tests::numbers::{Numbers, values};
use burn_lti_tests::on_every_backend;
use burn_lti_tests::params::{edit, perturb};

use super::llama::{CHANGE, logit_tolerance};

on_every_backend![
    a_model_on_some_of_its_tokens_has_their_logits,
    the_teacher_is_renormalised_over_the_tokens_that_are_kept,
];

/// Two of three tokens of the model in `dir`, and the first and the last.
fn some_tokens(dir: &Path) -> (LlamaConfig, KeptTokens) {
    let config = LlamaConfig::from_dir(dir).expect("a configuration");
    let last = config.vocab_size as u32 - 1;
    let kept: BTreeSet<u32> = (0..=last).filter(|id| id % 3 != 1 || *id == last).collect();
    (config, KeptTokens::from(kept))
}

/// Of rows of logits those of the tokens that are kept.
fn columns(logits: &[f64], vocab: usize, kept: &KeptTokens) -> Vec<f64> {
    let rows = logits.chunks_exact(vocab);
    let of_row = |row: &[f64]| -> Vec<f64> {
        let kept = kept.ids().iter();
        kept.map(|id| row[*id as usize]).collect()
    };
    rows.flat_map(of_row).collect()
}

fn a_model_on_some_of_its_tokens_has_their_logits<A: AutodiffBackend>(device: A::Device) {
    let dirs = MODELS.iter().map(|name| model_dir(name));
    let dirs: Vec<PathBuf> = dirs
        .chain(FAMILIES.iter().map(|name| family_dir(name)))
        .collect();
    for dir in dirs {
        let (config, kept) = some_tokens(&dir);
        let whole = hf::load::<A::InnerBackend>(&dir, &device).expect("a model");
        let files = ModelFiles::new(&dir, config.clone()).with_tokens(kept.clone());
        assert_eq!(files.config().vocab_size, kept.ids().len());
        files.check_weights().expect("the whole file");
        let model = files
            .load::<A::InnerBackend>(WeightType::F32, &device)
            .expect("a model");
        let shape = [2, 12];
        let tokens = Numbers::new(3).ids(shape[0] * shape[1], kept.ids().len());
        let old: Vec<i64> = tokens
            .iter()
            .map(|id| i64::from(kept.ids()[*id as usize]))
            .collect();
        let logits = values(&whole.logits(&causal_batch(shape, &old, &device)));
        let expected = columns(&logits, config.vocab_size, &kept);
        let tolerance = logit_tolerance(&config, shape[1], &expected);
        let batch = causal_batch(shape, &tokens, &device);
        assert_close(&values(&model.logits(&batch)), &expected, &tolerance);
        // One row of the embedding is another.
        let width = config.hidden_size;
        let first = tokens[0] as usize * width;
        let other = edit(model, |name, numbers| {
            if name == "model.embed_tokens.weight" {
                for number in &mut numbers[first..first + width] {
                    *number += CHANGE;
                }
            }
        });
        assert_not_close(&values(&other.logits(&batch)), &expected, &tolerance);
    }
}

/// Its distribution over those tokens is that of the whole teacher, divided by what they have of it together.
fn the_teacher_is_renormalised_over_the_tokens_that_are_kept<A: AutodiffBackend>(
    device: A::Device,
) {
    let dir = model_dir("untied_bias");
    let (config, kept) = some_tokens(&dir);
    let whole = hf::load::<A::InnerBackend>(&dir, &device).expect("a model");
    let files = ModelFiles::new(&dir, config.clone()).with_tokens(kept.clone());
    let teacher = files
        .load::<A::InnerBackend>(WeightType::F32, &device)
        .expect("a model");
    let student = perturb(teacher.clone(), "model.norm.gamma", 0.5);
    let (vocab, count) = (config.vocab_size, kept.ids().len());
    let mut numbers = Numbers::new(2);
    let documents: Vec<Vec<u32>> = (0..9)
        .map(|_| numbers.ids(7, count).iter().map(|id| *id as u32).collect())
        .collect();
    let old_id = |id: &u32| kept.ids()[*id as usize];
    let old = documents
        .iter()
        .map(|ids| ids.iter().map(old_id).collect::<Vec<u32>>());
    let old = loader::<A::InnerBackend>(pack(old, 10), 3, None, &device);
    let batches = loader(pack(documents, 10), 3, None, &device);
    let found = evaluate(&student, &teacher, &batches, |_, _| {});

    let (mut kl, mut without, mut positions, mut largest, mut allowed) =
        (0.0, 0.0, 0.0, 0.0f64, 0.0f64);
    for (batch, old) in batches.iter().zip(old.iter()) {
        let of_teacher = values(&whole.logits(&old));
        let of_student = values(&student.logits(&batch));
        allowed = allowed.max(logit_tolerance(&config, 10, &of_teacher).at(0));
        let rows = of_teacher
            .chunks_exact(vocab)
            .zip(of_student.chunks_exact(count));
        for ((teacher, student), mask) in rows.zip(values(&batch.mask)) {
            if mask == 0.0 {
                continue;
            }
            let all: f64 = teacher.iter().map(|logit| logit.exp()).sum();
            let probabilities: Vec<f64> = columns(teacher, vocab, &kept)
                .iter()
                .map(|logit| logit.exp() / all)
                .collect();
            let kept_mass: f64 = probabilities.iter().sum();
            let sum: f64 = student.iter().map(|logit| logit.exp()).sum();
            for (probability, logit) in probabilities.iter().zip(student) {
                let (p, log_q) = (probability / kept_mass, logit - sum.ln());
                kl += p * (p.ln() - log_q);
                without += probability * (probability.ln() - log_q);
                largest = largest.max(p.ln().abs()).max(log_q.abs());
            }
            positions += 1.0;
        }
    }
    // Each log-probability is off by what two logits are, and by the sum over the vocabulary; the mean adds one over
    // the positions.
    let sums = rounding(count + 4 + positions as usize) * (1.0 + largest);
    let tolerance = Tolerance::Uniform(4.0 * allowed + sums);
    let found = [found.kl.expect("tokens")];
    assert_close(&found, &[kl / positions], &tolerance);
    // Not that of the whole teacher, and not nothing.
    for other in [without / positions, 0.0] {
        assert_not_close(&found, &[other], &tolerance);
    }
    let same = evaluate(&teacher, &teacher, &batches, |_, _| {});
    assert_eq!(same.kl, Some(0.0));
}
