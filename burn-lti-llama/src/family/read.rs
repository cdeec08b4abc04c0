//! `config.json` in and out.

use std::io;
use std::path::{Path, PathBuf};

use burn_lti::files::{GIT_LFS_POINTER, is_git_lfs_pointer, read_text_at_most};
use serde::{Serialize, Serializer};
use serde_json::{Value, json};

use super::refused;
use crate::config::{
    Activation, ConfigError, Family, Fields, LlamaConfig, Multipliers, OneOrMany, QkNorm, Rope,
    SourceFields, hub_cache, hub_repository,
};
use crate::gguf::{Gguf, is_gguf};

/// The longest `config.json`.
const MOST_BYTES: u64 = 1 << 20;

impl LlamaConfig {
    /// Reads `dir/config.json`, or what a GGUF file says in its place.
    ///
    /// # Errors
    /// [`ConfigError::Read`], [`ConfigError::NotFetched`], [`ConfigError::NoModel`] or [`ConfigError::Gguf`] if the
    /// file cannot be read, else as [`Self::from_json_str`].
    pub fn from_dir(dir: &Path) -> Result<Self, ConfigError> {
        Self::from_dir_accepting(dir, &[])
    }

    /// As [`from_dir`](Self::from_dir), but fields of these names are read over although they are not known here and
    /// may change what the model computes ([`SourceFields::accepted`]). A field in an object is named with it, as in
    /// `rope_parameters.x`.
    ///
    /// # Errors
    /// As [`from_dir`](Self::from_dir).
    pub fn from_dir_accepting(dir: &Path, accept: &[String]) -> Result<Self, ConfigError> {
        if is_gguf(dir) {
            let config = Value::Object(Gguf::open(dir)?.config()?);
            return Self::read(&config.to_string(), dir, accept);
        }
        let path = dir.join("config.json");
        match read_text_at_most(&path, MOST_BYTES) {
            Ok(text) if is_git_lfs_pointer(text.as_bytes()) => Err(ConfigError::NoModel {
                folder: path,
                reason: GIT_LFS_POINTER,
            }),
            Ok(text) => Self::read(&text, &path, accept),
            Err(source) => Err(unreadable(dir, path, source)),
        }
    }

    /// Reads the text of a `config.json`; `origin` is the file that errors name.
    ///
    /// # Errors
    /// Every variant of [`ConfigError`] but [`ConfigError::Read`].
    pub fn from_json_str(text: &str, origin: &Path) -> Result<Self, ConfigError> {
        Self::read(text, origin, &[])
    }

    /// Checks that each name of `accept` is that of a field which one of `configs` was read over for it.
    ///
    /// # Errors
    /// [`ConfigError::NothingToAccept`] for the first that is not: it is no field, or one that is known.
    pub fn check_accepted(accept: &[String], configs: &[&Self]) -> Result<(), ConfigError> {
        let is_of_use = |field: &&String| {
            configs
                .iter()
                .any(|it| it.source.accepted().contains(field))
        };
        match accept.iter().find(|field| !is_of_use(field)) {
            None => Ok(()),
            Some(field) => Err(ConfigError::NothingToAccept {
                field: field.clone(),
            }),
        }
    }

    fn read(text: &str, origin: &Path, accept: &[String]) -> Result<Self, ConfigError> {
        let mut fields = Fields::parse(text, origin, accept)?;
        let source = fields.all();
        let family = take_family(&mut fields)?;
        fields.check_fixed()?;
        let defaults = family.defaults();

        let hidden_size = fields.require("hidden_size")?;
        let num_attention_heads = fields.require("num_attention_heads")?;
        let head_dim = match fields.take("head_dim")?.or(defaults.head_dim) {
            Some(head_dim) => head_dim,
            None => default_head_dim(hidden_size, num_attention_heads, origin)?,
        };
        let num_hidden_layers = fields.require("num_hidden_layers")?;
        let kv_heads = defaults.num_key_value_heads.unwrap_or(num_attention_heads);
        let max_position_embeddings =
            fields.take_or("max_position_embeddings", defaults.max_position_embeddings)?;
        let (rope, local_rope) = {
            let (theta, local) = (defaults.rope_theta, defaults.local_rope_theta);
            Rope::take(&mut fields, theta, local, max_position_embeddings)?
        };
        let mut config = Self {
            family,
            vocab_size: fields.require("vocab_size")?,
            hidden_size,
            intermediate_size: fields.require("intermediate_size")?,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads: match fields.take_unless_null("num_key_value_heads", kv_heads)? {
                Some(kv_heads) => kv_heads,
                None => num_attention_heads,
            },
            head_dim,
            max_position_embeddings,
            rms_norm_eps: fields.take_or("rms_norm_eps", defaults.rms_norm_eps)?,
            rope,
            local_rope,
            turned: Vec::new(),
            windows: Vec::new(),
            tie_word_embeddings: fields
                .take_or("tie_word_embeddings", defaults.tie_word_embeddings)?,
            qkv_bias: false,
            out_bias: false,
            qk_norm: QkNorm::Nothing,
            mlp_bias: false,
            activation: Activation::take(&mut fields, "hidden_act", Activation::Silu)?,
            input_norms: true,
            output_norms: false,
            attention_cap: None,
            logit_cap: None,
            bos_token_id: fields.take("bos_token_id")?,
            eos_token_ids: fields
                .take::<OneOrMany>("eos_token_id")?
                .map_or_else(Vec::new, OneOrMany::into_vec),
            multipliers: Multipliers::NONE,
            source: SourceFields::default(),
        };
        config.check_sizes(origin)?;
        config.turned = vec![true; num_hidden_layers];
        config.windows = vec![None; num_hidden_layers];
        family.take_particular(&mut fields, &mut config)?;
        let [read_over, accepted] = fields.finish()?;
        config.source = SourceFields {
            fields: source,
            read_over,
            accepted,
            whole_vocab: None,
        };
        config.check(origin)?;
        Ok(config)
    }

    /// The `config.json` of this model, written so that transformers 4 and 5 both read it. What the file said
    /// that the model was read from, and this crate has no part in, is carried over.
    pub fn to_json(&self) -> Value {
        let eos = match self.eos_token_ids.as_slice() {
            [] => Value::Null,
            [id] => json!(id),
            ids => json!(ids),
        };
        let mut config = self.source.fields.clone();
        let said = config.get("model_type").and_then(Value::as_str);
        if said.is_some_and(|said| said != self.family.model_type()) {
            self.family.write(self, &mut config);
        }
        if config.is_empty() {
            let plain = [
                ("attention_dropout", json!(0.0)),
                ("hidden_act", json!("silu")),
                ("initializer_range", json!(0.02)),
                ("pretraining_tp", json!(1)),
                ("use_cache", json!(true)),
            ];
            config.extend(plain.map(|(name, value)| (name.to_owned(), value)));
            self.family.write(self, &mut config);
        }
        let own = [
            ("architectures", json!([self.family.architecture()])),
            ("bos_token_id", json!(self.bos_token_id)),
            ("dtype", json!("float32")),
            ("eos_token_id", eos),
            ("head_dim", json!(self.head_dim)),
            ("hidden_size", json!(self.hidden_size)),
            ("intermediate_size", json!(self.intermediate_size)),
            (
                "max_position_embeddings",
                json!(self.max_position_embeddings),
            ),
            ("model_type", json!(self.family.model_type())),
            ("num_attention_heads", json!(self.num_attention_heads)),
            ("num_hidden_layers", json!(self.num_hidden_layers)),
            ("num_key_value_heads", json!(self.num_key_value_heads)),
            ("rms_norm_eps", json!(self.rms_norm_eps)),
            ("tie_word_embeddings", json!(self.tie_word_embeddings)),
            ("torch_dtype", json!("float32")),
            ("vocab_size", json!(self.vocab_size)),
        ];
        config.extend(own.map(|(name, value)| (name.to_owned(), value)));
        self.rope.write(self.local_rope.as_ref(), &mut config);
        Value::Object(config)
    }
}

/// One form for files and for reports: that of [`LlamaConfig::to_json`].
impl Serialize for LlamaConfig {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.to_json().serialize(serializer)
    }
}

/// Why there is no `config.json` to read.
fn unreadable(dir: &Path, path: PathBuf, source: io::Error) -> ConfigError {
    if dir.join("adapter_config.json").is_file() {
        return ConfigError::NoModel {
            folder: dir.to_owned(),
            reason: "holds an adapter (LoRA) without its model: merge it with peft's `merge_and_unload`, and save \
                     that",
        };
    }
    let names = dir.read_dir().into_iter().flatten().flatten();
    let mut names = names.map(|entry| entry.path());
    if path.try_exists().is_ok_and(|there| !there) && names.any(|name| is_gguf(&name)) {
        return ConfigError::NoModel {
            folder: dir.to_owned(),
            reason: "holds GGUF and no config.json: give the path of the .gguf file itself",
        };
    }
    match hub_repository(dir) {
        Some((id, revision)) => ConfigError::NotFetched {
            id: id.to_owned(),
            revision: revision.to_owned(),
            cache: hub_cache().unwrap_or_default(),
        },
        None => ConfigError::Read { path, source },
    }
}

/// The family that a file says it is of.
fn take_family(fields: &mut Fields<'_>) -> Result<Family, ConfigError> {
    let model_type: String = fields.require("model_type")?;
    let architectures: Vec<String> = fields.take_or("architectures", Vec::new())?;
    refused::check(fields.map()).map_err(|(field, reason)| fields.refused(field, reason))?;
    let Some(family) = Family::of(&model_type) else {
        let known: Vec<&str> = Family::ALL
            .iter()
            .map(|family| family.model_type())
            .collect();
        let reason = format!(
            "is {model_type}, a family that is not known here: use a model of one of {}",
            known.join(", ")
        );
        return Err(fields.refused("model_type", reason));
    };
    if let Some(class) = architectures
        .iter()
        .find(|class| *class != family.architecture())
    {
        let reason = format!(
            "has {class}, but a {model_type} that continues text is a {}: use such a model",
            family.architecture()
        );
        return Err(fields.refused("architectures", reason));
    }
    Ok(family)
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

#[cfg(test)]
mod tests;
