//! What can be wrong with a `config.json`.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use super::list;

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
