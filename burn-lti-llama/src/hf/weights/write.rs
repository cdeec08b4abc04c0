//! Writes weights as a safetensors file, and reads them back.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::hash::{DefaultHasher, Hasher};
use std::io::{self, BufWriter, Write};
use std::path::Path;

use burn_lti::files::{self, FileError, LENGTH_BYTES};
use safetensors::tensor::{self, Metadata, SafeTensorError};
use serde_json::json;

use super::{Entry, Shard, WEIGHTS, WEIGHTS_INDEX, WeightType, WeightsError, check_finite};

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
/// - [`WeightsError::Tensor`], [`WeightsError::Layout`]: the tensors are no contents of such a file;
///   what was at `path` is untouched.
/// - [`WeightsError::Write`]: the file could not be written ([`FileError::Write`], what was at
///   `path` is untouched) or is not as it was written ([`FileError::ReadBack`]).
/// - [`WeightsError::Read`], [`WeightsError::Broken`]: the new file cannot be read back at all.
pub fn write_weights<'a>(
    path: &Path,
    dtype: WeightType,
    tensors: impl IntoIterator<Item = NewTensor<'a>>,
) -> Result<(), WeightsError> {
    let mut sorted = BTreeMap::new();
    for tensor in tensors {
        if let Some(same) = sorted.insert(tensor.name.clone(), tensor) {
            let reason = "is what two tensors to be written are called";
            return Err(WeightsError::tensor(&same.name, reason));
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

/// Writes tensors to a folder, as [`write_weights`] does to a file: to `model.safetensors`, or to several files
/// of at most `max_size` bytes of numbers, and the index that says which tensor is where. A tensor that is larger
/// has a file of its own. What was there of another number of files is taken away.
///
/// # Errors
///
/// As [`write_weights`].
pub fn write_weights_to_folder<'a>(
    dir: &Path,
    dtype: WeightType,
    max_size: Option<u64>,
    tensors: impl IntoIterator<Item = NewTensor<'a>>,
) -> Result<(), WeightsError> {
    let mut tensors: Vec<NewTensor<'a>> = tensors.into_iter().collect();
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    let size = |tensor: &NewTensor<'_>| {
        tensor.shape.iter().product::<usize>() as u64 * dtype.size() as u64
    };
    let total_size: u64 = tensors.iter().map(size).sum();
    let mut shards: Vec<(u64, Vec<NewTensor<'a>>)> = Vec::new();
    for tensor in tensors {
        let more = size(&tensor);
        match shards.last_mut() {
            Some((bytes, shard)) if max_size.is_none_or(|max| *bytes + more <= max) => {
                *bytes += more;
                shard.push(tensor);
            }
            _ => shards.push((more, vec![tensor])),
        }
    }
    let (single, index) = (dir.join(WEIGHTS), dir.join(WEIGHTS_INDEX));
    let count = shards.len();
    if count <= 1 {
        let tensors = shards.into_iter().flat_map(|(_, tensors)| tensors);
        write_weights(&single, dtype, tensors)?;
        return remove_if_there(&index);
    }
    let mut weight_map = BTreeMap::new();
    for (number, (_, shard)) in (1..).zip(shards) {
        let file = format!("model-{number:05}-of-{count:05}.safetensors");
        weight_map.extend(shard.iter().map(|it| (it.name.clone(), file.clone())));
        write_weights(&dir.join(&file), dtype, shard)?;
    }
    let contents = json!({ "metadata": { "total_size": total_size }, "weight_map": weight_map });
    files::write_atomically(&index, format!("{contents:#}\n").as_bytes())?;
    remove_if_there(&single)
}

fn remove_if_there(file: &Path) -> Result<(), WeightsError> {
    match std::fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(FileError::writing(file)(error).into())
        }
        _ => Ok(()),
    }
}

/// What has to be found where a tensor was written.
#[derive(PartialEq, Eq)]
pub(super) struct Print {
    pub(super) shape: Vec<usize>,
    pub(super) hash: u64,
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
        let given = values.len();
        let reason = format!("of shape {shape:?} was given {given} values to write");
        return Err(WeightsError::tensor(&name, reason));
    }
    file.write_all(&bytes).map_err(FileError::writing(path))?;
    let hash = hash(&bytes);
    Ok(Print { shape, hash })
}

pub(super) fn read_back(
    path: &Path,
    written: &BTreeMap<String, Print>,
) -> Result<(), WeightsError> {
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

pub(super) fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}
