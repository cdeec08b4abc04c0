//! Which student tensors are one variable.

use std::collections::{BTreeMap, HashMap};

use super::error::nearest_name;
use super::{BlueprintError, Listed, Listing, ShareRule};
use crate::map::Part;

/// Each destination and the source at the end of its chain.
#[derive(Debug, Default)]
pub(super) struct Shares(BTreeMap<String, String>);

impl Shares {
    pub(super) fn resolve(
        rules: &[ShareRule],
        student: &Listing<'_>,
    ) -> Result<Self, BlueprintError> {
        let mut links = Links::default();
        for ShareRule(rule) in rules {
            let names = student.names().map(str::to_owned);
            let pairs = names
                .chain(student.mapped_weights())
                .filter_map(|name| Some((rule.apply(&name)?, name)));
            let pairs: Vec<_> = pairs.collect();
            if pairs.is_empty() {
                return Err(BlueprintError::NoMatch {
                    pattern: rule.pattern().to_owned(),
                    of: "student",
                    suggestion: nearest_name(rule.pattern(), student.names()),
                });
            }
            for (to, from) in pairs {
                if from == to {
                    return Err(BlueprintError::SharedWithItself {
                        pattern: rule.pattern().to_owned(),
                        name: from,
                    });
                }
                for [from, to] in parts(student, rule.pattern(), &from, &to)? {
                    links.add(from, to)?;
                }
            }
        }
        let shares = Self(links.ends()?);
        shares.check_ids(student)?;
        Ok(shares)
    }

    /// The name that stands for all tensors that are one variable with `name`.
    pub(super) fn variable<'a>(&'a self, name: &'a str) -> &'a str {
        self.0.get(name).map_or(name, String::as_str)
    }

    /// Burn knows a parameter by its id: two of one id that no rule shares would be trained as one,
    /// though each was filled on its own.
    fn check_ids(&self, student: &Listing<'_>) -> Result<(), BlueprintError> {
        let mut first_names = HashMap::new();
        for (name, tensor) in &student.0 {
            let first = *first_names.entry(tensor.id).or_insert(*name);
            if self.variable(first) != self.variable(name) {
                return Err(BlueprintError::OneId {
                    first: first.to_owned(),
                    second: (*name).to_owned(),
                });
            }
        }
        Ok(())
    }
}

/// The tensors that become one where `from` and `to` do: themselves, or, of weights that are maps, all
/// parts of both.
fn parts<'a>(
    student: &Listing<'a>,
    pattern: &str,
    from: &str,
    to: &str,
) -> Result<Vec<[&'a Listed; 2]>, BlueprintError> {
    let unknown = || BlueprintError::UnknownTarget {
        pattern: pattern.to_owned(),
        from: from.to_owned(),
        to: to.to_owned(),
        suggestion: nearest_name(to, student.names()),
    };
    if let Some(source) = student.get(from) {
        let of_map = || student.parts_of_weight(to).into_iter().next();
        let destination = student.get(to).or_else(of_map).ok_or_else(unknown)?;
        return Ok(vec![alike(source, destination)?]);
    }
    let sources = student.parts_of_weight(from);
    let destinations = student.parts_of_weight(to);
    let first = |tensors: &[&'a Listed]| tensors.first().copied();
    match (first(&sources), first(&destinations), student.get(to)) {
        (_, Some(_), _) if sources.len() == destinations.len() => {
            let pairs = sources.into_iter().zip(destinations);
            pairs.map(|(from, to)| alike(from, to)).collect()
        }
        (Some(source), Some(other), _) | (Some(source), None, Some(other)) => {
            Err(unlike(source, other))
        }
        _ => Err(unknown()),
    }
}

/// Both, if they can be one variable.
fn alike<'a>(
    source: &'a Listed,
    destination: &'a Listed,
) -> Result<[&'a Listed; 2], BlueprintError> {
    let leaf = |tensor: &Listed| {
        let projection = tensor.projection.as_ref()?;
        Some(tensor.name.strip_prefix(projection.as_str())?.to_owned())
    };
    let types_differ = matches!((source.dtype, destination.dtype), (Some(a), Some(b)) if a != b);
    let differ = source.part != destination.part
        || source.shape != destination.shape
        || (source.part == Part::Map && leaf(source) != leaf(destination))
        || types_differ;
    match differ {
        true => Err(unlike(source, destination)),
        false => Ok([source, destination]),
    }
}

fn unlike(source: &Listed, destination: &Listed) -> BlueprintError {
    let describe = |tensor: &Listed| {
        let what = match tensor.part {
            Part::Map => "part of a map",
            Part::TeacherKernel => "a teacher kernel `C`",
            Part::Bias => "the bias beside a map",
            Part::Plain => "an ordinary tensor",
        };
        let dtype = tensor.dtype.map(|dtype| format!(" in {dtype:?}"));
        format!("{what} {:?}{}", tensor.shape, dtype.unwrap_or_default())
    };
    BlueprintError::Unlike {
        from: source.name.clone(),
        found: describe(source),
        to: destination.name.clone(),
        expected: describe(destination),
    }
}

/// Destinations and their sources, which may be destinations themselves.
#[derive(Default)]
struct Links(BTreeMap<String, String>);

impl Links {
    fn add(&mut self, from: &Listed, to: &Listed) -> Result<(), BlueprintError> {
        match self.0.insert(to.name.clone(), from.name.clone()) {
            Some(first) if first != from.name => Err(BlueprintError::SharedTwice {
                to: to.name.clone(),
                first,
                second: from.name.clone(),
            }),
            _ => Ok(()),
        }
    }

    /// Each destination and the source that is none.
    fn ends(&self) -> Result<BTreeMap<String, String>, BlueprintError> {
        let ends = self
            .0
            .keys()
            .map(|name| Ok((name.clone(), end_of_chain(name, &self.0)?)));
        ends.collect()
    }
}

fn end_of_chain(name: &str, sources: &BTreeMap<String, String>) -> Result<String, BlueprintError> {
    let mut chain = vec![name];
    let mut end = name;
    while let Some(source) = sources.get(end) {
        end = source;
        if let Some(start) = chain.iter().position(|name| *name == end) {
            return Err(BlueprintError::ShareLoop {
                names: chain[start..].iter().map(|name| (*name).into()).collect(),
            });
        }
        chain.push(end);
    }
    Ok(end.to_owned())
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
