//! Query and key maps with which each head of the student has the attention pattern of a teacher's, or where
//! key/value heads are merged, one as near to it as a shared key allows.

use faer::{Mat, c64};

use super::heads::HeadChoice;
use super::map_values::MapValues;
use super::merge::Turns;
use crate::geometry::HeadGrid;

/// The query map, from the `teacher`'s heads to those that began as `chosen` of them. `features` is for each
/// feature of a student's head the teacher's feature that it begins as.
pub(super) fn query(teacher: HeadGrid, chosen: &[usize], features: &[Option<usize>]) -> MapValues {
    // Scores are divided by the root of the head size.
    let ratio = features.len() as f64 / teacher.head_dim as f64;
    // A feature of a larger head that has none to begin as is nothing, which leaves the scores alone.
    one_hot(teacher, chosen, features, ratio.sqrt())
}

/// The key map, likewise. A feature of a larger head that has none to begin as is some other one, that of
/// `others`, so that the query can learn to use it.
pub(super) fn key(
    teacher: HeadGrid,
    chosen: &[usize],
    features: &[Option<usize>],
    others: &[usize],
) -> MapValues {
    let again = features.iter().zip(others);
    let features: Vec<Option<usize>> = again.map(|(own, other)| own.or(Some(*other))).collect();
    one_hot(teacher, chosen, &features, 1.0)
}

/// The maps of query and key for merged key/value heads, whose members have these `turns`: each key is the mean
/// of its members, turned, and each query turned back. `pairs` are the features that a rotary embedding turns
/// together, `features` as above, and `t_group` query heads of the teacher share a key/value head.
pub(super) fn merged(
    teacher: HeadGrid,
    t_group: usize,
    heads: &HeadChoice,
    turns: &[Turns],
    pairs: &[[usize; 2]],
    features: &[Option<usize>],
) -> [MapValues; 2] {
    let (size, groups) = (features.len(), heads.key_value.len());
    let s_group = heads.query.len() / groups.max(1);
    let ratio = size as f64 / teacher.head_dim as f64;
    let mut query = Mat::zeros(teacher.width(), heads.query.len() * size);
    let mut key = Mat::zeros(teacher.heads / t_group * teacher.head_dim, groups * size);
    let turned = Turned {
        teacher,
        pairs,
        features,
    };
    for (student, &head) in heads.query.iter().enumerate() {
        let (group, own) = (student / s_group, head / t_group);
        let member = heads.key_value[group].iter().position(|of| *of == own);
        let turns = member.map_or(&[][..], |member| &turns[group][member]);
        // A key that is c k needs a query that is c q: the score has one of them conjugated.
        turned.add(&mut query, [head, student], turns, ratio.sqrt(), false);
    }
    for (group, members) in heads.key_value.iter().enumerate() {
        let part = 1.0 / members.len() as f64;
        for (member, &head) in members.iter().enumerate() {
            turned.add(&mut key, [head, group], &turns[group][member], part, true);
        }
    }
    [query, key].map(MapValues::General)
}

/// What puts heads of the teacher, turned, into heads of the student.
struct Turned<'a> {
    teacher: HeadGrid,
    pairs: &'a [[usize; 2]],
    features: &'a [Option<usize>],
}

impl Turned<'_> {
    /// Adds `scale` times `head` of the teacher to `student`. `again` has features that have none to begin as be
    /// some others.
    fn add(
        &self,
        map: &mut Mat<f64>,
        [head, student]: [usize; 2],
        turns: &[c64],
        scale: f64,
        again: bool,
    ) {
        let of = head * self.teacher.head_dim;
        for (index, feature) in self.features.iter().enumerate() {
            let column = student * self.features.len() + index;
            let Some(feature) = *feature else {
                if again {
                    map[(of + index % self.teacher.head_dim, column)] += scale;
                }
                continue;
            };
            let pair = self.pairs.iter().position(|pair| pair.contains(&feature));
            let turn = pair.and_then(|pair| turns.get(pair)).copied();
            let turn = turn.unwrap_or(c64::ONE);
            map[(of + feature, column)] += scale * turn.re;
            if let Some(pair) = pair {
                // (re + i im) turn
                let [re, im] = self.pairs[pair];
                match feature == re {
                    true => map[(of + im, column)] -= scale * turn.im,
                    false => map[(of + re, column)] += scale * turn.im,
                }
            }
        }
    }
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
    fn a_turned_key_and_its_query_have_the_score_of_both_as_they_were() {
        let angle: f64 = 0.6;
        let turn = c64::new(angle.cos(), angle.sin());
        let heads = HeadChoice {
            query: vec![0, 1],
            key_value: vec![vec![0, 1]],
        };
        let turns = vec![vec![vec![c64::ONE], vec![turn]]];
        let features = [Some(0), Some(1)];
        let maps = merged(HeadGrid::new(2, 2), 1, &heads, &turns, &[[0, 1]], &features);
        let [query, key] = maps.map(|map| match map {
            MapValues::General(map) => map,
            other => panic!("{other:?}"),
        });
        // The second key is the first, turned back: then the mean is the first.
        let first = [0.8, -0.3];
        let second = [
            first[0] * angle.cos() + first[1] * angle.sin(),
            first[1] * angle.cos() - first[0] * angle.sin(),
        ];
        let row = |values: &[f64]| Mat::from_fn(1, values.len(), |_, column| values[column]);
        let merged = row(&[first, second].concat()) * &key;
        assert!((merged[(0, 0)] - first[0]).abs() < 1e-12);
        assert!((merged[(0, 1)] - first[1]).abs() < 1e-12);
        let queries = [0.2, 0.9, -1.1, 0.4];
        let turned = row(&queries) * &query;
        for (head, key) in [first, second].iter().enumerate() {
            let score = queries[2 * head] * key[0] + queries[2 * head + 1] * key[1];
            let found =
                (0..2).map(|feature| turned[(0, 2 * head + feature)] * merged[(0, feature)]);
            assert!((found.sum::<f64>() - score).abs() < 1e-12, "{head}");
        }
    }

    #[test]
    fn what_a_larger_head_has_left_over_is_nothing_to_the_query_and_something_to_the_key() {
        let features = [Some(0), Some(1), None];
        let [_, of_query] = factors(query(HeadGrid::new(1, 2), &[0], &features));
        let [_, of_key] = factors(key(HeadGrid::new(1, 2), &[0], &features, &[0, 1, 0]));
        assert_eq!((of_query[(0, 2)], of_query[(1, 2)]), (0.0, 0.0));
        assert_eq!((of_key[(0, 2)], of_key[(1, 2)]), (1.0, 0.0));
    }
}
