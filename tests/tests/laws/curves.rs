//! Training on each backend: the same start, the same batch, the same curve.
//!
//! The curve to hold it against is that of float64, from `tests/float64.rs`. A float32 program's
//! roundings act like a change of its weights by [`rounding`] of themselves at every step; how much such
//! a change moves the curve is measured, in float64, with weights changed by far more than that.

use burn::tensor::backend::AutodiffBackend;
use burn_lti_tests::close::{Tolerance, assert_close, assert_not_close, rounding};
use burn_lti_tests::curve::{CHANGE, Float64Curves, STEPS, curve, float64_file, teacher_config};
use burn_lti_tests::on_every_backend;

on_every_backend![the_first_steps_follow_those_of_float64];

fn the_first_steps_follow_those_of_float64<A: AutodiffBackend>(device: A::Device) {
    let file = std::fs::read_to_string(float64_file()).expect("the curves in float64");
    let Float64Curves { exact, moved } = serde_json::from_str(&file).expect("two curves");
    assert_eq!(exact.len(), STEPS);
    assert!(exact[STEPS - 1] < 0.9 * exact[0], "it learns: {exact:?}");

    // The longest way of a value: three blocks, each with sums over the width and twice the width.
    let share = rounding(3 * 4 * teacher_config().geometry.d_model);
    let mut sensitivity = 0.0f64;
    let curves = exact.iter().zip(&moved).enumerate();
    let tolerance: Vec<f64> = curves
        .map(|(step, (loss, moved))| {
            sensitivity = sensitivity.max((loss - moved).abs() / CHANGE);
            share * (loss + sensitivity * (step + 1) as f64)
        })
        .collect();
    let largest = tolerance.iter().zip(&exact).map(|(t, loss)| t / loss);
    let largest = largest.fold(0.0, f64::max);
    // Otherwise the tolerance would say nothing.
    assert!(largest < 1e-2, "{largest} of the loss would be allowed");

    let tolerance = Tolerance::Each(tolerance);
    let deviation = assert_close(&curve::<A>(0.0, &device), &exact, &tolerance);
    eprintln!("20 losses on {}: {deviation}", A::name(&device));
    assert_not_close(&curve::<A>(1e-2, &device), &exact, &tolerance);
}
