//! Exponentials, hyperbolic tangents and sums on all lanes of a vector.

use pulp::Simd;

/// `exp(x)` for `x <= 0`, by the polynomial of Cephes' `expf` (Moshier), good to 2 units in the last
/// place; below -87 as at -87, 1.6e-38. NaN stays NaN.
#[inline(always)]
pub(crate) fn exp<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    // Added to a number, it leaves the nearest whole one in the lowest bits, here plus the exponent's
    // bias.
    const ROUND: f32 = 12_582_912.0 + 127.0;
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    const POLYNOMIAL: [f32; 6] = [
        1.987_569_1e-4,
        1.398_199_9e-3,
        8.333_452e-3,
        4.166_579_6e-2,
        1.666_666_5e-1,
        0.5,
    ];
    let splat = |value: f32| simd.splat_f32s(value);
    // No maximum, which on some processors of a NaN and a number gives the number.
    let far = simd.less_than_f32s(x, splat(-87.0));
    let x = simd.select_f32s(far, splat(-87.0), x);
    let shifted = simd.mul_add_e_f32s(x, splat(std::f32::consts::LOG2_E), splat(ROUND));
    let n = simd.sub_f32s(shifted, splat(ROUND));
    let r = simd.mul_add_e_f32s(n, splat(-LN_2_HIGH), x);
    let r = simd.mul_add_e_f32s(n, splat(-LN_2_LOW), r);
    let mut p = splat(POLYNOMIAL[0]);
    for &c in &POLYNOMIAL[1..] {
        p = simd.mul_add_e_f32s(p, r, splat(c));
    }
    let p = simd.mul_add_e_f32s(p, simd.mul_f32s(r, r), simd.add_f32s(r, splat(1.0)));
    let bits = simd.transmute_u32s_f32s(shifted);
    let power = simd.wrapping_dyn_shl_u32s(bits, simd.splat_u32s(23));
    simd.mul_f32s(p, simd.transmute_f32s_u32s(power))
}

/// Below it an exponential is taken to be zero: it is at most 1.6e-38 of the row's largest.
pub(crate) const LEAST: f32 = -87.0;

/// `exp(x)` for `x <= 0`, zero below [`LEAST`]. NaN stays NaN.
#[inline(always)]
pub(crate) fn exponential<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    // What is no number is not less than another one.
    let far = simd.less_than_f32s(x, simd.splat_f32s(LEAST));
    simd.select_f32s(far, simd.splat_f32s(0.0), exp(simd, x))
}

/// `tanh(x)`, by Eigen's quotient of an odd and an even polynomial, good to 3 units in the last place; 1 and -1
/// from 8 on. NaN stays NaN.
#[inline(always)]
pub(crate) fn tanh<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    const LIMIT: f32 = 8.0;
    const ODD: [f32; 7] = [
        -2.760_768_5e-16,
        2.000_188e-13,
        -8.604_672e-11,
        5.122_297e-8,
        1.485_722_4e-5,
        6.372_619e-4,
        4.893_524_6e-3,
    ];
    const EVEN: [f32; 4] = [1.198_258_4e-6, 1.185_347_1e-4, 2.268_434_6e-3, 4.893_525e-3];
    let splat = |value: f32| simd.splat_f32s(value);
    let square = simd.mul_f32s(x, x);
    let (mut odd, mut even) = (splat(ODD[0]), splat(EVEN[0]));
    for &c in &ODD[1..] {
        odd = simd.mul_add_e_f32s(odd, square, splat(c));
    }
    for &c in &EVEN[1..] {
        even = simd.mul_add_e_f32s(even, square, splat(c));
    }
    let quotient = simd.div_f32s(simd.mul_f32s(odd, x), even);
    // What is no number is neither above nor below.
    let above = simd.less_than_f32s(splat(LIMIT), x);
    let below = simd.less_than_f32s(x, splat(-LIMIT));
    let not_above = simd.select_f32s(below, splat(-1.0), quotient);
    simd.select_f32s(above, splat(1.0), not_above)
}

/// Sum of the products of equal places.
#[inline(always)]
pub(crate) fn dot<S: Simd>(simd: S, a: &[f32], b: &[f32]) -> f32 {
    let (a, a_rest) = S::as_simd_f32s(a);
    let (b, b_rest) = S::as_simd_f32s(b);
    let last = simd.mul_f32s(
        simd.partial_load_f32s(a_rest),
        simd.partial_load_f32s(b_rest),
    );
    // Four sums, so that none waits for the one before.
    let mut sums = [
        last,
        simd.splat_f32s(0.0),
        simd.splat_f32s(0.0),
        simd.splat_f32s(0.0),
    ];
    for (index, (a, b)) in a.iter().zip(b).enumerate() {
        sums[index % 4] = simd.mul_add_e_f32s(*a, *b, sums[index % 4]);
    }
    let [first, second, third, fourth] = sums;
    simd.reduce_sum_f32s(simd.add_f32s(simd.add_f32s(first, second), simd.add_f32s(third, fourth)))
}

#[cfg(test)]
mod tests {
    use pulp::{Arch, Scalar, Simd, WithSimd};

    use super::{exp, tanh};

    struct Tangents<'a>(&'a mut [f32]);

    impl WithSimd for Tangents<'_> {
        type Output = ();

        fn with_simd<S: Simd>(self, simd: S) {
            for number in self.0 {
                let one = tanh(simd, simd.splat_f32s(*number));
                *number = simd.reduce_sum_f32s(one) / S::F32_LANES as f32;
            }
        }
    }

    #[test]
    fn hyperbolic_tangents_are_those_of_float64_and_of_no_number_none() {
        let exact: Vec<f32> = (-2000..2000).map(|at| at as f32 / 190.0).collect();
        let exact = [&exact[..], &[1e-30, -3e-5, f32::INFINITY, -1e30]].concat();
        for scalar in [true, false] {
            let mut found = [&exact[..], &[f32::NAN]].concat();
            match scalar {
                true => Tangents(&mut found).with_simd(Scalar::new()),
                false => Arch::new().dispatch(Tangents(&mut found)),
            }
            for (found, x) in found.iter().zip(&exact) {
                let exact = f64::from(*x).tanh();
                let allowed = 4.0 * f64::from(f32::EPSILON) * exact.abs();
                assert!((f64::from(*found) - exact).abs() <= allowed, "{x}");
                assert!(found.abs() <= 1.0, "{x}");
            }
            assert!(found[exact.len()].is_nan());
        }
    }

    struct Exponentials<'a>(&'a mut [f32]);

    impl WithSimd for Exponentials<'_> {
        type Output = ();

        fn with_simd<S: Simd>(self, simd: S) {
            for number in self.0 {
                let one = exp(simd, simd.splat_f32s(*number));
                *number = simd.reduce_max_f32s(one);
            }
        }
    }

    #[test]
    fn exponentials_are_those_of_the_library_and_of_no_number_none() {
        let exact = [0.0f32, -1e-6, -0.3, -1.0, -9.7, -86.9];
        for scalar in [true, false] {
            let mut found = [&exact[..], &[f32::NAN, f32::NEG_INFINITY]].concat();
            match scalar {
                true => Exponentials(&mut found).with_simd(Scalar::new()),
                false => Arch::new().dispatch(Exponentials(&mut found)),
            }
            for (found, exact) in found.iter().zip(exact) {
                let exact = exact.exp();
                assert!(
                    (found - exact).abs() <= 2.0 * f32::EPSILON * exact,
                    "{exact}"
                );
            }
            assert!(found[6].is_nan());
            assert!(found[7] < 1.7e-38);
        }
    }
}
