//! SHA-256 of what a run reads: files, and tensors in whatever file they lie.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader};
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::hf::{TensorInfo, WeightFiles, WeightsError};

/// Bytes of a file that are in memory at a time.
const BUFFER: usize = 1 << 20;

/// Why something could not be hashed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum HashError {
    /// A file cannot be read.
    #[error("cannot read {file}: correct its path, or make it readable")]
    Read {
        /// The file.
        file: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The weights of a folder.
    #[error(transparent)]
    Weights(#[from] WeightsError),
}

/// SHA-256 of a file's bytes, in hexadecimal digits.
///
/// # Errors
///
/// [`HashError::Read`].
pub fn hash_file(path: &Path) -> Result<String, HashError> {
    let hash = || {
        let mut hasher = Sha256::new();
        let mut file = BufReader::with_capacity(BUFFER, File::open(path)?);
        io::copy(&mut file, &mut hasher)?;
        Ok(hex(hasher))
    };
    hash().map_err(|source| HashError::Read {
        file: path.to_owned(),
        source,
    })
}

/// SHA-256 of each tensor of a Hugging Face folder, or of a GGUF file, by the tensor's name in a folder.
///
/// It is that of a line `dtype [shape]`, such as `float16 [64, 8]` or `Q4_K [64, 256]`, followed by the tensor's bytes
/// as the file holds them. In which file or shard a tensor lies, and where, makes no difference.
///
/// # Errors
///
/// [`HashError::Weights`], as [`WeightFiles::open`].
pub fn hash_teacher(dir: &Path) -> Result<BTreeMap<String, String>, HashError> {
    let files = WeightFiles::open(dir)?;
    let tensors: Vec<(&str, &TensorInfo)> = files.tensors().collect();
    tensors
        .into_par_iter()
        .map(|(name, info)| {
            let hash = hash_tensor(files.stored_as(name)?, &info.shape, files.read_bytes(name)?);
            Ok((name.to_owned(), hash))
        })
        .collect()
}

fn hash_tensor(stored_as: &str, shape: &[usize], bytes: &[u8]) -> String {
    hex(Sha256::new()
        .chain_update(format!("{stored_as} {shape:?}\n"))
        .chain_update(bytes))
}

fn hex(hasher: Sha256) -> String {
    format!("{:x}", hasher.finalize())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;
    use tempfile::TempDir;

    use super::*;
    use crate::hf::{NewTensor, WeightType, write_weights};

    /// Writes one file of weights, each tensor with the values 0, 1, 2 and so on.
    fn write(path: &Path, dtype: WeightType, tensors: &[(&str, &[usize])]) {
        let tensors = tensors.iter().map(|(name, shape)| {
            let count = shape.iter().product();
            NewTensor::new(*name, *shape, move || {
                Ok((0..count).map(|value: usize| value as f32).collect())
            })
        });
        write_weights(path, dtype, tensors).unwrap();
    }

    /// The hashes of a folder with one file of weights.
    fn hashes(dtype: WeightType, tensors: &[(&str, &[usize])]) -> BTreeMap<String, String> {
        let folder = TempDir::new().unwrap();
        write(&folder.path().join("model.safetensors"), dtype, tensors);
        hash_teacher(folder.path()).unwrap()
    }

    #[test]
    fn a_file_has_the_hash_of_the_standard() {
        // FIPS 180-2, appendix B: one block, and a million times "a".
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("text");
        for (text, hash) in [
            (
                "abc".to_owned(),
                "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
            ),
            (
                "a".repeat(1_000_000),
                "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0",
            ),
        ] {
            fs::write(&path, text).unwrap();
            assert_eq!(hash_file(&path).unwrap(), hash);
        }
    }

    #[test]
    fn a_tensor_has_the_hash_of_its_type_its_shape_and_its_bytes() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("tensor");
        let values = [0.0_f32, 1.0, 2.0, 3.0, 4.0, 5.0];
        let bytes: Vec<u8> = values.into_iter().flat_map(f32::to_le_bytes).collect();
        fs::write(&path, [b"float32 [2, 3]\n".as_slice(), &bytes].concat()).unwrap();
        let tensors = hashes(WeightType::F32, &[("a", &[2, 3])]);
        assert_eq!(tensors["a"], hash_file(&path).unwrap());
    }

    #[test]
    fn shards_make_no_difference() {
        let whole = hashes(WeightType::F16, &[("a", &[2, 3]), ("b", &[4])]);
        let folder = TempDir::new().unwrap();
        let [first, second] = ["1.safetensors", "2.safetensors"];
        write(&folder.path().join(first), WeightType::F16, &[("b", &[4])]);
        write(
            &folder.path().join(second),
            WeightType::F16,
            &[("a", &[2, 3])],
        );
        let index = json!({"weight_map": {"a": second, "b": first}}).to_string();
        fs::write(folder.path().join("model.safetensors.index.json"), index).unwrap();
        assert_eq!(hash_teacher(folder.path()).unwrap(), whole);
        assert_eq!(whole.len(), 2);
    }

    #[test]
    fn name_type_and_shape_make_a_difference() {
        let tensors = hashes(WeightType::F32, &[("a", &[2, 3]), ("b", &[3, 2])]);
        assert_ne!(tensors["a"], tensors["b"]);
        // Zero has the same bytes in both types.
        let zero = |dtype| hashes(dtype, &[("a", &[1])]);
        assert_ne!(zero(WeightType::F16), zero(WeightType::Bf16));
    }

    #[test]
    fn what_cannot_be_hashed_is_named() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("absent.txt");
        let error = hash_file(&path).unwrap_err();
        assert!(matches!(&error, HashError::Read { file, .. } if *file == path));
        let error = hash_teacher(folder.path()).unwrap_err();
        assert!(matches!(
            error,
            HashError::Weights(WeightsError::Missing { .. })
        ));
    }
}
