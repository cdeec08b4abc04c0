//! GGUF, the files of llama.cpp: a model, its configuration and its tokenizer in one.
//!
//! `Gguf` shows such a file as the Hugging Face folder that it could have been made of: `config.json`, the
//! tokenizer's files, and tensors under their names there. So whatever reads a folder reads a file too. It knows
//! nothing of models; what is wrong with a configuration is said by those who read `config.json`.
//!
//! | file | what it does |
//! |---|---|
//! | `file` | the container: keys, and where tensors lie |
//! | `blocks` | numbers as floats and as quantized blocks |
//! | `architecture`, `names` | families by their names, tensors by theirs, rows in the order of rotary pairs |
//! | `keys` | `config.json` of a file's keys |
//! | `vocabulary`, `pre` | `tokenizer.json` of a file's keys, and back |
//! | `write` | a file, and read back |

mod architecture;
mod blocks;
mod error;
mod file;
mod keys;
mod names;
mod pre;
mod vocabulary;
mod write;

use std::ops::Range;
use std::path::Path;

use serde_json::{Map, Value};

pub(crate) use architecture::Architecture;
pub use blocks::BlockType;
pub use error::GgufError;
pub(crate) use keys::{GEMMA3_EVERY, GEMMA3_LOCAL_BASE, SMOLLM3_EVERY};
pub(crate) use names::{ROPE_FACTORS, to_pairs};
pub(crate) use vocabulary::{Special, Vocabulary};
pub(crate) use write::{NewTensor, NewValue, write};

use file::Container;
use names::from_pairs;

/// Whether `path` is such a file, or is meant to be one.
pub fn is_gguf(path: &Path) -> bool {
    let extension = path.extension().and_then(|it| it.to_str());
    extension.is_some_and(|it| it.eq_ignore_ascii_case("gguf")) && !path.is_dir()
}

/// A GGUF file, opened and checked but not read, as a Hugging Face folder.
#[derive(Debug)]
pub(crate) struct Gguf {
    file: Container,
    architecture: &'static Architecture,
    heads: [usize; 2],
    tensors: Vec<GgufTensor>,
}

/// A tensor under Hugging Face's name.
#[derive(Debug)]
pub(crate) struct GgufTensor {
    /// Hugging Face's, or the file's own if there is none.
    pub(crate) name: String,
    /// The last axis runs fastest.
    pub(crate) shape: Vec<usize>,
    /// How its numbers lie.
    pub(crate) kind: BlockType,
    bytes: Range<usize>,
}

impl Gguf {
    /// # Errors
    ///
    /// [`GgufError`]: the file cannot be read, is damaged, or is of a family that is not read.
    pub(crate) fn open(path: &Path) -> Result<Self, GgufError> {
        let file = Container::open(path)?;
        let architecture = keys::architecture(&file)?;
        let heads = keys::heads(&file, architecture)?;
        // What a key of `config.json` says in its place.
        let is_weight = |name: &str| name != ROPE_FACTORS;
        let tensors = file.tensors.iter().filter(|tensor| is_weight(&tensor.name));
        let tensors = tensors.map(|tensor| GgufTensor {
            name: architecture
                .hf_name(&tensor.name)
                .unwrap_or_else(|| tensor.name.clone()),
            shape: tensor.shape.clone(),
            kind: tensor.kind,
            bytes: tensor.bytes.clone(),
        });
        let tensors: Vec<GgufTensor> = tensors.collect();
        for tensor in &tensors {
            let Some(heads) = architecture.reordered(&tensor.name, heads) else {
                continue;
            };
            let pairs = heads.checked_mul(2).filter(|pairs| *pairs > 0);
            if pairs.is_none_or(|pairs| !tensor.shape[0].is_multiple_of(pairs)) {
                let reason = format!(
                    "has {} rows in {}, which {heads} heads of pairs do not divide",
                    tensor.shape[0], tensor.name
                );
                return Err(GgufError::broken(path, reason));
            }
        }
        Ok(Self {
            file,
            architecture,
            heads,
            tensors,
        })
    }

    /// The fields of `config.json`.
    ///
    /// # Errors
    ///
    /// [`GgufError`]: a key is missing, or says what is not read.
    pub(crate) fn config(&self) -> Result<Map<String, Value>, GgufError> {
        keys::config(&self.file, self.architecture)
    }

    /// The tokenizer.
    ///
    /// # Errors
    ///
    /// [`GgufError::Tokenizer`] for one that is not known, or [`GgufError::Broken`].
    pub(crate) fn vocabulary(&self) -> Result<Vocabulary, GgufError> {
        let context = self
            .file
            .number(&format!("{}.context_length", self.architecture.name))?;
        Vocabulary::of_file(&self.file, context)
    }

    pub(crate) fn tensors(&self) -> &[GgufTensor] {
        &self.tensors
    }

    /// The bytes of a tensor as the file has them.
    pub(crate) fn bytes(&self, tensor: &GgufTensor) -> &[u8] {
        self.file.bytes(&tensor.bytes)
    }

    /// The numbers of a tensor as a folder has them.
    pub(crate) fn read(&self, tensor: &GgufTensor) -> Vec<f32> {
        let mut numbers = tensor.kind.to_f32(self.bytes(tensor));
        if let Some(heads) = self.architecture.reordered(&tensor.name, self.heads) {
            numbers = from_pairs(&numbers, heads, tensor.shape[0]);
        }
        let shift = self.architecture.shift(&tensor.name);
        if shift != 0.0 {
            numbers.iter_mut().for_each(|number| *number -= shift);
        }
        numbers
    }
}

#[cfg(test)]
mod tests;
