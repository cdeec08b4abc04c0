//! The feed-forward blocks of a student with fewer units, where the start reads no text.

use burn::prelude::*;
use burn::tensor::{DType, TensorData};
use burn_lti::geometry::{Role, Site};
use burn_lti::map::Start;
use burn_lti::tensors::TensorSet;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

use super::DistillError;
use crate::config::site_name;
use crate::plan::Plan;

/// The feed-forward weights of every layer, by the student's names; `teacher` has its layers and its width already.
///
/// With `grouped` the units that are kept are those with the largest product of the norms of their gate, up and
/// down weights; with `lecun`, the control, units are chosen by the seed.
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
    if t_units == units {
        return Ok(picked);
    }
    let d_model = plan.student.hidden_size;
    let mut rng = StdRng::seed_from_u64(seed);
    for layer in 0..plan.student.num_hidden_layers {
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
