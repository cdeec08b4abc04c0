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
        for (name, tensor) in &student.by_name {
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
        || (matches!(source.part, Part::Map(_)) && leaf(source) != leaf(destination))
        || types_differ;
    match differ {
        true => Err(unlike(source, destination)),
        false => Ok([source, destination]),
    }
}

fn unlike(source: &Listed, destination: &Listed) -> BlueprintError {
    let describe = |tensor: &Listed| {
        let what = match tensor.part {
            Part::Map(_) => "part of a map",
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
