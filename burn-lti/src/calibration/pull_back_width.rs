//! Maps along the residual stream, and along the axes beside it, that make the weights of a start which is narrower.
//!
//! Such a start fits weights at the student's width (see `narrow.rs`), not maps. With the width as columns, on whichever
//! side of a weight it lies, the weight that maps make is `M^T C W`: `C` is the teacher's own, the gains before it
//! folded in, `M` the map of the other axis, of heads or units, and `W` that of the width. First `W` is what makes the
//! start's weight of `C` with `M` as the start has it, the heads' maps or the units that were picked, by least squares;
//! of all solutions the smallest, since what no row of `C` reads is nothing. Then, where `M` may be any map, it becomes
//! the nearest to what it was that makes of `C W` the weight to the last digits (see `pull_back.rs`).
//!
//! Where one `W` serves all weights, it is the least squares over them, each counting the same. A norm takes away how
//! long the stream is, and no reader of it has a scale of its own then: with `P` what writes to a stream that keeps its
//! mean square, what reads it goes through `t_width / s_width` times `P`. So all that writes is made as much larger,
//! and a table that is the head too reads a final gain as much smaller.

use std::collections::BTreeSet;

use burn::prelude::*;
use burn::tensor::{DType, TensorData};
use faer::Mat;
use faer::linalg::solvers::Solve;

use super::error::{CalibrationError, Result};
use super::map_values::row_major;
use super::pull_back::{RIDGE, Residual, nearest, one_hot};
use super::report::CalibratedStart;
use super::settings::{Blocks, Calibration};
use super::solve::cholesky;
use super::teacher::TeacherTensors;
use crate::geometry::{Axis, Role, Site};
use crate::map::Side;
use crate::tensors::{TensorSet, join_name};

/// How much more than a row of a weight the bias beside it counts: what the map of the width misses of it, no other map
/// makes up for.
const OF_BIAS: f64 = 1e3;

/// How many maps the residual stream of a student has that is narrower than its teacher's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WidthMaps {
    /// None: the teacher's weights come at the student's width, and only their units have maps.
    None,
    /// Each weight has its own.
    Each,
    /// One serves all weights.
    One,
}

/// A start with maps in the place of weights.
#[derive(Clone, Debug)]
pub struct MadeMaps<B: Backend> {
    /// The start.
    pub start: CalibratedStart<B>,
    /// What its maps leave of the weights that they are to make.
    pub residual: Residual,
    /// How much longer the residual stream is than that of the start that was given. Where the head is the embedding,
    /// the gains before it have to be as much smaller.
    pub longer: f64,
}

/// `start`, which `calibration` gave, of another width than the teacher's, with maps `W` in the place of its weights: of
/// the width as `maps` says, and of the units of its feed-forward blocks.
///
/// `weights` are those of the student that lie along the width, each with its name; `teacher` holds the teacher's under
/// these names, at its own width, with the gains before them folded in. With [`WidthMaps::None`] the start has them at
/// the student's width. With [`Blocks::Picked`] the maps of the units of a layer are equal, so that they may be one
/// variable.
///
/// # Errors
///
/// [`CalibrationError`], if a weight is missing or no number.
pub fn with_maps_of_width<B: Backend>(
    start: CalibratedStart<B>,
    calibration: &Calibration<'_>,
    teacher: &TensorSet<B>,
    weights: &[(Site, String)],
    maps: WidthMaps,
) -> Result<MadeMaps<B>> {
    let embedding = weights.iter().find(|(site, _)| *site == Site::EMBEDDING);
    let table = embedding.and_then(|(_, name)| teacher.get(&join_name(name, "weight")));
    let Some(table) = table else {
        return Err(CalibrationError::no_weight(&Site::EMBEDDING.to_string()));
    };
    let table_shape = table.tensor.shape();
    let t_width = table_shape.last().copied().unwrap_or_default();
    let width = calibration.student.d_model;
    let longer = match maps {
        WidthMaps::One => t_width as f64 / width.max(1) as f64,
        WidthMaps::None | WidthMaps::Each => 1.0,
    };
    let reader = Reader {
        teacher: TeacherTensors(teacher.clone()),
        start: TeacherTensors(start.tensors.clone()),
        of_start: &start,
        units: calibration.spec.teacher.hidden,
        widths: [t_width, width],
        longer,
    };
    let is_mapped = |role: Role| maps != WidthMaps::None || Role::FEED_FORWARD.contains(&role);
    let of_width: Vec<(Site, &str)> = weights
        .iter()
        .filter(|(site, name)| is_mapped(site.role) && reader.has(name))
        .map(|(site, name)| (*site, name.as_str()))
        .collect();
    let one = match maps {
        WidthMaps::One => Some(reader.one_map(&of_width)?),
        WidthMaps::None | WidthMaps::Each => None,
    };
    let device = table.tensor.to_rank([table.tensor.num_elements()]).device();
    let tensor = |values: &Mat<f64>, dtype: DType| {
        let data = TensorData::new(row_major(values), [values.nrows(), values.ncols()]);
        Tensor::<B, 2>::from_data(data, (&device, DType::F32)).cast(dtype)
    };
    let (mut made, mut replaced, mut worst) = (TensorSet::new(), BTreeSet::new(), 0.0_f64);
    for (site, name) in of_width {
        let weight = reader.weight(site, name)?;
        let (of_width, mut residual) = match &one {
            Some(one) => (one.clone(), weight.left_by(one)),
            None => nearest(&weight.picked, &weight.wanted, Mat::zeros(t_width, width))?,
        };
        let side = weight.side;
        let is_block = Role::FEED_FORWARD.contains(&site.role);
        let is_free = match is_block {
            true => calibration.blocks == Blocks::Fitted,
            // What made the kernels of heads makes them still, unless the width is not theirs.
            false => maps == WidthMaps::One,
        };
        if let Some(other) = &weight.other {
            let mut map = other.first.clone();
            if is_free {
                (map, residual) = other.nearest(&weight.c, &of_width)?;
            }
            if is_block || is_free {
                let name = join_name(&join_name(name, other_side(side).name()), "w");
                made.insert(&name, "AxisMap", tensor(&map, DType::F32));
            }
        }
        worst = worst.max(residual);
        match maps {
            WidthMaps::None => {
                let c = &weight.c * &of_width;
                let c = match side {
                    Side::Left => c.transpose().to_owned(),
                    Side::Right => c,
                };
                let dtype = table.tensor.dtype();
                made.insert(&join_name(name, "weight"), "Linear", tensor(&c, dtype));
            }
            WidthMaps::Each | WidthMaps::One => {
                let name = join_name(&join_name(name, side.name()), "w");
                made.insert(&name, "AxisMap", tensor(&of_width, DType::F32));
                replaced.insert(weight.name);
            }
        }
        // Biases are the teacher's, and go through the maps of what they are added to.
        if side == Side::Left || maps != WidthMaps::None {
            replaced.insert(join_name(name, "bias"));
        }
    }
    let others = start
        .tensors
        .renamed(|name| (!replaced.contains(name)).then(|| name.to_owned()));
    Ok(MadeMaps {
        start: CalibratedStart {
            tensors: others.with(&made),
            layers: start.layers,
        },
        residual: worst,
        longer,
    })
}

/// The side on which the width does not lie.
const fn other_side(side: Side) -> Side {
    match side {
        Side::Left => Side::Right,
        Side::Right => Side::Left,
    }
}

/// What the start has in the place of a weight of the teacher's, with the width as columns.
struct Weight {
    /// The name of the tensor.
    name: String,
    /// The side of the weight that lies along the width.
    side: Side,
    /// The teacher's, `[t_others, t_width]`.
    c: Mat<f64>,
    /// What of it the start has at the student's width, `[rows, t_width]`, and that, `[rows, s_width]`; a bias that is
    /// added to the stream is one more row, a heavy one.
    picked: Mat<f64>,
    wanted: Mat<f64>,
    other: Option<Other>,
}

impl Weight {
    /// What is left of the weight with this map of the width, as a part of it.
    fn left_by(&self, of_width: &Mat<f64>) -> Residual {
        let left = &self.wanted - &self.picked * of_width;
        left.norm_l2() / self.wanted.norm_l2().max(f64::MIN_POSITIVE)
    }
}

/// The axis of a weight beside the width.
struct Other {
    /// Its map in the start, `[t_others, s_others]`.
    first: Mat<f64>,
    /// The weight that is to be made, `[s_width, s_others]`.
    wanted: Mat<f64>,
    /// A bias along this axis, of the teacher and of the student, each a row.
    bias: Option<[Mat<f64>; 2]>,
}

impl Other {
    /// The map nearest to the first that makes the weight of `c` once the width is mapped, and what is left.
    fn nearest(&self, c: &Mat<f64>, of_width: &Mat<f64>) -> Result<(Mat<f64>, Residual)> {
        let rows = (c * of_width).transpose().to_owned();
        let (rows, wanted) = match &self.bias {
            Some([teacher, student]) => (below(rows, teacher), below(self.wanted.clone(), student)),
            None => (rows, self.wanted.clone()),
        };
        nearest(&rows, &wanted, self.first.clone())
    }
}

/// Reads weights of teacher and start.
struct Reader<'a, B: Backend> {
    teacher: TeacherTensors<B>,
    start: TeacherTensors<B>,
    of_start: &'a CalibratedStart<B>,
    /// The teacher's units in a block.
    units: usize,
    widths: [usize; 2],
    /// How much larger the weights become that write to the stream.
    longer: f64,
}

impl<B: Backend> Reader<'_, B> {
    fn has(&self, name: &str) -> bool {
        self.teacher.0.get(&join_name(name, "weight")).is_some()
    }

    /// The map with which all these weights are made best.
    fn one_map(&self, weights: &[(Site, &str)]) -> Result<Mat<f64>> {
        let [t_width, width] = self.widths;
        let mut gram = Mat::<f64>::zeros(t_width, t_width);
        let mut cross = Mat::<f64>::zeros(t_width, width);
        for (site, name) in weights {
            let weight = self.weight(*site, name)?;
            let part = 1.0 / weight.wanted.squared_norm_l2().max(f64::MIN_POSITIVE);
            let scaled = faer::Scale(part) * weight.picked.transpose();
            gram += &scaled * &weight.picked;
            cross += &scaled * &weight.wanted;
        }
        if !(gram.norm_l2().is_finite() && cross.norm_l2().is_finite()) {
            return Err(CalibrationError::NotFinite);
        }
        Ok(cholesky(&gram, RIDGE)?.solve(&cross))
    }

    fn weight(&self, site: Site, name: &str) -> Result<Weight> {
        let Some(side) = Side::along(site.role, Axis::Width) else {
            return Err(CalibrationError::no_weight(name));
        };
        let [t_width, width] = self.widths;
        let c = columns(&self.teacher, name, side, t_width)?;
        let own = columns(&self.start, name, side, width)?;
        let bias = |tensors| bias(tensors, name);
        let (of_teacher, of_start) = (bias(&self.teacher)?, bias(&self.start)?);
        let is_block = Role::FEED_FORWARD.contains(&site.role);
        let (picked, first) = match is_block {
            true => {
                let kept = self.kept(site.layer);
                let picked = Mat::from_fn(kept.len(), t_width, |i, j| c[(kept[i], j)]);
                (picked, Some(one_hot(self.units, &kept)))
            }
            false => (c.clone(), self.map_of_heads(name, side, c.nrows())?),
        };
        let longer = match side {
            Side::Left => 1.0,
            Side::Right => self.longer,
        };
        let own = faer::Scale(longer) * own;
        let other = first.map(|first| {
            let wanted = match is_block {
                true => own.transpose().to_owned(),
                false => own.transpose() * &first,
            };
            // A bias beside heads, or one that the start left alone, is that of the map as it is.
            let bias = of_teacher.clone().filter(|_| side == Side::Left);
            let bias = bias.map(|bias| {
                let of_start = of_start.clone().filter(|_| is_block);
                let through = of_start.unwrap_or_else(|| &bias * &first);
                [bias, through]
            });
            Other {
                first,
                wanted,
                bias,
            }
        });
        let (picked, wanted) = match (of_teacher, of_start) {
            (Some(teacher), Some(start)) if side == Side::Right => {
                let row = picked.norm_l2() / (picked.nrows().max(1) as f64).sqrt();
                let heavy = OF_BIAS * row / teacher.norm_l2().max(f64::MIN_POSITIVE);
                let [teacher, start] = [(teacher, 1.0), (start, longer)]
                    .map(|(bias, longer)| faer::Scale(heavy * longer) * bias);
                (below(picked, &teacher), below(own, &start))
            }
            _ => (picked, own),
        };
        Ok(Weight {
            name: join_name(name, "weight"),
            side,
            c,
            picked,
            wanted,
            other,
        })
    }

    /// The teacher's units of which those of a layer began.
    fn kept(&self, layer: usize) -> Vec<usize> {
        let mut reports = self.of_start.layers.iter();
        let report = reports.find(|report| report.layer == layer);
        let units = report.and_then(|report| report.units.clone());
        units.unwrap_or_else(|| (0..self.units).collect())
    }

    /// The map of heads that the start has beside the width, if it may be any: `[t_others, s_others]`.
    fn map_of_heads(&self, name: &str, side: Side, t_others: usize) -> Result<Option<Mat<f64>>> {
        let name = join_name(&join_name(name, other_side(side).name()), "w");
        let Some(named) = self.start.0.get(&name) else {
            return Ok(None);
        };
        let values = numbers(named.tensor.to_f32())?;
        let s_others = values.len() / t_others.max(1);
        Ok(Some(Mat::from_fn(t_others, s_others, |i, j| {
            values[i * s_others + j]
        })))
    }
}

/// A weight with the width as columns.
fn columns<B: Backend>(
    tensors: &TeacherTensors<B>,
    name: &str,
    side: Side,
    width: usize,
) -> Result<Mat<f64>> {
    if side == Side::Right {
        return tensors.weight(name, width);
    }
    let weight = join_name(name, "weight");
    let named = tensors.0.get(&weight);
    let named = named.ok_or_else(|| CalibrationError::no_weight(&weight))?;
    let outputs = named.tensor.num_elements() / width.max(1);
    Ok(tensors.weight(name, outputs)?.transpose().to_owned())
}

/// The bias of a projection as a row, if it has one.
fn bias<B: Backend>(tensors: &TeacherTensors<B>, name: &str) -> Result<Option<Mat<f64>>> {
    let Some(named) = tensors.0.get(&join_name(name, "bias")) else {
        return Ok(None);
    };
    let values = numbers(named.tensor.to_f32())?;
    Ok(Some(Mat::from_fn(1, values.len(), |_, j| values[j])))
}

fn numbers(values: std::result::Result<Vec<f32>, String>) -> Result<Vec<f64>> {
    let values = values.map_err(|_| CalibrationError::NotFinite)?;
    Ok(values.into_iter().map(f64::from).collect())
}

/// `upper` with the row `last` below it.
fn below(upper: Mat<f64>, last: &Mat<f64>) -> Mat<f64> {
    let rows = upper.nrows();
    Mat::from_fn(rows + 1, upper.ncols(), |i, j| match i == rows {
        true => last[(0, j)],
        false => upper[(i, j)],
    })
}
