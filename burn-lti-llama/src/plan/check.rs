//! What a recipe must be for its teacher.

use std::path::Path;

use burn_lti::calibration::FeedForward;
use burn_lti::map::{MapKind, Start};
use burn_lti::train::LayerPair;

use super::{FeaturePlan, Origin, PlanError, PlannedTensor};
use crate::config::{ConfigError, LlamaConfig, QkNorm, divisors, list};
use crate::hf::WeightType;
use crate::recipe::{
    AxisMaps, FeatureSection, KeptLayers, LayerPairs, Layers, MapChoice, Recipe, SeqLens, Trained,
};

/// The teacher in the recipe's shape. `kept` are the layers of the teacher that the student's stand for.
pub(super) fn student_config(
    recipe: &Recipe,
    teacher: &LlamaConfig,
    kept: &[usize],
) -> Result<LlamaConfig, PlanError> {
    let shape = &recipe.student;
    let heads = shape.heads.unwrap_or(teacher.num_attention_heads);
    let kv_heads = shape.kv_heads.unwrap_or(teacher.num_key_value_heads);
    let head_dim = shape.head_dim.unwrap_or(teacher.head_dim);
    let intermediate_size = shape.intermediate_size.unwrap_or(teacher.intermediate_size);
    let hidden_size = shape.hidden_size.unwrap_or(teacher.hidden_size);
    let is_tied = shape.tie_embeddings.unwrap_or(teacher.tie_word_embeddings);
    let sizes = [
        ("student.hidden_size", hidden_size),
        ("student.heads", heads),
        ("student.kv_heads", kv_heads),
        ("student.head_dim", head_dim),
        ("student.intermediate_size", intermediate_size),
    ];
    if let Some((key, _)) = sizes.into_iter().find(|(_, size)| *size == 0) {
        return Err(PlanError::refused(
            key,
            "is 0: give the student at least one".to_owned(),
        ));
    }
    if !head_dim.is_multiple_of(2) {
        let reason = format!("is {head_dim}: make it even, for rotary pairs");
        return Err(PlanError::refused("student.head_dim", reason));
    }
    let is_normed = teacher.qk_norm != QkNorm::Nothing;
    if head_dim != teacher.head_dim && (is_normed || teacher.rope.partial != 1.0) {
        let what = match teacher.qk_norm {
            QkNorm::EachHead => "norms each head's queries and keys",
            QkNorm::AllHeads => "norms the queries and keys of all heads",
            QkNorm::Nothing => "turns a part of each head",
        };
        let reason = format!(
            "is {head_dim}, but the teacher {what}, which is not carried over to heads of another size than \
             {}: leave it out",
            teacher.head_dim
        );
        return Err(PlanError::refused("student.head_dim", reason));
    }
    if intermediate_size > teacher.intermediate_size {
        let reason = format!(
            "is {intermediate_size}, but the teacher's feed-forward blocks have {} units, and a student keeps some of \
             them: set it to that or less",
            teacher.intermediate_size
        );
        return Err(PlanError::refused("student.intermediate_size", reason));
    }
    if hidden_size > teacher.hidden_size {
        let reason = format!(
            "is {hidden_size}, but the teacher's width is {}, and a student's stream is made of the teacher's: set it \
             to that or less",
            teacher.hidden_size
        );
        return Err(PlanError::refused("student.hidden_size", reason));
    }
    let student = LlamaConfig {
        num_attention_heads: heads,
        num_key_value_heads: kv_heads,
        head_dim,
        intermediate_size,
        ..teacher.with_layers(kept).at_width(hidden_size, is_tied)
    };
    match student.check(Path::new("the student")) {
        Ok(()) => Ok(student.openable()),
        Err(ConfigError::KvHeads {
            heads,
            kv_heads,
            allowed,
            ..
        }) => Err(PlanError::refused(
            "student.heads",
            format!(
                "is {heads}, no multiple of student.kv_heads, which is {kv_heads}: set \
                 student.kv_heads to one of {}",
                list(&allowed)
            ),
        )),
        Err(source) => Err(PlanError::Student { source }),
    }
}

/// The layers of the teacher that the student's stand for, ascending. Of a number of layers, those that were
/// `chosen`, or before they are, the first and the last ones.
pub(super) fn kept_layers(
    recipe: &Recipe,
    teacher: &LlamaConfig,
    chosen: Option<&[usize]>,
) -> Result<Vec<usize>, PlanError> {
    let layers = teacher.num_hidden_layers;
    let refused = |reason| Err(PlanError::refused("student.layers", reason));
    match (&recipe.student.layers, chosen) {
        (None, _) => Ok((0..layers).collect()),
        (Some(KeptLayers::These(kept)), _) => match kept.iter().find(|layer| **layer >= layers) {
            Some(layer) => refused(format!(
                "names layer {layer}, but the teacher has {layers}: use numbers from 0 to {}",
                layers - 1
            )),
            None => Ok(kept.clone()),
        },
        (Some(KeptLayers::Count(count)), _) if !(1..=layers).contains(count) => refused(format!(
            "is {count}, but the teacher has {layers} layers: keep from 1 to {layers}"
        )),
        (Some(KeptLayers::Count(count)), Some(chosen))
            if chosen.len() == *count
                && chosen.is_sorted_by(|a, b| a < b)
                && chosen.last().is_some_and(|last| *last < layers) =>
        {
            Ok(chosen.to_vec())
        }
        // Before they are chosen, or chosen of another teacher, which is found out by its hashes.
        (Some(KeptLayers::Count(count)), _) => {
            let first = count.div_ceil(2);
            Ok((0..first).chain(layers - (count - first)..layers).collect())
        }
    }
}

/// A shape that is to be searched is none yet.
pub(super) fn check_shape_is_found(recipe: &Recipe) -> Result<(), PlanError> {
    match recipe.student.target {
        None => Ok(()),
        Some(_) => Err(PlanError::refused(
            "student.target",
            "asks for a shape that is still to be searched: `burn-lti start`, `burn-lti distill` and `burn-lti plan \
             --shapes` do it; put the shape that the last prints into [student]"
                .to_owned(),
        )),
    }
}

/// A vocabulary that is to be cut is cut by whoever reads the tokenizer and the texts.
pub(super) fn check_vocabulary(recipe: &Recipe, teacher: &LlamaConfig) -> Result<(), PlanError> {
    match recipe.student.vocabulary.is_some() && !teacher.is_cut() {
        false => Ok(()),
        true => Err(PlanError::refused(
            "student.vocabulary",
            "asks for some of the teacher's tokens, and which they are is to be found first: `distill::plan` does it, \
             from the tokenizer and the texts"
                .to_owned(),
        )),
    }
}

/// Where units, layers or features are left out, what is left has to make up for them, and only what a block adds as
/// it is can be fitted to that.
pub(super) fn check_shape(
    recipe: &Recipe,
    teacher: &LlamaConfig,
    student: &LlamaConfig,
) -> Result<(), PlanError> {
    let fewer_units = student.intermediate_size != teacher.intermediate_size;
    let fewer_layers = student.num_hidden_layers != teacher.num_hidden_layers;
    let becomes_tied = student.tie_word_embeddings && !teacher.tie_word_embeddings;
    let is_calibrated = recipe.lti.start == Start::Calibrated;
    let key = match (fewer_units, fewer_layers, becomes_tied) {
        _ if student.hidden_size != teacher.hidden_size => "student.hidden_size",
        (true, _, _) => "student.intermediate_size",
        (_, true, _) => "student.layers",
        (_, _, true) => "student.tie_embeddings",
        _ => return Ok(()),
    };
    if becomes_tied && !is_calibrated {
        let reason = format!(
            "is true, but the teacher's head is not its embedding, and lti.start = \"{}\" fits neither to the other: \
             set lti.start = \"calibrated\", or leave student.tie_embeddings out",
            recipe.lti.start
        );
        return Err(PlanError::refused("student.tie_embeddings", reason));
    }
    if teacher.output_norms && is_calibrated {
        let reason = format!(
            "is another than the teacher's, a {}, whose blocks are normed before they are added: lti.start = \
             \"calibrated\" fits none of these; set lti.start = \"grouped\", or leave {key} out",
            teacher.family.model_type()
        );
        return Err(PlanError::refused(key, reason));
    }
    if !recipe.weights.copy.is_empty() && fewer_layers {
        let reason = "gives student tensors other sources than their own names, and student.layers gives each layer \
                      another: take one of both out"
            .to_owned();
        return Err(PlanError::refused("weights.copy", reason));
    }
    match &recipe.lti.layers {
        Layers::These(_) if is_calibrated => {
            let reason = format!(
                "names some layers, but {key} changes all, and lti.start = \"calibrated\" fits a layer as a \
                 whole: set lti.layers = \"all\""
            );
            Err(PlanError::refused("lti.layers", reason))
        }
        _ => Ok(()),
    }
}

/// Maps train in float32 beside any teacher, and so do the biases beside them; nothing else does.
pub(super) fn check_trained_type(
    dtype: WeightType,
    trained: Trained,
    tensors: &[PlannedTensor],
) -> Result<(), PlanError> {
    let beside_maps = |tensor: &PlannedTensor| {
        trained == Trained::Maps
            && matches!(
                tensor.origin,
                Origin::Map | Origin::Copied { .. } | Origin::Shared { .. }
            )
    };
    let in_half = |tensor: &&PlannedTensor| tensor.trained && !beside_maps(tensor);
    match tensors.iter().find(in_half) {
        Some(tensor) if dtype != WeightType::F32 => Err(PlanError::refused(
            "teacher.dtype",
            format!(
                "is \"{dtype}\", but {} would train in it, and an optimizer's small steps are lost in \
                 half precision: set teacher.dtype = \"float32\", or let only maps train (lti.train = \
                 \"maps\" with lti.layers = \"all\")",
                tensor.name
            ),
        )),
        _ => Ok(()),
    }
}

/// The grouped start needs heads that share out evenly and a head size that stays.
pub(super) fn check_start(
    start: Start,
    student: &LlamaConfig,
    teacher: &LlamaConfig,
) -> Result<(), PlanError> {
    if start != Start::Grouped {
        return Ok(());
    }
    for (key, student, teacher) in [
        (
            "student.heads",
            student.num_attention_heads,
            teacher.num_attention_heads,
        ),
        (
            "student.kv_heads",
            student.num_key_value_heads,
            teacher.num_key_value_heads,
        ),
    ] {
        if !teacher.is_multiple_of(student) {
            let reason = format!(
                "is {student}, which does not divide the teacher's {teacher}: with lti.start = \
                 \"grouped\", set it to one of {}; any number goes with lti.start = \"calibrated\" or \
                 \"lecun\"",
                list(&divisors(teacher))
            );
            return Err(PlanError::refused(key, reason));
        }
    }
    let (student, teacher) = (student.head_dim, teacher.head_dim);
    if student != teacher {
        let reason = format!(
            "is {student}, but lti.start = \"grouped\" keeps the teacher's {teacher}: set \
             student.head_dim = {teacher}, or lti.start = \"calibrated\" or \"lecun\""
        );
        return Err(PlanError::refused("student.head_dim", reason));
    }
    Ok(())
}

/// A sum has at most as many pairs as the smaller of its factors has entries.
pub(super) fn check_ranks(
    map: &MapChoice,
    student: &LlamaConfig,
    teacher: &LlamaConfig,
) -> Result<(), PlanError> {
    for (role, kind) in map.kinds() {
        let largest = MapKind::largest_rank(teacher.axes().grid(role), student.axes().grid(role));
        match kind {
            MapKind::Kronecker(rank) if rank > largest => {
                let reason = format!(
                    "asks for kronecker rank {rank} in the {role} projection, whose largest is \
                     {largest}, which makes every general map: set {role} = {{ kronecker = {largest} }} \
                     or less, or {role} = \"general\""
                );
                return Err(PlanError::refused("lti.map", reason));
            }
            _ => {}
        }
    }
    Ok(())
}

/// A calibrated start fits each layer to the teacher's of the same number.
pub(super) fn check_weights_of_start(recipe: &Recipe) -> Result<(), PlanError> {
    let rules = [
        ("weights.copy", &recipe.weights.copy),
        ("weights.share", &recipe.weights.share),
    ];
    match rules.into_iter().find(|(_, rules)| !rules.is_empty()) {
        Some((key, _)) if recipe.lti.start == Start::Calibrated => {
            let reason = format!(
                "gives student tensors other sources than their own names, and lti.start = \
                 \"calibrated\" fits each layer to the teacher's of the same number: take {key} out, or \
                 set lti.start = \"grouped\""
            );
            Err(PlanError::refused(key, reason))
        }
        _ => Ok(()),
    }
}

/// The last projection of a feed-forward block is fitted to what is missing after it, and where that is normed, it is
/// not what the projection puts out; and a map that it shares with the others can be no fit of it alone.
pub(super) fn check_refit(recipe: &Recipe, teacher: &LlamaConfig) -> Result<(), PlanError> {
    match recipe.calibration.feed_forward {
        FeedForward::Refit if teacher.output_norms => Err(PlanError::refused(
            "calibration.feed_forward",
            "is \"refit\", but the teacher norms what its feed-forward blocks put out, through which they cannot be \
             fitted: take calibration.feed_forward out"
                .to_owned(),
        )),
        FeedForward::Refit if recipe.lti.map.hidden == AxisMaps::Shared => Err(PlanError::refused(
            "calibration.feed_forward",
            "is \"refit\", which fits a projection of each feed-forward block alone, and lti.map has one map of all \
             three, hidden = \"shared\": take calibration.feed_forward out, or set hidden = \"general\""
                .to_owned(),
        )),
        _ => Ok(()),
    }
}

/// Along the width every weight of every layer has its map, or none has. What a start fits has to be made by maps of
/// both its axes then.
pub(super) fn check_other_axes(
    recipe: &Recipe,
    teacher: &LlamaConfig,
    student: &LlamaConfig,
) -> Result<(), PlanError> {
    let map = &recipe.lti.map;
    let is_calibrated = recipe.lti.start == Start::Calibrated;
    if map.width == AxisMaps::Weights {
        return Ok(());
    }
    if teacher.output_norms {
        let reason = format!(
            "has maps of the width, but the teacher, a {}, norms what its blocks put out, whose gains no weight behind \
             them can take: take width out",
            teacher.family.model_type()
        );
        return Err(PlanError::refused("lti.map", reason));
    }
    if recipe.lti.layers != Layers::All {
        let reason = "names some layers, but all read and write the residual stream, which lti.map has maps of: set \
                      lti.layers = \"all\", or take width out of lti.map"
            .to_owned();
        return Err(PlanError::refused("lti.layers", reason));
    }
    let fits_blocks = student.num_hidden_layers != teacher.num_hidden_layers
        || student.narrows(teacher)
        || recipe.calibration.feed_forward == FeedForward::Refit;
    let changes_blocks =
        student.intermediate_size != teacher.intermediate_size || (is_calibrated && fits_blocks);
    match changes_blocks && map.hidden == AxisMaps::Weights {
        true => Err(PlanError::refused(
            "lti.map",
            "has maps of the width, under which every weight is the teacher's, and none of the units, whose weights \
             become others: add hidden = \"general\" or \"shared\", or take width out"
                .to_owned(),
        )),
        false => Ok(()),
    }
}

/// A calibrated start fits each layer to what those before it put out, which random ones leave open.
pub(super) fn check_nothing_new(start: Start, tensors: &[PlannedTensor]) -> Result<(), PlanError> {
    match tensors.iter().find(|tensor| tensor.origin == Origin::New) {
        Some(tensor) if start == Start::Calibrated => Err(PlanError::CalibratedLayers {
            tensor: tensor.name.clone(),
        }),
        _ => Ok(()),
    }
}

/// The sequences can be no longer than what the teacher was made for.
pub(super) fn check_seq_len(seq_len: &SeqLens, teacher: &LlamaConfig) -> Result<(), PlanError> {
    let max = teacher.max_position_embeddings;
    match seq_len.longest() > max {
        true => Err(PlanError::refused(
            "train.seq_len",
            format!(
                "is {seq_len}, but the teacher's max_position_embeddings is {max}: set train.seq_len to \
                 {max} or less"
            ),
        )),
        false => Ok(()),
    }
}

pub(super) fn resolve_layers(choice: &Layers, layers: usize) -> Result<Vec<usize>, PlanError> {
    let mut chosen = match choice {
        Layers::All => (0..layers).collect(),
        Layers::These(chosen) => chosen.clone(),
    };
    chosen.sort_unstable();
    match chosen.last() {
        None => Err(PlanError::refused(
            "lti.layers",
            "is empty: name at least one layer, or set lti.layers = \"all\"".to_owned(),
        )),
        Some(&layer) if layer >= layers => Err(PlanError::refused(
            "lti.layers",
            format!(
                "names layer {layer}, but the student has {layers} layers: use numbers from 0 to {}",
                layers - 1
            ),
        )),
        Some(_) => Ok(chosen),
    }
}

pub(super) fn plan_feature(
    feature: &FeatureSection,
    student: &LlamaConfig,
    teacher: &LlamaConfig,
    kept: &[usize],
) -> Result<FeaturePlan, PlanError> {
    let pairs = match &feature.pairs {
        LayerPairs::Same => (0..student.num_hidden_layers)
            .map(|layer| LayerPair::from([layer, kept[layer]]))
            .collect(),
        LayerPairs::These(pairs) => pairs.clone(),
    };
    for pair in &pairs {
        for (model, layer, layers) in [
            ("student", pair.student, student.num_hidden_layers),
            ("teacher", pair.teacher, teacher.num_hidden_layers),
        ] {
            if layer >= layers {
                let reason = format!(
                    "names layer {layer} of the {model}, which has {layers}: use numbers from 0 to {}, as \
                     [student, teacher]",
                    layers - 1
                );
                return Err(PlanError::refused("loss.feature.pairs", reason));
            }
        }
    }
    if student.hidden_size != teacher.hidden_size && !feature.projector {
        let reason = format!(
            "is false, but the student's width is {} and the teacher's {}, whose features are compared: set \
             loss.feature.projector = true, or leave [loss.feature] out",
            student.hidden_size, teacher.hidden_size
        );
        return Err(PlanError::refused("loss.feature.projector", reason));
    }
    Ok(FeaturePlan {
        weight: feature.weight,
        kind: feature.kind,
        pairs,
        projector: feature.projector,
    })
}
