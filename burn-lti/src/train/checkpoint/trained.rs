//! The parameters that train, as a safetensors file.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use burn::module::{ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::prelude::*;
use burn::tensor::backend::AutodiffBackend;
use burn::tensor::{DType, TensorData};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensorError, SafeTensors, serialize};

use super::CheckpointError;
use crate::compat;
use crate::tensors::ModulePath;

/// The parameters of `module` that train as the bytes of a file; all must be of the float type `kept`.
pub(super) fn to_bytes<B: AutodiffBackend, M: Module<B>>(
    module: &M,
    kept: DType,
    path: &Path,
) -> Result<Vec<u8>, CheckpointError> {
    let mut ids = HashMap::new();
    let mut tensors = Vec::new();
    for (name, parameter) in parameters(module) {
        let found = parameter.values.dtype();
        let Some(dtype) = file_type(found).filter(|_| found == kept) else {
            return Err(CheckpointError::StateType {
                tensor: name,
                found,
                kept,
            });
        };
        ids.insert(name.clone(), parameter.id.val().to_string());
        tensors.push((name, dtype, parameter.shape, parameter.values.into_data()));
    }
    let layout = |source| CheckpointError::Tensors {
        path: path.to_owned(),
        source,
    };
    let views: Result<Vec<_>, SafeTensorError> = tensors
        .iter()
        .map(|(name, dtype, shape, data)| {
            let view = TensorView::new(*dtype, shape.clone(), data.as_bytes())?;
            Ok((name, view))
        })
        .collect();
    serialize(views.map_err(layout)?, Some(ids)).map_err(layout)
}

/// The tensors of such a file, by name.
pub(super) struct TrainedFile(BTreeMap<String, FileTensor>);

struct FileTensor {
    id: ParamId,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl TrainedFile {
    pub(super) fn parse(bytes: &[u8], path: &Path) -> Result<Self, CheckpointError> {
        let broken = |source| CheckpointError::Tensors {
            path: path.to_owned(),
            source,
        };
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(broken)?;
        let id = |name: &str| {
            let id = header.metadata().as_ref()?.get(name)?;
            id.parse::<u64>().ok().map(ParamId::from)
        };
        let file = SafeTensors::deserialize(bytes).map_err(broken)?;
        let tensors = file.iter().map(|(name, view)| {
            let tensor = FileTensor {
                id: id(name).ok_or_else(|| CheckpointError::ParamId {
                    path: path.to_owned(),
                    tensor: name.to_owned(),
                })?,
                dtype: view.dtype(),
                shape: view.shape().to_vec(),
                bytes: view.data().to_vec(),
            };
            Ok((name.to_owned(), tensor))
        });
        tensors.collect::<Result<_, _>>().map(Self)
    }

    /// Whether these are the parameters of `module` that train. `checkpoint` is for the message.
    pub(super) fn check<B: AutodiffBackend, M: Module<B>>(
        &self,
        module: &M,
        checkpoint: &Path,
    ) -> Result<(), CheckpointError> {
        let path = || checkpoint.to_owned();
        let parameters = parameters(module);
        for (name, parameter) in &parameters {
            match self.0.get(name) {
                None => return Err(missing(path(), name)),
                Some(tensor) => tensor.check(name, parameter, path())?,
            }
        }
        match self.0.keys().find(|name| !parameters.contains_key(*name)) {
            Some(unused) => Err(CheckpointError::Unused {
                path: path(),
                tensor: unused.clone(),
            }),
            None => Ok(()),
        }
    }

    /// `module` with the values and ids of these tensors, once [`Self::check`] has passed.
    pub(super) fn put_into<B: AutodiffBackend, M: Module<B>>(self, module: M) -> M {
        module.map(&mut Restorer {
            place: ModulePath::default(),
            tensors: self.0,
        })
    }
}

impl FileTensor {
    fn check<B: Backend>(
        &self,
        name: &str,
        parameter: &Parameter<B>,
        path: PathBuf,
    ) -> Result<(), CheckpointError> {
        let tensor = name.to_owned();
        if self.shape != parameter.shape {
            return Err(CheckpointError::Shape {
                path,
                tensor,
                found: self.shape.clone(),
                expected: parameter.shape.clone(),
            });
        }
        let expected = parameter.values.dtype();
        if file_type(expected) != Some(self.dtype) {
            return Err(CheckpointError::FloatType {
                path,
                tensor,
                found: format!("{:?}", self.dtype),
                expected: format!("{expected:?}"),
            });
        }
        Ok(())
    }
}

/// A parameter that trains, off the graph, its values in one row.
struct Parameter<B: Backend> {
    id: ParamId,
    shape: Vec<usize>,
    values: Tensor<B, 1>,
}

/// Every parameter of `module` that trains, by dotted name.
fn parameters<B: AutodiffBackend, M: Module<B>>(
    module: &M,
) -> BTreeMap<String, Parameter<B::InnerBackend>> {
    let mut collector = Collector::<B> {
        place: ModulePath::default(),
        found: BTreeMap::new(),
    };
    module.visit(&mut collector);
    collector.found
}

struct Collector<B: AutodiffBackend> {
    place: ModulePath,
    found: BTreeMap<String, Parameter<B::InnerBackend>>,
}

impl<B: AutodiffBackend> ModuleVisitor<B> for Collector<B> {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.place.enter(name, container_type);
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.place.exit();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        if !param.is_require_grad() {
            return;
        }
        let value = compat::inner(&param.val());
        let shape = value.dims().to_vec();
        let parameter = Parameter {
            id: param.id,
            values: value.reshape([shape.iter().product::<usize>()]),
            shape,
        };
        self.found.insert(self.place.name(), parameter);
    }
}

struct Restorer {
    place: ModulePath,
    tensors: BTreeMap<String, FileTensor>,
}

impl<B: AutodiffBackend> ModuleMapper<B> for Restorer {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.place.enter(name, container_type);
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.place.exit();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        if !param.is_require_grad() {
            return param;
        }
        let Some(tensor) = self.tensors.remove(&self.place.name()) else {
            return param; // the check before knows of none
        };
        let (_, old, mapper) = param.consume();
        let (device, dtype) = (old.device(), old.dtype());
        let data = TensorData::from_bytes_vec(tensor.bytes, tensor.shape, dtype);
        let value = Tensor::from_data(data, (&device, dtype)).require_grad();
        Param::from_mapped_value(tensor.id, value, mapper)
    }
}

/// What safetensors calls a float type that it has.
fn file_type(dtype: DType) -> Option<Dtype> {
    match dtype {
        DType::F64 => Some(Dtype::F64),
        DType::F32 => Some(Dtype::F32),
        DType::F16 => Some(Dtype::F16),
        DType::BF16 => Some(Dtype::BF16),
        _ => None,
    }
}

fn missing(path: PathBuf, name: &str) -> CheckpointError {
    CheckpointError::Missing {
        path,
        tensor: name.to_owned(),
    }
}
