//! A chunk whose logits lie in the host's memory, row by row.
//!
//! On a CPU the tensor operations of a chunk walk over its logits some twenty times, in memory each
//! time. Here one thread takes a row and is done with it.

use burn::prelude::*;
use burn::tensor::DType;

use super::chunk::ChunkOutput;
use super::row::{Row, RowLoss, RowTerms};
use crate::host::{HostFloats, Team, is_host};

/// Logits, as [`Chunk`](super::chunk::Chunk) has them, and targets of `n` tokens, all float32 and on a device
/// that is the host.
pub(super) struct HostChunk<B: Backend> {
    /// `[n, vocab]`
    pub(super) student: Tensor<B, 2>,
    /// `[n, vocab]`
    pub(super) teacher: Tensor<B, 2>,
    /// `[n, 1]`
    pub(super) targets: Tensor<B, 2, Int>,
    /// `[n, 1]`, 1 where a token counts.
    pub(super) mask: Tensor<B, 2>,
}

/// Whether tensors like this one can be read where they are, as float32.
pub(super) fn holds<B: Backend>(tensor: &Tensor<B, 2>) -> bool {
    tensor.dtype() == DType::F32 && is_host(&tensor.device())
}

impl<B: Backend> HostChunk<B> {
    /// As [`Chunk::evaluate`](super::chunk::Chunk::evaluate).
    pub(super) fn evaluate(self, loss: RowLoss, weight: Option<Tensor<B, 2>>) -> ChunkOutput<B> {
        let device = self.mask.device();
        let [_, vocab] = self.student.dims();
        let mask = numbers(self.mask);
        let weight = weight.map(numbers);
        let targets: Vec<i64> = self.targets.into_data().iter().collect();
        // SAFETY: the logits of a chunk are products with the head, and no views.
        let [mut student, mut teacher] =
            [self.student, self.teacher].map(|logits| unsafe { HostFloats::of_result(logits) });

        let work = if loss.needs_work() { vocab } else { 0 };
        let mut terms = vec![RowTerms::default(); mask.len()];
        let rows = student
            .as_mut_slice()
            .chunks_mut(vocab)
            .zip(teacher.as_mut_slice().chunks_mut(vocab))
            .zip(&mut terms)
            .enumerate();
        type OfToken<'a> = (usize, ((&'a mut [f32], &'a mut [f32]), &'a mut RowTerms));
        let evaluate = |work: &mut Vec<f32>, (at, ((student, teacher), terms)): OfToken<'_>| {
            let row = Row {
                student,
                teacher,
                work,
                target: targets[at] as usize,
            };
            *terms = match mask[at] {
                0.0 => row.skip(),
                _ => row.evaluate(loss, weight.as_ref().map(|weight| weight[at])),
            }
        };
        Team::of(&device).share(rows.collect(), || vec![0.0; work], evaluate);
        // One after another, so that the sum does not depend on the threads.
        let sum = |term: fn(&RowTerms) -> f64| terms.iter().map(term).sum::<f64>() as f32;
        let sums = [
            sum(|row| row.tokens),
            sum(|row| row.soft),
            sum(|row| row.student_ce),
            sum(|row| row.agreements),
            sum(|row| row.kl),
            sum(|row| row.teacher_ce),
        ];
        ChunkOutput {
            sums: Tensor::from_data(sums, &device),
            logits_grad: weight.is_some().then(|| student.into_tensor()),
        }
    }
}

fn numbers<B: Backend>(tensor: Tensor<B, 2>) -> Vec<f64> {
    tensor.into_data().iter().collect()
}
