//! What becomes of every tensor of a student: where it comes from, what it shares, whether it trains.
//!
//! A [`Blueprint`] is made from the student's tensors, which need not be allocated, the names and shapes
//! of the teacher's, and [`Rules`]. What plans a student prints it, [`inject`](mod@crate::inject) fills a module by
//! it. Nothing is skipped in silence: a rule without a match, two rules for one tensor, a tensor nobody
//! fills, a shape that does not fit are errors, before anything is made.
//!
//! Rules have the semantics of MaxText's `distill_weights_copy_map`: a regular expression that must
//! match a whole teacher name, and a template for the student's name with `$1` or `${name}` for the
//! groups. [`ShareRule`]s make student tensors one variable, as `distill_student_weights_share_map`
//! does, and [`FreezeRules`] say what trains, as `student_params_to_update` does, or the other way
//! round.

mod error;
mod fold;
mod freeze;
mod listing;
mod pattern;
mod rules;
mod share;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use burn::prelude::*;

pub use error::BlueprintError;
pub use freeze::{Fate, FreezeReport, FreezeRules, ParameterFate};
pub use listing::Listed;
pub use pattern::{CopyRule, ShareRule};
pub use rules::Rules;

use crate::map::{Part, Side};
use crate::tensors::join_name;
use error::nearest_name;
use share::Shares;

/// What becomes of every tensor of a student.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blueprint {
    /// The student's tensors, in the order of its module.
    pub tensors: Vec<StudentTensor>,
    /// Teacher tensors that nothing asks for.
    pub unused: Vec<String>,
}

/// What becomes of one tensor of a student.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StudentTensor {
    /// Dotted name.
    pub name: String,
    /// What it is to its module.
    pub part: Part,
    /// The [`LtiDense`](crate::map::LtiDense) that it belongs to, or, folded, belonged to, if any.
    pub projection: Option<String>,
    /// Its axes.
    pub shape: Vec<usize>,
    /// Where its first values come from.
    pub source: Source,
    /// The student tensor that it is one variable with, by which it is filled.
    pub shared_with: Option<String>,
    /// Whether training changes it.
    pub trains: bool,
}

impl StudentTensor {
    /// Number of elements.
    pub fn num_elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// The name of the variable that it is.
    pub fn variable(&self) -> &str {
        self.shared_with.as_ref().unwrap_or(&self.name)
    }
}

/// Where the first values of a tensor come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The start: what was calculated under the tensor's own name, or, of a map, what it stands at.
    Start,
    /// The teacher's tensor of that name.
    Teacher(String),
    /// The teacher's tensor of that name, sent through the map of its outputs, or, of a folded weight,
    /// through all its maps.
    Mapped(String),
    /// The teacher's tensor of that name, which has a number for each output of a projection: of each output of the
    /// student's, the mean of those of the teacher's that its map makes it of, by how much of each it takes. Where
    /// the map picks features, the numbers of those.
    Along {
        /// The teacher's tensor.
        teacher: String,
        /// The projection.
        projection: String,
    },
    /// What it stands at when the student is made.
    New,
}

impl Source {
    /// The teacher's tensor, if there is one.
    pub fn teacher(&self) -> Option<&str> {
        match self {
            Self::Teacher(name) | Self::Mapped(name) | Self::Along { teacher: name, .. } => {
                Some(name)
            }
            Self::Start | Self::New => None,
        }
    }
}

impl Blueprint {
    /// What becomes of `student` with a teacher of these tensors, as `rules` say. The axis maps and the
    /// biases beside them train, until [`train`](Self::train) says otherwise.
    ///
    /// # Errors
    ///
    /// [`BlueprintError`], by the name of the rule or tensor.
    pub fn new(
        student: &[Listed],
        teacher: &BTreeMap<String, Vec<usize>>,
        rules: &Rules,
    ) -> Result<Self, BlueprintError> {
        let listing = Listing::new(student);
        let mut named = rules.new.iter().chain(&rules.started);
        if let Some(name) = named.find(|name| listing.get(name).is_none()) {
            return Err(BlueprintError::UnknownNew {
                name: name.clone(),
                suggestion: nearest_name(name, listing.names()),
            });
        }
        if let Some(name) = rules.gains.keys().find(|name| listing.get(name).is_none()) {
            return Err(BlueprintError::UnknownGain {
                name: name.clone(),
                suggestion: nearest_name(name, listing.names()),
            });
        }
        let shares = Shares::resolve(&rules.share, &listing)?;
        let sources = rules.sources(&listing, &shares, teacher)?;
        let mut tensors = Vec::new();
        for tensor in student {
            let variable = shares.variable(&tensor.name);
            let source = match sources.get(variable) {
                Some(source) if listing.kernel_of_bias(tensor).is_some() => {
                    Source::Mapped((*source).to_owned())
                }
                Some(source) => match rules.gains.get(&tensor.name) {
                    Some(projection) if listing.mapped_kernel(projection).is_some() => {
                        Source::Along {
                            teacher: (*source).to_owned(),
                            projection: projection.clone(),
                        }
                    }
                    _ => Source::Teacher((*source).to_owned()),
                },
                None if matches!(tensor.part, Part::Map(_)) => Source::Start,
                None if rules.started.contains(variable) => Source::Start,
                None => Source::New,
            };
            if let Some(name) = source.teacher() {
                listing.check_shape(tensor, &source, name, &teacher[name])?;
            }
            tensors.push(StudentTensor {
                name: tensor.name.clone(),
                part: tensor.part,
                projection: tensor.projection.clone(),
                shape: tensor.shape.clone(),
                source,
                shared_with: (variable != tensor.name).then(|| variable.to_owned()),
                trains: matches!(tensor.part, Part::Map(_) | Part::Bias),
            });
        }
        let used: BTreeSet<&str> = sources.values().copied().collect();
        let unused = teacher.keys().filter(|name| !used.contains(name.as_str()));
        Ok(Self {
            unused: unused.cloned().collect(),
            tensors,
        })
    }

    /// Of `student` as it stands.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub fn of<B: Backend, M: Module<B>>(
        student: &M,
        teacher: &BTreeMap<String, Vec<usize>>,
        rules: &Rules,
    ) -> Result<Self, BlueprintError> {
        Self::new(&Listed::all(student), teacher, rules)
    }

    /// Has exactly those tensors train of which `trains` says so. `C` never does, and what is one variable
    /// trains as the tensor does that it shares.
    pub fn train(&mut self, trains: impl Fn(&StudentTensor) -> bool) {
        let says = |tensor: &StudentTensor| tensor.part != Part::TeacherKernel && trains(tensor);
        let trained: BTreeSet<String> = self
            .tensors
            .iter()
            .filter(|tensor| tensor.shared_with.is_none() && says(tensor))
            .map(|tensor| tensor.name.clone())
            .collect();
        for tensor in &mut self.tensors {
            tensor.trains = trained.contains(tensor.variable());
        }
    }

    /// The same student by other names.
    pub fn renamed(&self, rename: impl Fn(&str) -> String) -> Self {
        let source = |source: &Source| match source {
            Source::Teacher(name) => Source::Teacher(rename(name)),
            Source::Mapped(name) => Source::Mapped(rename(name)),
            Source::Along {
                teacher,
                projection,
            } => Source::Along {
                teacher: rename(teacher),
                projection: projection.clone(),
            },
            other => other.clone(),
        };
        let tensors = self.tensors.iter().map(|tensor| StudentTensor {
            name: rename(&tensor.name),
            source: source(&tensor.source),
            shared_with: tensor.shared_with.as_deref().map(&rename),
            ..tensor.clone()
        });
        Self {
            tensors: tensors.collect(),
            unused: self.unused.iter().map(|name| rename(name)).collect(),
        }
    }

    /// The names of the tensors that train.
    pub fn trained(&self) -> impl Iterator<Item = &str> {
        let trained = self.tensors.iter().filter(|tensor| tensor.trains);
        trained.map(|tensor| tensor.name.as_str())
    }
}

/// The tensors of a student by name, and those of each projection that is a map.
struct Listing<'a> {
    by_name: BTreeMap<&'a str, &'a Listed>,
    projections: BTreeMap<&'a str, Vec<&'a Listed>>,
}

impl<'a> Listing<'a> {
    fn new(tensors: &'a [Listed]) -> Self {
        let named = tensors.iter().map(|tensor| (tensor.name.as_str(), tensor));
        let by_name: BTreeMap<_, _> = named.collect();
        let mut projections: BTreeMap<&str, Vec<&Listed>> = BTreeMap::new();
        for &tensor in by_name.values() {
            if let Some(projection) = &tensor.projection {
                projections.entry(projection).or_default().push(tensor);
            }
        }
        Self {
            by_name,
            projections,
        }
    }

    fn get(&self, name: &str) -> Option<&'a Listed> {
        self.by_name.get(name).copied()
    }

    fn names(&self) -> impl Iterator<Item = &'a str> {
        self.by_name.keys().copied()
    }

    /// The names of the weights in whose place a map stands.
    fn mapped_weights(&self) -> impl Iterator<Item = String> {
        let projections = self.projections.keys();
        projections.map(|projection| join_name(projection, "weight"))
    }

    /// The parts of the map that stands in the place of the weight `name`, if one does.
    fn parts_of_weight(&self, name: &str) -> Vec<&'a Listed> {
        let projection = name.strip_suffix(".weight").unwrap_or_default();
        let tensors = self.of_projection(projection).iter().copied();
        tensors.filter(|it| it.part != Part::Bias).collect()
    }

    /// The teacher's kernel beside whose map `tensor` is the bias: one that goes through the map of outputs.
    fn kernel_of_bias(&self, tensor: &Listed) -> Option<&'a Listed> {
        let projection = tensor.projection.as_deref()?;
        self.mapped_kernel(projection)
            .filter(|_| tensor.part == Part::Bias)
    }

    /// The teacher's kernel of a projection that has a map of its outputs.
    fn mapped_kernel(&self, projection: &str) -> Option<&'a Listed> {
        let parts = self.of_projection(projection);
        let part = |part| parts.iter().copied().find(|other| other.part == part);
        part(Part::Map(Side::Right))?;
        part(Part::TeacherKernel)
    }

    fn of_projection(&self, projection: &str) -> &[&'a Listed] {
        self.projections.get(projection).map_or(&[], Vec::as_slice)
    }

    fn check_shape(
        &self,
        tensor: &Listed,
        source: &Source,
        name: &str,
        found: &[usize],
    ) -> Result<(), BlueprintError> {
        // What goes through a map, or along it, has the teacher's length before.
        let kernel = match source {
            Source::Along { projection, .. } => self.mapped_kernel(projection),
            _ => self.kernel_of_bias(tensor),
        };
        let features = kernel.and_then(|kernel| kernel.shape.get(1));
        let expected = match features {
            Some(features) => vec![*features],
            None => tensor.shape.clone(),
        };
        match found == expected {
            true => Ok(()),
            false => Err(BlueprintError::Shape {
                teacher: name.to_owned(),
                found: found.to_vec(),
                student: tensor.name.clone(),
                expected,
            }),
        }
    }
}
