//! The weights of a Hugging Face folder: `model.safetensors`, whole or in shards; or those of a GGUF file, under the
//! names that they have in a folder.
//!
//! Everything that can be wrong with a file is found by [`WeightFiles::open`] and
//! [`WeightFiles::check`], from the headers alone: before a tensor is read or room for one is
//! asked for.

mod error;
mod write;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use burn_lti::files::{
    GIT_LFS_POINTER, HeaderError, is_git_lfs_pointer, read_at_most, safetensors_header,
};
use memmap2::Mmap;
use safetensors::tensor::{self, Metadata};
use serde::Deserialize;

pub use error::WeightsError;
pub use write::{NewTensor, write_weights, write_weights_to_folder};

use super::WeightType;
use crate::gguf::{BlockType, Gguf, is_gguf};
use error::ShapeMismatch;

/// The file of a model that is not cut into shards.
pub(super) const WEIGHTS: &str = "model.safetensors";
/// The file that says in which shard each tensor is.
pub(super) const WEIGHTS_INDEX: &str = "model.safetensors.index.json";

/// Old checkpoints carry this buffer, which every reader computes for itself.
const IGNORED_SUFFIX: &str = "rotary_emb.inv_freq";
/// The longest header that is read: many times that of any model. (The format allows 100 MB.)
const MAX_HEADER: u64 = 16 << 20;
/// The longest index of shards.
const MAX_INDEX: u64 = 64 << 20;
/// What a file's header says of a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Its shape.
    pub shape: Vec<usize>,
    /// The type of its numbers in the file; of quantized ones that to which they are read.
    pub dtype: WeightType,
}

/// The weights of a folder, opened and checked but not read.
///
/// The files are mapped into memory: who changes them in place meanwhile changes the weights, and
/// who cuts them off ends the program. [`write_weights`] does neither, it replaces files.
#[derive(Debug)]
pub struct WeightFiles {
    folder: PathBuf,
    shards: Vec<Shard>,
    /// In the place of the shards.
    gguf: Option<Gguf>,
    tensors: BTreeMap<String, Entry>,
}

/// A tensor of a shard, or of a GGUF file.
#[derive(Debug)]
struct Entry {
    /// Its shard, or which tensor of the GGUF file it is.
    shard: usize,
    info: TensorInfo,
    bytes: Range<usize>,
}

/// One safetensors file.
#[derive(Debug)]
struct Shard {
    file: PathBuf,
    map: Mmap,
    metadata: Metadata,
}

/// What we need of `model.safetensors.index.json`.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl WeightFiles {
    /// Opens `model.safetensors` or, where there is none, the shards that
    /// `model.safetensors.index.json` names; or the GGUF file that `dir` is.
    ///
    /// # Errors
    ///
    /// - [`WeightsError::Missing`]: the folder has neither.
    /// - [`WeightsError::Read`]: a file cannot be read, a shard is missing.
    /// - [`WeightsError::Broken`]: a file is cut off or no safetensors file, or the index does not fit
    ///   the shards.
    /// - [`WeightsError::Tensor`]: a tensor is in two shards, or neither F32 nor F16 nor BF16.
    /// - [`WeightsError::Gguf`]: the GGUF file cannot be read.
    pub fn open(dir: &Path) -> Result<Self, WeightsError> {
        let (single, index) = (dir.join(WEIGHTS), dir.join(WEIGHTS_INDEX));
        let mut files = Self {
            folder: dir.to_owned(),
            shards: Vec::new(),
            gguf: None,
            tensors: BTreeMap::new(),
        };
        if is_gguf(dir) {
            files.add_gguf(Gguf::open(dir)?);
        } else if single.exists() {
            files.add(single)?;
        } else if index.exists() {
            files.add_indexed(&index)?;
        } else {
            return Err(missing(dir));
        }
        Ok(files)
    }

    /// The names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// All tensors by name, sorted, with shape and type.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &TensorInfo)> {
        let entries = self.tensors.iter();
        entries.map(|(name, entry)| (name.as_str(), &entry.info))
    }

    /// Shape and type of a tensor, if there is one of this name.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name).map(|entry| &entry.info)
    }

    /// The type of most of the numbers.
    pub fn dtype(&self) -> WeightType {
        let numbers = |dtype: &WeightType| -> usize {
            let of_type = self
                .tensors
                .values()
                .filter(|entry| entry.info.dtype == *dtype);
            of_type
                .map(|entry| entry.info.shape.iter().product::<usize>())
                .sum()
        };
        WeightType::ALL
            .into_iter()
            .max_by_key(numbers)
            .unwrap_or_default()
    }

    /// The bytes of a tensor as the file holds them: little-endian numbers of its type, the last
    /// axis running fastest.
    ///
    /// # Errors
    ///
    /// [`WeightsError::NoTensor`]: there is none of this name.
    pub fn read_bytes(&self, name: &str) -> Result<&[u8], WeightsError> {
        self.entry(name).map(|entry| self.bytes(entry))
    }

    /// How the numbers of a tensor lie in the file: their type, or that of their blocks.
    pub fn stored_as(&self, name: &str) -> Result<&'static str, WeightsError> {
        let entry = self.entry(name)?;
        Ok(
            match self
                .gguf
                .as_ref()
                .map(|gguf| gguf.tensors()[entry.shard].kind)
            {
                Some(kind) if weight_type(kind).is_none() => kind.name(),
                _ => entry.info.dtype.name(),
            },
        )
    }

    /// The values of a tensor, the last axis running fastest.
    ///
    /// # Errors
    ///
    /// [`WeightsError::NoTensor`]: there is none of this name; [`WeightsError::Tensor`]: it holds infinity or
    /// no number at all.
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>, WeightsError> {
        let entry = self.entry(name)?;
        let (file, values) = match &self.gguf {
            Some(gguf) => (&self.folder, gguf.read(&gguf.tensors()[entry.shard])),
            None => {
                let values = entry.info.dtype.to_f32(self.bytes(entry));
                (&self.shards[entry.shard].file, values)
            }
        };
        check_finite(file, name, &values)?;
        Ok(values)
    }

    /// Checks that the folder holds the tensors of a model, given by name and shape: all of them,
    /// in their shapes, and no others.
    ///
    /// The names in `tied` may be absent, as `lm_head.weight` is where the head is the embedding.
    ///
    /// # Errors
    ///
    /// [`WeightsError::Mismatch`], with everything that does not fit.
    pub fn check(
        &self,
        expected: &[(String, Vec<usize>)],
        tied: &[&str],
    ) -> Result<(), WeightsError> {
        let (mut missing, mut shapes) = (Vec::new(), Vec::new());
        let mut known: BTreeSet<&str> = tied.iter().copied().collect();
        for (tensor, expected) in expected {
            match self.info(tensor) {
                None if tied.contains(&tensor.as_str()) => {}
                None => missing.push(tensor.clone()),
                Some(info) if info.shape == *expected => {}
                Some(info) => shapes.push(ShapeMismatch {
                    tensor: tensor.clone(),
                    found: info.shape.clone(),
                    expected: expected.clone(),
                }),
            }
            known.insert(tensor);
        }
        let unused = self.names().filter(|name| !known.contains(name));
        let unused: Vec<String> = unused.map(String::from).collect();
        if missing.is_empty() && unused.is_empty() && shapes.is_empty() {
            return Ok(());
        }
        Err(WeightsError::Mismatch {
            folder: self.folder.clone(),
            missing,
            unused,
            shapes,
        })
    }

    fn entry(&self, name: &str) -> Result<&Entry, WeightsError> {
        self.tensors
            .get(name)
            .ok_or_else(|| WeightsError::NoTensor {
                folder: self.folder.clone(),
                tensor: name.to_owned(),
            })
    }

    fn bytes(&self, entry: &Entry) -> &[u8] {
        match &self.gguf {
            Some(gguf) => gguf.bytes(&gguf.tensors()[entry.shard]),
            None => &self.shards[entry.shard].map[entry.bytes.clone()],
        }
    }

    fn add_gguf(&mut self, gguf: Gguf) {
        for (index, tensor) in gguf.tensors().iter().enumerate() {
            let entry = Entry {
                shard: index,
                info: TensorInfo {
                    shape: tensor.shape.clone(),
                    dtype: weight_type(tensor.kind).unwrap_or(WeightType::F32),
                },
                bytes: 0..0,
            };
            self.tensors.insert(tensor.name.clone(), entry);
        }
        self.gguf = Some(gguf);
    }

    fn add_indexed(&mut self, file: &Path) -> Result<(), WeightsError> {
        let bytes = read_at_most(file, MAX_INDEX).map_err(reading(file))?;
        let index: Index =
            serde_json::from_slice(&bytes).map_err(|source| WeightsError::Broken {
                file: file.to_owned(),
                reason: "is not an index of safetensors shards: download or save it again".into(),
                source: Some(source),
            })?;
        for shard in index.weight_map.values().collect::<BTreeSet<_>>() {
            if Path::new(shard).file_name() != Some(shard.as_ref()) {
                let reason = format!(
                    "names the shard {shard:?}: a shard has to lie in the index's own folder"
                );
                return Err(WeightsError::broken(file, reason));
            }
            self.add(self.folder.join(shard))?;
        }
        self.check_index(index)
    }

    /// Checks that every tensor of the index is where the index says.
    fn check_index(&self, index: Index) -> Result<(), WeightsError> {
        for (tensor, shard) in index.weight_map {
            let file = self.folder.join(shard);
            let found = self.tensors.get(&tensor).map(|entry| entry.shard);
            let ignored = tensor.ends_with(IGNORED_SUFFIX);
            if !ignored && found.is_none_or(|found| self.shards[found].file != file) {
                let reason = format!(
                    "should hold {tensor}, says the index, and does not: download or save it again"
                );
                return Err(WeightsError::broken(&file, reason));
            }
        }
        Ok(())
    }

    fn add(&mut self, file: PathBuf) -> Result<(), WeightsError> {
        let shard = Shard::open(file)?;
        for (tensor, info) in shard.metadata.tensors() {
            if tensor.ends_with(IGNORED_SUFFIX) {
                continue;
            }
            if let Some(other) = self.tensors.get(&tensor) {
                let [first, second] = [&self.shards[other.shard], &shard].map(|s| s.file.display());
                let reason = format!("is in {first} and in {second}: remove one of them");
                return Err(WeightsError::tensor(&tensor, reason));
            }
            let entry = shard.entry(&tensor, info, self.shards.len())?;
            self.tensors.insert(tensor, entry);
        }
        self.shards.push(shard);
        Ok(())
    }
}

impl Shard {
    fn open(file: PathBuf) -> Result<Self, WeightsError> {
        let opened = File::open(&file).map_err(reading(&file))?;
        // SAFETY: the map is only read. That nobody changes a file of weights in place while it
        // is in use cannot be ensured from here; `WeightFiles` says so.
        let map = unsafe { Mmap::map(&opened) }.map_err(reading(&file))?;
        let metadata = parse_header(&file, &map)?;
        Ok(Self {
            file,
            map,
            metadata,
        })
    }

    fn entry(
        &self,
        tensor: &str,
        info: &tensor::TensorInfo,
        shard: usize,
    ) -> Result<Entry, WeightsError> {
        let dtype = WeightType::new(info.dtype).ok_or_else(|| {
            let reason = format!(
                "in {} is {:?}, which is not supported: save the model in F32, F16 or BF16",
                self.file.display(),
                info.dtype
            );
            WeightsError::tensor(tensor, reason)
        })?;
        // The tensors follow the header, up to the end of the file: `parse_header` has checked it.
        let start = self.map.len() - self.metadata.data_len();
        let (from, to) = info.data_offsets;
        Ok(Entry {
            shard,
            info: TensorInfo {
                shape: info.shape.clone(),
                dtype,
            },
            bytes: start + from..start + to,
        })
    }
}

/// The type of numbers that are not quantized.
const fn weight_type(kind: BlockType) -> Option<WeightType> {
    match kind {
        BlockType::F32 => Some(WeightType::F32),
        BlockType::F16 => Some(WeightType::F16),
        BlockType::Bf16 => Some(WeightType::Bf16),
        _ => None,
    }
}

/// What a folder without weights in safetensors holds instead, if that is known.
fn missing(dir: &Path) -> WeightsError {
    let has = |wanted: &dyn Fn(&str) -> bool| {
        let names = dir.read_dir().into_iter().flatten().flatten();
        let mut names = names.filter_map(|entry| entry.file_name().into_string().ok());
        names.any(|name| wanted(&name))
    };
    if has(&|name| name.starts_with("pytorch_model") || name.ends_with(".pth")) {
        let reason = "holds weights in PyTorch's format alone, which runs code when it is read: load them with \
                      transformers, and save them with `save_pretrained`";
        return WeightsError::broken(dir, reason);
    }
    if has(&|name| name.ends_with(".gguf")) {
        let reason = "holds GGUF and no safetensors: give the path of the .gguf file itself";
        return WeightsError::broken(dir, reason);
    }
    WeightsError::Missing { folder: dir.into() }
}

fn parse_header(file: &Path, bytes: &[u8]) -> Result<Metadata, WeightsError> {
    if is_git_lfs_pointer(bytes) {
        return Err(WeightsError::broken(file, GIT_LFS_POINTER));
    }
    safetensors_header(bytes, MAX_HEADER).map_err(|error| match error {
        HeaderError::Length { length } => WeightsError::broken(
            file,
            format!(
                "claims a header of {length} bytes, more than {MAX_HEADER}: no safetensors file"
            ),
        ),
        HeaderError::Json(source) => WeightsError::Broken {
            file: file.to_owned(),
            reason: "has a broken header: download or save it again".into(),
            source: Some(source),
        },
        HeaderError::Size { expected, found } => WeightsError::broken(
            file,
            format!("should have {expected} bytes and has {found}: download or save it again"),
        ),
    })
}

fn reading(file: &Path) -> impl FnOnce(io::Error) -> WeightsError + '_ {
    move |source| WeightsError::Read {
        file: file.to_owned(),
        source,
    }
}

/// A model with one such number computes nothing but more of them.
fn check_finite(file: &Path, tensor: &str, values: &[f32]) -> Result<(), WeightsError> {
    match values.iter().find(|value| !value.is_finite()) {
        None => Ok(()),
        Some(value) => Err(WeightsError::tensor(
            tensor,
            format!(
                "of {} holds {value}: the model diverged, or the file is damaged",
                file.display()
            ),
        )),
    }
}

#[cfg(test)]
mod tests;
