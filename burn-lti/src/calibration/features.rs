//! What the heads of a layer make of the values: what its value and output maps are fitted on.

use burn::prelude::*;
use burn::tensor::DType;

/// `[batch, tokens, width] -> [batch * tokens, width]`
pub(super) fn flat<B: Backend>(h: Tensor<B, 3>) -> Tensor<B, 2> {
    let [batch, tokens, width] = h.dims();
    h.reshape([batch * tokens, width])
}

/// The values of the `heads` of the teacher in each group, group by group, with zeros where one has fewer
/// members than the largest: `[batch, tokens, groups * largest * head_dim]`.
pub(super) fn of_groups<B: Backend>(
    values: Tensor<B, 3>,
    heads: usize,
    groups: &[Vec<usize>],
) -> Tensor<B, 3> {
    let [batch, tokens, width] = values.dims();
    let size = width / heads;
    let largest = groups.iter().map(Vec::len).max().unwrap_or(0);
    let mut parts = Vec::new();
    for group in groups {
        let own = group.iter();
        parts.extend(own.map(|head| values.clone().narrow(2, head * size, size)));
        if group.len() < largest {
            let shape = [batch, tokens, (largest - group.len()) * size];
            parts.push(Tensor::zeros(shape, (&values.device(), values.dtype())));
        }
    }
    Tensor::cat(parts, 2)
}

/// What each head makes of the values of its group: `weights [batch, heads, tokens, tokens]` and
/// `values [batch, tokens, groups * head_dim] -> [batch * tokens, heads * head_dim]`.
pub(super) fn of_own_values<B: Backend>(
    weights: Tensor<B, 4>,
    values: Tensor<B, 3>,
    groups: usize,
) -> Tensor<B, 2> {
    let [batch, heads, tokens, _] = weights.dims();
    let size = values.dims()[2] / groups;
    let (weights, values) = (weights.cast(DType::F32), values.cast(DType::F32));
    let values = values
        .reshape([batch, tokens, groups, size])
        .swap_dims(1, 2);
    weights
        .reshape([batch, groups, heads / groups * tokens, tokens])
        .matmul(values)
        .reshape([batch, heads, tokens, size])
        .swap_dims(1, 2)
        .reshape([batch * tokens, heads * size])
}

/// What each head makes of all values: `weights [batch, heads, tokens, tokens]` and
/// `values [batch, tokens, width] -> [batch * tokens, heads * width]`.
pub(super) fn of_all_values<B: Backend>(
    weights: Tensor<B, 4>,
    values: Tensor<B, 3>,
) -> Tensor<B, 2> {
    let [batch, heads, tokens, _] = weights.dims();
    let width = values.dims()[2];
    let (weights, values) = (weights.cast(DType::F32), values.cast(DType::F32));
    weights
        .reshape([batch, heads * tokens, tokens])
        .matmul(values)
        .reshape([batch, heads, tokens, width])
        .swap_dims(1, 2)
        .reshape([batch * tokens, heads * width])
}

#[cfg(test)]
mod tests {
    use burn::backend::Flex;

    use super::*;

    /// Two heads over two tokens: the first looks at the first token alone, the second at both.
    fn weights() -> Tensor<Flex, 4> {
        let weights = [[[[1.0, 0.0], [1.0, 0.0]], [[1.0, 0.0], [0.5, 0.5]]]];
        Tensor::from_floats(weights, &Default::default())
    }

    fn numbers(tensor: Tensor<Flex, 2>) -> (Vec<f32>, [usize; 2]) {
        let dims = tensor.dims();
        (tensor.into_data().iter().collect(), dims)
    }

    #[test]
    fn a_head_reads_its_groups_values_or_all() {
        let values =
            Tensor::<Flex, 3>::from_floats([[[1.0, 2.0], [3.0, 6.0]]], &Default::default());
        // Each head has a key/value head of one feature.
        let own = numbers(of_own_values(weights(), values.clone(), 2));
        assert_eq!(own, (vec![1.0, 2.0, 1.0, 4.0], [2, 2]));
        // Both share one of two.
        let shared = numbers(of_own_values(weights(), values.clone(), 1));
        let all = numbers(of_all_values(weights(), values.clone()));
        assert_eq!(all, (vec![1.0, 2.0, 1.0, 2.0, 1.0, 2.0, 2.0, 4.0], [2, 4]));
        assert_eq!(shared, all);
        let groups = [vec![1], vec![0, 1]];
        let chosen = numbers(flat(of_groups(values, 2, &groups)));
        let expected = vec![2.0, 0.0, 1.0, 2.0, 6.0, 0.0, 3.0, 6.0];
        assert_eq!(chosen, (expected, [2, 4]));
    }
}
