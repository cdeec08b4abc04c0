//! Rules by patterns over names: what is copied, and what is one variable.

use regex::Regex;

use super::BlueprintError;

/// A regular expression over names and the student name it stands for.
#[derive(Clone, Debug)]
pub struct CopyRule {
    pattern: String,
    whole_name: Regex,
    template: String,
}

impl CopyRule {
    /// A rule from a pattern that must match a whole teacher name, and a template in which `$1` or
    /// `${name}` stand for the pattern's groups.
    ///
    /// # Errors
    ///
    /// [`BlueprintError::Pattern`] if the pattern cannot be parsed.
    pub fn new(pattern: &str, template: &str) -> Result<Self, BlueprintError> {
        let whole_name = Regex::new(&format!("^(?:{pattern})$"));
        Ok(Self {
            pattern: pattern.to_owned(),
            whole_name: whole_name.map_err(|source| BlueprintError::Pattern {
                pattern: pattern.to_owned(),
                source: Box::new(source),
            })?,
            template: template.to_owned(),
        })
    }

    /// The pattern as given.
    pub(super) fn pattern(&self) -> &str {
        &self.pattern
    }

    /// The template's name for `name`, if the pattern matches it.
    pub fn apply(&self, name: &str) -> Option<String> {
        let groups = self.whole_name.captures(name)?;
        let mut expanded = String::new();
        groups.expand(&self.template, &mut expanded);
        Some(expanded)
    }
}

/// A regular expression over student names and the student name that becomes one variable with each
/// match.
///
/// The match is the source, the template's name the destination. From then on both are one
/// parameter: one value, one gradient, one state of the optimizer. Chains are followed to their end,
/// in whatever order the rules stand. The `weight` of a projection that is a map is the whole map, `C` and
/// all. The semantics are those of MaxText's `distill_student_weights_share_map`.
///
/// ```
/// use burn_lti::blueprint::ShareRule;
///
/// // The second of each pair of layers has the feed-forward weights of the first.
/// let rule = ShareRule::new(r"layers\.0\.mlp\.(.*)", "layers.1.mlp.$1")?;
/// # Ok::<(), burn_lti::blueprint::BlueprintError>(())
/// ```
#[derive(Clone, Debug)]
pub struct ShareRule(pub(super) CopyRule);

impl ShareRule {
    /// A rule from a pattern that must match a whole student name, and a template in which `$1` or
    /// `${name}` stand for the pattern's groups.
    ///
    /// # Errors
    ///
    /// [`BlueprintError::Pattern`] if the pattern cannot be parsed.
    pub fn new(pattern: &str, template: &str) -> Result<Self, BlueprintError> {
        CopyRule::new(pattern, template).map(Self)
    }
}
