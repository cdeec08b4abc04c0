//! A learning model becomes an ordinary one.
//!
//! A Burn [`ModuleVisitor`] walks the model, finds every
//! [`LtiDense`](crate::map::LtiDense) by what Burn tells of its fields, and yields the tensors of
//! the standard model: `weight` and `bias` where a `Linear` keeps them, everything else as it is.
//! The visitor knows no model: any module that holds an `LtiDense` somewhere can be collapsed.

mod error;

use std::collections::BTreeMap;

use burn::module::{Module, ModuleVisitor, Param};
use burn::nn::LinearRecord;
use burn::prelude::*;

pub use error::CollapseError;

use crate::blueprint::Rules;
use crate::compat;
use crate::inject::inject;
use crate::map::{KernelPrecision, NoKernel, Part, lti_parts};
use crate::tensors::{ModulePath, TensorSet, join_name};

/// The tensors of the standard model that a learning model stands for.
#[derive(Clone, Debug)]
pub struct Collapsed<B: Backend> {
    tensors: TensorSet<B>,
    projections: Vec<String>,
}

/// Folds every map of `model` into the kernel it stands for.
///
/// `precision` should be the one the maps were trained with.
///
/// # Errors
///
/// [`CollapseError`] if a map is incomplete or its teacher never arrived.
pub fn collapse<B: Backend, M: Module<B>>(
    model: &M,
    precision: KernelPrecision,
) -> Result<Collapsed<B>, CollapseError> {
    let mut plain = PlainTensors {
        path: ModulePath::default(),
        found: TensorSet::new(),
    };
    model.visit(&mut plain);
    let mut tensors = plain.found;
    let mut projections = Vec::new();
    for (name, parts) in lti_parts(model) {
        let kernel = parts.kernel(precision).map_err(|reason| {
            let name = name.clone();
            match reason {
                NoKernel::MissingTeacher => CollapseError::MissingTeacher { name },
                NoKernel::NotAMap => CollapseError::NotAMap { name },
                NoKernel::Misfit(source) => CollapseError::Contraction { name, source },
            }
        })?;
        let dtype = kernel.dtype();
        let weight = compat::detached(kernel);
        tensors.insert(&join_name(&name, "weight"), "Linear", weight);
        if let Some(bias) = parts.bias {
            // Of one float type with the weight, as a `Linear` needs it.
            tensors.insert(&join_name(&name, "bias"), "Linear", bias.cast(dtype));
        }
        projections.push(name);
    }
    Ok(Collapsed {
        tensors,
        projections,
    })
}

impl<B: Backend> Collapsed<B> {
    /// All tensors of the standard model, by name.
    pub fn tensors(&self) -> &TensorSet<B> {
        &self.tensors
    }

    /// The names of the projections that were maps.
    pub fn projections(&self) -> &[String] {
        &self.projections
    }

    /// The record of each projection that was a map: what a `Linear` in its place loads.
    pub fn linear_records(&self) -> BTreeMap<String, LinearRecord<B>> {
        self.projections
            .iter()
            .filter_map(|name| {
                let weight = self.tensors.get(&join_name(name, "weight"))?;
                let bias = self.tensors.get(&join_name(name, "bias"));
                let shape: [usize; 2] = weight.tensor.shape().try_into().ok()?;
                let record = LinearRecord {
                    weight: compat::trainable(weight.tensor.to_rank(shape)),
                    bias: bias.map(|bias| {
                        compat::trainable(bias.tensor.to_rank([bias.tensor.num_elements()]))
                    }),
                };
                Some((name.clone(), record))
            })
            .collect()
    }

    /// Fills a plain model of the student's geometry.
    ///
    /// # Errors
    ///
    /// [`CollapseError::Plain`] if a tensor of the plain model is missing or has another shape,
    /// [`CollapseError::Leftover`] if the plain model has no place for one.
    pub fn into_plain<P: Module<B>>(self, skeleton: P) -> Result<P, CollapseError> {
        let (plain, blueprint) = inject(skeleton, &self.tensors, &Rules::by_name())?;
        match blueprint.unused.is_empty() {
            true => Ok(plain),
            false => Err(CollapseError::Leftover {
                names: blueprint.unused,
            }),
        }
    }
}

/// Takes every tensor that belongs to no map.
struct PlainTensors<B: Backend> {
    path: ModulePath,
    found: TensorSet<B>,
}

impl<B: Backend> ModuleVisitor<B> for PlainTensors<B> {
    crate::tensors::follow_path!();

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        if Part::at(&self.path) == Part::Plain {
            let value = compat::detached(param.val());
            self.found
                .insert(&self.path.name(), self.path.owner(), value);
        }
    }
}
