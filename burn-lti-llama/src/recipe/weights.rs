//! `[weights]`: which tensors do not train, by patterns of their names.

use std::path::Path;

use regex::Regex;
use serde::{Deserialize, Serialize};

use super::RecipeError;

/// `[weights]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WeightsSection {
    /// Tensors of the student that do not train: regular expressions, each found anywhere in a name.
    /// Default: none but those that `lti.train` leaves out.
    pub freeze: Vec<String>,
}

impl WeightsSection {
    /// Every pattern must compile.
    pub(super) fn check(&self, path: &Path) -> Result<(), RecipeError> {
        for pattern in &self.freeze {
            Regex::new(pattern).map_err(|source| RecipeError::Pattern {
                path: path.to_path_buf(),
                key: "weights.freeze",
                pattern: pattern.clone(),
                source: Box::new(source),
            })?;
        }
        Ok(())
    }
}
