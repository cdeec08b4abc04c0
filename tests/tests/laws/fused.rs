//! A decoder's element-wise work in one pass, beside the same in tensor operations and Burn's own
//! gradient.

use burn::prelude::*;
use burn::tensor::activation::silu;
use burn::tensor::backend::AutodiffBackend;
use burn_lti::fused::gated_silu;
use burn_lti_tests::close::{Tolerance, assert_close, assert_not_close, rounding};
use burn_lti_tests::numbers::{Numbers, tensor, values};
use burn_lti_tests::on_every_backend;

on_every_backend![
    the_gated_silu_and_its_gradients_are_those_of_the_operations,
    a_gated_silu_of_what_does_not_train_is_on_no_graph,
    far_gates_stay_finite,
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
