//! The configuration of a Llama, checked once at the edge.
//!
//! [`LlamaConfig`] is what the rest of the crate computes with: plain numbers, every one in range.
//! It is read from the `config.json` of transformers 4 or 5. A field this crate neither uses nor
//! knows to be harmless is refused by name: a model that is computed wrongly in silence is worse
//! than one that is not loaded.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use burn_lti::geometry::{Axes, HeadGrid, Role};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Map, Value, json};
use thiserror::Error;

/// Base frequency of the rotary embedding where the file has none (transformers' default).
const DEFAULT_ROPE_THETA: f64 = 10_000.0;

/// Fields that say nothing about what the model computes.
const BOOKKEEPING: &[&str] = &[
    "chunk_size_feed_forward",
    "id2label",
    "initializer_range",
    "is_llama_config",
    "label2id",
    "max_sequence_length",
    "output_attentions",
    "output_hidden_states",
    "pad_token_id",
    "problem_type",
    "return_dict",
    "transformers.js_config",
    "transformers_version",
    "unk_token_id",
    "unsloth_fixed",
    "unsloth_version",
    "use_cache",
];

/// Fields that do change the computation, with the only value for which this crate is right.
const FIXED: &[(&str, Only)] = &[
    ("add_cross_attention", Only::Bool(false)),
    ("architectures", Only::List("LlamaForCausalLM")),
    ("attention_dropout", Only::Number(0.0)),
    ("dtype", FLOAT_TYPES),
    ("hidden_act", Only::Text(&["silu", "swish"])),
    ("is_encoder_decoder", Only::Bool(false)),
    ("model_type", Only::Text(&["llama"])),
    ("partial_rotary_factor", Only::Number(1.0)),
    ("pretraining_tp", Only::Number(1.0)),
    ("quantization_config", Only::Null),
    ("rope_interleaved", Only::Bool(false)),
    ("rope_scaling", Only::Null),
    ("sliding_window", Only::Null),
    ("torch_dtype", FLOAT_TYPES),
];

/// The same for the fields inside `rope_parameters`.
const FIXED_ROPE: &[(&str, Only)] = &[
    ("partial_rotary_factor", Only::Number(1.0)),
    ("rope_type", Only::Text(&["default"])),
    ("type", Only::Text(&["default"])),
];

const FLOAT_TYPES: Only = Only::Text(&["float32", "float16", "bfloat16"]);

/// The checked configuration of a Llama.
///
/// ```
/// use std::path::Path;
/// # use burn_lti_llama::config::LlamaConfig;
/// let text = r#"{ "model_type": "llama", "vocab_size": 512, "hidden_size": 64,
///     "intermediate_size": 172, "num_hidden_layers": 5, "num_attention_heads": 8,
///     "num_key_value_heads": 4, "tie_word_embeddings": true }"#;
/// let config = LlamaConfig::from_json_str(text, Path::new("config.json"))?;
/// assert_eq!(config.kv_grid().heads, 4);
/// assert_eq!(config.num_parameters(), 260_032);
/// # Ok::<(), burn_lti_llama::config::ConfigError>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct LlamaConfig {
    /// Number of tokens in the vocabulary.
    pub vocab_size: usize,
    /// Width of the residual stream, `d_model`.
    pub hidden_size: usize,
    /// Width of the feed-forward block.
    pub intermediate_size: usize,
    /// Number of decoder layers.
    pub num_hidden_layers: usize,
    /// Query heads of a layer.
    pub num_attention_heads: usize,
    /// Key/value heads of a layer; divides the query heads.
    pub num_key_value_heads: usize,
    /// Features of one head; even, because the rotary embedding turns pairs.
    pub head_dim: usize,
    /// Longest sequence, in tokens.
    pub max_position_embeddings: usize,
    /// Added to the mean square in RMSNorm.
    pub rms_norm_eps: f64,
    /// Base frequency of the rotary embedding.
    pub rope_theta: f64,
    /// The output head shares the embedding's weight.
    pub tie_word_embeddings: bool,
    /// Query, key, value *and* output projections have a bias.
    pub attention_bias: bool,
    /// The three projections of the feed-forward block have a bias.
    pub mlp_bias: bool,
    /// Token that begins a document.
    pub bos_token_id: Option<u32>,
    /// Tokens that end a document; may be empty.
    pub eos_token_ids: Vec<u32>,
}

impl LlamaConfig {
    /// Reads `dir/config.json`.
    ///
    /// # Errors
    /// [`ConfigError::Read`] if the file cannot be read, else as [`Self::from_json_str`].
    pub fn from_dir(dir: &Path) -> Result<Self, ConfigError> {
        let path = dir.join("config.json");
        match fs::read_to_string(&path) {
            Ok(text) => Self::from_json_str(&text, &path),
            Err(source) => Err(ConfigError::Read { path, source }),
        }
    }

    /// Reads the text of a `config.json`; `origin` is the file that errors name.
    ///
    /// # Errors
    /// Every variant of [`ConfigError`] but [`ConfigError::Read`].
    pub fn from_json_str(text: &str, origin: &Path) -> Result<Self, ConfigError> {
        let mut fields = Fields::parse(text, origin)?;
        if !fields.map.contains_key("model_type") {
            return Err(fields.missing("model_type"));
        }
        fields.check_fixed(FIXED)?;

        let hidden_size = fields.require("hidden_size")?;
        let num_attention_heads = fields.require("num_attention_heads")?;
        let head_dim = match fields.take("head_dim")? {
            Some(head_dim) => head_dim,
            None => default_head_dim(hidden_size, num_attention_heads, origin)?,
        };
        let config = Self {
            vocab_size: fields.require("vocab_size")?,
            hidden_size,
            intermediate_size: fields.require("intermediate_size")?,
            num_hidden_layers: fields.require("num_hidden_layers")?,
            num_attention_heads,
            num_key_value_heads: fields.take_or("num_key_value_heads", num_attention_heads)?,
            head_dim,
            max_position_embeddings: fields.take_or("max_position_embeddings", 2048)?,
            rms_norm_eps: fields.take_or("rms_norm_eps", 1e-6)?,
            rope_theta: fields.take_rope_theta()?,
            tie_word_embeddings: fields.take_or("tie_word_embeddings", false)?,
            attention_bias: fields.take_or("attention_bias", false)?,
            mlp_bias: fields.take_or("mlp_bias", false)?,
            bos_token_id: fields.take("bos_token_id")?,
            eos_token_ids: fields
                .take::<OneOrMany>("eos_token_id")?
                .map_or_else(Vec::new, OneOrMany::into_vec),
        };
        fields.finish(BOOKKEEPING)?;
        config.check(origin)?;
        Ok(config)
    }

    /// Checks the ranges of all fields, as reading does; for a configuration made by hand.
    ///
    /// # Errors
    /// [`ConfigError::OutOfRange`], [`ConfigError::KvHeads`], [`ConfigError::OddHeadDim`],
    /// [`ConfigError::NotPositive`] or [`ConfigError::TokenId`], naming `origin`.
    pub fn check(&self, origin: &Path) -> Result<(), ConfigError> {
        let path = || origin.to_path_buf();
        // The upper bounds are far above any Llama; they keep every product below within 64 bits.
        let sizes = [
            ("vocab_size", self.vocab_size, 1 << 24),
            ("hidden_size", self.hidden_size, 1 << 18),
            ("intermediate_size", self.intermediate_size, 1 << 20),
            ("num_hidden_layers", self.num_hidden_layers, 1 << 12),
            ("num_attention_heads", self.num_attention_heads, 1 << 12),
            ("num_key_value_heads", self.num_key_value_heads, 1 << 12),
            ("head_dim", self.head_dim, 1 << 12),
            (
                "max_position_embeddings",
                self.max_position_embeddings,
                1 << 31,
            ),
        ];
        for (field, value, max) in sizes {
            if !(1..=max).contains(&value) {
                return Err(ConfigError::OutOfRange {
                    path: path(),
                    field,
                    value,
                    max,
                });
            }
        }
        let (heads, kv_heads) = (self.num_attention_heads, self.num_key_value_heads);
        if !heads.is_multiple_of(kv_heads) {
            return Err(ConfigError::KvHeads {
                path: path(),
                heads,
                kv_heads,
                allowed: divisors(heads),
            });
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(ConfigError::OddHeadDim {
                path: path(),
                head_dim: self.head_dim,
            });
        }
        for (field, value) in [
            ("rms_norm_eps", self.rms_norm_eps),
            ("rope_theta", self.rope_theta),
        ] {
            if !(value > 0.0 && value.is_finite()) {
                return Err(ConfigError::NotPositive {
                    path: path(),
                    field,
                    value,
                });
            }
        }
        let bos = self.bos_token_id.iter().map(|id| ("bos_token_id", *id));
        let eos = self.eos_token_ids.iter().map(|id| ("eos_token_id", *id));
        let vocab_size = self.vocab_size;
        match bos.chain(eos).find(|(_, id)| *id as usize >= vocab_size) {
            Some((field, id)) => Err(ConfigError::TokenId {
                path: path(),
                field,
                id,
                vocab_size,
            }),
            None => Ok(()),
        }
    }

    /// The `config.json` of this model, written so that transformers 4 and 5 both read it.
    pub fn to_json(&self) -> Value {
        let eos = match self.eos_token_ids.as_slice() {
            [] => Value::Null,
            [id] => json!(id),
            ids => json!(ids),
        };
        json!({
            "architectures": ["LlamaForCausalLM"],
            "attention_bias": self.attention_bias,
            "attention_dropout": 0.0,
            "bos_token_id": self.bos_token_id,
            "dtype": "float32",
            "eos_token_id": eos,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "hidden_size": self.hidden_size,
            "initializer_range": 0.02,
            "intermediate_size": self.intermediate_size,
            "max_position_embeddings": self.max_position_embeddings,
            "mlp_bias": self.mlp_bias,
            "model_type": "llama",
            "num_attention_heads": self.num_attention_heads,
            "num_hidden_layers": self.num_hidden_layers,
            "num_key_value_heads": self.num_key_value_heads,
            "pretraining_tp": 1,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_parameters": { "rope_theta": self.rope_theta, "rope_type": "default" },
            "rope_scaling": null,
            "rope_theta": self.rope_theta,
            "tie_word_embeddings": self.tie_word_embeddings,
            "torch_dtype": "float32",
            "use_cache": true,
            "vocab_size": self.vocab_size,
        })
    }

    /// The query heads.
    pub const fn query_grid(&self) -> HeadGrid {
        HeadGrid::new(self.num_attention_heads, self.head_dim)
    }

    /// The key/value heads.
    pub const fn kv_grid(&self) -> HeadGrid {
        HeadGrid::new(self.num_key_value_heads, self.head_dim)
    }

    /// The attention grids of every layer.
    pub const fn geometry(&self) -> Axes {
        Axes {
            d_model: self.hidden_size,
            query: self.query_grid(),
            key_value: self.kv_grid(),
            hidden: self.intermediate_size,
        }
    }

    /// The heads on the attention's side of the projection in `role`.
    pub const fn grid(&self, role: Role) -> HeadGrid {
        self.geometry().grid(role)
    }

    /// Every parameter by its Hugging Face name, with its shape there (`Linear` weights are
    /// `[out, in]`), in the order of the forward pass. A tied head is no parameter of its own.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let d_model = self.hidden_size;
        let mut tensors = vec![(
            "model.embed_tokens.weight".into(),
            vec![self.vocab_size, d_model],
        )];
        for layer in 0..self.num_hidden_layers {
            for role in Role::ATTENTION {
                let (width, name) = (self.grid(role).width(), projection_name(layer, role));
                let [rows, columns] = match role {
                    Role::Out => [d_model, width],
                    _ => [width, d_model],
                };
                push_linear(&mut tensors, &name, rows, columns, self.attention_bias);
            }
            let prefix = format!("model.layers.{layer}");
            for (name, rows, columns) in [
                ("gate_proj", self.intermediate_size, d_model),
                ("up_proj", self.intermediate_size, d_model),
                ("down_proj", d_model, self.intermediate_size),
            ] {
                let name = format!("{prefix}.mlp.{name}");
                push_linear(&mut tensors, &name, rows, columns, self.mlp_bias);
            }
            for name in ["input_layernorm", "post_attention_layernorm"] {
                tensors.push((format!("{prefix}.{name}.weight"), vec![d_model]));
            }
        }
        tensors.push(("model.norm.weight".into(), vec![d_model]));
        if !self.tie_word_embeddings {
            tensors.push(("lm_head.weight".into(), vec![self.vocab_size, d_model]));
        }
        tensors
    }

    /// Parameters of the model, norms and biases included, a tied head counted once.
    pub fn num_parameters(&self) -> usize {
        self.tensors()
            .iter()
            .map(|(_, shape)| shape.iter().product::<usize>())
            .sum()
    }

    /// Bytes of key/value cache per token in float32:
    /// `2 * num_hidden_layers * num_key_value_heads * head_dim * 4`.
    pub const fn kv_cache_bytes_per_token(&self) -> usize {
        2 * self.num_hidden_layers * self.kv_grid().width() * size_of::<f32>()
    }

    /// Floating-point operations of a forward pass over `tokens` tokens in sequences of
    /// `seq_len`, two for each multiply-add:
    ///
    /// ```text
    /// 2 * tokens * (elements of all Linear weights, the head among them, tied or not)
    /// + layers * 2 * 2 * tokens * heads * head_dim * (seq_len + 1) / 2
    /// ```
    ///
    /// The second line is scores and values; a causal query sees `(seq_len + 1) / 2` keys on
    /// average. Norms, softmax, rotary embedding and element-wise products are left out.
    pub fn forward_flops(&self, tokens: usize, seq_len: usize) -> f64 {
        self.linear_flops(tokens) + self.attention_flops(tokens, seq_len)
    }

    /// The first line of [`Self::forward_flops`].
    pub(crate) fn linear_flops(&self, tokens: usize) -> f64 {
        let attention = 2 * (self.query_grid().width() + self.kv_grid().width());
        let layer = self.hidden_size * (attention + 3 * self.intermediate_size);
        let weights = self.num_hidden_layers * layer + self.vocab_size * self.hidden_size;
        2.0 * tokens as f64 * weights as f64
    }

    /// The second line of [`Self::forward_flops`].
    pub(crate) fn attention_flops(&self, tokens: usize, seq_len: usize) -> f64 {
        let mean_keys = (seq_len as f64 + 1.0) / 2.0;
        let width = (self.num_hidden_layers * self.query_grid().width()) as f64;
        4.0 * tokens as f64 * width * mean_keys
    }
}

/// One form for files and for reports: that of [`LlamaConfig::to_json`].
impl Serialize for LlamaConfig {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.to_json().serialize(serializer)
    }
}

/// The Hugging Face name of an attention projection, without `.weight` or `.bias`.
pub fn projection_name(layer: usize, role: Role) -> String {
    let name = role.to_string();
    let letter = &name[..1];
    format!("model.layers.{layer}.self_attn.{letter}_proj")
}

/// The name of a layer's last projection behind its attention, without `.weight`.
pub fn feed_forward_name(layer: usize) -> String {
    format!("model.layers.{layer}.mlp.down_proj")
}

/// Why a `config.json` is refused.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {}: give the folder of a Hugging Face Llama, which holds config.json", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is not JSON, or no JSON object.
    #[error("{} is no JSON object: save the model's config.json again", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// A required field is not there.
    #[error("{} has no field `{field}`: add it, it has no default", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
        /// The field.
        field: String,
    },
    /// A field holds a value of another type.
    #[error("{}: `{field}` has the wrong type: correct its value", path.display())]
    WrongType {
        /// The file.
        path: PathBuf,
        /// The field.
        field: String,
        /// What was expected.
        source: serde_json::Error,
    },
    /// A known field asks for something that this crate does not compute.
    #[error(
        "{}: `{field}` is {value}, but only {supported} is supported: use a model without it",
        path.display()
    )]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The field.
        field: String,
        /// Its value, as JSON.
        value: String,
        /// What it may be.
        supported: String,
    },
    /// A field that this crate does not know.
    #[error(
        "{}: field `{field}` is not supported: use a plain Llama, or delete the field if it \
         changes nothing in what the model computes",
        path.display()
    )]
    Unknown {
        /// The file.
        path: PathBuf,
        /// The field.
        field: String,
    },
    /// A size is zero, or beyond every real model.
    #[error("{}: `{field}` is {value}: it must be from 1 to {max}", path.display())]
    OutOfRange {
        /// The file.
        path: PathBuf,
        /// The field.
        field: &'static str,
        /// Its value.
        value: usize,
        /// The largest value accepted.
        max: usize,
    },
    /// The query heads cannot be shared out among the key/value heads.
    #[error(
        "{}: `num_attention_heads` is {heads}, no multiple of `num_key_value_heads`, which is \
         {kv_heads}: set `num_key_value_heads` to one of {}",
        path.display(), list(allowed)
    )]
    KvHeads {
        /// The file.
        path: PathBuf,
        /// Query heads.
        heads: usize,
        /// Key/value heads.
        kv_heads: usize,
        /// The key/value heads that would do.
        allowed: Vec<usize>,
    },
    /// The file has no `head_dim`, and the default does not come out whole.
    #[error(
        "{}: `hidden_size` {hidden_size} does not divide by `num_attention_heads` {heads}: set \
         `head_dim`",
        path.display()
    )]
    HeadDim {
        /// The file.
        path: PathBuf,
        /// Width of the residual stream.
        hidden_size: usize,
        /// Query heads.
        heads: usize,
    },
    /// The rotary embedding turns pairs of features.
    #[error("{}: `head_dim` is {head_dim}: it must be even, for rotary pairs", path.display())]
    OddHeadDim {
        /// The file.
        path: PathBuf,
        /// Features of one head.
        head_dim: usize,
    },
    /// Both generations of the field are there and differ.
    #[error(
        "{}: `rope_theta` is {top} but `rope_parameters.rope_theta` is {nested}: delete the wrong \
         one",
        path.display()
    )]
    RopeTheta {
        /// The file.
        path: PathBuf,
        /// The value at top level.
        top: f64,
        /// The value in `rope_parameters`.
        nested: f64,
    },
    /// A number that must be positive and finite is not.
    #[error("{}: `{field}` is {value}: it must be positive and finite", path.display())]
    NotPositive {
        /// The file.
        path: PathBuf,
        /// The field.
        field: &'static str,
        /// Its value.
        value: f64,
    },
    /// A special token is outside the vocabulary.
    #[error("{}: `{field}` is {id}: it must be below `vocab_size`, {vocab_size}", path.display())]
    TokenId {
        /// The file.
        path: PathBuf,
        /// The field.
        field: &'static str,
        /// The token.
        id: u32,
        /// Tokens in the vocabulary.
        vocab_size: usize,
    },
}

/// The numbers that divide `n`, from 1 to `n`.
pub(crate) fn divisors(n: usize) -> Vec<usize> {
    (1..=n).filter(|d| n.is_multiple_of(*d)).collect()
}

/// `1, 2, 4`.
pub(crate) fn list(numbers: &[usize]) -> String {
    numbers
        .iter()
        .map(usize::to_string)
        .collect::<Vec<_>>()
        .join(", ")
}

/// The fields of a JSON object that nobody has taken yet.
struct Fields<'a> {
    map: Map<String, Value>,
    /// Goes before field names in errors: empty, or `rope_parameters.`.
    prefix: &'static str,
    origin: &'a Path,
}

impl<'a> Fields<'a> {
    fn parse(text: &str, origin: &'a Path) -> Result<Self, ConfigError> {
        let mut map: Map<String, Value> =
            serde_json::from_str(text).map_err(|source| ConfigError::Syntax {
                path: origin.to_path_buf(),
                source,
            })?;
        // To transformers, null says the same as no field.
        map.retain(|_, value| !value.is_null());
        Ok(Self {
            map,
            prefix: "",
            origin,
        })
    }

    fn take<T: DeserializeOwned>(&mut self, name: &str) -> Result<Option<T>, ConfigError> {
        self.map
            .remove(name)
            .map(serde_json::from_value)
            .transpose()
            .map_err(|source| ConfigError::WrongType {
                path: self.path(),
                field: self.full_name(name),
                source,
            })
    }

    fn take_or<T: DeserializeOwned>(&mut self, name: &str, default: T) -> Result<T, ConfigError> {
        Ok(self.take(name)?.unwrap_or(default))
    }

    fn require<T: DeserializeOwned>(&mut self, name: &str) -> Result<T, ConfigError> {
        self.take(name)?.ok_or_else(|| self.missing(name))
    }

    /// The rotary base of either generation; where both are there they must agree.
    fn take_rope_theta(&mut self) -> Result<f64, ConfigError> {
        let top = self.take("rope_theta")?;
        let mut rope = Fields {
            map: self.take_or("rope_parameters", Map::new())?,
            prefix: "rope_parameters.",
            origin: self.origin,
        };
        rope.map.retain(|_, value| !value.is_null());
        rope.check_fixed(FIXED_ROPE)?;
        let nested = rope.take("rope_theta")?;
        rope.finish(&[])?;
        match (top, nested) {
            (Some(top), Some(nested)) if top != nested => Err(ConfigError::RopeTheta {
                path: self.path(),
                top,
                nested,
            }),
            (top, nested) => Ok(top.or(nested).unwrap_or(DEFAULT_ROPE_THETA)),
        }
    }

    fn check_fixed(&mut self, fixed: &[(&str, Only)]) -> Result<(), ConfigError> {
        for (name, only) in fixed {
            match self.map.remove(*name) {
                Some(value) if !only.accepts(&value) => {
                    return Err(ConfigError::Unsupported {
                        path: self.path(),
                        field: self.full_name(name),
                        value: value.to_string(),
                        supported: only.to_string(),
                    });
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Whatever is left must be among `harmless`.
    fn finish(self, harmless: &[&str]) -> Result<(), ConfigError> {
        match self
            .map
            .keys()
            // An underscore marks what transformers keeps for itself: where a file came from, and such.
            .find(|name| !name.starts_with('_') && !harmless.contains(&name.as_str()))
        {
            Some(name) => Err(ConfigError::Unknown {
                path: self.path(),
                field: self.full_name(name),
            }),
            None => Ok(()),
        }
    }

    fn missing(&self, name: &str) -> ConfigError {
        ConfigError::Missing {
            path: self.path(),
            field: self.full_name(name),
        }
    }

    fn full_name(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    fn path(&self) -> PathBuf {
        self.origin.to_path_buf()
    }
}

/// The only values of a field for which this crate computes what transformers does.
enum Only {
    /// Not set. (An empty object says the same.)
    Null,
    Bool(bool),
    Number(f64),
    Text(&'static [&'static str]),
    /// A list of nothing else.
    List(&'static str),
}

impl Only {
    fn accepts(&self, value: &Value) -> bool {
        match self {
            Only::Null => value.as_object().is_some_and(Map::is_empty),
            Only::Bool(only) => value.as_bool() == Some(*only),
            Only::Number(only) => value.as_f64() == Some(*only),
            Only::Text(any) => value.as_str().is_some_and(|text| any.contains(&text)),
            Only::List(only) => value
                .as_array()
                .is_some_and(|items| items.iter().all(|item| item == only)),
        }
    }
}

impl fmt::Display for Only {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Only::Null => f.write_str("null"),
            Only::Bool(only) => write!(f, "{only}"),
            Only::Number(only) => write!(f, "{only}"),
            Only::Text(any) => f.write_str(&any.join(" or ")),
            Only::List(only) => write!(f, "[{only}]"),
        }
    }
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "a token number or a list of token numbers")]
enum OneOrMany {
    One(u32),
    Many(Vec<u32>),
}

impl OneOrMany {
    fn into_vec(self) -> Vec<u32> {
        match self {
            OneOrMany::One(id) => vec![id],
            OneOrMany::Many(ids) => ids,
        }
    }
}

fn default_head_dim(hidden_size: usize, heads: usize, origin: &Path) -> Result<usize, ConfigError> {
    match hidden_size.checked_rem(heads) {
        Some(0) => Ok(hidden_size / heads),
        // No heads at all: the range check says that better.
        None => Ok(1),
        Some(_) => Err(ConfigError::HeadDim {
            path: origin.to_path_buf(),
            hidden_size,
            heads,
        }),
    }
}

fn push_linear(
    tensors: &mut Vec<(String, Vec<usize>)>,
    name: &str,
    rows: usize,
    columns: usize,
    bias: bool,
) {
    tensors.push((format!("{name}.weight"), vec![rows, columns]));
    if bias {
        tensors.push((format!("{name}.bias"), vec![rows]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The teacher of the repository's recipe.
    fn stories260k() -> Value {
        json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 512,
            "hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 5,
            "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 8,
            "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
            "hidden_act": "silu", "attention_bias": false, "mlp_bias": false,
            "tie_word_embeddings": true, "bos_token_id": 1, "eos_token_id": 2,
            "torch_dtype": "float32"
        })
    }

    fn read(config: &Value) -> Result<LlamaConfig, ConfigError> {
        LlamaConfig::from_json_str(&config.to_string(), Path::new("dir/config.json"))
    }

    /// The error of `stories260k` with one field changed.
    fn refused(field: &str, value: Value) -> ConfigError {
        let mut config = stories260k();
        config[field] = value;
        let error = read(&config).unwrap_err();
        assert!(error.to_string().contains("dir/config.json"), "{error}");
        assert!(error.to_string().contains(field), "{error}");
        error
    }

    #[test]
    fn reads_the_teacher() {
        let config = read(&stories260k()).unwrap();
        assert_eq!(config.query_grid(), HeadGrid::new(8, 8));
        assert_eq!(config.kv_grid(), HeadGrid::new(4, 8));
        assert_eq!((config.rms_norm_eps, config.rope_theta), (1e-5, 10_000.0));
        assert_eq!(
            (config.bos_token_id, config.eos_token_ids.as_slice()),
            (Some(1), &[2][..])
        );
        assert!(config.tie_word_embeddings);
    }

    #[test]
    fn reads_the_configs_of_real_models() {
        // SmolLM2-135M (transformers 4) and TinyLlama-1.1B (an older 4), as published.
        let smol = json!({
            "architectures": ["LlamaForCausalLM"], "attention_bias": false,
            "attention_dropout": 0.0, "bos_token_id": 0, "eos_token_id": 0, "hidden_act": "silu",
            "hidden_size": 576, "initializer_range": 0.041666666666666664,
            "intermediate_size": 1536, "is_llama_config": true, "max_position_embeddings": 8192,
            "model_type": "llama", "num_attention_heads": 9, "num_hidden_layers": 30,
            "num_key_value_heads": 3, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
            "rope_interleaved": false, "rope_scaling": null, "rope_theta": 100000,
            "tie_word_embeddings": true, "torch_dtype": "bfloat16",
            "transformers_version": "4.40.1", "use_cache": true, "vocab_size": 49152
        });
        assert_eq!(read(&smol).unwrap().num_parameters(), 134_515_008);
        let tiny = json!({
            "architectures": ["LlamaForCausalLM"], "bos_token_id": 1, "eos_token_id": 2,
            "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02,
            "intermediate_size": 5632, "max_position_embeddings": 2048, "model_type": "llama",
            "num_attention_heads": 32, "num_hidden_layers": 22, "num_key_value_heads": 4,
            "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": null,
            "tie_word_embeddings": false, "torch_dtype": "float32",
            "transformers_version": "4.31.0.dev0", "use_cache": true, "vocab_size": 32000
        });
        assert_eq!(read(&tiny).unwrap().num_parameters(), 1_100_048_384);
    }

    #[test]
    fn fills_in_the_defaults_of_transformers() {
        let config = read(&json!({
            "model_type": "llama", "vocab_size": 10, "hidden_size": 12, "intermediate_size": 5,
            "num_hidden_layers": 1, "num_attention_heads": 3, "head_dim": null
        }))
        .unwrap();
        assert_eq!((config.num_key_value_heads, config.head_dim), (3, 4));
        assert_eq!((config.rms_norm_eps, config.rope_theta), (1e-6, 10_000.0));
        assert_eq!(config.max_position_embeddings, 2048);
        assert!(!config.tie_word_embeddings && !config.attention_bias && !config.mlp_bias);
        assert_eq!((config.bos_token_id, config.eos_token_ids), (None, vec![]));
    }

    #[test]
    fn reads_transformers_5() {
        let mut config = stories260k();
        let fields = config.as_object_mut().unwrap();
        fields.remove("rope_theta");
        fields.remove("torch_dtype");
        fields.insert("dtype".into(), json!("bfloat16"));
        fields.insert("eos_token_id".into(), json!([2, 3]));
        fields.insert(
            "rope_parameters".into(),
            json!({ "rope_type": "default", "rope_theta": 500 }),
        );
        let config = read(&config).unwrap();
        assert_eq!(
            (config.rope_theta, config.eos_token_ids),
            (500.0, vec![2, 3])
        );
    }

    #[test]
    fn reads_what_transformers_says_of_every_model() {
        let mut config = stories260k();
        let plain = read(&config).unwrap();
        let fields = config.as_object_mut().unwrap();
        for (name, value) in [
            ("_model_name_or_path", json!("Smol")),
            ("_commit_hash", json!("0ab1")),
            ("chunk_size_feed_forward", json!(0)),
            ("problem_type", json!("single_label_classification")),
        ] {
            fields.insert(name.into(), value);
        }
        assert_eq!(read(&config).unwrap(), plain);
    }

    #[test]
    fn reads_what_it_writes() {
        let mut config = read(&stories260k()).unwrap();
        for ids in [vec![], vec![2], vec![2, 3]] {
            config.eos_token_ids = ids;
            assert_eq!(read(&config.to_json()).unwrap(), config);
            assert_eq!(serde_json::to_value(&config).unwrap(), config.to_json());
        }
        let json = config.to_json();
        assert_eq!(json["rope_theta"], json["rope_parameters"]["rope_theta"]);
        assert_eq!(json["torch_dtype"], json["dtype"]);
    }

    #[test]
    fn counts_every_tensor_once() {
        let mut config = read(&stories260k()).unwrap();
        // Embedding, then per layer: q, k, v, out, feed-forward, two norms; the last norm.
        let layer = 64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 172 + 2 * 64;
        assert_eq!(config.num_parameters(), 512 * 64 + 5 * layer + 64);
        assert_eq!(config.tensors().len(), 1 + 5 * 9 + 1);

        config.tie_word_embeddings = false;
        config.attention_bias = true;
        config.mlp_bias = true;
        let biases = 64 + 32 + 32 + 64 + 172 + 172 + 64;
        assert_eq!(
            config.num_parameters(),
            2 * 512 * 64 + 5 * (layer + biases) + 64
        );
        let tensors = config.tensors();
        let has = |name: &str, shape: &[usize]| tensors.contains(&(name.into(), shape.to_vec()));
        assert!(has("model.layers.4.self_attn.k_proj.weight", &[32, 64]));
        assert!(has("model.layers.0.self_attn.o_proj.bias", &[64]));
        assert!(has("model.layers.0.mlp.down_proj.weight", &[64, 172]));
        assert_eq!(tensors.last().unwrap().0, "lm_head.weight");
    }

    #[test]
    fn counts_flops_and_cache() {
        let config = read(&stories260k()).unwrap();
        assert_eq!(config.kv_cache_bytes_per_token(), 2 * 5 * 4 * 8 * 4);
        let linear = 5 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 172) + 512 * 64;
        let weights: usize = config.tensors()[..46]
            .iter()
            .filter(|(_, shape)| shape.len() == 2)
            .map(|(_, shape)| shape[0] * shape[1])
            .sum();
        assert_eq!(weights, linear, "the tied embedding is the head");
        // Three tokens see 1, 2 and 3 keys: 6 scores and 6 weighted values of width 64, 5 layers.
        let attention = 2 * 2 * 6 * 64 * 5;
        assert_eq!(
            config.forward_flops(3, 3),
            (2 * 3 * linear + attention) as f64
        );
    }

    #[test]
    fn reads_a_folder() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(
            LlamaConfig::from_dir(dir.path()),
            Err(ConfigError::Read { .. })
        ));
        fs::write(dir.path().join("config.json"), stories260k().to_string()).unwrap();
        assert_eq!(
            LlamaConfig::from_dir(dir.path()).unwrap(),
            read(&stories260k()).unwrap()
        );
    }

    #[test]
    fn refuses_what_is_no_object() {
        for text in ["", "[1]", "{", "{\"rope_theta\": Infinity}"] {
            let error = LlamaConfig::from_json_str(text, Path::new("c")).unwrap_err();
            assert!(
                matches!(error, ConfigError::Syntax { .. }),
                "{text}: {error}"
            );
        }
    }

    #[test]
    fn refuses_missing_and_mistyped_fields() {
        for field in [
            "model_type",
            "vocab_size",
            "hidden_size",
            "num_hidden_layers",
        ] {
            assert!(matches!(
                refused(field, Value::Null),
                ConfigError::Missing { .. }
            ));
        }
        for (field, value) in [
            ("vocab_size", json!("512")),
            ("hidden_size", json!(-64)),
            ("tie_word_embeddings", json!(1)),
            ("eos_token_id", json!("</s>")),
            ("rope_parameters", json!(3)),
        ] {
            assert!(
                matches!(refused(field, value), ConfigError::WrongType { .. }),
                "{field}"
            );
        }
    }

    #[test]
    fn refuses_what_it_does_not_compute() {
        for (field, value) in [
            ("model_type", json!("mistral")),
            ("architectures", json!(["LlamaForSequenceClassification"])),
            ("hidden_act", json!("gelu")),
            (
                "rope_scaling",
                json!({ "rope_type": "llama3", "factor": 8.0 }),
            ),
            ("rope_interleaved", json!(true)),
            ("attention_dropout", json!(0.1)),
            ("pretraining_tp", json!(2)),
            ("partial_rotary_factor", json!(0.5)),
            ("torch_dtype", json!("int8")),
            ("dtype", json!("float64")),
            ("quantization_config", json!({ "bits": 4 })),
            ("sliding_window", json!(4096)),
            ("is_encoder_decoder", json!(true)),
            ("rope_parameters", json!({ "rope_type": "yarn" })),
        ] {
            assert!(
                matches!(refused(field, value), ConfigError::Unsupported { .. }),
                "{field}"
            );
        }
    }

    #[test]
    fn refuses_unknown_fields() {
        for (field, value) in [
            ("num_experts", json!(8)),
            ("auto_map", json!({})),
            ("rope_parameters", json!({ "factor": 8.0 })),
        ] {
            assert!(
                matches!(refused(field, value), ConfigError::Unknown { .. }),
                "{field}"
            );
        }
    }

    #[test]
    fn refuses_values_out_of_range() {
        for (field, value) in [
            ("vocab_size", json!(0)),
            ("hidden_size", json!(1_u64 << 40)),
            ("num_attention_heads", json!(0)),
            ("num_key_value_heads", json!(0)),
            ("head_dim", json!(0)),
            ("max_position_embeddings", json!(0)),
        ] {
            assert!(
                matches!(refused(field, value), ConfigError::OutOfRange { .. }),
                "{field}"
            );
        }
        for field in ["rms_norm_eps", "rope_theta"] {
            assert!(matches!(
                refused(field, json!(0)),
                ConfigError::NotPositive { .. }
            ));
        }
        for (field, value) in [
            ("bos_token_id", json!(512)),
            ("eos_token_id", json!([2, 600])),
        ] {
            assert!(matches!(refused(field, value), ConfigError::TokenId { .. }));
        }
        assert!(matches!(
            refused("head_dim", json!(7)),
            ConfigError::OddHeadDim { .. }
        ));
        let error = refused("num_key_value_heads", json!(3));
        assert!(matches!(error, ConfigError::KvHeads { .. }));
        assert!(error.to_string().contains("1, 2, 4, 8"), "{error}");
    }

    #[test]
    fn refuses_a_default_head_dim_that_is_not_whole() {
        let mut config = stories260k();
        config["head_dim"] = Value::Null;
        config["num_attention_heads"] = json!(12);
        assert!(matches!(read(&config), Err(ConfigError::HeadDim { .. })));
        config["num_attention_heads"] = json!(0);
        assert!(matches!(read(&config), Err(ConfigError::OutOfRange { .. })));
    }

    #[test]
    fn refuses_two_rotary_bases() {
        let error = refused("rope_parameters", json!({ "rope_theta": 500.0 }));
        assert!(matches!(
            error,
            ConfigError::RopeTheta {
                top: 10_000.0,
                nested: 500.0,
                ..
            }
        ));
    }
}
