//! Query and key maps with which each head of the student has the attention pattern of a teacher's.

use faer::Mat;

use super::map_values::MapValues;
use crate::geometry::HeadGrid;

/// The query map, from the `teacher`'s heads to those that began as `chosen` of them. `features` is for each
/// feature of a student's head the teacher's feature that it begins as.
pub(super) fn query(teacher: HeadGrid, chosen: &[usize], features: &[Option<usize>]) -> MapValues {
    // Scores are divided by the root of the head size.
    let ratio = features.len() as f64 / teacher.head_dim as f64;
    // A feature of a larger head that has none to begin as is nothing, which leaves the scores alone.
    one_hot(teacher, chosen, features, ratio.sqrt())
}

/// The key map, likewise. A feature of a larger head that has none to begin as is some other one, so that
/// the query can learn to use it.
pub(super) fn key(teacher: HeadGrid, chosen: &[usize], features: &[Option<usize>]) -> MapValues {
    let again = features.iter().enumerate();
    let features: Vec<Option<usize>> = again
        .map(|(student, own)| own.or(Some(student % teacher.head_dim)))
        .collect();
    one_hot(teacher, chosen, &features, 1.0)
}

fn one_hot(
    teacher: HeadGrid,
    chosen: &[usize],
    features: &[Option<usize>],
    scale: f64,
) -> MapValues {
    let a = Mat::from_fn(teacher.heads, chosen.len(), |row, student| {
        scale * f64::from(chosen[student] == row)
    });
    let b = Mat::from_fn(teacher.head_dim, features.len(), |row, student| {
        f64::from(features[student] == Some(row))
    });
    MapValues::Factored { a, b }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn factors(map: MapValues) -> [Mat<f64>; 2] {
        match map {
            MapValues::Factored { a, b } => [a, b],
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_smaller_head_has_features_of_its_teacher_and_scores_as_large() {
        let features = [Some(0), Some(2)];
        let [a, b] = factors(query(HeadGrid::new(3, 4), &[2, 0], &features));
        assert_eq!((a[(2, 0)], a[(0, 1)]), (0.5_f64.sqrt(), 0.5_f64.sqrt()));
        assert_eq!((a.sum(), b.sum()), (2.0 * 0.5_f64.sqrt(), 2.0));
        assert_eq!((b[(0, 0)], b[(2, 1)]), (1.0, 1.0));
    }

    #[test]
    fn what_a_larger_head_has_left_over_is_nothing_to_the_query_and_something_to_the_key() {
        let features = [Some(0), Some(1), None];
        let [_, of_query] = factors(query(HeadGrid::new(1, 2), &[0], &features));
        let [_, of_key] = factors(key(HeadGrid::new(1, 2), &[0], &features));
        assert_eq!((of_query[(0, 2)], of_query[(1, 2)]), (0.0, 0.0));
        assert_eq!((of_key[(0, 2)], of_key[(1, 2)]), (1.0, 0.0));
    }
}
