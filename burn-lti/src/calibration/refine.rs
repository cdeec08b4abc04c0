//! The attention patterns of a layer, by gradient: what no least squares reaches.
//!
//! A student's head begins with the pattern of one teacher head. Here the maps of a layer, query and key
//! among them, are moved together towards the layer's target, on the batches that are fitted on, so that
//! heads that were dropped are made up for by those that were kept. It is a training of one layer on its own:
//! no other layer, no head, no vocabulary.

use burn::module::AutodiffModule;
use burn::optim::{AdamWConfig, GradientsParams, Optimizer};
use burn::prelude::*;
use burn::tensor::DType;
use burn::tensor::backend::AutodiffBackend;

use super::error::Result;
use super::features::flat;
use super::map_tensors::is_map_of;
use super::settings::Refinement;
use super::split::is_held_out;
use super::teacher::site_name;
use super::text::Text;
use crate::compat;
use crate::decoder::{LayeredDecoder, TokenBatch};
use crate::geometry::Role;
use crate::parameters::set_trainable;
use crate::tensors::TensorSet;

/// The maps of `layer`, moved. Whether that helps is for the caller to find out, on tokens that no step
/// read. (The fit before the steps did read them in the end, so that the comparison is a strict one.)
pub(super) fn moved<A, T, S>(
    text: &mut Text<'_, A::InnerBackend, T>,
    layer: usize,
    student: &S,
    strength: f64,
    refinement: Refinement,
) -> Result<TensorSet<A::InnerBackend>>
where
    A: AutodiffBackend,
    T: LayeredDecoder<A::InnerBackend>,
    S: LayeredDecoder<A> + AutodiffModule<A>,
{
    let projections = Role::ATTENTION.map(|role| site_name(text.teacher, layer, role));
    let projections: Vec<String> = projections.into_iter().collect::<Result<_, _>>()?;
    let mut moved = set_trainable(student.clone(), |parameter| {
        is_map_of(&projections, parameter.name)
    });
    let mut optimizer = AdamWConfig::new()
        .with_beta_2(0.95)
        .with_epsilon(1e-8)
        .with_weight_decay(0.0)
        .init::<A, S>();
    let mut step = 0;
    while step < refinement.steps {
        let fitted = text.batches().filter(|(index, _)| !is_held_out(*index));
        for (index, batch) in fitted.take(refinement.steps - step) {
            let loss = layer_loss(text, index, layer, &batch, &moved, strength)?;
            let gradients = GradientsParams::from_grads(loss.backward(), &moved);
            let angle = std::f64::consts::PI * step as f64 / refinement.steps as f64;
            let rate = refinement.learning_rate * 0.5 * (1.0 + angle.cos());
            moved = optimizer.step(rate, moved, gradients);
            step += 1;
        }
    }
    let mut tensors = TensorSet::new();
    for (name, named) in TensorSet::collect(&moved.valid()).iter() {
        if is_map_of(&projections, name) {
            tensors.insert_named(name, named.clone());
        }
    }
    Ok(tensors)
}

/// Squared distance to the full target on held-out tokens, as a part of the target's squared size.
pub(super) fn held_out_residual<B: Backend>(
    text: &mut Text<'_, B, impl LayeredDecoder<B>>,
    layer: usize,
    student: &impl LayeredDecoder<B>,
) -> Result<f64> {
    let (mut distance, mut size) = (0.0, 0.0);
    for (index, batch) in text.batches().filter(|(index, _)| is_held_out(*index)) {
        let targets = text.targets(index, layer, &batch)?;
        let target = targets.weighted(1.0);
        let context = student.context(&batch);
        let h = text.student_input(index, layer)?;
        let attention = flat(student.attention_output(layer, h, &context));
        let found = targets.weigh(attention.cast(DType::F32) - targets.bias.clone());
        let square = |tensor: Tensor<B, 2>| -> f64 {
            let sum = compat::total(tensor.powi_scalar(2)).into_data();
            sum.iter::<f64>().sum()
        };
        distance += square(found - target.clone());
        size += square(target);
    }
    Ok(distance / size.max(f64::MIN_POSITIVE))
}

/// Weighted squared distance of what the attention puts out to its target, as a part of the target's size.
fn layer_loss<A: AutodiffBackend>(
    text: &mut Text<'_, A::InnerBackend, impl LayeredDecoder<A::InnerBackend>>,
    index: usize,
    layer: usize,
    batch: &TokenBatch<A::InnerBackend>,
    student: &impl LayeredDecoder<A>,
    strength: f64,
) -> Result<Tensor<A, 1>> {
    let targets = text.targets(index, layer, batch)?;
    let target = targets.weighted(strength);
    let size = compat::total(target.clone().powi_scalar(2));
    let size = size.add_scalar(f32::MIN_POSITIVE); // a batch may be padding alone
    let context = student.context(&TokenBatch::<A>::from_inner(batch));
    let h = Tensor::from_inner(text.student_input(index, layer)?);
    let attention = flat(student.attention_output(layer, h, &context)).cast(DType::F32);
    let bias: Tensor<A, 2> = Tensor::from_inner(targets.bias);
    let root: Tensor<A, 2> = Tensor::from_inner(targets.root);
    let distance = (attention - bias) * root - Tensor::from_inner(target);
    Ok(compat::total(distance.powi_scalar(2)) / Tensor::from_inner(size))
}
