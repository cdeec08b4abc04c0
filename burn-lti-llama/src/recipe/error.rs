//! Why a recipe is refused, and how that is read out of what serde says.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::suggest::UnknownName;

/// Why a recipe is refused.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RecipeError {
    /// The file cannot be read.
    #[error("cannot read the recipe {}: give the path of a TOML file", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is not TOML.
    #[error("{} is not valid TOML: correct the line shown", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: Box<toml::de::Error>,
    },
    /// An override does not have the form `section.key=value`.
    #[error("cannot use the override `{text}`: write it as section.key=value")]
    Override {
        /// The override.
        text: String,
    },
    /// A section that recipes do not have.
    #[error(
        "{}: there is no section [{section}]: {}",
        path.display(), way_out(suggestion, "sections", known)
    )]
    UnknownSection {
        /// The file.
        path: PathBuf,
        /// The section.
        section: String,
        /// The sections that there are.
        known: Vec<String>,
        /// The nearest of them.
        suggestion: Option<String>,
    },
    /// A key that its section does not have.
    #[error(
        "{}: there is no key `{key}` in [{section}]: {}",
        path.display(), way_out(suggestion, "keys", known)
    )]
    UnknownKey {
        /// The file, also if the key came from an override.
        path: PathBuf,
        /// The section, or the path of a table inside one.
        section: String,
        /// The key.
        key: String,
        /// The keys that there are.
        known: Vec<String>,
        /// The nearest of them.
        suggestion: Option<String>,
    },
    /// A word that its key does not accept.
    #[error(
        "{}: `{key}` cannot be \"{value}\": {}",
        path.display(), way_out(suggestion, "values", known)
    )]
    UnknownValue {
        /// The file, also if the value came from an override.
        path: PathBuf,
        /// Section and key.
        key: String,
        /// The word.
        value: String,
        /// The words that would do.
        known: Vec<String>,
        /// The nearest of them.
        suggestion: Option<String>,
    },
    /// A required section or key is not there.
    #[error("{}: `{key}` is missing: add it, it has no default", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
        /// Section and key, or section.
        key: String,
    },
    /// A value has the wrong type.
    #[error("{}: `{key}` has the wrong type: correct its value", path.display())]
    WrongType {
        /// The file, also if the value came from an override.
        path: PathBuf,
        /// Section and key, or section.
        key: String,
        /// What was expected.
        source: Box<toml::de::Error>,
    },
    /// A value is outside its range.
    #[error("{}: `{key}` is {value}: it {rule}", path.display())]
    OutOfRange {
        /// The file, also if the value came from an override.
        path: PathBuf,
        /// Section and key.
        key: &'static str,
        /// The value.
        value: String,
        /// What holds for it.
        rule: &'static str,
    },
    /// A value of the right type that says too little, or two things at once.
    #[error("{}: `{key}` {rule}", path.display())]
    Refused {
        /// The file, also if the value came from an override.
        path: PathBuf,
        /// Section and key.
        key: String,
        /// What holds for it.
        rule: String,
    },
    /// A key or section that means nothing beside what the rest of the recipe says.
    #[error("{}: `{key}` needs {needs}: {reason}", path.display())]
    Needs {
        /// The file, also if the value came from an override.
        path: PathBuf,
        /// Section and key, or section.
        key: &'static str,
        /// What it needs.
        needs: &'static str,
        /// Why, and the way out.
        reason: &'static str,
    },
    /// The sequences of a step cannot be shared out evenly among its micro-batches.
    #[error(
        "{}: `train.accumulate` is {accumulate}, which does not divide train.batch_size, \
         {batch_size}: set it to a divisor of that, or change train.batch_size",
        path.display()
    )]
    MicroBatches {
        /// The file, also if the value came from an override.
        path: PathBuf,
        /// Micro-batches in a step.
        accumulate: usize,
        /// Sequences in a step.
        batch_size: usize,
    },
    /// A pattern for tensor names is no regular expression.
    #[error(
        "{}: `{key}` holds \"{pattern}\", which is no regular expression: correct it",
        path.display()
    )]
    Pattern {
        /// The file, also if the value came from an override.
        path: PathBuf,
        /// Section and key.
        key: &'static str,
        /// The pattern.
        pattern: String,
        /// Where and why.
        source: Box<regex::Error>,
    },
    /// A template names a group that its pattern does not have.
    #[error(
        "{}: `{key}` turns \"{pattern}\" into \"{template}\", but the pattern has no group \
         `{group}`: use one that it has; write ${{1}} for $1 where a letter, a digit or _ follows, \
         and $$ for a dollar",
        path.display()
    )]
    Template {
        /// The file, also if the value came from an override.
        path: PathBuf,
        /// Section and key.
        key: &'static str,
        /// The pattern.
        pattern: String,
        /// The template.
        template: String,
        /// The group.
        group: String,
    },
    /// The recipe holds a value that TOML cannot.
    #[error("cannot write the recipe as TOML: correct the value named")]
    Write {
        /// The value and why.
        source: toml::ser::Error,
    },
}

impl RecipeError {
    /// Sorts what serde says into the variants above.
    pub(super) fn from_toml(path: &Path, source: toml::de::Error) -> Self {
        let path = path.to_path_buf();
        let message = source.message();
        let place = place(&source);
        if let Some(unknown) = UnknownName::from_message(message, "field") {
            let (suggestion, UnknownName { name, known }) = (unknown.nearest(), unknown);
            return if place.is_empty() {
                Self::UnknownSection {
                    path,
                    section: name,
                    known,
                    suggestion,
                }
            } else {
                Self::UnknownKey {
                    path,
                    section: place,
                    key: name,
                    known,
                    suggestion,
                }
            };
        }
        if let Some(unknown) = UnknownName::from_message(message, "variant") {
            let (suggestion, UnknownName { name, known }) = (unknown.nearest(), unknown);
            return Self::UnknownValue {
                path,
                key: place,
                value: name,
                known,
                suggestion,
            };
        }
        let missing = message
            .strip_prefix("missing field `")
            .and_then(|m| m.strip_suffix('`'));
        if let Some(name) = missing {
            let key = if place.is_empty() {
                name.into()
            } else {
                format!("{place}.{name}")
            };
            return Self::Missing { path, key };
        }
        // So serde begins when it is a value's type, range or length that it minds. What is left are
        // the words of the recipe's own visitors.
        if message.starts_with("invalid ") {
            return Self::WrongType {
                path,
                key: place,
                source: Box::new(source),
            };
        }
        Self::Refused {
            path,
            key: place,
            rule: message.to_owned(),
        }
    }
}

/// The dotted path at which reading stopped; empty at the top. `toml` only prints it, as
/// "message\nin `section.key`".
fn place(error: &toml::de::Error) -> String {
    let text = error.to_string();
    text.rsplit_once("\nin `")
        .and_then(|(_, place)| place.trim_end().strip_suffix('`'))
        .unwrap_or_default()
        .to_owned()
}

/// The nearest name to one that there is not, or all `what` that there are.
pub(crate) fn way_out(suggestion: &Option<String>, what: &str, known: &[String]) -> String {
    match suggestion {
        Some(name) => format!("did you mean `{name}`?"),
        None => format!("the {what} are {}", known.join(", ")),
    }
}
