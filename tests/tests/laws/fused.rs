//! A decoder's element-wise work in one pass, beside the same in tensor operations and Burn's own
//! gradient.

use burn::prelude::*;
use burn::tensor::activation::{silu, softmax};
use burn::tensor::backend::AutodiffBackend;
use burn_lti::fused::{gated_silu, masked_softmax, rms_norm};
use burn_lti_tests::close::{Tolerance, assert_close, assert_not_close, rounding};
use burn_lti_tests::numbers::{Numbers, tensor, values};
use burn_lti_tests::on_every_backend;

on_every_backend![
    the_gated_silu_and_its_gradients_are_those_of_the_operations,
    a_gated_silu_of_what_does_not_train_is_on_no_graph,
    far_gates_stay_finite,
    the_norm_and_its_gradients_are_those_of_the_operations,
    the_softmax_and_its_gradient_are_those_of_the_operations,
    what_a_mask_hides_has_no_weight,
];

/// No multiple of any processor's lanes, and more than a thread takes at a time.
const SHAPE: [usize; 2] = [131, 77];

type Gated<A> = fn(Tensor<A, 2>, Tensor<A, 2>) -> Tensor<A, 2>;

/// The output, and the gradients of `sum(output * weight)`.
fn found<A: AutodiffBackend>(
    gated: Gated<A>,
    [gate, up, weight]: &[Vec<f32>; 3],
    device: &A::Device,
) -> [Vec<f64>; 3] {
    let leaf = |numbers: &[f32]| tensor::<A, 2>(numbers, SHAPE, device).require_grad();
    let (gate, up) = (leaf(gate), leaf(up));
    // Through an operation on each side, so that none of them is a leaf.
    let output = gated(gate.clone() * 2.0, up.clone() + 1.0);
    let mut gradients = (output.clone() * tensor(weight, SHAPE, device))
        .sum()
        .backward();
    let mut gradient =
        |leaf: Tensor<A, 2>| values(&leaf.grad_remove(&mut gradients).expect("a gradient"));
    let (of_gate, of_up) = (gradient(gate), gradient(up));
    [values(&output), of_gate, of_up]
}

/// A dozen operations on each element, each rounded; terms that cancel are no larger than the largest.
fn tolerance(expected: &[f64]) -> Tolerance {
    let largest = expected
        .iter()
        .fold(0.0, |largest: f64, value| largest.max(value.abs()));
    Tolerance::Uniform(rounding(12) * largest)
}

fn numbers() -> [Vec<f32>; 3] {
    let mut numbers = Numbers::new(3);
    std::array::from_fn(|_| numbers.normal(SHAPE[0] * SHAPE[1]))
}

fn the_gated_silu_and_its_gradients_are_those_of_the_operations<A: AutodiffBackend>(
    device: A::Device,
) {
    let mut numbers = numbers();
    let expected = found::<A>(|gate, up| silu(gate) * up, &numbers, &device);
    let fused = found::<A>(gated_silu, &numbers, &device);
    for (fused, expected) in fused.iter().zip(&expected) {
        assert_close(fused, expected, &tolerance(expected));
    }
    numbers[0][SHAPE[1]] += 0.5;
    let other = found::<A>(gated_silu, &numbers, &device);
    for (other, expected) in other.iter().zip(&expected) {
        assert_not_close(other, expected, &tolerance(expected));
    }
}

fn a_gated_silu_of_what_does_not_train_is_on_no_graph<A: AutodiffBackend>(device: A::Device) {
    let [gate, up, _] = numbers().map(|numbers| tensor::<A, 2>(&numbers, SHAPE, &device));
    let leaf = up.clone().require_grad();
    let mut gradients = gated_silu(gate.clone(), leaf.clone()).sum().backward();
    let found = values(&leaf.grad_remove(&mut gradients).expect("a gradient"));
    let expected = values(&silu(gate.clone()));
    assert_close(&found, &expected, &tolerance(&expected));
    assert!(gate.grad(&gradients).is_none());

    let output = gated_silu(gate.clone(), up.clone());
    let expected = values(&(silu(gate) * up));
    assert_close(&values(&output), &expected, &tolerance(&expected));
}

fn far_gates_stay_finite<A: AutodiffBackend>(device: A::Device) {
    let gate = [200.0, -200.0, 0.0, 1e30];
    let gate = tensor::<A, 2>(&gate, [2, 2], &device).inner();
    let found = values(&gated_silu(gate.clone(), gate.ones_like()));
    assert_eq!(found[0], 200.0);
    assert!(found[1].abs() < 1e-30 && found[2] == 0.0, "{found:?}");
    assert!((found[3] / 1e30 - 1.0).abs() < 1e-6, "{found:?}");
}

/// The output, and the gradients of `sum(output * weight)` with respect to `x` and `gamma`.
fn normed<A: AutodiffBackend>(
    norm: impl Fn(Tensor<A, 2>, Tensor<A, 1>) -> Tensor<A, 2>,
    [x, gamma, weight]: &[Vec<f32>; 3],
    device: &A::Device,
) -> [Vec<f64>; 3] {
    let x = tensor::<A, 2>(x, SHAPE, device).require_grad();
    let gamma = tensor::<A, 1>(&gamma[..SHAPE[1]], [SHAPE[1]], device).require_grad();
    let output = norm(x.clone() * 2.0, gamma.clone() + 1.0);
    let mut gradients = (output.clone() * tensor(weight, SHAPE, device))
        .sum()
        .backward();
    let of_x = x.grad_remove(&mut gradients).expect("a gradient");
    let of_gamma = gamma.grad_remove(&mut gradients).expect("a gradient");
    [values(&output), values(&of_x), values(&of_gamma)]
}

/// Large enough to be seen.
const EPSILON: f64 = 0.3;

fn the_norm_and_its_gradients_are_those_of_the_operations<A: AutodiffBackend>(device: A::Device) {
    let mut numbers = numbers();
    let plain = |x: Tensor<A, 2>, gamma: Tensor<A, 1>| {
        let size = (x.clone().square().mean_dim(1) + EPSILON).sqrt();
        x / size * gamma.unsqueeze()
    };
    let fused = |x, gamma| rms_norm(x, gamma, EPSILON);
    let expected = normed::<A>(plain, &numbers, &device);
    let found = normed::<A>(fused, &numbers, &device);
    for (found, expected) in found.iter().zip(&expected) {
        // Sums of a row's, or a column's, numbers beside the dozen operations.
        let Tolerance::Uniform(elements) = tolerance(expected) else {
            unreachable!();
        };
        assert_close(found, expected, &Tolerance::Uniform(4.0 * elements));
    }
    numbers[0][SHAPE[1]] += 0.5;
    let other = normed::<A>(fused, &numbers, &device);
    for (other, expected) in other.iter().zip(&expected) {
        assert_not_close(other, expected, &tolerance(expected));
    }
}

/// More than a thread takes at a time.
const SCORES: [usize; 4] = [2, 3, 70, 23];

/// The output, and the gradient of `sum(output * weight)`.
fn weighed<A: AutodiffBackend>(
    softmax: impl Fn(Tensor<A, 4>, Tensor<A, 4>) -> Tensor<A, 4>,
    [scores, mask, weight]: &[Vec<f32>; 3],
    [batch, heads]: [usize; 2],
    device: &A::Device,
) -> [Vec<f64>; 2] {
    let [_, _, queries, keys] = SCORES;
    let take = |numbers: &[f32], shape: [usize; 4]| {
        tensor::<A, 4>(&numbers[..shape.iter().product()], shape, device)
    };
    let scores = take(scores, SCORES).require_grad();
    let mask = take(mask, [batch, heads, queries, keys]) * 3.0;
    let output = softmax(scores.clone() * 2.0, mask);
    let mut gradients = (output.clone() * take(weight, SCORES)).sum().backward();
    let gradient = scores.grad_remove(&mut gradients).expect("a gradient");
    [values(&output), values(&gradient)]
}

fn the_softmax_and_its_gradient_are_those_of_the_operations<A: AutodiffBackend>(device: A::Device) {
    let mut numbers = numbers();
    let plain = |scores: Tensor<A, 4>, mask: Tensor<A, 4>| softmax(scores + mask, 3);
    for mask in [[2, 3], [2, 1], [1, 3], [1, 1]] {
        let expected = weighed::<A>(plain, &numbers, mask, &device);
        let found = weighed::<A>(masked_softmax, &numbers, mask, &device);
        for (found, expected) in found.iter().zip(&expected) {
            assert_close(found, expected, &tolerance(expected));
        }
    }
    let expected = weighed::<A>(plain, &numbers, [1, 1], &device);
    numbers[1][0] += 0.5;
    let other = weighed::<A>(masked_softmax, &numbers, [1, 1], &device);
    for (other, expected) in other.iter().zip(&expected) {
        assert_not_close(other, expected, &tolerance(expected));
    }
}

fn what_a_mask_hides_has_no_weight<A: AutodiffBackend>(device: A::Device) {
    for keys in [3, 8, 37] {
        let shape = [1, 1, 1, keys];
        let mut mask = vec![0.0; keys];
        mask[1..].fill(f32::NEG_INFINITY);
        // However small the one score that is seen.
        let mut scores = vec![50.0; keys];
        scores[0] = -60.0;
        let [scores, mask] =
            [scores, mask].map(|numbers| tensor::<A, 4>(&numbers, shape, &device).inner());
        let found = values(&masked_softmax(scores.clone(), mask));
        let mut expected = vec![0.0; keys];
        expected[0] = 1.0;
        assert_eq!(found, expected);
        let open = values(&masked_softmax(scores.clone(), scores.zeros_like()));
        assert!(open[0] < 1e-30 && open.iter().all(|weight| weight.is_finite()));
    }
}
