//! The parameters that train, as a safetensors file.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use burn::module::{ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::prelude::*;
use burn::tensor::backend::AutodiffBackend;
use burn::tensor::{DType, TensorData};
use safetensors::tensor::TensorView;

use super::CheckpointError;
use crate::compat;
use crate::files::{TensorFile, safetensors_float};
use crate::tensors::ModulePath;

/// The parameters of `module` that train as the bytes of a file; all must be of the float type `kept`.
pub(super) fn to_bytes<B: AutodiffBackend, M: Module<B>>(
    module: &M,
    kept: DType,
    path: &Path,
) -> Result<Vec<u8>, CheckpointError> {
    let mut ids = HashMap::new();
    let mut values = Vec::new();
    for (name, parameter) in parameters(module) {
        let found = parameter.values.dtype();
        let Some(dtype) = safetensors_float(found).filter(|_| found == kept) else {
            return Err(CheckpointError::refused(format!(
                "`{name}` trains in {found:?}, but Burn brings an optimizer's state back in {kept:?}: \
                 train it in {kept:?}"
            )));
        };
        ids.insert(name.clone(), parameter.id.val().to_string());
        values.push((name, dtype, parameter.shape, parameter.values.into_data()));
    }
    let tensors = values.iter().map(|(name, dtype, shape, data)| {
        let view = TensorView::new(*dtype, shape.clone(), data.as_bytes())?;
        Ok((name.clone(), view))
    });
    let file = tensors.collect::<Result<_, _>>().map(|tensors| TensorFile {
        metadata: Some(ids),
        tensors,
    });
    let bytes = file.and_then(|file| file.to_bytes());
    bytes.map_err(CheckpointError::tensors(path))
}

/// The tensors of such a file and their parameters' ids, by name.
pub(super) struct TrainedFile<'a>(BTreeMap<String, (ParamId, TensorView<'a>)>);

impl<'a> TrainedFile<'a> {
    pub(super) fn parse(bytes: &'a [u8], path: &Path) -> Result<Self, CheckpointError> {
        let file = TensorFile::from_bytes(bytes).map_err(CheckpointError::tensors(path))?;
        let ids = file.metadata.unwrap_or_default();
        let tensors = file.tensors.into_iter().map(|(name, tensor)| {
            let id = ids.get(&name).and_then(|id| id.parse::<u64>().ok());
            let id = id.ok_or_else(|| {
                CheckpointError::refused(format!(
                    "{} names no parameter id for `{name}`: save with this library, not another program",
                    path.display()
                ))
            })?;
            Ok((name, (ParamId::from(id), tensor)))
        });
        tensors.collect::<Result<_, _>>().map(Self)
    }

    /// Whether these are the parameters of `module` that train. `checkpoint` is for the message.
    pub(super) fn check<B: AutodiffBackend, M: Module<B>>(
        &self,
        module: &M,
        checkpoint: &Path,
    ) -> Result<(), CheckpointError> {
        let path = checkpoint.display();
        let parameters = parameters(module);
        let unused = self.0.keys().find(|name| !parameters.contains_key(*name));
        let differences = parameters.iter().filter_map(|(name, parameter)| {
            let Some((_, tensor)) = self.0.get(name) else {
                return Some(format!(
                    "{path} has no tensor `{name}`, which trains: let train what was trained when it was \
                     saved"
                ));
            };
            let (shape, dtype) = (&parameter.shape, parameter.values.dtype());
            let difference = if tensor.shape() != shape {
                format!("{:?} in {path} and {shape:?}", tensor.shape())
            } else if safetensors_float(dtype) != Some(tensor.dtype()) {
                format!("{:?} in {path} and {dtype:?}", tensor.dtype())
            } else {
                return None;
            };
            Some(format!(
                "`{name}` is {difference} in the model: make the model that was saved"
            ))
        });
        let unused = unused.map(|name| {
            format!(
                "{path} holds `{name}`, which does not train: let train what was trained when it was saved"
            )
        });
        match differences.chain(unused).next() {
            Some(difference) => Err(CheckpointError::refused(difference)),
            None => Ok(()),
        }
    }

    /// `module` with the values and ids of these tensors, once [`Self::check`] has passed.
    pub(super) fn put_into<B: AutodiffBackend, M: Module<B>>(self, module: M) -> M {
        module.map(&mut Restorer {
            path: ModulePath::default(),
            tensors: self.0,
        })
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
        path: ModulePath::default(),
        found: BTreeMap::new(),
    };
    module.visit(&mut collector);
    collector.found
}

struct Collector<B: AutodiffBackend> {
    path: ModulePath,
    found: BTreeMap<String, Parameter<B::InnerBackend>>,
}

impl<B: AutodiffBackend> ModuleVisitor<B> for Collector<B> {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.path.enter(name, container_type);
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.exit();
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
        self.found.insert(self.path.name(), parameter);
    }
}

struct Restorer<'a> {
    path: ModulePath,
    tensors: BTreeMap<String, (ParamId, TensorView<'a>)>,
}

impl<B: AutodiffBackend> ModuleMapper<B> for Restorer<'_> {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.path.enter(name, container_type);
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.exit();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        if !param.is_require_grad() {
            return param;
        }
        let Some((id, tensor)) = self.tensors.remove(&self.path.name()) else {
            return param; // the check before knows of none
        };
        let (_, old, mapper) = param.consume();
        let (device, dtype) = (old.device(), old.dtype());
        let data =
            TensorData::from_bytes_vec(tensor.data().to_vec(), tensor.shape().to_vec(), dtype);
        let value = Tensor::from_data(data, (&device, dtype)).require_grad();
        Param::from_mapped_value(id, value, mapper)
    }
}
