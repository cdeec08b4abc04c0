//! Parameters that are one variable, trained as one.
//!
//! Burn collects one gradient for each parameter id and updates the first parameter that has it, so
//! that two parameters of one id come apart at the first step. [`collect_gradients`] adds the
//! gradients of both, and [`Tied`] gives both the value of the step.

use burn::module::{AutodiffModule, ModuleVisitor, Param};
use burn::optim::{GradientsParams, MultiGradientsParams, Optimizer};
use burn::prelude::*;
use burn::tensor::backend::AutodiffBackend;

use crate::parameters::tie;

/// An optimizer after whose step parameters of one id are [tied](tie): the first of them in the module
/// is updated, with the one gradient and the one state of its id, and the others take its value.
///
/// That gradient is the sum over all uses if the module was tied before its `backward`, or if
/// [`collect_gradients`] collected it.
///
/// ```
/// use burn::backend::{Autodiff, Flex};
/// use burn::nn::{Linear, LinearConfig};
/// use burn::optim::{AdamWConfig, GradientsParams, Optimizer};
/// use burn::tensor::{Distribution, Tensor};
/// use burn_lti::parameters::tie;
/// use burn_lti::train::Tied;
///
/// type B = Autodiff<Flex>;
/// let device = Default::default();
/// let mut layers: Vec<Linear<B>> = (0..2).map(|_| LinearConfig::new(4, 4).init(&device)).collect();
/// layers[1].weight.id = layers[0].weight.id;
/// let mut layers = tie(layers);
///
/// let mut optimizer = Tied::new(AdamWConfig::new().init::<B, Vec<Linear<B>>>());
/// let x = Tensor::<B, 2>::random([3, 4], Distribution::Default, &device);
/// let loss = layers[1].forward(layers[0].forward(x)).sum();
/// let gradients = GradientsParams::from_grads(loss.backward(), &layers);
/// layers = optimizer.step(1e-2, layers, gradients);
/// assert_eq!(layers[0].weight.to_data(), layers[1].weight.to_data());
/// ```
#[derive(Clone, Debug)]
pub struct Tied<O> {
    optimizer: O,
}

impl<O> Tied<O> {
    /// Ties what `optimizer` steps.
    pub const fn new(optimizer: O) -> Self {
        Self { optimizer }
    }
}

impl<M, B, O> Optimizer<M, B> for Tied<O>
where
    B: AutodiffBackend,
    M: AutodiffModule<B>,
    O: Optimizer<M, B>,
{
    type Record = O::Record;

    fn step(&mut self, lr: f64, module: M, grads: GradientsParams) -> M {
        tie(self.optimizer.step(lr, module, grads))
    }

    fn step_multi(&mut self, lr: f64, module: M, grads: MultiGradientsParams) -> M {
        tie(self.optimizer.step_multi(lr, module, grads))
    }

    fn to_record(&self) -> Self::Record {
        self.optimizer.to_record()
    }

    fn load_record(mut self, record: Self::Record) -> Self {
        self.optimizer = self.optimizer.load_record(record);
        self
    }
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
    let mut collector = Collector::<B> {
        from: gradients,
        into: GradientsParams::new(),
    };
    module.visit(&mut collector);
    collector.into
}

struct Collector<B: AutodiffBackend> {
    from: B::Gradients,
    into: GradientsParams,
}

impl<B: AutodiffBackend> ModuleVisitor<B> for Collector<B> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        // On one node autodiff has added the gradients already, and the first parameter takes the sum.
        let Some(gradient) = param.val().grad_remove(&mut self.from) else {
            return;
        };
        let gradient = match self.into.remove::<B::InnerBackend, D>(param.id) {
            Some(others) => others + gradient,
            None => gradient,
        };
        self.into.register::<B::InnerBackend, D>(param.id, gradient);
    }
}
