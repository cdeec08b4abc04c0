//! A calculated start in a file: a run that goes on begins with the same numbers.

use std::error::Error as StdError;
use std::fs;
use std::path::{Path, PathBuf};

use burn::prelude::*;
use burn::tensor::{DType, TensorData};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensorError};
use thiserror::Error;

use super::report::{CalibratedStart, LayerReport};
use crate::files::{FileError, TensorFile, sha256, write_atomically};
use crate::tensors::{TensorSet, split_name};

/// A start that could not be written or read.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StartFileError {
    /// The file could not be written.
    #[error(transparent)]
    Write(#[from] FileError),
    /// The file is not what was written.
    #[error("{file} {what}: delete it, and it is calculated again")]
    Damaged {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        what: String,
        /// What was reported, if anything was.
        source: Option<Box<dyn StdError + Send + Sync>>,
    },
    /// The start cannot be laid out in a file, or read from it.
    #[error("{what}")]
    Start {
        /// The file or the tensor, what is wrong with it, and the way out.
        what: String,
        /// What was reported, if anything was.
        source: Option<Box<dyn StdError + Send + Sync>>,
    },
}

impl StartFileError {
    fn new(what: String) -> Self {
        Self::Start { what, source: None }
    }

    /// Says what came of a reported error: `map_err(StartFileError::of(what))`.
    fn of<E: StdError + Send + Sync + 'static>(what: String) -> impl FnOnce(E) -> Self {
        move |source| Self::Start {
            what,
            source: Some(Box::new(source)),
        }
    }
}

/// Names and shapes of the tensors, and the report: another number if they change.
const FORMAT: &str = "4";

/// Keys of the metadata.
const FORMAT_KEY: &str = "format";
const HASH: &str = "sha256";
const LAYERS: &str = "layers";

impl<B: Backend> CalibratedStart<B> {
    /// Writes the start to `path`, in float32, with a hash of its values.
    ///
    /// # Errors
    ///
    /// [`StartFileError::Write`]; [`StartFileError::Start`] if a tensor cannot be read from its device.
    pub fn save(&self, path: &Path) -> Result<(), StartFileError> {
        let mut values = Vec::new();
        for (name, named) in self.tensors.iter() {
            let floats = named.tensor.to_f32().map_err(|reason| {
                StartFileError::new(format!(
                    "cannot read the tensor {name} from its device: {reason}"
                ))
            })?;
            let bytes: Vec<u8> = floats.into_iter().flat_map(f32::to_le_bytes).collect();
            values.push((name, named.tensor.shape(), bytes));
        }
        let unwritten = || format!("the calculated start {} cannot be written", path.display());
        let tensors = values.iter().map(|(name, shape, bytes)| {
            let view = TensorView::new(Dtype::F32, shape.clone(), bytes)?;
            Ok(((*name).to_owned(), view))
        });
        let tensors: Result<_, SafeTensorError> = tensors.collect();
        let mut file = TensorFile {
            metadata: None,
            tensors: tensors.map_err(StartFileError::of(unwritten()))?,
        };
        let layers = serde_json::to_string(&self.layers);
        let layers = layers.map_err(StartFileError::of(unwritten()))?;
        let metadata = [
            (FORMAT_KEY, FORMAT.to_owned()),
            (HASH, hash(&file)),
            (LAYERS, layers),
        ];
        file.metadata = Some(metadata.map(|(key, value)| (key.to_owned(), value)).into());
        let bytes = file.to_bytes().map_err(StartFileError::of(unwritten()))?;
        Ok(write_atomically(path, &bytes)?)
    }

    /// Reads what [`save`](Self::save) wrote. Weights, biases and gains come back in `dtype`, the float type of
    /// the model; maps are float32.
    ///
    /// # Errors
    ///
    /// - [`StartFileError::Damaged`]: it is not what was written.
    /// - [`StartFileError::Start`]: the file cannot be read, or is another version's.
    pub fn load(path: &Path, dtype: DType, device: &B::Device) -> Result<Self, StartFileError> {
        let shown = path.display();
        let unread = format!("cannot read the calculated start {shown}: make it readable");
        let bytes = fs::read(path).map_err(StartFileError::of(unread))?;
        let file = TensorFile::from_bytes(&bytes).map_err(|source| StartFileError::Damaged {
            file: path.to_owned(),
            what: "is damaged, it is no calculated start".to_owned(),
            source: Some(Box::new(source)),
        })?;
        let noted = |key| file.metadata.as_ref()?.get(key);
        let format = noted(FORMAT_KEY).map_or("none", String::as_str);
        if format != FORMAT {
            return Err(StartFileError::new(format!(
                "{shown} is of another version of burn-lti, which wrote format {format} where this one \
                 reads {FORMAT}: go on with the version that wrote it, or delete it, and it is calculated again"
            )));
        }
        let damaged = |what: &str| StartFileError::Damaged {
            file: path.to_owned(),
            what: format!("is damaged ({what})"),
            source: None,
        };
        if noted(HASH) != Some(&hash(&file)) {
            return Err(damaged("its values are not those that were written"));
        }
        let layers: Option<Vec<LayerReport>> =
            noted(LAYERS).and_then(|text| serde_json::from_str(text).ok());
        let mut tensors = TensorSet::new();
        for (name, view) in &file.tensors {
            if view.dtype() != Dtype::F32 {
                return Err(damaged("a tensor is not float32"));
            }
            let (owner, dtype) = match split_name(name).1 {
                "weight" | "bias" => ("Linear", dtype),
                "gamma" => ("RmsNorm", dtype),
                _ => ("AxisMap", DType::F32),
            };
            let values = view.data().to_vec();
            let data = TensorData::from_bytes_vec(values, view.shape().to_vec(), DType::F32);
            let (data, options) = (data.convert_dtype(dtype), (device, dtype));
            match (split_name(name).1, view.shape().len()) {
                ("bias" | "gamma", 1) => {
                    tensors.insert(name, owner, Tensor::<B, 1>::from_data(data, options))
                }
                (_, 2) => tensors.insert(name, owner, Tensor::<B, 2>::from_data(data, options)),
                ("r", 3) => tensors.insert(name, owner, Tensor::<B, 3>::from_data(data, options)),
                _ => return Err(damaged("a tensor has another number of axes")),
            }
        }
        Ok(Self {
            tensors,
            layers: layers.ok_or_else(|| damaged("it has no report"))?,
        })
    }
}

/// Of names and values, in the order of the names.
fn hash(file: &TensorFile<'_>) -> String {
    let tensors = file.tensors.iter();
    let hashes = tensors.map(|(name, view)| format!("{name} {}\n", sha256(view.data())));
    sha256(hashes.collect::<String>().as_bytes())
}

#[cfg(test)]
mod tests {
    use burn::backend::Flex;
    use burn::tensor::Distribution;

    use super::super::heads::HeadChoice;
    use super::super::report::FittedOn;
    use super::*;
    use crate::map::MapKind;

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
        let bias = Tensor::<Flex, 1>::random([3], random, &device);
        tensors.insert("layers.0.mlp.bias", "Linear", bias);
        CalibratedStart {
            tensors,
            layers: vec![LayerReport {
                layer: 0,
                heads: HeadChoice {
                    query: vec![1],
                    key_value: vec![vec![0]],
                },
                stream: FittedOn::Teacher,
                value: MapKind::Kronecker(2),
                out: MapKind::General,
                residual_of_output: 0.5,
                residual: 0.25,
                rounds: 2,
                ridge: Some(1e-3),
                strength: 0.5,
                uneven: None,
                feed_forward_residual: None,
                units: Some(vec![0, 2]),
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

    /// What loading the file says.
    fn refused(path: &Path) -> String {
        let read = CalibratedStart::<Flex>::load(path, DType::F32, &Default::default());
        read.unwrap_err().to_string()
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
        assert!(
            error.contains("is damaged") && error.contains("delete it"),
            "{error}"
        );
        fs::write(&path, b"no").unwrap();
        let error = refused(&path);
        assert!(
            error.contains("it is no calculated start: delete it"),
            "{error}"
        );
        fs::remove_file(&path).unwrap();
        let error = refused(&path);
        assert!(error.contains("cannot read"), "{error}");
    }

    /// A file of one tensor `x` of four bytes.
    fn write(path: &Path, dtype: Dtype, shape: Vec<usize>, metadata: &[(&str, &str)]) {
        let view = TensorView::new(dtype, shape, &[0; 4]).unwrap();
        let mut file = TensorFile {
            metadata: None,
            tensors: [("x".to_owned(), view)].into(),
        };
        let hash = hash(&file);
        let metadata = metadata.iter().copied().chain([(HASH, hash.as_str())]);
        let owned = metadata.map(|(key, value)| (key.to_owned(), value.to_owned()));
        file.metadata = Some(owned.collect());
        fs::write(path, file.to_bytes().unwrap()).unwrap();
    }

    #[test]
    fn a_start_of_another_version_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("start.safetensors");
        for (metadata, found) in [
            (&[(LAYERS, "[]")][..], "none"),
            (&[(LAYERS, "[]"), (FORMAT_KEY, "1")], "1"),
        ] {
            write(&path, Dtype::F32, vec![1, 1], metadata);
            let error = refused(&path);
            assert!(error.contains(&path.display().to_string()), "{error}");
            assert!(error.contains(&format!("format {found} where")), "{error}");
            assert!(error.contains("the version that wrote it"), "{error}");
            assert!(!error.contains("--overwrite"), "{error}");
        }
    }

    #[test]
    fn a_start_that_was_never_written_so_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("start.safetensors");
        let format = (FORMAT_KEY, FORMAT);
        let (none, other) = ((LAYERS, "[]"), (LAYERS, "{}"));
        for (dtype, shape, metadata, expected) in [
            (Dtype::F16, vec![2, 1], &[format, none][..], "not float32"),
            (
                Dtype::F32,
                vec![1],
                &[format, none],
                "another number of axes",
            ),
            (Dtype::F32, vec![1, 1], &[format], "no report"),
            (Dtype::F32, vec![1, 1], &[format, other], "no report"),
        ] {
            write(&path, dtype, shape, metadata);
            let error = refused(&path);
            assert!(error.contains("is damaged"), "{error}");
            assert!(error.contains(expected), "{error}");
        }
        // What should be a folder is a file.
        let error = start().save(&path.join("start")).unwrap_err();
        assert!(matches!(error, StartFileError::Write(_)), "{error}");
    }
}
