//! The calibration text on its way through the layers, one batch in memory.

use std::sync::Arc;

use burn::data::dataloader::DataLoader;
use burn::prelude::*;
use burn::tensor::DType;
use faer::Mat;

use super::activation_store::{ActivationStore, Stream};
use super::error::{CalibrationError, Result};
use super::features::flat;
use super::settings::{Budget, Calibration};
use super::split::{HELD_OUT, SplitMoments};
use super::stream::{Basis, Narrow, StreamGram};
use super::targets::Targets;
use super::teacher::{TeacherTensors, site_name};
use super::{importance, moments};
use crate::decoder::{LayeredDecoder, Reader, TokenBatch};
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
    /// The teacher at the student's width, where that is another.
    narrow: Option<Narrow<B, T>>,
    /// Those of the teacher at the student's width.
    pub(super) tensors: TeacherTensors<B>,
    /// The student's width.
    pub(super) d_model: usize,
    propagates: bool,
    /// The teacher's layer that each of the student's stands for.
    kept: Vec<usize>,
    batches: &'a Arc<dyn DataLoader<B, TokenBatch<B>>>,
    store: ActivationStore,
    /// What the rows of each batch count, `[rows, 1]`.
    importance: Vec<Tensor<B, 2>>,
    device: B::Device,
}

impl<'a, B: Backend, T: LayeredDecoder<B>> Text<'a, B, T> {
    /// Has the teacher read the text once: keeps its inputs of all layers, the last one's output if a fit `needs` it,
    /// and finds out how much each token counts; the teacher's stream between all blocks is added to `states`.
    pub(super) fn read(
        teacher: &'a T,
        calibration: &Calibration<'_>,
        batches: &'a Arc<dyn DataLoader<B, TokenBatch<B>>>,
        needs_output: bool,
        mut states: Option<&mut StreamGram>,
    ) -> Result<Self> {
        let layers = teacher.layers();
        let mut text = Self {
            teacher,
            narrow: None,
            tensors: TeacherTensors(TensorSet::collect(teacher)),
            d_model: calibration.spec.teacher.d_model,
            propagates: calibration.budget == Budget::None,
            kept: calibration
                .kept
                .clone()
                .unwrap_or_else(|| (0..layers).collect()),
            batches,
            store: ActivationStore::new(
                teacher.head().weight.dtype(),
                layers,
                states.is_some().then_some(calibration.student.d_model),
            )?,
            importance: Vec::new(),
            device: teacher.devices()[0].clone(),
        };
        let streams = match needs_output {
            false => layers,
            true => layers + 1,
        };
        let mut tokens = 0.0;
        for (_, batch) in text.batches() {
            let context = teacher.context(&batch);
            let mut h = teacher.embed(&batch);
            let index = text.store.add_batch(h.dims());
            let mut received = Vec::new();
            for layer in 0..streams {
                if layer > 0 {
                    let attended = h.clone() + teacher.attention(layer - 1, h, &context);
                    if let Some(states) = &mut states {
                        states.add(attended.clone(), &batch)?;
                    }
                    h = attended.clone() + teacher.feed_forward(layer - 1, attended);
                }
                if let Some(states) = &mut states {
                    states.add(h.clone(), &batch)?;
                }
                if layer < layers {
                    let weights = teacher.attention_weights(layer, h.clone(), &context);
                    received.push(importance::received(weights));
                }
                text.store.write(index, Stream::Teacher(layer), h.clone())?;
            }
            text.importance.push(importance::of_rows(received));
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

    /// The student's stream begins as the input of its first layer.
    pub(super) fn begin(&mut self, student: &impl LayeredDecoder<B>) -> Result<()> {
        for (index, batch) in self.batches() {
            let embedded = student.embed(&batch);
            self.store.write(index, Stream::Student, embedded)?;
        }
        Ok(())
    }

    /// The teacher at the student's width: what computes on the student's stream.
    pub(super) fn at_width(&self) -> T {
        match &self.narrow {
            Some(narrow) => narrow.decoder.clone(),
            None => self.teacher.clone(),
        }
    }

    /// The directions of the teacher's stream that the student's has, where they are fewer.
    pub(super) fn basis(&self) -> Option<&Basis<B>> {
        self.narrow.as_ref().map(|narrow| &narrow.basis)
    }

    /// Other directions, or the first.
    pub(super) fn set_basis(&mut self, basis: Basis<B>) {
        match &mut self.narrow {
            Some(narrow) => narrow.basis = basis,
            None => self.narrow = Some(Narrow::new(self.teacher, basis)),
        }
    }

    /// The teacher at the student's width with these tensors, by its own names.
    pub(super) fn narrowed(&mut self, tensors: &TensorSet<B>) {
        if let Some(narrow) = self.narrow.take() {
            let narrow = narrow.filled(tensors);
            self.tensors = TeacherTensors(TensorSet::collect(&narrow.decoder));
            self.narrow = Some(narrow);
        }
    }

    /// A stream of the teacher's, `[batch, tokens, t_width]`, in the directions of the student's.
    fn in_basis(&self, stream: Tensor<B, 3>) -> Tensor<B, 3> {
        match self.basis() {
            Some(basis) => stream.matmul(basis.into.clone().unsqueeze()),
            None => stream,
        }
    }

    /// What the teacher's `reader` reads, `[batch, tokens, t_width]`, by the number of the student's layer.
    pub(super) fn read_by_teacher(
        &mut self,
        index: usize,
        reader: Reader,
    ) -> Result<Option<Tensor<B, 3>>> {
        let layers = self.teacher.layers();
        let mut stream = |stream| self.store.read(index, stream, &self.device);
        Ok(match reader {
            Reader::Attention(layer) => {
                let source = self.kept[layer];
                let h = stream(Stream::Teacher(source))?;
                self.teacher.normed(Reader::Attention(source), h)
            }
            Reader::FeedForward(layer) => {
                let source = self.kept[layer];
                let attended = stream(Stream::Teacher(source))? + stream(Stream::Attention)?;
                self.teacher.normed(Reader::FeedForward(source), attended)
            }
            Reader::Head => self
                .teacher
                .normed(Reader::Head, stream(Stream::Teacher(layers))?),
        })
    }

    /// The gains of the norm before the teacher's `reader`, by the number of the student's layer, `[1, t_width]`.
    pub(super) fn gains(&self, reader: Reader) -> Option<Tensor<B, 2>> {
        let reader = match reader {
            Reader::Attention(layer) => Reader::Attention(self.kept[layer]),
            Reader::FeedForward(layer) => Reader::FeedForward(self.kept[layer]),
            Reader::Head => Reader::Head,
        };
        let head = self.teacher.head().weight;
        let (width, dtype) = (head.dims()[0], head.dtype());
        // Of a state of equal numbers the norm leaves its gains, if they are so large that what it adds is nothing.
        let equal = Tensor::full([1, 1, width], 1024.0, (&self.device, dtype));
        Some(flat(self.teacher.normed(reader, equal)?).cast(DType::F32))
    }

    /// What the student's stream has come to before the head, `[batch, tokens, d_model]`.
    pub(super) fn student_output(&mut self, batch: usize) -> Result<Tensor<B, 3>> {
        match self.propagates {
            true => self.store.read(batch, Stream::Student, &self.device),
            false => self.wanted_output(batch, self.kept.len() - 1),
        }
    }

    /// The root of what the tokens of a batch count, padding nothing: `[rows, 1]`.
    pub(super) fn roots(&self, index: usize, batch: &TokenBatch<B>) -> Tensor<B, 2> {
        let [rows, _] = self.importance[index].dims();
        let present = batch.segments.clone().greater_elem(0).float();
        present.reshape([rows, 1]).cast(DType::F32) * self.importance[index].clone().sqrt()
    }

    /// The batches in their order, and their numbers.
    pub(super) fn batches(&self) -> impl Iterator<Item = (usize, TokenBatch<B>)> + use<'a, B, T> {
        self.batches.iter().enumerate()
    }

    /// How many layers the student has.
    pub(super) const fn layers(&self) -> usize {
        self.kept.len()
    }

    /// The teacher's layer that the student's `layer` stands for.
    pub(super) fn source(&self, layer: usize) -> usize {
        self.kept[layer]
    }

    /// The name of the teacher's weight from which that of the student's `layer` is made.
    pub(super) fn source_name(&self, layer: usize, role: Role) -> Result<String> {
        site_name(self.teacher, self.source(layer), role)
    }

    /// Tensors of the teacher by the names that the student has for them, without those of layers that are gone.
    pub(super) fn by_own_names(&self, tensors: &TensorSet<B>) -> Result<TensorSet<B>> {
        let layers = self.teacher.layers();
        if self.kept.iter().copied().eq(0..layers) {
            return Ok(tensors.clone());
        }
        let mut own = Vec::new();
        for layer in 0..layers {
            let of_teacher = site_name(self.teacher, layer, Role::Query)?;
            let of_student = self.kept.iter().position(|kept| *kept == layer);
            let of_student = of_student.map(|number| site_name(self.teacher, number, Role::Query));
            let of_student = of_student.transpose()?;
            // What names of different layers end with alike is the place in a layer.
            let other = site_name(self.teacher, (layer + 1) % layers, Role::Query)?;
            let place = common_ending(&of_teacher, &other);
            let prefix = |name: &str| name[..name.len() - place].to_owned();
            own.push((prefix(&of_teacher), of_student.as_deref().map(prefix)));
        }
        Ok(tensors.renamed(|name| {
            let of_layer = own.iter().find_map(|(of_teacher, of_student)| {
                let rest = name.strip_prefix(of_teacher.as_str())?;
                rest.starts_with('.').then_some((of_student, rest))
            });
            match of_layer {
                None => Some(name.to_owned()),
                Some((of_student, rest)) => of_student.as_ref().map(|it| format!("{it}{rest}")),
            }
        }))
    }

    /// Keeps what the teacher's attention puts out in `layer`, which [`targets`](Self::targets) needs.
    pub(super) fn keep_attention(&mut self, layer: usize) -> Result<()> {
        for (index, batch) in self.batches() {
            let context = self.teacher.context(&batch);
            let source = self.source(layer);
            let h = self
                .store
                .read(index, Stream::Teacher(source), &self.device)?;
            let attention = self.teacher.attention_output(source, h, &context);
            self.store.write(index, Stream::Attention, attention)?;
        }
        Ok(())
    }

    /// Whether a layer is fitted on what the student's layers before it make of the text.
    pub(super) const fn propagates(&self) -> bool {
        self.propagates
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

    /// The input of the teacher's layer that `layer` stands for, `[batch, tokens, d_model]`.
    pub(super) fn teacher_input(&mut self, batch: usize, layer: usize) -> Result<Tensor<B, 3>> {
        let stream = Stream::Teacher(self.source(layer));
        let stream = self.store.read(batch, stream, &self.device)?;
        Ok(self.in_basis(stream))
    }

    /// What `layer` should put out, `[batch, tokens, d_model]`: what the layer reads that the student's next
    /// stands for, or the last layer's output. So a layer learns to do the part of those left out behind it.
    pub(super) fn wanted_output(&mut self, batch: usize, layer: usize) -> Result<Tensor<B, 3>> {
        let next = self.kept.get(layer + 1).copied();
        let stream = Stream::Teacher(next.unwrap_or_else(|| self.teacher.layers()));
        let stream = self.store.read(batch, stream, &self.device)?;
        Ok(self.in_basis(stream))
    }

    /// The student's stream after the attention of `layer`, `[batch, tokens, d_model]`, and what is missing of what the
    /// layer should put out once `block` has added to it, `[rows, d_model]` in float32.
    pub(super) fn missing(
        &mut self,
        index: usize,
        layer: usize,
        batch: &TokenBatch<B>,
        student: &impl LayeredDecoder<B>,
        block: impl FnOnce(Tensor<B, 3>) -> Tensor<B, 3>,
    ) -> Result<(Tensor<B, 3>, Tensor<B, 2>)> {
        let h = self.student_input(index, layer)?;
        let attended = h.clone() + student.attention(layer, h, &student.context(batch));
        let output = attended.clone() + block(attended.clone());
        let wanted = self.wanted_output(index, layer)?;
        let missing = flat(wanted).cast(DType::F32) - flat(output).cast(DType::F32);
        Ok((attended, missing))
    }

    /// Of what the attention of `layer` reads in a fit.
    pub(super) fn attention_grams(&mut self, layer: usize) -> Result<InputGrams> {
        let zeros = || Mat::zeros(self.d_model, self.d_model);
        let (mut even, mut by_importance) = (zeros(), zeros());
        let teacher = self.at_width();
        for (index, batch) in self.batches() {
            let (h, context) = (self.student_input(index, layer)?, teacher.context(&batch));
            let source = self.source(layer);
            let [x, _] = teacher.attention_inputs(source, h, &context);
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
        let attention = self.store.read(index, Stream::Attention, &self.device)?;
        let streams = [
            self.teacher_input(index, layer)?,
            self.student_input(index, layer)?,
            self.in_basis(attention),
        ];
        let out = self.source_name(layer, Role::Out)?;
        Ok(Targets::new(
            streams,
            self.tensors.bias(&out, self.d_model),
            self.teacher.attention_output_gain(self.source(layer)),
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

/// How long the ending is that both names have, from a dot on.
fn common_ending(a: &str, b: &str) -> usize {
    let alike = a
        .bytes()
        .rev()
        .zip(b.bytes().rev())
        .take_while(|(a, b)| a == b);
    let ending = &a[a.len() - alike.count()..];
    ending.find('.').map_or(0, |dot| ending.len() - dot)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_layers_end_alike_from_a_dot_on() {
        let ending = common_ending("model.layers.1.attn.q", "model.layers.11.attn.q");
        assert_eq!(ending, ".attn.q".len());
        assert_eq!(common_ending("layers.3.q", "layers.4.q"), ".q".len());
        assert_eq!(common_ending("a", "b"), 0);
    }
}
