//! Teacher and student on their way through the layers: the steps that calibrate one.

use std::sync::Arc;
use std::time::Instant;

use burn::data::dataloader::DataLoader;
use burn::module::AutodiffModule;
use burn::prelude::*;
use burn::tensor::backend::AutodiffBackend;

use super::error::{CalibrationError, Result};
use super::features::{of_all_values, of_heads, of_own_values};
use super::fit::{Fitted, LayerFit};
use super::heads::{HeadChoice, HeadCounts};
use super::map_tensors::MapTensors;
use super::map_values::MapValues;
use super::out::OutMap;
use super::regularization::Regularization;
use super::report::LayerReport;
use super::settings::{Calibration, FeedForward};
use super::student::Student;
use super::teacher::site_name;
use super::text::Text;
use super::value_features::{Span, ValueFeatures};
use super::{feed_forward, patterns, refine, select};
use crate::decoder::{LayeredDecoder, TokenBatch};
use crate::geometry::{Role, Site};
use crate::tensors::TensorSet;

/// What the steps of all layers share.
pub(super) struct Walk<'a, B: Backend, T> {
    pub(super) calibration: &'a Calibration<'a>,
    pub(super) counts: HeadCounts,
    pub(super) maps: MapTensors<'a, B>,
    pub(super) text: Text<'a, B, T>,
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
        let maps = MapTensors {
            spec,
            student: &calibration.student,
            device: teacher.devices()[0].clone(),
        };
        let mut start = TensorSet::new();
        for layer in (0..teacher.layers()).filter(|layer| spec.selects(*layer)) {
            for role in Role::ATTENTION {
                let name = site_name(teacher, layer, role)?;
                maps.add_placeholder(&mut start, role, &name)?;
            }
        }
        let student = student_with(&start).map_err(CalibrationError::student)?;
        if student.layers() != teacher.layers() {
            let (teacher, student) = (teacher.layers(), student.layers());
            return Err(CalibrationError::misfit("layers", teacher, student));
        }
        let (d_model, feed_forward) = (spec.teacher.d_model, calibration.feed_forward);
        let text = Text::read(teacher, &student.valid(), d_model, batches, feed_forward)?;
        let student = Student::new(student, start, &text.tensors.0);
        let walk = Self {
            calibration,
            counts,
            maps,
            text,
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
        let heads = self.choose_heads(layer)?;
        let mut student = student.filled(&self.patterns(layer, &heads)?)?;
        let features = self.value_features(&heads);
        let fitted = self.fit(layer, &heads, features, &student.valid())?;
        let [residual_of_output, mut residual] = fitted.residuals;
        let Regularization { ridge, strength } = fitted.regularization;
        let rounds = fitted.rounds;
        student = student.filled(&self.fitted_maps(layer, features, fitted)?)?;
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
        let mut feed_forward_residual = None;
        if self.calibration.feed_forward == FeedForward::Refit {
            let (left, changed) = feed_forward::refit(&mut self.text, layer, &student.valid())?;
            student = student.filled(&changed)?;
            feed_forward_residual = Some(left);
        }
        self.text.advance(layer, &student.valid())?;
        let report = LayerReport {
            layer,
            heads,
            residual_of_output,
            residual,
            rounds,
            ridge: Some(ridge).filter(|ridge| ridge.is_finite()),
            strength,
            feed_forward_residual,
            seconds: began.elapsed().as_secs_f64(),
        };
        Ok((student, report))
    }

    /// The heads of the teacher that those of `layer` begin as.
    fn choose_heads(&mut self, layer: usize) -> Result<HeadChoice> {
        self.text.keep_attention(layer)?;
        let axes = self.calibration.spec.teacher;
        let teacher = self.text.teacher;
        let moments = self.text.moments(layer, axes.query.width(), |batch, h| {
            let context = teacher.context(batch);
            let weights = teacher.attention_weights(layer, h.clone(), &context);
            of_own_values(weights, teacher.values(layer, h), axes.key_value.heads)
        })?;
        select::choose(&moments.all(), &self.counts)
    }

    /// Query and key maps that make each head one of the teacher's.
    fn patterns(&self, layer: usize, heads: &HeadChoice) -> Result<TensorSet<B>> {
        let axes = self.calibration.spec.teacher;
        let size = self.calibration.student.query.head_dim;
        let features = self.text.teacher.query_key_features(size);
        let query = patterns::query(axes.query, &heads.query, &features);
        let key = patterns::key(axes.key_value, &heads.key_value, &features);
        self.tensors(layer, [(Role::Query, query), (Role::Key, key)])
    }

    fn value_features<'h>(&self, heads: &'h HeadChoice) -> ValueFeatures<'h> {
        let t_values = self.calibration.spec.teacher.key_value;
        let grid = self.calibration.student.query;
        ValueFeatures {
            heads: self.counts,
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
    ) -> Result<Fitted> {
        let teacher = self.text.teacher;
        let count = self.counts.s_query * features.count();
        let moments = self.text.moments(layer, count, |batch, h| {
            let context = student.context(batch);
            let weights = student.attention_weights(layer, h.clone(), &context);
            let values = teacher.values(layer, h);
            match features.span {
                Span::All => of_all_values(weights, values),
                Span::Own => {
                    let values = of_heads(values, self.counts.t_key_value, features.key_value);
                    of_own_values(weights, values, features.key_value.len())
                }
            }
        })?;
        let name = site_name(teacher, layer, Role::Out)?;
        let kernel = self.text.tensors.weight(&name, self.text.d_model)?;
        let form = self.maps.fitted_form(Role::Out);
        let head_dims = [
            self.calibration.spec.teacher.query.head_dim,
            features.s_head_dim,
        ];
        let out = OutMap::new(form, self.counts, head_dims, &heads.query, kernel)?;
        LayerFit {
            features,
            value: self.maps.fitted_form(Role::Value),
            out: &out,
            moments: &moments,
        }
        .run(&self.calibration.strengths, self.calibration.rounds)
    }

    fn fitted_maps(
        &self,
        layer: usize,
        features: ValueFeatures<'_>,
        fitted: Fitted,
    ) -> Result<TensorSet<B>> {
        let value = fitted.value.over_all_heads(&features);
        let maps = [(Role::Value, value), (Role::Out, fitted.out.map_values())];
        self.tensors(layer, maps)
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
