//! A calculated start in a file: a run that goes on begins with the same numbers.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use burn::prelude::*;
use burn::tensor::{DType, TensorData};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensorError, SafeTensors, serialize};
use thiserror::Error;

use super::report::{CalibratedStart, LayerReport};
use crate::files::{FileError, sha256, write_atomically};
use crate::tensors::{TensorSet, split_name};

/// A start that could not be written or read.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StartFileError {
    /// The file could not be written.
    #[error(transparent)]
    Write(#[from] FileError),
    /// The file could not be read.
    #[error("cannot read the calculated start {path}: begin the run anew, with --overwrite")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is none of safetensors.
    #[error("{path} is no calculated start: begin the run anew, with --overwrite")]
    Tensors {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: SafeTensorError,
    },
    /// What is in the file is not what was written.
    #[error("{path} is damaged ({what}): begin the run anew, with --overwrite")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A tensor cannot be read from its device.
    #[error("cannot read the tensor {name} from its device: {reason}")]
    Device {
        /// The tensor.
        name: String,
        /// What the backend said.
        reason: String,
    },
}

const HASH: &str = "sha256";
const LAYERS: &str = "layers";

impl<B: Backend> CalibratedStart<B> {
    /// Writes the start to `path`, in float32, with a hash of its values.
    ///
    /// # Errors
    ///
    /// [`StartFileError::Write`], [`StartFileError::Device`].
    pub fn save(&self, path: &Path) -> Result<(), StartFileError> {
        let mut tensors = Vec::new();
        for (name, named) in self.tensors.iter() {
            let values = named.tensor.to_f32();
            let values = values.map_err(|reason| StartFileError::Device {
                name: name.to_owned(),
                reason,
            })?;
            let bytes: Vec<u8> = values
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect();
            tensors.push((name.to_owned(), named.tensor.shape(), bytes));
        }
        let broken = |source| StartFileError::Tensors {
            path: path.to_owned(),
            source,
        };
        let layers = serde_json::to_string(&self.layers).map_err(|_| StartFileError::Damaged {
            path: path.to_owned(),
            what: "its report cannot be written",
        })?;
        let hash = hash(
            tensors
                .iter()
                .map(|(name, _, bytes)| (name.as_str(), &bytes[..])),
        );
        let metadata = HashMap::from([(HASH.to_owned(), hash), (LAYERS.to_owned(), layers)]);
        let views: Result<Vec<_>, _> = tensors
            .iter()
            .map(|(name, shape, bytes)| {
                Ok((name, TensorView::new(Dtype::F32, shape.clone(), bytes)?))
            })
            .collect();
        let bytes = serialize(views.map_err(broken)?, Some(metadata)).map_err(broken)?;
        Ok(write_atomically(path, &bytes)?)
    }

    /// Reads what [`save`](Self::save) wrote. Weights of feed-forward blocks come back in `dtype`, the
    /// float type of the model; maps are float32.
    ///
    /// # Errors
    ///
    /// [`StartFileError::Read`], [`StartFileError::Tensors`], [`StartFileError::Damaged`].
    pub fn load(path: &Path, dtype: DType, device: &B::Device) -> Result<Self, StartFileError> {
        let damaged = |what| StartFileError::Damaged {
            path: path.to_owned(),
            what,
        };
        let broken = |source| StartFileError::Tensors {
            path: path.to_owned(),
            source,
        };
        let bytes = fs::read(path).map_err(|source| StartFileError::Read {
            path: path.to_owned(),
            source,
        })?;
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(broken)?;
        let metadata = header.metadata().clone().unwrap_or_default();
        let file = SafeTensors::deserialize(&bytes).map_err(broken)?;
        let mut views: Vec<_> = file.iter().collect();
        views.sort_by(|a, b| a.0.cmp(b.0));
        let found = hash(views.iter().map(|(name, view)| (*name, view.data())));
        if metadata.get(HASH) != Some(&found) {
            return Err(damaged("its values are not those that were written"));
        }
        let layers: Option<Vec<LayerReport>> = metadata
            .get(LAYERS)
            .and_then(|text| serde_json::from_str(text).ok());
        let mut tensors = TensorSet::new();
        for (name, view) in views {
            if view.dtype() != Dtype::F32 {
                return Err(damaged("a tensor is not float32"));
            }
            let bytes = view.data().to_vec();
            let data = |shape: Vec<usize>| TensorData::from_bytes_vec(bytes, shape, DType::F32);
            match *view.shape() {
                [rows, columns] if split_name(name).1 == "weight" => {
                    let data = data(vec![rows, columns]).convert_dtype(dtype);
                    let tensor = Tensor::<B, 2>::from_data(data, (device, dtype));
                    tensors.insert(name, "Linear", tensor);
                }
                [rows, columns] => {
                    let data = data(vec![rows, columns]);
                    let tensor = Tensor::<B, 2>::from_data(data, (device, DType::F32));
                    tensors.insert(name, "AxisMap", tensor);
                }
                _ => return Err(damaged("a tensor has not two axes")),
            }
        }
        Ok(Self {
            tensors,
            layers: layers.ok_or_else(|| damaged("it has no report"))?,
        })
    }
}

/// Of names and values, in the order of the names.
fn hash<'a>(tensors: impl Iterator<Item = (&'a str, &'a [u8])>) -> String {
    let hashes: Vec<String> = tensors
        .map(|(name, bytes)| format!("{name} {}\n", sha256(bytes)))
        .collect();
    sha256(hashes.concat().as_bytes())
}

#[cfg(test)]
mod tests {
    use burn::backend::Flex;
    use burn::tensor::Distribution;

    use super::super::heads::HeadChoice;
    use super::*;

    fn start() -> CalibratedStart<Flex> {
        let device = Default::default();
        let mut tensors = TensorSet::new();
        let random = Distribution::Default;
        let a = Tensor::<Flex, 2>::random([4, 2], random, &device);
        tensors.insert("layers.0.q.right.a", "AxisMap", a);
        let w = Tensor::<Flex, 2>::random([6, 2], random, &device);
        tensors.insert("layers.0.v.right.w", "AxisMap", w);
        let weight = Tensor::<Flex, 2>::random([5, 3], random, &device);
        tensors.insert("layers.0.mlp.weight", "Linear", weight);
        CalibratedStart {
            tensors,
            layers: vec![LayerReport {
                layer: 0,
                heads: HeadChoice {
                    query: vec![1],
                    key_value: vec![0],
                },
                residual_of_output: 0.5,
                residual: 0.25,
                rounds: 2,
                ridge: Some(1e-3),
                strength: 0.5,
                feed_forward_residual: None,
                seconds: 1.5,
            }],
        }
    }

    fn values(start: &CalibratedStart<Flex>) -> Vec<(String, Vec<usize>, Vec<f32>)> {
        let tensors = start.tensors.iter();
        tensors
            .map(|(name, named)| {
                let tensor = &named.tensor;
                (name.to_owned(), tensor.shape(), tensor.to_f32().unwrap())
            })
            .collect()
    }

    #[test]
    fn reads_what_it_wrote() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("start.safetensors");
        let written = start();
        written.save(&path).unwrap();
        let read = CalibratedStart::load(&path, DType::F32, &Default::default()).unwrap();
        assert_eq!(values(&read), values(&written));
        assert_eq!(read.layers, written.layers);
    }

    fn refused(path: &Path) -> StartFileError {
        CalibratedStart::<Flex>::load(path, DType::F32, &Default::default()).unwrap_err()
    }

    #[test]
    fn a_changed_value_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("start.safetensors");
        start().save(&path).unwrap();
        let mut bytes = fs::read(&path).unwrap();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        fs::write(&path, &bytes).unwrap();
        let error = refused(&path);
        assert!(matches!(error, StartFileError::Damaged { .. }), "{error}");
        fs::write(&path, b"no").unwrap();
        let error = refused(&path);
        assert!(matches!(error, StartFileError::Tensors { .. }), "{error}");
        fs::remove_file(&path).unwrap();
        let error = refused(&path);
        assert!(matches!(error, StartFileError::Read { .. }), "{error}");
    }

    #[test]
    fn a_start_that_was_never_written_so_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("start.safetensors");
        for (dtype, shape, layers, expected) in [
            (Dtype::F16, vec![2, 1], Some("[]"), "not float32"),
            (Dtype::F32, vec![1], Some("[]"), "not two axes"),
            (Dtype::F32, vec![1, 1], None, "no report"),
            (Dtype::F32, vec![1, 1], Some("{}"), "no report"),
        ] {
            let bytes = [0; 4];
            let mut metadata =
                HashMap::from([(HASH.to_owned(), hash([("x", &bytes[..])].into_iter()))]);
            metadata.extend(layers.map(|layers| (LAYERS.to_owned(), layers.to_owned())));
            let view = TensorView::new(dtype, shape, &bytes).unwrap();
            fs::write(&path, serialize([("x", view)], Some(metadata)).unwrap()).unwrap();
            let error = refused(&path);
            assert!(matches!(error, StartFileError::Damaged { .. }), "{error}");
            assert!(error.to_string().contains(expected), "{error}");
        }
        // What should be a folder is a file.
        let error = start().save(&path.join("start")).unwrap_err();
        assert!(matches!(error, StartFileError::Write(_)), "{error}");
    }
}
