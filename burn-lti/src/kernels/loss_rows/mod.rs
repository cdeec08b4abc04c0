//! The loss of each token's logits, and the gradient in their place.
//!
//! As tensor operations the terms of a chunk of tokens walk over its logits some twenty times, in memory each
//! time. On a CPU one thread takes a row and is done with it. The tensor form is the loss itself: it has every
//! divergence and every teacher.

mod cpu;
#[cfg(test)]
mod tests;

use burn::prelude::*;
use burn::tensor::TensorData;

use self::cpu::{Row, RowTerms};
use super::cpu::{CpuBuffer, ThreadPool};
use super::form::{Form, is_cpu};

pub(crate) use self::cpu::RowLoss;

/// Logits and targets of `n` tokens. The logits are products with a head, in memory of their own: on a CPU
/// they are written over.
pub(crate) struct LossRows<B: Backend> {
    /// `[n, vocab]`
    pub(crate) student: Tensor<B, 2>,
    /// `[n, vocab]`
    pub(crate) teacher: Tensor<B, 2>,
    /// `[n, 1]`
    pub(crate) targets: Tensor<B, 2, Int>,
    /// `[n, 1]`, 1 where a token counts.
    pub(crate) mask: Tensor<B, 2>,
}

/// What the rows add to the whole.
pub(crate) struct RowsOutput<B: Backend> {
    /// `[tokens, soft, student_ce, agreements, kl, teacher_ce]`; the last two 0 where a teacher's
    /// outputs do not give them.
    pub(crate) sums: Tensor<B, 1>,
    /// The same of each row, `[n, 6]`.
    pub(crate) terms: Tensor<B, 2>,
    /// Gradient with respect to the student's logits, if it was asked for, `[n, vocab]`.
    pub(crate) logits_grad: Option<Tensor<B, 2>>,
}

/// Whether such logits, the student's and the teacher's, have a form in loops.
pub(crate) fn have_cpu_form<B: Backend>(logits: [&Tensor<B, 2>; 2]) -> bool {
    Form::of(is_cpu, logits) == Form::Cpu
}

impl<B: Backend> LossRows<B> {
    /// The loss terms, and the gradient if `weight [n, 1]`, a token's share of the mean, is given. For logits
    /// that [`have_cpu_form`].
    pub(crate) fn evaluate(self, loss: RowLoss, weight: Option<Tensor<B, 2>>) -> RowsOutput<B> {
        let device = self.mask.device();
        let [_, vocab] = self.student.dims();
        let mask = numbers(self.mask);
        let weight = weight.map(numbers);
        let targets: Vec<i64> = self.targets.into_data().iter().collect();
        // SAFETY: the logits are on a CPU, products with the head, and no views.
        let [mut student, mut teacher] =
            [self.student, self.teacher].map(|logits| unsafe { CpuBuffer::of_result(logits) });

        let room = |needed: bool| if needed { vocab } else { 0 };
        let (work, capped) = (room(loss.needs_work()), room(loss.needs_capped()));
        let rooms = || [work, capped].map(|numbers| vec![0.0; numbers]);
        let mut terms = vec![RowTerms::default(); mask.len()];
        let rows = student
            .as_mut_slice()
            .chunks_mut(vocab)
            .zip(teacher.as_mut_slice().chunks_mut(vocab))
            .zip(&mut terms)
            .enumerate();
        type OfToken<'a> = (usize, ((&'a mut [f32], &'a mut [f32]), &'a mut RowTerms));
        let evaluate = |[work, capped]: &mut [Vec<f32>; 2],
                        (at, ((student, teacher), terms)): OfToken<'_>| {
            let row = Row {
                student,
                teacher,
                work,
                capped,
                target: targets[at] as usize,
            };
            *terms = match mask[at] {
                0.0 => row.skip(),
                _ => row.evaluate(loss, weight.as_ref().map(|weight| weight[at])),
            }
        };
        ThreadPool::of(&device).for_each(rows.collect(), rooms, evaluate);
        let terms: Vec<[f64; 6]> = terms.into_iter().map(RowTerms::in_order).collect();
        // One after another, so that the sum does not depend on the threads.
        let sum = |term: usize| terms.iter().map(|row| row[term]).sum::<f64>() as f32;
        let sums = [0, 1, 2, 3, 4, 5].map(sum);
        let values: Vec<f32> = terms.iter().flatten().map(|term| *term as f32).collect();
        RowsOutput {
            sums: Tensor::from_data(sums, &device),
            terms: Tensor::from_data(TensorData::new(values, [terms.len(), 6]), &device),
            logits_grad: weight.is_some().then(|| student.into_tensor()),
        }
    }
}

fn numbers<B: Backend>(tensor: Tensor<B, 2>) -> Vec<f64> {
    tensor.into_data().iter().collect()
}
