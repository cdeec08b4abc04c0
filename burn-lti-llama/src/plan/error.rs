//! Why a recipe does not suit its teacher.

use burn_lti::blueprint::BlueprintError;
use burn_lti::decoder::DecoderError;
use burn_lti::geometry::Role;
use thiserror::Error;

use crate::config::{ConfigError, list};
use crate::hf::WeightType;

/// Why a recipe does not suit its teacher.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PlanError {
    /// A size of the student is zero.
    #[error("{key} is 0: give the student at least one")]
    Zero {
        /// The key of the recipe.
        key: &'static str,
    },
    /// The query heads cannot be shared out among the key/value heads.
    #[error(
        "student.heads is {heads}, no multiple of student.kv_heads, which is {kv_heads}: set \
         student.kv_heads to one of {}",
        list(allowed)
    )]
    KvHeads {
        /// Query heads of the student.
        heads: usize,
        /// Key/value heads of the student.
        kv_heads: usize,
        /// The key/value heads that would do.
        allowed: Vec<usize>,
    },
    /// The rotary embedding turns pairs of features.
    #[error("student.head_dim is {head_dim}: make it even, for rotary pairs")]
    OddHeadDim {
        /// Head size of the student.
        head_dim: usize,
    },
    /// The student is no Llama that could be saved.
    #[error("[student] makes no valid Llama: choose sizes nearer to the teacher's")]
    Student {
        /// What is wrong with it.
        source: ConfigError,
    },
    /// The grouped start shares the teacher's heads out evenly among the student's.
    #[error(
        "{key} is {student}, which does not divide the teacher's {teacher}: with lti.start = \
         \"grouped\", set it to one of {}; any number goes with lti.start = \
         \"calibrated\" or \"lecun\"",
        list(allowed)
    )]
    GroupedHeads {
        /// The key of the recipe.
        key: &'static str,
        /// Heads of the student.
        student: usize,
        /// Heads of the teacher.
        teacher: usize,
        /// The heads that would do.
        allowed: Vec<usize>,
    },
    /// The grouped start keeps the features of a head as they are.
    #[error(
        "student.head_dim is {student}, but lti.start = \"grouped\" keeps the teacher's \
         {teacher}: set student.head_dim = {teacher}, or lti.start = \"calibrated\" or \
         \"lecun\""
    )]
    GroupedHeadDim {
        /// Head size of the student.
        student: usize,
        /// Head size of the teacher.
        teacher: usize,
    },
    /// A sum of more pairs of factors than there is anything for.
    #[error(
        "lti.map asks for kronecker rank {rank} in the {role} projection, whose largest is {largest}, which \
         makes every general map: set {role} = {{ kronecker = {largest} }} or less, or {role} = \"general\""
    )]
    KroneckerRank {
        /// The projection.
        role: Role,
        /// The rank asked for.
        rank: usize,
        /// The largest that there is.
        largest: usize,
    },
    /// A calibrated start cannot follow rules that give a layer the tensors of another.
    #[error(
        "{key} gives student tensors other sources than their own names, and lti.start = \"calibrated\" \
         fits each layer to the teacher's of the same number: take {key} out, or set lti.start = \
         \"grouped\""
    )]
    CalibratedRules {
        /// The key of the recipe.
        key: &'static str,
    },
    /// A calibrated start cannot be fitted beside tensors that begin at random.
    #[error(
        "{tensor} would begin at random, because lti.layers leaves its layer out and its heads are not the \
         teacher's, and lti.start = \"calibrated\" fits layers to what comes before them: set lti.layers = \
         \"all\", keep the teacher's heads, or set lti.start = \"grouped\""
    )]
    CalibratedLayers {
        /// The first tensor that would.
        tensor: String,
    },
    /// What trains would be held in half precision, in which small steps are lost.
    #[error(
        "teacher.dtype is \"{dtype}\", but {tensor} would train in it, and an optimizer's small steps \
         are lost in half precision: set teacher.dtype = \"float32\", or let only maps train \
         (lti.train = \"maps\" with lti.layers = \"all\")"
    )]
    TrainedInHalf {
        /// The float type.
        dtype: WeightType,
        /// The first tensor that would train in it.
        tensor: String,
    },
    /// A second phase would train in half precision.
    #[error(
        "teacher.dtype is \"{dtype}\", but [phase2] would train {tensor} in it, and an optimizer's \
         small steps are lost in half precision: set teacher.dtype = \"float32\", or leave [phase2] out"
    )]
    Phase2InHalf {
        /// The float type.
        dtype: WeightType,
        /// The first tensor that would train in it.
        tensor: String,
    },
    /// The sequences are longer than the teacher can read.
    #[error(
        "train.seq_len is {seq_len}, but the teacher's max_position_embeddings is {max}: set \
         train.seq_len to {max} or less"
    )]
    SeqLen {
        /// Tokens in a sequence.
        seq_len: usize,
        /// The most that the teacher reads.
        max: usize,
    },
    /// No layer is to have maps.
    #[error("lti.layers is empty: name at least one layer, or set lti.layers = \"all\"")]
    NoLayers,
    /// The teacher has no such layer.
    #[error(
        "lti.layers names layer {layer}, but the teacher has {layers}: use numbers from 0 to {}",
        layers - 1
    )]
    LayerOutOfRange {
        /// The layer named.
        layer: usize,
        /// Layers of the teacher.
        layers: usize,
    },
    /// A pattern of what does not train matches no tensor.
    #[error(
        "weights.freeze: no tensor of the student has `{pattern}` in its name: `burn-lti plan` lists the \
         names"
    )]
    FreezesNothing {
        /// The pattern.
        pattern: String,
    },
    /// Everything is frozen.
    #[error("weights.freeze leaves nothing to train, or nothing in [phase2]: take a pattern out")]
    NothingTrains,
    /// Copying or sharing cannot be done.
    #[error("weights.copy or weights.share: {0}; `burn-lti plan` without the rule lists the names")]
    Weights(#[source] BlueprintError),
    /// The student's maps cannot stand where they should.
    #[error("[lti] makes no student of this teacher")]
    Maps(#[from] DecoderError),
    /// A feature loss names a layer that is not there.
    #[error(
        "loss.feature.pairs names layer {layer} of the {model}, which has {layers}: use numbers from 0 \
         to {}, as [student, teacher]",
        layers - 1
    )]
    FeatureLayer {
        /// The model: teacher or student.
        model: &'static str,
        /// The layer named.
        layer: usize,
        /// Layers of the model.
        layers: usize,
    },
}

impl From<BlueprintError> for PlanError {
    fn from(error: BlueprintError) -> Self {
        Self::Weights(error)
    }
}
