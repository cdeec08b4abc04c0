//! [`MeanGradient`]: the gradient of a step that comes in several micro-batches.

use burn::module::{AutodiffModule, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::prelude::*;
use burn::tensor::backend::AutodiffBackend;

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
                mixed: GradientsParams::new(),
            };
            module.visit(&mut mix);
            self.gradients = mix.mixed;
        }
    }

    pub(super) fn into_gradients(self) -> GradientsParams {
        self.gradients
    }
}

/// A parameter that one of the two says nothing of has a gradient of zero there.
struct Mix {
    running: GradientsParams,
    running_share: f64,
    added: GradientsParams,
    added_share: f64,
    mixed: GradientsParams,
}

impl<B: AutodiffBackend> ModuleVisitor<B> for Mix {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        let id = param.id;
        let running = self.running.remove::<B::InnerBackend, D>(id);
        let added = self.added.remove::<B::InnerBackend, D>(id);
        let running = running.map(|gradient| gradient * self.running_share);
        let added = added.map(|gradient| gradient * self.added_share);
        let mixed = match (running, added) {
            (Some(running), Some(added)) => running + added,
            (Some(one), None) | (None, Some(one)) => one,
            (None, None) => return,
        };
        self.mixed.register::<B::InnerBackend, D>(id, mixed);
    }
}
