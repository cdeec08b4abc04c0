//! The tensors of a module before any is allocated.

use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::prelude::*;
use burn::tensor::DType;

use crate::map::{MapTensor, Part};
use crate::tensors::ModulePath;

/// A float tensor of a module, as far as it is known without allocating it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Dotted name.
    pub name: String,
    /// What it is to its module.
    pub part: Part,
    /// The [`LtiDense`](crate::map::LtiDense) that it belongs to, if any.
    pub projection: Option<String>,
    /// Its axes.
    pub shape: Vec<usize>,
    /// Its float type; unknown until it is allocated.
    pub dtype: Option<DType>,
    /// Burn's identity of the parameter.
    pub id: ParamId,
}

impl Listed {
    /// All float tensors of `module`, in its order.
    pub fn all<B: Backend, M: Module<B>>(module: &M) -> Vec<Self> {
        let mut lister = Lister::default();
        module.visit(&mut lister);
        lister.tensors
    }
}

#[derive(Default)]
struct Lister {
    path: ModulePath,
    tensors: Vec<Listed>,
}

impl<B: Backend> ModuleVisitor<B> for Lister {
    crate::tensors::follow_path!();

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        let of_map = MapTensor::at(&self.path);
        self.tensors.push(Listed {
            name: self.path.name(),
            part: Part::at(&self.path),
            projection: of_map.map(|tensor| tensor.projection),
            shape: param.lazy_shape().to_vec(),
            dtype: param.is_initialized().then(|| param.val().dtype()),
            id: param.id,
        });
    }
}
