//! From one form of a model into the other: a Hugging Face folder, a GGUF file.
//!
//! Neither is made into a model on the way: tensors go from file to file, one at a time. [`to_folder`] writes what
//! transformers opens, [`to_gguf`] what llama.cpp does.

mod error;
mod keys;

use std::fs;
use std::path::{Path, PathBuf};

use burn_lti::files::{FileError, NewFolder};
use serde_json::Value;

pub use error::ConvertError;

use crate::config::{Family, LlamaConfig, RopeScaling};
use crate::gguf::{
    self, Architecture, BlockType, GgufError, NewTensor, ROPE_FACTORS, Special, Vocabulary,
    to_pairs,
};
use crate::hf::{self, ExportForm};
use crate::tokenizer::{Tokenizer, belongs_to_tokenizer};

/// Texts that a tokenizer has to make the same tokens of in both forms: words, digits, spaces, signs, what is
/// composed, other scripts, what few vocabularies have.
const PROBES: [&str; 8] = [
    "Hello, world! It's 2026, isn't it?",
    "  two  spaces\n\n\nthree lines\t\ttabs \n trailing ",
    "3.14159 1234567 12 000 ½ x²",
    "def f(x):\n    return x**2 + [1, 2][0]  # comment\r\n",
    "naïve café cafe\u{301} ÅNGSTRÖM straße",
    "Привет мир 你好世界 こんにちは مرحبا हिन्दी 한국어",
    "🦙🚀 ~~~~ ____ <|x|> $^&*()",
    "I'LL WE'VE don't o'clock",
];

/// Writes the model `from`, a folder or a GGUF file, as the folder `dir`. It is written in a hidden folder beside it,
/// and gets its name when it is whole; a model that is in `dir` already goes then, and whatever else is there stays.
///
/// Fields of `config.json` that `accept` names are read over: see [`LlamaConfig::from_dir_accepting`].
///
/// # Errors
///
/// [`ConvertError`], naming the file; `dir` is then as it was.
pub fn to_folder(
    from: &Path,
    accept: &[String],
    form: impl Into<ExportForm>,
    dir: &Path,
) -> Result<(), ConvertError> {
    let config = read_config(from, accept)?;
    let files = hf::checked_weights(from, &config)?;
    let tensors = config.family.file_tensors(&config).into_iter();
    let tensors = tensors.map(|tensor| {
        let files = &files;
        let name = tensor.name.clone();
        hf::NewTensor::new(tensor.name, tensor.shape, move || files.read_f32(&name))
    });
    let place = Place::new(dir)?;
    let openable = config.clone().openable();
    hf::write_folder(
        &openable,
        form.into(),
        from.into(),
        place.new.path(),
        tensors,
    )?;
    Ok(place.accept()?)
}

/// Where a folder is written, and where a model goes that was in its place.
struct Place {
    dir: PathBuf,
    new: NewFolder,
    replaced: PathBuf,
}

impl Place {
    /// Where an earlier attempt was stopped between two names, what was there is put back.
    fn new(dir: &Path) -> Result<Self, ConvertError> {
        // `.` has no name of its own.
        let dir = fs::canonicalize(dir).unwrap_or_else(|_| dir.to_owned());
        let name = dir.file_name().unwrap_or_default().to_string_lossy();
        let place = Self {
            replaced: dir.with_file_name(format!(".{name}.replaced")),
            new: NewFolder::new(&dir)?,
            dir,
        };
        if !place.dir.exists() && place.replaced.exists() {
            fs::rename(&place.replaced, &place.dir).map_err(FileError::writing(&place.dir))?;
        }
        clear_replaced(&place.replaced, &place.dir)?;
        Ok(place)
    }

    fn accept(self) -> Result<(), FileError> {
        let Self { dir, new, replaced } = self;
        if dir.exists() && !names_in(&dir)?.is_empty() {
            fs::rename(&dir, &replaced).map_err(FileError::writing(&dir))?;
        }
        new.accept()?;
        clear_replaced(&replaced, &dir)
    }
}

/// Of a folder that was replaced by `dir` the files of a model go, and all else comes back.
fn clear_replaced(replaced: &Path, dir: &Path) -> Result<(), FileError> {
    if !replaced.exists() {
        return Ok(());
    }
    for name in names_in(replaced)? {
        let (path, to) = (replaced.join(&name), dir.join(&name));
        let is_of_model = name == "config.json"
            || name.ends_with(".safetensors")
            || name.ends_with(".safetensors.index.json")
            || belongs_to_tokenizer(&name);
        let done = match (is_of_model, path.is_dir()) {
            (true, true) => fs::remove_dir_all(&path),
            (true, false) => fs::remove_file(&path),
            (false, _) if !to.exists() => fs::rename(&path, to),
            (false, _) => Ok(()),
        };
        done.map_err(FileError::writing(&path))?;
    }
    match names_in(replaced)?.is_empty() {
        true => fs::remove_dir(replaced).map_err(FileError::writing(replaced)),
        false => Ok(()), // two files of the user's of one name: both stay
    }
}

fn read_config(from: &Path, accept: &[String]) -> Result<LlamaConfig, ConvertError> {
    let config = LlamaConfig::from_dir_accepting(from, accept)?;
    LlamaConfig::check_accepted(accept, &[&config])?;
    Ok(config)
}

fn names_in(dir: &Path) -> Result<Vec<String>, FileError> {
    let entries = fs::read_dir(dir).map_err(FileError::writing(dir))?;
    let names = entries.map(|entry| {
        let entry = entry.map_err(FileError::writing(dir))?;
        Ok(entry.file_name().to_string_lossy().into_owned())
    });
    names.collect()
}

/// Writes the model `from`, a folder or a GGUF file, as the GGUF file `out` of version 3, with its tokenizer.
/// Matrices are written as `kind`, and norms, biases and factors of frequencies as float32, as llama.cpp's own
/// converter does.
///
/// # Errors
///
/// [`ConvertError`]: the model cannot be read; it computes what llama.cpp does not under the name of its family; its
/// tokenizer has no form in GGUF; rows that the blocks of `kind` do not divide.
pub fn to_gguf(
    from: &Path,
    accept: &[String],
    kind: BlockType,
    out: &Path,
) -> Result<(), ConvertError> {
    let config = read_config(from, accept)?;
    let architecture = architecture(&config, from)?;
    let mut values = keys::of(&config, architecture, kind, from)?;
    let files = hf::checked_weights(from, &config)?;
    values.extend(vocabulary(from, &config)?.entries());

    let heads = [config.num_attention_heads, config.num_key_value_heads];
    let mut tensors: Vec<NewTensor<'_, ConvertError>> = Vec::new();
    if let Some(factors) = rope_factors(&config) {
        tensors.push(NewTensor {
            name: ROPE_FACTORS.to_owned(),
            shape: vec![factors.len()],
            kind: BlockType::F32,
            numbers: Box::new(move || Ok(factors)),
        });
    }
    for tensor in config.family.file_tensors(&config) {
        let (name, files) = (tensor.name, &files);
        let Some(in_gguf) = architecture.gguf_name(&name) else {
            let reason = format!("has {name}, which has no name in GGUF");
            return Err(GgufError::refused(from, reason).into());
        };
        let rows = tensor.shape[0];
        let is_matrix = tensor.shape.len() > 1;
        tensors.push(NewTensor {
            name: in_gguf,
            shape: tensor.shape,
            kind: if is_matrix { kind } else { BlockType::F32 },
            numbers: Box::new(move || {
                let mut numbers = files.read_f32(&name)?;
                if let Some(heads) = architecture.reordered(&name, heads) {
                    numbers = to_pairs(&numbers, heads, rows);
                }
                let shift = architecture.shift(&name);
                if shift != 0.0 {
                    numbers.iter_mut().for_each(|number| *number += shift);
                }
                Ok(numbers)
            }),
        });
    }
    gguf::write(out, &values, tensors)
}

/// As what a model is written.
fn architecture(config: &LlamaConfig, from: &Path) -> Result<&'static Architecture, GgufError> {
    let model_type = config.family.model_type();
    let found = Architecture::of_model_type(model_type);
    let Some(architecture) = found else {
        let reason = format!("is a {model_type}, a family that is not written to GGUF here");
        return Err(GgufError::refused(from, reason));
    };
    let (heads, size, width) = (
        config.num_attention_heads,
        config.head_dim,
        config.hidden_size,
    );
    if heads * size == width || !architecture.needs_whole_width {
        return Ok(architecture);
    }
    // A Llama with biases of query, key and value computes what a Qwen2 does.
    let as_llama = Architecture::named("llama").filter(|_| config.family == Family::Qwen2);
    as_llama.ok_or_else(|| {
        let reason = format!(
            "has {heads} query heads of {size} features, and llama.cpp opens a {} only if they are as wide as the \
             model, {width}: make a student with heads of such a size",
            architecture.name
        );
        GgufError::refused(from, reason)
    })
}

/// The tokenizer as a file has it, which must make the same tokens of any text.
fn vocabulary(from: &Path, config: &LlamaConfig) -> Result<Vocabulary, ConvertError> {
    let tokenizer = Tokenizer::from_dir(from, config.bos_token_id, &config.eos_token_ids)?;
    let tokenizer = tokenizer.for_model(config.vocab_size)?;
    let file = tokenizer.file();
    let json = tokenizer.to_json()?;
    let id = |id: u32| id as usize;
    let token = |content: Option<&str>| content.and_then(|it| tokenizer.token_id(it)).map(id);
    let padding = config
        .source
        .fields
        .get("pad_token_id")
        .and_then(Value::as_u64);
    let special = Special {
        bos: tokenizer.bos_id().map(id),
        ends: tokenizer.eos_ids().iter().copied().map(id).collect(),
        unknown: token(json["model"]["unk_token"].as_str()),
        padding: padding
            .and_then(|id| usize::try_from(id).ok())
            .filter(|id| *id < config.vocab_size),
    };
    let adds = tokenizer.adds()?;
    let template = tokenizer.chat().map(|chat| chat.text().to_owned());
    let vocabulary = Vocabulary::of_json(&json, file, config.vocab_size, special, adds, template)?;
    let written = Tokenizer::from_vocabulary(&vocabulary, file)?;
    for probe in PROBES {
        let both = [&tokenizer, &written].map(|it| it.encode_prompt(probe));
        let [theirs, ours] = both;
        if theirs? != ours? {
            let reason = format!(
                "makes other tokens of {probe:?} than the form of it that GGUF has: use llama.cpp's \
                 convert_hf_to_gguf.py"
            );
            return Err(GgufError::refused(file, reason).into());
        }
    }
    Ok(vocabulary)
}

/// What each pair of a head is divided by, where that is Llama 3's; no key says it.
fn rope_factors(config: &LlamaConfig) -> Option<Vec<f32>> {
    let rope = &config.rope;
    let RopeScaling::Llama3 { .. } = rope.scaling else {
        return None;
    };
    let mut plain = rope.clone();
    plain.scaling = RopeScaling::Default;
    let [plain, scaled] = [&plain, rope].map(|rope| rope.frequencies(config.head_dim));
    Some(
        plain
            .iter()
            .zip(scaled)
            .map(|(plain, scaled)| (plain / scaled) as f32)
            .collect(),
    )
}

#[cfg(test)]
mod tests;
