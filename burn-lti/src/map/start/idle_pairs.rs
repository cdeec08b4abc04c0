//! Pairs of factors that add nothing yet, and can learn.
//!
//! A sum of pairs begins as fewer than it has: `B` of the others is zero, so that they leave the kernel
//! as it is, and `A` is random, so that `B` has a gradient from the first step, and `A` from the second
//! (as the two factors of LoRA begin, Hu et al. 2021). Both zero would stay so.

use rand::rngs::StdRng;

use super::super::AxisSpec;
use super::lecun;

/// Appends as many pairs to `a` and `b`, row-major, as `spec` has more.
pub(crate) fn fill_up(spec: &AxisSpec, a: &mut Vec<f32>, b: &mut Vec<f32>, rng: &mut StdRng) {
    let one = spec.of_one_pair();
    let (of_a, of_b) = (one.a_shape(), one.b_shape());
    for _ in a.len() / (of_a[0] * of_a[1]).max(1)..spec.rank() {
        a.extend(lecun::sample(&of_a, rng));
    }
    b.resize(spec.rank() * of_b[0] * of_b[1], 0.0);
}
