//! Maps along the hidden axis that make the feed-forward weights of a start.
//!
//! A start fits the weights of a block, not maps: `K` for gate, up and down. Where these are to be learned as maps of
//! the teacher's `C`, their first values solve `C R = K`, for the last projection `L^T C = K`. With more units than
//! features that has many solutions. Taken is the one nearest to `E`, the units that were picked, as they are:
//! `R = E + C^+ (K - C E)`, with `C^+` the pseudo-inverse. It is exact where `C` has full rank on the side of the
//! features, and the least squares otherwise. A bias beside `C`, which goes through the same map, is one more row.

use burn::prelude::*;
use burn::tensor::{DType, TensorData};
use faer::Mat;
use faer::linalg::solvers::Solve;

use super::error::{CalibrationError, Result};
use super::map_values::row_major;
use super::report::CalibratedStart;
use super::settings::Calibration;
use super::solve::cholesky;
use super::teacher::{TeacherTensors, site_name};
use crate::decoder::LayeredDecoder;
use crate::geometry::{Axis, Role, Site};
use crate::map::Side;
use crate::tensors::{TensorSet, join_name};

/// What keeps the equations solvable, as a part of their mean diagonal; what it takes away comes back by refinement.
pub(super) const RIDGE: f64 = 1e-10;
/// Times that a solution is refined.
const REFINEMENTS: usize = 3;

/// What the maps of a start leave of the weights that they are to make: the root of the squares, as a part of that of
/// the weights, of the worst projection.
pub type Residual = f64;

/// `start`, which `calibration` gave, with maps `W` in the place of its feed-forward weights in all layers that have
/// maps, by the names `....up_proj.right.w` and `....down_proj.left.w`; and how well they make these weights.
///
/// Blocks that the start left as they are get maps too, the identity. With [`Blocks::Picked`](super::Blocks::Picked)
/// all maps of a layer are equal, so that they may be one variable.
///
/// # Errors
///
/// [`CalibrationError`], if a weight is missing or no number.
pub fn with_maps_of_blocks<B: Backend>(
    start: CalibratedStart<B>,
    calibration: &Calibration<'_>,
    teacher: &impl LayeredDecoder<B>,
) -> Result<(CalibratedStart<B>, Residual)> {
    let units = [calibration.spec.teacher.hidden, calibration.student.hidden];
    let of_teacher = TeacherTensors(TensorSet::collect(teacher));
    let device = teacher.devices()[0].clone();
    let started = TeacherTensors(start.tensors.clone());
    let (mut maps, mut replaced, mut worst) = (TensorSet::new(), Vec::new(), 0.0_f64);
    for report in &start.layers {
        let layer = report.layer;
        let source = calibration.kept.as_ref().map_or(layer, |kept| kept[layer]);
        let kept = match &report.units {
            Some(kept) => kept.clone(),
            None => (0..units[0]).collect(),
        };
        for role in Role::FEED_FORWARD {
            // A block without a gate has two projections.
            if teacher.site_name(Site::new(source, role)).is_none() {
                continue;
            }
            let name = site_name(teacher, layer, role)?;
            let Some(side) = Side::along(role, Axis::Hidden) else {
                continue;
            };
            let kernel = |tensors: &TeacherTensors<B>, name: &str, units| {
                rows_by_units(tensors, name, side, units)
            };
            let c = kernel(&of_teacher, &site_name(teacher, source, role)?, units[0])?;
            let weight = join_name(&name, "weight");
            let k = match start.tensors.get(&weight) {
                Some(_) => Some(kernel(&started, &name, units[1])?),
                None => None,
            };
            // A bias that the start left alone is that of the units as they are.
            let k = k.map(|k| match k.nrows() < c.nrows() {
                true => Mat::from_fn(c.nrows(), k.ncols(), |row, unit| match row < k.nrows() {
                    true => k[(row, unit)],
                    false => c[(row, kept[unit])],
                }),
                false => k,
            });
            let (map, residual) = nearest_map(&c, k.as_ref(), &kept)?;
            worst = worst.max(residual);
            let data = TensorData::new(row_major(&map), [map.nrows(), map.ncols()]);
            let map = Tensor::<B, 2>::from_data(data, (&device, DType::F32));
            let name_of_map = join_name(&join_name(&name, side.name()), "w");
            maps.insert(&name_of_map, "AxisMap", map);
            replaced.push(weight);
            if side == Side::Right {
                replaced.push(join_name(&name, "bias"));
            }
        }
    }
    let others = start.tensors.renamed(|name| {
        let is_replaced = replaced.iter().any(|it| it == name);
        (!is_replaced).then(|| name.to_owned())
    });
    let start = CalibratedStart {
        tensors: others.with(&maps),
        layers: start.layers,
    };
    Ok((start, worst))
}

/// A weight with its `units` as columns, and as the last row the bias that goes with them, if there is one.
fn rows_by_units<B: Backend>(
    tensors: &TeacherTensors<B>,
    name: &str,
    side: Side,
    units: usize,
) -> Result<Mat<f64>> {
    if side == Side::Right {
        let weight = tensors.weight(name, units)?;
        let Some(named) = tensors.0.get(&join_name(name, "bias")) else {
            return Ok(weight);
        };
        let bias = named.tensor.to_f32();
        let bias = bias.map_err(|_| CalibrationError::NotFinite)?;
        let rows = weight.nrows();
        return Ok(Mat::from_fn(rows + 1, units, |row, unit| {
            match row == rows {
                true => f64::from(bias[unit]),
                false => weight[(row, unit)],
            }
        }));
    }
    let weight = join_name(name, "weight");
    let Some(named) = tensors.0.get(&weight) else {
        return Err(CalibrationError::no_weight(&weight));
    };
    let outputs = named.tensor.num_elements() / units.max(1);
    Ok(tensors.weight(name, outputs)?.transpose().to_owned())
}

/// The map nearest to the picked units, `[t_units, s_units]`, with which `c [rows, t_units]` makes `k [rows, s_units]`
/// (the picked units themselves, if there is none), and what is left of `k`.
fn nearest_map(c: &Mat<f64>, k: Option<&Mat<f64>>, kept: &[usize]) -> Result<(Mat<f64>, Residual)> {
    let picks = one_hot(c.ncols(), kept);
    match k {
        Some(k) => nearest(c, k, picks),
        None => Ok((picks, 0.0)),
    }
}

/// The map that picks these of `all` features, `[all, kept]`.
pub(super) fn one_hot(all: usize, kept: &[usize]) -> Mat<f64> {
    let mut map = Mat::zeros(all, kept.len());
    for (feature, of_teacher) in kept.iter().enumerate() {
        map[(*of_teacher, feature)] = 1.0;
    }
    map
}

/// The map nearest to `first [t_features, s_features]` with which `c [rows, t_features]` makes `k [rows, s_features]`,
/// and what is left of `k`.
pub(super) fn nearest(c: &Mat<f64>, k: &Mat<f64>, first: Mat<f64>) -> Result<(Mat<f64>, Residual)> {
    let mut map = first;
    let mut left = k - c * &map;
    let size = k.norm_l2();
    if !(left.norm_l2().is_finite() && size.is_finite()) {
        return Err(CalibrationError::NotFinite);
    }
    if left.norm_l2() > 0.0 {
        let is_wide = c.nrows() <= c.ncols();
        let gram = match is_wide {
            true => c * c.transpose(),
            false => c.transpose() * c,
        };
        let factor = cholesky(&gram, RIDGE)?;
        for _ in 0..=REFINEMENTS {
            map += match is_wide {
                true => c.transpose() * factor.solve(&left),
                false => factor.solve(c.transpose() * &left),
            };
            left = k - c * &map;
        }
    }
    Ok((map, left.norm_l2() / size.max(f64::MIN_POSITIVE)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(rows: usize, columns: usize, seed: usize) -> Mat<f64> {
        Mat::from_fn(rows, columns, |i, j| {
            ((i * i * 5 + i * j * 3 + j * j * 7 + seed) as f64).sin()
        })
    }

    #[test]
    fn a_weight_that_the_teachers_units_can_make_is_made_by_the_nearest_map() {
        let (c, k) = (matrix(4, 9, 1), matrix(4, 5, 2));
        let kept = [0, 2, 3, 5, 8];
        let (map, residual) = nearest_map(&c, Some(&k), &kept).unwrap();
        assert!(residual < 1e-9, "{residual}");
        assert!((&c * &map - &k).norm_l2() < 1e-9);
        let (picks, none) = nearest_map(&c, None, &kept).unwrap();
        assert_eq!(none, 0.0);
        // What was added to the picks lies in the rows of `C`: any other solution is farther.
        let added = &map - &picks;
        let outside = matrix(9, 5, 3);
        let outside = &outside
            - c.transpose()
                * cholesky(&(&c * c.transpose()), 0.0)
                    .unwrap()
                    .solve(&c * &outside);
        let overlap = (added.transpose() * outside).norm_max();
        assert!(overlap < 1e-8, "{overlap}");
    }

    #[test]
    fn picked_units_are_their_own_map() {
        let c = matrix(4, 9, 1);
        let kept = [1, 4, 7];
        let k = Mat::from_fn(4, 3, |row, unit| c[(row, kept[unit])]);
        let (map, residual) = nearest_map(&c, Some(&k), &kept).unwrap();
        assert_eq!(residual, 0.0);
        assert_eq!(map, nearest_map(&c, None, &kept).unwrap().0);
    }

    #[test]
    fn what_too_few_units_cannot_make_is_left() {
        let (c, k) = (matrix(9, 4, 1), matrix(9, 2, 2));
        let (map, residual) = nearest_map(&c, Some(&k), &[0, 1]).unwrap();
        let left = &k - &c * &map;
        assert!((residual - left.norm_l2() / k.norm_l2()).abs() < 1e-12);
        assert!(residual > 1e-3, "{residual}");
        // The least squares: nothing of what is left can be made.
        assert!((c.transpose() * left).norm_max() < 1e-8);
        let nan = Mat::from_fn(9, 2, |_, _| f64::NAN);
        assert!(matches!(
            nearest_map(&c, Some(&nan), &[0, 1]),
            Err(CalibrationError::NotFinite)
        ));
    }
}
