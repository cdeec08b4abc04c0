//! A module's float parameters by name.
//!
//! Names are told apart as `burn_lti` tells them: enum variants add nothing. Written once more here, so that a slip there is not repeated unseen.

use std::collections::BTreeMap;

use burn::module::{ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::optim::GradientsParams;
use burn::prelude::*;
use burn::tensor::backend::AutodiffBackend;
use burn::tensor::{DType, TensorData};

use crate::numbers::{Numbers, values};

/// A parameter as it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Parameter {
    /// Burn's identity of it.
    pub id: ParamId,
    /// The struct that holds it.
    pub owner: String,
    /// Its axes.
    pub shape: Vec<usize>,
    /// Its float type.
    pub dtype: DType,
    /// Whether it wants a gradient.
    pub trains: bool,
    /// The bits of its values, row-major.
    pub bits: Vec<u32>,
}

/// All float parameters of a module, by dotted name.
pub fn parameters<B: Backend, M: Module<B>>(module: &M) -> BTreeMap<String, Parameter> {
    let mut reader = Reader::default();
    module.visit(&mut reader);
    reader.found
}

/// Whether a parameter is part of a map or the bias beside one, not its `C`.
pub fn in_map(name: &str, parameter: &Parameter) -> bool {
    ["LtiDense", "AxisMap"].contains(&parameter.owner.as_str()) && !name.ends_with(".c")
}

/// The gradient of every parameter that has one, by dotted name, row-major.
pub fn gradients<A: AutodiffBackend, M: Module<A>>(
    module: &M,
    gradients: &GradientsParams,
) -> BTreeMap<String, Vec<f64>> {
    let mut reader = GradientReader {
        place: Place::default(),
        gradients,
        found: BTreeMap::new(),
    };
    module.visit(&mut reader);
    reader.found
}

/// The module with the values of its parameters changed in place by `change`, which is told each
/// name. Identities and whether a parameter trains stay as they are.
pub fn edit<B: Backend, M: Module<B>>(module: M, change: impl FnMut(&str, &mut Vec<f32>)) -> M {
    module.map(&mut Editor {
        place: Place::default(),
        change,
    })
}

/// The module with random values everywhere, so that nothing is left out unseen: norm scales lie
/// around 1, everything else, biases too, around 0.
pub fn fill_random<B: Backend, M: Module<B>>(module: M, seed: u64) -> M {
    let mut numbers = Numbers::new(seed);
    edit(module, |name, values| {
        let centre = if name.ends_with("gamma") { 1.0 } else { 0.0 };
        for value in values.iter_mut() {
            *value = centre + 0.3 * numbers.normal(1)[0];
        }
    })
}

/// The module with one value changed: the largest of that parameter, by `share` of itself.
///
/// # Panics
///
/// If there is no such parameter, or all of it is zero.
pub fn perturb<B: Backend, M: Module<B>>(module: M, parameter: &str, share: f32) -> M {
    let mut found = false;
    let module = edit(module, |name, values| {
        if name == parameter {
            found = true;
            perturb_largest(values, share);
        }
    });
    assert!(found, "no parameter `{parameter}`");
    module
}

/// Changes the largest of `values` by `share` of itself.
///
/// # Panics
///
/// If all are zero.
pub fn perturb_largest(values: &mut [f32], share: f32) {
    let largest = values
        .iter_mut()
        .max_by(|a, b| a.abs().total_cmp(&b.abs()))
        .filter(|value| **value != 0.0)
        .expect("a value that is not zero");
    *largest *= 1.0 + share;
}

/// Where a traversal stands.
#[derive(Default)]
struct Place(Vec<(String, String)>);

impl Place {
    fn enter(&mut self, name: &str, container: &str) {
        self.0.push((name.to_owned(), container.to_owned()));
    }

    fn exit(&mut self) {
        self.0.pop();
    }

    fn name(&self) -> String {
        let unseen = |container: &str| container.starts_with("Enum:");
        let names: Vec<&str> = self
            .0
            .iter()
            .filter(|(_, container)| !unseen(container))
            .map(|(name, _)| name.as_str())
            .collect();
        names.join(".")
    }

    fn owner(&self) -> String {
        let structs = self.0.iter().rev();
        structs
            .filter_map(|(_, container)| container.strip_prefix("Struct:"))
            .next()
            .unwrap_or_default()
            .to_owned()
    }
}

macro_rules! track_place {
    () => {
        fn enter_module(&mut self, name: &str, container_type: &str) {
            self.place.enter(name, container_type);
        }

        fn exit_module(&mut self, _name: &str, _container_type: &str) {
            self.place.exit();
        }
    };
}

#[derive(Default)]
struct Reader {
    place: Place,
    found: BTreeMap<String, Parameter>,
}

impl<B: Backend> ModuleVisitor<B> for Reader {
    track_place!();

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        let value = param.val();
        let data = value.to_data().convert::<f32>();
        let values = data.as_slice::<f32>().expect("converted to float32");
        let parameter = Parameter {
            id: param.id,
            owner: self.place.owner(),
            shape: value.dims().to_vec(),
            dtype: value.dtype(),
            trains: param.is_require_grad(),
            bits: values.iter().map(|value| value.to_bits()).collect(),
        };
        let earlier = self.found.insert(self.place.name(), parameter);
        assert!(earlier.is_none(), "two parameters of one name");
    }
}

struct GradientReader<'a> {
    place: Place,
    gradients: &'a GradientsParams,
    found: BTreeMap<String, Vec<f64>>,
}

impl<A: AutodiffBackend> ModuleVisitor<A> for GradientReader<'_> {
    track_place!();

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<A, D>>) {
        if let Some(gradient) = self.gradients.get::<A::InnerBackend, D>(param.id) {
            self.found.insert(self.place.name(), values(&gradient));
        }
    }
}

struct Editor<F> {
    place: Place,
    change: F,
}

impl<B: Backend, F: FnMut(&str, &mut Vec<f32>)> ModuleMapper<B> for Editor<F> {
    track_place!();

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        let name = self.place.name();
        param.map(|value| {
            let (shape, device, trains) = (value.dims(), value.device(), value.is_require_grad());
            let mut values: Vec<f32> = value.into_data().iter().collect();
            (self.change)(&name, &mut values);
            Tensor::from_data(TensorData::new(values, shape), &device).set_require_grad(trains)
        })
    }
}
