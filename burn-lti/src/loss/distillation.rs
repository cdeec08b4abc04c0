//! [`DistillationLoss`]: the loss and its gradient, chunk by chunk.

use burn::prelude::*;
use burn::tensor::DType;

use super::chunk::{Chunk, ChunkOutput, Mix};
use super::{LossError, LossSumsTensor};
use crate::decoder::{CausalLm, Head, TokenBatch};

/// `alpha T^2 KL(teacher || student) + (1 - alpha) CE`, averaged over tokens with a target.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DistillationLoss {
    alpha: f64,
    temperature: f64,
    chunk_tokens: usize,
}

/// What the loss compares: the hidden states of `n` tokens in both models, and both heads.
#[derive(Clone, Debug)]
pub struct LossInput<B: Backend> {
    /// `[n, d_student]`
    pub student_hidden: Tensor<B, 2>,
    /// `[d_student, vocab]`
    pub student_head: Head<B>,
    /// `[n, d_teacher]`
    pub teacher_hidden: Tensor<B, 2>,
    /// `[d_teacher, vocab]`
    pub teacher_head: Head<B>,
    /// The token that follows, `[n]`.
    pub targets: Tensor<B, 1, Int>,
    /// 1 where there is one, 0 where there is none, `[n]`.
    pub mask: Tensor<B, 1>,
}

impl<B: Backend> LossInput<B> {
    /// The final hidden states and head of a student beside those of `teacher` on the same batch.
    ///
    /// `student_hidden` is `[batch, tokens, d_student]`; its first two axes are joined.
    pub fn new(
        student_hidden: Tensor<B, 3>,
        student_head: Head<B>,
        teacher: &impl CausalLm<B>,
        batch: &TokenBatch<B>,
    ) -> Self {
        let [rows, tokens] = batch.mask.dims();
        Self {
            student_hidden: student_hidden.flatten(0, 1),
            student_head,
            teacher_hidden: teacher.hidden_states(batch).flatten(0, 1),
            teacher_head: teacher.head(),
            targets: batch.targets.clone().reshape([rows * tokens]),
            mask: batch.mask.clone().reshape([rows * tokens]),
        }
    }
}

/// The sums of a loss and its gradient, in the float types of the hidden states and the head.
#[derive(Clone, Debug)]
pub struct LossGradient<B: Backend> {
    /// The sums, still on the device.
    pub sums: LossSumsTensor<B>,
    /// Gradient with respect to the student's hidden states, `[n, d_student]`.
    pub hidden: Tensor<B, 2>,
    /// Gradient with respect to the student's head, `[d_student, vocab]`, if it trains.
    pub head: Option<Tensor<B, 2>>,
    /// What both have yet to be multiplied by, `[1]` in the backend's default float type. Only if the
    /// states are float16: a mean over thousands of tokens would leave that type's range, so its
    /// gradient is that of the sum.
    pub scale: Option<Tensor<B, 1>>,
}

impl DistillationLoss {
    /// A loss that is all KL at temperature 1, in chunks of 512 tokens.
    pub const KL: Self = Self {
        alpha: 1.0,
        temperature: 1.0,
        chunk_tokens: 512,
    };

    /// A loss with its settings checked.
    ///
    /// # Errors
    ///
    /// [`LossError`] naming the setting that is out of range.
    pub fn new(alpha: f64, temperature: f64, chunk_tokens: usize) -> Result<Self, LossError> {
        if !(0.0..=1.0).contains(&alpha) {
            return Err(LossError::Alpha { found: alpha });
        }
        if !(temperature.is_finite() && temperature > 0.0) {
            return Err(LossError::Temperature { found: temperature });
        }
        if chunk_tokens == 0 {
            return Err(LossError::ChunkTokens);
        }
        Ok(Self {
            alpha,
            temperature,
            chunk_tokens,
        })
    }

    /// The soft loss's share.
    pub const fn alpha(&self) -> f64 {
        self.alpha
    }

    /// The temperature.
    pub const fn temperature(&self) -> f64 {
        self.temperature
    }

    /// The sums of `student` against `teacher` on a batch: an evaluation without training.
    pub fn sums_of<B: Backend>(
        &self,
        student: &impl CausalLm<B>,
        teacher: &impl CausalLm<B>,
        batch: &TokenBatch<B>,
    ) -> LossSumsTensor<B> {
        let hidden = student.hidden_states(batch);
        self.evaluate(LossInput::new(hidden, student.head(), teacher, batch))
    }

    /// The sums alone.
    pub fn evaluate<B: Backend>(&self, input: LossInput<B>) -> LossSumsTensor<B> {
        let mut sums = Tensor::zeros([6], &input.mask.device());
        for range in self.chunks(&input) {
            sums = sums + self.chunk(&input, range, None).1.sums;
        }
        self.sums(sums)
    }

    /// The sums and the gradient of their mean over tokens with a target, for float16 states up to
    /// [`LossGradient::scale`]. A batch without any such token has no gradient: it is zero.
    pub fn gradient<B: Backend>(&self, input: LossInput<B>) -> LossGradient<B> {
        // The mean's divisor; at least 1, so that an empty batch divides nothing by zero.
        let tokens = input.mask.clone().sum().clamp_min(1.0);
        let (weight, scale) = match input.student_hidden.dtype() {
            DType::F16 => (input.mask.clone(), Some(tokens.recip())),
            _ => (input.mask.clone() / tokens, None),
        };
        let head = input.student_head.weight.clone().transpose();

        let mut sums = Tensor::zeros([6], &input.mask.device());
        let mut hidden = Vec::new();
        let mut head_grad: Option<Tensor<B, 2>> = None;
        for range in self.chunks(&input) {
            let weight = weight.clone().slice(range.clone()).unsqueeze_dim(1);
            let (states, output) = self.chunk(&input, range, Some(weight));
            sums = sums + output.sums;
            let Some(logits_grad) = output.logits_grad else {
                continue; // a chunk with weights has a gradient
            };
            let logits_grad = logits_grad.cast(head.dtype());
            hidden.push(logits_grad.clone().matmul(head.clone()));
            if input.student_head.trains {
                let grad = states.transpose().matmul(logits_grad);
                head_grad = Some(match head_grad {
                    Some(sum) => sum + grad,
                    None => grad,
                });
            }
        }
        LossGradient {
            sums: self.sums(sums),
            hidden: Tensor::cat(hidden, 0),
            head: head_grad,
            scale,
        }
    }

    fn chunks<B: Backend>(
        &self,
        input: &LossInput<B>,
    ) -> impl Iterator<Item = std::ops::Range<usize>> + use<B> {
        let (tokens, size) = (input.mask.dims()[0], self.chunk_tokens);
        (0..tokens)
            .step_by(size)
            .map(move |start| start..(start + size).min(tokens))
    }

    /// The student's states of a chunk and what the chunk adds.
    fn chunk<B: Backend>(
        &self,
        input: &LossInput<B>,
        range: std::ops::Range<usize>,
        weight: Option<Tensor<B, 2>>,
    ) -> (Tensor<B, 2>, ChunkOutput<B>) {
        let student = input.student_hidden.clone().slice(range.clone());
        let teacher = input.teacher_hidden.clone().slice(range.clone());
        // Half-precision logits are widened, so that all that follows is in the default float type.
        let float = input.mask.dtype();
        let chunk = Chunk {
            student: student
                .clone()
                .matmul(input.student_head.weight.clone())
                .cast(float),
            teacher: teacher
                .matmul(input.teacher_head.weight.clone())
                .cast(float),
            targets: input.targets.clone().slice(range.clone()).unsqueeze_dim(1),
            mask: input.mask.clone().slice(range).unsqueeze_dim(1),
        };
        let mix = Mix {
            alpha: self.alpha,
            temperature: self.temperature,
        };
        (student, chunk.evaluate(mix, weight))
    }

    fn sums<B: Backend>(&self, values: Tensor<B, 1>) -> LossSumsTensor<B> {
        LossSumsTensor {
            values,
            alpha: self.alpha,
            temperature: self.temperature,
        }
    }
}
