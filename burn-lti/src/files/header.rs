//! The header of a safetensors file.

use safetensors::tensor::Metadata;
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
