//! Medians and their spread.

use std::fmt;

use serde::Serialize;

/// The middle of some numbers, and the least and the greatest of them.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Spread {
    /// Of `values`; `None` if there is none.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let (low, high) = (values[(values.len() - 1) / 2], values[values.len() / 2]);
        Some(Self {
            median: (low + high) / 2.0,
            min,
            max,
        })
    }

    /// Of the quotients of `ours` and `theirs`, round by round: what slows a round slows both. `None` if
    /// there is no round, or one lacks a value.
    pub(crate) fn of_ratios(ours: &[Option<f64>], theirs: &[Option<f64>]) -> Option<Self> {
        let pairs = ours.iter().zip(theirs);
        let ratios: Option<Vec<f64>> = pairs
            .map(|(ours, theirs)| Some((*ours)? / (*theirs)?))
            .collect();
        Self::of(ratios?)
    }
}

/// `1.25 (1.20..1.31)`, to three digits.
impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { median, min, max } = self;
        write!(
            f,
            "{} ({}..{})",
            digits(*median),
            digits(*min),
            digits(*max)
        )
    }
}

/// A number to three digits.
pub(crate) fn digits(value: f64) -> String {
    let decimals = match value.abs() {
        0.0 => 0,
        size => (2 - size.log10().floor() as i32).clamp(0, 6) as usize,
    };
    format!("{value:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_or_between_the_two_in_the_middle() {
        let spread = |values: &[f64]| Spread::of(values.iter().copied());
        let expected = |median, min, max| Some(Spread { median, min, max });
        assert_eq!(spread(&[3.0, 1.0, 2.0]), expected(2.0, 1.0, 3.0));
        assert_eq!(spread(&[4.0, 1.0, 2.0, 8.0]), expected(3.0, 1.0, 8.0));
        assert_eq!(spread(&[5.0]), expected(5.0, 5.0, 5.0));
        assert_eq!(spread(&[]), None);
    }

    #[test]
    fn ratios_are_those_of_rounds() {
        let some = |values: &[f64]| values.iter().copied().map(Some).collect::<Vec<_>>();
        // Both twice as slow in the second round: the ratio of medians would say the same here, that of
        // the extremes would not.
        let spread = Spread::of_ratios(&some(&[1.0, 2.0, 3.0]), &some(&[2.0, 4.0, 3.0])).unwrap();
        assert_eq!((spread.median, spread.min, spread.max), (0.5, 0.5, 1.0));
        assert_eq!(
            Spread::of_ratios(&[Some(1.0), None], &some(&[1.0, 1.0])),
            None
        );
        assert_eq!(Spread::of_ratios(&[], &[]), None);
    }

    #[test]
    fn numbers_have_three_digits() {
        for (value, text) in [
            (0.0, "0"),
            (0.012345, "0.0123"),
            (1.0, "1.00"),
            (45.678, "45.7"),
            (1234.5, "1234"),
        ] {
            assert_eq!(digits(value), text);
        }
        let spread = Spread::of([1.0, 2.0, 30.0]).unwrap();
        assert_eq!(spread.to_string(), "2.00 (1.00..30.0)");
    }
}
