//! A feed-forward block with fewer units than the teacher's: which of them it keeps.
//!
//! With `X` the teacher's features, a unit's output each, on the student's own hidden states, and `Y` what the
//! block should add, a projection `W` of all units minimises `|Y - X W|^2 + ridge |W - D|^2`, `D` being the
//! teacher's. Those units are left out by whose absence that grows least once all others have made up for it:
//! of `G = X^T X + ridge` and `W = G^-1 (X^T Y + ridge D)`, unit `j` costs `|W_j|^2 / (G^-1)_jj`. They leave
//! in a few blocks, after each of which `W` and `G^-1` are those of the units that are left. The cost is that of
//! Optimal Brain Surgeon (Hassibi and Stork 1993), its use on whole structures that of ZipLM (Kurtic et al. 2023).

use burn::prelude::*;
use burn::tensor::TensorData;
use faer::linalg::solvers::Solve;
use faer::{Mat, Side};

use super::error::{CalibrationError, Result};
use super::features::flat;
use super::feed_forward::RIDGES;
use super::map_values::row_major;
use super::moments::Moments;
use super::settings::{Blocks, Calibration};
use super::solve::{added_to_diagonal, cholesky, dot, mean_diagonal};
use super::split::{SplitMoments, WORTH};
use super::teacher::site_name;
use super::text::Text;
use crate::decoder::LayeredDecoder;
use crate::geometry::Role;
use crate::tensors::{TensorSet, join_name};

/// In how many blocks units leave, at least.
const BLOCKS: usize = 12;

/// Tensors of zeros for the feed-forward weights of a student of so many layers.
pub(super) fn add_placeholders<B: Backend>(
    start: &mut TensorSet<B>,
    teacher: &impl LayeredDecoder<B>,
    calibration: &Calibration<'_>,
    layers: usize,
) -> Result<()> {
    let head = teacher.head().weight;
    let (device, dtype) = (head.device(), head.dtype());
    let (t_units, units) = (calibration.spec.teacher.hidden, calibration.student.hidden);
    if units == 0 || units > t_units {
        return Err(CalibrationError::Refused(format!(
            "the teacher's feed-forward blocks have {t_units} hidden units, of which a student cannot keep {units}: \
             keep from 1 to {t_units}"
        )));
    }
    let d_model = calibration.spec.teacher.d_model;
    let tensors = TensorSet::collect(teacher);
    for layer in 0..layers {
        for (role, shape) in [
            (Role::Gate, [d_model, units]),
            (Role::Up, [d_model, units]),
            (Role::Down, [units, d_model]),
        ] {
            let name = site_name(teacher, layer, role)?;
            let zeros = Tensor::<B, 2>::zeros(shape, (&device, dtype));
            start.insert(&join_name(&name, "weight"), "Linear", zeros);
            let bias = join_name(&name, "bias");
            if role != Role::Down && tensors.get(&bias).is_some() {
                start.insert(
                    &bias,
                    "Linear",
                    Tensor::<B, 1>::zeros([units], (&device, dtype)),
                );
            }
        }
    }
    Ok(())
}

/// The units of `layer` that are kept, and their weights: the teacher's of gate and up, and a last projection that
/// makes up for the others, if it may.
pub(super) fn chosen<B: Backend>(
    text: &mut Text<'_, B, impl LayeredDecoder<B>>,
    layer: usize,
    student: &impl LayeredDecoder<B>,
    calibration: &Calibration<'_>,
) -> Result<(Vec<usize>, TensorSet<B>)> {
    let units = calibration.student.hidden;
    let (of_teacher, source) = (text.at_width(), text.source(layer));
    let down = text.source_name(layer, Role::Down)?;
    let teacher = text.tensors.weight(&down, text.d_model)?;
    let mut sums = SplitMoments::zeros(teacher.nrows(), text.d_model);
    for (index, batch) in text.batches() {
        let block = |attended| of_teacher.feed_forward(source, attended);
        let (attended, missing) = text.missing(index, layer, &batch, student, block)?;
        let features = flat(of_teacher.feed_forward_features(source, attended));
        let targets = text.targets(index, layer, &batch)?;
        let nothing = missing.zeros_like();
        sums.add(
            index,
            targets.weigh(features),
            targets.weigh(missing),
            nothing,
        )?;
    }
    let ridge = best_ridge(&sums, &teacher);
    let (all, mut stronger) = (sums.all(), RIDGES.into_iter().filter(|it| *it > ridge));
    let mut found = eliminated(&all, &teacher, ridge, units);
    // A ridge too little for the rounding of the sums gives way to the next.
    while let (Err(CalibrationError::Singular { .. }), Some(ridge)) = (&found, stronger.next()) {
        found = eliminated(&all, &teacher, ridge, units);
    }
    let (kept, mut weight) = found?;
    if calibration.blocks == Blocks::Picked {
        weight = Mat::from_fn(units, text.d_model, |unit, output| {
            teacher[(kept[unit], output)]
        });
    }
    let mut tensors = TensorSet::new();
    let head = text.teacher.head().weight;
    let (device, dtype) = (head.device(), head.dtype());
    let ids: Vec<i64> = kept.iter().map(|unit| *unit as i64).collect();
    let ids = Tensor::<B, 1, Int>::from_data(TensorData::new(ids, [units]), &device);
    for role in [Role::Gate, Role::Up] {
        let (from, to) = (
            text.source_name(layer, role)?,
            site_name(text.teacher, layer, role)?,
        );
        let weight = join_name(&from, "weight");
        let Some(named) = text.tensors.0.get(&weight) else {
            return Err(CalibrationError::no_weight(&weight));
        };
        let columns = named.tensor.to_rank([text.d_model, teacher.nrows()]);
        let columns = columns.select(1, ids.clone());
        tensors.insert(&join_name(&to, "weight"), "Linear", columns);
        if let Some(named) = text.tensors.0.get(&join_name(&from, "bias")) {
            let entries = named.tensor.to_rank([teacher.nrows()]);
            let entries = entries.select(0, ids.clone());
            tensors.insert(&join_name(&to, "bias"), "Linear", entries);
        }
    }
    let data = TensorData::new(row_major(&weight), [weight.nrows(), weight.ncols()]);
    let weight = Tensor::<B, 2>::from_data(data, (&device, dtype));
    let name = site_name(text.teacher, layer, Role::Down)?;
    tensors.insert(&join_name(&name, "weight"), "Linear", weight);
    Ok((kept, tensors))
}

/// The least ridge with which a change of the projection of all units serves held-out tokens as well as with any, but
/// for rounding: where next to nothing is missing, what is left of it says nothing of a ridge.
fn best_ridge(sums: &SplitMoments, teacher: &Mat<f64>) -> f64 {
    let (fitted, held_out) = (&sums.fitted, &sums.held_out);
    let rounding = WORTH * dot(teacher, &(&held_out.gram * teacher));
    let missed = |ridge: f64| {
        let change = cholesky(&fitted.gram, ridge).ok()?.solve(fitted.cross(1.0));
        Some((held_out.residual(&change) * held_out.energy(1.0), ridge))
    };
    let all: Vec<(f64, f64)> = RIDGES.into_iter().filter_map(missed).collect();
    let least = all
        .iter()
        .map(|(missed, _)| *missed)
        .fold(f64::INFINITY, f64::min);
    let best = all.iter().find(|(missed, _)| *missed <= least + rounding);
    best.map_or(RIDGES[RIDGES.len() - 1], |(_, ridge)| *ridge)
}

/// The units that are left, ascending, and the projection of them, `[units, d_model]`. `moments` are of the
/// features and of what the teacher's projection misses.
fn eliminated(
    moments: &Moments,
    teacher: &Mat<f64>,
    ridge: f64,
    units: usize,
) -> Result<(Vec<usize>, Mat<f64>)> {
    let all = teacher.nrows();
    let pull = added_to_diagonal(mean_diagonal(&moments.gram), ridge);
    let mut gram = moments.gram.clone();
    (0..all).for_each(|unit| gram[(unit, unit)] += pull);
    let factor = gram.llt(Side::Lower);
    let factor = factor.map_err(|_| CalibrationError::Singular { ridge })?;
    let mut inverse = factor.solve(Mat::<f64>::identity(all, all));
    let mut weight = teacher + factor.solve(moments.cross(1.0));
    let mut kept: Vec<usize> = (0..all).collect();
    let block = (all - units).div_ceil(BLOCKS).max(1);
    while kept.len() > units {
        let leaving = (kept.len() - units).min(block);
        let out = cheapest(&inverse, &weight, leaving);
        let stay: Vec<usize> = (0..kept.len())
            .filter(|it| out.binary_search(it).is_err())
            .collect();
        let part = |rows: &[usize], columns: &[usize]| {
            Mat::from_fn(rows.len(), columns.len(), |i, j| {
                inverse[(rows[i], columns[j])]
            })
        };
        // Of the block that leaves: how the others make up for it.
        let own = part(&out, &out).llt(Side::Lower);
        let own = own.map_err(|_| CalibrationError::Singular { ridge })?;
        let beside = part(&stay, &out);
        let of =
            |rows: &[usize]| Mat::from_fn(rows.len(), weight.ncols(), |i, j| weight[(rows[i], j)]);
        let next = of(&stay) - &beside * own.solve(of(&out));
        let rest = part(&stay, &stay) - &beside * own.solve(beside.transpose());
        (weight, inverse) = (next, rest);
        kept = stay.into_iter().map(|it| kept[it]).collect();
    }
    Ok((kept, weight))
}

/// The `count` units that cost least, each once those before it have left, ascending. Looked for among twice as
/// many that cost least now: of two that do the same, one is worth all once the other is gone.
fn cheapest(inverse: &Mat<f64>, weight: &Mat<f64>, count: usize) -> Vec<usize> {
    let square = |weight: &Mat<f64>, unit: usize| -> f64 {
        (0..weight.ncols()).map(|i| weight[(unit, i)].powi(2)).sum()
    };
    let cost = |inverse: &Mat<f64>, weight: &Mat<f64>, unit: usize| {
        square(weight, unit) / inverse[(unit, unit)].max(f64::MIN_POSITIVE)
    };
    let mut by_cost: Vec<(f64, usize)> = (0..inverse.nrows())
        .map(|unit| (cost(inverse, weight, unit), unit))
        .collect();
    by_cost.sort_by(|a, b| a.0.total_cmp(&b.0));
    by_cost.truncate(2 * count);
    let mut left: Vec<usize> = by_cost.into_iter().map(|(_, unit)| unit).collect();
    let mut own = Mat::from_fn(left.len(), left.len(), |i, j| inverse[(left[i], left[j])]);
    let mut of_weight = Mat::from_fn(left.len(), weight.ncols(), |i, j| weight[(left[i], j)]);
    let mut out = Vec::new();
    while out.len() < count {
        let costs = (0..left.len()).map(|unit| cost(&own, &of_weight, unit));
        let Some((next, _)) = costs.enumerate().min_by(|a, b| a.1.total_cmp(&b.1)) else {
            break;
        };
        out.push(left.remove(next));
        let stay: Vec<usize> = (0..=left.len()).filter(|unit| *unit != next).collect();
        let pivot = own[(next, next)].max(f64::MIN_POSITIVE);
        let rest = Mat::from_fn(stay.len(), stay.len(), |i, j| {
            own[(stay[i], stay[j])] - own[(stay[i], next)] * own[(next, stay[j])] / pivot
        });
        of_weight = Mat::from_fn(stay.len(), weight.ncols(), |i, j| {
            of_weight[(stay[i], j)] - own[(stay[i], next)] * of_weight[(next, j)] / pivot
        });
        own = rest;
    }
    out.sort_unstable();
    out
}

#[cfg(test)]
mod tests {
    use burn::backend::Flex;
    use burn::tensor::Distribution;

    use super::*;

    /// Six features of which the last is the sum of the first two, and what they should make.
    fn sums() -> (SplitMoments, Mat<f64>) {
        let device = Default::default();
        let teacher = Mat::from_fn(6, 2, |i, j| 1.0 + (i * 2 + j) as f64 / 10.0);
        let mut sums = SplitMoments::zeros(6, 2);
        for batch in 0..8 {
            let random = Distribution::Normal(0.0, 1.0);
            let five = Tensor::<Flex, 2>::random([50, 5], random, &device);
            let sum = five.clone().narrow(1, 0, 2).sum_dim(1);
            let features = Tensor::cat(vec![five, sum], 1);
            let nothing = Tensor::zeros([50, 2], &device);
            sums.add(batch, features, nothing.clone(), nothing).unwrap();
        }
        (sums, teacher)
    }

    #[test]
    fn what_others_can_do_leaves_first_and_nothing_is_lost() {
        let (sums, teacher) = sums();
        let (kept, weight) = eliminated(&sums.all(), &teacher, 1e-6, 5).unwrap();
        assert_eq!(kept.len(), 5);
        // Any of the three that depend on each other may go; the output stays.
        let gone = (0..6).find(|unit| !kept.contains(unit)).unwrap();
        assert!([0, 1, 5].contains(&gone), "{gone}");
        let features = |row: [f64; 5]| -> Vec<f64> {
            let all = [row[0], row[1], row[2], row[3], row[4], row[0] + row[1]];
            all.to_vec()
        };
        for row in [[1.0, 0.0, 0.0, 0.0, 0.0], [0.3, -2.0, 1.0, 4.0, -1.0]] {
            let all = features(row);
            for j in 0..2 {
                let of_teacher: f64 = (0..6).map(|i| all[i] * teacher[(i, j)]).sum();
                let of_kept: f64 = (0..5).map(|i| all[kept[i]] * weight[(i, j)]).sum();
                assert!(
                    (of_teacher - of_kept).abs() < 1e-3,
                    "{of_teacher} {of_kept}"
                );
            }
        }
    }

    #[test]
    fn of_two_that_do_the_same_one_stays() {
        let device = Default::default();
        let mut sums = SplitMoments::zeros(30, 2);
        for batch in 0..8 {
            let random = Distribution::Normal(0.0, 1.0);
            let own = Tensor::<Flex, 2>::random([60, 15], random, &device);
            let nothing = Tensor::zeros([60, 2], &device);
            let both = Tensor::cat(vec![own.clone(), own], 1);
            sums.add(batch, both, nothing.clone(), nothing).unwrap();
        }
        let teacher = Mat::from_fn(30, 2, |i, j| 1.0 + (i * 7 + j) as f64 % 3.0);
        let (kept, _) = eliminated(&sums.all(), &teacher, 1e-6, 15).unwrap();
        let mut pairs: Vec<usize> = kept.iter().map(|unit| unit % 15).collect();
        pairs.sort_unstable();
        assert_eq!(pairs, (0..15).collect::<Vec<_>>());
    }

    #[test]
    fn blocks_end_where_least_squares_of_the_kept_units_does() {
        let (sums, teacher) = sums();
        let (moments, ridge) = (sums.all(), 0.05);
        let (kept, weight) = eliminated(&moments, &teacher, ridge, 3).unwrap();
        // The same quadratic, over the kept units alone.
        let pull = added_to_diagonal(mean_diagonal(&moments.gram), ridge);
        let cross = &moments.gram * &teacher + faer::Scale(pull) * &teacher;
        let gram = Mat::from_fn(3, 3, |i, j| {
            moments.gram[(kept[i], kept[j])] + if i == j { pull } else { 0.0 }
        });
        let right = Mat::from_fn(3, 2, |i, j| cross[(kept[i], j)]);
        let expected = gram.llt(Side::Lower).unwrap().solve(right);
        assert!((expected - weight).norm_l2() < 1e-9);
    }

    #[test]
    fn all_units_are_the_teachers_where_nothing_is_missing() {
        let (sums, teacher) = sums();
        let (kept, weight) = eliminated(&sums.all(), &teacher, 1e-3, 6).unwrap();
        assert_eq!(kept, [0, 1, 2, 3, 4, 5]);
        assert!((weight - teacher).norm_l2() < 1e-12);
    }
}
