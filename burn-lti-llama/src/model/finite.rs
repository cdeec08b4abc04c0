//! Where the numbers of a model are finite no more: looked for once something has come out that is none.

use std::fmt;

use burn::data::dataloader::batcher::Batcher;
use burn::prelude::*;
use burn::tensor::DType;
use burn_lti::decoder::{LayeredDecoder, TokenBatch};

use crate::data::{TokenBatcher, pack};

/// A part of a decoder, in the order in which it computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The embedding of the tokens.
    Embedding,
    /// What the attention of a layer, counted from 0, adds.
    Attention(usize),
    /// What the feed-forward block of a layer, counted from 0, adds.
    FeedForward(usize),
    /// The norm after the last layer.
    Norm,
    /// The head: logits.
    Head,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embedding => f.write_str("the embedding"),
            Self::Attention(layer) => write!(f, "layer {layer} (its attention)"),
            Self::FeedForward(layer) => write!(f, "layer {layer} (its feed-forward block)"),
            Self::Norm => f.write_str("the norm after the last layer"),
            Self::Head => f.write_str("the head (its logits)"),
        }
    }
}

/// A model that computes numbers which are not finite.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{model} computes numbers that are not finite, first in {place}: its weights are damaged or too large for \
     the float type; get them again, or compute in float32"
)]
pub struct NotFinite {
    /// Which one: "the teacher in ...".
    pub model: String,
    /// Where it begins.
    pub place: Place,
}

impl NotFinite {
    /// Looks through a batch for the place at which `model`, which is called so, computes no numbers.
    ///
    /// # Errors
    ///
    /// [`NotFinite`], if there is one.
    pub fn check<B: Backend>(
        called: &str,
        model: &impl LayeredDecoder<B>,
        batch: &TokenBatch<B>,
    ) -> Result<(), Self> {
        match first_not_finite(model, batch) {
            None => Ok(()),
            Some(place) => Err(Self {
                model: called.to_owned(),
                place,
            }),
        }
    }
}

/// The first part of `model` whose numbers for the tokens of `batch`, padding aside, are not all finite. `None`
/// where they are, which takes no more than the logits.
pub fn first_not_finite<B: Backend>(
    model: &impl LayeredDecoder<B>,
    batch: &TokenBatch<B>,
) -> Option<Place> {
    let hidden = model.hidden_states(batch);
    let is_fine = are_finite(hidden.clone(), batch);
    if is_fine && are_logits_finite(model, hidden, batch) {
        return None;
    }
    let context = model.context(batch);
    let mut h = model.embed(batch);
    if !are_finite(h.clone(), batch) {
        return Some(Place::Embedding);
    }
    for layer in 0..model.layers() {
        h = h.clone() + model.attention(layer, h, &context);
        if !are_finite(h.clone(), batch) {
            return Some(Place::Attention(layer));
        }
        h = h.clone() + model.feed_forward(layer, h);
        if !are_finite(h.clone(), batch) {
            return Some(Place::FeedForward(layer));
        }
    }
    Some(if is_fine { Place::Head } else { Place::Norm })
}

/// As [`first_not_finite`], of a text.
pub(crate) fn first_not_finite_of_text<B: Backend>(
    model: &impl LayeredDecoder<B>,
    text: &[u32],
) -> Option<Place> {
    let device = model.devices().into_iter().next()?;
    let length = text.len().max(1);
    first_not_finite(
        model,
        &TokenBatcher.batch(pack([text.to_vec()], length), &device),
    )
}

/// Whether all features of all tokens, `[batch, tokens, d_model]`, are finite, padding aside.
fn are_finite<B: Backend>(features: Tensor<B, 3>, batch: &TokenBatch<B>) -> bool {
    let padding: Tensor<B, 3, Bool> = batch.segments.clone().equal_elem(0).unsqueeze_dim(2);
    let shape = features.dims();
    all_finite(features.mask_fill(padding.expand(shape), 0.0))
}

/// Whether all logits are, made in chunks of tokens.
fn are_logits_finite<B: Backend>(
    model: &impl LayeredDecoder<B>,
    hidden: Tensor<B, 3>,
    batch: &TokenBatch<B>,
) -> bool {
    const CHUNK: usize = 256;
    let head = model.head().weight;
    let [rows, tokens, d_model] = hidden.dims();
    let padding: Tensor<B, 3, Bool> = batch.segments.clone().equal_elem(0).unsqueeze_dim(2);
    let hidden = hidden.mask_fill(padding.expand([rows, tokens, d_model]), 0.0);
    let hidden: Tensor<B, 2> = hidden.flatten(0, 1);
    let all = rows * tokens;
    (0..all).step_by(CHUNK).all(|start| {
        let chunk = hidden.clone().slice(start..all.min(start + CHUNK));
        all_finite(chunk.matmul(head.clone()))
    })
}

/// Whether all of a tensor is. A number times zero is zero, and nothing else is.
fn all_finite<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> bool {
    let zero = tensor.mul_scalar(0.0).sum().cast(DType::F32);
    zero.into_scalar().elem::<f32>() == 0.0
}

#[cfg(test)]
mod tests {
    use burn::backend::Flex;
    use burn::module::{ModuleMapper, Param};

    use super::*;
    use crate::model::PlainLlama;
    use crate::model::fixture::model;

    const VOCAB: usize = 61;

    /// Damages the parameter with this number, in the order of the model's.
    struct Damage {
        left: usize,
        with: f32,
    }

    impl ModuleMapper<Flex> for Damage {
        fn map_float<const D: usize>(
            &mut self,
            param: Param<Tensor<Flex, D>>,
        ) -> Param<Tensor<Flex, D>> {
            let is_it = self.left == 0;
            self.left = self.left.wrapping_sub(1);
            let with = self.with;
            param.map(|old| if is_it { old.full_like(with) } else { old })
        }
    }

    fn place_of(number: usize, with: f32) -> Option<Place> {
        let model: PlainLlama<Flex> = model(VOCAB).map(&mut Damage { left: number, with });
        first_not_finite_of_text(&model, &[1, 5, 9, 40])
    }

    #[test]
    fn the_first_part_that_is_not_finite_is_found() {
        assert_eq!(place_of(usize::MAX, f32::NAN), None);
        assert_eq!(place_of(0, f32::NAN), Some(Place::Embedding));
        let places: Vec<Option<Place>> = (1..)
            .map(|number| place_of(number, f32::NAN))
            .take(20)
            .collect();
        // Nine parameters a layer, then the norm and the head.
        for layer in [0, 1] {
            let of_layer = &places[9 * layer..9 * (layer + 1)];
            let attention = of_layer
                .iter()
                .filter(|it| **it == Some(Place::Attention(layer)));
            let feed_forward = of_layer
                .iter()
                .filter(|it| **it == Some(Place::FeedForward(layer)));
            assert_eq!(
                (attention.count(), feed_forward.count()),
                (5, 4),
                "{of_layer:?}"
            );
        }
        assert_eq!(places[18..], [Some(Place::Norm), Some(Place::Head)]);
        // Large numbers overflow where they are multiplied.
        assert_eq!(place_of(20, 3e38), Some(Place::Head));
    }

    #[test]
    fn the_error_names_model_and_place() {
        let error = NotFinite {
            model: "the teacher in t".into(),
            place: Place::FeedForward(3),
        };
        let text = error.to_string();
        assert!(
            text.starts_with(
                "the teacher in t computes numbers that are not finite, first in layer 3"
            ),
            "{text}"
        );
    }
}
