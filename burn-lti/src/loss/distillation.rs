//! The value and the gradient of a [`DistillationLoss`], chunk by chunk.

use std::ops::Range;

use burn::prelude::*;
use burn::tensor::DType;

use super::chunk::Chunk;
use super::sums::Known;
use super::{DistillationLoss, FeaturePair, LossSumsTensor, TeacherTokens};
use crate::compat;
use crate::decoder::{CausalLm, Head, TokenBatch};
use crate::kernels::loss_rows::RowsOutput;
use crate::kernels::{HeadGradient, head_product, is_cpu, product_through_head};

/// About as many logits of each model has a chunk on a CPU, whose rows go one by one: 48 MiB of float32. With
/// twice as many, the products with the head are at most a tenth faster.
const MAX_CPU_LOGITS: usize = 12 << 20;
/// Smaller chunks would make these products slower, however large the vocabulary.
const MIN_CPU_TOKENS: usize = 32;

/// What the loss compares: `n` tokens in both models.
#[derive(Clone, Debug)]
pub struct LossInput<B: Backend> {
    /// The student's final hidden states, `[n, d_student]`.
    pub student_hidden: Tensor<B, 2>,
    /// `[d_student, vocab]`
    pub student_head: Head<B>,
    /// The teacher's outputs.
    pub teacher: TeacherTokens<B>,
    /// Features of both, for the feature loss; without one they are not read.
    pub features: Vec<FeaturePair<B>>,
    /// The token that follows, `[n]`.
    pub targets: Tensor<B, 1, Int>,
    /// 1 where there is one, 0 where there is none, `[n]`.
    pub mask: Tensor<B, 1>,
}

impl<B: Backend> LossInput<B> {
    /// The final hidden states and head of a student beside a teacher's outputs on the same batch.
    ///
    /// `student_hidden` is `[batch, tokens, d_student]`; its first two axes are joined.
    pub fn new(
        student_hidden: Tensor<B, 3>,
        student_head: Head<B>,
        teacher: TeacherTokens<B>,
        batch: &TokenBatch<B>,
    ) -> Self {
        let [rows, tokens] = batch.mask.dims();
        Self {
            student_hidden: student_hidden.flatten(0, 1),
            student_head,
            teacher,
            features: Vec::new(),
            targets: batch.targets.clone().reshape([rows * tokens]),
            mask: batch.mask.clone().reshape([rows * tokens]),
        }
    }

    /// The same of these tokens alone, `[m]` numbers from 0 to below `n`.
    pub fn select(&self, tokens: Tensor<B, 1, Int>) -> Self {
        let pairs = self.features.iter();
        Self {
            student_hidden: self.student_hidden.clone().select(0, tokens.clone()),
            student_head: self.student_head.clone(),
            teacher: self.teacher.select(&tokens),
            features: pairs.map(|pair| pair.select(&tokens)).collect(),
            targets: self.targets.clone().select(0, tokens.clone()),
            mask: self.mask.clone().select(0, tokens),
        }
    }
}

/// The sums of a loss and its gradient, in the float types of what the gradient is for.
#[derive(Clone, Debug)]
pub struct LossGradient<B: Backend> {
    /// The sums, still on the device.
    pub sums: LossSumsTensor<B>,
    /// Gradient with respect to the student's hidden states, `[n, d_student]`.
    pub hidden: Tensor<B, 2>,
    /// Gradient with respect to the student's head, `[d_student, vocab]`, if it trains.
    pub head: Option<Tensor<B, 2>>,
    /// Gradients with respect to the student's features, `[n, d_model]` each, if there is a feature loss.
    pub features: Vec<Tensor<B, 2>>,
    /// What all have yet to be multiplied by, `[1]` in the backend's default float type. Only if the
    /// states are float16: a mean over thousands of tokens would leave that type's range, so its
    /// gradient is that of the sum.
    pub scale: Option<Tensor<B, 1>>,
}

impl DistillationLoss {
    /// The sums of `student` against `teacher` on a batch, without a feature loss: an evaluation.
    pub fn sums_of<B: Backend>(
        &self,
        student: &impl CausalLm<B>,
        teacher: TeacherTokens<B>,
        batch: &TokenBatch<B>,
    ) -> LossSumsTensor<B> {
        let hidden = student.hidden_states(batch);
        let logits = Self {
            feature: None,
            ..*self
        };
        logits.evaluate(LossInput::new(hidden, student.head(), teacher, batch))
    }

    /// The sums alone.
    pub fn evaluate<B: Backend>(&self, input: LossInput<B>) -> LossSumsTensor<B> {
        let mut sums = Tensor::zeros([6], &input.mask.device());
        for range in self.chunks(&input) {
            sums = sums + self.chunk(&input, range, None).1.sums;
        }
        self.sums(sums, &input)
    }

    /// The sums, and the KL of each token, `[n]`: 0 where it has no target, and where the teacher's outputs do not
    /// give it.
    pub fn evaluate_tokens<B: Backend>(
        &self,
        input: LossInput<B>,
    ) -> (LossSumsTensor<B>, Tensor<B, 1>) {
        const KL: usize = 4; // of a row's terms
        let mut sums = Tensor::zeros([6], &input.mask.device());
        let mut kl = vec![Tensor::zeros([0], &input.mask.device())];
        for range in self.chunks(&input) {
            let output = self.chunk(&input, range.clone(), None).1;
            sums = sums + output.sums;
            let terms = output.terms.slice([0..range.len(), KL..KL + 1]);
            kl.push(terms.flatten(0, 1));
        }
        (self.sums(sums, &input), Tensor::cat(kl, 0))
    }

    /// The sums and the gradient of their mean over tokens with a target, for float16 states up to
    /// [`LossGradient::scale`]. A batch without any such token has no gradient: it is zero.
    pub fn gradient<B: Backend>(&self, input: LossInput<B>) -> LossGradient<B> {
        // The mean's divisor; at least 1, so that an empty batch divides nothing by zero.
        let tokens = compat::total(input.mask.clone()).clamp_min(1.0);
        let (weight, scale) = match input.student_hidden.dtype() {
            DType::F16 => (input.mask.clone(), Some(tokens.recip())),
            _ => (input.mask.clone() / tokens, None),
        };
        let head = input.student_head.weight.clone().transpose();

        let mut sums = Tensor::zeros([6], &input.mask.device());
        let mut hidden = Vec::new();
        let mut head_grad = HeadGradient::new(&input.student_head.weight);
        for range in self.chunks(&input) {
            let weight = weight.clone().slice(range.clone()).unsqueeze_dim(1);
            let (states, output) = self.chunk(&input, range, Some(weight));
            sums = sums + output.sums;
            let Some(logits_grad) = output.logits_grad else {
                continue; // a chunk with weights has a gradient
            };
            let logits_grad = logits_grad.cast(head.dtype());
            hidden.push(product_through_head(logits_grad.clone(), head.clone()));
            if input.student_head.trains {
                head_grad.add(states, logits_grad);
            }
        }
        let features = self.feature.map_or_else(Vec::new, |feature| {
            let share = feature.weight / input.features.len().max(1) as f64;
            let weight = weight.unsqueeze_dim(1).mul_scalar(share);
            let pairs = input.features.iter();
            pairs
                .map(|pair| feature.distance.gradient(pair, &weight))
                .collect()
        });
        LossGradient {
            sums: self.sums(sums, &input),
            hidden: Tensor::cat(hidden, 0),
            head: head_grad.finish(),
            features,
            scale,
        }
    }

    fn chunks<B: Backend>(
        &self,
        input: &LossInput<B>,
    ) -> impl Iterator<Item = Range<usize>> + use<B> {
        let tokens = input.mask.dims()[0];
        let [_, vocab] = input.student_head.weight.dims();
        let most = match is_cpu(&input.mask.device()) {
            true => (MAX_CPU_LOGITS / vocab).max(MIN_CPU_TOKENS),
            false => usize::MAX,
        };
        let size = chunk_size(tokens, self.chunk_tokens, most);
        (0..tokens)
            .step_by(size)
            .map(move |start| start..(start + size).min(tokens))
    }

    /// The student's states of a chunk and what the chunk adds.
    fn chunk<B: Backend>(
        &self,
        input: &LossInput<B>,
        range: Range<usize>,
        weight: Option<Tensor<B, 2>>,
    ) -> (Tensor<B, 2>, RowsOutput<B>) {
        let student = input.student_hidden.clone().slice(range.clone());
        let mask = input.mask.clone().slice(range.clone()).unsqueeze_dim(1);
        // Half-precision logits are widened, so that all that follows is in the default float type.
        let logits = head_product(student.clone(), input.student_head.weight.clone());
        let chunk = Chunk {
            student: logits.cast(mask.dtype()),
            teacher: input.teacher.chunk(range.clone(), &mask),
            targets: input.targets.clone().slice(range).unsqueeze_dim(1),
            mask,
            caps: [input.student_head.cap, input.teacher.cap()],
        };
        (student, chunk.evaluate(self, weight))
    }

    fn sums<B: Backend>(&self, of_logits: Tensor<B, 1>, input: &LossInput<B>) -> LossSumsTensor<B> {
        let mut feature = Tensor::zeros([1], &input.mask.device());
        if let Some(loss) = self.feature {
            let mask = input.mask.clone().unsqueeze_dim::<2>(1);
            for pair in &input.features {
                let distances = loss.distance.value(pair, &mask) * mask.clone();
                feature = feature + compat::total(distances);
            }
            feature = feature.div_scalar(input.features.len().max(1) as f64);
        }
        let known = match &input.teacher {
            TeacherTokens::Hidden { .. } => Known {
                kl: true,
                teacher_ce: true,
            },
            TeacherTokens::TopK(top) => Known {
                kl: false,
                teacher_ce: top.target_log_prob.is_some(),
            },
        };
        LossSumsTensor {
            values: Tensor::cat(vec![of_logits, feature], 0),
            known,
            loss: *self,
        }
    }
}

/// Tokens of a chunk, of at most `limit`, and on a CPU `most` and a sixteenth.
///
/// All are of a size: the product of a few tokens reads the whole head as that of many does. For the same
/// reason those on a CPU grow a little rather than become one more.
fn chunk_size(tokens: usize, limit: usize, most: usize) -> usize {
    let of_limit = tokens.div_ceil(limit);
    let of_most = (tokens - tokens / 16).div_ceil(most);
    tokens.div_ceil(of_limit.max(of_most).max(1)).max(1)
}

#[cfg(test)]
mod tests {
    use super::chunk_size;

    #[test]
    fn chunks_are_of_a_size_and_within_their_limits() {
        // SmolLM2's vocabulary on a CPU: three chunks, and not two tokens more.
        assert_eq!(chunk_size(512, 512, 170), 171);
        assert_eq!(chunk_size(520, 512, usize::MAX), 260);
        assert_eq!(chunk_size(512, 100, usize::MAX), 86);
        assert_eq!(chunk_size(3, 512, 170), 3);
        assert_eq!(chunk_size(0, 512, 170), 1);
        for tokens in 1..700 {
            for most in [32, 170, usize::MAX] {
                let size = chunk_size(tokens, 512, most);
                assert!((1..=512).contains(&size), "{tokens} {most}");
                assert!(
                    size <= most.saturating_add(most.div_ceil(15)),
                    "{tokens} {most}"
                );
            }
        }
    }
}
