//! The search for a student's shape: of those that are small enough, the one that begins nearest to its teacher.
//!
//! Layers, heads and units are what is searched here, at the width that the recipe gives. For some numbers of layers
//! and heads, as many units are kept as the target allows. The start of each such shape is calculated, on less text
//! than a run's, and judged on held-out text; shapes that keep about the same part of every axis come first, until
//! the time is up.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Instant;

use burn::tensor::backend::AutodiffBackend;
use serde::Serialize;

use super::export::export_form;
use super::{DistillError, Event, Job, Listener, Manifest, OutputDir, vocabulary};
use crate::config::LlamaConfig;
use crate::plan::Plan;
use crate::plan::report::{thousands, write_table};
use crate::recipe::{KeptLayers, Recipe, StudentSection, Target};

/// Parts of the teacher's layers that are tried.
const DEPTHS: [f64; 6] = [1.0, 0.9, 0.8, 0.7, 0.6, 0.5];
/// Parts of its key/value heads.
const HEADS: [f64; 3] = [1.0, 2.0 / 3.0, 0.5];
/// The least part of its units.
const LEAST_UNITS: f64 = 0.25;
/// Sequences to calibrate a shape on, at most, and to judge it by.
const SEQUENCES: usize = 64;
/// Seconds of a search, unless the recipe says so.
const SECONDS: f64 = 600.0;

/// A shape that is small enough.
#[derive(Clone, Debug, Serialize)]
pub struct Shape {
    /// As a recipe has it.
    pub student: StudentSection,
    /// What a student of it has.
    #[serde(flatten)]
    pub sizes: Sizes,
    /// KL of its start on held-out text, nats per token, if it was tried.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kl: Option<f64>,
    /// How long that took.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seconds: Option<f64>,
}

/// What a model has, in the units of [`Target`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Sizes {
    /// Parameters, a tied head counted once.
    pub parameters: f64,
    /// Bytes of its weights in a file.
    pub file_bytes: f64,
    /// Bytes of key/value cache a token.
    pub kv_bytes_per_token: f64,
    /// Floating-point operations of a forward pass a token.
    pub flops_per_token: f64,
}

impl Sizes {
    /// `bytes` a parameter has in a file; texts are `seq_len` tokens long.
    fn of(config: &LlamaConfig, bytes: usize, seq_len: usize) -> Self {
        let parameters = config.num_parameters() as f64;
        Self {
            parameters,
            file_bytes: parameters * bytes as f64,
            kv_bytes_per_token: config.kv_cache_bytes_per_token() as f64,
            flops_per_token: config.forward_flops(seq_len, seq_len) / seq_len as f64,
        }
    }

    const fn all(&self) -> [f64; 4] {
        [
            self.parameters,
            self.file_bytes,
            self.kv_bytes_per_token,
            self.flops_per_token,
        ]
    }

    /// Whether all limits of `target` hold, of which a number up to 1 is a part of the `teacher`'s.
    fn within(&self, target: &Target, teacher: &Self) -> bool {
        let mut of_all = self
            .all()
            .into_iter()
            .zip(teacher.all())
            .zip(target.limits());
        of_all.all(|((own, of_teacher), limit)| match limit {
            None => true,
            Some(part) if part <= 1.0 => own <= part * of_teacher,
            Some(most) => own <= most,
        })
    }
}

/// The shapes that are small enough for the recipe's target, those first that keep about the same part of every
/// axis. None is tried.
///
/// # Errors
///
/// [`DistillError::Refused`] if the recipe has no target, or none is small enough; an error of the teacher's files.
pub fn shapes(recipe: &Recipe) -> Result<Vec<Shape>, DistillError> {
    let Some(target) = &recipe.student.target else {
        return Err(DistillError::Refused(
            "the recipe has no student.target to search a shape for: set student.target = { parameters = 0.5 }"
                .to_owned(),
        ));
    };
    let (files, _) = vocabulary::teacher_files(recipe)?;
    let teacher = files.config();
    // Where there are no weights to ask, as they are computed in.
    let dtype = export_form(recipe).map_or(recipe.teacher.dtype, |form| form.dtype);
    let bytes = dtype.size();
    let seq_len = recipe.train.seq_len.longest();
    let sizes = |config: &LlamaConfig| Sizes::of(config, bytes, seq_len);
    let of_teacher = sizes(&teacher.whole());
    let mut found: Vec<(f64, Shape)> = Vec::new();
    let mut smallest: Option<Sizes> = None;
    for depth in depths(&recipe.student, teacher) {
        let layers: Vec<usize> = (0..depth).collect();
        let given = &recipe.student;
        let shorter = teacher.with_layers(&layers).at_width(
            given.hidden_size.unwrap_or(teacher.hidden_size),
            given.tie_embeddings.unwrap_or(teacher.tie_word_embeddings),
        );
        for [heads, kv_heads] in heads(&recipe.student, teacher) {
            let of_units = |units: usize| {
                sizes(&LlamaConfig {
                    num_attention_heads: heads,
                    num_key_value_heads: kv_heads,
                    head_dim: recipe.student.head_dim.unwrap_or(teacher.head_dim),
                    intermediate_size: units,
                    ..shorter.clone()
                })
            };
            let all = units(&recipe.student, teacher);
            if let Some(least) = all.last().map(|units| of_units(*units))
                && smallest.is_none_or(|known| least.parameters < known.parameters)
            {
                smallest = Some(least);
            }
            let fits = |units: &usize| of_units(*units).within(target, &of_teacher);
            let Some(units) = all.into_iter().find(fits) else {
                continue;
            };
            let parts = [
                (depth, teacher.num_hidden_layers),
                (heads, teacher.num_attention_heads),
                (units, teacher.intermediate_size),
            ];
            let square = |(own, all): (usize, usize)| (own as f64 / all as f64).ln().powi(2);
            let shape = Shape {
                student: StudentSection {
                    heads: Some(heads),
                    kv_heads: Some(kv_heads),
                    intermediate_size: Some(units),
                    layers: match &recipe.student.layers {
                        Some(given) => Some(given.clone()),
                        None => Some(KeptLayers::Count(depth)),
                    },
                    ..recipe.student.shape()
                },
                sizes: of_units(units),
                kl: None,
                seconds: None,
            };
            found.push((parts.map(square).iter().sum(), shape));
        }
    }
    if found.is_empty() {
        let of_smallest = smallest.map_or(String::new(), |least| {
            format!(
                "; the smallest has {} parameters and {} bytes of cache a token",
                thousands(least.parameters as usize),
                thousands(least.kv_bytes_per_token as usize)
            )
        });
        return Err(DistillError::Refused(format!(
            "student.target is below every shape that is tried, of which none keeps less than half of the layers and \
             heads and a quarter of the units{of_smallest}: raise it, or give the shape itself"
        )));
    }
    found.sort_by(|a, b| a.0.total_cmp(&b.0));
    // What else a recipe says may leave no room for a shape.
    let mut refused = None;
    found.retain(|(_, shape)| {
        let recipe = Recipe {
            student: shape.student.clone(),
            ..recipe.clone()
        };
        let error = Plan::new(&recipe, teacher).err();
        let is_possible = error.is_none();
        refused = refused.take().or(error);
        is_possible
    });
    match refused {
        Some(error) if found.is_empty() => Err(error.into()),
        _ => Ok(found.into_iter().map(|(_, shape)| shape).collect()),
    }
}

/// The recipe with the nearest shape in the place of its target, and all shapes, nearest first; those for which there
/// was no time come last.
///
/// # Errors
///
/// As [`shapes`], and those of a start.
pub fn search_shape<A: AutodiffBackend>(
    recipe: &Recipe,
    device: &A::Device,
    listener: &Listener,
) -> Result<(Recipe, Vec<Shape>), DistillError> {
    let began = Instant::now();
    let mut shapes = shapes(recipe)?;
    let limit = recipe.student.target.and_then(|target| target.seconds);
    let limit = limit.unwrap_or(SECONDS);
    let mut chosen: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    let count = shapes.len();
    let mut failed = None;
    for (index, shape) in shapes.iter_mut().enumerate() {
        // One at least.
        if index > 0 && began.elapsed().as_secs_f64() > limit {
            listener(Event::Note(&format!(
                "the search for a shape has had its {limit} seconds: {index} of {count} shapes were tried; raise \
                 student.target.seconds for more"
            )));
            break;
        }
        if let Some(KeptLayers::Count(layers)) = shape.student.layers
            && let Some(kept) = chosen.get(&layers)
        {
            shape.student.layers = Some(KeptLayers::These(kept.clone()));
        }
        listener(Event::Stage(&format!("trying a shape: {}", shape.student)));
        let tried = Instant::now();
        let (kl, kept) = match start_of::<A>(recipe, &shape.student, device) {
            Ok(found) => found,
            // Other shapes may do.
            Err(error) => {
                listener(Event::Note(&format!("it cannot be made: {error}")));
                shape.seconds = Some(tried.elapsed().as_secs_f64());
                failed = failed.or(Some(error));
                continue;
            }
        };
        shape.student.layers = kept.map(|kept| {
            chosen.insert(kept.len(), kept.clone());
            KeptLayers::These(kept)
        });
        (shape.kl, shape.seconds) = (kl, Some(tried.elapsed().as_secs_f64()));
        if let Some(kl) = kl {
            listener(Event::Note(&format!(
                "KL {kl:.4} nats/token before any training"
            )));
        }
    }
    let rank = |shape: &Shape| match (shape.kl, shape.seconds) {
        (Some(kl), _) => (0, kl),
        (None, Some(_)) => (1, 0.0),
        (None, None) => (2, 0.0),
    };
    shapes.sort_by(|a, b| {
        let (a, b) = (rank(a), rank(b));
        a.0.cmp(&b.0).then(a.1.total_cmp(&b.1))
    });
    let nearest = shapes.first().filter(|nearest| nearest.kl.is_some());
    let Some(nearest) = nearest else {
        if let Some(error) = failed {
            return Err(error);
        }
        return Err(DistillError::Refused(
            "no shape that was tried has a KL that is a number: look at the teacher and the held-out text with \
             `burn-lti eval`"
                .to_owned(),
        ));
    };
    let recipe = Recipe {
        student: nearest.student.clone(),
        ..recipe.clone()
    };
    Ok((recipe, shapes))
}

/// KL of the start of that shape, and the layers that it keeps, if they are some.
fn start_of<A: AutodiffBackend>(
    recipe: &Recipe,
    student: &StudentSection,
    device: &A::Device,
) -> Result<(Option<f64>, Option<Vec<usize>>), DistillError> {
    let mut recipe = recipe.clone();
    recipe.student = student.clone();
    recipe.calibration.sequences = recipe.calibration.sequences.min(SEQUENCES);
    recipe.train.eval_sequences = recipe.train.eval_sequences.min(SEQUENCES);
    let folder = tempfile::tempdir().map_err(|source| DistillError::Output {
        path: std::env::temp_dir(),
        source,
    })?;
    let dir = folder.path().join("shape");
    let out = OutputDir::prepare(&dir, false)?;
    let summary = Job::new(&recipe, &out).start::<A>(device)?;
    let manifest = Manifest::read(&dir.join("manifest.json"))?;
    Ok((summary.evaluation.kl, manifest.kept_layers))
}

fn depths(given: &StudentSection, teacher: &LlamaConfig) -> Vec<usize> {
    let layers = teacher.num_hidden_layers;
    match &given.layers {
        Some(KeptLayers::Count(count)) => vec![(*count).min(layers)],
        Some(KeptLayers::These(kept)) => vec![kept.len().min(layers)],
        None => parts_of(layers, &DEPTHS),
    }
}

/// Query and key/value heads, as many queries to a key as the teacher has.
fn heads(given: &StudentSection, teacher: &LlamaConfig) -> Vec<[usize; 2]> {
    let (heads, kv_heads) = (teacher.num_attention_heads, teacher.num_key_value_heads);
    match (given.heads, given.kv_heads) {
        (None, None) => {
            let group = heads / kv_heads;
            let kv_heads = parts_of(kv_heads, &HEADS).into_iter();
            kv_heads
                .map(|kv_heads| [group * kv_heads, kv_heads])
                .collect()
        }
        (of_query, of_key) => vec![[of_query.unwrap_or(heads), of_key.unwrap_or(kv_heads)]],
    }
}

/// Units of a feed-forward block, most first: whole blocks of 32, as quantizers have them, where the teacher has
/// many.
fn units(given: &StudentSection, teacher: &LlamaConfig) -> Vec<usize> {
    let all = teacher.intermediate_size;
    if let Some(given) = given.intermediate_size {
        return vec![given];
    }
    let step = if all >= 512 { 32 } else { 1 };
    let least = ((all as f64 * LEAST_UNITS) as usize).max(1);
    let whole = (1..=all / step).rev().map(|blocks| blocks * step);
    let mut units = vec![all];
    units.extend(whole.filter(|units| (least..all).contains(units)));
    units
}

/// These parts of `all`, each number once, at least one.
fn parts_of(all: usize, parts: &[f64]) -> Vec<usize> {
    let numbers = parts
        .iter()
        .map(|part| ((all as f64 * part).round() as usize).max(1));
    let mut numbers: Vec<usize> = numbers.collect();
    numbers.dedup();
    numbers
}

/// A table of shapes.
#[derive(Debug)]
pub struct ShapeTable<'a>(pub &'a [Shape]);

impl fmt::Display for ShapeTable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let titles = [
            "shape",
            "parameters",
            "file MB",
            "cache bytes/token",
            "MFLOP/token",
            "KL",
            "seconds",
        ];
        let mut rows = vec![titles.map(str::to_owned).to_vec()];
        for shape in self.0 {
            let known = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
            rows.push(vec![
                shape.student.to_string(),
                thousands(shape.sizes.parameters as usize),
                format!("{:.1}", shape.sizes.file_bytes / 1e6),
                thousands(shape.sizes.kv_bytes_per_token as usize),
                format!("{:.1}", shape.sizes.flops_per_token / 1e6),
                known(shape.kl.map(|kl| format!("{kl:.4}"))),
                known(shape.seconds.map(|seconds| format!("{seconds:.1}"))),
            ]);
        }
        write_table(f, &rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_numbers_of_which_each_is_there_once() {
        assert_eq!(parts_of(30, &DEPTHS), [30, 27, 24, 21, 18, 15]);
        assert_eq!(parts_of(5, &DEPTHS), [5, 4, 3]);
        assert_eq!(parts_of(1, &HEADS), [1]);
    }

    #[test]
    fn a_limit_up_to_one_is_a_part_of_the_teachers() {
        let sizes = |parameters: f64| Sizes {
            parameters,
            file_bytes: 4.0 * parameters,
            kv_bytes_per_token: 64.0,
            flops_per_token: 2.0 * parameters,
        };
        let target = |parameters, file_bytes| Target {
            parameters,
            file_bytes,
            ..Target::default()
        };
        let (half, teacher) = (sizes(500.0), sizes(1000.0));
        assert!(half.within(&target(Some(0.5), None), &teacher));
        assert!(!half.within(&target(Some(0.49), None), &teacher));
        assert!(half.within(&target(Some(500.0), None), &teacher));
        assert!(!half.within(&target(Some(0.5), Some(1999.0)), &teacher));
        assert!(half.within(&target(None, Some(2000.0)), &teacher));
    }
}
