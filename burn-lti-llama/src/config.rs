//! The configuration of a Llama, checked once at the edge.
//!
//! [`LlamaConfig`] is what the rest of the crate computes with: plain numbers, every one in range.
//! It is read from the `config.json` of transformers 4 or 5. A field this crate neither uses nor
//! knows to be harmless is refused by name: a model that is computed wrongly in silence is worse
//! than one that is not loaded.

mod error;
mod fields;

use std::fs;
use std::path::Path;

use burn_lti::geometry::{Axes, Axis, HeadGrid, Role, Site};
use serde::{Serialize, Serializer};
use serde_json::{Value, json};

pub use error::ConfigError;
use fields::{Fields, OneOrMany};

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
        fields.check_fixed()?;

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
        fields.finish()?;
        config.check(origin)?;
        Ok(config)
    }

    /// Checks the ranges of all fields, as reading does; for a configuration made by hand.
    ///
    /// # Errors
    /// [`ConfigError::KvHeads`] or [`ConfigError::Refused`], naming `origin`.
    pub fn check(&self, origin: &Path) -> Result<(), ConfigError> {
        let refused = |field, reason| Err(ConfigError::refused(origin, field, reason));
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
                return refused(field, format!("is {value}: it must be from 1 to {max}"));
            }
        }
        let (heads, kv_heads) = (self.num_attention_heads, self.num_key_value_heads);
        if !heads.is_multiple_of(kv_heads) {
            return Err(ConfigError::KvHeads {
                path: origin.to_path_buf(),
                heads,
                kv_heads,
                allowed: divisors(heads),
            });
        }
        if !self.head_dim.is_multiple_of(2) {
            let reason = format!("is {}: it must be even, for rotary pairs", self.head_dim);
            return refused("head_dim", reason);
        }
        for (field, value) in [
            ("rms_norm_eps", self.rms_norm_eps),
            ("rope_theta", self.rope_theta),
        ] {
            if !(value > 0.0 && value.is_finite()) {
                return refused(field, format!("is {value}: it must be positive and finite"));
            }
        }
        let bos = self.bos_token_id.iter().map(|id| ("bos_token_id", *id));
        let eos = self.eos_token_ids.iter().map(|id| ("eos_token_id", *id));
        let vocab_size = self.vocab_size;
        match bos.chain(eos).find(|(_, id)| *id as usize >= vocab_size) {
            Some((field, id)) => refused(
                field,
                format!("is {id}: it must be below `vocab_size`, {vocab_size}"),
            ),
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

    /// The axes of every layer.
    pub const fn axes(&self) -> Axes {
        Axes {
            d_model: self.hidden_size,
            query: self.query_grid(),
            key_value: self.kv_grid(),
            hidden: self.intermediate_size,
        }
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
            let weights = Role::ATTENTION.map(|role| (role, self.attention_bias));
            let feed_forward = [Role::Gate, Role::Up, Role::Down].map(|role| (role, self.mlp_bias));
            for (role, bias) in weights.into_iter().chain(feed_forward) {
                let name = site_name(Site::new(layer, role));
                let [rows, columns] = match role.axes() {
                    [Axis::Width, _] => [self.axes().grid(role).width(), d_model],
                    [_, _] => [d_model, self.axes().grid(role).width()],
                };
                push_linear(&mut tensors, &name, rows, columns, bias);
            }
            let prefix = format!("model.layers.{layer}");
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

/// The Hugging Face name of the weight at `site`, without `.weight` or `.bias`.
pub fn site_name(site: Site) -> String {
    let name = match site.role {
        Role::Query => "self_attn.q_proj",
        Role::Key => "self_attn.k_proj",
        Role::Value => "self_attn.v_proj",
        Role::Out => "self_attn.o_proj",
        Role::Gate => "mlp.gate_proj",
        Role::Up => "mlp.up_proj",
        Role::Down => "mlp.down_proj",
        Role::Embedding => return "model.embed_tokens".to_owned(),
        Role::Head => return "lm_head".to_owned(),
        other => unreachable!("a Llama has no {other}"),
    };
    format!("model.layers.{}.{name}", site.layer)
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

fn default_head_dim(hidden_size: usize, heads: usize, origin: &Path) -> Result<usize, ConfigError> {
    match hidden_size.checked_rem(heads) {
        Some(0) => Ok(hidden_size / heads),
        // No heads at all: the range check says that better.
        None => Ok(1),
        Some(_) => {
            let reason = format!(
                "{hidden_size} does not divide by `num_attention_heads` {heads}: set `head_dim`"
            );
            Err(ConfigError::refused(origin, "hidden_size", reason))
        }
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
mod tests;
