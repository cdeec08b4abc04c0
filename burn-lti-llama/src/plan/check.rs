//! What a recipe must be for its teacher.

use std::path::Path;

use burn_lti::geometry::Role;
use burn_lti::map::{MapKind, Start};
use burn_lti::train::LayerPair;

use super::{FeaturePlan, Origin, PlanError, PlannedTensor};
use crate::config::{ConfigError, LlamaConfig, divisors};
use crate::hf::WeightType;
use crate::recipe::{FeatureSection, LayerPairs, Layers, MapChoice, Recipe, Trained};

/// The teacher with the recipe's heads.
pub(super) fn student_config(
    recipe: &Recipe,
    teacher: &LlamaConfig,
) -> Result<LlamaConfig, PlanError> {
    let (heads, kv_heads) = (recipe.student.heads, recipe.student.kv_heads);
    let head_dim = recipe.student.head_dim.unwrap_or(teacher.head_dim);
    let sizes = [
        ("student.heads", heads),
        ("student.kv_heads", kv_heads),
        ("student.head_dim", head_dim),
    ];
    if let Some((key, _)) = sizes.into_iter().find(|(_, size)| *size == 0) {
        return Err(PlanError::Zero { key });
    }
    if !head_dim.is_multiple_of(2) {
        return Err(PlanError::OddHeadDim { head_dim });
    }
    let student = LlamaConfig {
        num_attention_heads: heads,
        num_key_value_heads: kv_heads,
        head_dim,
        ..teacher.clone()
    };
    match student.check(Path::new("the student")) {
        Ok(()) => Ok(student),
        Err(ConfigError::KvHeads {
            heads,
            kv_heads,
            allowed,
            ..
        }) => Err(PlanError::KvHeads {
            heads,
            kv_heads,
            allowed,
        }),
        Err(source) => Err(PlanError::Student { source }),
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
        Some(tensor) if dtype != WeightType::F32 => Err(PlanError::TrainedInHalf {
            dtype,
            tensor: tensor.name.clone(),
        }),
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
            let allowed = divisors(teacher);
            return Err(PlanError::GroupedHeads {
                key,
                student,
                teacher,
                allowed,
            });
        }
    }
    let (student, teacher) = (student.head_dim, teacher.head_dim);
    if student != teacher {
        return Err(PlanError::GroupedHeadDim { student, teacher });
    }
    Ok(())
}

/// A sum has at most as many pairs as its factors have places.
pub(super) fn check_ranks(
    map: &MapChoice,
    student: &LlamaConfig,
    teacher: &LlamaConfig,
) -> Result<(), PlanError> {
    for role in Role::ATTENTION {
        let largest = MapKind::largest_rank(teacher.axes().grid(role), student.axes().grid(role));
        match map.kind(role) {
            MapKind::Kronecker(rank) if rank > largest => {
                return Err(PlanError::KroneckerRank {
                    role,
                    rank,
                    largest,
                });
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
            Err(PlanError::CalibratedRules { key })
        }
        _ => Ok(()),
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

pub(super) fn resolve_layers(choice: &Layers, layers: usize) -> Result<Vec<usize>, PlanError> {
    let mut chosen = match choice {
        Layers::All => (0..layers).collect(),
        Layers::These(chosen) => chosen.clone(),
    };
    chosen.sort_unstable();
    match chosen.last() {
        None => Err(PlanError::NoLayers),
        Some(&layer) if layer >= layers => Err(PlanError::LayerOutOfRange { layer, layers }),
        Some(_) => Ok(chosen),
    }
}

pub(super) fn plan_feature(
    feature: &FeatureSection,
    student: &LlamaConfig,
    teacher: &LlamaConfig,
) -> Result<FeaturePlan, PlanError> {
    let pairs = match &feature.pairs {
        LayerPairs::Same => (0..student.num_hidden_layers)
            .map(|layer| LayerPair::from([layer, layer]))
            .collect(),
        LayerPairs::These(pairs) => pairs.clone(),
    };
    for pair in &pairs {
        for (model, layer, layers) in [
            ("student", pair.student, student.num_hidden_layers),
            ("teacher", pair.teacher, teacher.num_hidden_layers),
        ] {
            if layer >= layers {
                return Err(PlanError::FeatureLayer {
                    model,
                    layer,
                    layers,
                });
            }
        }
    }
    Ok(FeaturePlan {
        weight: feature.weight,
        kind: feature.kind,
        pairs,
        projector: feature.projector,
    })
}
