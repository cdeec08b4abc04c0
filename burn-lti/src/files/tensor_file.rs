//! Safetensors files: the header alone, or all of a file.

use std::collections::{BTreeMap, HashMap};

use burn::tensor::DType;
use safetensors::tensor::{Metadata, TensorView};
use safetensors::{Dtype, SafeTensorError, SafeTensors, serialize};
use thiserror::Error;

/// Bytes of the number that a safetensors file begins with: the length of its header.
pub const LENGTH_BYTES: usize = size_of::<u64>();

/// The header of a safetensors file of these `bytes`, whose tensors fill the rest of the file exactly.
///
/// The safetensors library checks the header's own sense. Its function for whole files adds up
/// lengths that a hostile file can make overflow, and does not say how much of a cut-off file is
/// missing.
///
/// # Errors
///
/// [`HeaderError`], before a header longer than `longest` bytes is read.
pub fn safetensors_header(bytes: &[u8], longest: u64) -> Result<Metadata, HeaderError> {
    let size = |expected: u64| HeaderError::Size {
        expected,
        found: bytes.len() as u64,
    };
    let (length, rest) = bytes
        .split_first_chunk::<LENGTH_BYTES>()
        .ok_or_else(|| size(LENGTH_BYTES as u64))?;
    let length = u64::from_le_bytes(*length);
    if length > longest {
        return Err(HeaderError::Length { length });
    }
    let before = LENGTH_BYTES as u64 + length;
    let (header, data) = rest
        .split_at_checked(length as usize)
        .ok_or_else(|| size(before))?;
    let metadata: Metadata = serde_json::from_slice(header)?;
    match metadata.data_len() == data.len() {
        true => Ok(metadata),
        false => Err(size(before.saturating_add(metadata.data_len() as u64))),
    }
}

/// What is wrong with the header of a safetensors file.
#[derive(Debug, Error)]
pub enum HeaderError {
    /// The file ends too early or too late.
    #[error("the file has {found} bytes and should have {expected}")]
    Size {
        /// Bytes that the header accounts for, as far as it could be read.
        expected: u64,
        /// Bytes of the file.
        found: u64,
    },
    /// The header claims to be longer than any should be.
    #[error("the file claims a header of {length} bytes")]
    Length {
        /// The length it claims.
        length: u64,
    },
    /// The header is no JSON of tensors, or contradicts itself.
    #[error("the header is none of a safetensors file")]
    Json(#[from] serde_json::Error),
}

/// A safetensors file in memory.
#[derive(Clone, Debug)]
pub struct TensorFile<'a> {
    /// Texts by key, if the file has any.
    pub metadata: Option<HashMap<String, String>>,
    /// The tensors by name.
    pub tensors: BTreeMap<String, TensorView<'a>>,
}

impl<'a> TensorFile<'a> {
    /// Reads the bytes of a file.
    ///
    /// # Errors
    ///
    /// [`SafeTensorError`] if they are no such file.
    pub fn from_bytes(bytes: &'a [u8]) -> Result<Self, SafeTensorError> {
        let (_, header) = SafeTensors::read_metadata(bytes)?;
        Ok(Self {
            metadata: header.metadata().clone(),
            tensors: SafeTensors::deserialize(bytes)?
                .tensors()
                .into_iter()
                .collect(),
        })
    }

    /// The bytes of the file. Tensors of wider types come first, those of one width by name.
    ///
    /// # Errors
    ///
    /// [`SafeTensorError`] if they cannot be laid out.
    pub fn to_bytes(&self) -> Result<Vec<u8>, SafeTensorError> {
        serialize(&self.tensors, self.metadata.clone())
    }
}

/// What safetensors calls a float type of Burn, if it has it.
pub const fn safetensors_float(dtype: DType) -> Option<Dtype> {
    match dtype {
        DType::F64 => Some(Dtype::F64),
        DType::F32 => Some(Dtype::F32),
        DType::F16 => Some(Dtype::F16),
        DType::BF16 => Some(Dtype::BF16),
        _ => None,
    }
}
