//! The feed-forward blocks of a student with fewer units, or with maps of them, where the start reads no text.

use burn::prelude::*;
use burn::tensor::{DType, TensorData};
use burn_lti::geometry::{Axis, Role, Site};
use burn_lti::map::Start;
use burn_lti::tensors::TensorSet;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

use super::DistillError;
use crate::config::site_name;
use crate::plan::{Plan, map_name};

/// The feed-forward weights of every layer, or the maps that pick them, by the student's names; `teacher` has its
/// layers and its width already.
///
/// With `grouped` the units that are kept are those with the largest product of the norms of their gate, up and
/// down weights; with `lecun`, the control, units are chosen by the seed, and maps are random themselves.
pub(super) fn picked<B: Backend>(
    plan: &Plan,
    seed: u64,
    teacher: &TensorSet<B>,
) -> Result<TensorSet<B>, DistillError> {
    let (t_units, units) = (
        plan.teacher.intermediate_size,
        plan.student.intermediate_size,
    );
    let mut picked = TensorSet::new();
    let axes = plan.student.axes();
    let is_mapped = |layer| {
        let site = |role| Site::new(layer, role);
        Role::FEED_FORWARD
            .into_iter()
            .all(|role| plan.spec.config(&axes, site(role)).is_some())
    };
    let d_model = plan.spec.teacher.d_model;
    let mut rng = StdRng::seed_from_u64(seed);
    for layer in 0..plan.student.num_hidden_layers {
        let is_mapped = is_mapped(layer);
        if !is_mapped && t_units == units || is_mapped && plan.start == Start::Lecun {
            continue;
        }
        let name = |role, leaf: &str| format!("{}.{leaf}", site_name(Site::new(layer, role)));
        let weight = |role, shape: [usize; 2]| -> Result<Tensor<B, 2>, DistillError> {
            let name = name(role, "weight");
            let named = teacher.get(&name).ok_or_else(|| {
                DistillError::Refused(format!("the teacher has no tensor {name}"))
            })?;
            Ok(named.tensor.to_rank(shape))
        };
        let gate = weight(Role::Gate, [d_model, t_units])?;
        let up = weight(Role::Up, [d_model, t_units])?;
        let down = weight(Role::Down, [t_units, d_model])?;
        let mut kept: Vec<usize> = match plan.start {
            Start::Lecun => {
                let mut all: Vec<usize> = (0..t_units).collect();
                all.shuffle(&mut rng);
                all.truncate(units);
                all
            }
            _ => {
                let square = |weight: &Tensor<B, 2>, axis| {
                    weight.clone().cast(DType::F32).powi_scalar(2).sum_dim(axis)
                };
                let sizes = square(&gate, 0) * square(&up, 0) * square(&down, 1).transpose();
                let sizes: Vec<f32> = sizes.into_data().iter().collect();
                let mut all: Vec<usize> = (0..t_units).collect();
                all.sort_by(|a, b| sizes[*b].total_cmp(&sizes[*a]));
                all.truncate(units);
                all
            }
        };
        kept.sort_unstable();
        if is_mapped {
            let mut map = vec![0.0_f32; t_units * units];
            for (unit, of_teacher) in kept.iter().enumerate() {
                map[of_teacher * units + unit] = 1.0;
            }
            let map = TensorData::new(map, [t_units, units]);
            let map = Tensor::<B, 2>::from_data(map, (&gate.device(), DType::F32));
            let sites = Role::FEED_FORWARD.map(|role| Site::new(layer, role));
            for name in sites
                .iter()
                .filter_map(|site| map_name(*site, Axis::Hidden))
            {
                picked.insert(&name, "AxisMap", map.clone());
            }
            continue;
        }
        let ids: Vec<i64> = kept.iter().map(|unit| *unit as i64).collect();
        let ids = Tensor::<B, 1, Int>::from_data(TensorData::new(ids, [units]), &gate.device());
        for (role, weight, axis) in [
            (Role::Gate, gate, 1),
            (Role::Up, up, 1),
            (Role::Down, down, 0),
        ] {
            picked.insert(
                &name(role, "weight"),
                "Linear",
                weight.select(axis, ids.clone()),
            );
            let bias = name(role, "bias");
            if let Some(named) = teacher.get(&bias).filter(|_| role != Role::Down) {
                let entries: Tensor<B, 1> = named.tensor.to_rank([t_units]);
                picked.insert(&bias, "Linear", entries.select(0, ids.clone()));
            }
        }
    }
    Ok(picked)
}
