//! The attention patterns of a layer, by gradient: what no least squares reaches.
//!
//! A student's head begins with the pattern of one teacher head. Here the maps of a layer, query and key
//! among them, are moved together towards the layer's target, on the batches that are fitted on, so that
//! heads that were dropped find a place in those that were kept. It is a training of one layer on its own:
//! no other layer, no head, no vocabulary.

use burn::module::AutodiffModule;
use burn::optim::{AdamWConfig, GradientsParams, Optimizer};
use burn::prelude::*;
use burn::tensor::DType;
use burn::tensor::backend::AutodiffBackend;

use super::{CalibrationError, HELD_OUT, Rows, Walk};
use crate::compat;
use crate::decoder::{LayeredDecoder, TokenBatch};
use crate::geometry::Role;
use crate::parameters::set_trainable;
use crate::tensors::{TensorSet, split_name};

/// How long the maps of a layer are moved, and how fast.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Refinement {
    /// Steps of AdamW for each layer, one batch a step; 0 for none.
    pub steps: usize,
    /// Highest learning rate; it falls to nothing along a cosine.
    pub learning_rate: f64,
}

impl<B: Backend, T: LayeredDecoder<B>> Walk<'_, B, T> {
    /// The tensors of the start with the maps of `layer` moved. Whether that helps is for the caller to
    /// find out, on tokens that no step read. (The fit before the steps did read them in the end, so that
    /// the comparison is a strict one.)
    pub(super) fn moved<A, S>(
        &mut self,
        layer: usize,
        student: &S,
        strength: f64,
    ) -> Result<TensorSet<B>, CalibrationError>
    where
        A: AutodiffBackend<InnerBackend = B>,
        S: LayeredDecoder<A> + AutodiffModule<A, InnerModule: LayeredDecoder<B>>,
    {
        let refinement = self.calibration.refinement;
        let projections = Role::ATTENTION.map(|role| self.site_name(layer, role));
        let is_map = |name: &str| {
            let (module, leaf) = split_name(name);
            let (module, _) = split_name(module);
            leaf != "bias" && projections.iter().any(|projection| projection == module)
        };
        let mut moved = set_trainable(student.clone(), |parameter| {
            parameter.in_map && is_map(parameter.name)
        });
        let mut optimizer = AdamWConfig::new()
            .with_beta_2(0.95)
            .with_epsilon(1e-8)
            .with_weight_decay(0.0)
            .init::<A, S>();
        let batches = self.batches;
        let mut step = 0;
        while step < refinement.steps {
            for (index, batch) in batches.iter().enumerate() {
                if index % HELD_OUT == HELD_OUT - 1 {
                    continue;
                }
                if step == refinement.steps {
                    break;
                }
                let loss = self.layer_loss::<A, S>(index, layer, &batch, &moved, strength)?;
                let gradients = GradientsParams::from_grads(loss.backward(), &moved);
                let turn = std::f64::consts::PI * step as f64 / refinement.steps as f64;
                let rate = refinement.learning_rate * 0.5 * (1.0 + turn.cos());
                moved = optimizer.step(rate, moved, gradients);
                step += 1;
            }
        }
        let mut tensors = self.tensors.clone();
        for (name, named) in TensorSet::collect(&moved.valid()).iter() {
            if is_map(name) && matches!(split_name(name).1, "a" | "b" | "w") {
                tensors.insert_named(name, named.clone());
            }
        }
        Ok(tensors)
    }

    /// Weighted squared distance of what the attention adds to its target, as a part of the target's size.
    fn layer_loss<A, S>(
        &mut self,
        index: usize,
        layer: usize,
        batch: &TokenBatch<B>,
        student: &S,
        strength: f64,
    ) -> Result<Tensor<A, 1>, CalibrationError>
    where
        A: AutodiffBackend<InnerBackend = B>,
        S: LayeredDecoder<A>,
    {
        let rows = self.rows(index, layer, batch)?;
        let target = rows.target(strength);
        let size = compat::total(target.clone().powi_scalar(2));
        let size = size.add_scalar(f32::MIN_POSITIVE); // a batch may be padding alone
        let context = student.context(&TokenBatch::<A>::from_inner(batch));
        let h = Tensor::from_inner(self.student_stream(index)?);
        let attention = student.attention(layer, h, &context);
        let [batch, tokens, width] = attention.dims();
        let attention = attention.reshape([batch * tokens, width]).cast(DType::F32);
        let bias: Tensor<A, 2> = Tensor::from_inner(rows.bias);
        let root: Tensor<A, 2> = Tensor::from_inner(rows.root);
        let distance = (attention - bias) * root - Tensor::from_inner(target);
        Ok(compat::total(distance.powi_scalar(2)) / Tensor::from_inner(size))
    }

    /// Squared distance to the full target on held-out tokens, as a part of the target's squared size.
    pub(super) fn held_out_residual<S: LayeredDecoder<B>>(
        &mut self,
        layer: usize,
        student: &S,
    ) -> Result<f64, CalibrationError> {
        let (mut distance, mut size) = (0.0, 0.0);
        let batches = self.batches;
        for (index, batch) in batches.iter().enumerate() {
            if index % HELD_OUT != HELD_OUT - 1 {
                continue;
            }
            let rows = self.rows(index, layer, &batch)?;
            let target = rows.target(1.0);
            let context = student.context(&batch);
            let h = self.student_stream(index)?;
            let attention = super::flat(student.attention(layer, h, &context));
            let found = rows.weigh(attention.cast(DType::F32) - rows.bias.clone());
            let square = |tensor: Tensor<B, 2>| -> f64 {
                let sum = compat::total(tensor.powi_scalar(2)).into_data();
                sum.iter::<f64>().sum()
            };
            distance += square(found - target.clone());
            size += square(target);
        }
        Ok(distance / size.max(f64::MIN_POSITIVE))
    }
}

impl<B: Backend> Rows<B> {
    /// What the attention should add, weighted.
    fn target(&self, strength: f64) -> Tensor<B, 2> {
        self.weigh(self.attention.clone() + self.drift.clone().mul_scalar(strength))
    }
}
