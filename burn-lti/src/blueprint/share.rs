//! Which student tensors are one variable.

use std::collections::{BTreeMap, HashMap};

use super::error::nearest_name;
use super::{BlueprintError, Listed, Listing, ShareRule};
use crate::map::Part;
use crate::tensors::split_name;

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
                    links.add(from, to);
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
    let types_differ = matches!((source.dtype, destination.dtype), (Some(a), Some(b)) if a != b);
    // A map does not know which side it is on: one of `A`, `B` or `W` may serve both.
    let parts_differ = match (source.part, destination.part) {
        (Part::Map(_), Part::Map(_)) => {
            split_name(&source.name).1 != split_name(&destination.name).1
        }
        (source, destination) => source != destination,
    };
    let differ = parts_differ || source.shape != destination.shape || types_differ;
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
struct Links {
    /// Of each destination the first source.
    first: BTreeMap<String, String>,
    /// Destinations and further sources.
    further: Vec<[String; 2]>,
}

impl Links {
    fn add(&mut self, from: &Listed, to: &Listed) {
        match self.first.get(&to.name) {
            None => {
                self.first.insert(to.name.clone(), from.name.clone());
            }
            Some(_) => self.further.push([to.name.clone(), from.name.clone()]),
        }
    }

    /// Each destination and the source that is none. Several sources of one must come to the same end.
    fn ends(self) -> Result<BTreeMap<String, String>, BlueprintError> {
        let end = |name: &str| end_of_chain(name, &self.first);
        for [to, second] in &self.further {
            if end(second)? != end(to)? {
                return Err(BlueprintError::SharedTwice {
                    to: to.clone(),
                    first: self.first[to].clone(),
                    second: second.clone(),
                });
            }
        }
        let ends = self.first.keys().map(|name| Ok((name.clone(), end(name)?)));
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
