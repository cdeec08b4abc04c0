//! The demo's teacher: a small Llama trained from nothing on next-token prediction.

use std::path::Path;

use burn::module::AutodiffModule;
use burn::optim::{AdamWConfig, GradientsParams, Optimizer};
use burn::prelude::*;
use burn::tensor::activation::log_softmax;
use burn::tensor::backend::AutodiffBackend;
use burn_lti::decoder::TokenBatch;
use burn_lti::train::{Decay, StudentOptimizer, WarmupDecay};

use super::DemoError;
use super::grammar::StoryGrammar;
use super::vocabulary;
use crate::config::{Activation, Family, LlamaConfig, Multipliers, QkNorm, Rope, SourceFields};
use crate::data::{Documents, LossOn, load_sequences, loader};
use crate::distill::{Event, Listener};
use crate::hf::{self, WeightType};
use crate::model::PlainLlama;
use crate::tokenizer::Tokenizer;

const LAYERS: usize = 4;
const SEQ_LEN: usize = 128;
const BATCH_SIZE: usize = 16;
const STEPS: usize = 300;
const LEARNING_RATE: f64 = 5e-3;

/// Trains the teacher on `dir/train.txt` and writes it to `teacher_dir` as a Hugging Face folder.
pub(super) fn train<A: AutodiffBackend>(
    dir: &Path,
    teacher_dir: &Path,
    seed: u64,
    device: &A::Device,
    listener: &Listener,
) -> Result<(), DemoError> {
    let words = vocabulary::tokenizer(&StoryGrammar::vocabulary())?;
    vocabulary::save(&words, SEQ_LEN, teacher_dir)?;
    let config = config(words.get_vocab_size(true));
    let tokenizer = Tokenizer::from_dir(teacher_dir, config.bos_token_id, &config.eos_token_ids)?;
    let texts = [dir.join("train.txt")];
    let layout = Documents::Apart;
    let sequences = load_sequences(&texts, None, LossOn::All, &tokenizer, &[SEQ_LEN], layout)?;

    A::seed(device, seed);
    let mut model = PlainLlama::<A>::init(&config, device);
    let adamw = AdamWConfig::new().with_beta_2(0.95).with_epsilon(1e-8);
    let mut optimizer = StudentOptimizer::new(adamw.init::<A, PlainLlama<A>>()).with_max_norm(1.0);
    let schedule = WarmupDecay::new(LEARNING_RATE, STEPS, STEPS / 20, Decay::Cosine, 0.1);
    let batches = loader::<A>(sequences, BATCH_SIZE, Some(seed), device);
    let mut step = 0;
    while step < STEPS {
        for batch in batches.iter() {
            step += 1;
            let gradients = cross_entropy(&model, batch).backward();
            let gradients = GradientsParams::from_grads(gradients, &model);
            model = optimizer.step(schedule.rate(step), model, gradients);
            listener(Event::Advanced(step, STEPS));
            if step == STEPS {
                break;
            }
        }
    }
    hf::export(&model.valid(), WeightType::F32, teacher_dir, teacher_dir)?;
    Ok(())
}

/// Eight heads, so that there is something to halve.
fn config(vocab_size: usize) -> LlamaConfig {
    LlamaConfig {
        family: Family::Llama,
        vocab_size,
        hidden_size: 64,
        intermediate_size: 160,
        num_hidden_layers: LAYERS,
        num_attention_heads: 8,
        num_key_value_heads: 4,
        head_dim: 8,
        max_position_embeddings: SEQ_LEN,
        rms_norm_eps: 1e-5,
        rope: Rope::new(10_000.0),
        local_rope: None,
        turned: vec![true; LAYERS],
        windows: vec![None; LAYERS],
        tie_word_embeddings: true,
        qkv_bias: false,
        out_bias: false,
        qk_norm: QkNorm::Nothing,
        mlp_bias: false,
        activation: Activation::Silu,
        input_norms: true,
        output_norms: false,
        attention_cap: None,
        logit_cap: None,
        bos_token_id: Some(1),
        eos_token_ids: vec![2],
        multipliers: Multipliers::NONE,
        source: SourceFields::default(),
    }
}

/// Mean cross-entropy over the tokens that have a target.
fn cross_entropy<A: AutodiffBackend>(model: &PlainLlama<A>, batch: TokenBatch<A>) -> Tensor<A, 1> {
    let targets = batch.targets.clone().unsqueeze_dim(2);
    let log_probs = log_softmax(model.logits(&batch), 2)
        .gather(2, targets)
        .squeeze_dim::<2>(2);
    (log_probs * batch.mask.clone()).sum().neg() / batch.mask.sum()
}
