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
    /// A section, a key or a word that there is not.
    #[error("{}: {what}: {way_out}", path.display())]
    Unknown {
        /// The file, also if it came from an override.
        path: PathBuf,
        /// What there is not, and where.
        what: String,
        /// The nearest that there is, or all.
        way_out: String,
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
    /// A value is out of its range, says too little or two things at once, or means nothing beside the
    /// rest of the recipe.
    #[error("{}: `{key}` {rule}", path.display())]
    Refused {
        /// The file, also if the value came from an override.
        path: PathBuf,
        /// Section and key, or section.
        key: String,
        /// What holds for it, and the way out.
        rule: String,
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
        let section = key_of(&source);
        let unknown = |what| UnknownName::from_message(message, what);
        if let Some(unknown) = unknown("field") {
            let name = &unknown.name;
            let (what, way_out) = match section.is_empty() {
                true => (
                    format!("there is no section [{name}]"),
                    unknown.way_out("sections"),
                ),
                false => (
                    format!("there is no key `{name}` in [{section}]"),
                    unknown.way_out("keys"),
                ),
            };
            return Self::Unknown {
                path,
                what,
                way_out,
            };
        }
        if let Some(unknown) = unknown("variant") {
            let what = format!("`{section}` cannot be \"{}\"", unknown.name);
            let way_out = unknown.way_out("values");
            return Self::Unknown {
                path,
                what,
                way_out,
            };
        }
        let missing = message
            .strip_prefix("missing field `")
            .and_then(|m| m.strip_suffix('`'));
        if let Some(name) = missing {
            let key = if section.is_empty() {
                name.into()
            } else {
                format!("{section}.{name}")
            };
            return Self::Missing { path, key };
        }
        // So serde begins when it is a value's type, range or length that it minds. What is left are
        // the words of the recipe's own visitors.
        if message.starts_with("invalid ") {
            return Self::WrongType {
                path,
                key: section,
                source: Box::new(source),
            };
        }
        Self::Refused {
            path,
            key: section,
            rule: message.to_owned(),
        }
    }
}

/// The dotted key at which reading stopped; empty at the top. `toml` only prints it, as
/// "message\nin `section.key`".
fn key_of(error: &toml::de::Error) -> String {
    let text = error.to_string();
    text.rsplit_once("\nin `")
        .and_then(|(_, key)| key.trim_end().strip_suffix('`'))
        .unwrap_or_default()
        .to_owned()
}
