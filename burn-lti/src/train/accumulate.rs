//! [`MeanGradient`]: the gradient of a step that comes in several micro-batches.

use burn::module::{AutodiffModule, Param};
use burn::optim::GradientsParams;
use burn::prelude::*;
use burn::tensor::backend::AutodiffBackend;

use super::gradients::{Gradient, Source, gather};

/// The gradient of the mean over all tokens of a step, from those of its micro-batches.
///
/// With `n_i` tokens and the gradient `g_i` of their mean, it is `sum_i n_i g_i / sum_i n_i`. Kept as
/// a running mean, so that nothing grows with the number of tokens, which half precision could not
/// hold. Where one micro-batch has all tokens its gradient is handed on bit for bit; where none has
/// any, that of the last.
#[derive(Default)]
pub(super) struct MeanGradient {
    gradients: GradientsParams,
    tokens: f64,
}

impl MeanGradient {
    /// Takes in the gradient of a micro-batch. One without tokens adds nothing.
    pub(super) fn add<B: AutodiffBackend, M: AutodiffModule<B>>(
        &mut self,
        module: &M,
        gradients: GradientsParams,
        tokens: f64,
    ) {
        let before = self.tokens;
        self.tokens += tokens;
        if before == 0.0 {
            self.gradients = gradients;
        } else if tokens > 0.0 {
            let mut mix = Mix {
                running: std::mem::take(&mut self.gradients),
                running_share: before / self.tokens,
                added: gradients,
                added_share: tokens / self.tokens,
            };
            self.gradients = gather(module, &mut mix);
        }
    }

    pub(super) fn into_gradients(self) -> GradientsParams {
        self.gradients
    }
}

/// A parameter that has no gradient in one of the two has a gradient of zero there.
struct Mix {
    running: GradientsParams,
    running_share: f64,
    added: GradientsParams,
    added_share: f64,
}

impl<B: AutodiffBackend> Source<B> for Mix {
    fn take<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) -> Option<Gradient<B, D>> {
        let running = self.running.remove::<B::InnerBackend, D>(param.id);
        let added = self.added.remove::<B::InnerBackend, D>(param.id);
        let running = running.map(|gradient| gradient * self.running_share);
        let added = added.map(|gradient| gradient * self.added_share);
        match (running, added) {
            (Some(running), Some(added)) => Some(running + added),
            (one, other) => one.or(other),
        }
    }
}
