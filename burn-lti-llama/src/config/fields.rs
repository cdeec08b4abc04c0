//! The fields of a `config.json`: taken one by one, and none passed over in silence.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::ConfigError;

/// Fields that say nothing about what the model computes: they guide how it is trained, how text is drawn from
/// it, or are kept for the record.
const BOOKKEEPING: &[&str] = &[
    "attention_dropout",
    "attn_implementation",
    "auto_map",
    "bad_words_ids",
    "begin_suppress_tokens",
    "cache_implementation",
    "chunk_size_feed_forward",
    "cross_attention_hidden_size",
    "decoder_start_token_id",
    "diversity_penalty",
    "do_sample",
    "early_stopping",
    "embd_pdrop",
    "encoder_no_repeat_ngram_size",
    "exponential_decay_length_penalty",
    "finetuning_task",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "gradient_checkpointing",
    "hidden_dropout",
    "id2label",
    "initializer_factor",
    "initializer_range",
    "is_decoder",
    "is_llama_config",
    "label2id",
    "length_penalty",
    "max_length",
    "max_sequence_length",
    "min_length",
    "mlp_dropout",
    "model_max_length",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "output_attentions",
    "output_hidden_states",
    "output_scores",
    "pad_token_id",
    "prefix",
    "pretraining_tp", // the products of a weight that is cut, and summed
    "problem_type",
    "remove_invalid_values",
    "repetition_penalty",
    "resid_pdrop",
    "return_dict",
    "return_dict_in_generate",
    "sep_token_id",
    "suppress_tokens",
    "task_specific_params",
    "temperature",
    "tf_legacy_loss",
    "tie_encoder_decoder",
    "tokenizer_class",
    "top_k",
    "top_p",
    "torchscript",
    "transformers.js_config",
    "transformers_version",
    "typical_p",
    "unk_token_id",
    "unsloth_fixed",
    "unsloth_version",
    "use_bfloat16",
    "use_cache",
    "use_return_dict",
];

/// Fields that do change the computation, with the only value for which this crate is right.
const FIXED: &[(&str, Only)] = &[
    ("add_cross_attention", Only::Bool(false)),
    ("dtype", FLOAT_TYPES),
    ("is_encoder_decoder", Only::Bool(false)),
    ("pruned_heads", Only::Nothing),
    ("quantization_config", Only::Nothing),
    ("rope_interleaved", Only::Bool(false)),
    ("torch_dtype", FLOAT_TYPES),
    ("use_mrope", Only::Bool(false)),
];

const FLOAT_TYPES: Only = Only::Text(&["float32", "float16", "bfloat16"]);

/// The fields of a JSON object that nobody has taken yet.
pub(crate) struct Fields<'a> {
    map: Map<String, Value>,
    /// Fields that are there, and null.
    nulls: BTreeSet<String>,
    /// Goes before field names in errors: empty, or `rope_parameters.`.
    prefix: String,
    origin: &'a Path,
    /// Fields that may be read over although nobody knows them.
    accept: &'a [String],
    /// Those that were, of all objects.
    accepted: Rc<RefCell<BTreeSet<String>>>,
}

impl<'a> Fields<'a> {
    pub(crate) fn parse(
        text: &str,
        origin: &'a Path,
        accept: &'a [String],
    ) -> Result<Self, ConfigError> {
        let map = serde_json::from_str(text).map_err(|source| ConfigError::Syntax {
            path: origin.to_path_buf(),
            source,
        })?;
        Ok(Self::of(map, String::new(), origin, accept, Rc::default()))
    }

    fn of(
        mut map: Map<String, Value>,
        prefix: String,
        origin: &'a Path,
        accept: &'a [String],
        accepted: Rc<RefCell<BTreeSet<String>>>,
    ) -> Self {
        let nulls = map.iter().filter(|(_, value)| value.is_null());
        let nulls = nulls.map(|(name, _)| name.clone()).collect();
        // To transformers, null says the same as no field, as a rule.
        map.retain(|_, value| !value.is_null());
        Self {
            map,
            nulls,
            prefix,
            origin,
            accept,
            accepted,
        }
    }

    /// What is there and not null.
    pub(crate) const fn map(&self) -> &Map<String, Value> {
        &self.map
    }

    /// All that is there, null or not.
    pub(crate) fn all(&self) -> Map<String, Value> {
        let nulls = self.nulls.iter().map(|name| (name.clone(), Value::Null));
        self.map.clone().into_iter().chain(nulls).collect()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// The fields of an object, if there is one.
    pub(crate) fn take_object(&mut self, name: &str) -> Result<Option<Self>, ConfigError> {
        let map = self.take::<Map<String, Value>>(name)?;
        let prefix = format!("{}.", self.full_name(name));
        let of = |map| Self::of(map, prefix, self.origin, self.accept, self.accepted.clone());
        Ok(map.map(of))
    }

    /// None only where the file says null.
    pub(crate) fn take_unless_null<T: DeserializeOwned>(
        &mut self,
        name: &str,
        default: T,
    ) -> Result<Option<T>, ConfigError> {
        match self.nulls.contains(name) {
            true => Ok(None),
            false => self.take_or(name, default).map(Some),
        }
    }

    /// No layer may see a window.
    pub(crate) fn only_full_attention(&mut self) -> Result<(), ConfigError> {
        let types = self.take::<Vec<String>>("layer_types")?.unwrap_or_default();
        if let Some(kind) = types.iter().find(|kind| *kind != "full_attention") {
            let reason =
                format!("has {kind}, which models of this type do not have: delete the field");
            return Err(self.refused("layer_types", reason));
        }
        match self.take::<usize>("sliding_window")? {
            None => Ok(()),
            Some(window) => Err(self.refused(
                "sliding_window",
                format!("is {window}, but models of this type see all tokens: delete the field"),
            )),
        }
    }

    pub(crate) fn take<T: DeserializeOwned>(
        &mut self,
        name: &str,
    ) -> Result<Option<T>, ConfigError> {
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

    pub(crate) fn take_or<T: DeserializeOwned>(
        &mut self,
        name: &str,
        default: T,
    ) -> Result<T, ConfigError> {
        Ok(self.take(name)?.unwrap_or(default))
    }

    pub(crate) fn require<T: DeserializeOwned>(&mut self, name: &str) -> Result<T, ConfigError> {
        self.take(name)?.ok_or_else(|| self.missing(name))
    }

    /// Nothing may ask for what this crate does not compute.
    pub(crate) fn check_fixed(&mut self) -> Result<(), ConfigError> {
        self.check_only(FIXED)
    }

    fn check_only(&mut self, fixed: &[(&str, Only)]) -> Result<(), ConfigError> {
        for (name, only) in fixed {
            match self.map.remove(*name) {
                Some(value) if !only.accepts(&value) => {
                    let reason =
                        format!("is {value}, but only {only} is supported: use a model without it");
                    return Err(self.refused(name, reason));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Whatever is left must say nothing about what the model computes, or be accepted. Which fields those were.
    pub(crate) fn finish(self) -> Result<[Vec<String>; 2], ConfigError> {
        let accepted = self.accepted.clone();
        let read_over = self.finish_with(BOOKKEEPING)?;
        let accepted = accepted.borrow().iter().cloned().collect();
        Ok([read_over, accepted])
    }

    /// Nothing may be left.
    pub(crate) fn finish_all(self) -> Result<(), ConfigError> {
        self.finish_with(&[]).map(drop)
    }

    /// Whatever is left must be among `harmless`, or accepted. Which were harmless.
    fn finish_with(mut self, harmless: &[&str]) -> Result<Vec<String>, ConfigError> {
        // An underscore marks what transformers keeps for itself: where a file came from, and such.
        let is_harmless =
            |name: &&String| name.starts_with('_') || harmless.contains(&name.as_str());
        let unknown = self.map.keys().filter(|name| !is_harmless(name)).cloned();
        for name in unknown.collect::<Vec<String>>() {
            let full_name = self.full_name(&name);
            if self.accept.contains(&full_name) {
                self.map.remove(&name);
                self.accepted.borrow_mut().insert(full_name);
            }
        }
        match self.map.keys().find(|name| !is_harmless(name)) {
            Some(name) => {
                let reason = format!(
                    "is not known here: it may change what the model computes; delete the field if it does not, or \
                     read over it at your own risk with --accept {0} (teacher.accept = [\"{0}\"] in a recipe)",
                    self.full_name(name)
                );
                Err(self.refused(name, reason))
            }
            None => Ok(self.map.into_iter().map(|(name, _)| name).collect()),
        }
    }

    pub(crate) fn refused(&self, name: &str, reason: String) -> ConfigError {
        ConfigError::refused(self.origin, &self.full_name(name), reason)
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
    /// Not set, or empty.
    Nothing,
    Bool(bool),
    Text(&'static [&'static str]),
}

impl Only {
    fn accepts(&self, value: &Value) -> bool {
        match self {
            Only::Nothing => value.as_object().is_some_and(Map::is_empty),
            Only::Bool(only) => value.as_bool() == Some(*only),
            Only::Text(any) => value.as_str().is_some_and(|text| any.contains(&text)),
        }
    }
}

impl fmt::Display for Only {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Only::Nothing => f.write_str("null"),
            Only::Bool(only) => write!(f, "{only}"),
            Only::Text(any) => f.write_str(&any.join(" or ")),
        }
    }
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "a token number or a list of token numbers")]
pub(crate) enum OneOrMany {
    One(u32),
    Many(Vec<u32>),
}

impl OneOrMany {
    pub(crate) fn into_vec(self) -> Vec<u32> {
        match self {
            OneOrMany::One(id) => vec![id],
            OneOrMany::Many(ids) => ids,
        }
    }
}
