//! The value and output maps from which a layer's fit begins.

use faer::Mat;

use super::error::Result;
use super::moments::Moments;
use super::out::{OutFit, OutMap};
use super::pairs::Pairs;
use super::solve::{cholesky, eigen, mean_diagonal, ridge};
use super::value_features::ValueFeatures;
use super::value_map::ValueMap;
use crate::map::MapKind;

/// Each head with the values of the head that it began as: all of them, or where the student's heads
/// are smaller, or began as several, as many principal directions: those that the best output of whole heads
/// reads most of. Where `aligned` has turns of several heads' values, by key/value head and member, the mean of
/// the turned.
pub(super) fn first_maps(
    features: &ValueFeatures<'_>,
    value: MapKind,
    out: &OutMap,
    fitted: &Moments,
    aligned: Option<&[Vec<Mat<f64>>]>,
) -> Result<(ValueMap, OutFit)> {
    let (teacher, student) = (features.t_head_dim, features.s_head_dim);
    let kept: Vec<Mat<f64>> = match (aligned, student < teacher || features.is_merged()) {
        (Some(aligned), _) => aligned.iter().map(|turns| mean(turns)).collect(),
        (None, true) => {
            // A factor, of values or output, has one set of directions for all heads.
            let shared = value != MapKind::General || out.kind() != MapKind::General;
            principal_directions(features, shared, fitted)?
        }
        (None, false) => vec![Mat::identity(teacher, student); features.heads.s_key_value],
    };
    // What the values that a query head read go on as.
    let of_query = |head: usize| {
        let (key_value, member) = (head / features.heads.s_group(), features.member(head));
        match aligned {
            Some(aligned) => aligned[key_value][member].clone(),
            None => {
                let own = kept[key_value].subrows(member * teacher, teacher);
                own.to_owned()
            }
        }
    };
    let own: Vec<Mat<f64>> = (0..features.heads.s_query).map(of_query).collect();
    let out = out.first(&own.iter().collect::<Vec<_>>())?;
    let count = features.count();
    let value = match value {
        // What a larger head has left over reads the next head's values, so that it can learn.
        MapKind::General if student > teacher => {
            let heads = 0..features.heads.s_key_value;
            let wrapped = heads.map(|head| {
                Mat::from_fn(count, student, |row, column| {
                    let own = (features.own(head, 0) + column) % count;
                    f64::from(row == own)
                })
            });
            ValueMap::General(wrapped.collect())
        }
        MapKind::General | MapKind::Rotary { .. } => ValueMap::General(features.all_placed(&kept)),
        MapKind::Kronecker(rank) => {
            // What a larger head has left over reads its values again, so that it can learn.
            let again = |kept: &Mat<f64>| {
                Mat::from_fn(teacher, student, |row, column| {
                    kept[(row, column % teacher.min(student))]
                })
            };
            let repeated: Vec<Mat<f64>> = kept.iter().map(again).collect();
            let blocks = features.all_placed(&repeated);
            ValueMap::Pairs(Pairs::nearest_to_blocks(&blocks, teacher, rank)?)
        }
        MapKind::Factored => ValueMap::Factored {
            a: Mat::from_fn(count / teacher, features.heads.s_key_value, |row, head| {
                f64::from(row * teacher == features.own(head, 0))
            }),
            b: kept[0].clone(),
        },
    };
    Ok((value, out))
}

/// The mean of values that are turned, as one matrix over those of all members.
fn mean(turns: &[Mat<f64>]) -> Mat<f64> {
    let (size, part) = (turns[0].nrows(), 1.0 / turns.len() as f64);
    Mat::from_fn(turns.len() * size, size, |row, column| {
        part * turns[row / size][(row % size, column)]
    })
}

/// For each key/value head the directions of its own values that matter most to the output, or the
/// same for all where they are `shared`: the leading eigenvectors of `sum_u L^T O_u O_u^T L`, where
/// `O` is the best output of whole heads and `L L^T` the heads' own second moments.
fn principal_directions(
    features: &ValueFeatures<'_>,
    shared: bool,
    fitted: &Moments,
) -> Result<Vec<Mat<f64>>> {
    let (heads, size) = (features.heads, features.t_head_dim);
    // Each query head with the values that the teacher's has: where heads are merged, those of one member.
    let whole = Mat::<f64>::identity(size, size);
    let blocks: Vec<Mat<f64>> = (0..heads.s_query)
        .map(|query| {
            let mut block = Mat::zeros(features.count(), size);
            let begins = features.own(query / heads.s_group(), features.member(query));
            block.subrows_mut(begins, size).copy_from(&whole);
            block
        })
        .collect();
    let own = fitted.through(&blocks.iter().collect::<Vec<_>>());
    let output = ridge(&own.gram, &own.cross(1.0), 1e-4)?;
    let group = heads.s_group();
    let groups = (0..heads.s_key_value).map(|head| match shared {
        true => 0..heads.s_query,
        false => head * group..(head + 1) * group,
    });
    groups
        .enumerate()
        .map(|(key_value, group)| {
            let members = features.key_value[key_value].len();
            let mut gram = Mat::<f64>::zeros(members * size, members * size);
            let mut read = gram.clone();
            for head in group {
                // Second moments of all members' values, as this head's pattern mixes them.
                let all = Mat::<f64>::identity(members * size, members * size);
                let all = features.placed(key_value, &all);
                let count = features.count();
                let of_head = fitted
                    .gram
                    .submatrix(head * count, head * count, count, count);
                gram += all.transpose() * of_head * &all;
                let rows = output.subrows(head * size, size);
                let member = features.member(head) * size;
                let mut read = read.submatrix_mut(member, member, size, size);
                read += rows * rows.transpose();
            }
            leading(&gram, &read, features.s_head_dim)
        })
        .collect()
}

/// The `count` directions that carry most of `read` in the metric of `gram`, as columns.
fn leading(gram: &Mat<f64>, read: &Mat<f64>, count: usize) -> Result<Mat<f64>> {
    let size = gram.nrows();
    let factor = cholesky(gram, 1e-6)?;
    let lower = factor.L();
    let (vectors, _) = eigen(&(lower.transpose() * read * lower))?;
    let mut kept = Mat::from_fn(size, count, |row, column| vectors[(row, size - 1 - column)]);
    // F M has these directions of its own second moments: M = L^-T E, scaled to the size of values.
    faer::linalg::triangular_solve::solve_upper_triangular_in_place(
        lower.transpose(),
        kept.as_mut(),
        faer::Par::Seq,
    );
    let scale = mean_diagonal(gram).sqrt();
    Ok(faer::Scale(scale) * kept)
}

#[cfg(test)]
mod tests {
    use super::super::error::CalibrationError;
    use super::*;

    #[test]
    fn the_leading_direction_is_the_one_that_carries_most() {
        // Variances of 4, 1 and 1; the output reads the last feature with the largest coefficient by far.
        let diagonal =
            |values: [f64; 3]| Mat::from_fn(3, 3, |i, j| if i == j { values[i] } else { 0.0 });
        let kept = leading(&diagonal([4.0, 1.0, 1.0]), &diagonal([1.0, 1.0, 9.0]), 2).unwrap();
        // The first carries 4 * 1, the last 1 * 9.
        let largest = |column: usize| {
            (0..3).max_by(|a, b| {
                kept[(*a, column)]
                    .abs()
                    .total_cmp(&kept[(*b, column)].abs())
            })
        };
        assert_eq!([largest(0), largest(1)], [Some(2), Some(0)]);
        // As large as the values are: of their second moments, the mean diagonal.
        assert!((kept[(2, 0)].abs() - 2.0_f64.sqrt()).abs() < 1e-5);
        let negative = Mat::from_fn(2, 2, |i, j| if i == j { 1.0 } else { 3.0 });
        let error = leading(&negative, &Mat::zeros(2, 2), 1).unwrap_err();
        assert!(matches!(error, CalibrationError::Singular { .. }));
    }
}
