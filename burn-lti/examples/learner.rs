//! A decoder of your own, distilled with Burn's `Learner` and `SupervisedTraining`.
//!
//! The decoder here is as small as one can be: one block of causal attention over learned
//! positions. What it shows is all that a decoder has to offer to learn-to-init: its layer hands
//! over its weights ([`LearnToInitDecoderLayer`]), the model hands out hidden states and a head
//! ([`CausalLm`]).
//!
//! ```text
//! cargo run -p burn-lti --example learner
//! ```

#![allow(clippy::print_stdout)] // an example prints

use std::sync::Arc;

use burn::backend::{Autodiff, Flex};
use burn::data::dataloader::DataLoaderBuilder;
use burn::data::dataloader::batcher::Batcher;
use burn::data::dataset::InMemDataset;
use burn::nn::{Embedding, EmbeddingConfig, LayerNorm, LayerNormConfig, Linear, LinearConfig};
use burn::optim::AdamWConfig;
use burn::prelude::*;
use burn::tensor::activation::softmax;
use burn::train::{Learner, SupervisedTraining};
use burn_lti::blueprint::Rules;
use burn_lti::collapse::collapse;
use burn_lti::decoder::{
    CausalLm, FeatureTap, Head, LearnToInitDecoderLayer, LtiSpec, Project, Projection, TokenBatch,
    learn_to_init,
};
use burn_lti::geometry::{Axes, HeadGrid, Role};
use burn_lti::inject::AwaitingTeacher;
use burn_lti::loss::DistillationLoss;
use burn_lti::map::KernelPrecision;
use burn_lti::parameters::set_trainable;
use burn_lti::tensors::TensorSet;
use burn_lti::train::{Distiller, TokenMean};

const VOCAB: usize = 40;
const TOKENS: usize = 16;
const D_MODEL: usize = 32;

/// The layer: causal attention with a residual, generic over its projections.
#[derive(Module, Debug)]
struct Block<B: Backend, P: Module<B>> {
    query: P,
    key: P,
    value: P,
    out: P,
    norm: LayerNorm<B>,
    #[module(skip)]
    heads: HeadGrid,
}

impl<B: Backend> Block<B, Linear<B>> {
    fn init(heads: HeadGrid, device: &B::Device) -> Self {
        let linear = |d_in, d_out| LinearConfig::new(d_in, d_out).with_bias(false).init(device);
        Self {
            query: linear(D_MODEL, heads.width()),
            key: linear(D_MODEL, heads.width()),
            value: linear(D_MODEL, heads.width()),
            out: linear(heads.width(), D_MODEL),
            norm: LayerNormConfig::new(D_MODEL).init(device),
            heads,
        }
    }
}

/// The first trait: hand over the weights.
impl<B: Backend> LearnToInitDecoderLayer<B> for Block<B, Linear<B>> {
    type Learning = Block<B, Projection<B>>;

    fn axes(&self) -> Axes {
        Axes::of_attention(D_MODEL, self.heads, self.heads)
    }

    fn swap_weights<E>(
        self,
        mut swap: impl FnMut(Role, Linear<B>) -> Result<Projection<B>, E>,
    ) -> Result<Self::Learning, E> {
        Ok(Block {
            query: swap(Role::Query, self.query)?,
            key: swap(Role::Key, self.key)?,
            value: swap(Role::Value, self.value)?,
            out: swap(Role::Out, self.out)?,
            norm: self.norm,
            heads: self.heads,
        })
    }
}

impl<B: Backend, P: Project<B>> Block<B, P> {
    fn forward(&self, h: Tensor<B, 3>, tap: &mut FeatureTap<'_, B>) -> Tensor<B, 3> {
        let [batch, tokens, _] = h.dims();
        let HeadGrid { heads, head_dim } = self.heads;
        let x = self.norm.forward(h.clone());
        let split = |projection: &P| {
            projection
                .project(x.clone())
                .reshape([batch, tokens, heads, head_dim])
                .swap_dims(1, 2)
        };
        let scores =
            split(&self.query).matmul(split(&self.key).swap_dims(2, 3)) / (head_dim as f64).sqrt();
        let later = Tensor::<B, 2, Bool>::tril_mask([tokens, tokens], 0, &h.device());
        let scores = scores.mask_fill(
            later
                .unsqueeze::<4>()
                .expand([batch, heads, tokens, tokens]),
            f32::NEG_INFINITY,
        );
        let mixed = softmax(scores, 3)
            .matmul(split(&self.value))
            .swap_dims(1, 2)
            .reshape([batch, tokens, heads * head_dim]);
        let attention = self.out.project(mixed);
        tap.attention(&attention);
        h + attention
    }
}

/// The model, generic over its projections too.
#[derive(Module, Debug)]
struct Decoder<B: Backend, P: Module<B>> {
    embedding: Embedding<B>,
    positions: Embedding<B>,
    layers: Vec<Block<B, P>>,
    head: Linear<B>,
}

type Plain<B> = Decoder<B, Linear<B>>;

impl<B: Backend> Plain<B> {
    fn init(heads: HeadGrid, device: &B::Device) -> Self {
        Self {
            embedding: EmbeddingConfig::new(VOCAB, D_MODEL).init(device),
            positions: EmbeddingConfig::new(TOKENS, D_MODEL).init(device),
            layers: (0..2).map(|_| Block::init(heads, device)).collect(),
            head: LinearConfig::new(D_MODEL, VOCAB)
                .with_bias(false)
                .init(device),
        }
    }
}

/// The second trait: hidden states and a head.
impl<B: Backend, P: Project<B>> CausalLm<B> for Decoder<B, P> {
    fn forward(&self, batch: &TokenBatch<B>, tap: &mut FeatureTap<'_, B>) -> Tensor<B, 3> {
        let mut h = self.embedding.forward(batch.tokens.clone())
            + self.positions.forward(batch.positions.clone());
        for layer in &self.layers {
            h = layer.forward(h, tap);
        }
        h
    }

    fn layers(&self) -> usize {
        self.layers.len()
    }

    fn head(&self) -> Head<B> {
        Head {
            weight: self.head.weight.val(),
            trains: self.head.weight.is_require_grad(),
            cap: None,
        }
    }
}

/// Random token sequences: enough for a student to learn how its teacher maps tokens to logits.
#[derive(Clone, Debug)]
struct RandomTokens;

impl<B: Backend> Batcher<B, u64, TokenBatch<B>> for RandomTokens {
    fn batch(&self, seeds: Vec<u64>, device: &B::Device) -> TokenBatch<B> {
        let shape = [seeds.len(), TOKENS];
        let tokens: Vec<i32> = seeds
            .iter()
            .flat_map(|seed| {
                (0..TOKENS as u64).map(move |i| {
                    let mixed = (seed * 31 + i + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
                    ((mixed >> 33) % VOCAB as u64) as i32
                })
            })
            .collect();
        let tokens = Tensor::<B, 2, Int>::from_data(TensorData::new(tokens, shape), device);
        TokenBatch {
            positions: Tensor::arange(0..TOKENS as i64, device)
                .unsqueeze::<2>()
                .expand(shape),
            segments: tokens.ones_like(),
            targets: tokens.clone(),
            mask: Tensor::ones(shape, device),
            rows: Vec::new(),
            tokens,
        }
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    type Inner = Flex;
    type Train = Autodiff<Inner>;
    let device = Default::default();

    // A teacher with four heads, and a student with two that begins as pairs of them.
    let teacher = Plain::<Inner>::init(HeadGrid::new(4, 8), &device);
    let teacher_tensors = TensorSet::collect(&teacher);
    let skeleton = Plain::<Train>::init(HeadGrid::new(2, 8), &device);
    let spec = LtiSpec::new(teacher.layers[0].axes());
    let awaiting = AwaitingTeacher::new(Decoder {
        embedding: skeleton.embedding,
        positions: skeleton.positions,
        layers: learn_to_init(skeleton.layers, &spec)?,
        head: skeleton.head,
    });
    let teacher_tensors = TensorSet::from_inner(&teacher_tensors);
    let (student, _) = awaiting.inject(&teacher_tensors, &Rules::by_name())?;
    let student = set_trainable(student, |parameter| parameter.in_map);

    // From here on it is Burn's own training.
    let distiller = Distiller::new(student, Arc::new(teacher), DistillationLoss::KL)?;
    let train = DataLoaderBuilder::new(RandomTokens)
        .batch_size(16)
        .shuffle(0)
        .build(InMemDataset::new((0..1024).collect()));
    let valid = DataLoaderBuilder::new(RandomTokens)
        .batch_size(16)
        .build(InMemDataset::new((5000..5064).collect()));
    let out = std::env::temp_dir().join("burn-lti-learner");
    let result = SupervisedTraining::new(&out, train, valid)
        .metrics((
            TokenMean::loss(),
            TokenMean::kl(),
            TokenMean::top1_agreement(),
        ))
        .num_epochs(3)
        .summary()
        .launch(Learner::new(
            distiller,
            AdamWConfig::new().init::<Train, _>(),
            1e-2,
        ));

    // The maps are folded away: an ordinary decoder with two heads is left.
    let trained = result.model.into_student();
    let plain = collapse(&trained, KernelPrecision::Default)?
        .into_plain(Plain::<Inner>::init(HeadGrid::new(2, 8), &device))?;
    println!("{plain}");
    Ok(())
}
