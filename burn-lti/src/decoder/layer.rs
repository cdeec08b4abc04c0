//! [`LearnToInitDecoderLayer`]: any decoder layer, its weights swapped for maps.

use std::collections::{BTreeMap, BTreeSet};

use burn::nn::Linear;
use burn::prelude::*;

use super::{DecoderError, Projection};
use crate::geometry::{Axes, Axis, Role, Site};
use crate::map::{KernelPrecision, LtiDenseConfig, MapKind, Start};

/// A plain decoder layer that can hand over its weights.
pub trait LearnToInitDecoderLayer<B: Backend>: Module<B> {
    /// The same layer with [`Projection`]s in the place of `Linear`s.
    type Learning: Module<B>;

    /// The layer's own axes.
    fn axes(&self) -> Axes;

    /// The layer with each of its weights replaced by what `swap` makes of it. `swap` must be called
    /// exactly once for each role that the layer has.
    ///
    /// # Errors
    ///
    /// The first error of `swap`.
    fn swap_weights<E>(
        self,
        swap: impl FnMut(Role, Linear<B>) -> Result<Projection<B>, E>,
    ) -> Result<Self::Learning, E>;
}

/// The form of the map in each role that has one, along the axis that is the role's own, at some sites another, and
/// along the width of the residual stream, on which one side of every weight lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoleMaps {
    of_roles: BTreeMap<Role, MapKind>,
    of_sites: BTreeMap<Site, MapKind>,
    width: Option<MapKind>,
    filled: BTreeSet<Axis>,
}

impl RoleMaps {
    /// The same form in all four projections of the attention.
    pub fn attention(map: MapKind) -> Self {
        Role::ATTENTION
            .map(|role| (role, map))
            .into_iter()
            .collect()
    }

    /// The same with another form in `role`.
    pub fn with(mut self, role: Role, map: MapKind) -> Self {
        self.of_roles.insert(role, map);
        self
    }

    /// The same with a map of this form along the width, on its side of every weight.
    ///
    /// A gain of a norm does not commute with such a map. It belongs into the teacher's weights that read what is
    /// normed, `diag(gain) C`, and the student's begin as one.
    pub const fn with_width(mut self, map: MapKind) -> Self {
        self.width = Some(map);
        self
    }

    /// The form along the width; `None` where it is kept.
    pub const fn width(&self) -> Option<MapKind> {
        self.width
    }

    /// The same with maps along `axis` that have no values of a start: they wait to be filled by name, as the teacher's
    /// tensors are.
    pub fn filled_along(mut self, axis: Axis) -> Self {
        self.filled.insert(axis);
        self
    }

    /// The same with another form at `site`: a map that commutes with a rotary embedding belongs into layers that
    /// have one.
    pub fn with_at(mut self, site: Site, map: MapKind) -> Self {
        self.of_sites.insert(site, map);
        self
    }

    /// The form in `role`, but for sites of their own; `None` where weights stay as they are.
    pub fn get(&self, role: Role) -> Option<MapKind> {
        self.of_roles.get(&role).copied()
    }

    /// The form at `site`; `None` where the weight stays as it is.
    pub fn at(&self, site: Site) -> Option<MapKind> {
        let own = self.of_sites.get(&site).copied();
        own.or_else(|| self.get(site.role))
    }

    /// The roles that have maps.
    pub fn roles(&self) -> impl Iterator<Item = Role> {
        self.of_roles.keys().copied()
    }
}

impl FromIterator<(Role, MapKind)> for RoleMaps {
    fn from_iter<I: IntoIterator<Item = (Role, MapKind)>>(maps: I) -> Self {
        Self {
            of_roles: maps.into_iter().collect(),
            of_sites: BTreeMap::new(),
            width: None,
            filled: BTreeSet::new(),
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
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LtiSpec {
    /// The teacher's axes.
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
    /// Factored maps of the attention on all layers, started from groups of teacher heads, which needs no
    /// text. (Recipes begin with [`Start::Calibrated`].)
    pub fn new(teacher: Axes) -> Self {
        Self {
            teacher,
            layers: LayerSelection::All,
            maps: RoleMaps::attention(MapKind::Factored),
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

    /// The map in the place of the weight at `site` of a student of these axes; `None` where the weight
    /// stays as it is.
    pub fn config(&self, student: &Axes, site: Site) -> Option<LtiDenseConfig> {
        let own = self.maps.at(site);
        let any = own
            .or(self.maps.width)
            .filter(|_| self.selects(site.layer))?;
        let mut config = LtiDenseConfig::new(site.role, &self.teacher, student, any)
            .with_start(self.start, site.seed(self.seed))
            .with_precision(self.precision);
        for (axis, side) in site
            .role
            .axes()
            .into_iter()
            .zip([&mut config.left, &mut config.right])
        {
            side.map = match axis {
                Axis::Width => self.maps.width,
                _ => own,
            };
            side.start = self
                .maps
                .filled
                .contains(&axis)
                .then_some(Start::Calibrated);
        }
        Some(config)
    }

    /// What stands in the place of `linear` at `site` of a student of these axes: a map whose teacher is
    /// still to come, or `linear` itself.
    ///
    /// # Errors
    ///
    /// [`DecoderError::Weight`], [`DecoderError::SharedAxis`] if the map that is asked for cannot stand
    /// there.
    pub fn swap<B: Backend>(
        &self,
        student: &Axes,
        site: Site,
        linear: Linear<B>,
    ) -> Result<Projection<B>, DecoderError> {
        let Some(config) = self.config(student, site) else {
            return Ok(Projection::Linear(linear));
        };
        let axis = site.role.mapped_axis();
        let shape = linear.weight.lazy_shape();
        let config = match (student.grid_of(axis), self.maps.at(site)) {
            (Some(_), _) => config,
            (None, Some(_)) => return Err(DecoderError::SharedAxis { site, axis }),
            (None, None) => config.with_shared_axis(match site.role.axes() {
                [Axis::Width, _] => shape[1],
                _ => shape[0],
            }),
        };
        let config = config.with_bias(linear.bias.is_some());
        config
            .check_replaces(&linear)
            .and_then(|()| config.init_awaiting_teacher(&linear.weight.lazy_device()))
            .map(Projection::Lti)
            .map_err(|source| DecoderError::Weight { site, source })
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
}

/// Makes a decoder's layers learn as `spec` says.
///
/// # Errors
///
/// [`DecoderError`] if a chosen layer does not exist, none is chosen, or a weight cannot be swapped.
pub fn learn_to_init<B: Backend, L: LearnToInitDecoderLayer<B>>(
    layers: Vec<L>,
    spec: &LtiSpec,
) -> Result<Vec<L::Learning>, DecoderError> {
    spec.check(layers.len())?;
    let layers = layers.into_iter().enumerate();
    layers
        .map(|(index, layer)| {
            let student = layer.axes();
            layer.swap_weights(|role, linear| spec.swap(&student, Site::new(index, role), linear))
        })
        .collect()
}
