//! The teacher at a student's width, where the start reads no text: features of its stream, as they are.

use burn::prelude::*;
use burn::tensor::{DType, TensorData};
use burn_flex::Flex;
use burn_lti::blueprint::Listed;
use burn_lti::geometry::Axis;
use burn_lti::map::Start;
use burn_lti::tensors::{NamedTensor, TensorSet};
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

use crate::hf::kept_name;
use crate::model::{PlainLlama, foldable_gains, with_folded_gains};
use crate::plan::{Plan, map_name, sites};
use crate::recipe::AxisMaps;

/// The names of the embedding and of a head of its own.
const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

/// `teacher`, whose layers are the student's already, at the student's width, or, where maps bring it there, at its own
/// with those maps.
///
/// With `lecun`, the control, features of the stream are chosen by the seed; with the others they are those with the
/// largest product of two sums: of the squares of what writes to the feature, and of the squares of what reads it,
/// through the gains of the norms before. A calibrated start puts its own in the place of these.
pub(super) fn at_width<B: Backend>(plan: &Plan, seed: u64, teacher: TensorSet<B>) -> TensorSet<B> {
    let (student, of_teacher) = (&plan.student, &plan.teacher);
    let mut teacher = with_head(plan, teacher);
    if plan.map.width != AxisMaps::Weights {
        return with_maps(plan, seed, teacher);
    }
    if student.hidden_size == of_teacher.hidden_size {
        return teacher;
    }
    let along = along_stream(plan, &teacher);
    let Some((_, _, first)) = along.first() else {
        return teacher;
    };
    let device = first.tensor.to_rank([first.tensor.num_elements()]).device();
    let kept = kept_features(plan, seed, &along);
    let ids = TensorData::new(kept, [student.hidden_size]);
    let ids = Tensor::<B, 1, Int>::from_data(ids, &device);
    for (name, axis, named) in along {
        match *named.tensor.shape().as_slice() {
            [length] => {
                let entries: Tensor<B, 1> = named.tensor.to_rank([length]);
                teacher.insert(&name, &named.owner, entries.select(0, ids.clone()));
            }
            [rows, columns] => {
                let weight: Tensor<B, 2> = named.tensor.to_rank([rows, columns]);
                teacher.insert(&name, &named.owner, weight.select(axis, ids.clone()));
            }
            _ => {}
        }
    }
    teacher
}

/// `teacher`, whose layers are the student's already, at its own width, the gains of its norms in the weights behind them.
pub(super) fn folded<B: Backend>(plan: &Plan, teacher: TensorSet<B>) -> TensorSet<B> {
    with_folded_gains(&plan.student, &with_head(plan, teacher))
}

/// `teacher` with a head of its own where the student has one.
fn with_head<B: Backend>(plan: &Plan, mut teacher: TensorSet<B>) -> TensorSet<B> {
    let (student, of_teacher) = (&plan.student, &plan.teacher);
    if !student.tie_word_embeddings
        && of_teacher.tie_word_embeddings
        && let Some(table) = teacher.get(EMBEDDING)
    {
        let table: Tensor<B, 2> = table
            .tensor
            .to_rank([of_teacher.vocab_size, of_teacher.hidden_size]);
        teacher.insert(HEAD, "Linear", table.transpose());
    }
    teacher
}

/// The tensors of `teacher`, whose layers are the student's already, along the residual stream, each with the axis that
/// lies so.
fn along_stream<B: Backend>(
    plan: &Plan,
    teacher: &TensorSet<B>,
) -> Vec<(String, usize, NamedTensor<B>)> {
    let (student, of_teacher) = (&plan.student, &plan.teacher);
    if student.hidden_size == of_teacher.hidden_size {
        return Vec::new();
    }
    // Which axis of a tensor lies along the stream, its shape at both widths says.
    let at_width = of_teacher.at_width(student.hidden_size, student.tie_word_embeddings);
    let listed = Listed::all(&PlainLlama::<Flex>::init(&at_width, &Default::default()));
    let along = listed.into_iter().filter_map(|tensor| {
        let name = match &plan.kept_layers {
            Some(kept) => kept_name(&tensor.name, kept)?,
            None => tensor.name,
        };
        let named = teacher.get(&name)?;
        let own = named.tensor.shape();
        let axis = (0..own.len()).find(|axis| own[*axis] != tensor.shape[*axis])?;
        Some((name, axis, named.clone()))
    });
    along.collect()
}

/// The features that are kept, ascending.
fn kept_features<B: Backend>(
    plan: &Plan,
    seed: u64,
    along: &[(String, usize, NamedTensor<B>)],
) -> Vec<i64> {
    let (all, count) = (plan.teacher.hidden_size, plan.student.hidden_size);
    match plan.start {
        _ if all == count => (0..all as i64).collect(),
        Start::Lecun => by_chance(all, count, seed),
        _ => largest(along, [all, count], plan.student.tie_word_embeddings),
    }
}

/// `teacher` at its own width, the gains of its norms in the weights behind them, with the student's gains of one, and
/// unless they are random, the maps that pick the features which are kept.
fn with_maps<B: Backend>(plan: &Plan, seed: u64, teacher: TensorSet<B>) -> TensorSet<B> {
    let [all, count] = [plan.teacher.hidden_size, plan.student.hidden_size];
    let along = along_stream(plan, &teacher);
    let kept = kept_features(plan, seed, &along);
    let mut tensors = with_folded_gains(&plan.student, &teacher);
    for (name, _) in foldable_gains(&plan.student) {
        if let Some(named) = tensors.get(&name).cloned() {
            let gain: Tensor<B, 1> = named.tensor.to_rank([all]);
            tensors.insert(&name, &named.owner, gain.narrow(0, 0, count));
        }
    }
    let Some(table) = teacher
        .get(EMBEDDING)
        .filter(|_| plan.start != Start::Lecun)
    else {
        return tensors;
    };
    let device = table.tensor.to_rank([table.tensor.num_elements()]).device();
    let mut map = vec![0.0_f32; all * count];
    for (feature, of_teacher) in kept.iter().enumerate() {
        map[*of_teacher as usize * count + feature] = 1.0;
    }
    let map = TensorData::new(map, [all, count]);
    let map = Tensor::<B, 2>::from_data(map, (&device, DType::F32));
    for name in sites(&plan.student).filter_map(|site| map_name(site, Axis::Width)) {
        tensors.insert(&name, "AxisMap", map.clone());
    }
    tensors
}

fn by_chance(all: usize, count: usize, seed: u64) -> Vec<i64> {
    let mut ids: Vec<i64> = (0..all as i64).collect();
    ids.shuffle(&mut StdRng::seed_from_u64(seed));
    ids.truncate(count);
    ids.sort_unstable();
    ids
}

/// The features with the largest product of what writes to them and what reads them. `along` are the tensors along
/// the stream, and the axis of each that lies so.
fn largest<B: Backend>(
    along: &[(String, usize, NamedTensor<B>)],
    [all, count]: [usize; 2],
    is_tied: bool,
) -> Vec<i64> {
    let squares = |named: &NamedTensor<B>, axis: usize| -> Vec<f32> {
        let own = named.tensor.shape();
        let [rows, columns] = match own.as_slice() {
            &[rows, columns] => [rows, columns],
            _ => [all, 1],
        };
        let weight: Tensor<B, 2> = named.tensor.to_rank([rows, columns]);
        let sums = weight.cast(DType::F32).powi_scalar(2).sum_dim(1 - axis);
        sums.into_data().iter().collect()
    };
    let (mut written, mut read) = (vec![0.0; all], vec![0.0; all]);
    for (name, axis, named) in along {
        if named.tensor.shape().len() != 2 {
            continue;
        }
        let (writes, own) = (*axis == 1, squares(named, *axis));
        // Each weight counts the same.
        let total = own.iter().sum::<f32>().max(f32::MIN_POSITIVE);
        if writes {
            for (sum, square) in written.iter_mut().zip(&own) {
                *sum += square / total;
            }
        }
        // An embedding that is the head reads as well.
        if !writes || (name == EMBEDDING && is_tied) {
            // Before what reads the stream stands a norm, whose gains are part of it.
            let norm = norm_before(name);
            let norm = along.iter().find(|(name, ..)| *name == norm);
            let gains = norm.map_or(vec![1.0; all], |(_, _, norm)| squares(norm, 0));
            for ((sum, square), gain) in read.iter_mut().zip(own).zip(gains) {
                *sum += square * gain / total;
            }
        }
    }
    let mut ids: Vec<usize> = (0..all).collect();
    let size = |feature: usize| written[feature] * read[feature].max(f32::MIN_POSITIVE);
    ids.sort_by(|a, b| size(*b).total_cmp(&size(*a)));
    ids.truncate(count);
    ids.sort_unstable();
    ids.into_iter().map(|feature| feature as i64).collect()
}

/// The gains of the norm through which the weight `name` reads the stream.
fn norm_before(name: &str) -> String {
    let of_layer = |part: &str, norm: &str| {
        let (layer, _) = name.split_once(part)?;
        Some(format!("{layer}.{norm}.gamma"))
    };
    of_layer(".self_attn.", "input_layernorm")
        .or_else(|| of_layer(".mlp.", "post_attention_layernorm"))
        .unwrap_or_else(|| "model.norm.gamma".to_owned())
}
