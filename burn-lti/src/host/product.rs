//! Products with a head, whose columns are a vocabulary.

use burn::prelude::*;

/// `states [n, d]` times `head [d, vocab]`.
pub(crate) fn head_product<B: Backend>(states: Tensor<B, 2>, head: Tensor<B, 2>) -> Tensor<B, 2> {
    #[cfg(feature = "tch")]
    if let Some(product) = torch::in_blocks(&states, &head) {
        return product;
    }
    states.matmul(head)
}

#[cfg(feature = "tch")]
mod torch {
    use std::any::Any;

    use burn::backend::libtorch::TchTensor;
    use burn::prelude::*;
    use burn::tensor::TensorPrimitive;

    use crate::host::is_host;
    use crate::host::torch::Owned;

    /// Columns of a block. What one reads of the head and writes, a few MiB, stays in a cache while the
    /// product goes over it: half as fast again as the whole head at once, with 170 states. 512 and 1,536
    /// are as good, 3,072 are not.
    const COLUMNS: i64 = 1024;

    /// On libtorch's CPU, block after block. None elsewhere, and for what libtorch refuses.
    pub(super) fn in_blocks<B: Backend>(
        states: &Tensor<B, 2>,
        head: &Tensor<B, 2>,
    ) -> Option<Tensor<B, 2>> {
        if !is_host(&states.device()) {
            return None;
        }
        let [states, head] = [states, head].map(|factor| {
            let primitive: Box<dyn Any> = Box::new(factor.clone().into_primitive().tensor());
            primitive.downcast::<TchTensor>().ok()
        });
        let (states, head) = (states?.tensor, head?.tensor);
        let (&[rows, _], &[_, columns]) = (&states.size()[..], &head.size()[..]) else {
            return None;
        };
        let shape = [rows, columns];
        let product = states.f_new_empty(shape, (states.kind(), states.device()));
        let product = product.ok()?;
        for start in (0..columns).step_by(COLUMNS as usize) {
            let width = COLUMNS.min(columns - start);
            let block = product.f_narrow(1, start, width).ok()?;
            let of_head = head.f_narrow(1, start, width).ok()?;
            let _written = states.f_mm_out(&block, &of_head).ok()?;
        }
        let product = Owned::of_new(TchTensor::new(product)).into_primitive();
        Some(Tensor::from_primitive(TensorPrimitive::Float(product)))
    }
}

#[cfg(all(test, feature = "tch"))]
mod tests {
    use burn::backend::LibTorch;
    use burn::prelude::*;

    use super::head_product;

    /// Small whole numbers, whose sums of products are exact.
    fn numbers(shape: [usize; 2]) -> Tensor<LibTorch, 2> {
        let [rows, columns] = shape;
        let values = (0..rows * columns).map(|at| (at * 7 % 11) as f32 - 5.0);
        let data = TensorData::new(values.collect::<Vec<f32>>(), shape);
        Tensor::from_data(data, &Default::default())
    }

    #[test]
    fn blocks_make_the_whole_product() {
        let states = numbers([3, 5]);
        // Of less than a block, of whole ones, of some and a rest.
        for columns in [1, 1023, 2048, 2500] {
            let heads = [numbers([5, columns]), numbers([columns, 5]).transpose()];
            for head in heads {
                let product = head_product(states.clone(), head.clone());
                let expected = states.clone().matmul(head);
                assert_eq!(product.to_data(), expected.to_data());
            }
        }
    }

    #[test]
    fn without_states_there_is_nothing() {
        assert_eq!(
            head_product(numbers([0, 5]), numbers([5, 3])).dims(),
            [0, 3]
        );
    }
}
