//! Teacher and student on their way through the layers: the steps that calibrate one.

use std::sync::Arc;
use std::time::Instant;

use burn::data::dataloader::DataLoader;
use burn::module::AutodiffModule;
use burn::prelude::*;
use burn::tensor::backend::AutodiffBackend;
use faer::Mat;

use super::error::{CalibrationError, Result};
use super::even::even;
use super::features::{of_all_values, of_groups, of_own_values};
use super::fit::{Fitted, LayerFit};
use super::gated::Gated;
use super::heads::{HeadChoice, HeadCounts};
use super::map_tensors::MapTensors;
use super::map_values::MapValues;
use super::merge::{QueryKeys, Turns};
use super::out::OutMap;
use super::regularization::Regularization;
use super::report::{FittedOn, LayerReport};
use super::settings::{Blocks, Budget, Calibration, FeedForward};
use super::split::SplitMoments;
use super::stream::StreamGram;
use super::student::Student;
use super::teacher::site_name;
use super::text::{InputGrams, Text};
use super::value_features::{Span, ValueFeatures};
use super::{align, feed_forward, gated, narrow, patterns, refine, select, units};
use crate::decoder::{LayeredDecoder, TokenBatch};
use crate::geometry::{Role, Site};
use crate::map::MapKind;
use crate::tensors::TensorSet;

/// What is left of layers, blocks and streams can make up for what is gone only where all of it is fitted.
fn check_shape<B: Backend>(
    calibration: &Calibration<'_>,
    teacher: &impl LayeredDecoder<B>,
    [narrows, refits]: [bool; 2],
) -> Result<()> {
    let layers = teacher.layers();
    let refused = |what: String| Err(CalibrationError::Refused(what));
    if let Some(kept) = &calibration.kept {
        let is_ascending = kept.is_sorted_by(|a, b| a < b);
        if !is_ascending || kept.last().is_none_or(|last| *last >= layers) {
            return refused(format!(
                "a student cannot keep layers {kept:?} of the teacher's {layers}: name them ascending, none twice, at \
                 least one"
            ));
        }
    }
    if calibration.spec.maps.width().is_some() {
        return refused(
            "the width of the residual stream has maps, and a start fits weights there: leave them out of the spec that is \
             calibrated with, and make its maps of the fitted weights by with_maps_of_width"
                .to_owned(),
        );
    }
    let is_mapped = |role: &Role| !Role::ATTENTION.contains(role);
    if let Some(role) = calibration.spec.maps.roles().find(is_mapped) {
        return refused(format!(
            "the {role} projection has a map, and a start fits weights there: leave it out of the spec that is \
             calibrated with, and make its map of the fitted weight by with_maps_of_blocks"
        ));
    }
    let shrinks = narrows || calibration.cuts_units() || calibration.kept.is_some();
    let count = calibration.kept.as_ref().map_or(layers, Vec::len);
    if shrinks && !(0..count).all(|layer| calibration.spec.selects(layer)) {
        return refused(
            "layers, units or features are left out, which changes all layers, and not all are calibrated: select all"
                .to_owned(),
        );
    }
    match refits && teacher.attention_output_gain(0).is_some() {
        true => refused(
            "feed-forward blocks are to be fitted, and the teacher norms what they put out, through which they cannot \
             be: keep all layers and units, the width, and the blocks as they are"
                .to_owned(),
        ),
        false => Ok(()),
    }
}

/// How the feed-forward block of a layer came about.
#[derive(Default)]
struct BlockReport {
    residual: Option<f64>,
    units: Option<Vec<usize>>,
}

impl BlockReport {
    const fn fitted(residual: f64, units: Option<Vec<usize>>) -> Self {
        Self {
            residual: Some(residual),
            units,
        }
    }
}

/// How often up and gate of a feed-forward block that has to do more are fitted in turn.
const ROUNDS: usize = 2;

/// What the steps of all layers share.
pub(super) struct Walk<'a, B: Backend, T> {
    pub(super) calibration: &'a Calibration<'a>,
    pub(super) counts: HeadCounts,
    pub(super) maps: MapTensors<'a, B>,
    pub(super) text: Text<'a, B, T>,
    /// Whether the student's stream is another than the teacher's.
    narrows: bool,
    /// Whether feed-forward blocks are fitted.
    refits: bool,
}

impl<'a, B: Backend, T: LayeredDecoder<B>> Walk<'a, B, T> {
    /// Makes the student, and has the teacher read the text.
    pub(super) fn begin<A, S, E>(
        calibration: &'a Calibration<'a>,
        teacher: &'a T,
        batches: &'a Arc<dyn DataLoader<B, TokenBatch<B>>>,
        student_with: impl FnOnce(&TensorSet<B>) -> Result<S, E>,
    ) -> Result<(Self, Student<A, S>)>
    where
        A: AutodiffBackend<InnerBackend = B>,
        S: LayeredDecoder<A> + AutodiffModule<A, InnerModule: LayeredDecoder<B>>,
        E: std::error::Error + Send + Sync + 'static,
    {
        let spec = calibration.spec;
        let counts = HeadCounts::of(&spec.teacher, &calibration.student)?;
        let t_width = teacher.head().weight.dims()[0];
        let narrows = calibration.narrows(t_width, teacher.site_name(Site::HEAD).is_none());
        let fits = calibration.feed_forward == FeedForward::Refit || calibration.kept.is_some();
        let refits =
            calibration.cuts_units() || narrows || (fits && calibration.blocks == Blocks::Fitted);
        check_shape(calibration, teacher, [narrows, refits])?;
        let maps = MapTensors {
            spec,
            student: &calibration.student,
            device: teacher.devices()[0].clone(),
        };
        let mut start = TensorSet::new();
        let layers = calibration.kept.as_ref().map_or(teacher.layers(), Vec::len);
        for layer in (0..layers).filter(|layer| spec.selects(*layer)) {
            for role in Role::ATTENTION {
                let name = site_name(teacher, layer, role)?;
                maps.add_placeholder(&mut start, Site::new(layer, role), &name)?;
            }
        }
        if calibration.cuts_units() {
            units::add_placeholders(&mut start, teacher, calibration, layers)?;
        }
        let mut states = narrows.then(|| StreamGram::zeros(t_width));
        let mut text = Text::read(teacher, calibration, batches, refits, states.as_mut())?;
        if let Some(states) = states {
            let gradients = calibration.gradients.as_ref().map(|it| &it.0);
            let count = calibration.student.d_model;
            let basis = states.basis(gradients, count, &maps.device)?;
            text.set_basis(basis);
        }
        let own = text.by_own_names(&text.tensors.0)?;
        let narrow = match narrows {
            true => {
                let narrow = narrow::first(&mut text, calibration.ties_head)?;
                let by_own = text.by_own_names(&narrow)?;
                text.narrowed(&narrow);
                by_own
            }
            false => TensorSet::new(),
        };
        // Units are fewer than those of the teacher at the student's width.
        let start = narrow.with(&start);
        let student = student_with(&start).map_err(CalibrationError::student)?;
        if student.layers() != layers {
            return Err(CalibrationError::misfit("layers", layers, student.layers()));
        }
        let student = Student::new(student, start, &own);
        text.begin(&student.valid())?;
        let walk = Self {
            calibration,
            counts,
            maps,
            text,
            narrows,
            refits,
        };
        Ok((walk, student))
    }

    /// The student with the start of `layer`, and how it came about.
    pub(super) fn calibrated<A, S>(
        &mut self,
        layer: usize,
        student: Student<A, S>,
    ) -> Result<(Student<A, S>, LayerReport)>
    where
        A: AutodiffBackend<InnerBackend = B>,
        S: LayeredDecoder<A> + AutodiffModule<A, InnerModule: LayeredDecoder<B>>,
    {
        let began = Instant::now();
        self.text.keep_attention(layer)?;
        let student = match self.narrows {
            true => {
                let valid = student.valid();
                let own = narrow::attention(&mut self.text, layer, &valid)?;
                student.filled(&own)?
            }
            false => student,
        };
        let inputs = match self.merges(layer) {
            true => Some(self.text.attention_grams(layer)?),
            false => None,
        };
        let (heads, turns) = self.choose_heads(layer, inputs.as_ref())?;
        let mut student = student.filled(&self.patterns(layer, &heads, &turns)?)?;
        let features = self.value_features(&heads);
        let fitted = self.fit(layer, &heads, features, &student.valid(), inputs.as_ref())?;
        let [residual_of_output, mut residual] = fitted.residuals;
        let Regularization { ridge, strength } = fitted.regularization;
        let rounds = fitted.rounds;
        let (maps, uneven) = self.fitted_maps(layer, features, fitted, inputs.as_ref())?;
        student = student.filled(&maps)?;
        let refinement = self.calibration.refinement;
        if refinement.steps > 0 {
            let text = &mut self.text;
            let moved = refine::moved(text, layer, &student.module, strength, refinement)?;
            let refined = student.clone().filled(&moved)?;
            let before = refine::held_out_residual(text, layer, &student.valid())?;
            let after = refine::held_out_residual(text, layer, &refined.valid())?;
            // Also false where it is no number.
            if after < before {
                (student, residual) = (refined, after);
            }
        }
        let (student, block) = self.with_feed_forward(layer, student)?;
        self.text.advance(layer, &student.valid())?;
        let report = LayerReport {
            layer,
            heads,
            stream: match self.text.propagates() {
                true => FittedOn::Student,
                false => FittedOn::Teacher,
            },
            value: self.maps.fitted_form(Site::new(layer, Role::Value)),
            out: self.maps.fitted_form(Site::new(layer, Role::Out)),
            residual_of_output,
            residual,
            rounds,
            ridge: Some(ridge).filter(|ridge| ridge.is_finite()),
            strength,
            uneven,
            feed_forward_residual: block.residual,
            units: block.units,
            seconds: began.elapsed().as_secs_f64(),
        };
        Ok((student, report))
    }

    /// The student with the feed-forward block of `layer` fitted, if it is to be, and how that went.
    fn with_feed_forward<A, S>(
        &mut self,
        layer: usize,
        mut student: Student<A, S>,
    ) -> Result<(Student<A, S>, BlockReport)>
    where
        A: AutodiffBackend<InnerBackend = B>,
        S: LayeredDecoder<A> + AutodiffModule<A, InnerModule: LayeredDecoder<B>>,
    {
        let calibration = self.calibration;
        if !self.refits {
            return Ok((student, BlockReport::default()));
        }
        let text = &mut self.text;
        let shrinks = self.narrows || calibration.cuts_units() || calibration.kept.is_some();
        if self.narrows {
            let own = narrow::feed_forward(text, layer, &student.valid())?;
            if !calibration.cuts_units() {
                student = student.filled(&own)?;
            }
        }
        if !shrinks {
            let (left, changed) = feed_forward::refit(text, layer, &student.valid())?;
            return Ok((student.filled(&changed)?, BlockReport::fitted(left, None)));
        }
        let mut units = None;
        if calibration.cuts_units() {
            let (kept, tensors) = units::chosen(text, layer, &student.valid(), calibration)?;
            (student, units) = (student.filled(&tensors)?, Some(kept));
        }
        if calibration.blocks == Blocks::Picked {
            let report = BlockReport {
                residual: None,
                units,
            };
            return Ok((student, report));
        }
        let first = gated::held_out_missing(text, layer, &student.valid())?;
        let mut left = first;
        for gated in [Gated::Up, Gated::Gate].repeat(ROUNDS) {
            let (_, changed) = feed_forward::refit(text, layer, &student.valid())?;
            student = student.filled(&changed)?;
            left = gated::held_out_missing(text, layer, &student.valid())?;
            if let Some(moved) = gated::moved(text, layer, &student.valid(), gated)? {
                let changed = student.clone().filled(&moved)?;
                let after = gated::held_out_missing(text, layer, &changed.valid())?;
                // Also false where it is no number.
                if after < left {
                    (student, left) = (changed, after);
                }
            }
        }
        let (of_left, changed) = feed_forward::refit(text, layer, &student.valid())?;
        let residual = of_left * left / first.max(f64::MIN_POSITIVE);
        Ok((
            student.filled(&changed)?,
            BlockReport::fitted(residual, units),
        ))
    }

    /// The student with its head fitted, if its stream is another than the teacher's.
    pub(super) fn with_head<A, S>(&mut self, student: Student<A, S>) -> Result<Student<A, S>>
    where
        A: AutodiffBackend<InnerBackend = B>,
        S: LayeredDecoder<A> + AutodiffModule<A, InnerModule: LayeredDecoder<B>>,
    {
        match self.narrows {
            true => {
                let own = narrow::head(&mut self.text, &student.valid())?;
                student.filled(&own)
            }
            false => Ok(student),
        }
    }

    /// Whether key/value heads of the teacher are merged in `layer`: where more of its query heads can be kept so, and the
    /// maps can turn them.
    fn merges(&self, layer: usize) -> bool {
        let (teacher, student) = (self.calibration.spec.teacher, self.calibration.student);
        let form = |role| self.maps.fitted_form(Site::new(layer, role));
        let is_general = |role| form(role) == MapKind::General;
        self.text.teacher.mixes_heads()
            && self.counts.gain_by_merging()
            && student.query.head_dim <= teacher.query.head_dim
            && Role::ATTENTION.into_iter().all(is_general)
    }

    /// The heads of the teacher that those of `layer` begin as, and how those that are merged are turned.
    fn choose_heads(
        &mut self,
        layer: usize,
        inputs: Option<&InputGrams>,
    ) -> Result<(HeadChoice, Vec<Turns>)> {
        let Some(inputs) = inputs else {
            let choice = select::choose(&self.own_moments(layer)?.all(), &self.counts)?;
            return Ok((choice, Vec::new()));
        };
        let stats = self.query_keys(layer, inputs)?;
        let groups = stats.groups()?;
        let query = match self.counts.kept_of(&groups) == self.counts.t_query {
            true => {
                let own = |group: &Vec<usize>| {
                    let own = group.iter().flat_map(|head| self.counts.own(*head));
                    own.collect()
                };
                groups.iter().map(own).collect()
            }
            false => select::of_groups(&self.own_moments(layer)?.all(), &self.counts, &groups)?,
        };
        let turns = groups.iter().zip(&query);
        let turns = turns.map(|(group, readers)| stats.turns(group, readers));
        let turns = turns.collect::<Result<_>>()?;
        Ok((self.counts.merged(groups, query), turns))
    }

    /// Moments of the teacher's head outputs, each with its own values.
    fn own_moments(&mut self, layer: usize) -> Result<SplitMoments> {
        let axes = self.calibration.spec.teacher;
        let (teacher, source) = (self.text.at_width(), self.text.source(layer));
        self.text.moments(layer, axes.query.width(), |batch, h| {
            let context = teacher.context(batch);
            let weights = teacher.attention_weights(source, h.clone(), &context);
            of_own_values(weights, teacher.values(source, h), axes.key_value.heads)
        })
    }

    /// What the teacher's queries and keys are on the student's stream, before positions turn them.
    fn query_keys(&self, layer: usize, inputs: &InputGrams) -> Result<QueryKeys> {
        let axes = self.calibration.spec.teacher;
        let kernel = |role, width| {
            let name = self.text.source_name(layer, role)?;
            self.text.tensors.weight(&name, width)
        };
        let query = kernel(Role::Query, axes.query.width())?;
        let key = kernel(Role::Key, axes.key_value.width())?;
        let of_query = &inputs.even * &query;
        let square = |feature: usize| query.col(feature).transpose() * of_query.col(feature);
        Ok(QueryKeys {
            heads: self.counts,
            head_dim: axes.key_value.head_dim,
            pairs: self.text.teacher.rotary_pairs(),
            keys: key.transpose() * &inputs.by_importance * &key,
            queries: (0..query.ncols()).map(square).collect(),
        })
    }

    /// Second moments of the teacher's values on the student's stream.
    fn value_gram(&self, layer: usize, inputs: &InputGrams) -> Result<Mat<f64>> {
        let name = self.text.source_name(layer, Role::Value)?;
        let width = self.calibration.spec.teacher.key_value.width();
        let kernel = self.text.tensors.weight(&name, width)?;
        Ok(kernel.transpose() * &inputs.even * &kernel)
    }

    /// Query and key maps that make each head one of the teacher's, or as near to it as a merged key allows.
    fn patterns(&self, layer: usize, heads: &HeadChoice, turns: &[Turns]) -> Result<TensorSet<B>> {
        let axes = self.calibration.spec.teacher;
        let teacher = self.text.teacher;
        let features = teacher.query_key_features(self.calibration.student.query.head_dim);
        let [query, key] = match turns {
            [] => {
                let rotary = self.maps.map_spec(Site::new(layer, Role::Key)).rotary();
                // A pair that reads features again reads both of a pair, to be turned as one.
                let others = rotary.map_or_else(
                    || {
                        (0..features.len())
                            .map(|feature| feature % axes.key_value.head_dim)
                            .collect()
                    },
                    |shape| shape.nearest_features(),
                );
                let own: Vec<usize> = heads.key_value.iter().map(|heads| heads[0]).collect();
                [
                    patterns::query(axes.query, &heads.query, &features),
                    patterns::key(axes.key_value, &own, &features, &others),
                ]
            }
            turns => {
                let (group, pairs) = (self.counts.t_group(), teacher.rotary_pairs());
                patterns::merged(axes.query, group, heads, turns, &pairs, &features)
            }
        };
        self.tensors(layer, [(Role::Query, query), (Role::Key, key)])
    }

    fn value_features<'h>(&self, heads: &'h HeadChoice) -> ValueFeatures<'h> {
        let t_values = self.calibration.spec.teacher.key_value;
        let grid = self.calibration.student.query;
        ValueFeatures {
            heads: self.counts,
            query: &heads.query,
            key_value: &heads.key_value,
            t_head_dim: t_values.head_dim,
            s_head_dim: grid.head_dim,
            span: match grid.heads * t_values.width() <= self.calibration.most_features {
                true => Span::All,
                false => Span::Own,
            },
        }
    }

    /// Fits value and output of `layer` on the student's own patterns.
    fn fit(
        &mut self,
        layer: usize,
        heads: &HeadChoice,
        features: ValueFeatures<'_>,
        student: &impl LayeredDecoder<B>,
        inputs: Option<&InputGrams>,
    ) -> Result<Fitted> {
        let (teacher, source) = (self.text.at_width(), self.text.source(layer));
        let aligned = match inputs {
            Some(inputs) if features.s_head_dim == features.t_head_dim => {
                let gram = self.value_gram(layer, inputs)?;
                let members = features.key_value.iter();
                let turns = members.map(|own| align::turns(&gram, own, features.t_head_dim));
                Some(turns.collect::<Result<Vec<_>>>()?)
            }
            _ => None,
        };
        let count = self.counts.s_query * features.count();
        let moments = self.text.moments(layer, count, |batch, h| {
            let context = student.context(batch);
            let weights = student.attention_weights(layer, h.clone(), &context);
            let values = teacher.values(source, h);
            match features.span {
                Span::All => of_all_values(weights, values),
                Span::Own => {
                    let values = of_groups(values, self.counts.t_key_value, features.key_value);
                    of_own_values(weights, values, features.key_value.len())
                }
            }
        })?;
        let name = self.text.source_name(layer, Role::Out)?;
        let kernel = self.text.tensors.weight(&name, self.text.d_model)?;
        let form = self.maps.fitted_form(Site::new(layer, Role::Out));
        let head_dims = [
            self.calibration.spec.teacher.query.head_dim,
            features.s_head_dim,
        ];
        let out = OutMap::new(form, self.counts, head_dims, &heads.query, kernel)?;
        LayerFit {
            features,
            value: self.maps.fitted_form(Site::new(layer, Role::Value)),
            out: &out,
            moments: &moments,
            // Values are means, and what reads them is the teacher's, turned.
            keeps_first: aligned.is_some() && self.calibration.budget == Budget::Long,
            aligned: aligned.as_deref(),
        }
        .run(&self.calibration.strengths, self.calibration.rounds)
    }

    /// The maps of value and out, and how uneven the values of merged heads were before they were made even.
    fn fitted_maps(
        &self,
        layer: usize,
        features: ValueFeatures<'_>,
        fitted: Fitted,
        inputs: Option<&InputGrams>,
    ) -> Result<(TensorSet<B>, Option<f64>)> {
        let mut value = fitted.value.over_all_heads(&features);
        let mut out = fitted.out.map_values();
        let mut uneven = None;
        if let (Some(inputs), MapValues::General(of_value), MapValues::General(of_out)) =
            (inputs, &value, &out)
        {
            let gram = self.value_gram(layer, inputs)?;
            let even = even(of_value, of_out, &gram, features.key_value, self.counts)?;
            (value, out) = (MapValues::General(even.0), MapValues::General(even.1));
            uneven = Some(even.2);
        }
        let tensors = self.tensors(layer, [(Role::Value, value), (Role::Out, out)])?;
        Ok((tensors, uneven))
    }

    /// The tensors of these maps of `layer`.
    fn tensors(&self, layer: usize, maps: [(Role, MapValues); 2]) -> Result<TensorSet<B>> {
        let mut tensors = TensorSet::new();
        for (role, values) in &maps {
            let name = site_name(self.text.teacher, layer, *role)?;
            let site = Site::new(layer, *role);
            self.maps.add_map(&mut tensors, site, &name, values)?;
        }
        Ok(tensors)
    }
}
