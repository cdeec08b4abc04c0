//! The rules of `[weights]`, resolved to names.

use std::collections::{BTreeMap, HashMap};

use burn_lti::geometry::{HeadGrid, Role};
use burn_lti::inject::{CopyRule, InjectError};
use burn_lti::map::{MapKind, ProjectionKind};
use serde::Serialize;
use thiserror::Error;

use crate::config::{LlamaConfig, projection_name};
use crate::recipe::{MapChoice, WeightsSection};

/// Which tensors of the student begin as another tensor of the teacher, and which are one variable.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct WeightPlan {
    /// The teacher's tensor that a tensor of the student without maps begins as, where it is not the
    /// one of its own name.
    pub copied: BTreeMap<String, String>,
    /// The tensor that a tensor of the student is one variable with, by their names in the first or
    /// only phase.
    pub shared: BTreeMap<String, String>,
    /// The same for the student without maps.
    pub shared_without_maps: BTreeMap<String, String>,
}

/// Both models, as far as a tensor's part in them goes.
pub(super) struct Models<'a> {
    pub(super) teacher: &'a LlamaConfig,
    pub(super) student: &'a LlamaConfig,
    /// The layers with learned attention.
    pub(super) layers: &'a [usize],
    /// The form of the maps, if any train.
    pub(super) maps: Option<MapChoice>,
}

/// What a tensor of the student is. Two are one variable only if they are the same in this.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Form {
    /// The weight or bias of an attention projection.
    Projection {
        leaf: String,
        kind: ProjectionKind,
        teacher: HeadGrid,
        student: HeadGrid,
        learned: bool,
        map: Option<MapKind>,
    },
    /// `A`, `B` or `W`.
    Map {
        letter: &'static str,
        kind: ProjectionKind,
        teacher: HeadGrid,
        student: HeadGrid,
    },
    /// Anything else, which has the teacher's shape.
    Plain { shape: Vec<usize> },
}

impl Form {
    /// The letters of the maps of a weight, with its teacher kernel's.
    const fn letters(&self) -> &'static [&'static str] {
        match self {
            Self::Projection { map, .. } => map_letters(*map),
            _ => &[],
        }
    }

    /// Whether a tensor of the teacher that is `other` can fill it.
    fn takes(&self, other: &Self) -> bool {
        match (self, other) {
            (
                Self::Projection {
                    leaf,
                    kind,
                    teacher,
                    student,
                    learned,
                    ..
                },
                Self::Projection {
                    leaf: other_leaf,
                    kind: other_kind,
                    teacher: other_teacher,
                    ..
                },
            ) => {
                (leaf, kind, teacher) == (other_leaf, other_kind, other_teacher)
                    && (*learned || student == teacher)
            }
            (Self::Plain { .. }, Self::Plain { .. }) => self == other,
            _ => false,
        }
    }
}

/// The names that take the place of `weight` in a projection with such a map: `C` first.
const fn map_letters(map: Option<MapKind>) -> &'static [&'static str] {
    match map {
        Some(MapKind::Factored | MapKind::Kronecker(_)) => &["c", "a", "b"],
        Some(MapKind::General) => &["c", "w"],
        None => &[],
    }
}

impl Models<'_> {
    /// Every tensor of the student without maps, and what it is.
    fn forms(&self) -> BTreeMap<String, Form> {
        let roles = projections(self.student);
        let form = |name: &str, shape| {
            let (module, leaf) = name.rsplit_once('.').unwrap_or(("", name));
            match roles.get(module) {
                // The bias of the output projection is as wide as the residual stream.
                Some(&(layer, role)) if leaf == "weight" || role != Role::Out => {
                    let learned = self.layers.contains(&layer);
                    let maps = self.maps.filter(|_| learned && leaf == "weight");
                    Form::Projection {
                        leaf: leaf.to_owned(),
                        kind: ProjectionKind::of(role),
                        teacher: self.teacher.grid(role),
                        student: self.student.grid(role),
                        learned,
                        map: maps.map(|maps| maps.kind(role)),
                    }
                }
                _ => Form::Plain { shape },
            }
        };
        let tensors = self.student.tensors().into_iter();
        tensors
            .map(|(name, shape)| {
                let form = form(&name, shape);
                (name, form)
            })
            .collect()
    }
}

/// The attention projections of a model: their layer and place, by name.
pub(super) fn projections(model: &LlamaConfig) -> HashMap<String, (usize, Role)> {
    (0..model.num_hidden_layers)
        .flat_map(|layer| Role::ATTENTION.map(|role| (projection_name(layer, role), (layer, role))))
        .collect()
}

impl WeightPlan {
    /// What `section` means for `models`: sharing first, then copying, as in MaxText.
    pub(super) fn new(section: &WeightsSection, models: &Models<'_>) -> Result<Self, WeightsError> {
        let forms = models.forms();
        let (shared, shared_without_maps) = resolve_shares(&section.share, &forms)?;
        let copied = resolve_copies(&section.copy, &forms, models, &shared_without_maps)?;
        Ok(Self {
            copied,
            shared,
            shared_without_maps,
        })
    }

    /// The teacher's tensor that the student's `name`, without maps, begins as.
    pub(super) fn source<'a>(&'a self, name: &'a str) -> &'a str {
        self.copied.get(name).map_or(name, String::as_str)
    }
}

fn resolve_copies(
    rules: &BTreeMap<String, String>,
    forms: &BTreeMap<String, Form>,
    models: &Models<'_>,
    shared: &BTreeMap<String, String>,
) -> Result<BTreeMap<String, String>, WeightsError> {
    // A tensor of the teacher is what the student's of the same name is; only the head may have none.
    let teacher: Vec<(String, Form)> = models
        .teacher
        .tensors()
        .into_iter()
        .filter_map(|(name, _)| {
            let form = forms.get(&name)?.clone();
            Some((name, form))
        })
        .collect();
    let mut copied = BTreeMap::new();
    for (pattern, template) in rules {
        let rule = CopyRule::new(pattern, template)?;
        let matches: Vec<_> = teacher
            .iter()
            .filter_map(|(from, form)| Some((from, form, rule.apply(from)?)))
            .collect();
        if matches.is_empty() {
            return Err(WeightsError::CopiesNothing {
                pattern: pattern.clone(),
            });
        }
        for (from, form, to) in matches {
            match forms.get(&to) {
                None => return Err(unknown("weights.copy", pattern, from, &to)),
                Some(target) if !target.takes(form) => {
                    return Err(WeightsError::CopyMisfit {
                        from: from.clone(),
                        to,
                    });
                }
                Some(_) => {}
            }
            let variable = shared.get(&to).unwrap_or(&to).clone();
            if let Some(first) = copied.insert(variable, from.clone()) {
                let second = from.clone();
                return Err(WeightsError::CopiedTwice { to, first, second });
            }
        }
    }
    Ok(copied)
}

/// Each destination and the source at the end of its chain, with maps and without.
type Shares = (BTreeMap<String, String>, BTreeMap<String, String>);

fn resolve_shares(
    rules: &BTreeMap<String, String>,
    forms: &BTreeMap<String, Form>,
) -> Result<Shares, WeightsError> {
    let names = with_map_parts(forms);
    let (mut with_maps, mut without_maps) = (Chains::default(), Chains::default());
    for (pattern, template) in rules {
        let rule = CopyRule::new(pattern, template)?;
        let matches: Vec<_> = names
            .iter()
            .filter_map(|(from, form)| Some((from, form, rule.apply(from)?)))
            .collect();
        if matches.is_empty() {
            return Err(WeightsError::SharesNothing {
                pattern: pattern.clone(),
            });
        }
        for (from, form, to) in matches {
            check_share(pattern, &names, (from, form), &to)?;
            match (form, form.letters()) {
                (Form::Map { .. }, _) => with_maps.add(from, &to)?,
                (_, []) => {
                    with_maps.add(from, &to)?;
                    without_maps.add(from, &to)?;
                }
                // The weight of a projection with a map is all the map's parts.
                (_, letters) => {
                    let part = |name: &str, letter: &str| {
                        let module = name.strip_suffix("weight").unwrap_or(name);
                        format!("{module}{letter}")
                    };
                    for letter in letters {
                        with_maps.add(&part(from, letter), &part(&to, letter))?;
                    }
                    without_maps.add(from, &to)?;
                }
            }
        }
    }
    Ok((with_maps.ends()?, without_maps.ends()?))
}

/// The names that rules of sharing are matched with: those of the student without maps, and the maps
/// that train in the place of some. `C` is no name of its own: it goes with its `weight`.
fn with_map_parts(forms: &BTreeMap<String, Form>) -> BTreeMap<String, Form> {
    let mut names = forms.clone();
    for (name, form) in forms {
        let module = name.strip_suffix(".weight").unwrap_or(name);
        if let Form::Projection {
            kind,
            teacher,
            student,
            ..
        } = form
        {
            for letter in form.letters().iter().filter(|letter| **letter != "c") {
                let map = Form::Map {
                    letter,
                    kind: *kind,
                    teacher: *teacher,
                    student: *student,
                };
                names.insert(format!("{module}.{letter}"), map);
            }
        }
    }
    names
}

fn check_share(
    pattern: &str,
    names: &BTreeMap<String, Form>,
    (from, form): (&str, &Form),
    to: &str,
) -> Result<(), WeightsError> {
    if from == to {
        return Err(WeightsError::SharedWithItself {
            pattern: pattern.to_owned(),
            name: from.to_owned(),
        });
    }
    match names.get(to) {
        None => Err(unknown("weights.share", pattern, from, to)),
        Some(other) if other != form => Err(WeightsError::ShareMisfit {
            from: from.to_owned(),
            to: to.to_owned(),
        }),
        Some(_) => Ok(()),
    }
}

/// Destinations and their sources, which may be destinations themselves.
#[derive(Default)]
struct Chains(BTreeMap<String, String>);

impl Chains {
    fn add(&mut self, from: &str, to: &str) -> Result<(), WeightsError> {
        match self.0.insert(to.to_owned(), from.to_owned()) {
            Some(first) if first != from => Err(WeightsError::SharedTwice {
                to: to.to_owned(),
                first,
                second: from.to_owned(),
            }),
            _ => Ok(()),
        }
    }

    /// Each destination and the source that is none.
    fn ends(&self) -> Result<BTreeMap<String, String>, WeightsError> {
        let end = |start: &String| {
            let mut chain = vec![start];
            while let Some(source) = self.0.get(chain[chain.len() - 1]) {
                if chain.contains(&source) {
                    let names = chain.into_iter().cloned().collect();
                    return Err(WeightsError::ShareLoop { names });
                }
                chain.push(source);
            }
            Ok((start.clone(), chain[chain.len() - 1].clone()))
        };
        self.0.keys().map(end).collect()
    }
}

fn unknown(key: &'static str, pattern: &str, from: &str, to: &str) -> WeightsError {
    WeightsError::Unknown {
        key,
        pattern: pattern.to_owned(),
        from: from.to_owned(),
        to: to.to_owned(),
    }
}

/// Why `[weights]` does not suit teacher and student.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum WeightsError {
    /// A pattern that cannot be used.
    #[error("[weights]: correct the pattern")]
    Pattern(#[from] InjectError),
    /// A rule of copying matches nothing.
    #[error(
        "weights.copy: no tensor of the teacher is called `{pattern}`, and the whole name must match; \
         `burn-lti plan` without the rule lists the names"
    )]
    CopiesNothing {
        /// The pattern.
        pattern: String,
    },
    /// A rule of sharing matches nothing.
    #[error(
        "weights.share: no tensor of the student is called `{pattern}`, and the whole name must match; \
         `burn-lti plan` without the rule lists the names"
    )]
    SharesNothing {
        /// The pattern.
        pattern: String,
    },
    /// A template makes a name that the student does not have.
    #[error(
        "{key}: \"{pattern}\" turns `{from}` into `{to}`, which is no tensor of the student; \
         `burn-lti plan` without the rule lists the names"
    )]
    Unknown {
        /// The key of the recipe.
        key: &'static str,
        /// The pattern.
        pattern: String,
        /// The name that it matches.
        from: String,
        /// The name that is made of it.
        to: String,
    },
    /// A tensor of the teacher does not fit the student's.
    #[error(
        "weights.copy: the teacher's `{from}` does not fit the student's `{to}`: both must be of one \
         shape in the teacher, with the same heads, and a projection whose heads change must have a map"
    )]
    CopyMisfit {
        /// The teacher's tensor.
        from: String,
        /// The student's.
        to: String,
    },
    /// Two tensors of the teacher for one of the student.
    #[error(
        "weights.copy: the student's `{to}` would begin both as the teacher's `{first}` and as its \
         `{second}` (shared tensors are one): take one out"
    )]
    CopiedTwice {
        /// The student's tensor.
        to: String,
        /// The one.
        first: String,
        /// The other.
        second: String,
    },
    /// Tensors that cannot be one variable.
    #[error(
        "weights.share: `{from}` and `{to}` cannot be one: both must have the same shape, the same heads \
         of teacher and student, and both or neither a map of the same form"
    )]
    ShareMisfit {
        /// The source.
        from: String,
        /// The destination.
        to: String,
    },
    /// A rule that turns a name into itself.
    #[error("weights.share: \"{pattern}\" turns `{name}` into itself: name another tensor")]
    SharedWithItself {
        /// The pattern.
        pattern: String,
        /// The name.
        name: String,
    },
    /// Two sources for one destination.
    #[error("weights.share: `{to}` would be one with `{first}` and with `{second}`: take one out")]
    SharedTwice {
        /// The destination.
        to: String,
        /// The one.
        first: String,
        /// The other.
        second: String,
    },
    /// Tensors that are one with each other in a circle.
    #[error("weights.share: none of {} has values of its own: leave one out", names.join(", "))]
    ShareLoop {
        /// The names.
        names: Vec<String>,
    },
}

#[cfg(test)]
mod tests {
    use super::super::tests::{plan, refused, tensor};
    use super::super::{Origin, PlanError};
    use super::*;

    fn weights_error(overrides: &[&str]) -> WeightsError {
        match refused(overrides) {
            PlanError::Weights(error) => error,
            other => panic!("{other}"),
        }
    }

    fn share(pattern: &str, template: &str) -> String {
        format!("weights.share={{ '{pattern}' = '{template}' }}")
    }

    fn copy(pattern: &str, template: &str) -> String {
        format!("weights.copy={{ '{pattern}' = '{template}' }}")
    }

    #[test]
    fn a_whole_layer_is_shared_maps_and_kernels_with_it() {
        let layer = share(r"model\.layers\.0\.(.*)", "model.layers.1.$1");
        let shared = plan(&[&layer, "phase2.steps=3"]);
        for leaf in ["c", "a", "b"] {
            let tensor = tensor(&shared, &format!("model.layers.1.self_attn.q_proj.{leaf}"));
            let with = format!("model.layers.0.self_attn.q_proj.{leaf}");
            assert_eq!(tensor.origin, Origin::Shared { with });
            assert_eq!(tensor.trained, leaf != "c");
        }
        let pair = |leaf: &str| [1, 0].map(|layer| format!("model.layers.{layer}.{leaf}"));
        let [to, from] = pair("self_attn.q_proj.weight");
        assert_eq!(shared.weights.shared_without_maps[&to], from);
        assert!(!shared.weights.shared.contains_key(&to));
        let [to, from] = pair("mlp.up_proj.weight");
        assert_eq!(shared.weights.shared[&to], from);
        // A map less to train, in both phases.
        let alone = plan(&["phase2.steps=3"]);
        let count = |plan: &super::super::Plan| {
            let phase2 = plan.phase2.as_ref().unwrap();
            (plan.totals.trained_parameters, phase2.trainable_parameters)
        };
        let (all, all_2) = count(&alone);
        assert_eq!(count(&shared), (all / 5 * 4, all_2 / 5 * 4));
    }

    #[test]
    fn one_map_for_every_layer_leaves_the_kernels_alone() {
        let maps = share(
            r"model\.layers\.0\.self_attn\.(.*)\.(a|b)",
            "model.layers.1.self_attn.$1.$2",
        );
        let plan = plan(&[&maps]);
        assert_eq!(plan.weights.shared.len(), 8);
        assert!(plan.weights.shared_without_maps.is_empty());
        let c = tensor(&plan, "model.layers.1.self_attn.q_proj.c");
        assert!(matches!(c.origin, Origin::TeacherKernel { .. }));
    }

    #[test]
    fn chains_end_at_a_tensor_with_values_of_its_own() {
        let rules = "weights.share={ 'model\\.layers\\.0\\.mlp\\.(.*)' = 'model.layers.1.mlp.$1', \
                     'model\\.layers\\.1\\.mlp\\.(.*)' = 'model.layers.2.mlp.$1' }";
        let plan = plan(&[rules]);
        let to = "model.layers.2.mlp.up_proj.weight";
        assert_eq!(plan.weights.shared[to], "model.layers.0.mlp.up_proj.weight");
    }

    #[test]
    fn what_freezes_one_name_of_a_variable_freezes_it() {
        let layer = share(r"model\.layers\.0\.(.*)", "model.layers.1.$1");
        let plan = plan(&[&layer, "weights.freeze=['layers.1']"]);
        for layer in [0, 1] {
            let name = format!("model.layers.{layer}.self_attn.q_proj.a");
            assert!(!tensor(&plan, &name).trained);
        }
        assert!(tensor(&plan, "model.layers.2.self_attn.q_proj.a").trained);
    }

    #[test]
    fn a_copy_takes_the_place_of_the_tensor_of_the_same_name() {
        let layer = copy(r"model\.layers\.4\.(.*)", "model.layers.1.$1");
        for train in ["lti.train=maps", "lti.train=projections"] {
            let plan = plan(&[&layer, train]);
            let origin = |name: &str| {
                tensor(&plan, &format!("model.layers.1.{name}"))
                    .origin
                    .clone()
            };
            let from = |name: &str| format!("model.layers.4.{name}");
            let expected = Origin::Copied {
                from: from("mlp.up_proj.weight"),
            };
            assert_eq!(origin("mlp.up_proj.weight"), expected);
            let from = from("self_attn.q_proj.weight");
            match train {
                "lti.train=maps" => {
                    assert_eq!(origin("self_attn.q_proj.c"), Origin::TeacherKernel { from });
                }
                _ => assert_eq!(origin("self_attn.q_proj.weight"), Origin::Start { from }),
            }
            assert!(
                plan.render().contains("copied from model.layers.4.mlp"),
                "{plan}"
            );
        }
        // Sharing comes first: a copy to the destination fills the source.
        let share = share(r"model\.layers\.0\.mlp\.(.*)", "model.layers.1.mlp.$1");
        let copy = copy(r"model\.layers\.4\.mlp\.(.*)", "model.layers.1.mlp.$1");
        let plan = plan(&[&share, &copy]);
        let from = "model.layers.4.mlp.up_proj.weight".to_owned();
        let source = tensor(&plan, "model.layers.0.mlp.up_proj.weight");
        assert_eq!(source.origin, Origin::Copied { from });
    }

    #[test]
    fn refuses_what_does_not_fit() {
        let q = r"model\.layers\.0\.self_attn\.q_proj\.weight";
        let error = weights_error(&[&share(q, "model.layers.0.self_attn.k_proj.weight")]);
        assert!(matches!(error, WeightsError::ShareMisfit { .. }), "{error}");
        let some = "lti.layers=[0]";
        let next = "model.layers.1.self_attn.q_proj.weight";
        let error = weights_error(&[some, &share(q, next)]);
        assert!(matches!(error, WeightsError::ShareMisfit { .. }), "{error}");
        let error = weights_error(&[some, &copy(q, next)]);
        assert!(matches!(error, WeightsError::CopyMisfit { .. }), "{error}");
        let error = weights_error(&[&copy(q, "model.layers.1.self_attn.v_proj.weight")]);
        assert!(matches!(error, WeightsError::CopyMisfit { .. }), "{error}");
        let error = weights_error(&[&copy("lm_head", "model.norm.weight")]);
        assert!(
            matches!(error, WeightsError::CopiesNothing { .. }),
            "{error}"
        );
        let error = weights_error(&[&share("model.layers.9.*", "model.norm.weight")]);
        assert!(
            matches!(error, WeightsError::SharesNothing { .. }),
            "{error}"
        );
        for (rule, key) in [
            (copy(q, "model.norm"), "weights.copy"),
            (share(q, "model.norm"), "weights.share"),
        ] {
            let error = weights_error(&[&rule]);
            assert!(
                matches!(&error, WeightsError::Unknown { key: k, .. } if *k == key),
                "{error}"
            );
        }
        let error = weights_error(&[&share("(model.norm.weight)", "$1")]);
        assert!(
            matches!(error, WeightsError::SharedWithItself { .. }),
            "{error}"
        );
        let error = weights_error(&[&share(
            r"model\.layers\.[01]\.mlp\.up_proj\.weight",
            "model.layers.2.mlp.up_proj.weight",
        )]);
        assert!(matches!(error, WeightsError::SharedTwice { .. }), "{error}");
        let error = weights_error(&[&copy(
            r"model\.layers\.[01]\.mlp\.up_proj\.weight",
            "model.layers.2.mlp.up_proj.weight",
        )]);
        assert!(matches!(error, WeightsError::CopiedTwice { .. }), "{error}");
        let circle = "weights.share={ 'model\\.layers\\.0\\.mlp\\.(.*)' = 'model.layers.1.mlp.$1', \
                      'model\\.layers\\.1\\.mlp\\.(.*)' = 'model.layers.0.mlp.$1' }";
        let error = weights_error(&[circle]);
        assert!(matches!(error, WeightsError::ShareLoop { .. }), "{error}");
    }
}
