//! Which teacher tensor fills which student tensor, and which student tensors are one.

use std::collections::{BTreeMap, BTreeSet};

use regex::Regex;

use super::error::nearest_name;
use super::share::Shares;
use super::{BlueprintError, Listing};
use crate::map::Part;
use crate::tensors::join_name;

/// A regular expression over names and the student name it stands for.
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
    /// [`BlueprintError::Pattern`] if the pattern cannot be parsed.
    pub fn new(pattern: &str, template: &str) -> Result<Self, BlueprintError> {
        let whole_name = Regex::new(&format!("^(?:{pattern})$"));
        Ok(Self {
            pattern: pattern.to_owned(),
            whole_name: whole_name.map_err(|source| BlueprintError::Pattern {
                pattern: pattern.to_owned(),
                source: Box::new(source),
            })?,
            template: template.to_owned(),
        })
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

/// A regular expression over student names and the student name that becomes one variable with each
/// match.
///
/// The match is the source, the template's name the destination. From then on both are one
/// parameter: one value, one gradient, one state of the optimizer. Chains are followed to their end,
/// in whatever order the rules stand. The `weight` of a projection that is a map is the whole map, `C` and
/// all. The semantics are those of MaxText's `distill_student_weights_share_map`.
///
/// ```
/// use burn_lti::blueprint::ShareRule;
///
/// // The second of each pair of layers has the feed-forward weights of the first.
/// let rule = ShareRule::new(r"layers\.0\.mlp\.(.*)", "layers.1.mlp.$1")?;
/// # Ok::<(), burn_lti::blueprint::BlueprintError>(())
/// ```
#[derive(Clone, Debug)]
pub struct ShareRule(pub(super) CopyRule);

impl ShareRule {
    /// A rule from a pattern that must match a whole student name, and a template in which `$1` or
    /// `${name}` stand for the pattern's groups.
    ///
    /// # Errors
    ///
    /// [`BlueprintError::Pattern`] if the pattern cannot be parsed.
    pub fn new(pattern: &str, template: &str) -> Result<Self, BlueprintError> {
        CopyRule::new(pattern, template).map(Self)
    }
}

/// All rules by which a student is filled.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    pub(super) copy: Vec<CopyRule>,
    by_name: bool,
    pub(super) share: Vec<ShareRule>,
    pub(super) new: BTreeSet<String>,
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
                return Err(no_match(&rule.pattern, teacher));
            }
            for (name, target) in targets {
                let student_tensor = of_copy(student, &target);
                let Some(student_tensor) = student_tensor else {
                    return Err(BlueprintError::UnknownTarget {
                        pattern: rule.pattern.clone(),
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
        for (name, tensor) in &student.0 {
            let is_open = tensor.part != Part::Map
                && shares.variable(name) == *name
                && !sources.contains_key(*name)
                && !self.new.contains(*name);
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
