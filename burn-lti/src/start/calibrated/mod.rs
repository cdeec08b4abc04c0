//! A start calculated from text: the student begins close to what its teacher computes.
//!
//! Calibration text goes through teacher and student together, layer by layer. In each layer
//!
//! 1. every head of the student is given a head of the teacher's to begin as, query and key maps one-hot
//!    (see [`HeadChoice`]);
//! 2. value and output maps are fitted by least squares, so that the attention block adds what the
//!    teacher's adds, and what brings the student's residual stream back to the teacher's;
//! 3. if asked for, the last projection of the feed-forward block is fitted to what is still missing.
//!
//! The next layer is fitted on the hidden states that the student then has. How strictly a layer is fitted
//! (a ridge, and how much of the way back it is asked to go) is chosen by tokens held out of the fit. Rows
//! are weighted by the squared attention that their tokens receive (see `importance.rs`), and by one over
//! the mean square of the teacher's stream: what follows is a norm.
//!
//! Of the text only sums are kept, in float64, and a weight a token. Hidden states wait in a file in the
//! system's folder for temporary files, one batch in memory: the student's in front of the layer, and the
//! teacher's in front of every layer, so that the teacher reads the text once.
//!
//! The idea of choosing what to keep by its reconstruction error and refitting what follows is that of
//! structured pruning (He, Zhang and Sun 2017 for channels; Frantar and Alistarh 2022 for weights).

mod error;
mod file;
mod fit;
mod heads;
mod importance;
mod moments;
mod out;
mod pairs;
mod refine;
mod select;
mod solve;
mod spectrum;
mod spill;

use std::sync::Arc;
use std::time::Instant;

use burn::data::dataloader::DataLoader;
use burn::module::AutodiffModule;
use burn::prelude::*;
use burn::tensor::backend::AutodiffBackend;
use burn::tensor::{DType, TensorData};
use faer::Mat;
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde::{Deserialize, Serialize};

pub use error::CalibrationError;
pub use file::StartFileError;
pub use refine::Refinement;
pub use select::HeadChoice;

use crate::decoder::{LayeredDecoder, LtiSpec, TokenBatch};
use crate::geometry::{Axes, Role, Site};
use crate::map::{AxisSpec, MapKind, Side, fill_up};
use crate::tensors::{TensorSet, join_name};
use fit::{Fitted, LayerFit, Span, ValueMap};
use heads::HeadCounts;
use moments::{Moments, host_matrix};
use out::{OutMap, OutValues};
use pairs::Pairs;
use spill::{Spill, Stream};

/// Every so manieth batch is held out of the fits.
const HELD_OUT: usize = 4;

/// What is calibrated, and how far.
#[derive(Clone, Debug)]
pub struct Calibration<'a> {
    /// The teacher's grids, the layers that have maps, and the maps' forms.
    pub spec: &'a LtiSpec,
    /// The student's grids.
    pub student: Axes,
    /// The most rounds in which value and output are fitted in turn. Fewer are taken where held-out
    /// tokens show no gain.
    pub rounds: usize,
    /// Whether the feed-forward blocks are fitted too.
    pub feed_forward: FeedForward,
    /// How much of the way back to the teacher's residual stream a layer may be asked to go, each from 0
    /// to 1. The best for held-out tokens is taken.
    pub strengths: Vec<f64>,
    /// How far the maps of each layer, attention patterns and all, are moved by gradient afterwards.
    pub refinement: Refinement,
    /// The most value features, those of all the teacher's heads for each of the student's query heads,
    /// with which a value map may mix the values of all the teacher's heads. Where there are more, each
    /// head keeps to the values of the one that it began as. The sums take 16 bytes a square of it.
    pub most_features: usize,
}

impl<'a> Calibration<'a> {
    /// Two rounds, feed-forward blocks as they are, at most 4,096 value features.
    pub fn new(spec: &'a LtiSpec, student: Axes) -> Self {
        Self {
            spec,
            student,
            rounds: 2,
            feed_forward: FeedForward::Keep,
            strengths: vec![1.0, 0.75, 0.5, 0.25, 0.0],
            refinement: Refinement {
                steps: 0,
                learning_rate: 3e-3,
            },
            most_features: 4096,
        }
    }
}

/// What becomes of the feed-forward blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FeedForward {
    /// They stay the teacher's.
    #[default]
    Keep,
    /// Their last projection is fitted to what is still missing behind the attention.
    Refit,
}

/// The start of a student, and how it came about.
#[derive(Clone, Debug)]
pub struct CalibratedStart<B: Backend> {
    /// The maps by the names of their tensors in the learning student (`....q_proj.a`), and the weights of
    /// the feed-forward blocks that were fitted.
    pub tensors: TensorSet<B>,
    /// A report for each layer with maps.
    pub layers: Vec<LayerReport>,
}

/// How a layer was fitted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayerReport {
    /// The layer, from 0.
    pub layer: usize,
    /// The teacher heads that the student's begin as.
    pub heads: HeadChoice,
    /// Squared distance to the target on held-out tokens, as a part of the target's squared size, with the
    /// output fitted and the values as they were.
    pub residual_of_output: f64,
    /// The same with values and output fitted in turn, and moved by gradient if that was asked for and
    /// helped. (What is kept was then fitted once more, on all tokens.)
    pub residual: f64,
    /// Rounds that were worth it.
    pub rounds: usize,
    /// Ridge of the fits, as a part of the mean diagonal; `None` where no fit was better than none.
    pub ridge: Option<f64>,
    /// How much of the way back to the teacher's residual stream the layer was asked to go, if it was
    /// fitted.
    pub strength: f64,
    /// What the feed-forward fit left of what was missing, on held-out tokens; `None` if there was none.
    pub feed_forward_residual: Option<f64>,
    /// How long the layer took.
    pub seconds: f64,
}

/// Calculates the start of the student that `student_with` makes out of map tensors by name.
///
/// `student_with` is called with a full set each time: maps that are not calculated yet are zeros.
/// `batches` is read several times and must give the same batches in the same order. `done` is told of
/// each layer.
///
/// # Errors
///
/// [`CalibrationError`].
pub fn calibrate<A, T, S, E>(
    calibration: &Calibration<'_>,
    teacher: &T,
    batches: &Arc<dyn DataLoader<A::InnerBackend, TokenBatch<A::InnerBackend>>>,
    student_with: impl Fn(&TensorSet<A::InnerBackend>) -> Result<S, E>,
    mut done: impl FnMut(&LayerReport),
) -> Result<CalibratedStart<A::InnerBackend>, CalibrationError>
where
    A: AutodiffBackend,
    T: LayeredDecoder<A::InnerBackend>,
    S: LayeredDecoder<A> + AutodiffModule<A, InnerModule: LayeredDecoder<A::InnerBackend>>,
    E: std::error::Error + Send + Sync + 'static,
{
    let student_with = |tensors: &TensorSet<A::InnerBackend>| {
        student_with(tensors).map_err(|error| CalibrationError::Student {
            source: Box::new(error),
        })
    };
    let mut walk = Walk::begin(calibration, teacher, batches)?;
    let mut student = student_with(&walk.tensors)?;
    if student.layers() != teacher.layers() {
        return Err(CalibrationError::Misfit {
            what: "layers",
            teacher: teacher.layers(),
            student: student.layers(),
        });
    }
    walk.read_text(&student.valid())?;
    let mut layers = Vec::new();
    for layer in 0..teacher.layers() {
        let began = Instant::now();
        if !calibration.spec.selects(layer) {
            walk.through_student(layer, &student.valid())?;
            continue;
        }
        let heads = walk.choose_heads(layer)?;
        walk.set_patterns(layer, &heads);
        student = student_with(&walk.tensors)?;
        let fitted = walk.fit(layer, &heads, &student.valid())?;
        walk.set_fitted(layer, &heads, &fitted)?;
        student = student_with(&walk.tensors)?;
        let [residual_of_output, mut residual] = fitted.residuals;
        let strength = fitted.firmness.strength;
        if calibration.refinement.steps > 0 {
            let moved = walk.moved(layer, &student, strength)?;
            let refined = student_with(&moved)?;
            let before = walk.held_out_residual(layer, &student.valid())?;
            let after = walk.held_out_residual(layer, &refined.valid())?;
            // Also false where it is no number.
            if after < before {
                (walk.tensors, student, residual) = (moved, refined, after);
            }
        }
        let mut feed_forward_residual = None;
        if calibration.feed_forward == FeedForward::Refit {
            feed_forward_residual = Some(walk.fit_feed_forward(layer, &student.valid())?);
            student = student_with(&walk.tensors)?;
        }
        walk.through_student(layer, &student.valid())?;
        let report = LayerReport {
            layer,
            heads,
            residual_of_output,
            residual,
            rounds: fitted.rounds,
            ridge: Some(fitted.firmness.ridge).filter(|ridge| ridge.is_finite()),
            strength,
            feed_forward_residual,
            seconds: began.elapsed().as_secs_f64(),
        };
        done(&report);
        layers.push(report);
    }
    Ok(CalibratedStart {
        tensors: walk.tensors,
        layers,
    })
}

/// Sums over the tokens that are fitted on, and over those held out.
struct Both {
    fitted: Moments,
    held_out: Moments,
}

impl Both {
    fn zeros(features: usize, d_model: usize) -> Self {
        Self {
            fitted: Moments::zeros(features, d_model),
            held_out: Moments::zeros(features, d_model),
        }
    }

    fn of_batch(&mut self, index: usize) -> &mut Moments {
        match index % HELD_OUT == HELD_OUT - 1 {
            true => &mut self.held_out,
            false => &mut self.fitted,
        }
    }
}

/// Teacher and student on their way through the layers.
struct Walk<'a, B: Backend, T: LayeredDecoder<B>> {
    calibration: &'a Calibration<'a>,
    counts: HeadCounts,
    teacher: &'a T,
    teacher_tensors: TensorSet<B>,
    batches: &'a Arc<dyn DataLoader<B, TokenBatch<B>>>,
    spill: Spill,
    /// What the rows of each batch count, `[rows, 1]`.
    importance: Vec<Tensor<B, 2>>,
    device: B::Device,
    tensors: TensorSet<B>,
}

impl<'a, B: Backend, T: LayeredDecoder<B>> Walk<'a, B, T> {
    fn begin(
        calibration: &'a Calibration<'a>,
        teacher: &'a T,
        batches: &'a Arc<dyn DataLoader<B, TokenBatch<B>>>,
    ) -> Result<Self, CalibrationError> {
        let counts = HeadCounts::of(&calibration.spec.teacher, &calibration.student)?;
        let device = teacher.devices()[0].clone();
        let teacher_tensors = TensorSet::collect(teacher);
        let dtype = teacher.head().weight.dtype();
        let mut walk = Self {
            calibration,
            counts,
            teacher,
            teacher_tensors,
            batches,
            spill: Spill::new(dtype, teacher.layers())?,
            importance: Vec::new(),
            device,
            tensors: TensorSet::new(),
        };
        for layer in walk.layers() {
            for role in Role::ATTENTION {
                let spec = walk.map_spec(role);
                spec.check_rank()?;
                let zeros = |shape: &[usize]| vec![0.0; shape.iter().product()];
                match walk.form(role) {
                    MapKind::Factored | MapKind::Kronecker(_) => {
                        let (a, b) = (zeros(&spec.a_shape()), zeros(&spec.b_shape()));
                        walk.set_factors(layer, role, a, b);
                    }
                    MapKind::General => walk.set_general(layer, role, zeros(&spec.w_shape())),
                }
            }
        }
        Ok(walk)
    }

    fn layers(&self) -> Vec<usize> {
        (0..self.teacher.layers())
            .filter(|layer| self.calibration.spec.selects(*layer))
            .collect()
    }

    /// The map along the heads of the projection in `role`.
    fn map_spec(&self, role: Role) -> AxisSpec {
        let (teacher, student) = (&self.calibration.spec.teacher, &self.calibration.student);
        AxisSpec::mapped(self.form(role), teacher.grid(role), student.grid(role))
    }

    fn form(&self, role: Role) -> MapKind {
        self.calibration.spec.maps.get(role).unwrap_or_default()
    }

    /// The form that is fitted: as many pairs as there can be make every general map, and are taken out
    /// of that in the end.
    fn fitted_form(&self, role: Role) -> MapKind {
        let AxisSpec {
            teacher, student, ..
        } = self.map_spec(role);
        match self.form(role) {
            MapKind::Kronecker(1) => MapKind::Factored,
            MapKind::Kronecker(rank) if rank == MapKind::largest_rank(teacher, student) => {
                MapKind::General
            }
            map => map,
        }
    }

    /// Has the teacher read the text once: keeps its streams in front of all layers, and finds out how
    /// much each token counts. The student's stream is put in front of the first.
    fn read_text<S: LayeredDecoder<B>>(&mut self, student: &S) -> Result<(), CalibrationError> {
        let mut tokens = 0.0;
        let mut count = 0;
        let teacher = self.teacher;
        let layers = teacher.layers();
        // Only a feed-forward fit asks for what is behind the last layer.
        let streams = match self.calibration.feed_forward {
            FeedForward::Keep => layers,
            FeedForward::Refit => layers + 1,
        };
        let batches = self.batches;
        for batch in batches.iter() {
            let context = teacher.context(&batch);
            let mut h = teacher.embed(&batch);
            let index = self.spill.add_batch(h.dims());
            let mut received = Vec::new();
            for layer in 0..streams {
                if layer > 0 {
                    h = through_layer(teacher, layer - 1, h, &context);
                }
                if layer < layers {
                    let weights = teacher.attention_weights(layer, h.clone(), &context);
                    received.push(importance::received(weights));
                }
                self.spill.write(index, Stream::Teacher(layer), h.clone())?;
            }
            self.importance.push(importance::of_rows(received));
            self.spill
                .write(index, Stream::Student, student.embed(&batch))?;
            let present = batch.segments.clone().greater_elem(0).int().sum();
            tokens += present.into_data().iter::<f64>().sum::<f64>();
            count += 1;
        }
        if tokens == 0.0 {
            return Err(CalibrationError::NoTokens);
        }
        match count >= HELD_OUT {
            true => Ok(()),
            false => Err(CalibrationError::TooLittleText {
                batches: count,
                least: HELD_OUT,
            }),
        }
    }

    /// Chooses the heads of `layer`, and keeps what the teacher's attention adds in it.
    fn choose_heads(&mut self, layer: usize) -> Result<HeadChoice, CalibrationError> {
        let geometry = self.calibration.spec.teacher;
        let mut both = Both::zeros(geometry.query.width(), geometry.d_model);
        let batches = self.batches;
        for (index, batch) in batches.iter().enumerate() {
            let context = self.teacher.context(&batch);
            let h = self.teacher_stream(index, layer)?;
            let attention = self.teacher.attention(layer, h, &context);
            self.spill.write(index, Stream::Attention, attention)?;
            let own = self.student_stream(index)?;
            let weights = self.teacher.attention_weights(layer, own.clone(), &context);
            let values = self.teacher.values(layer, own);
            let outputs = of_own_values(weights, values, geometry.key_value.heads);
            let rows = self.rows(index, layer, &batch)?;
            both.of_batch(index).add(
                rows.weigh(outputs),
                rows.weigh(rows.attention.clone()),
                rows.weigh(rows.drift.clone()),
            )?;
        }
        let moments = both.fitted.plus(&both.held_out);
        select::choose(&moments, &self.counts)
    }

    /// Fits value and output of `layer` on the student's own patterns.
    fn fit<S: LayeredDecoder<B>>(
        &mut self,
        layer: usize,
        heads: &HeadChoice,
        student: &S,
    ) -> Result<Fitted, CalibrationError> {
        let geometry = self.calibration.spec.teacher;
        let grid = self.calibration.student.query;
        let all = geometry.key_value.width();
        let (span, width) = match grid.heads * all <= self.calibration.most_features {
            true => (Span::All, all),
            false => (Span::Own, geometry.key_value.head_dim),
        };
        let mut both = Both::zeros(grid.heads * width, geometry.d_model);
        let batches = self.batches;
        for (index, batch) in batches.iter().enumerate() {
            let h = self.student_stream(index)?;
            let context = student.context(&batch);
            let weights = student.attention_weights(layer, h.clone(), &context);
            let values = self.teacher.values(layer, h);
            let features = match span {
                Span::All => of_all_values(weights, values),
                Span::Own => {
                    let values = of_heads(values, geometry.key_value.heads, &heads.key_value);
                    of_own_values(weights, values, heads.key_value.len())
                }
            };
            let rows = self.rows(index, layer, &batch)?;
            both.of_batch(index).add(
                rows.weigh(features),
                rows.weigh(rows.attention.clone()),
                rows.weigh(rows.drift.clone()),
            )?;
        }
        let name = self.site_name(layer, Role::Out);
        let kernel = self.teacher_weight(&name, geometry.query.width())?;
        let head_dims = [geometry.query.head_dim, grid.head_dim];
        let form = self.fitted_form(Role::Out);
        let out = OutMap::new(form, self.counts, head_dims, &heads.query, kernel)?;
        LayerFit {
            heads: self.counts,
            key_value: &heads.key_value,
            t_head_dim: geometry.key_value.head_dim,
            s_head_dim: grid.head_dim,
            span,
            value: self.fitted_form(Role::Value),
            out: &out,
            fitted: &both.fitted,
            held_out: &both.held_out,
        }
        .run(&self.calibration.strengths, self.calibration.rounds)
    }

    /// Fits the last projection of the feed-forward block to what is missing behind the attention.
    fn fit_feed_forward<S: LayeredDecoder<B>>(
        &mut self,
        layer: usize,
        student: &S,
    ) -> Result<f64, CalibrationError> {
        let d_model = self.calibration.spec.teacher.d_model;
        let mut both: Option<Both> = None;
        let batches = self.batches;
        for (index, batch) in batches.iter().enumerate() {
            let h = self.student_stream(index)?;
            let context = student.context(&batch);
            let behind = h.clone() + student.attention(layer, h, &context);
            let features = flat(student.feed_forward_features(layer, behind.clone()));
            let next = self.teacher_stream(index, layer + 1)?;
            let there = behind.clone() + student.feed_forward(layer, behind);
            let missing = flat(next).cast(DType::F32) - flat(there).cast(DType::F32);
            let rows = self.rows(index, layer, &batch)?;
            let nothing = missing.zeros_like();
            both.get_or_insert_with(|| Both::zeros(features.dims()[1], d_model))
                .of_batch(index)
                .add(
                    rows.weigh(features.cast(DType::F32)),
                    rows.weigh(missing),
                    nothing,
                )?;
        }
        let both = both.ok_or(CalibrationError::NoTokens)?;
        let name = self.site_name(layer, Role::Down);
        let (residual, ridge) = [1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0]
            .into_iter()
            // A ridge too little for the rounding of the sums is passed over.
            .filter_map(|ridge| {
                let change =
                    solve::ridge(&both.fitted.gram, &both.fitted.cross(1.0), ridge).ok()?;
                Some((both.held_out.residual(&change), ridge))
            })
            .min_by(|a, b| a.0.total_cmp(&b.0))
            .unwrap_or((1.0, 1.0));
        // What does not help on other tokens is left alone.
        if residual < 1.0 {
            let all = both.fitted.plus(&both.held_out);
            let change = solve::ridge(&all.gram, &all.cross(1.0), ridge)?;
            let weight = self.teacher_weight(&name, change.nrows())? + change;
            let shape = [weight.nrows(), weight.ncols()];
            let tensor = Tensor::<B, 2>::from_data(
                TensorData::new(row_major(&weight), shape),
                (&self.device, self.spill_dtype()),
            );
            let name = join_name(&name, "weight");
            self.tensors.insert(&name, "Linear", tensor);
        }
        Ok(residual.min(1.0))
    }

    /// Takes the student's stream through `layer`.
    fn through_student<S: LayeredDecoder<B>>(
        &mut self,
        layer: usize,
        student: &S,
    ) -> Result<(), CalibrationError> {
        let batches = self.batches;
        for (index, batch) in batches.iter().enumerate() {
            let h = self.student_stream(index)?;
            let context = student.context(&batch);
            let next = through_layer(student, layer, h, &context);
            self.spill.write(index, Stream::Student, next)?;
        }
        Ok(())
    }

    /// Query and key maps that make each head one of the teacher's.
    fn set_patterns(&mut self, layer: usize, heads: &HeadChoice) {
        let features = self
            .teacher
            .query_key_features(self.calibration.student.query.head_dim);
        let spec = self.map_spec(Role::Query);
        // Scores are divided by the root of the head size.
        let ratio = spec.student.head_dim as f64 / spec.teacher.head_dim as f64;
        for (role, chosen, scale) in [
            (Role::Query, &heads.query, ratio.sqrt()),
            (Role::Key, &heads.key_value, 1.0),
        ] {
            let spec = self.map_spec(role);
            let s_heads = spec.student.heads;
            let mut a = vec![0.0; spec.teacher.heads * s_heads];
            for (student, teacher) in chosen.iter().enumerate() {
                a[teacher * s_heads + student] = scale as f32;
            }
            let (y, v) = (spec.teacher.head_dim, spec.student.head_dim);
            let mut b = vec![0.0; y * v];
            for (student, teacher) in features.iter().enumerate() {
                // Where a larger head has no feature to begin as, its query has none, which leaves the
                // scores alone, and its key has one, so that the query can learn to use it.
                let nothing = (role == Role::Key).then_some(student % y);
                if let Some(teacher) = teacher.or(nothing) {
                    b[teacher * v + student] = 1.0;
                }
            }
            match self.form(role) {
                MapKind::Factored | MapKind::Kronecker(_) => self.set_factors(layer, role, a, b),
                MapKind::General => self.set_general(layer, role, outer_product(&spec, &a, &b)),
            }
        }
    }

    fn set_fitted(
        &mut self,
        layer: usize,
        heads: &HeadChoice,
        fitted: &Fitted,
    ) -> Result<(), CalibrationError> {
        let spec = self.map_spec(Role::Value);
        let (t_heads, y) = (spec.teacher.heads, spec.teacher.head_dim);
        let s_heads = spec.student.heads;
        match &fitted.value {
            ValueMap::General(blocks) => {
                let joined = pairs::joined(blocks);
                let v = spec.student.head_dim;
                // Own values alone, or those of all heads.
                let whole = match joined.nrows() == y {
                    true => Mat::from_fn(t_heads * y, s_heads * v, |row, column| {
                        match heads.key_value[column / v] == row / y {
                            true => joined[(row % y, column)],
                            false => 0.0,
                        }
                    }),
                    false => joined,
                };
                self.set_map(layer, Role::Value, &whole)?;
            }
            ValueMap::Factored { a, b } => {
                let own_alone = a.nrows() == 1;
                let mut whole = vec![0.0; t_heads * s_heads];
                for head in 0..s_heads {
                    for row in 0..a.nrows() {
                        let teacher = if own_alone {
                            heads.key_value[head]
                        } else {
                            row
                        };
                        whole[teacher * s_heads + head] = a[(row, head)] as f32;
                    }
                }
                self.set_factors(layer, Role::Value, whole, row_major(b));
            }
            ValueMap::Pairs(pairs) => {
                let pairs = match pairs.heads() == t_heads {
                    true => pairs.clone(),
                    false => pairs.placed(t_heads, &heads.key_value),
                };
                self.set_pairs(layer, Role::Value, &pairs);
            }
        }
        match &fitted.out.values {
            OutValues::General(w) => self.set_map(layer, Role::Out, w)?,
            OutValues::Factored { a, b } => {
                let turned = b.transpose().to_owned();
                self.set_factors(layer, Role::Out, row_major(a), row_major(&turned));
            }
            OutValues::Pairs(pairs) => self.set_pairs(layer, Role::Out, pairs),
        }
        Ok(())
    }

    /// `w [t_heads * t_head_dim, s_heads * s_head_dim]` in the map's own form, which can express it.
    fn set_map(&mut self, layer: usize, role: Role, w: &Mat<f64>) -> Result<(), CalibrationError> {
        let spec = self.map_spec(role);
        match self.form(role).pairs() {
            None => self.set_general(layer, role, row_major(w)),
            Some(rank) => {
                let head_sizes = [spec.teacher.head_dim, spec.student.head_dim];
                self.set_pairs(layer, role, &Pairs::nearest(w, head_sizes, rank)?);
            }
        }
        Ok(())
    }

    fn set_pairs(&mut self, layer: usize, role: Role, pairs: &Pairs) {
        let (a, b) = pairs.host();
        self.set_factors(layer, role, a, b);
    }

    /// `a` and `b` of one or more pairs. Those that the map has beyond them add nothing yet.
    fn set_factors(&mut self, layer: usize, role: Role, mut a: Vec<f32>, mut b: Vec<f32>) {
        let spec = self.map_spec(role);
        let seed = Site::new(layer, role).seed(self.calibration.spec.seed);
        fill_up(&spec, &mut a, &mut b, &mut StdRng::seed_from_u64(seed));
        self.set(layer, role, "a", TensorData::new(a, spec.a_shape()));
        self.set(layer, role, "b", TensorData::new(b, spec.b_shape()));
    }

    /// The name of the weight at that site; empty where the decoder has none.
    fn site_name(&self, layer: usize, role: Role) -> String {
        let name = self.teacher.site_name(Site::new(layer, role));
        name.unwrap_or_default()
    }

    fn set_general(&mut self, layer: usize, role: Role, w: Vec<f32>) {
        let shape = self.map_spec(role).w_shape();
        self.set(layer, role, "w", TensorData::new(w, shape));
    }

    fn set(&mut self, layer: usize, role: Role, leaf: &str, data: TensorData) {
        let side = match role {
            Role::Out => Side::Left,
            _ => Side::Right,
        };
        let name = format!("{}.{}.{leaf}", self.site_name(layer, role), side.name());
        let tensor = Tensor::<B, 2>::from_data(data, (&self.device, DType::F32));
        self.tensors.insert(&name, "AxisMap", tensor);
    }

    /// The weight of a `Linear` of the teacher's, as Burn keeps it, with `rows` inputs.
    fn teacher_weight(&self, name: &str, rows: usize) -> Result<Mat<f64>, CalibrationError> {
        let weight = join_name(name, "weight");
        let Some(named) = self.teacher_tensors.get(&weight) else {
            return Err(CalibrationError::NoWeight { name: weight });
        };
        let elements = named.tensor.num_elements();
        host_matrix(named.tensor.to_rank::<1>([elements]), rows)
    }

    fn spill_dtype(&self) -> DType {
        self.teacher.head().weight.dtype()
    }

    fn teacher_stream(
        &mut self,
        batch: usize,
        layer: usize,
    ) -> Result<Tensor<B, 3>, CalibrationError> {
        self.spill.read(batch, Stream::Teacher(layer), &self.device)
    }

    fn student_stream(&mut self, batch: usize) -> Result<Tensor<B, 3>, CalibrationError> {
        self.spill.read(batch, Stream::Student, &self.device)
    }

    /// The targets of a batch in front of `layer`, and the weights of its rows.
    fn rows(
        &mut self,
        index: usize,
        layer: usize,
        batch: &TokenBatch<B>,
    ) -> Result<Rows<B>, CalibrationError> {
        let float = |tensor: Tensor<B, 3>| flat(tensor).cast(DType::F32);
        let teacher = float(self.teacher_stream(index, layer)?);
        let student = float(self.student_stream(index)?);
        let attention = self
            .spill
            .read::<B>(index, Stream::Attention, &self.device)?;
        let attention = float(attention);
        let bias = self.site_name(layer, Role::Out);
        let bias = self.teacher_tensors.get(&join_name(&bias, "bias"));
        let [rows, _] = teacher.dims();
        let size = (teacher.clone() + attention.clone())
            .powi_scalar(2)
            .mean_dim(1)
            .add_scalar(f32::MIN_POSITIVE);
        let present = batch.segments.clone().greater_elem(0).float();
        let present = present.reshape([rows, 1]).cast(DType::F32);
        let root = present * (self.importance[index].clone() / size).sqrt();
        // The student has the same bias behind its output.
        let [_, width] = attention.dims();
        let bias = match bias {
            Some(bias) => bias.tensor.to_rank([1, width]).cast(DType::F32),
            None => Tensor::zeros([1, width], (&self.device, DType::F32)),
        };
        Ok(Rows {
            drift: teacher - student,
            attention: attention - bias.clone(),
            bias,
            root,
        })
    }
}

/// The targets of a batch's tokens, `[rows, d_model]`, and the root of each row's weight, `[rows, 1]`.
struct Rows<B: Backend> {
    /// Without the output's bias.
    attention: Tensor<B, 2>,
    /// The output's bias, `[1, d_model]`.
    bias: Tensor<B, 2>,
    drift: Tensor<B, 2>,
    root: Tensor<B, 2>,
}

impl<B: Backend> Rows<B> {
    fn weigh(&self, rows: Tensor<B, 2>) -> Tensor<B, 2> {
        rows.cast(DType::F32) * self.root.clone()
    }
}

/// The residual stream behind `layer`; `h` is the one in front of it.
fn through_layer<B: Backend, D: LayeredDecoder<B>>(
    decoder: &D,
    layer: usize,
    h: Tensor<B, 3>,
    context: &D::Context,
) -> Tensor<B, 3> {
    let behind = h.clone() + decoder.attention(layer, h, context);
    behind.clone() + decoder.feed_forward(layer, behind)
}

/// `[batch, tokens, width] -> [batch * tokens, width]`
fn flat<B: Backend>(h: Tensor<B, 3>) -> Tensor<B, 2> {
    let [batch, tokens, width] = h.dims();
    h.reshape([batch * tokens, width])
}

/// The values of these heads, in their order: `[batch, tokens, heads * head_dim]`.
fn of_heads<B: Backend>(values: Tensor<B, 3>, heads: usize, chosen: &[usize]) -> Tensor<B, 3> {
    let size = values.dims()[2] / heads;
    let parts = chosen
        .iter()
        .map(|head| values.clone().narrow(2, head * size, size));
    Tensor::cat(parts.collect(), 2)
}

/// What each head makes of the values of its group: `weights [batch, heads, tokens, tokens]` and
/// `values [batch, tokens, groups * head_dim] -> [batch * tokens, heads * head_dim]`.
fn of_own_values<B: Backend>(
    weights: Tensor<B, 4>,
    values: Tensor<B, 3>,
    groups: usize,
) -> Tensor<B, 2> {
    let [batch, heads, tokens, _] = weights.dims();
    let size = values.dims()[2] / groups;
    let (weights, values) = (weights.cast(DType::F32), values.cast(DType::F32));
    let values = values
        .reshape([batch, tokens, groups, size])
        .swap_dims(1, 2);
    weights
        .reshape([batch, groups, heads / groups * tokens, tokens])
        .matmul(values)
        .reshape([batch, heads, tokens, size])
        .swap_dims(1, 2)
        .reshape([batch * tokens, heads * size])
}

/// What each head makes of all values: `weights [batch, heads, tokens, tokens]` and
/// `values [batch, tokens, width] -> [batch * tokens, heads * width]`.
fn of_all_values<B: Backend>(weights: Tensor<B, 4>, values: Tensor<B, 3>) -> Tensor<B, 2> {
    let [batch, heads, tokens, _] = weights.dims();
    let width = values.dims()[2];
    let (weights, values) = (weights.cast(DType::F32), values.cast(DType::F32));
    weights
        .reshape([batch, heads * tokens, tokens])
        .matmul(values)
        .reshape([batch, heads, tokens, width])
        .swap_dims(1, 2)
        .reshape([batch * tokens, heads * width])
}

fn row_major(matrix: &Mat<f64>) -> Vec<f32> {
    let rows = 0..matrix.nrows();
    rows.flat_map(|row| (0..matrix.ncols()).map(move |column| matrix[(row, column)] as f32))
        .collect()
}

/// `W[xy,uv] = A[x,u] B[y,v]`
fn outer_product(spec: &AxisSpec, a: &[f32], b: &[f32]) -> Vec<f32> {
    let (y, u, v) = (
        spec.teacher.head_dim,
        spec.student.heads,
        spec.student.head_dim,
    );
    let mut w = vec![0.0; spec.teacher.width() * u * v];
    for (index, value) in w.iter_mut().enumerate() {
        let (column, rest) = (index % v, index / v);
        let (student, rest) = (rest % u, rest / u);
        let (row, teacher) = (rest % y, rest / y);
        *value = a[teacher * u + student] * b[row * v + column];
    }
    w
}
