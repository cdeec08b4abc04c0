//! Exponentials and sums on all lanes of a vector.

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

    use super::exp;

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
