//! The sections of a recipe, each key with its default.

use std::fmt;
use std::path::PathBuf;

use burn_lti::calibration::{Budget, FeedForward};
use burn_lti::loss::{Divergence, FeatureDistance, Schedule, SparseForm};
use burn_lti::map::{KernelPrecision, Start};
use burn_lti::train::Decay;
use serde::{Deserialize, Serialize};

use super::choice::{
    CalibrationText, Coordinates, KeptLayers, KeptVocabulary, LayerPairs, Layers, MapChoice,
    Optimizer, Phase2Trained, Rotary, Trained,
};
use super::{LearningRate, Precision, SeqLens, ShardSize, divergence, schedule};
use crate::data::{Documents, LossOn};
use crate::hf::WeightType;

/// `[teacher]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TeacherSection {
    /// Folder of the teacher in Hugging Face layout, or its GGUF file. Required.
    pub path: PathBuf,
    /// The float type in which the teacher is held and computes, and with it the student's tensors
    /// that do not train, `C` among them. Maps train in float32 whatever it is. Default: `float32`, also for a
    /// teacher whose file has another.
    #[serde(default)]
    pub dtype: WeightType,
    /// Folder of top-k files in which the teacher's most likely tokens were kept, to learn from in
    /// place of its logits. Default: none.
    pub cache: Option<PathBuf>,
    /// Fields of the teacher's `config.json` that are not known here, may change what it computes, and are read over
    /// all the same. Default: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub accept: Vec<String>,
}

/// `[student]`: what of the teacher's shape is another. Whatever is not given is the teacher's.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StudentSection {
    /// Query heads.
    pub heads: Option<usize>,
    /// Key/value heads; divides `heads`.
    pub kv_heads: Option<usize>,
    /// Features of a head.
    pub head_dim: Option<usize>,
    /// Units of a feed-forward block.
    pub intermediate_size: Option<usize>,
    /// Width of the residual stream.
    pub hidden_size: Option<usize>,
    /// Whether the head is the embedding.
    pub tie_embeddings: Option<bool>,
    /// Decoder layers.
    pub layers: Option<KeptLayers>,
    /// The tokens that it knows.
    pub vocabulary: Option<KeptVocabulary>,
    /// How small the student is to be: what of the shape is not given is searched.
    pub target: Option<Target>,
}

impl StudentSection {
    /// The same without a target.
    pub(crate) fn shape(&self) -> Self {
        Self {
            target: None,
            ..self.clone()
        }
    }
}

impl fmt::Display for StudentSection {
    /// What of the shape is given, in few words: `layers 0 1 3 4, 4/2 heads, 93 units`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        match &self.layers {
            None => {}
            Some(KeptLayers::Count(count)) => parts.push(format!("{count} layers")),
            Some(KeptLayers::These(kept)) => {
                let numbers: Vec<String> = kept.iter().map(usize::to_string).collect();
                parts.push(format!("layers {}", numbers.join(" ")));
            }
        }
        match (self.heads, self.kv_heads) {
            (None, None) => {}
            (Some(heads), Some(kv_heads)) => parts.push(format!("{heads}/{kv_heads} heads")),
            (Some(heads), None) => parts.push(format!("{heads} query heads")),
            (None, Some(kv_heads)) => parts.push(format!("{kv_heads} key/value heads")),
        }
        parts.extend(self.head_dim.map(|size| format!("of {size} features")));
        parts.extend(self.intermediate_size.map(|units| format!("{units} units")));
        parts.extend(self.hidden_size.map(|width| format!("width {width}")));
        parts.extend(self.tie_embeddings.map(|is_tied| match is_tied {
            true => "a tied head".to_owned(),
            false => "a head of its own".to_owned(),
        }));
        parts.extend(self.vocabulary.as_ref().map(|vocabulary| match vocabulary {
            KeptVocabulary::OfText(_) => "the tokens of the text".to_owned(),
            KeptVocabulary::Count(most) => format!("the {most} most frequent tokens of the text"),
            KeptVocabulary::These(ids) => format!("{} tokens", ids.len()),
        }));
        match parts.is_empty() {
            true => f.write_str("the teacher's shape"),
            false => f.write_str(&parts.join(", ")),
        }
    }
}

/// `[student.target]`: the most that a student may have. A number up to 1 is a part of what the teacher has, a
/// larger one is that itself; of several, all hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Target {
    /// Parameters, a tied head counted once.
    pub parameters: Option<f64>,
    /// Bytes of its weights in a file.
    pub file_bytes: Option<f64>,
    /// Bytes of key/value cache a token, in float32.
    pub kv_bytes_per_token: Option<f64>,
    /// Floating-point operations of a forward pass a token, in a text of the longest `train.seq_len`.
    pub flops_per_token: Option<f64>,
    /// After how many seconds no further shape is tried, or trained. Default: 600.
    pub seconds: Option<f64>,
    /// Steps for which the nearest shapes are trained, of which the nearest after them is taken: at most those of the
    /// run; 0 for none. Default: 50.
    pub train_steps: Option<usize>,
}

impl Target {
    /// Of parameters, bytes of a file, bytes of cache and operations, in this order.
    pub(crate) const fn limits(&self) -> [Option<f64>; 4] {
        [
            self.parameters,
            self.file_bytes,
            self.kv_bytes_per_token,
            self.flops_per_token,
        ]
    }
}

/// `[export]`: the student's files.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ExportSection {
    /// The float type of the student's file. Default: that of the teacher's file, or of `teacher.dtype` if that
    /// is a half-precision one.
    pub dtype: Option<WeightType>,
    /// The most bytes of a file of weights; a model that has more is cut into several. Default: one file.
    pub max_shard_size: Option<ShardSize>,
}

/// `[lti]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LtiSection {
    /// Where the maps begin. Default: `calibrated`.
    pub start: Start,
    /// The form of the maps. Default: `general`.
    pub map: MapChoice,
    /// Whether maps of query and key keep apart what the rotary embedding keeps apart: `free` or `kept`. Default:
    /// `free`.
    #[serde(skip_serializing_if = "Rotary::is_free")]
    pub rotary: Rotary,
    /// How maps of several pairs grow. Default: all pairs learn from the first step.
    pub grow: Option<GrowSection>,
    /// The layers that have maps. Default: `all`.
    pub layers: Layers,
    /// What training changes. Default: `all`; but `maps` where the recipe has what only maps can have, a
    /// `[phase2]`, `grow`, `coordinates`, or a teacher in half precision.
    pub train: Option<Trained>,
    /// In which coordinates maps learn: `whitened` or `plain`. Default: `whitened` if rates are measured,
    /// `plain` if not.
    pub coordinates: Option<Coordinates>,
    /// Precision of the contraction of map and teacher kernel. Default: `default`.
    pub precision: KernelPrecision,
}

impl Default for LtiSection {
    fn default() -> Self {
        Self {
            start: Start::Calibrated,
            map: MapChoice::default(),
            rotary: Rotary::default(),
            grow: None,
            layers: Layers::default(),
            train: None,
            coordinates: None,
            precision: KernelPrecision::default(),
        }
    }
}

/// `[lti.grow]`: the pairs of `map = { kronecker = R }` join one after another; until then they stay as
/// they began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GrowSection {
    /// Pairs that learn from the first step. Default: 1.
    #[serde(default = "defaults::grow_from")]
    pub from: usize,
    /// Steps after which one more joins. Required.
    pub every: usize,
}

/// `[calibration]`: how `lti.start = "calibrated"` is calculated from text.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CalibrationSection {
    /// What is read: `train`, a part of `data.train` by chance, or `teacher`, what the teacher writes
    /// itself, as `burn-lti sample-corpus` does. Default: `train`, or `teacher` where the training text
    /// is too little to calibrate on, less than [`Self::LEAST`] sequences.
    pub text: Option<CalibrationText>,
    /// Sequences of `train.seq_len` tokens that are read; of the training text at most as many as there
    /// are. If there are several lengths, as many tokens, in equal shares. A quarter is held out of the
    /// fits. Default: 256.
    pub sequences: usize,
    /// How much training is to follow: `none`, layers make up for what those before them miss; `short`, each does what
    /// the teacher's does; or `long`, as `short`, and merged heads are means, to which nothing is fitted. Default:
    /// where all weights are to train, `long` on at least a token for each parameter and `short` on at least a tenth
    /// of that; else `none`, as where `burn-lti start` makes the student.
    pub budget: Option<Budget>,
    /// The most rounds in which values and outputs are fitted in turn. Default: 2.
    pub rounds: usize,
    /// Whether feed-forward blocks are fitted too: `keep` or `refit`. Default: `keep`.
    pub feed_forward: FeedForward,
    /// Steps in which the maps of each layer, attention patterns and all, are moved by gradient towards
    /// what the layer should add; 0 for none. Default: 0.
    pub refine_steps: usize,
    /// Highest learning rate of these steps. Default: 3e-3.
    pub refine_learning_rate: f64,
}

impl CalibrationSection {
    /// The fewest sequences that can be calibrated on: some to fit, the others to choose by.
    pub const LEAST: usize = 4;
}

impl Default for CalibrationSection {
    fn default() -> Self {
        Self {
            text: None,
            sequences: 256,
            budget: None,
            rounds: 2,
            feed_forward: FeedForward::Keep,
            refine_steps: 0,
            refine_learning_rate: 3e-3,
        }
    }
}

/// `[loss]`: `alpha * temperature^2 * D(teacher, student) + (1 - alpha) * cross-entropy`, and
/// `weight * feature` where `[loss.feature]` stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LossSection {
    /// Weight of the teacher's distribution against the text itself, 0 to 1; a number, or a schedule
    /// over the steps such as `{ start = 0.9, end = 0.5, schedule = "linear" }` (`linear` or
    /// `cosine`). Default: 1.
    #[serde(with = "schedule")]
    pub alpha: Schedule,
    /// Divides the logits of both models in `D`; a number or a schedule. Default: 1.
    #[serde(with = "schedule")]
    pub temperature: Schedule,
    /// `D`: `forward_kl`, `reverse_kl`, `{ jensen_shannon = 0.5 }` or `{ skewed_kl = 0.1 }`, the
    /// number being the teacher's share, above 0 and below 1. Default: `forward_kl`.
    #[serde(with = "divergence")]
    pub divergence: Divergence,
    /// How the mass outside a cached top-k counts. Default: `tail`.
    pub sparse: SparseForm,
    /// Tokens for which logits exist at a time. Default: 512.
    pub chunk_tokens: usize,
    /// A loss between layers of both models. Default: none.
    pub feature: Option<FeatureSection>,
}

impl Default for LossSection {
    fn default() -> Self {
        Self {
            alpha: Schedule::constant(1.0),
            temperature: Schedule::constant(1.0),
            divergence: Divergence::ForwardKl,
            sparse: SparseForm::default(),
            chunk_tokens: 512,
            feature: None,
        }
    }
}

/// `[loss.feature]`: pulls what a layer of the student puts out towards what one of the teacher does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FeatureSection {
    /// Weight in the loss; a number above 0, or a schedule that is above 0 at one end at least.
    /// Required.
    #[serde(with = "schedule")]
    pub weight: Schedule,
    /// How two layers are compared. Default: `cosine`.
    #[serde(default)]
    pub kind: FeatureDistance,
    /// The layers compared, as `[student, teacher]`. Default: `same`, each layer of the student with
    /// that of the same number.
    #[serde(default)]
    pub pairs: LayerPairs,
    /// Whether the student's side goes through a linear map first, which is learned and thrown away.
    /// Default: false.
    #[serde(default)]
    pub projector: bool,
}

/// `[train]`: balanced or AdamW's steps, with a linear warm-up and a decay of the learning rate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainSection {
    /// Optimizer steps. Required.
    pub steps: usize,
    /// Sequences in a step, of the shortest `seq_len`. Default: 16.
    #[serde(default = "defaults::batch_size")]
    pub batch_size: usize,
    /// Micro-batches in which the sequences of a step are read, one after another, to save memory;
    /// divides `batch_size`. Default: 1.
    #[serde(default = "defaults::accumulate")]
    pub accumulate: usize,
    /// Tokens in a sequence; of several lengths, ascending, each step has one, with as many tokens.
    /// Default: 128.
    #[serde(default = "defaults::seq_len")]
    pub seq_len: SeqLens,
    /// In which type projections are multiplied in training, teacher's and student's, forwards and backwards:
    /// `float32`, or `bfloat16`, with sums, weights, gradients and all else in float32. Default: `auto`, what
    /// the device is fastest in.
    #[serde(default)]
    pub precision: Precision,
    /// `auto`, a measured rate for each tensor, or the highest rate of all. Default: `auto`.
    #[serde(default)]
    pub learning_rate: LearningRate,
    /// What measured rates are multiplied by. Default: 1.
    pub rate: Option<f64>,
    /// `balanced` or `adam`. Default: `balanced` where weights train at measured rates, `adam` where maps do, or
    /// at one rate.
    pub optimizer: Option<Optimizer>,
    /// Part of the steps spent on the warm-up, 0 to 1. Default: 0.1.
    #[serde(default = "defaults::warmup_fraction")]
    pub warmup_fraction: f64,
    /// How rates fall after the warm-up: `linear` or `cosine`. Default: `linear` if they are measured,
    /// `cosine` if not.
    pub decay: Option<Decay>,
    /// Last learning rate as a part of the highest, 0 to 1. Default: 0 if rates are measured, 0.1 if not.
    pub final_lr_fraction: Option<f64>,
    /// Decay of the running means of gradient and squared gradient. Default: `[0.9, 0.95]`.
    #[serde(default = "defaults::betas")]
    pub betas: [f64; 2],
    /// Added to the root of the squared gradient's mean. Default: 1e-12 if rates are measured, 1e-8 if
    /// not.
    pub eps: Option<f64>,
    /// Decoupled weight decay. Default: 0.
    #[serde(default = "defaults::weight_decay")]
    pub weight_decay: f64,
    /// Largest global norm of the gradient of all trained parameters; `inf` for no clipping.
    /// Default: `inf` if rates are measured, 1 if not.
    pub grad_clip: Option<f64>,
    /// Seed of everything random. Default: 0.
    #[serde(default = "defaults::seed")]
    pub seed: u64,
    /// Steps from one line of metrics to the next. Default: 1.
    #[serde(default = "defaults::log_every")]
    pub log_every: usize,
    /// The most held-out sequences that an evaluation reads, of the shortest `seq_len`: it reads the
    /// longest, of which as many tokens. Default: 200.
    #[serde(default = "defaults::eval_sequences")]
    pub eval_sequences: usize,
    /// Steps from one evaluation on a small part of the held-out text to the next. Default: ten of them in
    /// a phase.
    pub eval_every: Option<usize>,
    /// Steps from one checkpoint to the next. Default: no checkpoints.
    pub checkpoint_every: Option<usize>,
    /// The most checkpoints kept; older ones are taken away. Default: 2.
    #[serde(default = "defaults::keep_checkpoints")]
    pub keep_checkpoints: usize,
    /// Evaluations without a better held-out KL before training stops.
    /// Default: it goes on to the last step.
    pub patience: Option<usize>,
    /// Whether metrics are written for TensorBoard too. Default: false.
    #[serde(default)]
    pub tensorboard: bool,
}

/// `[phase2]`: training after the maps were folded away, with an optimizer that starts anew. What it
/// does not say is as in `[train]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Phase2Section {
    /// What it changes. Default: `projections`.
    #[serde(default)]
    pub train: Phase2Trained,
    /// Optimizer steps. Required.
    pub steps: usize,
    /// As `train.learning_rate`. Default: `auto` if that is, 1e-3 if not.
    pub learning_rate: Option<LearningRate>,
    /// Part of the steps spent on the warm-up, 0 to 1. Default: 0.1.
    #[serde(default = "defaults::warmup_fraction")]
    pub warmup_fraction: f64,
    /// Last learning rate as a part of the highest, 0 to 1. Default: 0 if rates are measured, 0.1 if not.
    pub final_lr_fraction: Option<f64>,
    /// When phase 1 ends early. Default: never, it takes all its steps.
    pub plateau: Option<Plateau>,
}

impl TrainSection {
    /// Evaluations of a phase, where the recipe does not say how often.
    const EVALUATIONS: usize = 10;

    /// Tokens of a step, padding included, whichever length it has.
    pub fn tokens_per_step(&self) -> usize {
        self.batch_size.saturating_mul(self.seq_len.shortest())
    }

    /// Steps from one evaluation to the next, in a phase of `steps`.
    pub fn eval_every(&self, steps: usize) -> usize {
        self.eval_every.unwrap_or(steps.div_ceil(Self::EVALUATIONS))
    }

    /// Held-out sequences that such an evaluation reads at most, of the shortest length: 8 to 32, a quarter of
    /// those that the first phase learns from between two. The KL of one text under two students differs by
    /// much less than that of two texts.
    pub fn watched_sequences(&self) -> usize {
        (self.eval_every(self.steps).saturating_mul(self.batch_size) / 4).clamp(8, 32)
    }
}

impl Phase2Section {
    /// The rate of the phase, beside that of the first.
    pub fn learning_rate(&self, train: &TrainSection) -> LearningRate {
        self.learning_rate.unwrap_or(match train.learning_rate {
            LearningRate::Auto => LearningRate::Auto,
            LearningRate::Number(_) => LearningRate::Number(1e-3),
        })
    }
}

/// Phase 1 ends when the mean training loss of the last `window` steps is less than `improvement`,
/// relative, below that of the `window` steps before.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Plateau {
    /// Steps. Default: 50.
    pub window: usize,
    /// Part of the loss, 0 to below 1. Default: 0.01.
    pub improvement: f64,
}

impl Default for Plateau {
    fn default() -> Self {
        Self {
            window: 50,
            improvement: 0.01,
        }
    }
}

/// The defaults of a section that also has required keys. (The others have a `Default`.)
mod defaults {
    use super::SeqLens;

    macro_rules! defaults {
        ($($key:ident: $type:ty = $value:expr;)*) => {
            $(pub(super) const fn $key() -> $type { $value })*
        };
    }

    pub(super) fn seq_len() -> SeqLens {
        SeqLens::new([128])
    }

    defaults! {
        grow_from: usize = 1;
        batch_size: usize = 16;
        accumulate: usize = 1;
        warmup_fraction: f64 = 0.1;
        betas: [f64; 2] = [0.9, 0.95];
        weight_decay: f64 = 0.0;
        seed: u64 = 0;
        log_every: usize = 1;
        eval_sequences: usize = 200;
        keep_checkpoints: usize = 2;
        on_policy_temperature: f64 = 1.0;
        on_policy_every: usize = 1;
    }
}

/// `[data]`: text files, folders of them and patterns, and how their documents are laid out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataSection {
    /// Files to train on. Required.
    pub train: Vec<PathBuf>,
    /// Files to measure on. Required.
    pub valid: Vec<PathBuf>,
    /// The field of a record that holds the document. Default: `text`, `messages`, or `prompt` and `completion`.
    pub field: Option<String>,
    /// The share of the sequences of a step, 0 to 1, whose beginning alone is kept: the student goes on with
    /// them itself, and learns from what it wrote. Default: 0.
    #[serde(default)]
    pub on_policy: f64,
    /// What the student's logits are divided by when it writes. Default: 1.
    #[serde(default = "defaults::on_policy_temperature")]
    pub on_policy_temperature: f64,
    /// Tokens of a sequence that are kept, or a few more where a document ends there. Default: half of
    /// it.
    pub on_policy_prompt: Option<usize>,
    /// Steps for which the student writes at once: it is folded once for them, and many sequences are written
    /// faster together, by a student that is so many steps old for the last. Default: 1.
    #[serde(default = "defaults::on_policy_every")]
    pub on_policy_every: usize,
    /// How documents lie side by side in a sequence: `apart`, each with positions of its own and nothing
    /// seen of the others, or `joined`, end to end as one text. Default: `apart`.
    #[serde(default)]
    pub documents: Documents,
    /// What the loss counts: `all` tokens, or those that the `assistant` says in conversations, with what ends its
    /// turns; then all documents have to be conversations. Default: `all`.
    #[serde(default)]
    pub loss_on: LossOn,
}
