//! The reference's random start.
//!
//! JAX's `lecun_normal` with its default axes: a normal distribution truncated at two standard
//! deviations, rescaled so that its variance is `1 / fan_in`. Fan-in is the length of axis -2 times
//! all axes that are neither -2 nor -1, so for `W[x,y,u,v]` it is `u x y` although only `x y` is
//! contracted, and for the output projection's `B[v,y]` it is `v` although `y` is contracted. That
//! is the reference's arithmetic, faults included: this start exists to compare with it.
//!
//! A sum of pairs is not in the reference. Its `A[r,x,u]` counts the pairs into the fan-in, `r x`, so
//! that the kernel, a sum of as many independent terms, has the variance of one pair's. Nor is a rotary map: the
//! fan-in of a real or an imaginary part is `2 x`, that of what does not turn all its features.

use rand::rngs::StdRng;
use rand_distr::{Distribution, StandardNormal};

use super::super::axis_map::FirstValues;
use super::super::{AxisSpec, MapKind, Side};

/// Standard deviation of a unit normal truncated to [-2, 2] (`jax.nn.initializers` uses the same).
const TRUNCATED_STD: f64 = 0.879_625_661_034_239_8;

pub(super) fn values(spec: &AxisSpec, side: Side, rng: &mut StdRng) -> FirstValues {
    let (teacher, student) = (spec.teacher, spec.student);
    if spec.map == Some(MapKind::General) {
        let shape = [
            teacher.heads,
            teacher.head_dim,
            student.heads,
            student.head_dim,
        ];
        return FirstValues::Dense {
            w: sample(&shape, rng),
        };
    }
    if let Some(MapKind::Rotary { .. }) = spec.map {
        let [pairs, parts, heads] = spec.r_shape();
        let r = (0..pairs)
            .flat_map(|_| sample(&[parts, heads], rng))
            .collect();
        let w = spec.still_shape().map(|shape| sample(&shape, rng));
        return FirstValues::Rotary { r, w };
    }
    let a = sample(&spec.a_shape(), rng);
    let [y, v] = spec.of_one_pair().b_shape();
    let b = (0..spec.rank()).flat_map(|_| match side {
        Side::Right => sample(&[y, v], rng),
        // The reference's `B[v,y]`, turned.
        Side::Left => {
            let drawn = sample(&[v, y], rng);
            (0..y * v).map(|at| drawn[at % v * y + at / v]).collect()
        }
    });
    FirstValues::Factors { b: b.collect(), a }
}

/// `fan_in` of JAX's default axes for a tensor of this shape.
fn fan_in(shape: &[usize]) -> usize {
    let last = shape.len() - 1;
    shape[..last].iter().product()
}

pub(super) fn sample(shape: &[usize], rng: &mut StdRng) -> Vec<f32> {
    let scale = (1.0 / fan_in(shape) as f64).sqrt() / TRUNCATED_STD;
    (0..shape.iter().product())
        .map(|_| (truncated_normal(rng) * scale) as f32)
        .collect()
}

/// A unit normal conditioned on lying within two standard deviations, by rejection (4.6 %).
fn truncated_normal(rng: &mut StdRng) -> f64 {
    loop {
        let z: f64 = StandardNormal.sample(rng);
        if z.abs() <= 2.0 {
            return z;
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn fan_in_is_axis_minus_two_times_the_receptive_field() {
        assert_eq!(fan_in(&[8, 4]), 8);
        assert_eq!(fan_in(&[4, 8, 2, 16]), 4 * 8 * 2);
    }

    /// The truncation constant is checked against the integral it stands for, and the sample
    /// against the variance and the bound.
    #[test]
    fn samples_are_truncated_and_have_variance_one_over_fan_in() {
        let (mut mass, mut second) = (0.0, 0.0);
        let step = 1e-4;
        let mut z = -2.0 + step / 2.0;
        while z < 2.0 {
            let density = (-z * z / 2.0f64).exp();
            mass += density * step;
            second += z * z * density * step;
            z += step;
        }
        assert!(((second / mass).sqrt() - TRUNCATED_STD).abs() < 1e-7);

        let shape = [50, 4000];
        let values = sample(&shape, &mut StdRng::seed_from_u64(7));
        let n = values.len() as f64;
        let mean = values.iter().map(|v| f64::from(*v)).sum::<f64>() / n;
        let variance = values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / n;
        // Standard errors with n = 200 000: mean std/sqrt(n), variance about 0.9 var*sqrt(2/n).
        assert!(mean.abs() < 5.0 * (1.0f64 / 50.0 / n).sqrt());
        assert!((variance * 50.0 - 1.0).abs() < 5.0 * (2.0 / n).sqrt());
        let bound = 2.0 * (1.0f64 / 50.0).sqrt() / TRUNCATED_STD;
        assert!(values.iter().all(|v| f64::from(v.abs()) <= bound + 1e-6));
    }
}
