//! The configuration of a decoder, checked once at the edge.
//!
//! [`LlamaConfig`] is what the rest of the crate computes with: plain numbers, every one in range.
//! It is read from the `config.json` of transformers 4 or 5, of Llama and of the families that grew out of it
//! ([`Family`]). A field this crate neither uses nor knows to be harmless is refused by name: a model that is
//! computed wrongly in silence is worse than one that is not loaded.

mod error;
mod family;
mod fields;
mod hub;
mod rope;
mod token_ids;

use std::path::Path;

use burn_lti::geometry::{Axes, Axis, HeadGrid, Role, Site};
use serde_json::{Map, Value};

pub use error::ConfigError;
pub use family::Family;
pub(crate) use fields::{Fields, OneOrMany};
pub use hub::model_folder;
pub(crate) use hub::{
    cache as hub_cache, repository as hub_repository, repository_of as hub_repository_of,
};
pub use rope::{Rope, RopeScaling};
pub(crate) use token_ids::{named_ids, renumber};

/// The checked configuration of a decoder.
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
    /// What kind of decoder it is.
    pub family: Family,
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
    /// The rotary embedding.
    pub rope: Rope,
    /// That of layers with a window, if it is another.
    pub local_rope: Option<Rope>,
    /// For each layer, whether it has a rotary embedding.
    pub turned: Vec<bool>,
    /// For each layer, how many tokens a token sees, its own among them; all where there is none.
    pub windows: Vec<Option<usize>>,
    /// The output head shares the embedding's weight.
    pub tie_word_embeddings: bool,
    /// Query, key and value projections have a bias.
    pub qkv_bias: bool,
    /// The output projection has a bias.
    pub out_bias: bool,
    /// What of queries and keys is normed before they turn.
    pub qk_norm: QkNorm,
    /// The three projections of the feed-forward block have a bias.
    pub mlp_bias: bool,
    /// What the gate of the feed-forward block goes through.
    pub activation: Activation,
    /// What a block reads of the residual stream is normed.
    pub input_norms: bool,
    /// What a block adds to the residual stream is normed.
    pub output_norms: bool,
    /// Scores of attention go through `cap * tanh(score / cap)` before the softmax.
    pub attention_cap: Option<f64>,
    /// So do logits.
    pub logit_cap: Option<f64>,
    /// Token that begins a document.
    pub bos_token_id: Option<u32>,
    /// Tokens that end a document; may be empty.
    pub eos_token_ids: Vec<u32>,
    /// Numbers that the family multiplies by.
    pub multipliers: Multipliers,
    /// What its file said, from which everything is kept that a student has too; empty if there was none.
    pub source: SourceFields,
}

/// What a `config.json` said. Configurations are equal whatever their files say beside what is computed.
#[derive(Clone, Debug, Default)]
pub struct SourceFields {
    pub(crate) fields: Map<String, Value>,
    pub(crate) read_over: Vec<String>,
    pub(crate) accepted: Vec<String>,
    /// Embeddings of the whole model, of which this one has some.
    pub(crate) whole_vocab: Option<usize>,
}

impl SourceFields {
    /// The repository that transformers loaded the model from, if the file keeps one and no path of somebody's
    /// machine.
    pub fn repository(&self) -> Option<&str> {
        let name = self.fields.get("_name_or_path")?.as_str()?;
        let (organisation, model) = name.split_once('/')?;
        let is_path = organisation.is_empty() || organisation.starts_with(['.', '~']);
        (!is_path && !model.is_empty() && !model.contains('/')).then_some(name)
    }

    /// The fields that say nothing about what the model computes, sorted.
    pub fn read_over(&self) -> &[String] {
        &self.read_over
    }

    /// The fields that are not known here and may say something about it, which were read over because somebody
    /// said so; sorted.
    pub fn accepted(&self) -> &[String] {
        &self.accepted
    }
}

impl PartialEq for SourceFields {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

/// What of queries and keys is normed at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QkNorm {
    /// Nothing is.
    Nothing,
    /// Each head by itself, all by the same gains.
    EachHead,
    /// All heads together, each by gains of its own.
    AllHeads,
}

/// What the gate of a feed-forward block goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x / (1 + exp(-x))`
    Silu,
    /// GELU with the hyperbolic tangent in the place of the error function (Hendrycks and Gimpel 2016).
    GeluTanh,
}

impl Activation {
    pub(crate) fn take(
        fields: &mut Fields<'_>,
        name: &str,
        default: Self,
    ) -> Result<Self, ConfigError> {
        match fields.take::<String>(name)?.as_deref() {
            None => Ok(default),
            Some("silu" | "swish") => Ok(Self::Silu),
            Some("gelu_pytorch_tanh" | "gelu_new" | "gelu_fast") => Ok(Self::GeluTanh),
            Some(other) => {
                let reason = format!(
                    "is {other}, but only silu or gelu_pytorch_tanh is supported: use a model without it"
                );
                Err(fields.refused(name, reason))
            }
        }
    }
}

/// Numbers that a family multiplies by. They are folded into weights when those are read.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Multipliers {
    /// What the embedding gives.
    pub embedding: f64,
    /// Scores, instead of one over the root of the head size.
    pub attention: Option<f64>,
    /// What a block adds to the residual stream.
    pub residual: f64,
    /// Logits.
    pub logits: f64,
}

impl Multipliers {
    /// Of families that have none.
    pub const NONE: Self = Self {
        embedding: 1.0,
        attention: None,
        residual: 1.0,
        logits: 1.0,
    };
}

impl LlamaConfig {
    /// Checks the ranges of all fields, as reading does; for a configuration made by hand.
    ///
    /// # Errors
    /// [`ConfigError::KvHeads`] or [`ConfigError::Refused`], naming `origin`.
    pub fn check(&self, origin: &Path) -> Result<(), ConfigError> {
        self.check_sizes(origin)?;
        let refused = |field, reason| Err(ConfigError::refused(origin, field, reason));
        let layers = self.num_hidden_layers;
        if [self.turned.len(), self.windows.len()] != [layers; 2] {
            let reason =
                format!("is {layers}: windows and rotary embeddings must be said of each layer");
            return refused("num_hidden_layers", reason);
        }
        if self.windows.contains(&Some(0)) {
            return refused("sliding_window", "is 0: a token sees itself".to_owned());
        }
        for (field, cap) in [
            ("attn_logit_softcapping", self.attention_cap),
            ("final_logit_softcapping", self.logit_cap),
        ] {
            if let Some(cap) = cap.filter(|cap| !(*cap > 0.0 && cap.is_finite())) {
                return refused(field, format!("is {cap}: it must be positive and finite"));
            }
        }
        for rope in [&self.rope].into_iter().chain(&self.local_rope) {
            if let Err((field, reason)) = rope.check(self.head_dim) {
                return refused(field, reason);
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

    pub(crate) fn check_sizes(&self, origin: &Path) -> Result<(), ConfigError> {
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
        let eps = self.rms_norm_eps;
        if !(eps > 0.0 && eps.is_finite()) {
            let reason = format!("is {eps}: it must be positive and finite");
            return refused("rms_norm_eps", reason);
        }
        Ok(())
    }

    /// The same model under the name by which transformers 5 opens it: it opens no Llama whose width does not
    /// divide by its query heads, but a Mistral, which computes the same, if there is no bias.
    pub fn openable(mut self) -> Self {
        let has_bias = self.qkv_bias || self.out_bias || self.mlp_bias;
        if self.family == Family::Llama && !self.opens() && !has_bias {
            self.family = Family::Mistral;
        }
        self
    }

    /// Whether it has as many layers and units and the width of `other`, whatever its heads.
    pub(crate) const fn is_as_deep_and_wide(&self, other: &Self) -> bool {
        self.num_hidden_layers == other.num_hidden_layers
            && self.intermediate_size == other.intermediate_size
            && self.hidden_size == other.hidden_size
    }

    /// Whether the residual stream of `teacher` has to become another for this student of it: of another width, or
    /// with one table for what it reads and what it puts out.
    pub(crate) const fn narrows(&self, teacher: &Self) -> bool {
        let becomes_tied = self.tie_word_embeddings && !teacher.tie_word_embeddings;
        self.hidden_size != teacher.hidden_size || becomes_tied
    }

    /// The same model with a residual stream of this width, its head the embedding or not.
    pub fn at_width(&self, hidden_size: usize, tie_word_embeddings: bool) -> Self {
        let mut config = Self {
            hidden_size,
            tie_word_embeddings,
            ..self.clone()
        };
        config.family.write_width(&mut config);
        config
    }

    /// The same model with these of its layers, ascending.
    ///
    /// # Panics
    ///
    /// If there is no such layer.
    pub fn with_layers(&self, kept: &[usize]) -> Self {
        let layers = self.num_hidden_layers;
        if kept.iter().copied().eq(0..layers) {
            return self.clone();
        }
        let mut config = Self {
            num_hidden_layers: kept.len(),
            turned: kept.iter().map(|layer| self.turned[*layer]).collect(),
            windows: kept.iter().map(|layer| self.windows[*layer]).collect(),
            ..self.clone()
        };
        config.family.write_layers(&mut config);
        config
    }

    /// The same model with these of its tokens, ascending, which are numbered anew. Fields that name a token which
    /// is gone name none.
    pub fn with_vocabulary(&self, kept: &[u32]) -> Self {
        let place = |id: u32| kept.binary_search(&id).ok();
        let new_id = |id: u32| place(id).and_then(|place| u32::try_from(place).ok());
        let mut config = self.clone();
        config.vocab_size = kept.len();
        config.bos_token_id = self.bos_token_id.and_then(new_id);
        let ends = self.eos_token_ids.iter().copied();
        config.eos_token_ids = ends.filter_map(new_id).collect();
        renumber(&mut config.source.fields, &new_id);
        config.source.whole_vocab = Some(self.whole().vocab_size);
        config
    }

    /// The model with all of its tokens, where this one is it [on some of them](Self::with_vocabulary): of the sizes it
    /// has, not of the tokens with a meaning.
    pub(crate) fn whole(&self) -> Self {
        Self {
            vocab_size: self.source.whole_vocab.unwrap_or(self.vocab_size),
            ..self.clone()
        }
    }

    /// Whether it is [on some tokens](Self::with_vocabulary) of a model.
    pub(crate) const fn is_cut(&self) -> bool {
        self.source.whole_vocab.is_some()
    }

    /// The tokens with a meaning that `config.json` names.
    pub(crate) fn named_tokens(&self) -> Vec<u32> {
        let mut ids = named_ids(&self.source.fields);
        ids.extend(self.bos_token_id.iter().chain(&self.eos_token_ids));
        ids
    }

    /// Whether transformers 5 opens it under the name of its family.
    pub(crate) const fn opens(&self) -> bool {
        !self.family.needs_whole_heads()
            || self.hidden_size.is_multiple_of(self.num_attention_heads)
    }

    /// The rotary embedding of a layer, if it has one.
    pub fn rope_of(&self, layer: usize) -> Option<&Rope> {
        let local = self
            .local_rope
            .as_ref()
            .filter(|_| self.windows[layer].is_some());
        self.turned[layer].then(|| local.unwrap_or(&self.rope))
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
            let prefix = format!("model.layers.{layer}");
            for role in Role::ATTENTION {
                let name = site_name(Site::new(layer, role));
                let [rows, columns] = self.file_shape(role);
                push_linear(&mut tensors, &name, rows, columns, self.has_bias(role));
            }
            let norms = [("q_norm", self.query_grid()), ("k_norm", self.kv_grid())];
            for (name, grid) in norms {
                if let Some(width) = self.qk_norm_width(grid) {
                    tensors.push((format!("{prefix}.self_attn.{name}.weight"), vec![width]));
                }
            }
            for role in [Role::Gate, Role::Up, Role::Down] {
                let name = site_name(Site::new(layer, role));
                let [rows, columns] = self.file_shape(role);
                push_linear(&mut tensors, &name, rows, columns, self.has_bias(role));
            }
            let outputs = [
                "attention_output_layernorm",
                "feed_forward_output_layernorm",
            ];
            let outputs = outputs.into_iter().filter(|_| self.output_norms);
            let inputs = ["input_layernorm", "post_attention_layernorm"];
            let inputs = inputs.into_iter().filter(|_| self.input_norms);
            for name in inputs.chain(outputs) {
                tensors.push((format!("{prefix}.{name}.weight"), vec![d_model]));
            }
        }
        tensors.push(("model.norm.weight".into(), vec![d_model]));
        if !self.tie_word_embeddings {
            tensors.push(("lm_head.weight".into(), vec![self.vocab_size, d_model]));
        }
        tensors
    }

    /// How many features of queries or keys in these heads are normed at once, if any are.
    pub(crate) const fn qk_norm_width(&self, grid: HeadGrid) -> Option<usize> {
        match self.qk_norm {
            QkNorm::Nothing => None,
            QkNorm::EachHead => Some(grid.head_dim),
            QkNorm::AllHeads => Some(grid.width()),
        }
    }

    /// The norms that have a gain for each output of a projection, each by its Hugging Face name without `.weight`,
    /// with the site of the projection.
    pub(crate) fn gains(&self) -> Vec<(String, Site)> {
        let layers = (0..self.num_hidden_layers).filter(|_| self.qk_norm == QkNorm::AllHeads);
        let of_layer = |layer: usize| {
            [("q_norm", Role::Query), ("k_norm", Role::Key)].map(|(name, role)| {
                let norm = format!("model.layers.{layer}.self_attn.{name}");
                (norm, Site::new(layer, role))
            })
        };
        layers.flat_map(of_layer).collect()
    }

    /// Whether the weight of this role has a bias beside it.
    pub const fn has_bias(&self, role: Role) -> bool {
        match role {
            Role::Query | Role::Key | Role::Value => self.qkv_bias,
            Role::Out => self.out_bias,
            Role::Gate | Role::Up | Role::Down => self.mlp_bias,
            _ => false,
        }
    }

    /// `[out, in]` of a layer's weight.
    fn file_shape(&self, role: Role) -> [usize; 2] {
        let width = self.axes().grid(role).width();
        match role.axes() {
            [Axis::Width, _] => [width, self.hidden_size],
            [_, _] => [self.hidden_size, width],
        }
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
