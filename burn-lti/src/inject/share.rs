//! Which student tensors are one variable.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use burn::module::{ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::prelude::*;
use burn::tensor::container::TensorContainer;

use super::InjectError;
use super::error::nearest_name;
use super::rules::{CopyRule, Entries, Entry};
use crate::tensors::ModulePath;

/// A regular expression over student names and the student name that becomes one variable with each
/// match.
///
/// The match is the source, the template's name the destination. From then on both are one
/// parameter: one value, one gradient, one state of the optimizer. Chains are followed to their end,
/// in whatever order the rules stand. The semantics are those of MaxText's
/// `distill_student_weights_share_map`.
///
/// ```
/// use burn_lti::inject::ShareRule;
///
/// // The second of each pair of layers has the feed-forward weights of the first.
/// let rule = ShareRule::new(r"layers\.0\.mlp\.(.*)", "layers.1.mlp.$1")?;
/// # Ok::<(), burn_lti::inject::InjectError>(())
/// ```
#[derive(Clone, Debug)]
pub struct ShareRule(CopyRule);

impl ShareRule {
    /// A rule from a pattern that must match a whole student name, and a template in which `$1` or
    /// `${name}` stand for the pattern's groups.
    ///
    /// # Errors
    ///
    /// [`InjectError::Pattern`] if the pattern cannot be parsed.
    pub fn new(pattern: &str, template: &str) -> Result<Self, InjectError> {
        CopyRule::new(pattern, template).map(Self)
    }

    /// A rule that makes `destination` one variable with `source`, both names taken literally.
    ///
    /// # Errors
    ///
    /// [`InjectError::Pattern`] if the name is too long to be looked for.
    pub fn exact(source: &str, destination: &str) -> Result<Self, InjectError> {
        CopyRule::exact(source, destination).map(Self)
    }

    /// Whether `source` and `destination` can be one variable.
    fn check(&self, entries: &Entries, source: &str, destination: &str) -> Result<(), InjectError> {
        if source == destination {
            return Err(InjectError::SharedWithItself {
                pattern: self.0.pattern().to_owned(),
                name: source.to_owned(),
            });
        }
        match (entries.0.get(source), entries.0.get(destination)) {
            (Some(from), Some(to)) => check_alike((source, from), (destination, to)),
            _ => Err(InjectError::UnknownDestination {
                pattern: self.0.pattern().to_owned(),
                from: source.to_owned(),
                to: destination.to_owned(),
                suggestion: nearest_name(destination, entries.names()),
            }),
        }
    }
}

/// Each destination and the source at the end of its chain.
#[derive(Debug, Default)]
pub(super) struct Shares(pub(super) BTreeMap<String, String>);

impl Shares {
    pub(super) fn resolve(rules: &[ShareRule], entries: &Entries) -> Result<Self, InjectError> {
        let mut sources: BTreeMap<String, String> = BTreeMap::new();
        for rule in rules {
            let mut matched = false;
            for (source, destination) in entries
                .names()
                .filter_map(|name| Some((name, rule.0.apply(name)?)))
            {
                matched = true;
                rule.check(entries, source, &destination)?;
                if let Some(first) = sources.insert(destination.clone(), source.to_owned()) {
                    return Err(InjectError::SharedTwice {
                        to: destination,
                        first,
                        second: source.to_owned(),
                    });
                }
            }
            if !matched {
                return Err(InjectError::NoSource {
                    pattern: rule.0.pattern().to_owned(),
                    suggestion: nearest_name(rule.0.pattern(), entries.names()),
                });
            }
        }
        let ends = sources
            .keys()
            .map(|destination| Ok((destination.clone(), end_of_chain(destination, &sources)?)))
            .collect::<Result<_, InjectError>>()?;
        let shares = Self(ends);
        shares.check_ids(entries)?;
        Ok(shares)
    }

    /// The name that stands for all tensors that are one variable with `name`.
    pub(super) fn variable<'a>(&'a self, name: &'a str) -> &'a str {
        self.0.get(name).map_or(name, String::as_str)
    }

    /// The names of a variable, its own among them.
    pub(super) fn names<'a>(&'a self, variable: &'a str) -> impl Iterator<Item = &'a str> {
        let destinations = self.0.iter().filter(move |(_, source)| *source == variable);
        std::iter::once(variable).chain(destinations.map(|(name, _)| name.as_str()))
    }

    /// Gives each destination the id and the very value of its source.
    pub(super) fn make<B: Backend, M: Module<B>>(&self, student: M) -> M {
        if self.0.is_empty() {
            return student;
        }
        let mut sources = Sources {
            path: ModulePath::default(),
            wanted: self.0.values().collect(),
            ids: BTreeMap::new(),
            values: TensorContainer::new(),
        };
        student.visit(&mut sources);
        student.map(&mut Sharer {
            path: ModulePath::default(),
            shares: self,
            ids: sources.ids,
            values: sources.values,
        })
    }

    /// Burn knows a parameter by its id: two of one id that no rule shares would be trained as one,
    /// though each was filled on its own.
    fn check_ids(&self, entries: &Entries) -> Result<(), InjectError> {
        let mut first_names = HashMap::new();
        for (name, entry) in &entries.0 {
            let first = *first_names.entry(entry.id).or_insert(name);
            if self.variable(first) != self.variable(name) {
                return Err(InjectError::OneId {
                    first: first.clone(),
                    second: name.clone(),
                });
            }
        }
        Ok(())
    }
}

fn check_alike(
    (from, source): (&str, &Entry),
    (to, destination): (&str, &Entry),
) -> Result<(), InjectError> {
    let (from, to) = (from.to_owned(), to.to_owned());
    if source.part != destination.part {
        return Err(InjectError::SharePart {
            from,
            found: source.part.describe(),
            to,
            expected: destination.part.describe(),
        });
    }
    if source.shape != destination.shape {
        return Err(InjectError::ShareShape {
            from,
            found: source.shape.clone(),
            to,
            expected: destination.shape.clone(),
        });
    }
    match (source.dtype, destination.dtype) {
        (Some(found), Some(expected)) if found != expected => Err(InjectError::ShareType {
            from,
            found,
            to,
            expected,
        }),
        _ => Ok(()),
    }
}

fn end_of_chain(name: &str, sources: &BTreeMap<String, String>) -> Result<String, InjectError> {
    let mut chain = vec![name];
    let mut end = name;
    while let Some(source) = sources.get(end) {
        end = source;
        if let Some(start) = chain.iter().position(|name| *name == end) {
            return Err(InjectError::ShareLoop {
                names: chain[start..].iter().map(|name| (*name).into()).collect(),
            });
        }
        chain.push(end);
    }
    Ok(end.to_owned())
}

/// The ids and values that others share, by name.
struct Sources<'a> {
    path: ModulePath,
    wanted: BTreeSet<&'a String>,
    ids: BTreeMap<String, ParamId>,
    values: TensorContainer<String>,
}

impl<B: Backend> ModuleVisitor<B> for Sources<'_> {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.path.enter(name, container_type);
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.exit();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        let name = self.path.name();
        if self.wanted.contains(&name) {
            self.ids.insert(name.clone(), param.id);
            self.values
                .register::<B>(name, param.val().into_primitive());
        }
    }
}

struct Sharer<'a> {
    path: ModulePath,
    shares: &'a Shares,
    ids: BTreeMap<String, ParamId>,
    values: TensorContainer<String>,
}

impl<B: Backend> ModuleMapper<B> for Sharer<'_> {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.path.enter(name, container_type);
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.exit();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        let source = self.shares.0.get(&self.path.name());
        let shared =
            source.and_then(|source| Some((self.ids.get(source)?, self.values.get::<B>(source)?)));
        match shared {
            Some((id, value)) => {
                let (_, _, mapper) = param.consume();
                Param::from_mapped_value(*id, Tensor::from_primitive(value), mapper)
            }
            None => param,
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::DType;

    use super::super::rules::Part;
    use super::*;

    fn entry(part: Part, shape: &[usize]) -> Entry {
        Entry {
            part,
            shape: shape.to_vec(),
            dtype: Some(DType::F32),
            id: ParamId::new(),
        }
    }

    fn entries() -> Entries {
        let plain = |name: &str| (name.to_owned(), entry(Part::Plain, &[2, 3]));
        let mut entries = Entries(["a", "b", "c", "d"].map(plain).into());
        let half = Entry {
            dtype: Some(DType::F16),
            ..entry(Part::Plain, &[2, 3])
        };
        let lazy = Entry {
            dtype: None,
            ..entry(Part::Plain, &[2, 3])
        };
        for (name, entry) in [
            ("half", half),
            ("lazy", lazy),
            ("turned", entry(Part::Plain, &[3, 2])),
            ("kernel", entry(Part::TeacherKernel, &[2, 2, 2])),
            ("twin", entry(Part::TeacherKernel, &[2, 2, 2])),
            ("narrow", entry(Part::TeacherKernel, &[2, 2, 1])),
            ("cube", entry(Part::Plain, &[2, 2, 2])),
            ("map", entry(Part::Map, &[2, 3])),
            ("bias", entry(Part::MapBias, &[2, 3])),
        ] {
            entries.0.insert(name.to_owned(), entry);
        }
        entries
    }

    fn resolve(pairs: &[(&str, &str)]) -> Result<Shares, InjectError> {
        let rules: Vec<ShareRule> = pairs
            .iter()
            .map(|(pattern, template)| ShareRule::new(pattern, template).expect("a pattern"))
            .collect();
        Shares::resolve(&rules, &entries())
    }

    fn refusal(pairs: &[(&str, &str)]) -> (InjectError, String) {
        let error = resolve(pairs).expect_err("wrong rules");
        let message = error.to_string();
        (error, message)
    }

    #[test]
    fn chains_end_at_one_source_in_any_order_of_the_rules() {
        for rules in [
            [("a", "b"), ("b", "c"), ("a", "d")],
            [("b", "c"), ("a", "d"), ("a", "b")],
        ] {
            let shares = resolve(&rules).expect("shares");
            assert_eq!(
                ["a", "b", "c", "d", "half"].map(|name| shares.variable(name)),
                ["a", "a", "a", "a", "half"]
            );
            let names: Vec<&str> = shares.names("a").collect();
            assert_eq!(names, ["a", "b", "c", "d"]);
        }
        assert!(resolve(&[]).expect("no shares").0.is_empty());
    }

    #[test]
    fn a_lazy_tensor_takes_any_float_type_and_kernels_share_with_kernels() {
        resolve(&[("a", "lazy"), ("kernel", "twin")]).expect("shares");
    }

    #[test]
    fn what_cannot_be_one_variable_is_refused_by_name() {
        let (error, message) = refusal(&[("e.*", "b")]);
        assert!(matches!(error, InjectError::NoSource { .. }), "{message}");
        assert!(message.contains("`e.*`"), "{message}");

        let (error, message) = refusal(&[("twi", "b")]);
        assert!(matches!(error, InjectError::NoSource { .. }), "{message}");
        assert!(message.contains("nearest: `twin`"), "{message}");

        let (error, message) = refusal(&[("a", "tur")]);
        assert!(
            matches!(error, InjectError::UnknownDestination { .. }),
            "{message}"
        );
        assert!(message.contains("`a` with `tur`"), "{message}");

        let (error, message) = refusal(&[("(a|b)", "a")]);
        assert!(
            matches!(&error, InjectError::SharedWithItself { name, .. } if name == "a"),
            "{message}"
        );
        assert!(message.contains("`(a|b)`"), "{message}");

        let (error, message) = refusal(&[("a", "turned")]);
        assert!(
            matches!(&error, InjectError::ShareShape { found, expected, .. }
                if found == &[2, 3] && expected == &[3, 2]),
            "{message}"
        );
        assert!(
            message.contains("`a` [2, 3] and `turned` [3, 2]"),
            "{message}"
        );
        let (error, message) = refusal(&[("kernel", "narrow")]);
        assert!(matches!(error, InjectError::ShareShape { .. }), "{message}");

        let (error, message) = refusal(&[("a", "half")]);
        assert!(
            matches!(
                error,
                InjectError::ShareType {
                    found: DType::F32,
                    expected: DType::F16,
                    ..
                }
            ),
            "{message}"
        );
        assert!(message.contains("`half`"), "{message}");

        let (error, message) = refusal(&[("(a|b)", "c")]);
        assert!(
            matches!(&error, InjectError::SharedTwice { to, first, second }
                if (to.as_str(), first.as_str(), second.as_str()) == ("c", "a", "b")),
            "{message}"
        );

        let (error, message) = refusal(&[("a", "b"), ("b", "c"), ("c", "b")]);
        assert!(
            matches!(error, InjectError::SharedTwice { .. }),
            "{message}"
        );
        let (error, message) = refusal(&[("d", "a"), ("a", "b"), ("b", "d"), ("d", "c")]);
        assert!(
            matches!(&error, InjectError::ShareLoop { names } if names.len() == 3),
            "{message}"
        );
        assert!(
            ["`a`", "`b`", "`d`"]
                .iter()
                .all(|name| message.contains(name)),
            "{message}"
        );
        assert!(!message.contains("`c`"), "{message}");
    }

    #[test]
    fn tensors_of_different_roles_are_refused() {
        for (from, to, words) in [
            ("kernel", "cube", "`kernel` is a teacher kernel `C`"),
            ("cube", "twin", "`cube` is an ordinary tensor"),
            ("map", "a", "`map` is a map"),
            ("b", "bias", "`bias` the bias beside a map"),
        ] {
            let (error, message) = refusal(&[(from, to)]);
            assert!(matches!(error, InjectError::SharePart { .. }), "{message}");
            assert!(message.contains(words), "{message}");
        }
    }

    #[test]
    fn one_id_without_a_rule_is_refused() {
        let mut entries = entries();
        let id = entries.0["a"].id;
        if let Some(entry) = entries.0.get_mut("b") {
            entry.id = id;
        }
        let error = Shares::resolve(&[], &entries).expect_err("one id");
        assert!(
            matches!(&error, InjectError::OneId { first, second }
                if first == "a" && second == "b"),
            "{error}"
        );
        let rule = ShareRule::new("a", "b").expect("a pattern");
        Shares::resolve(&[rule], &entries).expect("shared by a rule");
    }
}
