//! `[weights]`: which tensors are copied, shared and frozen, by patterns of their names.

use std::collections::BTreeMap;
use std::path::Path;

use regex::Regex;
use serde::{Deserialize, Serialize};

use super::RecipeError;

/// `[weights]`. Names are those of Hugging Face. The patterns of `copy` and `share` are regular
/// expressions that match a whole name; in a template `$1` or `${name}` stand for its groups.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WeightsSection {
    /// Tensors of the student that do not train: regular expressions, each found anywhere in a name.
    /// Default: none but those that `lti.train` leaves out.
    pub freeze: Vec<String>,
    /// For each pattern of teacher tensors, the student tensor that begins as such a tensor; the
    /// `weight` of a projection with a map is the teacher's kernel in it. Default: each begins as the
    /// tensor of its own name.
    pub copy: BTreeMap<String, String>,
    /// For each pattern of student tensors, the other student tensor that is one variable with it; the
    /// `weight` of a projection with a map is the whole map, kernel and all. Default: none.
    pub share: BTreeMap<String, String>,
}

impl WeightsSection {
    /// Every pattern must compile, and every template may only use groups of its pattern: one that
    /// is not there would stand for nothing, in silence.
    pub(super) fn check(&self, path: &Path) -> Result<(), RecipeError> {
        let Self {
            freeze,
            copy,
            share,
        } = self;
        for pattern in freeze {
            compile(path, "weights.freeze", pattern)?;
        }
        for (key, rules) in [("weights.copy", copy), ("weights.share", share)] {
            for (pattern, template) in rules {
                let regex = compile(path, key, pattern)?;
                let is_missing = |group: &&str| !has_group(&regex, group);
                if let Some(group) = groups(template).into_iter().find(is_missing) {
                    let rule = format!(
                        "turns \"{pattern}\" into \"{template}\", but the pattern has no group \
                         `{group}`: use one that it has; write ${{1}} for $1 where a letter, a digit \
                         or _ follows, and $$ for a dollar"
                    );
                    return Err(RecipeError::Refused {
                        path: path.to_path_buf(),
                        key: key.to_owned(),
                        rule,
                    });
                }
            }
        }
        Ok(())
    }
}

/// Bytes of a pattern, at most: its compiled form may take a thousand times as many.
const LONGEST: usize = 4096;

fn compile(path: &Path, key: &'static str, pattern: &str) -> Result<Regex, RecipeError> {
    if pattern.len() > LONGEST {
        return Err(RecipeError::Refused {
            path: path.to_path_buf(),
            key: key.to_owned(),
            rule: format!(
                "holds a pattern of {} bytes, and {LONGEST} are the most: write it shorter, or as several",
                pattern.len()
            ),
        });
    }
    Regex::new(pattern).map_err(|source| RecipeError::Pattern {
        path: path.to_path_buf(),
        key,
        pattern: pattern.to_owned(),
        source: Box::new(source),
    })
}

fn has_group(regex: &Regex, group: &str) -> bool {
    match group.parse() {
        Ok(number) => (0..regex.captures_len()).contains(&number),
        Err(_) => regex.capture_names().flatten().any(|name| name == group),
    }
}

/// The groups that a template names, read as `regex` expands it: `${name}`, or `$name` with as many
/// letters, digits and `_` as follow; `$$` is a dollar.
fn groups(template: &str) -> Vec<&str> {
    let mut groups = Vec::new();
    let mut rest = template;
    while let Some((_, after)) = rest.split_once('$') {
        if let Some(literal) = after.strip_prefix('$') {
            rest = literal;
            continue;
        }
        rest = after;
        let braced = after
            .strip_prefix('{')
            .and_then(|name| name.split_once('}'));
        let bare = || {
            after
                .split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
                .next()
        };
        match braced {
            Some((name, _)) => groups.push(name),
            None => groups.extend(bare().filter(|name| !name.is_empty())),
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(pattern: &str, template: &str) -> BTreeMap<String, String> {
        BTreeMap::from([(pattern.to_owned(), template.to_owned())])
    }

    fn check(section: WeightsSection) -> Result<(), RecipeError> {
        section.check(Path::new("/r.toml"))
    }

    #[test]
    fn finds_the_groups_of_a_template() {
        let groups = groups("a.$1.${b}.$c_d-$$5 $ ${} ${open $");
        assert_eq!(groups, ["1", "b", "c_d", ""]);
    }

    #[test]
    fn a_template_uses_the_groups_of_its_pattern() {
        for (pattern, template) in [
            (r"layers\.(\d+)\.(.*)", "layers.${1}0.$2"),
            (r"layers\.(?<layer>\d+)", "$0.$layer.${layer}.$$9"),
            ("a", "b"),
        ] {
            let copy = rule(pattern, template);
            let share = copy.clone();
            let freeze = vec![pattern.to_owned()];
            check(WeightsSection {
                freeze,
                copy,
                share,
            })
            .unwrap();
        }
        // `$1_proj` is the group `1_proj`, as `regex` reads it.
        for (template, expected) in [("$2", "2"), ("$1_proj", "1_proj"), ("${x}", "x")] {
            let error = check(WeightsSection {
                share: rule("(q)_proj", template),
                ..WeightsSection::default()
            })
            .unwrap_err();
            let group = format!("no group `{expected}`");
            for part in [
                "/r.toml",
                "`weights.share`",
                "(q)_proj",
                template,
                &group,
                "${1}",
            ] {
                assert!(error.to_string().contains(part), "{error}");
            }
        }
    }

    #[test]
    fn a_pattern_that_is_too_long_is_refused_with_the_bound() {
        let error = check(WeightsSection {
            freeze: vec!["x".repeat(LONGEST + 1)],
            ..WeightsSection::default()
        });
        let text = error.unwrap_err().to_string();
        assert!(
            text.contains("`weights.freeze` holds a pattern of 4097 bytes, and 4096"),
            "{text}"
        );
    }

    #[test]
    fn names_a_pattern_that_is_none() {
        let bad = || rule("a(b", "c");
        for (section, expected) in [
            (
                WeightsSection {
                    copy: bad(),
                    ..WeightsSection::default()
                },
                "weights.copy",
            ),
            (
                WeightsSection {
                    share: bad(),
                    ..WeightsSection::default()
                },
                "weights.share",
            ),
            (
                WeightsSection {
                    freeze: vec!["a(b".to_owned()],
                    ..WeightsSection::default()
                },
                "weights.freeze",
            ),
        ] {
            let error = check(section).unwrap_err();
            assert!(matches!(&error, RecipeError::Pattern { key, .. } if *key == expected));
            assert!(error.to_string().contains("a(b"), "{error}");
        }
    }
}
