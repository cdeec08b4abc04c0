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
//! | `olmo2` | OLMo 2: norms after the blocks alone, norms of all queries and of all keys at once |
//! | `olmo3` | OLMo 3: as OLMo 2, with windows and another rotary embedding where there is one |
//! | `gemma2` | Gemma 2: four norms a layer, tanh GELU, windows, caps of scores and logits |
//! | `gemma3` | Gemma 3: as Gemma 2 without the caps; norms of queries and keys, two rotary bases |
//! | `read` | `config.json` in and out, whichever family it is of |
//! | `layout` | how a model's tensors lie in a file |
//! | `refused` | what a model is that is of no family here |

mod gemma2;
mod gemma3;
mod granite;
mod layout;
mod llama;
mod mistral;
mod olmo2;
mod olmo3;
mod phi3;
mod qwen2;
mod qwen3;
mod read;
mod refused;
mod smollm3;

pub(crate) use layout::FileTensor;

use serde_json::{Map, Value, json};

use crate::config::{ConfigError, Family, Fields, LlamaConfig};

/// What a configuration is where the file does not say.
struct Defaults {
    max_position_embeddings: usize,
    rms_norm_eps: f64,
    rope_theta: f64,
    /// Of layers with a window, in families where that is another.
    local_rope_theta: Option<f64>,
    tie_word_embeddings: bool,
    /// As many as query heads, if there is none.
    num_key_value_heads: Option<usize>,
    /// The width through the query heads, if there is none.
    head_dim: Option<usize>,
}

impl Defaults {
    /// Those of most families.
    const COMMON: Self = Self {
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
    const fn defaults(self) -> Defaults {
        match self {
            Self::Llama | Self::Granite => Defaults::COMMON,
            Self::Mistral | Self::Ministral => mistral::DEFAULTS,
            Self::Qwen2 => qwen2::DEFAULTS,
            Self::Qwen3 => qwen3::DEFAULTS,
            Self::SmolLm3 => smollm3::DEFAULTS,
            Self::Phi3 => phi3::DEFAULTS,
            Self::Olmo2 => olmo2::DEFAULTS,
            Self::Olmo3 => olmo3::DEFAULTS,
            Self::Gemma2 => gemma2::DEFAULTS,
            Self::Gemma3 => gemma3::DEFAULTS,
        }
    }

    /// Takes what only this family says, and puts it into a configuration that has what all say.
    fn take_particular(
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
            Self::Olmo2 => olmo2::take(fields, config),
            Self::Olmo3 => olmo3::take(fields, config),
            Self::Gemma2 => gemma2::take(fields, config),
            Self::Gemma3 => gemma3::take(fields, config),
        }
    }

    /// How the tensors of a model lie in its file.
    pub(crate) fn file_tensors(self, config: &LlamaConfig) -> Vec<FileTensor> {
        let tensors = FileTensor::all(config);
        match self {
            Self::Phi3 => phi3::fused(tensors),
            Self::Olmo2 | Self::Olmo3 => tensors.into_iter().map(FileTensor::by_place).collect(),
            Self::Gemma2 | Self::Gemma3 => tensors.into_iter().map(gemma2::named).collect(),
            _ => tensors,
        }
    }

    /// Has the file of a model say of each layer what it says by a rule that counts layers, which holds no longer
    /// where some are gone.
    pub(crate) fn write_layers(self, config: &mut LlamaConfig) {
        let windows = config.windows.iter();
        let types: Vec<&str> = windows
            .map(|window| match window {
                Some(_) => "sliding_attention",
                None => "full_attention",
            })
            .collect();
        let turned: Vec<u8> = config
            .turned
            .iter()
            .map(|turned| u8::from(*turned))
            .collect();
        let fields = &mut config.source.fields;
        match self {
            Self::Ministral
            | Self::Qwen2
            | Self::Qwen3
            | Self::SmolLm3
            | Self::Olmo3
            | Self::Gemma2
            | Self::Gemma3 => {
                fields.insert("layer_types".into(), json!(types));
            }
            // They know no kinds of layers, and have none in their files.
            Self::Llama | Self::Mistral | Self::Phi3 | Self::Granite | Self::Olmo2 => {
                fields.remove("layer_types");
            }
        }
        fields.remove("sliding_window_pattern");
        if self == Self::SmolLm3 {
            fields.insert("no_rope_layers".into(), json!(turned));
        }
    }

    /// Has a model of another width multiply by what a file of this family means by that width.
    pub(crate) fn write_width(self, config: &mut LlamaConfig) {
        if matches!(self, Self::Gemma2 | Self::Gemma3) {
            config.multipliers.embedding = gemma2::embedding_multiplier(config.hidden_size);
        }
    }

    /// What a file of this family has to say of a model that was read from a file of another, or from none.
    fn write(self, config: &LlamaConfig, json: &mut Map<String, Value>) {
        match self {
            Self::Llama => llama::write(config, json),
            Self::Mistral => mistral::write(json),
            _ => {} // they were read from a file, which said it
        }
    }
}

/// Layers whose tokens see a window, by `layer_types`; all layers' windows where the file has no such list.
fn take_windows(
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
