//! Tolerances that follow from float32 and the length of a sum, and the comparison that uses them.
//!
//! One rounding to nearest changes a value by at most `u = 2^-24` of itself. A value that is reached
//! through `n` roundings is `sum_p t_p (1 + delta_p)` over its products `t_p`, and with roundings
//! that are independent and without bias
//!
//! `|delta_p| <= lambda sqrt(n) u`
//!
//! fails with probability at most `2 exp(-lambda^2 / 2)` (Higham and Mary 2019, "A new approach to
//! probabilistic rounding error analysis", theorem 2.4). With `lambda = 6` that is 3e-8 a value.
//! So the error of a sum is at most [`rounding`]`(n)` times the sum of the *magnitudes* of its
//! terms; two float32 programs may differ by twice that.

/// `u`: half the distance from 1 to the next float32.
pub const UNIT_ROUNDOFF: f64 = f32::EPSILON as f64 / 2.0;

/// `lambda` above.
const CONFIDENCE: f64 = 6.0;

/// Error, relative to the sum of its terms' magnitudes, of a value reached through so many float32
/// roundings: `6 sqrt(n) u`.
pub fn rounding(roundings: usize) -> f64 {
    CONFIDENCE * (roundings as f64).sqrt() * UNIT_ROUNDOFF
}

/// How far each value may be off.
#[derive(Clone, Debug)]
pub enum Tolerance {
    /// All by as much.
    Uniform(f64),
    /// Each by its own bound.
    Each(Vec<f64>),
}

impl Tolerance {
    /// `relative` times the magnitude of each value's terms.
    pub fn of_magnitudes(magnitudes: &[f64], relative: f64) -> Self {
        Self::Each(magnitudes.iter().map(|m| m * relative).collect())
    }

    /// How far the value of this index may be off.
    pub fn at(&self, index: usize) -> f64 {
        match self {
            Self::Uniform(bound) => *bound,
            Self::Each(bounds) => bounds[index],
        }
    }
}

/// The largest deviation of a comparison that passed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Deviation {
    /// The deviation itself.
    pub largest: f64,
    /// What was allowed there.
    pub tolerance: f64,
    /// Where.
    pub index: usize,
}

impl Deviation {
    /// The deviation as a part of what was allowed.
    fn share(&self) -> f64 {
        self.largest / self.tolerance.max(f64::MIN_POSITIVE)
    }

    /// The one that used up more of its tolerance.
    pub fn or(self, other: Self) -> Self {
        if other.share() > self.share() {
            other
        } else {
            self
        }
    }
}

impl std::fmt::Display for Deviation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{:.3e} of {:.3e} allowed, at {}",
            self.largest, self.tolerance, self.index
        )
    }
}

/// Compares value by value. All values must be finite.
///
/// # Errors
///
/// What differs, and by how much.
pub fn compare(
    found: &[f64],
    expected: &[f64],
    tolerance: &Tolerance,
) -> Result<Deviation, String> {
    for (what, values) in [("found", found), ("expected", expected)] {
        if let Some(index) = values.iter().position(|value| !value.is_finite()) {
            return Err(format!("{what} {} at {index}", values[index]));
        }
    }
    if found.len() != expected.len() {
        let (found, expected) = (found.len(), expected.len());
        return Err(format!("{found} values for {expected}"));
    }
    if found.is_empty() {
        return Err("there is nothing to compare".to_owned());
    }
    let worst = found
        .iter()
        .zip(expected)
        .enumerate()
        .map(|(index, (found, expected))| Deviation {
            largest: (found - expected).abs(),
            tolerance: tolerance.at(index),
            index,
        })
        .fold(Deviation::default(), Deviation::or);
    if worst.largest <= worst.tolerance {
        return Ok(worst);
    }
    let index = worst.index;
    Err(format!(
        "found {}, expected {}: {worst}",
        found[index], expected[index]
    ))
}

/// Panics unless all values are finite and close.
#[track_caller]
pub fn assert_close(found: &[f64], expected: &[f64], tolerance: &Tolerance) -> Deviation {
    compare(found, expected, tolerance).unwrap_or_else(|difference| panic!("{difference}"))
}

/// The twin of [`assert_close`]: panics if the comparison would pass although something was changed.
#[track_caller]
pub fn assert_not_close(found: &[f64], expected: &[f64], tolerance: &Tolerance) {
    assert!(
        found.iter().chain(expected).all(|value| value.is_finite()),
        "a twin must differ in its numbers, not in being none"
    );
    if let Ok(deviation) = compare(found, expected, tolerance) {
        panic!("a changed weight goes unnoticed: {deviation}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_value_is_the_one_that_is_named() {
        let tolerance = Tolerance::Each(vec![1.0, 0.1, 1.0]);
        let error = compare(&[1.5, 2.3, 3.0], &[1.0, 2.0, 3.0], &tolerance).unwrap_err();
        assert!(error.contains("found 2.3, expected 2"), "{error}");
        assert!(error.ends_with("at 1"), "{error}");
    }

    #[test]
    fn what_is_not_finite_or_not_there_is_never_close() {
        let wide = Tolerance::Uniform(f64::INFINITY);
        assert!(compare(&[f64::NAN], &[f64::NAN], &wide).is_err());
        assert!(compare(&[f64::INFINITY], &[f64::INFINITY], &wide).is_err());
        assert!(compare(&[], &[], &wide).is_err());
        assert!(compare(&[1.0], &[1.0, 1.0], &wide).is_err());
    }

    #[test]
    fn a_value_at_its_bound_is_close_and_one_beyond_is_not() {
        let tolerance = Tolerance::of_magnitudes(&[2.0], 0.25);
        assert!(compare(&[1.5], &[1.0], &tolerance).is_ok());
        assert!(compare(&[1.51], &[1.0], &tolerance).is_err());
    }
}
