//! What becomes of every tensor of a student: the blueprint that follows from a recipe and two
//! configurations.
//!
//! The blueprint is that of the very modules that are filled by it later. Here they stand on a backend on
//! which nothing is ever allocated. Names are Hugging Face's.

use std::collections::{BTreeMap, BTreeSet};

use burn_flex::Flex;
use burn_lti::blueprint::{
    Blueprint, BlueprintError, CopyRule, Listed, Rules, ShareRule, Source, StudentTensor,
};
use burn_lti::calibration::FeedForward;
use burn_lti::decoder::{LayerSelection, LtiSpec, RoleMaps};
use burn_lti::geometry::{Axes, Axis, Role, Site};
use burn_lti::map::{MapKind, Part, Side, Start};
use regex::Regex;

use super::{Origin, PlanError, PlannedTensor};
use crate::config::{LlamaConfig, site_name};
use crate::hf::{file_layout, file_name, kept_name, source_name};
use crate::model::{PlainLlama, foldable_gains};
use crate::recipe::{AxisMaps, Recipe, Rotary, Trained};

/// The keys of the recipe whose rules a blueprint follows.
const COPY: &str = "weights.copy";
const SHARE: &str = "weights.share";

/// How the student learns, for the toolkit, from the teacher at the student's width.
pub(super) fn lti_spec(
    recipe: &Recipe,
    teacher: &LlamaConfig,
    student: &LlamaConfig,
    layers: &[usize],
) -> LtiSpec {
    let map = &recipe.lti.map;
    let mut maps = role_maps(recipe, teacher, student, layers);
    if map.width != AxisMaps::Weights {
        maps = maps.with_width(MapKind::General);
    }
    // Random values are random along any axis; else units and features are picked, by what the teacher makes of them.
    if recipe.lti.start != Start::Lecun {
        maps = maps.filled_along(Axis::Hidden).filled_along(Axis::Width);
    }
    LtiSpec {
        teacher: Axes {
            d_model: width_of_teacher(recipe, teacher, student),
            ..teacher.axes()
        },
        layers: LayerSelection::Only(layers.to_vec()),
        maps,
        start: recipe.lti.start,
        precision: recipe.lti.precision,
        seed: recipe.train.seed,
    }
}

/// The width at which the teacher's tensors come into the student: its own where maps bring it to the student's.
fn width_of_teacher(recipe: &Recipe, teacher: &LlamaConfig, student: &LlamaConfig) -> usize {
    match recipe.lti.map.width {
        AxisMaps::Weights => student.hidden_size,
        AxisMaps::General | AxisMaps::Shared => teacher.hidden_size,
    }
}

/// The form of each map. Those of query and key are the rotary embedding's where the recipe keeps it and the layer has
/// one.
fn role_maps(
    recipe: &Recipe,
    teacher: &LlamaConfig,
    student: &LlamaConfig,
    layers: &[usize],
) -> RoleMaps {
    let mut maps: RoleMaps = recipe.lti.map.kinds().collect();
    if recipe.lti.rotary == Rotary::Free {
        return maps;
    }
    for layer in layers {
        let Some(rope) = student.rope_of(*layer) else {
            continue;
        };
        let pairs = |config: &LlamaConfig| rope.turned(config.head_dim) / 2;
        let rotary = MapKind::Rotary {
            teacher: pairs(teacher),
            student: pairs(student),
        };
        for role in [Role::Query, Role::Key] {
            maps = maps.with_at(Site::new(*layer, role), rotary);
        }
    }
    maps
}

/// The blueprints of a student with its maps and without.
pub(super) struct Blueprints {
    pub(super) with_maps: Blueprint,
    pub(super) without_maps: Blueprint,
}

impl Blueprints {
    /// Of the student that `spec` makes of `teacher` and `student`; what trains is set in the phase that
    /// the recipe has for each.
    pub(super) fn new(
        recipe: &Recipe,
        teacher: &LlamaConfig,
        student: &LlamaConfig,
        kept: &[usize],
        spec: &LtiSpec,
    ) -> Result<Self, PlanError> {
        let device = Default::default();
        // Maps of a start that is yet to be calculated are no more than shapes.
        let spec = LtiSpec {
            start: Start::Calibrated,
            ..spec.clone()
        };
        let skeleton = PlainLlama::<Flex>::init(student, &device).learn_to_init(&spec)?;
        let student_tensors = named(skeleton.listed());
        let at_width = teacher.at_width(
            width_of_teacher(recipe, teacher, student),
            student.tie_word_embeddings,
        );
        let teacher_tensors = named(Listed::all(&PlainLlama::<Flex>::init(&at_width, &device)));
        let shapes = teacher_tensors
            .into_iter()
            .filter_map(|it| Some((kept_name(&it.name, kept)?, it.shape)));
        let shapes: BTreeMap<_, _> = shapes.collect();
        let new = new_tensors(&spec, teacher, student);
        let shared = rules_of_sharing(recipe, &spec, student).map_err(refused(SHARE))?;
        let gains = student.gains().into_iter();
        let gains = gains.map(|(norm, site)| (format!("{norm}.weight"), site_name(site)));
        let has_width = spec.maps.width().is_some();
        // Gains that no weight can take follow the features that they are of, unless the start has what they are.
        let last = file_name("model.norm.gamma");
        let has_last = has_width && student.tie_word_embeddings;
        let is_fitted = recipe.lti.start == Start::Calibrated && student.narrows(teacher);
        let of_stream =
            (has_last && !is_fitted).then(|| (last.clone(), site_name(Site::EMBEDDING)));
        let gains = gains.chain(of_stream);
        let folded = foldable_gains(student).into_iter().filter(|_| has_width);
        let folded = folded.map(|(gain, _)| file_name(&gain));
        let folded = folded.chain((has_last && is_fitted).then_some(last));
        let shared = shared
            .with_new(new.iter().cloned())
            .with_started(started_tensors(&spec, teacher, student))
            .with_started(folded)
            .with_gains(gains);
        let copies = recipe.weights.copy.iter();
        let copies = copies.map(|(pattern, template)| (pattern.as_str(), template.as_str()));
        let rules = shared.clone().with_copies(copies).map_err(refused(COPY))?;
        let with_maps = Blueprint::new(&student_tensors, &shapes, &rules).map_err(|source| {
            let without_copies = Blueprint::new(&student_tensors, &shapes, &shared);
            refused(if without_copies.is_err() { SHARE } else { COPY })(source)
        })?;
        check_heads(&with_maps, &new, student)?;
        let without_maps = with_maps.folded();
        let mut blueprints = Self {
            with_maps,
            without_maps,
        };
        let without = match (&recipe.phase2, recipe.trained()) {
            (Some(section), _) => Some(section.train.into()),
            (None, Trained::Maps) => None,
            (None, trained) => {
                blueprints.check_shares(recipe)?;
                Some(trained)
            }
        };
        blueprints.set_trained(recipe, without)?;
        Ok(blueprints)
    }

    /// Without maps, rules that share nothing but maps would say nothing.
    fn check_shares(&self, recipe: &Recipe) -> Result<(), PlanError> {
        for (pattern, template) in &recipe.weights.share {
            let rule = CopyRule::new(pattern, template).map_err(refused(SHARE))?;
            let mut names = self.without_maps.tensors.iter().map(|it| &it.name);
            if !names.any(|name| rule.apply(name).is_some()) {
                return Err(refused(SHARE)(BlueprintError::NoMatch {
                    pattern: pattern.clone(),
                    of: "student",
                    suggestion: None,
                }));
            }
        }
        Ok(())
    }

    /// What trains with maps, and `without` them in the phase that has none, if there is one. What
    /// freezes one name of a variable freezes the variable.
    fn set_trained(&mut self, recipe: &Recipe, without: Option<Trained>) -> Result<(), PlanError> {
        // The recipe has found each to be a pattern.
        let patterns = recipe.weights.freeze.iter();
        let frozen: Vec<_> = patterns.filter_map(|it| Regex::new(it).ok()).collect();
        let has_maps = recipe.trained() == Trained::Maps;
        let phases = [
            has_maps.then_some((&mut self.with_maps, Trained::Maps)),
            without.map(|trained| (&mut self.without_maps, trained)),
        ];
        let mut nothing_trains = false;
        let mut unused: BTreeSet<&str> = frozen.iter().map(Regex::as_str).collect();
        for (blueprint, trained) in phases.into_iter().flatten() {
            let tensors = blueprint.tensors.iter();
            let found = |tensor: &&StudentTensor| frozen.iter().any(|it| it.is_match(&tensor.name));
            let of_frozen = tensors.clone().filter(found);
            let of_frozen: BTreeSet<_> = of_frozen.map(|it| it.variable().to_owned()).collect();
            for pattern in &frozen {
                if tensors.clone().any(|it| pattern.is_match(&it.name)) {
                    unused.remove(pattern.as_str());
                }
            }
            blueprint.train(|tensor| {
                let wanted = match trained {
                    Trained::Maps => matches!(tensor.part, Part::Map(_) | Part::Bias),
                    Trained::Projections => tensor.projection.is_some(),
                    Trained::All => true,
                };
                (wanted || tensor.source == Source::New) && !of_frozen.contains(&tensor.name)
            });
            nothing_trains |= blueprint.trained().next().is_none();
        }
        match unused.first() {
            Some(pattern) => Err(PlanError::FreezesNothing {
                pattern: (*pattern).to_owned(),
            }),
            None if nothing_trains => Err(PlanError::refused(
                "weights.freeze",
                "leaves nothing to train, or nothing in [phase2]: take a pattern out".to_owned(),
            )),
            None => Ok(()),
        }
    }
}

/// The same tensors by Hugging Face's names.
fn named(mut tensors: Vec<Listed>) -> Vec<Listed> {
    for tensor in &mut tensors {
        tensor.name = file_name(&tensor.name);
    }
    tensors
}

/// The maps that are one variable, and what the recipe shares.
fn rules_of_sharing(
    recipe: &Recipe,
    spec: &LtiSpec,
    student: &LlamaConfig,
) -> Result<Rules, BlueprintError> {
    let of_recipe = recipe.weights.share.iter();
    let of_recipe = of_recipe.map(|(pattern, template)| ShareRule::new(pattern, template));
    let mut shares = of_recipe.collect::<Result<Vec<_>, _>>()?;
    let layers = || 0..student.num_hidden_layers;
    let mut together: Vec<(Vec<Site>, Axis)> = Vec::new();
    if recipe.lti.map.hidden == AxisMaps::Shared {
        let of_layer = |layer| {
            Role::FEED_FORWARD
                .map(|role| Site::new(layer, role))
                .to_vec()
        };
        together.extend(layers().map(|layer| (of_layer(layer), Axis::Hidden)));
    }
    if recipe.lti.map.width == AxisMaps::Shared {
        together.push((sites(student).collect(), Axis::Width));
    }
    for (sites, axis) in together {
        let is_mapped = |site: &Site| spec.config(&student.axes(), *site).is_some();
        let mapped = sites.into_iter().filter(is_mapped);
        let names: Vec<String> = mapped.filter_map(|site| map_name(site, axis)).collect();
        for pair in names.windows(2) {
            shares.push(ShareRule::new(&regex::escape(&pair[0]), &pair[1])?);
        }
    }
    Ok(Rules::by_name().with_shares(shares))
}

/// The weights of a model in the order of its module.
pub(crate) fn sites(config: &LlamaConfig) -> impl Iterator<Item = Site> + use<> {
    let of_layer = |layer| {
        let roles = Role::ATTENTION.into_iter().chain(Role::FEED_FORWARD);
        roles.map(move |role| Site::new(layer, role))
    };
    let head = (!config.tie_word_embeddings).then_some(Site::HEAD);
    let layers = (0..config.num_hidden_layers).flat_map(of_layer);
    std::iter::once(Site::EMBEDDING).chain(layers).chain(head)
}

/// The name of the general map of the weight at `site` along `axis`; `None` if it does not lie along it.
pub(crate) fn map_name(site: Site, axis: Axis) -> Option<String> {
    let side = Side::along(site.role, axis)?;
    Some(format!("{}.{}.w", site_name(site), side.name()))
}

/// What is wrong with the rules of `key`.
fn refused(key: &'static str) -> impl Fn(BlueprintError) -> PlanError {
    move |reason| PlanError::Weights { key, reason }
}

/// Shapes do not tell heads apart: 4 of 16 are as wide as 8 of 8, and both may be as wide as the residual
/// stream, which is on the other side of the output projection.
fn check_heads(
    with_maps: &Blueprint,
    new: &[String],
    student: &LlamaConfig,
) -> Result<(), PlanError> {
    let layers = 0..student.num_hidden_layers;
    let sites = layers.flat_map(|layer| Role::ATTENTION.map(|role| Site::new(layer, role)));
    let roles: BTreeMap<String, Role> = sites.map(|it| (site_name(it), it.role)).collect();
    let is_out = |name: &str| {
        let (projection, leaf) = name.rsplit_once('.')?;
        let is_out = *roles.get(projection)? == Role::Out;
        // The bias of the output projection belongs to no head.
        (!is_out || leaf != "bias").then_some(is_out)
    };
    for tensor in &with_maps.tensors {
        let to = &tensor.name;
        let source = tensor.source.teacher();
        for (key, from, is_new) in [
            (SHARE, tensor.shared_with.as_deref(), false),
            (COPY, source, new.contains(to)),
        ] {
            if let Some(from) = from.filter(|from| is_new || is_out(from) != is_out(to)) {
                let (from, to) = (from.to_owned(), to.clone());
                return Err(PlanError::OtherHeads { key, from, to });
            }
        }
    }
    Ok(())
}

/// What no tensor of the teacher's fits: projections of other heads in layers without maps. Heads are
/// compared, not shapes: 4 heads of 16 are as wide as 8 of 8, and something else.
fn new_tensors(spec: &LtiSpec, teacher: &LlamaConfig, student: &LlamaConfig) -> Vec<String> {
    let (of_teacher, of_student) = (teacher.axes(), student.axes());
    let mut new = Vec::new();
    for layer in 0..student.num_hidden_layers {
        for role in Role::ATTENTION {
            let site = Site::new(layer, role);
            let is_kept = spec.config(&of_student, site).is_none();
            if is_kept && of_student.grid(role) != of_teacher.grid(role) {
                let name = site_name(site);
                new.push(format!("{name}.weight"));
                // That of the output projection is as wide as the residual stream.
                if student.has_bias(role) && role != Role::Out {
                    new.push(format!("{name}.bias"));
                }
                let gains = student.gains().into_iter().filter(|(_, of)| *of == site);
                new.extend(gains.map(|(norm, _)| format!("{norm}.weight")));
            }
        }
    }
    new
}

/// What the start makes of the teacher's where feed-forward blocks have fewer units and no maps.
fn started_tensors(spec: &LtiSpec, teacher: &LlamaConfig, student: &LlamaConfig) -> Vec<String> {
    let mut started = Vec::new();
    if student.intermediate_size == teacher.intermediate_size {
        return started;
    }
    for layer in 0..student.num_hidden_layers {
        for role in Role::FEED_FORWARD {
            let site = Site::new(layer, role);
            if spec.config(&student.axes(), site).is_some() {
                continue;
            }
            let name = site_name(site);
            started.push(format!("{name}.weight"));
            // That of the last projection is as wide as the residual stream.
            if student.has_bias(role) && role != Role::Down {
                started.push(format!("{name}.bias"));
            }
        }
    }
    started
}

/// What lies along the residual stream, where the student's is another: the start makes it of the teacher's.
fn at_other_width(teacher: &LlamaConfig, student: &LlamaConfig) -> Vec<String> {
    if !student.narrows(teacher) {
        return Vec::new();
    }
    let width = student.hidden_size;
    let tensors = student.tensors().into_iter();
    let along = tensors.filter(|(name, shape)| {
        // Norms of heads and biases of what reads lie along another axis, however long that is.
        let of_others = [
            "q_norm.",
            "k_norm.",
            "q_proj.bias",
            "k_proj.bias",
            "v_proj.bias",
            "gate_proj.bias",
            "up_proj.bias",
        ];
        let is_of_others = of_others.iter().any(|part| name.contains(part));
        shape.contains(&width) && !is_of_others
    });
    along.map(|(name, _)| name).collect()
}

/// The tensors of `blueprint`, as they are shown: by the student's names, and what they are made of by the
/// teacher's, of whose layers the student keeps `kept`.
pub(super) fn planned(
    recipe: &Recipe,
    layers: &[usize],
    kept: &[usize],
    blueprint: &Blueprint,
    teacher: &LlamaConfig,
    student: &LlamaConfig,
) -> Vec<PlannedTensor> {
    let refits = recipe.lti.start == Start::Calibrated
        && (recipe.calibration.feed_forward == FeedForward::Refit
            || kept.len() != teacher.num_hidden_layers);
    // What stands before a gap does the part of what is gone, by all of its feed-forward block.
    let roles: &[Role] = match kept.len() == teacher.num_hidden_layers {
        true => &[Role::Down],
        false => &Role::FEED_FORWARD,
    };
    let refitted = layers.iter().filter(|_| refits);
    let refitted = refitted.flat_map(|layer| roles.iter().map(|role| Site::new(*layer, *role)));
    let mut refitted: BTreeSet<String> = refitted
        .map(|site| format!("{}.weight", site_name(site)))
        .collect();
    refitted.extend(at_other_width(teacher, student));
    let tensors = blueprint.tensors.iter();
    tensors
        .map(|tensor| PlannedTensor {
            name: tensor.name.clone(),
            shape: file_layout(&tensor.name, &tensor.shape),
            origin: origin(tensor, &refitted).of_layers(kept),
            trained: tensor.trains,
        })
        .collect()
}

impl Origin {
    /// The same by the numbers that the teacher's layers have.
    fn of_layers(mut self, kept: &[usize]) -> Self {
        if let Self::TeacherKernel { from } | Self::Start { from } | Self::Copied { from } =
            &mut self
        {
            *from = source_name(from, kept);
        }
        self
    }
}

fn origin(tensor: &StudentTensor, refitted: &BTreeSet<String>) -> Origin {
    if let Some(with) = &tensor.shared_with {
        return Origin::Shared { with: with.clone() };
    }
    match (&tensor.source, tensor.part) {
        (Source::Start, Part::Plain) => Origin::Start {
            from: tensor.name.clone(),
        },
        (Source::Start, _) | (Source::Mapped(_), Part::Bias) => Origin::Map,
        (Source::Teacher(from), Part::TeacherKernel) => {
            Origin::TeacherKernel { from: from.clone() }
        }
        (Source::Mapped(from) | Source::Along { teacher: from, .. }, _) => {
            Origin::Start { from: from.clone() }
        }
        (Source::Teacher(from), _) if refitted.contains(&tensor.name) => {
            Origin::Start { from: from.clone() }
        }
        (Source::Teacher(from), _) => Origin::Copied { from: from.clone() },
        (Source::New, _) => Origin::New,
    }
}

#[cfg(test)]
mod tests;
