//! Gradients of a module's parameters, taken one by one and put together again.

use burn::module::{AutodiffModule, ModuleVisitor, Param};
use burn::optim::{GradientsParams, MultiGradientsParams};
use burn::prelude::*;
use burn::tensor::backend::AutodiffBackend;

use crate::kernels::adam::square_sum as square_of;

/// The gradient of a parameter, on the inner backend.
pub(super) type Gradient<B, const D: usize> = Tensor<<B as AutodiffBackend>::InnerBackend, D>;

/// Where the gradient of each parameter comes from.
///
/// It is taken away, so that parameters of one id get what they share once.
pub(super) trait Source<B: AutodiffBackend> {
    /// The gradient of this parameter, if there is one that was not taken before.
    fn take<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) -> Option<Gradient<B, D>>;
}

/// What `source` has for the parameters of `module`, added over those of one id.
pub(super) fn gather<B: AutodiffBackend, M: AutodiffModule<B>>(
    module: &M,
    source: &mut impl Source<B>,
) -> GradientsParams {
    let mut gather = Gather {
        source,
        into: GradientsParams::new(),
    };
    module.visit(&mut gather);
    gather.into
}

/// The gradient of every parameter of `module`, added over the parameters of one id.
///
/// [`GradientsParams::from_grads`] keeps only the last of them where they lie on different nodes of
/// the graph, as they do after a `fork`, which Burn's own training strategies begin with. Use this in
/// a `TrainStep` whose model may have shared parameters.
pub fn collect_gradients<B: AutodiffBackend, M: AutodiffModule<B>>(
    module: &M,
    gradients: B::Gradients,
) -> GradientsParams {
    gather(module, &mut OfGraph::<B>(gradients))
}

/// The gradients of `module`'s parameters times `factor [1]`, which stays on its device.
pub(super) fn scale<B: AutodiffBackend, M: AutodiffModule<B>>(
    module: &M,
    grads: GradientsParams,
    factor: Tensor<B::InnerBackend, 1>,
) -> GradientsParams {
    gather(module, &mut Scaled::<B> { grads, factor })
}

/// The gradients of all devices, added on the device of their parameter.
pub(super) fn sum_of_devices<B: AutodiffBackend, M: AutodiffModule<B>>(
    module: &M,
    mut grads: MultiGradientsParams,
) -> GradientsParams {
    gather(module, &mut grads)
}

/// The gradients, and the sum of the squares of all of them, `[1]` and still on the device. `None` if
/// there is no gradient.
pub(super) fn square_sum<B: AutodiffBackend, M: AutodiffModule<B>>(
    module: &M,
    grads: GradientsParams,
) -> (GradientsParams, Option<Tensor<B::InnerBackend, 1>>) {
    let mut squares = Squares::<B> { grads, sum: None };
    (gather(module, &mut squares), squares.sum)
}

struct Gather<'a, S> {
    source: &'a mut S,
    into: GradientsParams,
}

impl<B: AutodiffBackend, S: Source<B>> ModuleVisitor<B> for Gather<'_, S> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        let Some(gradient) = self.source.take(param) else {
            return;
        };
        let gradient = match self.into.remove::<B::InnerBackend, D>(param.id) {
            Some(others) => others + gradient,
            None => gradient,
        };
        self.into.register::<B::InnerBackend, D>(param.id, gradient);
    }
}

/// On one node autodiff has added the gradients already, and the first parameter takes the sum.
struct OfGraph<B: AutodiffBackend>(B::Gradients);

impl<B: AutodiffBackend> Source<B> for OfGraph<B> {
    fn take<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) -> Option<Gradient<B, D>> {
        param.val().grad_remove(&mut self.0)
    }
}

impl<B: AutodiffBackend> Source<B> for MultiGradientsParams {
    fn take<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) -> Option<Gradient<B, D>> {
        let (gradient, _) = self.remove::<B::InnerBackend, D>(param.id)?;
        Some(gradient.to_device(&param.device()))
    }
}

struct Scaled<B: AutodiffBackend> {
    grads: GradientsParams,
    factor: Tensor<B::InnerBackend, 1>,
}

impl<B: AutodiffBackend> Source<B> for Scaled<B> {
    fn take<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) -> Option<Gradient<B, D>> {
        let gradient = self.grads.remove::<B::InnerBackend, D>(param.id)?;
        let factor = self.factor.clone().cast(gradient.dtype()).unsqueeze();
        Some(gradient * factor)
    }
}

struct Squares<B: AutodiffBackend> {
    grads: GradientsParams,
    sum: Option<Tensor<B::InnerBackend, 1>>,
}

impl<B: AutodiffBackend> Source<B> for Squares<B> {
    fn take<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) -> Option<Gradient<B, D>> {
        let gradient = self.grads.remove::<B::InnerBackend, D>(param.id)?;
        let (gradient, square) = square_of(gradient);
        self.sum = Some(match self.sum.take() {
            Some(sum) => sum + square,
            None => square,
        });
        Some(gradient)
    }
}
