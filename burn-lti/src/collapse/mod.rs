//! A learning model becomes an ordinary one.
//!
//! A Burn [`ModuleVisitor`](burn::module::ModuleVisitor) walks the model, finds every
//! [`LtiDense`](crate::dense::LtiDense) by what Burn tells of its fields, and yields the tensors of
//! the standard model: `weight` and `bias` where a `Linear` keeps them, everything else as it is.
//! The visitor knows no model: any module that holds an `LtiDense` somewhere can be collapsed.

mod error;
mod visitor;

use std::collections::BTreeMap;

use burn::module::Module;
use burn::nn::LinearRecord;
use burn::prelude::*;

pub use error::CollapseError;
pub(crate) use visitor::{LtiParts, lti_parts};

use crate::compat;
use crate::dense::{KernelPrecision, ProjectionKind};
use crate::inject::{InjectRules, inject};
use crate::tensors::{TensorSet, join_name};

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
    let (mut tensors, maps) = visitor::visit(model);
    let mut projections = Vec::new();
    for (name, parts) in maps {
        let kernel = parts.kernel(&name, precision)?;
        let [first, second, third] = kernel.dims();
        let dtype = kernel.dtype();
        let weight = match parts.kind() {
            Some(ProjectionKind::Output) => kernel.reshape([first * second, third]),
            _ => kernel.reshape([first, second * third]),
        };
        tensors.insert(
            &join_name(&name, "weight"),
            "Linear",
            compat::detached(weight),
        );
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
        let rules = InjectRules::by_name(&skeleton, [])?;
        let (plain, injection) = inject(skeleton, &self.tensors, &rules)?;
        match injection.unused.is_empty() {
            true => Ok(plain),
            false => Err(CollapseError::Leftover {
                names: injection.unused,
            }),
        }
    }
}
