//! [`LearnToInitDecoderLayer`]: any decoder layer, its projections swapped for maps.

use std::marker::PhantomData;
use std::ops::Deref;

use burn::nn::Linear;
use burn::prelude::*;

use super::{DecoderError, Projection};
use crate::dense::{KernelPrecision, LtiDenseConfig, MapKind, ProjectionKind};
use crate::geometry::{Axes, Role, Site};
use crate::start::Start;

/// A plain decoder layer that can hand over its attention projections.
pub trait AttentionBlock<B: Backend>: Module<B> {
    /// The same layer with [`Projection`]s in the place of `Linear`s.
    type Learning: Module<B>;

    /// The layer's own grids.
    fn geometry(&self) -> Axes;

    /// The layer with each of its four projections replaced by what `swap` makes of it. `swap` must
    /// be called exactly once for each role.
    ///
    /// # Errors
    ///
    /// The first error of `swap`.
    fn swap_projections<E>(
        self,
        swap: impl FnMut(Role, Linear<B>) -> Result<Projection<B>, E>,
    ) -> Result<Self::Learning, E>;
}

/// The form of the map in each role.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoleMaps {
    /// Of the query projection.
    pub query: MapKind,
    /// Of the key projection.
    pub key: MapKind,
    /// Of the value projection.
    pub value: MapKind,
    /// Of the output projection.
    pub out: MapKind,
}

impl RoleMaps {
    /// The same form in all roles.
    pub const fn all(map: MapKind) -> Self {
        Self {
            query: map,
            key: map,
            value: map,
            out: map,
        }
    }

    /// The form in `role`.
    pub const fn get(&self, role: Role) -> MapKind {
        match role {
            Role::Query => self.query,
            Role::Key => self.key,
            Role::Value => self.value,
            _ => self.out,
        }
    }
}

/// The layers that learn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LayerSelection {
    /// Every layer.
    All,
    /// The layers with these indices, from 0.
    Only(Vec<usize>),
}

/// How a decoder is made to learn.
#[derive(Clone, Debug)]
pub struct LtiSpec {
    /// The teacher's grids.
    pub teacher: Axes,
    /// Which layers learn.
    pub layers: LayerSelection,
    /// The form of the maps.
    pub maps: RoleMaps,
    /// Where the maps begin.
    pub start: Start,
    /// Precision of the kernels' contraction.
    pub precision: KernelPrecision,
    /// Seed of a random start.
    pub seed: u64,
}

impl LtiSpec {
    /// Factored maps on all layers, started from groups of teacher heads, which needs no text. (Recipes
    /// begin with [`Start::Calibrated`].)
    pub const fn new(teacher: Axes) -> Self {
        Self {
            teacher,
            layers: LayerSelection::All,
            maps: RoleMaps::all(MapKind::Factored),
            start: Start::Grouped,
            precision: KernelPrecision::Default,
            seed: 0,
        }
    }

    /// Whether `layer` has maps.
    pub(crate) fn selects(&self, layer: usize) -> bool {
        match &self.layers {
            LayerSelection::All => true,
            LayerSelection::Only(indices) => indices.contains(&layer),
        }
    }

    fn check(&self, layers: usize) -> Result<(), DecoderError> {
        let nothing = match &self.layers {
            LayerSelection::All => layers == 0,
            LayerSelection::Only(indices) => {
                if let Some(&index) = indices.iter().find(|index| **index >= layers) {
                    return Err(DecoderError::LayerOutOfRange {
                        index,
                        last: layers.saturating_sub(1),
                    });
                }
                indices.is_empty()
            }
        };
        match nothing {
            true => Err(DecoderError::NoLayers { layers }),
            false => Ok(()),
        }
    }

    /// The seed of what is random in one projection's map.
    pub(crate) const fn seed_of(&self, layer: usize, role: Role) -> u64 {
        Site::new(layer, role).seed(self.seed)
    }

    fn dense(&self, student: &Axes, layer: usize, role: Role) -> LtiDenseConfig {
        LtiDenseConfig::new(
            ProjectionKind::of(role),
            student.d_model,
            self.teacher.grid(role),
            student.grid(role),
        )
        .with_map(self.maps.get(role))
        .with_start(self.start, self.seed_of(layer, role))
        .with_precision(self.precision)
    }
}

/// A decoder layer whose projections are [`Projection`]s: maps of the teacher's where the layer
/// learns, the layer's own `Linear`s where it does not.
///
/// It is used like the layer it wraps (it derefs to it), and adds nothing to the names of its
/// tensors.
#[derive(Module, Debug)]
pub struct LearnToInitDecoderLayer<B: Backend, L: Module<B>> {
    layer: L,
    #[module(skip)]
    _backend: PhantomData<B>,
}

impl<B: Backend, L: Module<B>> LearnToInitDecoderLayer<B, L> {
    /// Swaps query, key, value and out of `layer` for maps; their teacher kernels are still to come.
    ///
    /// # Errors
    ///
    /// [`DecoderError::Projection`] naming the role that cannot be swapped.
    fn swap<P>(layer: P, index: usize, spec: &LtiSpec) -> Result<Self, DecoderError>
    where
        P: AttentionBlock<B, Learning = L>,
    {
        let student = layer.geometry();
        let swapped = layer.swap_projections(|role, linear: Linear<B>| {
            let config = spec
                .dense(&student, index, role)
                .with_bias(linear.bias.is_some());
            config
                .check_replaces(&linear)
                .and_then(|()| config.init_awaiting_teacher(&linear.weight.lazy_device()))
                .map(Projection::Lti)
                .map_err(|source| DecoderError::Projection {
                    layer: index,
                    role,
                    source,
                })
        })?;
        Ok(Self::around(swapped))
    }

    /// A layer that does not learn to start: its projections stay as they are.
    fn keep<P>(layer: P) -> Self
    where
        P: AttentionBlock<B, Learning = L>,
    {
        let kept = layer.swap_projections(|_, linear| {
            Ok::<_, std::convert::Infallible>(Projection::Linear(linear))
        });
        match kept {
            Ok(layer) => Self::around(layer),
        }
    }

    fn around(layer: L) -> Self {
        Self {
            layer,
            _backend: PhantomData,
        }
    }
}

impl<B: Backend, L: Module<B>> Deref for LearnToInitDecoderLayer<B, L> {
    type Target = L;

    fn deref(&self) -> &L {
        &self.layer
    }
}

/// Makes a decoder's layers learn as `spec` says.
///
/// # Errors
///
/// [`DecoderError`] if a chosen layer does not exist, none is chosen, or a projection cannot be
/// swapped.
pub fn learn_to_init<B: Backend, P: AttentionBlock<B>>(
    layers: Vec<P>,
    spec: &LtiSpec,
) -> Result<Vec<LearnToInitDecoderLayer<B, P::Learning>>, DecoderError> {
    spec.check(layers.len())?;
    layers
        .into_iter()
        .enumerate()
        .map(|(index, layer)| match spec.selects(index) {
            true => LearnToInitDecoderLayer::swap(layer, index, spec),
            false => Ok(LearnToInitDecoderLayer::keep(layer)),
        })
        .collect()
}
