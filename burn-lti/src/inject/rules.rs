//! Which teacher tensor fills which student tensor.

use std::collections::{BTreeMap, BTreeSet};

use burn::module::{ModuleVisitor, Param, ParamId};
use burn::prelude::*;
use burn::tensor::DType;
use regex::Regex;

use super::InjectError;
use super::error::nearest_name;
use super::share::{ShareRule, Shares};
use crate::tensors::{ModulePath, TensorSet, join_name, split_name};

/// A regular expression over teacher names and the student name it stands for.
#[derive(Clone, Debug)]
pub struct CopyRule {
    pattern: String,
    whole_name: Regex,
    template: String,
}

impl CopyRule {
    /// A rule from a pattern that must match a whole teacher name, and a template in which `$1` or
    /// `${name}` stand for the pattern's groups.
    ///
    /// # Errors
    ///
    /// [`InjectError::Pattern`] if the pattern cannot be parsed.
    pub fn new(pattern: &str, template: &str) -> Result<Self, InjectError> {
        Ok(Self {
            pattern: pattern.to_owned(),
            whole_name: whole_name(pattern)?,
            template: template.to_owned(),
        })
    }

    /// A rule for one name, taken literally.
    pub(super) fn exact(teacher: &str, student: &str) -> Result<Self, InjectError> {
        let mut rule = Self::new(&regex::escape(teacher), &student.replace('$', "$$"))?;
        rule.pattern = teacher.to_owned();
        Ok(rule)
    }

    /// The pattern as given.
    pub(super) fn pattern(&self) -> &str {
        &self.pattern
    }

    /// The template's name for `name`, if the pattern matches it.
    pub fn apply(&self, name: &str) -> Option<String> {
        let groups = self.whole_name.captures(name)?;
        let mut expanded = String::new();
        groups.expand(&self.template, &mut expanded);
        Some(expanded)
    }
}

/// The pattern as a regular expression that must match a whole name.
fn whole_name(pattern: &str) -> Result<Regex, InjectError> {
    Regex::new(&format!("^(?:{pattern})$")).map_err(|source| InjectError::Pattern {
        pattern: pattern.to_owned(),
        source: Box::new(source),
    })
}

/// All rules of an injection, and the tensors that are meant to begin new.
#[derive(Clone, Debug, Default)]
pub struct InjectRules {
    rules: Vec<CopyRule>,
    /// What follows from the student's own names, by the tensor that is filled.
    by_name: BTreeMap<String, CopyRule>,
    shares: Vec<ShareRule>,
    new: BTreeSet<String>,
}

impl InjectRules {
    /// Rules from pairs of pattern and template.
    ///
    /// # Errors
    ///
    /// [`InjectError::Pattern`] for the first pattern that cannot be parsed.
    pub fn from_pairs<'a>(
        pairs: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self, InjectError> {
        let rules = pairs
            .into_iter()
            .map(|(pattern, template)| CopyRule::new(pattern, template))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            rules,
            ..Self::default()
        })
    }

    /// The rules that follow from the student itself: the `C` of every
    /// [`LtiDense`](crate::dense::LtiDense) takes the teacher's `weight` of the same place, its bias
    /// the teacher's `bias`, every other tensor the teacher's tensor of the same name. A map that waits for
    /// a calculated start takes the tensor of its own name, which has to lie among the teacher's. The destination
    /// of a [`ShareRule`] is filled as its source is, by the source's name.
    ///
    /// # Errors
    ///
    /// [`InjectError::UnknownNew`] if a name in `new` is not a tensor of the student.
    pub fn by_name<B: Backend, M: Module<B>>(
        student: &M,
        new: impl IntoIterator<Item = String>,
    ) -> Result<Self, InjectError> {
        let new: BTreeSet<String> = new.into_iter().collect();
        let entries = Entries::of(student);
        check_new(&new, &entries)?;
        let mut by_name = BTreeMap::new();
        for (name, entry) in entries.0.iter().filter(|(name, _)| !new.contains(*name)) {
            let (prefix, _) = split_name(name);
            let teacher = match entry.part {
                Part::Map if entry.dtype.is_some() => continue, // it stands at its start
                Part::Map => name,
                Part::TeacherKernel => &join_name(prefix, "weight"),
                Part::MapBias | Part::Plain => name,
            };
            by_name.insert(name.clone(), CopyRule::exact(teacher, name)?);
        }
        Ok(Self {
            by_name,
            new,
            ..Self::default()
        })
    }

    /// Fills the student tensor `student`, taken literally, with the teacher tensor `teacher` instead of
    /// the one of its own name.
    ///
    /// # Errors
    ///
    /// [`InjectError::Pattern`] if the name is too long to be looked for.
    pub fn with_source(mut self, student: &str, teacher: &str) -> Result<Self, InjectError> {
        let rule = CopyRule::exact(teacher, student)?;
        self.by_name.insert(student.to_owned(), rule);
        Ok(self)
    }

    /// Adds student tensors that keep what they began with.
    pub fn with_new(mut self, new: impl IntoIterator<Item = String>) -> Self {
        self.new.extend(new);
        self
    }

    /// Adds student tensors that are one variable with another. Sharing comes before copying: a copy
    /// to the destination fills the source too, and a copy to each is one too many.
    pub fn with_shares(mut self, shares: impl IntoIterator<Item = ShareRule>) -> Self {
        self.shares.extend(shares);
        self
    }

    /// Which student tensors are one, and for each that a rule names the teacher tensor that fills it.
    pub(super) fn resolve<B: Backend>(
        &self,
        entries: &Entries,
        teacher: &TensorSet<B>,
    ) -> Result<(Shares, BTreeMap<String, String>), InjectError> {
        check_new(&self.new, entries)?;
        let shares = Shares::resolve(&self.shares, entries)?;
        let by_name = self
            .by_name
            .iter()
            .filter(|(name, _)| shares.variable(name) == name.as_str());
        let rules = self.rules.iter().chain(by_name.map(|(_, rule)| rule));
        let mut filled = BTreeMap::new();
        let mut sources: BTreeMap<String, String> = BTreeMap::new();
        for rule in rules {
            let mut matched = false;
            for (name, student) in teacher
                .names()
                .filter_map(|name| Some((name, rule.apply(name)?)))
            {
                matched = true;
                self.check_target(rule, entries, name, &student)?;
                let variable = shares.variable(&student).to_owned();
                if let Some(first) = sources.insert(variable, name.to_owned()) {
                    return Err(InjectError::FilledTwice {
                        student,
                        first,
                        second: name.to_owned(),
                    });
                }
                filled.insert(student, name.to_owned());
            }
            if !matched {
                return Err(InjectError::NoMatch {
                    pattern: rule.pattern.clone(),
                    suggestion: nearest_name(&rule.pattern, teacher.names()),
                });
            }
        }
        let unfilled: Vec<String> = entries
            .0
            .iter()
            .filter(|(name, entry)| {
                (entry.part != Part::Map || entry.dtype.is_none())
                    && shares.variable(name) == name.as_str()
                    && !sources.contains_key(*name)
                    && !self.new.contains(*name)
            })
            .map(|(name, _)| name.clone())
            .collect();
        if unfilled.is_empty() {
            Ok((shares, filled))
        } else {
            Err(InjectError::Unfilled { names: unfilled })
        }
    }

    fn check_target(
        &self,
        rule: &CopyRule,
        entries: &Entries,
        teacher: &str,
        student: &str,
    ) -> Result<(), InjectError> {
        if entries.0.contains_key(student) {
            return Ok(());
        }
        Err(InjectError::UnknownTarget {
            pattern: rule.pattern.clone(),
            teacher: teacher.to_owned(),
            student: student.to_owned(),
            suggestion: nearest_name(student, entries.names()),
        })
    }
}

/// Every tensor declared new must be one of the student's.
fn check_new(new: &BTreeSet<String>, entries: &Entries) -> Result<(), InjectError> {
    match new.iter().find(|name| !entries.0.contains_key(*name)) {
        None => Ok(()),
        Some(name) => Err(InjectError::UnknownNew {
            name: name.clone(),
            suggestion: nearest_name(name, entries.names()),
        }),
    }
}

/// What a student tensor is to an injection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// `A`, `B` or `W`: begins at its start, or waits for values that were calculated.
    Map,
    /// `C` of an `LtiDense`.
    TeacherKernel,
    /// The bias beside a map.
    MapBias,
    /// Anything else.
    Plain,
}

impl Part {
    pub(super) const fn describe(self) -> &'static str {
        match self {
            Self::Map => "a map (`A`, `B` or `W`)",
            Self::TeacherKernel => "a teacher kernel `C`",
            Self::MapBias => "the bias beside a map",
            Self::Plain => "an ordinary tensor",
        }
    }
}

/// One student tensor before it is filled.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) part: Part,
    pub(super) shape: Vec<usize>,
    /// Unknown until it is allocated.
    pub(super) dtype: Option<DType>,
    pub(super) id: ParamId,
}

/// All float tensors of a student by name, found without allocating any.
#[derive(Debug, Default)]
pub(super) struct Entries(pub(super) BTreeMap<String, Entry>);

impl Entries {
    pub(super) fn of<B: Backend, M: Module<B>>(module: &M) -> Self {
        let mut finder = EntryFinder::default();
        module.visit(&mut finder);
        finder.entries
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }
}

#[derive(Default)]
struct EntryFinder {
    path: ModulePath,
    entries: Entries,
}

impl<B: Backend> ModuleVisitor<B> for EntryFinder {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.path.enter(name, container_type);
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.exit();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        let name = self.path.name();
        let part = match (self.path.owner(), split_name(&name).1) {
            ("LtiDense", "a" | "b" | "w") => Part::Map,
            ("LtiDense", "c") => Part::TeacherKernel,
            ("LtiDense", "bias") => Part::MapBias,
            _ => Part::Plain,
        };
        let entry = Entry {
            part,
            shape: param.lazy_shape().to_vec(),
            dtype: param.is_initialized().then(|| param.val().dtype()),
            id: param.id,
        };
        self.entries.0.insert(name, entry);
    }
}
