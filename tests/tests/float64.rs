//! The curves that `laws/curves.rs` holds every backend against, worked out in float64.
//!
//! A program of its own: Burn keeps one default float type for a device in a process, and ndarray's
//! device here is that of float64. `BURN_LTI_WRITE_FIXTURES=1` writes the file anew.
#![cfg(feature = "ndarray")]

use burn::backend::{Autodiff, NdArray};
use burn_lti_tests::close::{Tolerance, assert_close};
use burn_lti_tests::curve::{CHANGE, Float64Curves, curve, float64_file};

#[test]
fn the_curves_in_the_file_are_those_of_float64() {
    type Float64 = Autodiff<NdArray<f64>>;
    let found = Float64Curves {
        exact: curve::<Float64>(0.0, &Default::default()),
        moved: curve::<Float64>(CHANGE, &Default::default()),
    };
    if std::env::var_os("BURN_LTI_WRITE_FIXTURES").is_some() {
        let text = serde_json::to_string_pretty(&found).expect("numbers");
        std::fs::write(float64_file(), text + "\n").expect("a file");
    }
    let file = std::fs::read_to_string(float64_file()).expect("the curves in float64");
    let kept: Float64Curves = serde_json::from_str(&file).expect("two curves");
    // Another processor adds in another order: float64's 1e-16, over twenty steps.
    let tolerance = Tolerance::Uniform(1e-9);
    assert_close(&found.exact, &kept.exact, &tolerance);
    assert_close(&found.moved, &kept.moved, &tolerance);
}
