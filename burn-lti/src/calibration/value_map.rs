//! A value map while it is fitted: over the features that its heads read.

use faer::Mat;

use super::map_values::MapValues;
use super::moments::Moments;
use super::pairs::{self, Pairs};
use super::value_features::{Span, ValueFeatures};

/// A value map, over the features of its [`ValueFeatures`].
#[derive(Clone, Debug)]
pub(super) enum ValueMap {
    /// For each key/value head of the student, `[value features, s_head_dim]`.
    General(Vec<Mat<f64>>),
    /// `a [t_kv_heads, s_kv_heads]`, or `[1, s_kv_heads]` over own values alone, and
    /// `b [t_head_dim, s_head_dim]`.
    Factored { a: Mat<f64>, b: Mat<f64> },
    /// A sum of several pairs, over all the teacher's heads, or over own values alone.
    Pairs(Pairs),
}

impl ValueMap {
    /// As one matrix a key/value head.
    pub(super) fn blocks(&self) -> Vec<Mat<f64>> {
        match self {
            Self::General(blocks) => blocks.clone(),
            Self::Factored { a, b } => (0..a.ncols())
                .map(|head| {
                    Mat::from_fn(a.nrows() * b.nrows(), b.ncols(), |row, column| {
                        a[(row / b.nrows(), head)] * b[(row % b.nrows(), column)]
                    })
                })
                .collect(),
            Self::Pairs(pairs) => pairs.blocks(),
        }
    }

    /// Moments of the student's head outputs.
    pub(super) fn through(&self, features: &ValueFeatures<'_>, moments: &Moments) -> Moments {
        moments.through(&features.by_query(&self.blocks()))
    }

    /// The map over all the teacher's heads, where it may be over those alone that the student's began as.
    pub(super) fn over_all_heads(self, features: &ValueFeatures<'_>) -> MapValues {
        let (heads, key_value) = (features.heads, features.key_value);
        match (self, features.span) {
            (Self::General(blocks), Span::All) => MapValues::General(pairs::joined(&blocks)),
            (Self::Factored { a, b }, Span::All) => MapValues::Factored { a, b },
            (Self::Pairs(pairs), Span::All) => MapValues::Pairs(pairs),
            (Self::General(blocks), Span::Own) => {
                let all = ValueFeatures {
                    span: Span::All,
                    ..*features
                };
                MapValues::General(pairs::joined(&all.all_placed(&blocks)))
            }
            (Self::Factored { a, b }, Span::Own) => {
                let one_hot =
                    |teacher: usize, student: usize| match key_value[student].contains(&teacher) {
                        true => a[(0, student)],
                        false => 0.0,
                    };
                let a = Mat::from_fn(heads.t_key_value, heads.s_key_value, one_hot);
                MapValues::Factored { a, b }
            }
            (Self::Pairs(pairs), Span::Own) => {
                // Forms of few pairs have no merged heads.
                let own: Vec<usize> = key_value.iter().map(|heads| heads[0]).collect();
                MapValues::Pairs(pairs.placed(heads.t_key_value, &own))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::heads::HeadCounts;
    use super::super::pairs::outer_product;
    use super::*;

    fn numbers(rows: usize, columns: usize, seed: usize) -> Mat<f64> {
        Mat::from_fn(rows, columns, |i, j| {
            ((i * 37 + j * 101 + seed * 13) % 29) as f64 / 14.0 - 1.0
        })
    }

    #[test]
    fn a_map_of_own_values_is_the_same_map_in_every_form() {
        let features = ValueFeatures {
            heads: HeadCounts::counted([6, 3], [4, 2]),
            query: &[4, 5, 0, 1],
            key_value: &[vec![2], vec![0]],
            t_head_dim: 3,
            s_head_dim: 2,
            span: Span::Own,
        };
        let (a, b) = (numbers(1, 2, 1), numbers(3, 2, 2));
        let factored = ValueMap::Factored { a, b };
        let blocks = factored.blocks();
        let pairs = Pairs::nearest_to_blocks(&blocks, 3, 1).unwrap();
        let whole = |map: ValueMap| match map.over_all_heads(&features) {
            MapValues::General(w) => w,
            MapValues::Factored { a, b } => outer_product(&a, &b),
            MapValues::Pairs(pairs) => pairs.sum(),
        };
        let general = whole(ValueMap::General(blocks.clone()));
        assert_eq!(general.subrows(6, 3).subcols(0, 2), blocks[0]);
        assert_eq!(general.subrows(0, 3).subcols(2, 2), blocks[1]);
        let size = blocks
            .iter()
            .map(|block| block.squared_norm_l2())
            .sum::<f64>();
        assert!((general.squared_norm_l2() - size).abs() < 1e-12);
        assert_eq!(whole(factored), general);
        assert!((whole(ValueMap::Pairs(pairs)) - general).norm_l2() < 1e-14);
    }
}
