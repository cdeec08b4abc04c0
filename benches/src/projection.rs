//! One learn-to-init projection, forward and backward: the kernel out of its map, the product, and the
//! gradients of the map and of the input.

use anyhow::Result;
use burn::prelude::*;
use burn::tensor::backend::AutodiffBackend;
use burn_lti::geometry::{Axes, HeadGrid, Role};
use burn_lti::map::{LtiDense, LtiDenseConfig, MapKind};

use crate::numbers::uniform;

/// Rows of the input.
pub const TOKENS: usize = 512;

/// A projection of a model that exists.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// What it is called here and by the peers.
    pub name: &'static str,
    /// Width of the model.
    pub d_model: usize,
    /// Where it stands.
    pub role: Role,
    /// The teacher's heads.
    pub teacher: HeadGrid,
    /// The student's heads.
    pub student: HeadGrid,
    /// The form of the map.
    pub map: MapKind,
}

const SMOL: Case = Case {
    name: "smol_q_factored",
    d_model: 576,
    role: Role::Query,
    teacher: HeadGrid::new(9, 64),
    student: HeadGrid::new(3, 64),
    map: MapKind::Factored,
};

const LLAMA_8B: Case = Case {
    name: "llama8b_q_factored",
    d_model: 4096,
    teacher: HeadGrid::new(32, 128),
    student: HeadGrid::new(16, 128),
    ..SMOL
};

/// The projections that are measured.
pub const CASES: [Case; 5] = [
    SMOL,
    Case {
        name: "smol_out_factored",
        role: Role::Out,
        ..SMOL
    },
    Case {
        name: "smol_q_general",
        map: MapKind::General,
        ..SMOL
    },
    LLAMA_8B,
    Case {
        name: "llama8b_out_factored",
        role: Role::Out,
        ..LLAMA_8B
    },
];

/// A case on a device.
#[derive(Debug)]
pub struct Task<A: AutodiffBackend> {
    dense: LtiDense<A>,
    input: Tensor<A, 2>,
}

impl Case {
    /// The projection, its map that of the start `grouped`, and its input.
    ///
    /// # Errors
    ///
    /// If there is no such projection.
    pub fn task<A: AutodiffBackend>(&self, device: &A::Device) -> Result<Task<A>> {
        let axes = |grid| Axes::of_attention(self.d_model, grid, grid);
        let (teacher, student) = (axes(self.teacher), axes(self.student));
        let config = LtiDenseConfig::new(self.role, &teacher, &student, self.map);
        let c = uniform::<A, 2>(3, config.c_shape(), 0.02, device);
        let [d_input, _] = config.kernel_shape();
        Ok(Task {
            dense: config.init(c)?,
            input: uniform::<A, 2>(4, [TOKENS, d_input], 1.0, device).require_grad(),
        })
    }
}

impl<A: AutodiffBackend> Task<A> {
    /// Forward and backward. The mean square of the output, which serves as the loss.
    ///
    /// # Errors
    ///
    /// If a gradient is missing.
    pub fn step(&self) -> Result<f64> {
        let loss = self.dense.forward(self.input.clone()).square().mean();
        let gradients = loss.backward();
        let gradient = self.input.grad(&gradients);
        anyhow::ensure!(gradient.is_some(), "the input has no gradient");
        Ok(loss.into_scalar().elem())
    }
}
