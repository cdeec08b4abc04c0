//! [`KvCache`]: keys and values of sequences that are being written, and the attention of new tokens to them.

use std::collections::{BTreeMap, BTreeSet};

use burn::prelude::*;
use burn::tensor::{DType, IndexingUpdateOp, TensorData};

use super::cached_cpu::{self, Run, Sequence};
use super::in_tensor_operations;
use super::shape::Shape;
use crate::geometry::Axes;
use crate::kernels::form::is_cpu;
use crate::kernels::soft_cap::assert_cap;

/// Keys and values of sequences that are written together, of all layers. Each sequence has its own length, and
/// can be [cleared](Self::clear) to make room for another.
///
/// In float32 and on a CPU a sequence takes the memory of its own tokens, and what a token sees of it does not
/// depend on the sequences beside it, bit for bit. Else all sequences lie in one tensor, as long as the longest
/// and up to twice that, so that shapes seldom change.
///
/// New tokens come in [`Step`]s: a forward pass of one lets every layer [`attend`](Self::attend) once.
///
/// ```
/// use burn::backend::Flex;
/// use burn::prelude::*;
/// use burn_lti::geometry::{Axes, HeadGrid};
/// use burn_lti::kernels::KvCache;
///
/// let grid = HeadGrid::new(1, 2);
/// let axes = Axes::of_attention(2, grid, grid);
/// let device = Default::default();
/// let mut cache = KvCache::<Flex>::new(1, 3, axes, burn::tensor::DType::F32, &device);
/// // Two tokens of sequence 0, one of sequence 2.
/// for step in cache.steps(&[(0, 2), (2, 1)]) {
///     let [batch, tokens] = step.dims();
///     let x = Tensor::ones([batch, tokens, 2], &device);
///     let seen = cache.attend(0, [x.clone(), x.clone(), x], &step);
///     assert_eq!(seen.dims(), [batch, tokens, 2]);
/// }
/// assert_eq!(cache.tokens(0), 2);
/// ```
#[derive(Clone, Debug)]
pub struct KvCache<B: Backend> {
    layers: Vec<Layer<B>>,
    /// Tokens of each sequence.
    lengths: Vec<usize>,
    geometry: Axes,
    /// How many tokens a token of each layer sees, its own among them; all where there is none.
    windows: Vec<Option<usize>>,
    /// Of scores.
    cap: Option<f64>,
    device: B::Device,
}

#[derive(Clone, Debug)]
enum Layer<B: Backend> {
    /// Of a CPU.
    Sequences(Vec<Sequence>),
    /// Keys and values, `[sequences * columns, kv_heads * head_dim]` each: zeros where no token is.
    Tensors([Tensor<B, 2>; 2]),
}

/// Columns of a tensor's sequences at first.
const COLUMNS: usize = 32;

impl<B: Backend> KvCache<B> {
    /// An empty cache for so many layers and sequences. `dtype` is the float type of keys and values.
    pub fn new(
        layers: usize,
        sequences: usize,
        geometry: Axes,
        dtype: DType,
        device: &B::Device,
    ) -> Self {
        let in_loops = dtype == DType::F32 && is_cpu(device) && !B::ad_enabled(device);
        let layer = || match in_loops {
            true => Layer::Sequences(vec![Sequence::default(); sequences]),
            false => {
                let shape = [sequences * COLUMNS, geometry.key_value.width()];
                let zeros = || Tensor::zeros(shape, (device, dtype));
                Layer::Tensors([zeros(), zeros()])
            }
        };
        Self {
            layers: (0..layers).map(|_| layer()).collect(),
            lengths: vec![0; sequences],
            geometry,
            windows: vec![None; layers],
            cap: None,
            device: device.clone(),
        }
    }

    /// The same with scores that go through [`soft_cap`](crate::kernels::soft_cap), if there is one.
    ///
    /// # Panics
    ///
    /// If the cap is not positive and finite.
    pub fn with_cap(mut self, cap: Option<f64>) -> Self {
        cap.into_iter().for_each(assert_cap);
        self.cap = cap;
        self
    }

    /// The same with layers in which a token sees only so many of the last tokens, its own among them.
    ///
    /// # Panics
    ///
    /// If there are more or fewer windows than layers, or one is empty.
    pub fn with_windows(mut self, windows: Vec<Option<usize>>) -> Self {
        assert_eq!(windows.len(), self.layers.len(), "a window for each layer");
        assert!(!windows.contains(&Some(0)), "a token sees itself");
        self.windows = windows;
        self
    }

    /// How many sequences there are.
    pub fn sequences(&self) -> usize {
        self.lengths.len()
    }

    /// How many tokens of a sequence there are.
    ///
    /// # Panics
    ///
    /// If there is no such sequence.
    pub fn tokens(&self, sequence: usize) -> usize {
        self.lengths[sequence]
    }

    /// Forgets a sequence.
    ///
    /// # Panics
    ///
    /// If there is none such.
    pub fn clear(&mut self, sequence: usize) {
        if std::mem::take(&mut self.lengths[sequence]) == 0 {
            return;
        }
        let sequences = self.lengths.len();
        for layer in &mut self.layers {
            match layer {
                Layer::Sequences(all) => all[sequence].clear(),
                Layer::Tensors(both) => {
                    for of in both {
                        let [rows, _] = of.dims();
                        let columns = rows / sequences;
                        let place = sequence * columns..(sequence + 1) * columns;
                        replace(of, |of| of.slice_fill(place, 0.0));
                    }
                }
            }
        }
    }

    /// What reads so many new tokens of some sequences: `new` has pairs of both, each sequence once. One step
    /// where that can be; else the first reads all tokens but the last of each sequence, for which no logits
    /// are needed.
    ///
    /// The steps must be read in their order, each by all layers.
    ///
    /// # Panics
    ///
    /// If there is no such sequence, one comes twice, or has no new token.
    pub fn steps(&mut self, new: &[(usize, usize)]) -> Vec<Step<B>> {
        let mut seen = vec![false; self.lengths.len()];
        for &(sequence, tokens) in new {
            let again = std::mem::replace(&mut seen[sequence], true);
            assert!(!again && tokens > 0, "each sequence has new tokens, once");
        }
        let job = |(index, (sequence, tokens)): (usize, &(usize, usize))| Job {
            index,
            sequence: *sequence,
            from: 0,
            tokens: *tokens,
        };
        let jobs: Vec<Job> = new.iter().enumerate().map(job).collect();
        if let Some(Layer::Sequences(_)) = self.layers.first() {
            return vec![self.runs(&jobs)];
        }
        self.make_room(new);
        if jobs.windows(2).all(|pair| pair[0].tokens == pair[1].tokens) {
            return vec![self.block(&jobs)];
        }
        let ahead = jobs.iter().filter(|job| job.tokens > 1).map(|job| Job {
            tokens: job.tokens - 1,
            ..*job
        });
        let last = jobs.iter().map(|job| Job {
            from: job.tokens - 1,
            tokens: 1,
            ..*job
        });
        let (ahead, last): (Vec<Job>, Vec<Job>) = (ahead.collect(), last.collect());
        vec![self.block(&ahead), self.block(&last)]
    }

    /// What the heads put out for the tokens of a step, in a layer: queries, scaled, against the keys of their
    /// own sequence up to their own, which are added to the cache.
    ///
    /// # Shapes
    ///
    /// Queries and the result: `[batch, tokens, heads * head_dim]`; keys and values:
    /// `[batch, tokens, kv_heads * head_dim]`, with the step's `[batch, tokens]`.
    ///
    /// # Panics
    ///
    /// If they have other shapes, or there is no such layer.
    pub fn attend(&mut self, layer: usize, qkv: [Tensor<B, 3>; 3], step: &Step<B>) -> Tensor<B, 3> {
        let [batch, tokens] = step.dims();
        let (query, kv) = (self.geometry.query, self.geometry.key_value);
        for (tensor, width) in qkv.iter().zip([query.width(), kv.width(), kv.width()]) {
            assert_eq!(
                tensor.dims(),
                [batch, tokens, width],
                "they are of the step"
            );
        }
        let shape = Shape {
            batch,
            queries: tokens,
            keys: 0,
            heads: query.heads,
            kv_heads: kv.heads,
            head_dim: query.head_dim,
            cap: self.cap,
        };
        let window = self.windows[layer];
        match (&mut self.layers[layer], &step.reads) {
            (Layer::Sequences(sequences), Reads::Runs(runs)) => {
                cached_cpu::attend(sequences, qkv, runs, shape, window)
            }
            (Layer::Tensors(both), Reads::Block(block)) => block.attend(both, qkv, shape, window),
            _ => unreachable!("a step is of its cache"),
        }
    }

    /// One run of tokens after the other: `[tokens, 1]`.
    fn runs(&mut self, jobs: &[Job]) -> Step<B> {
        let (mut places, mut runs) = (Vec::new(), Vec::new());
        for job in jobs {
            let first = self.lengths[job.sequence];
            places.extend((0..job.tokens).map(|token| job.place(token, first)));
            runs.push(Run {
                sequence: job.sequence,
                first,
                tokens: job.tokens,
            });
            self.lengths[job.sequence] += job.tokens;
        }
        Step {
            dims: [places.len(), 1],
            places,
            reads: Reads::Runs(runs),
        }
    }

    /// A sequence a row, as long as the longest of the jobs. A single token comes from every sequence that
    /// there is, so that all such steps have one shape; those without a job read what is not kept.
    fn block(&mut self, jobs: &[Job]) -> Step<B> {
        let (sequences, columns) = (self.lengths.len(), self.columns());
        let tokens = jobs.iter().map(|job| job.tokens).max().unwrap_or(1);
        let all = tokens == 1 || jobs.len() == sequences;
        let mut rows: Vec<Option<&Job>> = jobs.iter().map(Some).collect();
        if all {
            rows = vec![None; sequences];
            for job in jobs {
                rows[job.sequence] = Some(job);
            }
        }
        let (mut places, mut kept, mut keys) = (Vec::new(), Vec::new(), Vec::new());
        let mut positions = Vec::with_capacity(rows.len() * tokens);
        for (row, job) in rows.iter().enumerate() {
            for token in 0..tokens {
                let place = row * tokens + token;
                let job = job.filter(|job| token < job.tokens);
                let position = match job {
                    Some(job) => {
                        let first = self.lengths[job.sequence];
                        kept.push(place as i64);
                        keys.push((job.sequence * columns + first + token) as i64);
                        places.push(job.place(token, first));
                        first + token
                    }
                    None => {
                        places.push(Place::default());
                        0
                    }
                };
                positions.push(position);
            }
        }
        let ints = |numbers: &[i64]| Tensor::from_data(numbers, &self.device);
        let row_of = |job: &Option<&Job>| job.map_or(0, |job| job.sequence as i64);
        let rows_of: Vec<i64> = rows.iter().map(row_of).collect();
        let mask = |window: Option<usize>| {
            let mut mask = vec![f32::NEG_INFINITY; positions.len() * columns];
            for (row, own) in mask.chunks_exact_mut(columns).zip(&positions) {
                let first = window.map_or(0, |window| (own + 1).saturating_sub(window));
                row[first..=*own].fill(0.0);
            }
            let mask = TensorData::new(mask, [rows.len(), 1, tokens, columns]);
            (window, Tensor::from_data(mask, &self.device))
        };
        let windows: BTreeSet<Option<usize>> = self.windows.iter().copied().collect();
        let block = Block {
            rows: (!all).then(|| ints(&rows_of)),
            kept: (kept.len() < places.len()).then(|| ints(&kept)),
            keys: ints(&keys),
            masks: windows.into_iter().map(mask).collect(),
            dims: [rows.len(), tokens, columns],
            sequences,
        };
        for job in jobs {
            self.lengths[job.sequence] += job.tokens;
        }
        Step {
            dims: [rows.len(), tokens],
            places,
            reads: Reads::Block(block),
        }
    }

    /// Places for tokens of each sequence, where the layers are tensors.
    fn columns(&self) -> usize {
        match self.layers.first() {
            Some(Layer::Tensors([keys, _])) => keys.dims()[0] / self.lengths.len().max(1),
            _ => 0,
        }
    }

    /// Makes the tensors long enough for so many new tokens.
    fn make_room(&mut self, new: &[(usize, usize)]) {
        let lengths = new
            .iter()
            .map(|(sequence, tokens)| self.lengths[*sequence] + tokens);
        let (columns, needed) = (self.columns(), lengths.max().unwrap_or(0));
        if needed <= columns {
            return;
        }
        let more = needed.next_power_of_two() - columns;
        let sequences = self.lengths.len();
        for layer in &mut self.layers {
            let Layer::Tensors(both) = layer else {
                continue;
            };
            for of in both {
                replace(of, |of| {
                    let [_, width] = of.dims();
                    let zeros = Tensor::zeros([sequences, more, width], (&of.device(), of.dtype()));
                    let of = of.reshape([sequences, columns, width]);
                    Tensor::cat(vec![of, zeros], 1).reshape([sequences * (columns + more), width])
                });
            }
        }
    }
}

/// New tokens of sequences, laid out for a forward pass.
#[derive(Clone, Debug)]
pub struct Step<B: Backend> {
    /// Rows, and tokens of each.
    dims: [usize; 2],
    /// Row by row.
    places: Vec<Place>,
    reads: Reads<B>,
}

/// What stands at a place of a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Which of the new tokens: the index of their sequence in the list that was given, and theirs among the
    /// sequence's new ones. `None` where there is nothing to be read, but for the shape's sake.
    pub token: Option<(usize, usize)>,
    /// The token's position in its sequence, from 0.
    pub position: usize,
}

impl<B: Backend> Step<B> {
    /// `[batch, tokens]` of the forward pass.
    pub const fn dims(&self) -> [usize; 2] {
        self.dims
    }

    /// What stands where, row by row: `[batch * tokens]`.
    pub fn places(&self) -> &[Place] {
        &self.places
    }
}

#[derive(Clone, Debug)]
enum Reads<B: Backend> {
    Runs(Vec<Run>),
    Block(Block<B>),
}

/// New tokens of a sequence, of which a step reads some.
#[derive(Clone, Copy, Debug)]
struct Job {
    /// In the list that was given.
    index: usize,
    sequence: usize,
    /// The first that is read.
    from: usize,
    tokens: usize,
}

impl Job {
    /// Where a token of it stands, `first` being the position of the first.
    fn place(&self, token: usize, first: usize) -> Place {
        Place {
            token: Some((self.index, self.from + token)),
            position: first + token,
        }
    }
}

/// As many tokens of each row, in tensor operations.
#[derive(Clone, Debug)]
struct Block<B: Backend> {
    /// The sequence of each row; all in their order where there is none.
    rows: Option<Tensor<B, 1, Int>>,
    /// The places whose keys and values are kept; all where there is none.
    kept: Option<Tensor<B, 1, Int>>,
    /// Where each of them is kept.
    keys: Tensor<B, 1, Int>,
    /// For each window that a layer has, `[rows, 1, tokens, columns]`.
    masks: BTreeMap<Option<usize>, Tensor<B, 4>>,
    /// Rows, tokens of each, and columns.
    dims: [usize; 3],
    sequences: usize,
}

impl<B: Backend> Block<B> {
    fn attend(
        &self,
        cache: &mut [Tensor<B, 2>; 2],
        [q, k, v]: [Tensor<B, 3>; 3],
        shape: Shape,
        window: Option<usize>,
    ) -> Tensor<B, 3> {
        let [rows, tokens, columns] = self.dims;
        for (of, new) in cache.iter_mut().zip([k, v]) {
            let [_, _, width] = new.dims();
            let mut new = new.reshape([rows * tokens, width]);
            if let Some(kept) = &self.kept {
                new = new.select(0, kept.clone());
            }
            // What it is added to is zero.
            let add = IndexingUpdateOp::Add;
            replace(of, |of| of.select_assign(0, self.keys.clone(), new, add));
        }
        let [k, v] = cache.each_ref().map(|of| {
            let [_, width] = of.dims();
            let all = of.clone().reshape([self.sequences, columns, width]);
            match &self.rows {
                Some(rows) => all.select(0, rows.clone()),
                None => all,
            }
        });
        let shape = Shape {
            keys: columns,
            ..shape
        };
        in_tensor_operations(q, k, v, shape, self.masks[&window].clone())
    }
}

/// Changes a tensor that nobody else has, so that a backend may do so where it lies.
fn replace<B: Backend>(
    tensor: &mut Tensor<B, 2>,
    change: impl FnOnce(Tensor<B, 2>) -> Tensor<B, 2>,
) {
    let nothing = Tensor::empty([0, 0], &tensor.device());
    let old = std::mem::replace(tensor, nothing);
    *tensor = change(old);
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;
    use crate::backend::Flex;
    use crate::geometry::HeadGrid;

    fn geometry() -> Axes {
        Axes::of_attention(24, HeadGrid::new(6, 4), HeadGrid::new(2, 4))
    }

    /// Numbers of a token, which are another's only by chance.
    fn numbers(seed: usize, width: usize) -> Vec<f64> {
        (0..width)
            .map(|at| ((seed * 31 + at * 17) % 101) as f64 / 50.0 - 1.0)
            .collect()
    }

    /// What three sequences of unlike lengths see in every pass, which come and go.
    fn found(dtype: DType, window: Option<usize>, cap: Option<f64>) -> Vec<f64> {
        let device = Default::default();
        let cache = KvCache::<Flex>::new(1, 3, geometry(), dtype, &device);
        let mut cache = cache.with_windows(vec![window]).with_cap(cap);
        let mut found = Vec::new();
        for pass in 0..60 {
            let mut new = vec![(1, 1)];
            if pass % 20 == 0 {
                cache.clear(2);
                new.insert(0, (2, 7));
            } else if pass % 20 < 9 {
                new.push((2, 1));
            }
            if pass == 3 {
                new.push((0, 40));
            }
            let mut outputs = Vec::new();
            for step in cache.steps(&new) {
                let [batch, tokens] = step.dims();
                let of = |salt: usize, width: usize| {
                    let places = step.places().iter();
                    let values = places.flat_map(|place| match place.token {
                        Some((index, _)) => numbers(
                            new[index].0 * 1000 + place.position * 3 + salt + pass / 20,
                            width,
                        ),
                        None => vec![f64::NAN; width],
                    });
                    let data = TensorData::new(values.collect(), [batch, tokens, width]);
                    Tensor::<Flex, 3>::from_data(data, (&device, dtype))
                };
                let output = cache.attend(0, [of(0, 24), of(1, 8), of(2, 8)], &step);
                let output: Vec<f64> = output.into_data().convert::<f64>().iter().collect();
                let places = step.places().iter().zip(output.chunks(24));
                outputs.extend(
                    places.filter_map(|(place, output)| Some((place.token?, output.to_vec()))),
                );
            }
            outputs.sort_by_key(|(token, _)| *token);
            found.extend(outputs.into_iter().flat_map(|(_, output)| output));
        }
        found
    }

    #[test]
    fn loops_and_tensors_see_the_same() {
        let mut of_windows = Vec::new();
        let windows = [None, Some(1), Some(7), Some(16), Some(19)];
        let capped = [(None, Some(0.7)), (Some(7), Some(1.5))];
        for (window, cap) in windows
            .map(|window| (window, None))
            .into_iter()
            .chain(capped)
        {
            let [loops, tensors] = [DType::F32, DType::F64].map(|dtype| found(dtype, window, cap));
            assert_eq!(loops.len(), tensors.len());
            for (loops, tensors) in loops.iter().zip(&tensors) {
                // Means of numbers of at most one, and some dozen roundings.
                assert!(
                    (loops - tensors).abs() < 64.0 * f64::from(f32::EPSILON),
                    "{loops}, {tensors}"
                );
            }
            assert!(!of_windows.contains(&loops), "windows and caps matter");
            of_windows.push(loops);
        }
    }

    #[test]
    fn steps_of_tensors_seldom_change_their_shape() {
        let device = Default::default();
        let mut cache = KvCache::<Flex>::new(1, 3, geometry(), DType::F64, &device);
        let dims = |cache: &mut KvCache<Flex>, new: &[(usize, usize)]| {
            let steps = cache.steps(new);
            steps.iter().map(Step::dims).collect::<Vec<_>>()
        };
        assert_eq!(dims(&mut cache, &[(0, 4), (2, 2)]), [[2, 3], [3, 1]]);
        assert_eq!(dims(&mut cache, &[(0, 1), (2, 1)]), [[3, 1]]);
        assert_eq!(dims(&mut cache, &[(1, 5)]), [[1, 5]]);
        assert_eq!(cache.columns(), COLUMNS);
        assert_eq!(dims(&mut cache, &[(1, COLUMNS)]), [[1, COLUMNS]]);
        assert_eq!(cache.columns(), 2 * COLUMNS);
        assert_eq!([0, 1, 2].map(|sequence| cache.tokens(sequence)), [5, 37, 3]);
    }

    #[test]
    #[should_panic(expected = "each sequence has new tokens, once")]
    fn a_sequence_comes_once() {
        let device = Default::default();
        KvCache::<Flex>::new(1, 3, geometry(), DType::F32, &device).steps(&[(1, 1), (1, 2)]);
    }
}
