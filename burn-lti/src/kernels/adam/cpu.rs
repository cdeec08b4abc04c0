//! A step of Adam in loops: each tensor is read and written once.

use burn::prelude::*;
use burn::tensor::TensorData;
use pulp::{Arch, NullaryFnOnce};
use rayon::prelude::*;

use super::{AdamStep, Moments, Promises};
use crate::kernels::cpu::{PIECE, in_place, rows_in_place};

/// Sums that wait for no other: as many as the lanes of the widest vectors.
const LANES: usize = 16;

pub(super) fn moments<B: Backend>(
    step: &AdamStep,
    gradient: Tensor<B, 1>,
    first: Tensor<B, 1>,
    second: Tensor<B, 1>,
    wanted: Promises,
) -> Moments<B> {
    let device = gradient.device();
    let [scale, added] = step.denominator().map(|number| number as f32);
    let betas = step.betas;
    let mut promises = [0.0; 2];
    let [direction, first, second] =
        in_place([gradient, first, second], |[gradient, first, second]| {
            let pieces = gradient
                .par_chunks_mut(PIECE)
                .zip(first.par_chunks_mut(PIECE))
                .zip(second.par_chunks_mut(PIECE));
            promises = sum_of_pieces(pieces.map(|((gradient, first), second)| {
                Arch::new().dispatch(Step {
                    gradient,
                    first,
                    second,
                    keep: betas.map(|beta| beta as f32),
                    add: betas.map(|beta| (1.0 - beta) as f32),
                    scale,
                    added,
                })
            }));
        });
    Moments {
        first,
        second: Some(second),
        direction,
        promises: (wanted != Promises::None).then(|| numbers(promises, &device)),
    }
}

/// Leaves the direction in the place of the gradient, and gives what both promise.
struct Step<'a> {
    gradient: &'a mut [f32],
    first: &'a mut [f32],
    second: &'a mut [f32],
    keep: [f32; 2],
    add: [f32; 2],
    scale: f32,
    added: f32,
}

// Plain loops, which the compiler makes vectors of: the widest that the processor has, by `dispatch`.
impl NullaryFnOnce for Step<'_> {
    type Output = [f32; 2];

    #[inline(always)]
    fn call(self) -> [f32; 2] {
        let Self {
            gradient,
            first,
            second,
            keep,
            add,
            scale,
            added,
        } = self;
        let one = |g: &mut f32, m: &mut f32, v: &mut f32| {
            let gradient = *g;
            *m = keep[0] * *m + add[0] * gradient;
            *v = keep[1] * *v + add[1] * (gradient * gradient);
            *g = *m / (v.sqrt() * scale + added);
            [gradient.abs(), gradient * *g]
        };
        let mut sums = [[0.0; LANES]; 2];
        let mut gradients = gradient.chunks_exact_mut(LANES);
        let mut firsts = first.chunks_exact_mut(LANES);
        let mut seconds = second.chunks_exact_mut(LANES);
        for ((g, m), v) in (&mut gradients).zip(&mut firsts).zip(&mut seconds) {
            for lane in 0..LANES {
                let [size, along] = one(&mut g[lane], &mut m[lane], &mut v[lane]);
                sums[0][lane] += size;
                sums[1][lane] += along;
            }
        }
        let rest = gradients.into_remainder().iter_mut();
        let rest = rest
            .zip(firsts.into_remainder())
            .zip(seconds.into_remainder());
        for (lane, ((g, m), v)) in rest.enumerate() {
            let [size, along] = one(g, m, v);
            sums[0][lane] += size;
            sums[1][lane] += along;
        }
        sums.map(|sums| sums.iter().sum())
    }
}

pub(super) fn descended<B: Backend, const D: usize>(
    value: Tensor<B, D>,
    direction: Tensor<B, D>,
    rate: f32,
    kept: f32,
) -> Tensor<B, D> {
    rows_in_place(value, direction, 1, |value, direction| {
        Arch::new().dispatch(|| {
            for (value, direction) in value.iter_mut().zip(direction) {
                *value = kept * *value - rate * direction;
            }
        });
    })
}

pub(super) fn square_sum<B: Backend, const D: usize>(
    tensor: Tensor<B, D>,
) -> (Tensor<B, D>, Tensor<B, 1>) {
    let device = tensor.device();
    let mut sum = [0.0];
    let [tensor] = in_place([tensor], |[tensor]| {
        sum = sum_of_pieces(tensor.par_chunks(PIECE).map(|piece| [squares(piece)]));
    });
    (tensor, numbers(sum, &device))
}

/// One after another, so that the sum has the same bits every time.
fn sum_of_pieces<const N: usize>(
    pieces: impl IndexedParallelIterator<Item = [f32; N]>,
) -> [f64; N] {
    let pieces: Vec<_> = pieces.collect();
    let mut sums = [0.0; N];
    for piece in pieces {
        for (sum, part) in sums.iter_mut().zip(piece) {
            *sum += f64::from(part);
        }
    }
    sums
}

/// The sum of the squares.
fn squares(numbers: &[f32]) -> f32 {
    Arch::new().dispatch(|| {
        let mut sums = [0.0; LANES];
        let mut whole = numbers.chunks_exact(LANES);
        for numbers in &mut whole {
            for (sum, number) in sums.iter_mut().zip(numbers) {
                *sum += number * number;
            }
        }
        for (sum, number) in sums.iter_mut().zip(whole.remainder()) {
            *sum += number * number;
        }
        sums.iter().sum()
    })
}

fn numbers<B: Backend, const N: usize>(sums: [f64; N], device: &B::Device) -> Tensor<B, 1> {
    Tensor::from_data(TensorData::from(sums.map(|sum| sum as f32)), device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_is_summed() {
        for length in 0..70 {
            let a: Vec<f32> = (0..length).map(|i| i as f32 - 20.0).collect();
            let expected: f32 = a.iter().map(|x| x * x).sum();
            // Whole numbers below 2^24: exact in any order.
            assert_eq!(squares(&a), expected);
        }
    }

    #[test]
    fn what_is_no_number_is_not_hidden() {
        let mut numbers = [f32::NAN, 1.0, 0.0];
        assert!(squares(&numbers).is_nan());
        let (mut first, mut second) = ([0.0; 3], [0.0; 3]);
        let promises = Arch::new().dispatch(Step {
            gradient: &mut numbers,
            first: &mut first,
            second: &mut second,
            keep: [0.9, 0.95],
            add: [0.1, 0.05],
            scale: 1.0,
            added: 1e-12,
        });
        assert!(promises.iter().all(|promise| promise.is_nan()));
        assert!(numbers[0].is_nan() && numbers[1] > 0.0 && numbers[2] == 0.0);
    }
}
