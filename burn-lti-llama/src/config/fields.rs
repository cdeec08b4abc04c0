//! The fields of a `config.json`: taken one by one, and none passed over in silence.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::ConfigError;

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

/// The fields of a JSON object that nobody has taken yet.
pub(super) struct Fields<'a> {
    map: Map<String, Value>,
    /// Goes before field names in errors: empty, or `rope_parameters.`.
    prefix: &'static str,
    origin: &'a Path,
}

impl<'a> Fields<'a> {
    pub(super) fn parse(text: &str, origin: &'a Path) -> Result<Self, ConfigError> {
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

    pub(super) fn take<T: DeserializeOwned>(
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

    pub(super) fn take_or<T: DeserializeOwned>(
        &mut self,
        name: &str,
        default: T,
    ) -> Result<T, ConfigError> {
        Ok(self.take(name)?.unwrap_or(default))
    }

    pub(super) fn require<T: DeserializeOwned>(&mut self, name: &str) -> Result<T, ConfigError> {
        self.take(name)?.ok_or_else(|| self.missing(name))
    }

    /// The rotary base of either generation; where both are there they must agree.
    pub(super) fn take_rope_theta(&mut self) -> Result<f64, ConfigError> {
        let top = self.take("rope_theta")?;
        let mut rope = Fields {
            map: self.take_or("rope_parameters", Map::new())?,
            prefix: "rope_parameters.",
            origin: self.origin,
        };
        rope.map.retain(|_, value| !value.is_null());
        rope.check_only(FIXED_ROPE)?;
        let nested = rope.take("rope_theta")?;
        rope.finish_with(&[])?;
        match (top, nested) {
            (Some(top), Some(nested)) if top != nested => Err(self.refused(
                "rope_theta",
                format!(
                    "is {top} but `rope_parameters.rope_theta` is {nested}: delete the wrong one"
                ),
            )),
            (top, nested) => Ok(top.or(nested).unwrap_or(DEFAULT_ROPE_THETA)),
        }
    }

    /// Nothing may ask for what this crate does not compute, and the file has to say of which family it
    /// is.
    pub(super) fn check_fixed(&mut self) -> Result<(), ConfigError> {
        if !self.map.contains_key("model_type") {
            return Err(self.missing("model_type"));
        }
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

    /// Whatever is left must say nothing about what the model computes.
    pub(super) fn finish(self) -> Result<(), ConfigError> {
        self.finish_with(BOOKKEEPING)
    }

    /// Whatever is left must be among `harmless`.
    fn finish_with(self, harmless: &[&str]) -> Result<(), ConfigError> {
        match self
            .map
            .keys()
            // An underscore marks what transformers keeps for itself: where a file came from, and such.
            .find(|name| !name.starts_with('_') && !harmless.contains(&name.as_str()))
        {
            Some(name) => {
                let reason = "is not supported: use a plain Llama, or delete the field if it \
                              changes nothing in what the model computes";
                Err(self.refused(name, reason.to_owned()))
            }
            None => Ok(()),
        }
    }

    fn refused(&self, name: &str, reason: String) -> ConfigError {
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
pub(super) enum OneOrMany {
    One(u32),
    Many(Vec<u32>),
}

impl OneOrMany {
    pub(super) fn into_vec(self) -> Vec<u32> {
        match self {
            OneOrMany::One(id) => vec![id],
            OneOrMany::Many(ids) => ids,
        }
    }
}
