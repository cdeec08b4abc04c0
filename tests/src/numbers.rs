//! Random numbers made on the host: the same seed gives the same numbers on every backend.

use burn::prelude::*;
use burn::tensor::TensorData;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rand_distr::{Distribution, StandardNormal};

/// A stream of numbers.
pub struct Numbers(StdRng);

impl Numbers {
    /// The stream of this seed.
    pub fn new(seed: u64) -> Self {
        Self(StdRng::seed_from_u64(seed))
    }

    /// So many values of a unit normal.
    pub fn normal(&mut self, count: usize) -> Vec<f32> {
        (0..count)
            .map(|_| StandardNormal.sample(&mut self.0))
            .collect()
    }

    /// A tensor of a unit normal.
    pub fn tensor<B: Backend, const D: usize>(
        &mut self,
        shape: [usize; D],
        device: &B::Device,
    ) -> Tensor<B, D> {
        let values = self.normal(shape.iter().product());
        Tensor::from_data(TensorData::new(values, shape), device)
    }

    /// A number from 0 to `end - 1`.
    pub fn below(&mut self, end: usize) -> usize {
        self.0.random_range(0..end)
    }

    /// So many numbers from 0 to `end - 1`.
    pub fn ids(&mut self, count: usize, end: usize) -> Vec<i64> {
        (0..count).map(|_| self.below(end) as i64).collect()
    }
}

/// A tensor's values, row-major.
pub fn values<B: Backend, const D: usize>(tensor: &Tensor<B, D>) -> Vec<f64> {
    tensor.to_data().iter::<f64>().collect()
}

/// The bits of a float32 tensor's values, row-major.
pub fn bits<B: Backend, const D: usize>(tensor: &Tensor<B, D>) -> Vec<u32> {
    let data = tensor.to_data();
    let values = data.as_slice::<f32>().expect("a float32 tensor");
    values.iter().map(|value| value.to_bits()).collect()
}

/// A tensor of these values.
pub fn tensor<B: Backend, const D: usize>(
    values: &[f32],
    shape: [usize; D],
    device: &B::Device,
) -> Tensor<B, D> {
    Tensor::from_data(TensorData::new(values.to_vec(), shape), device)
}

/// A tensor of these whole numbers.
pub fn int_tensor<B: Backend, const D: usize>(
    values: &[i64],
    shape: [usize; D],
    device: &B::Device,
) -> Tensor<B, D, Int> {
    Tensor::from_data(TensorData::new(values.to_vec(), shape), device)
}
