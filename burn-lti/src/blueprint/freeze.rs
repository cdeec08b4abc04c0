//! Which parameters train, by patterns over their names.

use std::collections::{BTreeSet, HashMap};
use std::fmt;

use burn::module::ParamId;
use burn::prelude::*;
use regex::Regex;

use super::error::nearest_part;
use super::{BlueprintError, Listed};
use crate::map::Part;
use crate::parameters::set_trainable;

/// Regular expressions that say which parameters train. A pattern is looked for anywhere in a dotted
/// name, as by Python's `re.search`.
///
/// `C` never trains. A shared parameter is one variable of several names: what a pattern finds in one
/// of them it says of all.
///
/// ```
/// use burn::backend::{Autodiff, Flex};
/// use burn::nn::{Linear, LinearConfig};
/// use burn_lti::blueprint::FreezeRules;
///
/// type B = Autodiff<Flex>;
/// let layers: Vec<Linear<B>> = (0..2)
///     .map(|_| LinearConfig::new(4, 4).with_bias(false).init(&Default::default()))
///     .collect();
/// let (layers, report) = FreezeRules::new([r"^0\."])?.apply(layers)?;
/// assert!(!layers[0].weight.is_require_grad());
/// assert_eq!(
///     report.to_string(),
///     "0.weight [4, 4] is frozen by `^0\\.`\n1.weight [4, 4] trains\n"
/// );
/// # Ok::<(), burn_lti::blueprint::BlueprintError>(())
/// ```
#[derive(Clone, Debug)]
pub struct FreezeRules {
    patterns: Vec<Regex>,
    found: Found,
}

/// What is said of a parameter in whose name a pattern is found.
#[derive(Clone, Copy, Debug)]
enum Found {
    Freezes,
    Trains,
}

impl FreezeRules {
    /// A parameter is frozen if any of the patterns is found in its name, and trains otherwise.
    ///
    /// # Errors
    ///
    /// [`BlueprintError::Pattern`] for the first pattern that cannot be parsed.
    pub fn new<'a>(patterns: impl IntoIterator<Item = &'a str>) -> Result<Self, BlueprintError> {
        Ok(Self {
            patterns: parse(patterns)?,
            found: Found::Freezes,
        })
    }

    /// A parameter trains if any of the patterns is found in its name, and is frozen otherwise. Without
    /// any pattern all train. The semantics are those of MaxText's `student_params_to_update`, but for
    /// `C`, which never trains here.
    ///
    /// # Errors
    ///
    /// [`BlueprintError::Pattern`] for the first pattern that cannot be parsed.
    pub fn training<'a>(
        patterns: impl IntoIterator<Item = &'a str>,
    ) -> Result<Self, BlueprintError> {
        let patterns = parse(patterns)?;
        let found = match patterns.is_empty() {
            true => Found::Freezes,
            false => Found::Trains,
        };
        Ok(Self { patterns, found })
    }

    /// What the rules say of each parameter of `module`, in the module's order. Nothing is changed or
    /// allocated.
    ///
    /// # Errors
    ///
    /// [`BlueprintError::NoParameter`] for the first pattern that is found in no name.
    pub fn report<B: Backend, M: Module<B>>(
        &self,
        module: &M,
    ) -> Result<FreezeReport, BlueprintError> {
        let listed = Listed::all(module);
        let names = || listed.iter().map(|parameter| parameter.name.as_str());
        if let Some(pattern) = self
            .patterns
            .iter()
            .find(|pattern| !names().any(|name| pattern.is_match(name)))
        {
            return Err(BlueprintError::NoParameter {
                pattern: pattern.to_string(),
                suggestion: nearest_part(pattern.as_str(), names()),
            });
        }

        let mut variables: HashMap<ParamId, Variable<'_>> = HashMap::new();
        for parameter in &listed {
            let variable = variables.entry(parameter.id).or_insert(Variable {
                first_name: &parameter.name,
                pattern: None,
            });
            variable.pattern = variable.pattern.or_else(|| self.finding(&parameter.name));
        }
        let fates = listed.iter().map(|parameter| {
            let variable = &variables[&parameter.id];
            ParameterFate {
                name: parameter.name.clone(),
                shape: parameter.shape.clone(),
                fate: match parameter.part {
                    Part::TeacherKernel => Fate::TeacherKernel,
                    _ => self.fate(variable.pattern),
                },
                shared_with: (variable.first_name != parameter.name)
                    .then(|| variable.first_name.to_owned()),
            }
        });
        Ok(FreezeReport {
            parameters: fates.collect(),
        })
    }

    /// Freezes and frees the parameters of `module` as the rules say, by [`set_trainable`].
    ///
    /// # Errors
    ///
    /// As [`report`](Self::report), before anything is changed.
    pub fn apply<B: Backend, M: Module<B>>(
        &self,
        module: M,
    ) -> Result<(M, FreezeReport), BlueprintError> {
        let report = self.report(&module)?;
        let trained: BTreeSet<&str> = report.trained().collect();
        let module = set_trainable(module, |parameter| trained.contains(parameter.name));
        Ok((module, report))
    }

    /// The first pattern that is found in `name`.
    fn finding(&self, name: &str) -> Option<&Regex> {
        self.patterns.iter().find(|pattern| pattern.is_match(name))
    }

    fn fate(&self, pattern: Option<&Regex>) -> Fate {
        let by = pattern.map(Regex::to_string);
        match (self.found, pattern) {
            (Found::Trains, Some(_)) | (Found::Freezes, None) => Fate::Trains { by },
            (Found::Trains, None) | (Found::Freezes, Some(_)) => Fate::Frozen { by },
        }
    }
}

/// What becomes of every parameter, in the order of the module. Displays as one line for each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FreezeReport {
    /// The parameters.
    pub parameters: Vec<ParameterFate>,
}

impl FreezeReport {
    /// The names of those that train.
    pub fn trained(&self) -> impl Iterator<Item = &str> {
        self.parameters
            .iter()
            .filter(|parameter| matches!(parameter.fate, Fate::Trains { .. }))
            .map(|parameter| parameter.name.as_str())
    }
}

impl fmt::Display for FreezeReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.parameters
            .iter()
            .try_for_each(|parameter| writeln!(f, "{parameter}"))
    }
}

/// One parameter of a [`FreezeReport`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParameterFate {
    /// Dotted name.
    pub name: String,
    /// Axes.
    pub shape: Vec<usize>,
    /// Whether it trains.
    pub fate: Fate,
    /// The first name of the variable that it is, if that is another.
    pub shared_with: Option<String>,
}

impl fmt::Display for ParameterFate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?} {}", self.name, self.shape, self.fate)?;
        match &self.shared_with {
            Some(first) => write!(f, ", shared with `{first}`"),
            None => Ok(()),
        }
    }
}

/// Whether a parameter trains, and by which pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It trains.
    Trains {
        /// The pattern that says so; `None` where it trains because no pattern freezes it.
        by: Option<String>,
    },
    /// It does not train.
    Frozen {
        /// The pattern that says so; `None` where it is frozen because no pattern trains it.
        by: Option<String>,
    },
    /// A `C`, which never trains.
    TeacherKernel,
}

impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Trains { by: None } => write!(f, "trains"),
            Self::Trains { by: Some(pattern) } => write!(f, "trains by `{pattern}`"),
            Self::Frozen { by: None } => write!(f, "is frozen, as no pattern trains it"),
            Self::Frozen { by: Some(pattern) } => write!(f, "is frozen by `{pattern}`"),
            Self::TeacherKernel => write!(f, "is a teacher kernel and never trains"),
        }
    }
}

fn parse<'a>(patterns: impl IntoIterator<Item = &'a str>) -> Result<Vec<Regex>, BlueprintError> {
    let parsed = patterns.into_iter().map(|pattern| {
        Regex::new(pattern).map_err(|source| BlueprintError::Pattern {
            pattern: pattern.to_owned(),
            source: Box::new(source),
        })
    });
    parsed.collect()
}

/// All parameters of one id.
struct Variable<'a> {
    first_name: &'a str,
    pattern: Option<&'a Regex>,
}
