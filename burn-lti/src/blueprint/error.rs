//! What can keep a teacher's tensors from making a student.

use thiserror::Error;

use super::Listed;

/// Rules, or an injection, that would leave a student wrong, or say nothing.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum BlueprintError {
    /// The pattern of a rule is not a regular expression.
    #[error("rule `{pattern}` is not a valid regular expression")]
    Pattern {
        /// The pattern as given.
        pattern: String,
        /// What the parser says.
        source: Box<regex::Error>,
    },
    /// A rule that matched no tensor.
    #[error(
        "rule `{pattern}` matches no tensor of the {of}{}; a pattern must match the whole name",
        nearest(.suggestion)
    )]
    NoMatch {
        /// The pattern as given.
        pattern: String,
        /// Whose tensors it was matched with.
        of: &'static str,
        /// The tensor whose name is nearest.
        suggestion: Option<String>,
    },
    /// A rule's template names a tensor that the student does not have.
    #[error(
        "rule `{pattern}` sends `{from}` to `{to}`, which the student does not have{}",
        nearest(.suggestion)
    )]
    UnknownTarget {
        /// The pattern as given.
        pattern: String,
        /// The tensor matched.
        from: String,
        /// The name its template gave.
        to: String,
        /// The student tensor whose name is nearest.
        suggestion: Option<String>,
    },
    /// Two teacher tensors for one student tensor.
    #[error("`{student}` would be filled twice, from `{first}` and from `{second}`; drop one rule")]
    FilledTwice {
        /// The student tensor.
        student: String,
        /// The teacher tensor of the first rule.
        first: String,
        /// The teacher tensor of the second.
        second: String,
    },
    /// A student tensor that no rule fills and that was not declared new.
    #[error(
        "no rule fills {}; add a rule for each, or declare it new",
        list(.names)
    )]
    Unfilled {
        /// The tensors.
        names: Vec<String>,
    },
    /// A tensor declared new that the student does not have.
    #[error("`{name}` is declared new, but the student has no such tensor{}", nearest(.suggestion))]
    UnknownNew {
        /// The name as given.
        name: String,
        /// The student tensor whose name is nearest.
        suggestion: Option<String>,
    },
    /// A tensor that is said to lie along a projection, and that the student does not have.
    #[error(
        "`{name}` is said to be the gain of a projection, but the student has no such tensor{}",
        nearest(.suggestion)
    )]
    UnknownGain {
        /// The name as given.
        name: String,
        /// The student tensor whose name is nearest.
        suggestion: Option<String>,
    },
    /// The teacher's tensor has another shape than the student's.
    #[error(
        "the teacher's `{teacher}` {found:?} does not fit the student's `{student}` {expected:?}"
    )]
    Shape {
        /// The teacher tensor.
        teacher: String,
        /// Its shape.
        found: Vec<usize>,
        /// The student tensor.
        student: String,
        /// Its shape.
        expected: Vec<usize>,
    },
    /// A share rule's template gives the name it matched.
    #[error(
        "share rule `{pattern}` shares `{name}` with itself; make the pattern match only what others share"
    )]
    SharedWithItself {
        /// The pattern as given.
        pattern: String,
        /// The student tensor.
        name: String,
    },
    /// Two tensors of different kinds, shapes or float types cannot be one variable.
    #[error(
        "`{from}` is {found} and `{to}` {expected}: they cannot be one variable; share each with its like"
    )]
    Unlike {
        /// The source.
        from: String,
        /// What it is.
        found: String,
        /// The destination.
        to: String,
        /// What it is.
        expected: String,
    },
    /// Two sources for one destination.
    #[error(
        "`{to}` would be shared twice, with `{first}` and with `{second}`; drop one share rule"
    )]
    SharedTwice {
        /// The destination.
        to: String,
        /// The source of the first rule.
        first: String,
        /// The source of the second.
        second: String,
    },
    /// Share rules that lead back to where they began.
    #[error("the share rules lead in a circle through {}; drop one of them", list(.names))]
    ShareLoop {
        /// The tensors on the circle.
        names: Vec<String>,
    },
    /// Two tensors that Burn takes for one parameter, though no rule shares them.
    #[error(
        "`{first}` and `{second}` have one parameter id, as clones of a layer do, and would train as \
         one; share them by a rule, or initialise each layer on its own"
    )]
    OneId {
        /// One of them.
        first: String,
        /// The other.
        second: String,
    },
    /// The blueprint is of another student.
    #[error(
        "the blueprint has `{name}` as {expected}, the student as {found}: make the blueprint of this student"
    )]
    OtherStudent {
        /// The tensor.
        name: String,
        /// What the blueprint says of it.
        expected: String,
        /// What it is.
        found: String,
    },
    /// A tensor of the blueprint that nobody brought.
    #[error("{} for `{student}` is missing: bring it with the teacher", source_name(.from))]
    Missing {
        /// The student tensor.
        student: String,
        /// The teacher's tensor; `None` for what the start should have calculated.
        from: Option<String>,
    },
    /// A pattern about what trains that is found in no parameter's name.
    #[error(
        "`{pattern}` is found in no parameter's name{}; correct or drop it",
        nearest(.suggestion)
    )]
    NoParameter {
        /// The pattern as given.
        pattern: String,
        /// The parameter a part of whose name is nearest.
        suggestion: Option<String>,
    },
}

impl BlueprintError {
    /// A value for a tensor that the student does not have.
    pub(crate) fn unknown(name: &str, student: &[Listed]) -> Self {
        Self::UnknownTarget {
            pattern: name.to_owned(),
            from: name.to_owned(),
            to: name.to_owned(),
            suggestion: nearest_name(name, student.iter().map(|it| it.name.as_str())),
        }
    }
}

fn source_name(from: &Option<String>) -> String {
    match from {
        Some(name) => format!("the teacher's `{name}`"),
        None => "the value that the start calculates".to_owned(),
    }
}

fn nearest(suggestion: &Option<String>) -> String {
    suggestion
        .as_ref()
        .map(|name| format!(" (nearest: `{name}`)"))
        .unwrap_or_default()
}

/// At most five names, then a count.
fn list(names: &[String]) -> String {
    const SHOWN: usize = 5;
    let shown: Vec<String> = names.iter().take(SHOWN).map(|n| format!("`{n}`")).collect();
    match names.len().saturating_sub(SHOWN) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

/// The candidate most like `name`, if any is like it at all.
pub(crate) fn nearest_name<'a>(
    name: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<String> {
    most_like(
        name,
        candidates
            .into_iter()
            .map(|candidate| (candidate, candidate)),
    )
}

/// The candidate that has fields most like `part`, if any is like it at all.
pub(super) fn nearest_part<'a>(
    part: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<String> {
    most_like(
        part,
        candidates
            .into_iter()
            .flat_map(|candidate| runs_of_fields(candidate).map(move |run| (run, candidate))),
    )
}

/// The candidate whose key is most like `name`, the first of equals.
fn most_like<'a>(name: &str, keyed: impl Iterator<Item = (&'a str, &'a str)>) -> Option<String> {
    keyed
        .map(|(key, candidate)| (strsim::normalized_damerau_levenshtein(name, key), candidate))
        .filter(|(likeness, _)| *likeness > 0.5)
        .min_by(|(a, _), (b, _)| b.total_cmp(a))
        .map(|(_, candidate)| candidate.to_owned())
}

/// `a.b.c` as `a`, `a.b`, `a.b.c`, `b`, `b.c`, `c`.
fn runs_of_fields(name: &str) -> impl Iterator<Item = &str> {
    let dots = move || name.match_indices('.').map(|(index, _)| index);
    let starts = std::iter::once(0).chain(dots().map(|index| index + 1));
    starts.flat_map(move |start| {
        let ends = dots().filter(move |end| *end > start);
        ends.chain(std::iter::once(name.len()))
            .map(move |end| &name[start..end])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_near_by_its_whole_and_a_pattern_by_a_part() {
        let names = [
            "layers.0.mlp.up.weight",
            "layers.1.mlp.up.weight",
            "norm.gamma",
        ];
        assert_eq!(nearest_name("mpl", names), None);
        assert_eq!(nearest_part("mpl.up", names).as_deref(), Some(names[0]));
        assert_eq!(nearest_part("layer.1", names).as_deref(), Some(names[1]));
        assert_eq!(nearest_name("norm.gama", names).as_deref(), Some(names[2]));
        assert_eq!(nearest_part("quantum", names), None);
        let runs: Vec<&str> = runs_of_fields("a.b.c").collect();
        assert_eq!(runs, ["a", "a.b", "a.b.c", "b", "b.c", "c"]);
    }
}
