//! The shapes of a student that are small enough for a recipe's target, and what they have.
//!
//! Width, layers, heads and units are what there is to choose. For some widths and numbers of layers and heads, as many
//! units are kept as the target allows; a width is one that a reader of the family loads, and a multiple of what
//! quantizers have in a block, as far as the teacher's is.

use std::fmt;

use serde::Serialize;

use super::export::export_form;
use super::{DistillError, vocabulary};
use crate::config::LlamaConfig;
use crate::plan::Plan;
use crate::plan::report::{thousands, write_table};
use crate::recipe::{KeptLayers, Recipe, StudentSection, Target};

/// Parts of the teacher's width that are tried.
const WIDTHS: [f64; 5] = [1.0, 0.875, 0.75, 0.625, 0.5];
/// What a width is a multiple of, the first of which the teacher's is a multiple at least so often.
const WIDTH_STEPS: [usize; 8] = [256, 128, 64, 32, 16, 8, 4, 2];
const LEAST_STEPS: usize = 8;
/// Parts of its layers.
const DEPTHS: [f64; 6] = [1.0, 0.9, 0.8, 0.7, 0.6, 0.5];
/// Parts of its key/value heads.
const HEADS: [f64; 3] = [1.0, 2.0 / 3.0, 0.5];
/// The least part of its units.
const LEAST_UNITS: f64 = 0.25;

/// A shape that is small enough.
#[derive(Clone, Debug, Serialize)]
pub struct Shape {
    /// As a recipe has it.
    pub student: StudentSection,
    /// Of width, layers, heads and units the parts that it keeps.
    #[serde(skip)]
    pub(super) parts: [f64; 4],
    /// What a student of it has.
    #[serde(flatten)]
    pub sizes: Sizes,
    /// KL of its start on held-out text, nats per token, if it was tried.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kl: Option<f64>,
    /// How long that took.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seconds: Option<f64>,
    /// KL on the same text after a short training, if it was trained.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kl_trained: Option<f64>,
    /// How long that took, with a start for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seconds_trained: Option<f64>,
}

impl Shape {
    /// How far the parts that it keeps are from these, in every direction alike.
    pub(super) fn distance(&self, parts: &[f64; 4]) -> f64 {
        let both = self.parts.iter().zip(parts);
        both.map(|(own, other)| (own / other).ln().powi(2)).sum()
    }

    /// Whether `other` keeps as much along every axis, and more along one.
    fn is_part_of(&self, other: &Self) -> bool {
        let mut both = self.parts.iter().zip(&other.parts);
        self.parts != other.parts && both.all(|(own, other)| own <= other)
    }
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
/// axis, without those of which another has all and more. None is tried.
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
    let mut found: Vec<Shape> = Vec::new();
    let mut smallest: Option<Sizes> = None;
    let given = &recipe.student;
    let of_width = widths(given, teacher);
    let of_all = of_width.into_iter().flat_map(|width| {
        let of_depth = depths(given, teacher).into_iter();
        of_depth.flat_map(move |depth| {
            let of_heads = heads(given, teacher).into_iter();
            of_heads.map(move |heads| (width, depth, heads))
        })
    });
    for (width, depth, [heads, kv_heads]) in of_all {
        let layers: Vec<usize> = (0..depth).collect();
        let is_tied = given.tie_embeddings.unwrap_or(teacher.tie_word_embeddings);
        let narrower = LlamaConfig {
            num_attention_heads: heads,
            num_key_value_heads: kv_heads,
            head_dim: given.head_dim.unwrap_or(teacher.head_dim),
            ..teacher.with_layers(&layers).at_width(width, is_tied)
        };
        if given.hidden_size.is_none() && !is_loaded(&narrower, teacher) {
            continue;
        }
        let of_units = |units: usize| {
            sizes(&LlamaConfig {
                intermediate_size: units,
                ..narrower.clone()
            })
        };
        let all = units(given, teacher);
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
            (width, teacher.hidden_size),
            (depth, teacher.num_hidden_layers),
            (heads, teacher.num_attention_heads),
            (units, teacher.intermediate_size),
        ];
        let shape = Shape {
            parts: parts.map(|(own, all)| own as f64 / all as f64),
            student: StudentSection {
                heads: Some(heads),
                kv_heads: Some(kv_heads),
                intermediate_size: Some(units),
                hidden_size: given
                    .hidden_size
                    .or_else(|| (width != teacher.hidden_size).then_some(width)),
                layers: match &given.layers {
                    Some(given) => Some(given.clone()),
                    None => Some(KeptLayers::Count(depth)),
                },
                ..given.shape()
            },
            sizes: of_units(units),
            kl: None,
            seconds: None,
            kl_trained: None,
            seconds_trained: None,
        };
        found.push(shape);
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
            "student.target is below every shape that is tried, of which none keeps less than half of the width, \
             layers and heads and a quarter of the units{of_smallest}: raise it, or give the shape itself"
        )));
    }
    found.sort_by(|a, b| a.distance(&[1.0; 4]).total_cmp(&b.distance(&[1.0; 4])));
    // What else a recipe says may leave no room for a shape.
    let mut refused = None;
    found.retain(|shape| {
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
        _ => {
            let all = found.clone();
            found.retain(|shape| !all.iter().any(|other| shape.is_part_of(other)));
            Ok(found)
        }
    }
}

/// Widths, most first: multiples of a step of which the teacher's is one too.
fn widths(given: &StudentSection, teacher: &LlamaConfig) -> Vec<usize> {
    let all = teacher.hidden_size;
    if let Some(given) = given.hidden_size {
        return vec![given];
    }
    let mut steps = WIDTH_STEPS.into_iter();
    let step = steps.find(|step| all.is_multiple_of(*step) && all / step >= LEAST_STEPS);
    let step = step.unwrap_or(1);
    let of_steps = parts_of(all / step, &WIDTHS).into_iter();
    of_steps.map(|steps| steps * step).collect()
}

/// Whether readers of the family load it, if they do its teacher.
fn is_loaded(student: &LlamaConfig, teacher: &LlamaConfig) -> bool {
    let opens = |config: &LlamaConfig| config.clone().openable().opens();
    opens(student) || !opens(teacher)
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
            "KL before",
            "seconds",
            "KL trained",
            "seconds",
        ];
        let mut rows = vec![titles.map(str::to_owned).to_vec()];
        for shape in self.0 {
            let known = |value: Option<f64>, digits: usize| match value {
                Some(value) => format!("{value:.digits$}"),
                None => "-".to_owned(),
            };
            rows.push(vec![
                shape.student.to_string(),
                thousands(shape.sizes.parameters as usize),
                format!("{:.1}", shape.sizes.file_bytes / 1e6),
                thousands(shape.sizes.kv_bytes_per_token as usize),
                format!("{:.1}", shape.sizes.flops_per_token / 1e6),
                known(shape.kl, 4),
                known(shape.seconds, 1),
                known(shape.kl_trained, 4),
                known(shape.seconds_trained, 1),
            ]);
        }
        write_table(f, &rows)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn parts_are_numbers_of_which_each_is_there_once() {
        assert_eq!(parts_of(30, &DEPTHS), [30, 27, 24, 21, 18, 15]);
        assert_eq!(parts_of(5, &DEPTHS), [5, 4, 3]);
        assert_eq!(parts_of(1, &HEADS), [1]);
    }

    fn teacher(width: usize, heads: usize, more: &str) -> LlamaConfig {
        let text = format!(
            r#"{{ "model_type": "llama", "vocab_size": 64, "hidden_size": {width}, "intermediate_size": 96,
            "num_hidden_layers": 2, "num_attention_heads": {heads}, "num_key_value_heads": {heads}, "head_dim": 8{more} }}"#
        );
        LlamaConfig::from_json_str(&text, Path::new("config.json")).unwrap()
    }

    #[test]
    fn widths_are_whole_blocks_as_far_as_the_teachers_is() {
        let of = |width| widths(&StudentSection::default(), &teacher(width, 1, ""));
        assert_eq!(of(2048), [2048, 1792, 1536, 1280, 1024]);
        assert_eq!(of(576), [576, 512, 448, 384, 320]);
        assert_eq!(of(64), [64, 56, 48, 40, 32]);
        assert_eq!(of(24), [24, 22, 18, 16, 12]);
        assert_eq!(of(5), [5, 4, 3]);
        let given = StudentSection {
            hidden_size: Some(7),
            ..StudentSection::default()
        };
        assert_eq!(widths(&given, &teacher(64, 1, "")), [7]);
    }

    #[test]
    fn a_width_that_no_reader_loads_is_none() {
        // A Llama becomes a Mistral, which has no biases.
        let plain = teacher(64, 4, "");
        assert!(is_loaded(&plain.at_width(50, true), &plain));
        let biased = teacher(64, 4, r#", "attention_bias": true"#);
        assert!(!is_loaded(&biased.at_width(50, true), &biased));
        assert!(is_loaded(&biased.at_width(48, true), &biased));
        // Where the teacher itself is none, nothing else is asked of its student.
        let odd = teacher(66, 4, r#", "attention_bias": true"#);
        assert!(is_loaded(&odd.at_width(50, true), &odd));
    }

    #[test]
    fn a_shape_of_which_another_has_all_and_more_is_part_of_it() {
        let of = |parts| Shape {
            student: StudentSection::default(),
            parts,
            sizes: Sizes {
                parameters: 1.0,
                file_bytes: 4.0,
                kv_bytes_per_token: 4.0,
                flops_per_token: 2.0,
            },
            kl: None,
            seconds: None,
            kl_trained: None,
            seconds_trained: None,
        };
        let wide = of([1.0, 0.5, 1.0, 0.5]);
        assert!(of([0.75, 0.5, 1.0, 0.5]).is_part_of(&wide));
        assert!(!of([0.75, 0.5, 1.0, 0.75]).is_part_of(&wide));
        assert!(!wide.is_part_of(&wide));
        let found = of([0.5, 1.0, 1.0, 1.0]).distance(&[1.0; 4]);
        assert!((found - 2.0_f64.ln().powi(2)).abs() < 1e-12);
    }

    #[test]
    fn what_was_not_tried_or_trained_is_no_zero() {
        let sizes = Sizes {
            parameters: 129_344.0,
            file_bytes: 517_376.0,
            kv_bytes_per_token: 512.0,
            flops_per_token: 258_688.0,
        };
        let shape = |kl, kl_trained| Shape {
            parts: [0.75, 1.0, 1.0, 1.0],
            student: StudentSection {
                hidden_size: Some(48),
                ..StudentSection::default()
            },
            sizes,
            kl,
            seconds: kl.map(|_| 2.0),
            kl_trained,
            seconds_trained: kl_trained.map(|_| 30.0),
        };
        let shapes = [
            shape(Some(1.25), Some(0.5)),
            shape(Some(1.0), None),
            shape(None, None),
        ];
        let text = ShapeTable(&shapes).to_string();
        let ends: Vec<Vec<&str>> = text
            .lines()
            .map(|line| line.split_whitespace().rev().take(4).collect())
            .collect();
        assert!(text.starts_with("shape     parameters"), "{text}");
        assert_eq!(ends[1], ["30.0", "0.5000", "2.0", "1.2500"]);
        assert_eq!(ends[2], ["-", "-", "2.0", "1.0000"]);
        assert_eq!(ends[3], ["-"; 4]);
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
