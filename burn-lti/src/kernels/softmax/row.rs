//! The softmax of one row of logits, for whoever draws from it.

use pulp::{Arch, Simd, WithSimd};

use crate::kernels::cpu::exponential;

/// Elements whose sum is kept in float32.
const BLOCK: usize = 1024;

/// Makes `weights` those of a softmax of `logits` divided by a temperature, but for their sum, which is returned:
/// `exp((logits - max logits) / temperature)`, good to a few units in the last place of float32 for each unit
/// of the exponent; what is below `exp(-87)` is 0. `None` where a logit, or the highest, is no finite number; one
/// of minus infinity weighs nothing.
///
/// ```
/// use burn_lti::kernels::softmax_weights;
///
/// let mut weights = Vec::new();
/// let sum = softmax_weights(&[1.0, f32::NEG_INFINITY, 1.0], 0.5, &mut weights);
/// assert_eq!((sum, weights), (Some(2.0), vec![1.0, 0.0, 1.0]));
/// ```
pub fn softmax_weights(logits: &[f32], temperature: f64, weights: &mut Vec<f32>) -> Option<f64> {
    weights.clear();
    weights.extend_from_slice(logits);
    // Neither zero nor infinite, by which a logit's distance from the highest would be multiplied.
    let per_unit = (1.0 / temperature).clamp(f32::MIN_POSITIVE.into(), f32::MAX.into());
    let sum = Arch::new().dispatch(Weights {
        weights,
        per_unit: per_unit as f32,
    });
    Some(sum).filter(|sum| sum.is_finite())
}

/// Leaves weights in the place of logits, and returns their sum.
struct Weights<'a> {
    weights: &'a mut [f32],
    per_unit: f32,
}

impl WithSimd for Weights<'_> {
    type Output = f64;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> f64 {
        let lowest = simd.splat_f32s(f32::NEG_INFINITY);
        let (vectors, rest) = S::as_simd_f32s(self.weights);
        let highest = vectors
            .iter()
            .fold(lowest, |highest, of| simd.max_f32s(highest, *of));
        let highest = simd.reduce_max_f32s(highest);
        let highest = rest.iter().fold(highest, |highest, of| highest.max(*of));
        if !highest.is_finite() {
            return f64::NAN;
        }
        let (highest, per_unit) = (simd.splat_f32s(highest), simd.splat_f32s(self.per_unit));
        let mut total = 0.0;
        for block in self.weights.chunks_mut(BLOCK) {
            let (vectors, rest) = S::as_mut_simd_f32s(block);
            let mut sums = simd.splat_f32s(0.0);
            for vector in vectors {
                *vector = weight(simd, *vector, highest, per_unit);
                sums = simd.add_f32s(sums, *vector);
            }
            total += f64::from(simd.reduce_sum_f32s(sums));
            if !rest.is_empty() {
                let last = weight(simd, simd.partial_load_f32s(rest), highest, per_unit);
                simd.partial_store_f32s(rest, last);
                total += rest.iter().map(|weight| f64::from(*weight)).sum::<f64>();
            }
        }
        total
    }
}

/// That of a logit that is no number is none either, and so the sum.
#[inline(always)]
fn weight<S: Simd>(simd: S, logit: S::f32s, highest: S::f32s, per_unit: S::f32s) -> S::f32s {
    exponential(simd, simd.mul_f32s(simd.sub_f32s(logit, highest), per_unit))
}

#[cfg(test)]
mod tests {
    use super::softmax_weights;

    #[test]
    fn weights_are_those_of_float64() {
        for count in [1, 7, 8, 100, 2500] {
            let logits: Vec<f32> = (0..count)
                .map(|at| (at * 37 % 101) as f32 / 7.0 - 9.0)
                .collect();
            let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let mut weights = vec![3.0; 5];
            let sum = softmax_weights(&logits, 0.7, &mut weights).unwrap();
            assert_eq!(weights.len(), count);
            let mut exact_sum = 0.0;
            for (weight, logit) in weights.iter().zip(&logits) {
                let exponent = f64::from(logit - highest) / 0.7;
                let exact = exponent.exp();
                // Of the exponent's own rounding, and of the exponential's.
                let tolerance = (2.0 - exponent) * 2.0 * f64::from(f32::EPSILON);
                assert!((f64::from(*weight) / exact - 1.0).abs() <= tolerance);
                exact_sum += exact;
            }
            assert!((sum / exact_sum - 1.0).abs() < 1e-4, "{sum}, {exact_sum}");
        }
    }

    #[test]
    fn temperatures_may_be_as_they_like() {
        let mut weights = Vec::new();
        for (temperature, second) in [(1e-300, 0.0), (1e300, 1.0)] {
            let logits = [2.0, f32::NEG_INFINITY, -3.0];
            let sum = softmax_weights(&logits, temperature, &mut weights);
            assert_eq!(
                (sum, &weights[..]),
                (Some(1.0 + f64::from(second)), &[1.0, 0.0, second][..])
            );
        }
    }

    #[test]
    fn logits_that_are_no_numbers_have_no_weights() {
        let mut logits = vec![0.0; 19];
        for (place, number) in [
            (0, f32::NAN),
            (9, f32::NAN),
            (18, f32::NAN),
            (3, f32::INFINITY),
        ] {
            logits[place] = number;
            assert_eq!(softmax_weights(&logits, 1.0, &mut Vec::new()), None);
            logits[place] = 0.0;
        }
        assert_eq!(softmax_weights(&[], 1.0, &mut Vec::new()), None);
        let nothing = [f32::NEG_INFINITY; 2];
        assert_eq!(softmax_weights(&nothing, 1.0, &mut Vec::new()), None);
    }
}
