//! The weights of a Hugging Face folder: `model.safetensors`, whole or in shards.
//!
//! Everything that can be wrong with a file is found by [`WeightFiles::open`] and
//! [`WeightFiles::check`], from the headers alone: before a tensor is read or room for one is
//! asked for.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hasher};
use std::io::{self, BufWriter, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use burn::tensor::DType;
use burn_lti::files::{self, FileError, HeaderError, LENGTH_BYTES, safetensors_header};
use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::tensor::{self, Dtype, Metadata, SafeTensorError};
use serde::{Deserialize, Serialize};

/// The file of a model that is not cut into shards.
pub(super) const WEIGHTS: &str = "model.safetensors";
/// The file that says in which shard each tensor is.
pub(super) const WEIGHTS_INDEX: &str = "model.safetensors.index.json";

/// Old checkpoints carry this buffer, which every reader computes for itself.
const IGNORED_SUFFIX: &str = "rotary_emb.inv_freq";
/// The longest header that the format allows.
const MAX_HEADER: u64 = 100_000_000;
/// How many names an error lists.
const LISTED: usize = 10;

/// Why weights could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WeightsError {
    /// The folder has no weights in the safetensors format.
    #[error(
        "neither {WEIGHTS} nor {WEIGHTS_INDEX} in {folder}: save the model there with \
         transformers' `save_pretrained`"
    )]
    Missing {
        /// The folder.
        folder: PathBuf,
    },
    /// A file cannot be read.
    #[error("cannot read {file}")]
    Read {
        /// The file.
        file: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is shorter or longer than it says.
    #[error("{file} should have {expected} bytes and has {found}: download or save it again")]
    Size {
        /// The file.
        file: PathBuf,
        /// The least size that fits what the file says of itself.
        expected: u64,
        /// The size it has.
        found: u64,
    },
    /// The header is longer than the format allows.
    #[error(
        "{file} claims a header of {length} bytes, more than {MAX_HEADER}: no safetensors file"
    )]
    HeaderLength {
        /// The file.
        file: PathBuf,
        /// The length it claims.
        length: u64,
    },
    /// The header is not that of a safetensors file, or its tensors overlap, leave gaps or do not
    /// have the size of their shapes.
    #[error("{file} has a broken header: download or save it again")]
    Header {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The index of a sharded model is broken.
    #[error("{file} is not an index of safetensors shards: download or save it again")]
    Index {
        /// The index.
        file: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The index names a shard outside its folder.
    #[error("{file} names the shard {shard:?}: a shard has to lie in the index's own folder")]
    ShardName {
        /// The index.
        file: PathBuf,
        /// The name.
        shard: String,
    },
    /// The index names a tensor that is not in the shard it names.
    #[error("{file} should hold {tensor}, says the index, and does not: download or save it again")]
    NotInShard {
        /// The shard.
        file: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// Two shards hold the same tensor.
    #[error("{tensor} is in {first} and in {second}: remove one of them")]
    TwoShards {
        /// The tensor.
        tensor: String,
        /// A shard that holds it.
        first: PathBuf,
        /// Another one.
        second: PathBuf,
    },
    /// A tensor's numbers are of a type that we do not read.
    #[error(
        "{tensor} in {file} is {found}, which is not supported: save the model in F32, F16 or BF16"
    )]
    DataType {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// The type, as the file names it.
        found: String,
    },
    /// A tensor holds infinity or no number at all.
    #[error("{tensor} of {file} holds {value}: the model diverged, or the file is damaged")]
    NotFinite {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// The first such value.
        value: f32,
    },
    /// The values of a tensor to be written cannot be had.
    #[error("`{tensor}` cannot be read from the device: {detail}")]
    Device {
        /// The tensor.
        tensor: String,
        /// What the backend says.
        detail: String,
    },
    /// The head of a tied model is written a second time, and differs.
    #[error(
        "{folder} says tie_word_embeddings, but its lm_head.weight is not its embedding: set \
         tie_word_embeddings to false in config.json if the head is its own"
    )]
    TiedHead {
        /// The folder.
        folder: PathBuf,
    },
    /// There is no tensor of this name.
    #[error("no tensor {tensor} in {folder}")]
    NoTensor {
        /// The folder.
        folder: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// The tensors are not those of the model.
    #[error(
        "the weights in {folder} do not fit the model of its config.json{}{}{}",
        Listed("\n  missing", missing),
        Listed("\n  unused", unused),
        Listed("\n  of another shape", shapes)
    )]
    Mismatch {
        /// The folder.
        folder: PathBuf,
        /// Tensors that the model has and the folder lacks.
        missing: Vec<String>,
        /// Tensors that the folder has and the model lacks.
        unused: Vec<String>,
        /// Tensors that both have, in different shapes.
        shapes: Vec<ShapeMismatch>,
    },
    /// A tensor to be written has not as many values as its shape.
    #[error("{tensor} of shape {shape:?} was given {values} values to write")]
    Values {
        /// The tensor.
        tensor: String,
        /// Its shape.
        shape: Vec<usize>,
        /// The number of values given.
        values: usize,
    },
    /// Two tensors to be written have the same name.
    #[error("two tensors to be written are called {tensor}")]
    SameName {
        /// The name.
        tensor: String,
    },
    /// The tensors to be written do not fit the format.
    #[error("the tensors for {file} cannot be laid out")]
    Layout {
        /// The file that was to be written.
        file: PathBuf,
        /// What is wrong with them.
        source: SafeTensorError,
    },
    /// The file cannot be written or does not read back as it was written.
    #[error(transparent)]
    Write(#[from] FileError),
}

/// A tensor whose shape in the folder is not that in the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShapeMismatch {
    /// The tensor.
    pub tensor: String,
    /// Its shape in the folder.
    pub found: Vec<usize>,
    /// Its shape in the model.
    pub expected: Vec<usize>,
}

impl fmt::Display for ShapeMismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            tensor,
            found,
            expected,
        } = self;
        write!(f, "{tensor} (is {found:?}, should be {expected:?})")
    }
}

/// A heading and the first few of some items; nothing at all if there is no item.
struct Listed<'a, T>(&'static str, &'a [T]);

impl<T: fmt::Display> fmt::Display for Listed<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(heading, items) = self;
        let mut separator = ": ";
        for item in items.iter().take(LISTED) {
            if separator == ": " {
                f.write_str(heading)?;
            }
            write!(f, "{separator}{item}")?;
            separator = ", ";
        }
        match items.len().saturating_sub(LISTED) {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

/// The float types that weights are read, held and written in, under the names of `config.json`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum WeightType {
    /// `float32`.
    #[default]
    #[serde(rename = "float32")]
    F32,
    /// `float16`: IEEE half precision, up to 65504.
    #[serde(rename = "float16")]
    F16,
    /// `bfloat16`: the upper half of float32, with its range and 8 bits of its precision.
    #[serde(rename = "bfloat16")]
    Bf16,
}

impl WeightType {
    fn new(dtype: Dtype) -> Option<Self> {
        match dtype {
            Dtype::F32 => Some(Self::F32),
            Dtype::F16 => Some(Self::F16),
            Dtype::BF16 => Some(Self::Bf16),
            _ => None,
        }
    }

    /// All of them.
    pub const ALL: [Self; 3] = [Self::F32, Self::F16, Self::Bf16];

    /// The name, as in `config.json`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::F16 => "float16",
            Self::Bf16 => "bfloat16",
        }
    }

    /// Bytes of one number.
    pub const fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// The type as Burn knows it.
    pub const fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::F16 => DType::F16,
            Self::Bf16 => DType::BF16,
        }
    }

    const fn in_file(self) -> Dtype {
        match self {
            Self::F32 => Dtype::F32,
            Self::F16 => Dtype::F16,
            Self::Bf16 => Dtype::BF16,
        }
    }

    /// Little-endian numbers of this type, each the nearest.
    fn to_bytes(self, values: &[f32]) -> Vec<u8> {
        let values = values.iter().copied();
        match self {
            Self::F32 => values.flat_map(f32::to_le_bytes).collect(),
            Self::F16 => values
                .flat_map(|value| f16::from_f32(value).to_le_bytes())
                .collect(),
            Self::Bf16 => values
                .flat_map(|value| bf16::from_f32(value).to_le_bytes())
                .collect(),
        }
    }

    /// Little-endian numbers of this type as `f32`; each of the casts is exact.
    fn to_f32(self, bytes: &[u8]) -> Vec<f32> {
        match self {
            Self::F32 => cast(bytes, f32::from_le_bytes),
            Self::F16 => cast(bytes, |number| f16::from_le_bytes(number).to_f32()),
            Self::Bf16 => cast(bytes, |number| bf16::from_le_bytes(number).to_f32()),
        }
    }
}

impl fmt::Display for WeightType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

fn cast<const SIZE: usize>(bytes: &[u8], number: impl Fn([u8; SIZE]) -> f32) -> Vec<f32> {
    let (numbers, _) = bytes.as_chunks();
    numbers.iter().copied().map(number).collect()
}

/// What a file's header says of a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Its shape.
    pub shape: Vec<usize>,
    /// The type of its numbers in the file.
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
    tensors: BTreeMap<String, Entry>,
}

/// A tensor of a shard.
#[derive(Debug)]
struct Entry {
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
    /// `model.safetensors.index.json` names.
    ///
    /// # Errors
    ///
    /// - [`WeightsError::Missing`]: the folder has neither.
    /// - [`WeightsError::Read`]: a file cannot be read, a shard is missing.
    /// - [`WeightsError::Size`], [`WeightsError::HeaderLength`], [`WeightsError::Header`]: a file
    ///   is cut off or no safetensors file.
    /// - [`WeightsError::Index`], [`WeightsError::ShardName`], [`WeightsError::NotInShard`],
    ///   [`WeightsError::TwoShards`]: the index is broken or does not fit the shards.
    /// - [`WeightsError::DataType`]: a tensor is neither F32 nor F16 nor BF16.
    pub fn open(dir: &Path) -> Result<Self, WeightsError> {
        let (single, index) = (dir.join(WEIGHTS), dir.join(WEIGHTS_INDEX));
        let mut files = Self {
            folder: dir.to_owned(),
            shards: Vec::new(),
            tensors: BTreeMap::new(),
        };
        if single.exists() {
            files.add(single)?;
        } else if index.exists() {
            files.add_indexed(&index)?;
        } else {
            return Err(WeightsError::Missing { folder: dir.into() });
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

    /// The bytes of a tensor as the file holds them: little-endian numbers of its type, the last
    /// axis running fastest.
    ///
    /// # Errors
    ///
    /// [`WeightsError::NoTensor`]: there is none of this name.
    pub fn read_bytes(&self, name: &str) -> Result<&[u8], WeightsError> {
        self.entry(name).map(|entry| self.bytes(entry))
    }

    /// The values of a tensor, the last axis running fastest.
    ///
    /// # Errors
    ///
    /// [`WeightsError::NoTensor`]: there is none of this name; [`WeightsError::NotFinite`].
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>, WeightsError> {
        let entry = self.entry(name)?;
        let values = entry.info.dtype.to_f32(self.bytes(entry));
        check_finite(&self.shards[entry.shard].file, name, &values)?;
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
        &self.shards[entry.shard].map[entry.bytes.clone()]
    }

    fn add_indexed(&mut self, file: &Path) -> Result<(), WeightsError> {
        let bytes = fs::read(file).map_err(reading(file))?;
        let index: Index =
            serde_json::from_slice(&bytes).map_err(|source| WeightsError::Index {
                file: file.to_owned(),
                source,
            })?;
        for shard in index.weight_map.values().collect::<BTreeSet<_>>() {
            if Path::new(shard).file_name() != Some(shard.as_ref()) {
                return Err(WeightsError::ShardName {
                    file: file.to_owned(),
                    shard: shard.clone(),
                });
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
                return Err(WeightsError::NotInShard { file, tensor });
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
                return Err(WeightsError::TwoShards {
                    tensor,
                    first: self.shards[other.shard].file.clone(),
                    second: shard.file,
                });
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
        let dtype = WeightType::new(info.dtype).ok_or_else(|| WeightsError::DataType {
            file: self.file.clone(),
            tensor: tensor.to_owned(),
            found: format!("{:?}", info.dtype),
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

fn parse_header(file: &Path, bytes: &[u8]) -> Result<Metadata, WeightsError> {
    let file = || file.to_owned();
    safetensors_header(bytes, MAX_HEADER).map_err(|error| match error {
        HeaderError::Length { length } => WeightsError::HeaderLength {
            file: file(),
            length,
        },
        HeaderError::Json(source) => WeightsError::Header {
            file: file(),
            source,
        },
        HeaderError::Size { expected, found } => WeightsError::Size {
            file: file(),
            expected,
            found,
        },
    })
}

fn reading(file: &Path) -> impl FnOnce(io::Error) -> WeightsError + '_ {
    move |source| WeightsError::Read {
        file: file.to_owned(),
        source,
    }
}

/// A tensor to be written.
pub struct NewTensor<'a> {
    name: String,
    shape: Vec<usize>,
    values: Box<dyn FnOnce() -> Result<Vec<f32>, WeightsError> + 'a>,
}

impl<'a> NewTensor<'a> {
    /// A tensor whose values, the last axis running fastest, are asked for when its turn comes:
    /// no more than one tensor at a time has to be in memory.
    pub fn new(
        name: impl Into<String>,
        shape: impl Into<Vec<usize>>,
        values: impl FnOnce() -> Result<Vec<f32>, WeightsError> + 'a,
    ) -> Self {
        Self {
            name: name.into(),
            shape: shape.into(),
            values: Box::new(values),
        }
    }
}

/// Writes tensors as a safetensors file of this float type, in the order of their names, and reads it
/// back. A number that becomes infinite in this type is refused like one that is infinite.
///
/// # Errors
///
/// - [`WeightsError::SameName`], [`WeightsError::Values`], [`WeightsError::NotFinite`],
///   [`WeightsError::Device`], [`WeightsError::Layout`]: the tensors are no contents of such a
///   file; what was at `path` is untouched.
/// - [`WeightsError::Write`]: the file could not be written ([`FileError::Write`], what was at
///   `path` is untouched) or is not as it was written ([`FileError::ReadBack`]).
/// - [`WeightsError::Read`], [`WeightsError::Size`], [`WeightsError::HeaderLength`],
///   [`WeightsError::Header`]: the new file cannot be read back at all.
pub fn write_weights<'a>(
    path: &Path,
    dtype: WeightType,
    tensors: impl IntoIterator<Item = NewTensor<'a>>,
) -> Result<(), WeightsError> {
    let mut sorted = BTreeMap::new();
    for tensor in tensors {
        if let Some(same) = sorted.insert(tensor.name.clone(), tensor) {
            return Err(WeightsError::SameName { tensor: same.name });
        }
    }
    let metadata = lay_out(dtype, sorted.values()).map_err(|source| WeightsError::Layout {
        file: path.to_owned(),
        source,
    })?;
    let mut written = BTreeMap::new();
    files::replace(path, |file| {
        write_header(file, &metadata).map_err(FileError::writing(path))?;
        for (name, tensor) in sorted {
            written.insert(name, write_tensor(path, dtype, file, tensor)?);
        }
        Ok::<_, WeightsError>(())
    })?;
    read_back(path, &written)
}

/// What has to be found where a tensor was written.
#[derive(PartialEq, Eq)]
struct Print {
    shape: Vec<usize>,
    hash: u64,
}

fn lay_out<'a: 'b, 'b>(
    dtype: WeightType,
    tensors: impl Iterator<Item = &'b NewTensor<'a>>,
) -> Result<Metadata, SafeTensorError> {
    let mut start = 0_usize;
    let infos = tensors.map(|tensor| {
        // Sizes that overflow stay at the greatest number, which the library then refuses.
        let size = tensor.shape.iter().copied();
        let size = size.fold(dtype.size(), usize::saturating_mul);
        let end = start.saturating_add(size);
        let info = tensor::TensorInfo {
            dtype: dtype.in_file(),
            shape: tensor.shape.clone(),
            data_offsets: (start, end),
        };
        start = end;
        (tensor.name.clone(), info)
    });
    // transformers reads only files that name a framework.
    let format = HashMap::from([("format".into(), "pt".into())]);
    Metadata::new(Some(format), infos.collect())
}

fn write_header(file: &mut BufWriter<&File>, metadata: &Metadata) -> io::Result<()> {
    let mut header = serde_json::to_string(metadata)?;
    let padding = header.len().next_multiple_of(LENGTH_BYTES) - header.len();
    header.extend(std::iter::repeat_n(' ', padding));
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(header.as_bytes())
}

/// A model with one such number computes nothing but more of them.
fn check_finite(file: &Path, tensor: &str, values: &[f32]) -> Result<(), WeightsError> {
    match values.iter().find(|value| !value.is_finite()) {
        None => Ok(()),
        Some(value) => Err(WeightsError::NotFinite {
            file: file.to_owned(),
            tensor: tensor.to_owned(),
            value: *value,
        }),
    }
}

fn write_tensor(
    path: &Path,
    dtype: WeightType,
    file: &mut BufWriter<&File>,
    tensor: NewTensor<'_>,
) -> Result<Print, WeightsError> {
    let NewTensor {
        name,
        shape,
        values,
    } = tensor;
    let values = values()?;
    let bytes = dtype.to_bytes(&values);
    check_finite(path, &name, &dtype.to_f32(&bytes))?;
    if values.len() != shape.iter().product::<usize>() {
        return Err(WeightsError::Values {
            tensor: name,
            shape,
            values: values.len(),
        });
    }
    file.write_all(&bytes).map_err(FileError::writing(path))?;
    let hash = hash(&bytes);
    Ok(Print { shape, hash })
}

fn read_back(path: &Path, written: &BTreeMap<String, Print>) -> Result<(), WeightsError> {
    let shard = Shard::open(path.to_owned())?;
    let found: Result<BTreeMap<_, _>, WeightsError> = shard
        .metadata
        .tensors()
        .into_iter()
        .map(|(name, info)| {
            let Entry { info, bytes, .. } = shard.entry(&name, info, 0)?;
            let hash = hash(&shard.map[bytes]);
            let shape = info.shape;
            Ok((name, Print { shape, hash }))
        })
        .collect();
    match found? == *written {
        true => Ok(()),
        false => Err(FileError::ReadBack { file: path.into() }.into()),
    }
}

fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use tempfile::TempDir;

    use super::*;

    fn folder() -> TempDir {
        tempfile::tempdir().unwrap()
    }

    /// A file of this header, followed by `size` zeros.
    fn raw(path: &Path, header: &str, size: usize) {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.resize(bytes.len() + size, 0);
        fs::write(path, bytes).unwrap();
    }

    fn open_raw(header: &Value, size: usize) -> Result<WeightFiles, WeightsError> {
        let folder = folder();
        raw(&folder.path().join(WEIGHTS), &header.to_string(), size);
        WeightFiles::open(folder.path())
    }

    fn tensor(name: &str, shape: &[usize]) -> NewTensor<'static> {
        let size = shape.iter().product::<usize>();
        NewTensor::new(name, shape, move || {
            Ok((0..size).map(|n| n as f32 + 0.5).collect())
        })
    }

    /// A folder with two shards, `a` in the first and `b` in the second, and this index.
    fn sharded(weight_map: &Value) -> TempDir {
        let folder = folder();
        for (shard, name) in [("1.safetensors", "a"), ("2.safetensors", "b")] {
            write_weights(
                &folder.path().join(shard),
                WeightType::F32,
                [tensor(name, &[2])],
            )
            .unwrap();
        }
        let index = json!({"metadata": {"total_size": 16}, "weight_map": weight_map});
        fs::write(folder.path().join(WEIGHTS_INDEX), index.to_string()).unwrap();
        folder
    }

    fn open_sharded(weight_map: Value) -> Result<WeightFiles, WeightsError> {
        WeightFiles::open(sharded(&weight_map).path())
    }

    #[test]
    fn what_is_written_is_read() {
        let folder = folder();
        let tensors = [
            NewTensor::new("b", [2, 2], || Ok(vec![1.0, -2.5, f32::MIN_POSITIVE, 1e30])),
            tensor("a", &[3]),
            tensor("empty", &[0, 4]),
            tensor("scalar", &[]),
        ];
        write_weights(&folder.path().join(WEIGHTS), WeightType::F32, tensors).unwrap();

        let files = WeightFiles::open(folder.path()).unwrap();
        assert_eq!(
            files.names().collect::<Vec<_>>(),
            ["a", "b", "empty", "scalar"]
        );
        let info = files.info("b").unwrap();
        assert_eq!(
            (&info.shape[..], info.dtype),
            (&[2, 2][..], WeightType::F32)
        );
        assert_eq!(files.read_f32("a").unwrap(), [0.5, 1.5, 2.5]);
        assert_eq!(
            files.read_f32("b").unwrap(),
            [1.0, -2.5, f32::MIN_POSITIVE, 1e30]
        );
        assert!(files.read_f32("empty").unwrap().is_empty());
        assert_eq!(files.read_f32("scalar").unwrap(), [0.5]);
        assert!(files.info("c").is_none());
    }

    #[test]
    fn the_safetensors_library_reads_our_files() {
        let folder = folder();
        let path = folder.path().join(WEIGHTS);
        write_weights(
            &path,
            WeightType::F32,
            [tensor("b", &[1, 2]), tensor("a", &[3])],
        )
        .unwrap();
        let bytes = fs::read(&path).unwrap();
        let (length, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        assert_eq!(length % 8, 0);
        assert_eq!(metadata.metadata().as_ref().unwrap()["format"], "pt");
        assert_eq!(metadata.offset_keys(), ["a", "b"]);
    }

    #[test]
    fn half_precision_becomes_f32_exactly() {
        let folder = folder();
        let header = json!({
            "h": {"dtype": "F16", "shape": [3], "data_offsets": [0, 6]},
            "b": {"dtype": "BF16", "shape": [3], "data_offsets": [6, 12]},
        })
        .to_string();
        let values = [1.5, -0.25, 3072.0];
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend(values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()));
        bytes.extend(values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()));
        fs::write(folder.path().join(WEIGHTS), bytes).unwrap();

        let files = WeightFiles::open(folder.path()).unwrap();
        assert_eq!(files.read_f32("h").unwrap(), values);
        assert_eq!(files.read_f32("b").unwrap(), values);
        assert_eq!(files.info("h").unwrap().dtype, WeightType::F16);
        assert_eq!(files.info("b").unwrap().dtype, WeightType::Bf16);
        let halves = values.map(|value| f16::from_f32(value).to_le_bytes());
        assert_eq!(files.read_bytes("h").unwrap(), halves.concat());
        assert!(matches!(
            files.read_bytes("x"),
            Err(WeightsError::NoTensor { tensor, .. }) if tensor == "x"
        ));
    }

    #[test]
    fn a_number_that_is_none_is_neither_written_nor_read() {
        let folder = folder();
        let path = folder.path().join(WEIGHTS);
        write_weights(&path, WeightType::F32, [tensor("a", &[2])]).unwrap();
        let before = fs::read(&path).unwrap();
        let nan = NewTensor::new("a", [2], || Ok(vec![0.0, f32::NAN]));
        let error = write_weights(&path, WeightType::F32, [nan]).unwrap_err();
        assert!(matches!(&error, WeightsError::NotFinite { tensor, .. } if tensor == "a"));
        assert_eq!(fs::read(&path).unwrap(), before);

        let mut damaged = before;
        let last = damaged.len() - 4;
        damaged[last..].copy_from_slice(&f32::INFINITY.to_le_bytes());
        fs::write(&path, damaged).unwrap();
        let error = WeightFiles::open(folder.path())
            .unwrap()
            .read_f32("a")
            .unwrap_err();
        assert!(matches!(&error, WeightsError::NotFinite { value, .. } if *value > 0.0));
    }

    #[test]
    fn values_that_cannot_be_had_leave_the_file_alone() {
        let folder = folder();
        let path = folder.path().join(WEIGHTS);
        write_weights(&path, WeightType::F32, [tensor("a", &[2])]).unwrap();
        let before = fs::read(&path).unwrap();
        let lost = NewTensor::new("a", [2], || {
            Err(WeightsError::Device {
                tensor: "a".to_owned(),
                detail: "gone".to_owned(),
            })
        });
        let error = write_weights(&path, WeightType::F32, [lost]).unwrap_err();
        assert!(error.to_string().contains("gone"));
        assert_eq!(fs::read(&path).unwrap(), before);
    }

    #[test]
    fn shards_are_one_set_of_tensors() {
        let files = open_sharded(json!({"a": "1.safetensors", "b": "2.safetensors"})).unwrap();
        assert_eq!(files.names().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(files.read_f32("b").unwrap(), [0.5, 1.5]);
    }

    #[test]
    fn a_folder_without_weights_is_named() {
        let folder = folder();
        let error = WeightFiles::open(folder.path()).unwrap_err();
        assert!(matches!(&error, WeightsError::Missing { folder: f } if f == folder.path()));
    }

    #[test]
    fn an_index_has_to_fit_its_shards() {
        let error = open_sharded(json!({"a": "1.safetensors", "b": "3.safetensors"})).unwrap_err();
        assert!(
            matches!(&error, WeightsError::Read { file, .. } if file.ends_with("3.safetensors"))
        );

        for tensor in ["a", "c"] {
            let map = json!({"a": "1.safetensors", "b": "2.safetensors", tensor: "2.safetensors"});
            let error = open_sharded(map).unwrap_err();
            assert!(
                matches!(&error, WeightsError::NotInShard { file, tensor: t }
                    if file.ends_with("2.safetensors") && t == tensor),
                "{error}"
            );
        }

        let folder = sharded(&json!({"a": "1.safetensors", "b": "2.safetensors"}));
        let second = folder.path().join("2.safetensors");
        write_weights(
            &second,
            WeightType::F32,
            [tensor("a", &[2]), tensor("b", &[2])],
        )
        .unwrap();
        let error = WeightFiles::open(folder.path()).unwrap_err();
        assert!(matches!(&error, WeightsError::TwoShards { tensor, .. } if tensor == "a"));
    }

    #[test]
    fn an_index_that_is_none_is_an_error() {
        let error = open_sharded(json!(["a"])).unwrap_err();
        assert!(matches!(error, WeightsError::Index { .. }));
    }

    #[test]
    fn an_index_cannot_lead_out_of_its_folder() {
        for shard in ["../1.safetensors", "/tmp/1.safetensors", "..", ""] {
            let error = open_sharded(json!({"a": shard})).unwrap_err();
            assert!(
                matches!(error, WeightsError::ShardName { .. }),
                "{shard}: {error}"
            );
        }
    }

    #[test]
    fn old_rotary_buffers_are_ignored() {
        let header = json!({
            "model.layers.0.self_attn.rotary_emb.inv_freq":
                {"dtype": "F64", "shape": [1], "data_offsets": [0, 8]},
            "a": {"dtype": "F32", "shape": [1], "data_offsets": [8, 12]},
        });
        let files = open_raw(&header, 12).unwrap();
        assert_eq!(files.names().collect::<Vec<_>>(), ["a"]);

        let map = json!({"a": "1.safetensors", "x.rotary_emb.inv_freq": "1.safetensors"});
        assert_eq!(open_sharded(map).unwrap().names().count(), 1);
    }

    #[test]
    fn other_types_of_numbers_are_refused_by_name() {
        for (dtype, size) in [("I64", 8), ("F64", 8), ("F8_E4M3", 1), ("BOOL", 1)] {
            let info = json!({"dtype": dtype, "shape": [1], "data_offsets": [0, size]});
            let error = open_raw(&json!({"a": info}), size).unwrap_err();
            assert!(
                matches!(&error, WeightsError::DataType { tensor, found, .. }
                    if tensor == "a" && found == dtype),
                "{error}"
            );
        }
    }

    #[test]
    fn cut_off_and_padded_files_are_refused() {
        let folder = folder();
        let path = folder.path().join(WEIGHTS);
        write_weights(&path, WeightType::F32, [tensor("a", &[4])]).unwrap();
        let whole = fs::read(&path).unwrap();
        for size in (0..whole.len()).chain([whole.len() + 1]) {
            let mut bytes = whole.clone();
            bytes.resize(size, 0);
            fs::write(&path, bytes).unwrap();
            let error = WeightFiles::open(folder.path()).unwrap_err();
            assert!(
                matches!(&error, WeightsError::Size { file, found, expected }
                    if *file == path && *found == size as u64 && expected != found),
                "{size}: {error}"
            );
        }
    }

    #[test]
    fn a_header_of_absurd_length_is_refused() {
        let folder = folder();
        for length in [MAX_HEADER + 1, u64::MAX] {
            fs::write(folder.path().join(WEIGHTS), length.to_le_bytes()).unwrap();
            let error = WeightFiles::open(folder.path()).unwrap_err();
            assert!(matches!(error, WeightsError::HeaderLength { length: l, .. } if l == length));
        }
    }

    #[test]
    fn broken_headers_are_refused() {
        let folder = folder();
        let a = |shape: Value, offsets: [u64; 2]| {
            json!({"a": {"dtype": "F32", "shape": shape, "data_offsets": offsets}}).to_string()
        };
        let huge = u64::MAX / 32;
        let overflow: serde_json::Map<String, Value> = (0..9)
            .map(|n| {
                let offsets = [n * huge * 4, (n + 1).saturating_mul(huge * 4)];
                let info = json!({"dtype": "F32", "shape": [huge], "data_offsets": offsets});
                (n.to_string(), info)
            })
            .collect();
        for header in [
            "not a header".to_owned(),
            "[]".to_owned(),
            "\u{1}".to_owned(),
            "[".repeat(10_000),
            a(json!([1]), [4, 8]),
            a(json!([1]), [4, 0]),
            a(json!([2]), [0, 4]),
            a(json!([-1]), [0, 4]),
            a(json!([u64::MAX, u64::MAX]), [0, 4]),
            a(json!([u64::MAX]), [0, 4]),
            json!({"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}).to_string(),
            json!({
                "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
                "b": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
            })
            .to_string(),
            Value::Object(overflow).to_string(),
        ] {
            raw(&folder.path().join(WEIGHTS), &header, 4);
            let error = WeightFiles::open(folder.path()).unwrap_err();
            assert!(
                matches!(error, WeightsError::Header { .. }),
                "{header}: {error}"
            );
        }
    }

    #[test]
    fn sizes_that_add_up_to_all_numbers_do_not_overflow() {
        // Eight tensors whose bytes end just below 2^64: one header more would wrap around.
        let each = u64::MAX / 8 / 4 * 4;
        let header: serde_json::Map<String, Value> = (0..8)
            .map(|n| {
                let offsets = [n * each, (n + 1) * each];
                let info = json!({"dtype": "BOOL", "shape": [each], "data_offsets": offsets});
                (n.to_string(), info)
            })
            .collect();
        let error = open_raw(&Value::Object(header), 4).unwrap_err();
        assert!(matches!(error, WeightsError::Size { .. }), "{error}");
    }

    #[test]
    fn a_folder_in_a_files_place_cannot_be_read() {
        let folder = folder();
        fs::create_dir(folder.path().join(WEIGHTS)).unwrap();
        let error = WeightFiles::open(folder.path()).unwrap_err();
        assert!(matches!(error, WeightsError::Read { .. }), "{error}");
    }

    #[test]
    fn an_unknown_tensor_is_named() {
        let files = open_raw(&json!({}), 0).unwrap();
        let error = files.read_f32("model.norm.weight").unwrap_err();
        assert!(
            matches!(&error, WeightsError::NoTensor { tensor, .. } if tensor == "model.norm.weight")
        );
    }

    fn expected(tensors: &[(&str, &[usize])]) -> Vec<(String, Vec<usize>)> {
        let owned = tensors
            .iter()
            .map(|(name, shape)| (name.to_string(), shape.to_vec()));
        owned.collect()
    }

    fn with_tensors(names: &[&str]) -> WeightFiles {
        let folder = folder();
        let tensors = names.iter().map(|name| tensor(name, &[2, 3]));
        write_weights(&folder.path().join(WEIGHTS), WeightType::F32, tensors).unwrap();
        WeightFiles::open(folder.path()).unwrap()
    }

    #[test]
    fn weights_have_to_be_those_of_the_model() {
        let files = with_tensors(&["a", "b", "c"]);
        let shape: &[usize] = &[2, 3];
        let all = expected(&[("a", shape), ("b", shape), ("c", shape)]);
        files.check(&all, &[]).unwrap();

        let other = expected(&[("a", shape), ("b", &[3, 2]), ("d", shape)]);
        let error = files.check(&other, &[]).unwrap_err();
        let text = error.to_string();
        let WeightsError::Mismatch {
            missing,
            unused,
            shapes,
            ..
        } = error
        else {
            panic!("{text}");
        };
        assert_eq!((missing, unused), (vec!["d".into()], vec!["c".into()]));
        assert_eq!(shapes[0].to_string(), "b (is [2, 3], should be [3, 2])");
        for part in ["missing: d", "unused: c", "of another shape: b (is"] {
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn tied_weights_may_be_there_or_not_but_in_their_shape() {
        let shape: &[usize] = &[2, 3];
        let [just, both] = [&["a"] as &[_], &["a", "head"]].map(with_tensors);
        let named = expected(&[("a", shape), ("head", shape)]);
        let unnamed = expected(&[("a", shape)]);
        for files in [&just, &both] {
            files.check(&named, &["head"]).unwrap();
            files.check(&unnamed, &["head"]).unwrap();
        }
        assert!(just.check(&named, &[]).is_err());
        assert!(both.check(&unnamed, &[]).is_err());
        let wrong = expected(&[("a", shape), ("head", &[6])]);
        assert!(both.check(&wrong, &["head"]).is_err());
    }

    #[test]
    fn long_lists_of_names_end_in_a_count() {
        let names: Vec<String> = (10..30).map(|n| format!("t{n}")).collect();
        let files = with_tensors(&names.iter().map(String::as_str).collect::<Vec<_>>());
        let text = files.check(&[], &[]).unwrap_err().to_string();
        assert!(text.ends_with("t18, t19 and 10 more"), "{text}");
        assert!(!text.contains("missing"), "{text}");
    }

    #[test]
    fn tensors_that_cannot_be_written_leave_the_old_file() {
        let folder = folder();
        let path = folder.path().join(WEIGHTS);
        write_weights(&path, WeightType::F32, [tensor("old", &[1])]).unwrap();
        let old = fs::read(&path).unwrap();

        let short = || NewTensor::new("b", [3], || Ok(vec![0.0; 2]));
        let error =
            write_weights(&path, WeightType::F32, [tensor("a", &[2]), short()]).unwrap_err();
        assert!(matches!(&error, WeightsError::Values { tensor, values: 2, .. } if tensor == "b"));
        let error = write_weights(
            &path,
            WeightType::F32,
            [tensor("a", &[2]), tensor("a", &[2])],
        )
        .unwrap_err();
        assert!(matches!(&error, WeightsError::SameName { tensor } if tensor == "a"));
        for shape in [[usize::MAX, 2], [usize::MAX / 4, 1]] {
            let error = write_weights(
                &path,
                WeightType::F32,
                [NewTensor::new("a", shape, || Ok(Vec::new()))],
            )
            .unwrap_err();
            assert!(matches!(&error, WeightsError::Layout { file, .. } if *file == path));
        }

        assert_eq!(fs::read(&path).unwrap(), old);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_that_cannot_be_written_is_named() {
        let path = folder().path().join("nowhere").join(WEIGHTS);
        let error = write_weights(&path, WeightType::F32, [tensor("a", &[1])]).unwrap_err();
        assert!(
            matches!(error, WeightsError::Write(FileError::Write { file, .. }) if file == path)
        );
    }

    #[test]
    fn a_file_that_reads_back_differently_is_noticed() {
        let folder = folder();
        let path = folder.path().join(WEIGHTS);
        write_weights(&path, WeightType::F32, [tensor("a", &[2])]).unwrap();
        let shard = Shard::open(path.clone()).unwrap();
        let hash = hash(&shard.map[shard.map.len() - 8..]);
        let print = |shape: &[usize], hash| {
            let shape = shape.to_vec();
            BTreeMap::from([("a".to_owned(), Print { shape, hash })])
        };
        read_back(&path, &print(&[2], hash)).unwrap();
        for other in [print(&[2], !hash), print(&[2, 1], hash), BTreeMap::new()] {
            let error = read_back(&path, &other).unwrap_err();
            assert!(
                matches!(error, WeightsError::Write(FileError::ReadBack { .. })),
                "{error}"
            );
        }
    }
}
