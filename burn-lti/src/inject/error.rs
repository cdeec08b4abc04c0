//! What can go wrong on the teacher's way into the student.

use thiserror::Error;

/// An injection that would have left the student wrong.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum InjectError {
    /// The pattern of a rule is not a regular expression.
    #[error("rule `{pattern}` is not a valid regular expression")]
    Pattern {
        /// The pattern as given.
        pattern: String,
        /// What the parser says.
        source: Box<regex::Error>,
    },
    /// A rule that matched no teacher tensor.
    #[error(
        "rule `{pattern}` matches no tensor of the teacher{}; a pattern must match the whole name",
        nearest(.suggestion)
    )]
    NoMatch {
        /// The pattern as given.
        pattern: String,
        /// The teacher tensor whose name is nearest.
        suggestion: Option<String>,
    },
    /// A rule's template names a tensor that the student does not have.
    #[error(
        "rule `{pattern}` sends `{teacher}` to `{student}`, which the student does not have{}",
        nearest(.suggestion)
    )]
    UnknownTarget {
        /// The pattern as given.
        pattern: String,
        /// The teacher tensor matched.
        teacher: String,
        /// The name its template gave.
        student: String,
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
    /// The teacher's tensor cannot become the student's by splitting or joining axes.
    #[error(
        "`{teacher}` {found:?} does not fit `{student}` {expected:?}: the same elements are needed, \
         with axes split or joined but not rearranged"
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
    candidates
        .into_iter()
        .map(|candidate| {
            (
                strsim::normalized_damerau_levenshtein(name, candidate),
                candidate,
            )
        })
        .filter(|(likeness, _)| *likeness > 0.5)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, candidate)| candidate.to_owned())
}
