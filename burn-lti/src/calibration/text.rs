//! The calibration text on its way through the layers, one batch in memory.

use std::sync::Arc;

use burn::data::dataloader::DataLoader;
use burn::prelude::*;
use burn::tensor::DType;
use faer::Mat;

use super::activation_store::{ActivationStore, Stream};
use super::error::{CalibrationError, Result};
use super::features::flat;
use super::settings::{Budget, FeedForward};
use super::split::{HELD_OUT, SplitMoments};
use super::targets::Targets;
use super::teacher::{TeacherTensors, site_name};
use super::{importance, moments};
use crate::decoder::{LayeredDecoder, TokenBatch};
use crate::geometry::Role;
use crate::tensors::TensorSet;

/// Second moments of what query, key and value of a layer read in a fit, `[d_model, d_model]`: sums over all
/// tokens.
pub(super) struct InputGrams {
    /// Every token counts the same.
    pub(super) even: Mat<f64>,
    /// By the squared attention that tokens receive, as rows of fits count.
    pub(super) by_importance: Mat<f64>,
}

/// The text's batches, and the activations of teacher and student for each.
pub(super) struct Text<'a, B: Backend, T> {
    pub(super) teacher: &'a T,
    pub(super) tensors: TeacherTensors<B>,
    pub(super) d_model: usize,
    /// Whether a layer is fitted on what the student's layers before it make of the text.
    propagates: bool,
    batches: &'a Arc<dyn DataLoader<B, TokenBatch<B>>>,
    store: ActivationStore,
    /// What the rows of each batch count, `[rows, 1]`.
    importance: Vec<Tensor<B, 2>>,
    device: B::Device,
}

impl<'a, B: Backend, T: LayeredDecoder<B>> Text<'a, B, T> {
    /// Has the teacher read the text once: keeps its inputs of all layers, and finds out how much each
    /// token counts. The student's stream begins as the input of the first layer.
    pub(super) fn read(
        teacher: &'a T,
        student: &impl LayeredDecoder<B>,
        d_model: usize,
        batches: &'a Arc<dyn DataLoader<B, TokenBatch<B>>>,
        feed_forward: FeedForward,
        budget: Budget,
    ) -> Result<Self> {
        let layers = teacher.layers();
        let mut text = Self {
            teacher,
            tensors: TeacherTensors(TensorSet::collect(teacher)),
            d_model,
            propagates: budget == Budget::None,
            batches,
            store: ActivationStore::new(teacher.head().weight.dtype(), layers)?,
            importance: Vec::new(),
            device: teacher.devices()[0].clone(),
        };
        // Only a feed-forward fit asks for the last layer's output.
        let streams = match feed_forward {
            FeedForward::Keep => layers,
            FeedForward::Refit => layers + 1,
        };
        let mut tokens = 0.0;
        for (_, batch) in text.batches() {
            let context = teacher.context(&batch);
            let mut h = teacher.embed(&batch);
            let index = text.store.add_batch(h.dims());
            let mut received = Vec::new();
            for layer in 0..streams {
                if layer > 0 {
                    h = layer_output(teacher, layer - 1, h, &context);
                }
                if layer < layers {
                    let weights = teacher.attention_weights(layer, h.clone(), &context);
                    received.push(importance::received(weights));
                }
                text.store.write(index, Stream::Teacher(layer), h.clone())?;
            }
            text.importance.push(importance::of_rows(received));
            let embedded = student.embed(&batch);
            text.store.write(index, Stream::Student, embedded)?;
            let present = batch.segments.clone().greater_elem(0).int().sum();
            tokens += present.into_data().iter::<f64>().sum::<f64>();
        }
        if tokens == 0.0 {
            let what = "the calibration text holds no token: give it text";
            return Err(CalibrationError::Refused(what.to_owned()));
        }
        match text.importance.len() {
            count if count < HELD_OUT => Err(CalibrationError::Refused(format!(
                "calibration read {count} batches, and needs at least {HELD_OUT}, to fit on some and \
                 choose by the others: give it more text, or fewer sequences in a batch"
            ))),
            _ => Ok(text),
        }
    }

    /// The batches in their order, and their numbers.
    pub(super) fn batches(&self) -> impl Iterator<Item = (usize, TokenBatch<B>)> + use<'a, B, T> {
        self.batches.iter().enumerate()
    }

    /// Keeps what the teacher's attention puts out in `layer`, which [`targets`](Self::targets) needs.
    pub(super) fn keep_attention(&mut self, layer: usize) -> Result<()> {
        for (index, batch) in self.batches() {
            let context = self.teacher.context(&batch);
            let h = self.teacher_input(index, layer)?;
            let attention = self.teacher.attention_output(layer, h, &context);
            self.store.write(index, Stream::Attention, attention)?;
        }
        Ok(())
    }

    /// Takes the student's stream through `layer`, if the next is fitted on it.
    pub(super) fn advance(&mut self, layer: usize, student: &impl LayeredDecoder<B>) -> Result<()> {
        if !self.propagates {
            return Ok(());
        }
        for (index, batch) in self.batches() {
            let h = self.student_input(index, layer)?;
            let next = layer_output(student, layer, h, &student.context(&batch));
            self.store.write(index, Stream::Student, next)?;
        }
        Ok(())
    }

    /// The teacher's input of `layer`, `[batch, tokens, d_model]`, or after the last the output.
    pub(super) fn teacher_input(&mut self, batch: usize, layer: usize) -> Result<Tensor<B, 3>> {
        self.store.read(batch, Stream::Teacher(layer), &self.device)
    }

    /// Of what the attention of `layer` reads in a fit.
    pub(super) fn attention_grams(&mut self, layer: usize) -> Result<InputGrams> {
        let zeros = || Mat::zeros(self.d_model, self.d_model);
        let (mut even, mut by_importance) = (zeros(), zeros());
        for (index, batch) in self.batches() {
            let (h, context) = (
                self.student_input(index, layer)?,
                self.teacher.context(&batch),
            );
            let [x, _] = self.teacher.attention_inputs(layer, h, &context);
            let x = flat(x).cast(DType::F32);
            let rows = x.dims()[0];
            let present = batch.segments.greater_elem(0).float().reshape([rows, 1]);
            let x = x.mul(present.cast(DType::F32));
            let weighted = x.clone().mul(self.importance[index].clone());
            even += moments::matrix(x.clone().transpose().matmul(x.clone()), self.d_model)?;
            by_importance += moments::matrix(weighted.transpose().matmul(x), self.d_model)?;
        }
        Ok(InputGrams {
            even,
            by_importance,
        })
    }

    /// What the student's `layer` reads in a fit, `[batch, tokens, d_model]`: what it has come to, or in its
    /// place the teacher's.
    pub(super) fn student_input(&mut self, batch: usize, layer: usize) -> Result<Tensor<B, 3>> {
        match self.propagates {
            true => self.store.read(batch, Stream::Student, &self.device),
            false => self.teacher_input(batch, layer),
        }
    }

    /// What the attention of `layer` should put out.
    pub(super) fn targets(
        &mut self,
        index: usize,
        layer: usize,
        batch: &TokenBatch<B>,
    ) -> Result<Targets<B>> {
        let streams = [
            self.teacher_input(index, layer)?,
            self.student_input(index, layer)?,
            self.store.read(index, Stream::Attention, &self.device)?,
        ];
        let out = site_name(self.teacher, layer, Role::Out)?;
        Ok(Targets::new(
            streams,
            self.tensors.bias(&out, self.d_model),
            self.teacher.attention_output_gain(layer),
            self.importance[index].clone(),
            batch.segments.clone(),
        ))
    }

    /// Sums of `count` features and the targets of `layer`. `features` makes `[rows, count]` of a batch and
    /// the student's layer input.
    pub(super) fn moments(
        &mut self,
        layer: usize,
        count: usize,
        features: impl Fn(&TokenBatch<B>, Tensor<B, 3>) -> Tensor<B, 2>,
    ) -> Result<SplitMoments> {
        let mut sums = SplitMoments::zeros(count, self.d_model);
        for (index, batch) in self.batches() {
            let features = features(&batch, self.student_input(index, layer)?);
            let targets = self.targets(index, layer, &batch)?;
            sums.add(
                index,
                targets.weigh(features),
                targets.weigh(targets.attention.clone()),
                targets.weigh(targets.drift.clone()),
            )?;
        }
        Ok(sums)
    }
}

/// What `layer` makes of its input `h`.
fn layer_output<B: Backend, D: LayeredDecoder<B>>(
    decoder: &D,
    layer: usize,
    h: Tensor<B, 3>,
    context: &D::Context,
) -> Tensor<B, 3> {
    let attended = h.clone() + decoder.attention(layer, h, context);
    attended.clone() + decoder.feed_forward(layer, attended)
}
