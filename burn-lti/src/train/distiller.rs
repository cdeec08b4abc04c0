//! [`Distiller`]: a student and its teacher as one trainable module.

use std::sync::Arc;

use burn::module::{AutodiffModule, Content, ModuleDisplay};
use burn::prelude::*;
use burn::tensor::backend::AutodiffBackend;
use burn::train::{InferenceStep, ItemLazy, TrainOutput, TrainStep};

use super::optimizer::scale_gradients;
use super::tied::collect_gradients;
use crate::compat;
use crate::decoder::{CausalLm, Head, TokenBatch};
use crate::loss::{DistillationLoss, LossError, LossInput, LossSums, LossSumsTensor};

/// A student that learns from a teacher.
///
/// The teacher `T` is an `Arc` of a model on the inner backend: it has no gradients, is in no
/// checkpoint, and cloning the distiller does not copy it.
#[derive(Module, Debug)]
#[module(custom_display)]
pub struct Distiller<B: Backend, M: Module<B>, T> {
    student: M,
    #[module(skip)]
    teacher: T,
    #[module(skip)]
    loss: DistillationLoss,
    #[module(skip)]
    _backend: std::marker::PhantomData<B>,
}

impl<B, M, T> Distiller<B, M, Arc<T>>
where
    B: AutodiffBackend,
    M: CausalLm<B>,
    T: CausalLm<B::InnerBackend>,
    Arc<T>: Clone + std::fmt::Debug + Send,
{
    /// Joins student and teacher.
    ///
    /// # Errors
    ///
    /// [`LossError::Vocabulary`] if their vocabularies differ.
    pub fn new(student: M, teacher: Arc<T>, loss: DistillationLoss) -> Result<Self, LossError> {
        let [_, teacher_vocab] = teacher.head().weight.dims();
        let [_, student_vocab] = student.head().weight.dims();
        if teacher_vocab != student_vocab {
            return Err(LossError::Vocabulary {
                teacher: teacher_vocab,
                student: student_vocab,
            });
        }
        Ok(Self {
            student,
            teacher,
            loss,
            _backend: std::marker::PhantomData,
        })
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

impl<B, M, T> TrainStep for Distiller<B, M, Arc<T>>
where
    B: AutodiffBackend,
    M: CausalLm<B> + AutodiffModule<B, InnerModule: ModuleDisplay>,
    T: CausalLm<B::InnerBackend> + Sync,
{
    type Input = TokenBatch<B>;
    type Output = LossSumsTensor<B::InnerBackend>;

    /// The loss and its gradient with respect to the hidden states (and the head, if it trains) are
    /// worked out on the inner backend; `sum(hidden * gradient)` has exactly that gradient, and its
    /// `backward` carries it on into the student.
    fn step(&self, batch: TokenBatch<B>) -> TrainOutput<Self::Output> {
        let hidden = self.student.hidden_states(&batch);
        let head = self.student.head();
        let student_head = Head {
            weight: compat::inner(&head.weight),
            trains: head.trains,
        };
        let gradient = self.loss.gradient(LossInput::new(
            compat::inner(&hidden),
            student_head,
            self.teacher.as_ref(),
            &batch.inner(),
        ));

        let hidden_gradient = Tensor::from_inner(gradient.hidden.reshape(hidden.dims()));
        let mut surrogate = (hidden * hidden_gradient).sum();
        if let Some(head_gradient) = gradient.head {
            // A clone, while `head` lives: a tied head is a turned view of the embedding, which libtorch
            // takes for a tensor of its own and would write this product into.
            let product = head.weight.clone() * Tensor::from_inner(head_gradient);
            surrogate = surrogate + product.sum();
        }
        let mut grads = collect_gradients(self, surrogate.backward());
        if let Some(scale) = gradient.scale {
            scale_gradients::<B, _>(self, &mut grads, scale);
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
    T: CausalLm<B> + Sync,
{
    type Input = TokenBatch<B>;
    type Output = LossSumsTensor<B>;

    fn step(&self, batch: TokenBatch<B>) -> Self::Output {
        self.loss
            .sums_of(&self.student, self.teacher.as_ref(), &batch)
    }
}

impl<B: Backend> ItemLazy for LossSumsTensor<B> {
    type ItemSync = LossSums;

    fn sync(self) -> LossSums {
        self.read()
    }
}
