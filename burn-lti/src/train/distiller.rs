//! [`Distiller`]: a student and its teacher as one trainable module.

use std::sync::Arc;

use burn::module::{AutodiffModule, Content, ModuleDisplay};
use burn::nn::{Initializer, Linear, LinearConfig};
use burn::prelude::*;
use burn::tensor::backend::AutodiffBackend;
use burn::train::{InferenceStep, ItemLazy, TrainOutput, TrainStep};
use serde::{Deserialize, Serialize};

use super::gradients::{collect_gradients, scale};
use super::{StepClock, Teacher};
use crate::compat;
use crate::decoder::{CausalLm, FeatureTap, Head, TokenBatch};
use crate::kernels::{ProductPrecision, given_gradient};
use crate::loss::{FeaturePair, LossError, LossInput, LossSchedule, LossSums, LossSumsTensor};

/// A layer of the student and the layer of the teacher that it is compared with, counted from 0;
/// `[student, teacher]` in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "[usize; 2]", into = "[usize; 2]")]
pub struct LayerPair {
    /// Of the student.
    pub student: usize,
    /// Of the teacher.
    pub teacher: usize,
}

impl From<[usize; 2]> for LayerPair {
    fn from([student, teacher]: [usize; 2]) -> Self {
        Self { student, teacher }
    }
}

impl From<LayerPair> for [usize; 2] {
    fn from(LayerPair { student, teacher }: LayerPair) -> Self {
        [student, teacher]
    }
}

/// A student that learns from a teacher.
///
/// The teacher `T` is an `Arc` of a [`Teacher`] on the inner backend, a model as a rule: it has no
/// gradients, is in no checkpoint, and cloning the distiller does not copy it.
#[derive(Module, Debug)]
#[module(custom_display)]
pub struct Distiller<B: Backend, M: Module<B>, T> {
    student: M,
    /// For each pair of layers a map of the student's attention output, if they are to be learned. They
    /// serve the feature loss alone and stay here when the student goes.
    projectors: Vec<Linear<B>>,
    #[module(skip)]
    teacher: T,
    #[module(skip)]
    loss: LossSchedule,
    #[module(skip)]
    pairs: Vec<LayerPair>,
    #[module(skip)]
    clock: StepClock,
    #[module(skip)]
    precision: ProductPrecision,
}

impl<B, M, T> Distiller<B, M, Arc<T>>
where
    B: AutodiffBackend,
    M: CausalLm<B>,
    T: Teacher<B::InnerBackend>,
{
    /// Joins student and teacher. A feature loss compares each layer of the student with the teacher's
    /// of the same number, until [`with_pairs`](Self::with_pairs) changes it.
    ///
    /// # Errors
    ///
    /// [`LossError::Models`] if their vocabularies differ; with a feature loss also those of
    /// [`with_pairs`](Self::with_pairs).
    pub fn new(
        student: M,
        teacher: Arc<T>,
        loss: impl Into<LossSchedule>,
    ) -> Result<Self, LossError> {
        let teacher_vocab = teacher.vocab_size();
        let [_, student_vocab] = student.head().weight.dims();
        if teacher_vocab != student_vocab {
            return Err(LossError::Models(format!(
                "the teacher knows {teacher_vocab} tokens and the student {student_vocab}: distillation \
                 compares them token by token, so both need the same vocabulary"
            )));
        }
        let layers = student.layers();
        let distiller = Self {
            student,
            projectors: Vec::new(),
            teacher,
            loss: loss.into(),
            pairs: Vec::new(),
            clock: StepClock::new(),
            precision: ProductPrecision::default(),
        };
        match distiller.loss.at(0).feature() {
            None => Ok(distiller),
            Some(_) => distiller.with_pairs((0..layers).map(|layer| LayerPair {
                student: layer,
                teacher: layer,
            })),
        }
    }

    /// Compares these layers in the feature loss.
    ///
    /// # Errors
    ///
    /// [`LossError::Models`] without a pair, for a layer that does not exist, or if the teacher has no
    /// attention outputs to show.
    pub fn with_pairs(
        mut self,
        pairs: impl IntoIterator<Item = LayerPair>,
    ) -> Result<Self, LossError> {
        let teacher_layers = self.teacher.attention_layers();
        let teacher_layers = teacher_layers.ok_or_else(|| {
            LossError::Models(
                "the feature loss needs the teacher's attention outputs, which its saved top tokens do \
                 not have: leave the feature loss out, or let the teacher run"
                    .to_owned(),
            )
        })?;
        let pairs: Vec<LayerPair> = pairs.into_iter().collect();
        if pairs.is_empty() {
            return Err(LossError::Models(
                "the feature loss has no pair of layers: name at least one, or leave the feature loss out"
                    .to_owned(),
            ));
        }
        for pair in &pairs {
            check_layer("student", pair.student, self.student.layers())?;
            check_layer("teacher", pair.teacher, teacher_layers)?;
        }
        self.pairs = pairs;
        Ok(self)
    }

    /// Learns a map `[d_student, d_teacher]` of the student's attention output for each pair, so that the
    /// student need not have the teacher's features, only features from which those follow. Each begins
    /// as the identity where the widths agree.
    pub fn with_projectors(mut self, d_teacher: usize, device: &B::Device) -> Self {
        let [d_student, _] = self.student.head().weight.dims();
        let projector = |_: &LayerPair| {
            let linear = LinearConfig::new(d_student, d_teacher).with_bias(false);
            if d_student != d_teacher {
                return linear.init(device);
            }
            let mut linear = linear.with_initializer(Initializer::Zeros).init(device);
            linear.weight = linear
                .weight
                .map(|_| Tensor::eye(d_student, device).require_grad());
            linear
        };
        self.projectors = self.pairs.iter().map(projector).collect();
        self
    }

    /// Reads the steps of the loss's schedules from `clock`, which whoever takes the steps advances:
    /// [`StudentOptimizer::with_clock`](super::StudentOptimizer::with_clock).
    pub fn with_clock(mut self, clock: StepClock) -> Self {
        self.clock = clock;
        self
    }

    /// Multiplies in this precision in training, teacher and student, forwards and backwards; never where
    /// the student is measured. Default: float32.
    pub const fn with_precision(mut self, precision: ProductPrecision) -> Self {
        self.precision = precision;
        self
    }
}

fn check_layer(model: &'static str, layer: usize, layers: usize) -> Result<(), LossError> {
    match layer < layers {
        true => Ok(()),
        false => Err(LossError::Models(format!(
            "a pair of the feature loss names layer {layer} of the {model}, whose last layer is {}",
            layers.saturating_sub(1)
        ))),
    }
}

impl<B: Backend, M: Module<B>, T> Distiller<B, M, T>
where
    T: Clone + std::fmt::Debug + Send,
{
    /// The student.
    pub const fn student(&self) -> &M {
        &self.student
    }

    /// Gives the student back.
    pub fn into_student(self) -> M {
        self.student
    }
}

impl<B: Backend, M: Module<B>, T> ModuleDisplay for Distiller<B, M, T>
where
    T: Clone + std::fmt::Debug + Send,
    M: ModuleDisplay,
{
    /// The student and its loss: the teacher's `Debug` would bury both.
    fn custom_content(&self, content: Content) -> Option<Content> {
        content
            .add("student", &self.student)
            .add_debug_attribute("loss", &self.loss)
            .optional()
    }
}

/// The student's side of a step, still on the graph.
struct Outputs<A: AutodiffBackend> {
    /// `[batch, tokens, d_student]`
    hidden: Tensor<A, 3>,
    head: Head<A>,
    /// Of each pair, `[batch * tokens, d_teacher]`.
    features: Vec<Tensor<A, 2>>,
}

impl<A, M, T> Distiller<A, M, Arc<T>>
where
    A: AutodiffBackend,
    M: CausalLm<A>,
    T: Teacher<A::InnerBackend>,
{
    fn run_student(&self, batch: &TokenBatch<A>) -> Outputs<A> {
        let layers: Vec<usize> = self.pairs.iter().map(|pair| pair.student).collect();
        let mut tap = FeatureTap::attention_of(&layers);
        let hidden = self.student.forward(batch, &mut tap);
        let attention = tap.into_outputs().unwrap_or_default();
        let flat = attention.into_iter().map(|output| output.flatten(0, 1));
        let features = match self.projectors.as_slice() {
            [] => flat.collect(),
            projectors => flat
                .zip(projectors)
                .map(|(output, projector)| projector.forward(output))
                .collect(),
        };
        Outputs {
            hidden,
            head: self.student.head(),
            features,
        }
    }

    /// What the loss compares, on the inner backend.
    fn loss_input(
        &self,
        student: &Outputs<A>,
        batch: &TokenBatch<A::InnerBackend>,
    ) -> LossInput<A::InnerBackend> {
        let layers: Vec<usize> = self.pairs.iter().map(|pair| pair.teacher).collect();
        let targets = self.teacher.teach(batch, &layers);
        let head = Head {
            weight: compat::inner(&student.head.weight),
            trains: student.head.trains,
            cap: student.head.cap,
        };
        let hidden = compat::inner(&student.hidden);
        let mut input = LossInput::new(hidden, head, targets.tokens, batch);
        let attention = targets.attention.into_iter();
        input.features = student
            .features
            .iter()
            .zip(attention.map(|output| output.flatten(0, 1)))
            .map(|(student, teacher)| FeaturePair {
                student: compat::inner(student),
                teacher,
            })
            .collect();
        input
    }
}

impl<B, M, T> TrainStep for Distiller<B, M, Arc<T>>
where
    B: AutodiffBackend,
    M: CausalLm<B> + AutodiffModule<B, InnerModule: ModuleDisplay>,
    T: Teacher<B::InnerBackend>,
{
    type Input = TokenBatch<B>;
    type Output = LossSumsTensor<B::InnerBackend>;

    /// The loss and its gradient with respect to the hidden states (and the head, if it trains, and
    /// the features) are worked out on the inner backend; a number that has exactly that gradient carries it on
    /// into the student by its `backward`.
    fn step(&self, batch: TokenBatch<B>) -> TrainOutput<Self::Output> {
        self.precision.scope(|| self.step_in_scope(batch))
    }
}

impl<B, M, T> Distiller<B, M, Arc<T>>
where
    B: AutodiffBackend,
    M: CausalLm<B> + AutodiffModule<B, InnerModule: ModuleDisplay>,
    T: Teacher<B::InnerBackend>,
{
    fn step_in_scope(&self, batch: TokenBatch<B>) -> TrainOutput<LossSumsTensor<B::InnerBackend>> {
        let student = self.run_student(&batch);
        let input = self.loss_input(&student, &batch.inner());
        let gradient = self.loss.at(self.clock.taken()).gradient(input);

        let hidden_gradient = gradient.hidden.reshape(student.hidden.dims());
        let hidden_gradient = Tensor::from_inner(hidden_gradient);
        let mut surrogate = given_gradient(student.hidden, hidden_gradient);
        if let Some(head_gradient) = gradient.head {
            // A clone, while `head` lives: a tied head is a transposed view of the embedding, which libtorch
            // takes for a tensor of its own and would write a product into.
            let head = student.head.weight.clone();
            surrogate = surrogate + given_gradient(head, Tensor::from_inner(head_gradient));
        }
        for (feature, gradient) in student.features.into_iter().zip(gradient.features) {
            surrogate = surrogate + given_gradient(feature, Tensor::from_inner(gradient));
        }
        let mut grads = collect_gradients(self, surrogate.backward());
        if let Some(factor) = gradient.scale {
            grads = scale::<B, _>(self, grads, factor);
        }
        TrainOutput {
            grads,
            item: gradient.sums,
        }
    }
}

impl<B, M, T> InferenceStep for Distiller<B, M, Arc<T>>
where
    B: Backend,
    M: CausalLm<B>,
    T: Teacher<B>,
{
    type Input = TokenBatch<B>;
    type Output = LossSumsTensor<B>;

    /// The loss on its way, without the feature loss.
    fn step(&self, batch: TokenBatch<B>) -> Self::Output {
        let tokens = self.teacher.teach(&batch, &[]).tokens;
        let loss = self.loss.at(self.clock.taken());
        loss.sums_of(&self.student, tokens, &batch)
    }
}

impl<B: Backend> ItemLazy for LossSumsTensor<B> {
    type ItemSync = LossSums;

    fn sync(self) -> LossSums {
        self.read()
    }
}
