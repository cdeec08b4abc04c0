//! What each part of a training step costs: operations, bytes that go to memory and back, and the memory
//! that a step holds at its fullest.
//!
//! Everything is counted by formula. With `n` tokens of a step, `t` of a sequence (of several lengths the
//! mean, for memory the longest), `d` = `d_model`,
//! `m` = `intermediate_size`, `V` = `vocab_size`, `h` query heads, `q` and `k` the widths of query and of
//! key/value heads, and bytes in elements:
//!
//! | part | FLOPs | elements |
//! |---|---|---|
//! | a product `[n, i] x [i, o]` | `2 n i o` | `i o + n i + n o` |
//! | attention of a layer | `2 * 2 n q (t + 1) / 2` | `n (2 q + 2 k)` |
//! | gradient of a product's input | as the product | as the product |
//! | gradient of attention | twice as attention | twice as attention |
//! | gradient of a kernel | `2 n i o` | `i o + n i + n o` |
//! | a kernel out of its map | [`StepFlops::kernel_contraction`] | each operand read, each result written |
//! | head, three times | `2 n d V` | `d V + n d` |
//! | softmaxes of the loss | `22 n V` | `6 n V`, float32 |
//! | softmaxes of attention | `4 n h (t + 1) / 2` a pass | none |
//! | a step of AdamW | `12` a parameter | `7` a parameter, float32 |
//! | a balanced step | `16` a parameter | `5` a parameter, float32 |
//!
//! The head is used three times: for the logits of both models and for the gradient of the student's
//! hidden states. Its logits are written once and read once by the softmaxes, where they are counted.
//! For each logit of each model the loss needs a normaliser at its temperature and one at 1: scale,
//! subtract, exponential, add, four operations each; the gradient takes six more. Scores of attention need
//! not leave the chip, so that they cost no bytes. Norms, rotary embeddings and activations are left out.

use burn_lti::geometry::{HeadGrid, Role};
use burn_lti::map::{MapKind, contraction_cost};
use serde::Serialize;

use super::planner::Planner;
use super::{Origin, PlannedTensor, StepFlops};
use crate::config::LlamaConfig;
use crate::recipe::{SeqLens, Trained};

/// Bytes of a float32.
const F32: f64 = 4.0;
/// Operations a logit: two models at two temperatures, and the gradient.
const LOSS_OPERATIONS: f64 = 2.0 * 2.0 * 4.0 + 6.0;
/// Times that an element of the logits' size is written or read: both models' logits and the gradient.
const LOSS_TRANSFERS: f64 = 6.0;
/// Tensors of the size of a chunk's logits that are there at once.
const LOGIT_TENSORS: f64 = 3.0;
/// Operations of AdamW on a parameter.
const ADAMW_OPERATIONS: f64 = 12.0;
/// Weight, gradient and two moments are read, all but the gradient written.
const ADAMW_TRANSFERS: f64 = 7.0;
/// Operations of a balanced step on a parameter: its mean of gradients and the newest ahead of it, its size and
/// square, the means of rows and columns and the products with them, and the step.
const BALANCED_OPERATIONS: f64 = 16.0;
/// Weight, gradient and one moment are read, all but the gradient written.
const BALANCED_TRANSFERS: f64 = 5.0;

/// What a training step costs, part by part.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StepCosts {
    /// Tokens of a step.
    pub tokens: usize,
    /// The parts, in their order.
    pub parts: Vec<PartCost>,
    /// What a step holds at its fullest.
    pub memory: StepMemory,
}

/// A part of a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct PartCost {
    /// What it is called.
    pub part: &'static str,
    /// Floating-point operations, two for each multiply-add.
    pub flops: f64,
    /// Bytes read from memory or written to it, if every operand is read once and every result written
    /// once.
    pub bytes: f64,
}

/// Bytes that a step holds at its fullest, each tensor that two models have in common counted once. An
/// estimate: what else a backend holds for a moment is not known here.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct StepMemory {
    /// The teacher's weights, which are also the student's frozen ones and the kernels `C`, and of those
    /// that train, the student's own.
    pub weights: f64,
    /// Gradients of what trains and its moments, two for AdamW and one for balanced steps, and the maps
    /// themselves.
    pub optimizer: f64,
    /// Kernels made out of maps, and what is kept between the two products of a factored map.
    pub kernels: f64,
    /// What the forward pass keeps for the backward pass: for each token of a layer
    /// `3 d + 2 q + 2 k + h t + 2 m` elements. Weights of attention, `h t`, are kept in float32 too where
    /// the model has half of it; a CPU, in float32, makes them again instead, and keeps that much less.
    pub activations: f64,
    /// Logits of both models and their gradient, of a chunk of tokens.
    pub logits: f64,
}

impl StepCosts {
    /// Operations of all parts.
    pub fn flops(&self) -> f64 {
        self.parts.iter().map(|part| part.flops).sum()
    }

    /// Bytes of all parts.
    pub fn bytes(&self) -> f64 {
        self.parts.iter().map(|part| part.bytes).sum()
    }
}

impl StepMemory {
    /// All of it.
    pub fn total(&self) -> f64 {
        let Self {
            weights,
            optimizer,
            kernels,
            activations,
            logits,
        } = self;
        weights + optimizer + kernels + activations + logits
    }
}

/// Operations and bytes.
#[derive(Clone, Copy, Debug, Default)]
struct Cost {
    flops: f64,
    bytes: f64,
}

impl Cost {
    fn named(self, part: &'static str) -> PartCost {
        let Self { flops, bytes } = self;
        PartCost { part, flops, bytes }
    }

    fn times(self, factor: f64) -> Self {
        Self {
            flops: factor * self.flops,
            bytes: factor * self.bytes,
        }
    }
}

impl std::iter::Sum for Cost {
    fn sum<I: Iterator<Item = Self>>(costs: I) -> Self {
        costs.fold(Self::default(), |sum, cost| sum + cost)
    }
}

impl std::ops::Add for Cost {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            flops: self.flops + other.flops,
            bytes: self.bytes + other.bytes,
        }
    }
}

/// What the costs of a step follow from.
pub(super) struct Costs<'a> {
    planner: &'a Planner<'a>,
    tensors: &'a [PlannedTensor],
    flops: &'a StepFlops,
    tokens: f64,
    /// Bytes of an element of weights and activations.
    size: f64,
}

impl<'a> Costs<'a> {
    pub(super) fn new(
        planner: &'a Planner<'a>,
        tensors: &'a [PlannedTensor],
        flops: &'a StepFlops,
    ) -> Self {
        let train = &planner.recipe.train;
        Self {
            planner,
            tensors,
            flops,
            tokens: train.tokens_per_step() as f64,
            size: planner.recipe.teacher.dtype.size() as f64,
        }
    }

    pub(super) fn step(&self) -> StepCosts {
        let Planner {
            teacher, student, ..
        } = self.planner;
        let has_teacher = if self.flops.teacher_forward > 0.0 {
            1.0
        } else {
            0.0
        };
        let forward = |config| self.linears(config) + self.attention(config);
        let backward = self.linears(student) + self.attention(student).times(2.0);
        let head = |times| self.head(student).times(times);
        let parts = vec![
            forward(teacher).times(has_teacher).named("teacher forward"),
            self.contraction().named("kernels out of maps, and back"),
            forward(student).named("student forward"),
            head(2.0 + has_teacher).named("head: logits and their gradient"),
            self.loss_softmaxes().named("loss: softmaxes and gradient"),
            backward.named("student backward: inputs"),
            self.kernel_gradients().named("student backward: kernels"),
            (self.softmaxes(teacher).times(has_teacher) + self.softmaxes(student).times(2.0))
                .named("attention: softmaxes"),
            self.optimizer().named("optimizer"),
        ];
        StepCosts {
            tokens: self.tokens as usize,
            parts,
            memory: self.memory(),
        }
    }

    /// A product of `rows` with a kernel, or the gradient of either factor.
    fn product(&self, input: usize, output: usize) -> Cost {
        let (rows, input, output) = (self.tokens, input as f64, output as f64);
        Cost {
            flops: 2.0 * rows * input * output,
            bytes: self.size * (input * output + rows * (input + output)),
        }
    }

    /// All products of the layers with a kernel.
    fn linears(&self, config: &LlamaConfig) -> Cost {
        let (d_model, wide) = (config.hidden_size, config.intermediate_size);
        let roles =
            Role::ATTENTION.map(|role| self.product(d_model, config.axes().grid(role).width()));
        let feed_forward = self.product(d_model, wide).times(3.0);
        let layer = roles.into_iter().sum::<Cost>() + feed_forward;
        layer.times(config.num_hidden_layers as f64)
    }

    /// Scores and values of the layers.
    fn attention(&self, config: &LlamaConfig) -> Cost {
        let width = 2 * (config.query_grid().width() + config.kv_grid().width());
        let elements = self.tokens * (width * config.num_hidden_layers) as f64;
        Cost {
            flops: self
                .seq_lens()
                .mean(|len| config.attention_flops(self.tokens as usize, len)),
            bytes: self.size * elements,
        }
    }

    fn softmaxes(&self, config: &LlamaConfig) -> Cost {
        let rows = (config.num_hidden_layers * config.num_attention_heads) as f64 * self.tokens;
        Cost {
            flops: 4.0 * rows * (self.seq_lens().mean(|len| len as f64) + 1.0) / 2.0,
            bytes: 0.0,
        }
    }

    /// One product with the head, without its logits.
    fn head(&self, config: &LlamaConfig) -> Cost {
        let (d_model, vocab) = (config.hidden_size as f64, config.vocab_size as f64);
        Cost {
            flops: 2.0 * self.tokens * d_model * vocab,
            bytes: self.size * (d_model * vocab + self.tokens * d_model),
        }
    }

    fn loss_softmaxes(&self) -> Cost {
        let logits = self.tokens * self.planner.student.vocab_size as f64;
        Cost {
            flops: LOSS_OPERATIONS * logits,
            bytes: LOSS_TRANSFERS * F32 * logits,
        }
    }

    /// The gradients of kernels that train or are made by a map.
    fn kernel_gradients(&self) -> Cost {
        let config = self.planner.student;
        let made = match self.planner.trained {
            Trained::Maps => self.planner.layers.len(),
            Trained::Projections | Trained::All => 0,
        };
        let roles = Role::ATTENTION
            .map(|role| self.product(config.hidden_size, config.axes().grid(role).width()));
        let made = roles.into_iter().sum::<Cost>().times(made as f64);
        let own = self
            .tensors
            .iter()
            .filter(|t| self.planner.has_kernel_gradient(t));
        let own = own.filter_map(|tensor| match tensor.shape.as_slice() {
            &[output, input] => Some(self.product(input, output)),
            _ => None,
        });
        made + own.sum()
    }

    /// Making kernels out of maps, and the gradients of the maps.
    fn contraction(&self) -> Cost {
        let accumulate = self.planner.recipe.train.accumulate as f64;
        let elements = sum(self.maps().map(|map| map.transfers()));
        Cost {
            flops: self.flops.kernel_contraction,
            bytes: accumulate * self.size * elements,
        }
    }

    fn optimizer(&self) -> Cost {
        let balanced = self.balanced_parameters();
        let others = self.trained_parameters() - balanced;
        Cost {
            flops: ADAMW_OPERATIONS * others + BALANCED_OPERATIONS * balanced,
            bytes: F32 * (ADAMW_TRANSFERS * others + BALANCED_TRANSFERS * balanced),
        }
    }

    const fn seq_lens(&self) -> &SeqLens {
        &self.planner.recipe.train.seq_len
    }

    fn trained_parameters(&self) -> f64 {
        super::planner::count(self.tensors, |tensor| tensor.trained) as f64
    }

    /// Those that take balanced steps.
    fn balanced_parameters(&self) -> f64 {
        let Planner {
            recipe, trained, ..
        } = self.planner;
        let optimizer = recipe.optimizer(*trained, recipe.train.learning_rate);
        let balanced = super::planner::count(self.tensors, |tensor| {
            tensor.trained && tensor.shape.len() == 2 && optimizer.balances(&tensor.name)
        });
        balanced as f64
    }

    /// The maps of all layers.
    fn maps(&self) -> impl Iterator<Item = MapElements> + '_ {
        let planner = self.planner;
        let maps = planner
            .mapped()
            .filter(|_| planner.trained == Trained::Maps);
        maps.map(|(map, teacher, student)| {
            MapElements::new(map, planner.teacher.hidden_size, teacher, student)
        })
    }

    fn memory(&self) -> StepMemory {
        let Planner {
            recipe,
            teacher,
            student,
            ..
        } = self.planner;
        let micro_batch = self.tokens / recipe.train.accumulate as f64;
        let trained = self.trained_parameters();
        let own = super::planner::count(self.tensors, |tensor| {
            tensor.trained && tensor.origin != Origin::Map
        });
        let (queries, keys) = (student.query_grid().width(), student.kv_grid().width());
        let token =
            3 * student.hidden_size + 2 * queries + 2 * keys + 2 * student.intermediate_size;
        let scores = (student.num_attention_heads * self.seq_lens().longest()) as f64;
        let score = match self.size < F32 {
            true => self.size + F32,
            false => self.size,
        };
        let chunk = micro_batch.min(recipe.loss.chunk_tokens as f64);
        StepMemory {
            weights: self.size * (teacher.num_parameters() + own) as f64,
            optimizer: F32 * (4.0 * trained - own as f64 - self.balanced_parameters()),
            kernels: self.size * sum(self.maps().map(|map| map.kernel + map.between)),
            activations: micro_batch
                * student.num_hidden_layers as f64
                * (self.size * token as f64 + score * scores),
            logits: LOGIT_TENSORS * F32 * chunk * student.vocab_size as f64,
        }
    }
}

/// Elements of what a map's contraction reads and writes.
#[derive(Clone, Copy, Debug)]
struct MapElements {
    /// `C`.
    teacher: f64,
    /// Between the two products of pairs of factors.
    between: f64,
    /// The student's kernel.
    kernel: f64,
    /// The map.
    map: f64,
}

impl MapElements {
    fn new(map: MapKind, d_model: usize, teacher: HeadGrid, student: HeadGrid) -> Self {
        let d_model = d_model as f64;
        let between = contraction_cost(map, teacher, student).between;
        Self {
            teacher: d_model * teacher.width() as f64,
            between: d_model * between as f64,
            kernel: d_model * student.width() as f64,
            map: map.num_params(teacher, student) as f64,
        }
    }

    /// Forward: `C` and the map are read, the kernel and what is between are written, that is read.
    /// Backward: the kernel's gradient is read for each factor, `C` and what is between once, whose
    /// gradient is written and read; the map's gradient is written.
    fn transfers(&self) -> f64 {
        let Self {
            teacher,
            between,
            kernel,
            map,
        } = self;
        let gradient_reads = if *between > 0.0 { 2.0 } else { 1.0 };
        2.0 * teacher + 5.0 * between + (1.0 + gradient_reads) * kernel + 3.0 * map
    }
}

/// From zero on: `Iterator::sum` makes -0 of nothing.
fn sum(numbers: impl Iterator<Item = f64>) -> f64 {
    numbers.fold(0.0, |sum, number| sum + number)
}

#[cfg(test)]
mod tests {
    use super::super::Plan;
    use super::super::tests::{plan, teacher};
    use super::*;

    fn part<'a>(plan: &'a Plan, name: &str) -> &'a PartCost {
        let mut parts = plan.costs.parts.iter();
        let found = parts.find(|part| part.part.starts_with(name));
        found.unwrap_or_else(|| panic!("no part {name}"))
    }

    /// The operations of the parts that are products, whatever trains.
    #[test]
    fn the_products_of_the_parts_are_those_of_the_totals() {
        for overrides in [
            &[][..],
            &["lti.layers=[0, 2]"],
            &["lti.map=general", "train.accumulate=4"],
            &["lti.train=projections"],
            &["lti.train=all"],
            &["teacher.cache='cache'"],
            &["train.seq_len=[128, 192, 512]", "train.batch_size=12"],
        ] {
            let plan = plan(overrides);
            let none = ["loss: softmaxes", "attention: softmaxes", "optimizer"];
            let others: f64 = none.iter().map(|name| part(&plan, name).flops).sum();
            let (found, expected) = (plan.costs.flops() - others, plan.totals.step_flops.total());
            // Sums of some ten terms in float64.
            assert!(
                (found / expected - 1.0).abs() < 1e-12,
                "{overrides:?}: {found} {expected}"
            );
        }
    }

    #[test]
    fn bytes_follow_the_formulas() {
        let plan = plan(&["train.batch_size=2", "train.seq_len=3", "lti.layers=[0]"]);
        let n = 6.0;
        let head = 4.0 * (64.0 * 512.0 + n * 64.0);
        assert_eq!(part(&plan, "head").bytes, 3.0 * head);
        assert_eq!(part(&plan, "loss").bytes, 6.0 * 4.0 * n * 512.0);
        assert_eq!(part(&plan, "loss").flops, 22.0 * n * 512.0);
        // Query and out 64 wide, key and value 32, three of the feed-forward block 172.
        let widths = [64.0, 64.0, 32.0, 32.0, 172.0, 172.0, 172.0];
        let linears: f64 = widths.map(|o| 64.0 * o + n * (64.0 + o)).iter().sum();
        let attention = n * 2.0 * (64.0 + 32.0);
        assert_eq!(
            part(&plan, "teacher").bytes,
            4.0 * 5.0 * (linears + attention)
        );
        // Query and out: 8x8 to 4x8 by 4x8; key and value: 4x8 to 2x8 by 2x8.
        let map = |c: f64, between: f64, kernel: f64, map: f64| {
            64.0 * (2.0 * c + 5.0 * between + 3.0 * kernel) + 3.0 * map
        };
        let maps = 2.0 * (map(64.0, 32.0, 32.0, 96.0) + map(32.0, 16.0, 16.0, 72.0));
        assert_eq!(part(&plan, "kernels").bytes, 4.0 * maps);
    }

    #[test]
    fn memory_follows_the_formulas() {
        let plan = plan(&[
            "train.batch_size=2",
            "train.seq_len=3",
            "loss.chunk_tokens=4",
        ]);
        let memory = &plan.costs.memory;
        let (teacher, maps) = (260_032.0, plan.totals.map_parameters as f64);
        assert_eq!(memory.weights, 4.0 * teacher);
        assert_eq!(memory.optimizer, 4.0 * 4.0 * maps);
        assert_eq!(memory.kernels, 4.0 * 5.0 * 64.0 * 2.0 * (96.0));
        let token = 3.0 * 64.0 + 2.0 * 32.0 + 2.0 * 16.0 + 2.0 * 172.0 + 4.0 * 3.0;
        assert_eq!(memory.activations, 4.0 * 6.0 * 5.0 * token);
        assert_eq!(memory.logits, 3.0 * 4.0 * 4.0 * 512.0);
        let half = super::super::tests::plan(&["teacher.dtype=bfloat16"]);
        assert_eq!(half.costs.memory.weights, 2.0 * teacher);
        let (rows, scores) = (16.0 * 128.0 * 5.0, 4.0 * 128.0);
        let token = 3.0 * 64.0 + 2.0 * 32.0 + 2.0 * 16.0 + 2.0 * 172.0;
        let expected = rows * (2.0 * token + 6.0 * scores);
        assert_eq!(half.costs.memory.activations, expected);
    }

    /// Balanced steps of the matrices of the layers hold one moment, and read and write two elements less.
    #[test]
    fn balanced_steps_need_less() {
        let of = |optimizer: &str| plan(&["lti.train=all", optimizer]).costs;
        let (balanced, adam) = (of("train.rate=1"), of("train.optimizer=adam"));
        let (d, wide, narrow, feed_forward) = (64.0, 32.0, 16.0, 172.0);
        let matrices = 5.0 * d * (2.0 * wide + 2.0 * narrow + 3.0 * feed_forward);
        let memory = |costs: &StepCosts| costs.memory.optimizer;
        assert_eq!(memory(&adam) - memory(&balanced), 4.0 * matrices);
        let step = |costs: &StepCosts| costs.parts.last().expect("it has parts").bytes;
        assert_eq!(step(&adam) - step(&balanced), 4.0 * 2.0 * matrices);
    }

    #[test]
    fn training_all_holds_a_student_of_its_own() {
        let plan = plan(&["lti.train=all", "train.optimizer=adam"]);
        let (student, teacher) = (plan.student.num_parameters(), teacher().num_parameters());
        let memory = &plan.costs.memory;
        assert_eq!(memory.weights, 4.0 * (teacher + student) as f64);
        assert_eq!(memory.optimizer, 4.0 * 3.0 * student as f64);
        assert_eq!(memory.kernels, 0.0);
        let optimizer = part(&plan, "optimizer");
        assert_eq!(optimizer.bytes, 4.0 * 7.0 * student as f64);
    }
}
