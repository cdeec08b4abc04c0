//! A plan for people.

use std::collections::HashMap;
use std::fmt;

use burn_lti::calibration::Budget;
use burn_lti::kernels::ProductPrecision;
use burn_lti::loss::Divergence;
use burn_lti::map::Start;

use super::{
    CheckpointPlan, Expectation, LossPlan, Origin, PhasePlan, Plan, PlannedTensor, StepCosts,
    StepMemory, Totals, TrainingPlan,
};
use crate::config::{LlamaConfig, divisors, list};
use crate::recipe::{
    AxisMaps, CalibrationSection, CalibrationText, GrowSection, Plateau, Precision, Rotary,
    divergence, schedule,
};

/// Numbers of a block, largest last, and the types that have such blocks.
const GGUF_BLOCKS: [(usize, &str); 2] = [(32, "Q4_0 to Q8_0"), (256, "Q2_K to Q6_K")];

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let layers = self.student.num_hidden_layers;
        writeln!(f, "teacher  {}", describe(&self.teacher.whole()))?;
        writeln!(f, "student  {}", describe(&self.student))?;
        self.write_kept_layers(f)?;
        self.write_width(f)?;
        if let Some(vocabulary) = &self.vocabulary {
            writeln!(f, "tokens   {vocabulary}")?;
        }
        write!(f, "maps     {}, start {}", self.map, self.start)?;
        if let Some(GrowSection { from, every }) = self.grow {
            let from = count(from, "pair", "pairs");
            write!(f, "; {from} at first, one more every {every} steps")?;
        }
        writeln!(f)?;
        self.write_rotary(f)?;
        writeln!(
            f,
            "layers   {} of {layers}: {}",
            self.layers.len(),
            runs(&self.layers)
        )?;
        self.write_calibration(f)?;
        writeln!(f, "train    {}", self.trained)?;
        self.write_training(f)?;
        if let Some(text) = self.text {
            writeln!(f, "reads    {text}")?;
        }
        self.write_export(f)?;
        self.write_blocks(f)?;
        self.write_expectation(f)?;
        writeln!(f)?;
        write_table(f, &self.rows())?;
        writeln!(f)?;
        let mut totals = self.totals.rows();
        totals.extend(self.phase2.iter().flat_map(PhasePlan::rows));
        write_table(f, &totals)?;
        writeln!(f)?;
        write_table(f, &self.costs.rows())?;
        writeln!(f)?;
        write_table(f, &self.costs.memory.rows())?;
        self.write_new(f)
    }
}

impl Plan {
    /// Which of the teacher's layers the student keeps, if it keeps some.
    fn write_kept_layers(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(kept) = &self.kept_layers else {
            return Ok(());
        };
        let (count, all) = (kept.len(), self.teacher.num_hidden_layers);
        match self.chooses_layers {
            true => writeln!(
                f,
                "depth    {count} of {all} layers: those whose absence costs most, as a run measures on text when it begins"
            ),
            false => writeln!(f, "depth    layers {} of {all}", runs(kept)),
        }
    }

    /// What becomes of the residual stream, if it becomes another.
    fn write_width(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (student, teacher) = (&self.student, &self.teacher);
        if !student.narrows(teacher) {
            return Ok(());
        }
        let what = match self.start {
            Start::Calibrated => "directions of the teacher's stream",
            _ => "features of the teacher's stream",
        };
        let (width, all) = (student.hidden_size, teacher.hidden_size);
        if self.map.width != AxisMaps::Weights {
            return writeln!(f, "width    {width} of {all}, by maps ({})", self.map.width);
        }
        writeln!(
            f,
            "width    {width} of {all} {what}; kernels of maps are the teacher's at that width"
        )
    }

    /// What the maps of query and key keep apart, if they do.
    fn write_rotary(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.rotary == Rotary::Free {
            return Ok(());
        }
        write!(
            f,
            "rotary   kept: maps of query and key mix heads by a complex number for each pair of features that turns"
        )?;
        let layers = self.layers.iter().copied();
        let still: Vec<usize> = layers
            .filter(|it| self.student.rope_of(*it).is_none())
            .collect();
        match still.is_empty() {
            true => writeln!(f),
            false => writeln!(
                f,
                "; none does in {}, where they mix anything",
                runs(&still)
            ),
        }
    }

    /// What the start is calculated from, if it is.
    fn write_calibration(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(CalibrationSection {
            text,
            sequences,
            budget,
            ..
        }) = self.calibration
        else {
            return Ok(());
        };
        let seq_len = &self.training.seq_len;
        match seq_len.all() {
            [len] => {
                let sequences = count(sequences, "sequence", "sequences");
                write!(f, "text     {sequences} of {len} tokens")?;
            }
            _ => {
                let tokens = thousands(sequences.saturating_mul(seq_len.shortest()));
                write!(f, "text     {tokens} tokens in sequences of {seq_len}")?;
            }
        }
        write!(f, " to calibrate on: ")?;
        let least = CalibrationSection::LEAST;
        match text {
            Some(CalibrationText::Train) => write!(f, "training text")?,
            Some(CalibrationText::Teacher) => write!(f, "the teacher's own")?,
            None => write!(
                f,
                "training text, or the teacher's own where that is less than {least}"
            )?,
        }
        match budget.unwrap_or_default() {
            Budget::None => writeln!(f),
            Budget::Short => writeln!(f, "; for a short training"),
            Budget::Long => writeln!(f, "; for a long training"),
        }
    }

    /// The loss, the steps, and which checkpoints are kept.
    fn write_training(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let LossPlan {
            divergence,
            alpha,
            temperature,
            feature,
        } = &self.loss;
        write!(f, "loss     ")?;
        if *divergence != Divergence::ForwardKl {
            write!(f, "{}, ", divergence::describe(divergence))?;
        }
        let (alpha, temperature) = (schedule::describe(alpha), schedule::describe(temperature));
        writeln!(f, "alpha {alpha}, temperature {temperature}")?;
        if let Some(feature) = feature {
            let (weight, pairs) = (schedule::describe(&feature.weight), feature.pairs.len());
            write!(f, "feature  {}, weight {weight}, ", feature.kind)?;
            write!(f, "{} of layers", count(pairs, "pair", "pairs"))?;
            writeln!(f, "{}", if feature.projector { ", projector" } else { "" })?;
        }

        let TrainingPlan {
            steps,
            batch_size,
            ref seq_len,
            precision,
            accumulate,
            eval_every,
            patience,
            checkpoints,
        } = self.training;
        let each = |describe: &dyn Fn(usize) -> String| {
            let all: Vec<_> = seq_len.all().iter().map(|len| describe(*len)).collect();
            all.join(" or ")
        };
        let sizes = each(&|len| format!("{} x {len}", seq_len.sequences_of(len, batch_size)));
        write!(f, "steps    {} of {sizes} tokens", thousands(steps))?;
        match accumulate {
            1 => writeln!(f)?,
            _ => {
                let sequences = batch_size / accumulate;
                let sizes = each(&|len| seq_len.sequences_of(len, sequences).to_string());
                writeln!(f, ", in {accumulate} micro-batches of {sizes}")?;
            }
        }
        match precision {
            Precision::Float32 => {}
            Precision::BFloat16 => {
                writeln!(f, "products in bfloat16, sums and all else in float32")?;
            }
            Precision::Auto => {
                let width = self.teacher.hidden_size;
                let (fastest, reason) = ProductPrecision::fastest_on_cpu(width);
                writeln!(f, "products in {fastest} on this CPU: {reason}")?;
            }
        }
        let every = |steps| count(steps, "step", "steps");
        write!(f, "watches  held-out KL every {}", every(eval_every))?;
        match patience {
            None => writeln!(f)?,
            Some(evaluations) => writeln!(
                f,
                "; ends after {} without a better one",
                count(evaluations, "evaluation", "evaluations")
            )?,
        }
        if let Some(CheckpointPlan { every: steps, keep }) = checkpoints {
            writeln!(
                f,
                "keeps    a checkpoint every {}, the last {keep}",
                every(steps)
            )?;
        }
        match &self.phase2 {
            None => Ok(()),
            Some(phase) => writeln!(f, "phase 2  {phase}"),
        }
    }

    /// Under which name the student is written, where its own would not do.
    fn write_export(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let student = &self.student;
        let (width, heads) = (student.hidden_size, student.num_attention_heads);
        let of = self.teacher.family.model_type();
        let reason = format!(
            "transformers 5 opens no {of} whose width of {width} does not divide by its {heads} query heads"
        );
        if student.family != self.teacher.family {
            let name = student.family.model_type();
            return writeln!(f, "exports  as a {name}, which computes the same: {reason}");
        }
        match student.opens() {
            false => {
                let heads = list(&divisors(width));
                writeln!(
                    f,
                    "exports  what transformers 4 opens: {reason}, and no other computes the same; one of {heads} would do"
                )
            }
            true => Ok(()),
        }
    }

    /// Which blocks of GGUF do not divide the rows of weights whose length the recipe chooses.
    fn write_blocks(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (student, teacher) = (&self.student, &self.teacher);
        let size = student.head_dim;
        let of_heads = [student, teacher].map(|it| it.query_grid().width());
        let of_units = [student, teacher].map(|it| it.intermediate_size);
        let of_width = [student, teacher].map(|it| it.hidden_size);
        for (weights, lengths, size, what) in [
            ("o_proj", of_heads, size, format!("query heads of {size}")),
            ("down_proj", of_units, 1, "units".to_owned()),
            ("what reads the stream", of_width, 1, "features".to_owned()),
        ] {
            self.write_undivided(f, weights, lengths, size, &what)?;
        }
        Ok(())
    }

    /// Which blocks do not divide rows of these lengths, the student's and the teacher's, of things as long as `size`.
    fn write_undivided(
        &self,
        f: &mut fmt::Formatter<'_>,
        weights: &str,
        [student, teacher]: [usize; 2],
        size: usize,
        what: &str,
    ) -> fmt::Result {
        let mut blocks = GGUF_BLOCKS.into_iter();
        // What the teacher's own rows allow no more than the student's is no news.
        let news = blocks
            .find(|(block, _)| !student.is_multiple_of(*block) && teacher.is_multiple_of(*block));
        let Some((block, types)) = news else {
            return Ok(());
        };
        // So many are whole blocks.
        let step = (1..=block).find(|count| (count * size).is_multiple_of(block));
        let step = step.unwrap_or(block);
        let below = student / size / step * step;
        let counts = [below, below + step].into_iter().filter(|count| *count > 0);
        writeln!(
            f,
            "gguf     rows of {weights} have {student} numbers, which blocks of {block} ({types}) do not divide: {} \
             {what} would do",
            counts
                .map(|count| count.to_string())
                .collect::<Vec<_>>()
                .join(" or ")
        )
    }

    /// What the training may bring, if any like it was measured.
    fn write_expectation(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(Expectation { tokens, kl_left }) = self.expectation else {
            return Ok(());
        };
        let [least, most] = kl_left.map(|part| format!("{:.0}", 100.0 * part));
        let part = match least == most {
            true => most,
            false => format!("{least} to {most}"),
        };
        let tokens = thousands(tokens);
        writeln!(
            f,
            "expect   after {tokens} tokens {part} % of the start's KL, as measured on two teachers"
        )
    }

    /// A row for each tensor, with those that differ only in their layer in one.
    fn rows(&self) -> Vec<Vec<String>> {
        let mut groups: Vec<(Vec<usize>, &str, &PlannedTensor)> = Vec::new();
        let mut known: HashMap<_, usize> = HashMap::new();
        for tensor in &self.tensors {
            let (layer, rest) = split_layer(&tensor.name);
            let origin = self.describe_origin(tensor);
            let index = *known
                .entry((rest, origin, tensor.trained))
                .or_insert_with(|| {
                    groups.push((Vec::new(), rest, tensor));
                    groups.len() - 1
                });
            groups[index].0.extend(layer);
        }
        let head = ["tensor", "shape", "parameters", "origin", "training"].map(String::from);
        let mut rows = vec![head.to_vec()];
        for (layers, rest, tensor) in groups {
            rows.push(vec![
                match layers.as_slice() {
                    [] => rest.to_owned(),
                    [layer] => format!("model.layers.{layer}.{rest}"),
                    layers => format!("model.layers.{{{}}}.{rest}", runs(layers)),
                },
                format!("{:?}", tensor.shape),
                thousands(tensor.num_elements() * layers.len().max(1)),
                self.describe_origin(tensor),
                if tensor.trained { "trained" } else { "frozen" }.to_owned(),
            ]);
        }
        rows
    }

    fn describe_origin(&self, tensor: &PlannedTensor) -> String {
        let of = |what: &str, from: &str| {
            let own = match tensor.name.strip_suffix(".c") {
                Some(module) => from.strip_suffix(".weight") == Some(module),
                None => from == tensor.name,
            };
            match own {
                true => what.to_owned(),
                false => format!("{what} from {from}"),
            }
        };
        match &tensor.origin {
            Origin::Map => format!("map ({})", self.start),
            Origin::TeacherKernel { from } => of("teacher kernel", from),
            Origin::Start { from } => of(&format!("start ({})", self.start), from),
            Origin::Copied { from } => of("copied", from),
            Origin::New => "NEW (random)".to_owned(),
            // Of the same layer, as it is named in a row of many.
            Origin::Shared { with } => match (split_layer(&tensor.name), split_layer(with)) {
                ((Some(own), _), (Some(other), rest)) if own == other => {
                    format!("shared with {rest}")
                }
                _ => format!("shared with {with}"),
            },
        }
    }

    /// New tensors are rarely meant.
    fn write_new(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.new_tensors().count();
        if count == 0 {
            return Ok(());
        }
        let parameters: usize = self.new_tensors().map(PlannedTensor::num_elements).sum();
        writeln!(
            f,
            "\nattention: {count} tensors ({} parameters) are NEW: they start at random, because \
             the teacher's\nheads do not fit the student's in layers without maps. To learn them \
             from the teacher, add\ntheir layers to lti.layers.",
            thousands(parameters)
        )
    }
}

/// One line: `projections, 50 steps: 20 tensors, 30,720 parameters`.
impl fmt::Display for PhasePlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}, {}: {}, {} parameters",
            self.train,
            count(self.steps, "step", "steps"),
            count(self.trained.len(), "tensor", "tensors"),
            thousands(self.trainable_parameters)
        )?;
        match self.plateau {
            None => Ok(()),
            Some(Plateau {
                window,
                improvement,
            }) => write!(
                f,
                "; phase 1 ends early once {} improve its loss by less than {improvement}",
                count(window, "step", "steps")
            ),
        }
    }
}

impl PhasePlan {
    fn rows(&self) -> Vec<Vec<String>> {
        [
            (
                "parameters, trained in phase 2",
                thousands(self.trainable_parameters),
            ),
            (
                "a step of phase 2, student backward",
                gflop(self.step_flops.student_backward),
            ),
        ]
        .map(|(name, value)| vec![name.to_owned(), value])
        .to_vec()
    }
}

impl Totals {
    fn rows(&self) -> Vec<Vec<String>> {
        let flops = &self.step_flops;
        [
            ("parameters, teacher", thousands(self.teacher_parameters)),
            (
                "parameters, student once collapsed",
                thousands(self.student_parameters),
            ),
            ("parameters, maps", thousands(self.map_parameters)),
            ("parameters, trained", thousands(self.trained_parameters)),
            ("parameters, frozen", thousands(self.frozen_parameters)),
            (
                "key/value cache, teacher",
                cache(self.teacher_kv_cache_bytes_per_token),
            ),
            (
                "key/value cache, student",
                cache(self.student_kv_cache_bytes_per_token),
            ),
            ("a step, teacher forward", gflop(flops.teacher_forward)),
            ("a step, student forward", gflop(flops.student_forward)),
            ("a step, student backward", gflop(flops.student_backward)),
            (
                "a step, kernels out of maps",
                gflop(flops.kernel_contraction),
            ),
        ]
        .map(|(name, value)| vec![name.to_owned(), value])
        .to_vec()
    }
}

impl StepCosts {
    fn rows(&self) -> Vec<Vec<String>> {
        let head = ["part of a step", "GFLOP", "GB"].map(String::from).to_vec();
        let row =
            |part: &str, flops: f64, bytes: f64| vec![part.to_owned(), giga(flops), giga(bytes)];
        let parts = self
            .parts
            .iter()
            .map(|part| row(part.part, part.flops, part.bytes));
        let all = row("together", self.flops(), self.bytes());
        [head].into_iter().chain(parts).chain([all]).collect()
    }
}

impl StepMemory {
    fn rows(&self) -> Vec<Vec<String>> {
        [
            ("memory of a step, about", "GB".to_owned()),
            ("weights of the teacher and its student", giga(self.weights)),
            ("maps, gradients, moments", giga(self.optimizer)),
            ("kernels out of maps", giga(self.kernels)),
            ("kept for the backward pass", giga(self.activations)),
            ("logits of a chunk", giga(self.logits)),
            ("together", giga(self.total())),
        ]
        .map(|(name, value)| vec![name.to_owned(), value])
        .to_vec()
    }
}

/// In units of 10^9.
pub(super) fn giga(value: f64) -> String {
    format!("{:.3}", value / 1e9)
}

fn describe(config: &LlamaConfig) -> String {
    format!(
        "{} layers, width {}, {}, {} key/value heads, {} units, vocabulary {}",
        config.num_hidden_layers,
        config.hidden_size,
        config.query_grid(),
        config.num_key_value_heads,
        config.intermediate_size,
        config.vocab_size
    )
}

/// `model.layers.3.mlp.up_proj.weight` -> 3 and the rest; other names have no layer.
fn split_layer(name: &str) -> (Option<usize>, &str) {
    name.strip_prefix("model.layers.")
        .and_then(|rest| rest.split_once('.'))
        .and_then(|(layer, rest)| Some((Some(layer.parse().ok()?), rest)))
        .unwrap_or((None, name))
}

/// Ascending numbers with runs drawn together: `0..2, 4`.
pub(crate) fn runs(numbers: &[usize]) -> String {
    numbers
        .chunk_by(|a, b| a + 1 == *b)
        .map(|run| match run {
            [first, .., last] => format!("{first}..{last}"),
            run => list(run),
        })
        .collect::<Vec<_>>()
        .join(", ")
}

/// `1234567` as `1,234,567`.
pub(crate) fn thousands(number: usize) -> String {
    let digits = number.to_string();
    let groups: Vec<&[u8]> = digits.as_bytes().rchunks(3).rev().collect();
    String::from_utf8_lossy(&groups.join(&b',')).into_owned()
}

/// `1 step`, `2,000 steps`.
pub(super) fn count(number: usize, one: &str, many: &str) -> String {
    let noun = if number == 1 { one } else { many };
    format!("{} {noun}", thousands(number))
}

fn cache(bytes_per_token: usize) -> String {
    format!("{} bytes a token", thousands(bytes_per_token))
}

fn gflop(flops: f64) -> String {
    format!("{} GFLOP", giga(flops))
}

/// Columns as wide as their widest cell, two blanks apart.
pub(crate) fn write_table(f: &mut fmt::Formatter<'_>, rows: &[Vec<String>]) -> fmt::Result {
    let columns = rows.first().map_or(0, Vec::len);
    let widths: Vec<usize> = (0..columns)
        .map(|column| rows.iter().map(|row| row[column].len()).max().unwrap_or(0))
        .collect();
    for row in rows {
        let cells = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}"));
        writeln!(f, "{}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
    }
    Ok(())
}
