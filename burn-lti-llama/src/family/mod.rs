//! The families of models, one file each: what a family's `config.json` says beside what all say, what its
//! tensors are called, and which pieces of the decoder it takes.
//!
//! | file | models |
//! |---|---|
//! | `llama` | Llama 1 to 3.3, SmolLM and SmolLM2, TinyLlama |
//! | `mistral` | Mistral and Ministral: a window of attention, on all layers or some |
//! | `qwen2` | Qwen2 and 2.5: biases of query, key and value |
//! | `qwen3` | Qwen3: norms of queries and keys |
//! | `smollm3` | SmolLM3: layers without a rotary embedding |
//! | `phi3` | Phi-3 and 4: query, key and value in one tensor, gate and up in another |
//! | `granite` | Granite 3: four multipliers |
//! | `gemma3` | Gemma 3: four norms a layer, norms of queries and keys, two rotary bases, tanh GELU |
//! | `rope` | the rotary embedding and its scalings, of all families |
//! | `layout` | how a model's tensors lie in a file |
//! | `refused` | what a model is that is of no family here |

mod gemma3;
mod granite;
mod layout;
mod llama;
mod mistral;
mod phi3;
mod qwen2;
mod qwen3;
mod refused;
mod rope;
mod smollm3;

pub(crate) use layout::FileTensor;
pub(crate) use refused::check as check_is_decoder;
pub use rope::{Rope, RopeScaling};

use serde_json::{Map, Value};

use crate::config::{ConfigError, Fields, LlamaConfig};

/// A family of decoders.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Family {
    /// `llama`
    #[default]
    Llama,
    /// `mistral`
    Mistral,
    /// `ministral`
    Ministral,
    /// `qwen2`
    Qwen2,
    /// `qwen3`
    Qwen3,
    /// `smollm3`
    SmolLm3,
    /// `phi3`
    Phi3,
    /// `granite`
    Granite,
    /// `gemma3_text`
    Gemma3,
}

/// What a configuration is where the file does not say.
pub(crate) struct Defaults {
    pub(crate) max_position_embeddings: usize,
    pub(crate) rms_norm_eps: f64,
    pub(crate) rope_theta: f64,
    /// Of layers with a window, in families where that is another.
    pub(crate) local_rope_theta: Option<f64>,
    pub(crate) tie_word_embeddings: bool,
    /// As many as query heads, if there is none.
    pub(crate) num_key_value_heads: Option<usize>,
    /// The width through the query heads, if there is none.
    pub(crate) head_dim: Option<usize>,
}

impl Defaults {
    /// Those of most families.
    pub(crate) const COMMON: Self = Self {
        max_position_embeddings: 2048,
        rms_norm_eps: 1e-6,
        rope_theta: 10_000.0,
        local_rope_theta: None,
        tie_word_embeddings: false,
        num_key_value_heads: None,
        head_dim: None,
    };
}

impl Family {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Llama,
        Self::Mistral,
        Self::Ministral,
        Self::Qwen2,
        Self::Qwen3,
        Self::SmolLm3,
        Self::Phi3,
        Self::Granite,
        Self::Gemma3,
    ];

    /// `model_type` in `config.json`.
    pub const fn model_type(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Ministral => "ministral",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::SmolLm3 => "smollm3",
            Self::Phi3 => "phi3",
            Self::Granite => "granite",
            Self::Gemma3 => "gemma3_text",
        }
    }

    /// The class of transformers that computes it, as `architectures` names it.
    pub const fn architecture(self) -> &'static str {
        match self {
            Self::Llama => "LlamaForCausalLM",
            Self::Mistral => "MistralForCausalLM",
            Self::Ministral => "MinistralForCausalLM",
            Self::Qwen2 => "Qwen2ForCausalLM",
            Self::Qwen3 => "Qwen3ForCausalLM",
            Self::SmolLm3 => "SmolLM3ForCausalLM",
            Self::Phi3 => "Phi3ForCausalLM",
            Self::Granite => "GraniteForCausalLM",
            Self::Gemma3 => "Gemma3ForCausalLM",
        }
    }

    /// The family that `config.json` calls so.
    pub fn of(model_type: &str) -> Option<Self> {
        let mut all = Self::ALL.into_iter();
        all.find(|family| family.model_type() == model_type)
    }

    pub(crate) const fn defaults(self) -> Defaults {
        match self {
            Self::Llama | Self::Granite => Defaults::COMMON,
            Self::Mistral | Self::Ministral => mistral::DEFAULTS,
            Self::Qwen2 => qwen2::DEFAULTS,
            Self::Qwen3 => qwen3::DEFAULTS,
            Self::SmolLm3 => smollm3::DEFAULTS,
            Self::Phi3 => phi3::DEFAULTS,
            Self::Gemma3 => gemma3::DEFAULTS,
        }
    }

    /// Takes what only this family says, and puts it into a configuration that has what all say.
    pub(crate) fn take(
        self,
        fields: &mut Fields<'_>,
        config: &mut LlamaConfig,
    ) -> Result<(), ConfigError> {
        match self {
            Self::Llama => llama::take(fields, config),
            Self::Mistral => mistral::take(fields, config),
            Self::Ministral => mistral::take_ministral(fields, config),
            Self::Qwen2 => qwen2::take(fields, config),
            Self::Qwen3 => qwen3::take(fields, config),
            Self::SmolLm3 => smollm3::take(fields, config),
            Self::Phi3 => phi3::take(fields, config),
            Self::Granite => granite::take(fields, config),
            Self::Gemma3 => gemma3::take(fields, config),
        }
    }

    /// How the tensors of a model lie in its file.
    pub(crate) fn file_tensors(self, config: &LlamaConfig) -> Vec<FileTensor> {
        let tensors = FileTensor::all(config);
        match self {
            Self::Phi3 => phi3::fused(tensors),
            Self::Gemma3 => tensors.into_iter().map(gemma3::named).collect(),
            _ => tensors,
        }
    }

    /// Whether transformers 5 opens only models of it whose width divides by the query heads.
    pub(crate) const fn needs_whole_heads(self) -> bool {
        matches!(self, Self::Llama | Self::Gemma3)
    }

    /// What a file of this family has to say of a model that was read from a file of another, or from none.
    pub(crate) fn write(self, config: &LlamaConfig, json: &mut Map<String, Value>) {
        match self {
            Self::Llama => llama::write(config, json),
            Self::Mistral => mistral::write(json),
            _ => {} // they were read from a file, which said it
        }
    }
}

/// Layers whose tokens see a window, by `layer_types`; all layers' windows where the file has no such list.
pub(crate) fn take_windows(
    fields: &mut Fields<'_>,
    layers: usize,
    window: Option<usize>,
    is_windowed: impl Fn(usize) -> bool,
) -> Result<Vec<Option<usize>>, ConfigError> {
    let Some(types) = fields.take::<Vec<String>>("layer_types")? else {
        let layers = 0..layers;
        return Ok(layers
            .map(|layer| window.filter(|_| is_windowed(layer)))
            .collect());
    };
    if types.len() != layers {
        let reason = format!(
            "has {} entries for {layers} layers: give one for each",
            types.len()
        );
        return Err(fields.refused("layer_types", reason));
    }
    let of = |kind: String| match kind.as_str() {
        "full_attention" => Ok(None),
        "sliding_attention" if window.is_some() => Ok(window),
        "sliding_attention" => Err(fields.refused(
            "layer_types",
            "has sliding_attention, but there is no `sliding_window`: say how many tokens it sees"
                .into(),
        )),
        other => Err(fields.refused(
            "layer_types",
            format!("has {other}: only full_attention and sliding_attention are computed here"),
        )),
    };
    types.into_iter().map(of).collect()
}
