//! [`Rules`]: which teacher tensor fills which student tensor.

use std::collections::{BTreeMap, BTreeSet};

use super::error::nearest_name;
use super::share::Shares;
use super::{BlueprintError, CopyRule, Listing, ShareRule};
use crate::map::Part;
use crate::tensors::join_name;

/// All rules by which a student is filled.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    pub(super) copy: Vec<CopyRule>,
    by_name: bool,
    pub(super) share: Vec<ShareRule>,
    pub(super) new: BTreeSet<String>,
    pub(super) started: BTreeSet<String>,
    /// The projection along whose outputs each of these student tensors lies.
    pub(super) gains: BTreeMap<String, String>,
}

impl Rules {
    /// Rules from pairs of pattern and template, and no others.
    ///
    /// # Errors
    ///
    /// [`BlueprintError::Pattern`] for the first pattern that cannot be parsed.
    pub fn from_pairs<'a>(
        pairs: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self, BlueprintError> {
        Self::default().with_copies(pairs)
    }

    /// The rules that follow from the student's own names: the `C` of every
    /// [`LtiDense`](crate::map::LtiDense) takes the teacher's `weight` of the same place, every other
    /// tensor, biases beside maps too, the teacher's of the same name. Maps have their start.
    pub fn by_name() -> Self {
        Self {
            by_name: true,
            ..Self::default()
        }
    }

    /// Adds rules that come before the names: pairs of a pattern over teacher names and a template. The
    /// `weight` of a projection that is a map is its `C`.
    ///
    /// # Errors
    ///
    /// [`BlueprintError::Pattern`] for the first pattern that cannot be parsed.
    pub fn with_copies<'a>(
        mut self,
        pairs: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self, BlueprintError> {
        for (pattern, template) in pairs {
            self.copy.push(CopyRule::new(pattern, template)?);
        }
        Ok(self)
    }

    /// Adds student tensors that keep what they began with.
    pub fn with_new(mut self, new: impl IntoIterator<Item = String>) -> Self {
        self.new.extend(new);
        self
    }

    /// Adds student tensors, no maps, whose values a start makes of the teacher's: those of another shape.
    pub fn with_started(mut self, started: impl IntoIterator<Item = String>) -> Self {
        self.started.extend(started);
        self
    }

    /// Says of student tensors that they have a number for each output of a projection, as the gain of a norm of all
    /// its outputs at once: pairs of a tensor and the projection. Where that is a map of its outputs, such a tensor
    /// follows it ([`Source::Along`](super::Source::Along)); else it is like any other.
    pub fn with_gains(mut self, gains: impl IntoIterator<Item = (String, String)>) -> Self {
        self.gains.extend(gains);
        self
    }

    /// Adds student tensors that are one variable with another. Sharing comes before copying: a copy
    /// to the destination fills the source too, and a copy to each is one too many.
    pub fn with_shares(mut self, shares: impl IntoIterator<Item = ShareRule>) -> Self {
        self.share.extend(shares);
        self
    }

    /// The teacher tensor that fills each variable of the student.
    pub(super) fn sources<'t>(
        &self,
        student: &Listing<'_>,
        shares: &Shares,
        teacher: &'t BTreeMap<String, Vec<usize>>,
    ) -> Result<BTreeMap<String, &'t str>, BlueprintError> {
        let mut sources: BTreeMap<String, &'t str> = BTreeMap::new();
        for rule in &self.copy {
            let targets = teacher
                .keys()
                .filter_map(|name| Some((name.as_str(), rule.apply(name)?)));
            let targets: Vec<_> = targets.collect();
            if targets.is_empty() {
                return Err(no_match(rule.pattern(), teacher));
            }
            for (name, target) in targets {
                let student_tensor = of_copy(student, &target);
                let Some(student_tensor) = student_tensor else {
                    return Err(BlueprintError::UnknownTarget {
                        pattern: rule.pattern().to_owned(),
                        from: name.to_owned(),
                        to: target.clone(),
                        suggestion: nearest_name(&target, student.names()),
                    });
                };
                let variable = shares.variable(student_tensor).to_owned();
                if let Some(first) = sources.insert(variable, name) {
                    return Err(BlueprintError::FilledTwice {
                        student: target,
                        first: first.to_owned(),
                        second: name.to_owned(),
                    });
                }
            }
        }
        let mut unfilled = Vec::new();
        for (name, tensor) in &student.by_name {
            let is_open = !matches!(tensor.part, Part::Map(_))
                && shares.variable(name) == *name
                && !sources.contains_key(*name)
                && !self.new.contains(*name)
                && !self.started.contains(*name);
            if is_open && self.by_name {
                let wanted = match (tensor.part, &tensor.projection) {
                    (Part::TeacherKernel, Some(projection)) => join_name(projection, "weight"),
                    _ => (*name).to_owned(),
                };
                let (source, _) = teacher
                    .get_key_value(&wanted)
                    .ok_or_else(|| no_match(&wanted, teacher))?;
                sources.insert((*name).to_owned(), source);
            } else if is_open {
                unfilled.push((*name).to_owned());
            }
        }
        match unfilled.is_empty() {
            true => Ok(sources),
            false => Err(BlueprintError::Unfilled { names: unfilled }),
        }
    }
}

/// The student tensor that a rule of copying means by `target`.
fn of_copy<'a>(student: &Listing<'a>, target: &str) -> Option<&'a str> {
    let of_weight = student.parts_of_weight(target);
    let kernel = of_weight
        .into_iter()
        .find(|tensor| tensor.part == Part::TeacherKernel);
    let tensor = student.get(target).or(kernel)?;
    Some(&tensor.name)
}

fn no_match(pattern: &str, teacher: &BTreeMap<String, Vec<usize>>) -> BlueprintError {
    BlueprintError::NoMatch {
        pattern: pattern.to_owned(),
        of: "teacher",
        suggestion: nearest_name(pattern, teacher.keys().map(String::as_str)),
    }
}
