//! A module's tensors by name, whatever their rank: what travels between models and files.

use std::collections::BTreeMap;

use burn::module::{ModuleVisitor, Param};
use burn::prelude::*;
use burn::tensor::backend::AutodiffBackend;
use burn::tensor::{DType, TensorMetadata, TensorPrimitive};

use crate::compat;

/// Where a visitor or mapper stands in the module tree.
///
/// Burn tells both each field it enters and the type that holds it. Enum variants are no part of a tensor's
/// name, so that a learning model and its plain twin name the same tensor alike.
#[derive(Debug, Default)]
pub(crate) struct ModulePath {
    frames: Vec<Frame>,
}

/// In a visitor or mapper with a field `path`: keeps it where the traversal stands.
macro_rules! follow_path {
    () => {
        fn enter_module(&mut self, name: &str, container_type: &str) {
            self.path.enter(name, container_type);
        }

        fn exit_module(&mut self, _name: &str, _container_type: &str) {
            self.path.exit();
        }
    };
}
pub(crate) use follow_path;

#[derive(Debug)]
struct Frame {
    name: String,
    container: String,
}

impl Frame {
    fn is_transparent(&self) -> bool {
        self.container.starts_with("Enum:")
    }
}

impl ModulePath {
    pub(crate) fn enter(&mut self, name: &str, container: &str) {
        self.frames.push(Frame {
            name: name.to_owned(),
            container: container.to_owned(),
        });
    }

    pub(crate) fn exit(&mut self) {
        self.frames.pop();
    }

    /// The dotted name of the tensor that is being visited.
    pub(crate) fn name(&self) -> String {
        joined(&self.frames)
    }

    /// The struct that holds the tensor: `Linear`, `LtiDense`, ...
    pub(crate) fn owner(&self) -> &str {
        self.frames
            .iter()
            .rev()
            .find_map(|frame| frame.container.strip_prefix("Struct:"))
            .unwrap_or_default()
    }

    /// The innermost struct of that type around the tensor, by its name, and the tensor's name in it.
    pub(crate) fn inside(&self, container: &str) -> Option<(String, String)> {
        let is_it = |frame: &Frame| frame.container.strip_prefix("Struct:") == Some(container);
        let field = self.frames.iter().rposition(is_it)?;
        let (around, within) = self.frames.split_at(field);
        Some((joined(around), joined(within)))
    }
}

/// The names of frames that are part of a tensor's name, joined by dots.
fn joined(frames: &[Frame]) -> String {
    let named = frames.iter().filter(|frame| !frame.is_transparent());
    let names: Vec<&str> = named.map(|frame| frame.name.as_str()).collect();
    names.join(".")
}

/// A name split at its last dot: what holds the tensor, and the field it is.
pub(crate) fn split_name(name: &str) -> (&str, &str) {
    name.rsplit_once('.').unwrap_or(("", name))
}

/// `prefix.leaf`, or `leaf` at the root.
pub(crate) fn join_name(prefix: &str, leaf: &str) -> String {
    if prefix.is_empty() {
        leaf.to_owned()
    } else {
        format!("{prefix}.{leaf}")
    }
}

/// A float tensor of any rank. Cloning shares the data.
#[derive(Clone, Debug)]
pub struct AnyTensor<B: Backend> {
    primitive: B::FloatTensorPrimitive,
}

impl<B: Backend> AnyTensor<B> {
    /// Forgets the rank. `None` for a quantized tensor, which has no float primitive.
    pub(crate) fn erase<const D: usize>(tensor: Tensor<B, D>) -> Option<Self> {
        match tensor.into_primitive() {
            TensorPrimitive::Float(primitive) => Some(Self { primitive }),
            TensorPrimitive::QFloat(_) => None,
        }
    }

    /// The tensor's axes.
    pub fn shape(&self) -> Vec<usize> {
        self.primitive.shape().to_vec()
    }

    /// Number of elements.
    pub fn num_elements(&self) -> usize {
        self.primitive.shape().num_elements()
    }

    /// Its float type.
    pub(crate) fn dtype(&self) -> DType {
        self.primitive.dtype()
    }

    /// The values as float32, row-major.
    ///
    /// # Errors
    ///
    /// What the backend reports if the data cannot be read.
    pub fn to_f32(&self) -> Result<Vec<f32>, String> {
        let elements = self.num_elements();
        let data = self.to_rank::<1>([elements]).into_data();
        data.convert::<f32>()
            .into_vec()
            .map_err(|error| format!("{error:?}"))
    }

    /// The values in a float type.
    pub(crate) fn cast(&self, dtype: DType) -> Self {
        if self.primitive.dtype() == dtype {
            return self.clone();
        }
        Self {
            primitive: B::float_cast(self.primitive.clone(), dtype.into()),
        }
    }

    /// The tensor with its axes split or joined into `shape`, which must hold as many elements.
    ///
    /// # Panics
    ///
    /// If it does not.
    pub fn to_rank<const D: usize>(&self, shape: [usize; D]) -> Tensor<B, D> {
        let primitive = B::float_reshape(self.primitive.clone(), shape.into());
        Tensor::from_primitive(TensorPrimitive::Float(primitive))
    }
}

/// One named tensor of a [`TensorSet`].
#[derive(Clone, Debug)]
pub struct NamedTensor<B: Backend> {
    /// The values.
    pub tensor: AnyTensor<B>,
    /// The struct that holds it in its module: `Linear`, `Embedding`, ... Empty if unknown.
    pub owner: String,
}

/// Float tensors by dotted name, in the order of their names.
#[derive(Clone, Debug)]
pub struct TensorSet<B: Backend> {
    tensors: BTreeMap<String, NamedTensor<B>>,
}

impl<B: Backend> Default for TensorSet<B> {
    fn default() -> Self {
        Self {
            tensors: BTreeMap::new(),
        }
    }
}

impl<B: Backend> TensorSet<B> {
    /// An empty set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Every float parameter of `module`, sharing its data.
    pub fn collect<M: Module<B>>(module: &M) -> Self {
        let mut collector = Collector {
            path: ModulePath::default(),
            set: Self::new(),
        };
        module.visit(&mut collector);
        collector.set
    }

    /// The axes of every tensor, by name.
    pub fn shapes(&self) -> BTreeMap<String, Vec<usize>> {
        let shapes = self.tensors.iter();
        shapes
            .map(|(name, named)| (name.clone(), named.tensor.shape()))
            .collect()
    }

    /// Adds a tensor, or replaces the one of that name.
    pub fn insert<const D: usize>(&mut self, name: &str, owner: &str, tensor: Tensor<B, D>) {
        if let Some(tensor) = AnyTensor::erase(tensor) {
            self.insert_any(name.to_owned(), owner.to_owned(), tensor);
        }
    }

    /// Adds a tensor of another set, or replaces the one of that name.
    pub(crate) fn insert_named(&mut self, name: &str, named: NamedTensor<B>) {
        self.tensors.insert(name.to_owned(), named);
    }

    fn insert_any(&mut self, name: String, owner: String, tensor: AnyTensor<B>) {
        self.tensors.insert(name, NamedTensor { tensor, owner });
    }

    /// These tensors and those of `others`, which win where both have one of a name.
    pub fn with(&self, others: &Self) -> Self {
        let mut both = self.clone();
        both.tensors.extend(others.tensors.clone());
        both
    }

    /// The same tensors by other names, without those for which there is none.
    pub fn renamed(&self, rename: impl Fn(&str) -> Option<String>) -> Self {
        let tensors = self.tensors.iter();
        let renamed = tensors.filter_map(|(name, named)| Some((rename(name)?, named.clone())));
        Self {
            tensors: renamed.collect(),
        }
    }

    /// The tensor of that name.
    pub fn get(&self, name: &str) -> Option<&NamedTensor<B>> {
        self.tensors.get(name)
    }

    /// All tensors, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &NamedTensor<B>)> {
        self.tensors
            .iter()
            .map(|(name, named)| (name.as_str(), named))
    }

    /// The names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Number of tensors.
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// Elements of all tensors together.
    pub fn num_elements(&self) -> usize {
        self.tensors
            .values()
            .map(|named| named.tensor.num_elements())
            .sum()
    }
}

impl<B: AutodiffBackend> TensorSet<B> {
    /// The same tensors on the autodiff backend, on no graph, sharing the data.
    pub fn from_inner(set: &TensorSet<B::InnerBackend>) -> Self {
        let mut outer = Self::new();
        for (name, named) in &set.tensors {
            let primitive = B::from_inner(named.tensor.primitive.clone());
            outer.insert_any(name.clone(), named.owner.clone(), AnyTensor { primitive });
        }
        outer
    }
}

struct Collector<B: Backend> {
    path: ModulePath,
    set: TensorSet<B>,
}

impl<B: Backend> ModuleVisitor<B> for Collector<B> {
    follow_path!();

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        let value = compat::detached(param.val());
        self.set.insert(&self.path.name(), self.path.owner(), value);
    }
}
