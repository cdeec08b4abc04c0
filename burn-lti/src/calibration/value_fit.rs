//! The value map that is best for a given output: normal equations in the map's own parameters.

use faer::Mat;

use super::error::Result;
use super::moments::Moments;
use super::pairs::{self, Pairs, Quadratic};
use super::regularization::Regularization;
use super::solve::{
    Kronecker, by_diagonal, column_major, conjugate_gradients, from_columns, mean_diagonal,
    products, pull, towards,
};
use super::value_features::ValueFeatures;
use super::value_map::ValueMap;

/// Steps of conjugate gradients in a round.
const STEPS: usize = 60;

/// The value map that is best with the output `kernel [s_heads * s_head_dim, d_model]`, as far as some
/// steps bring it from `last`.
pub(super) fn improved(
    features: &ValueFeatures<'_>,
    moments: &Moments,
    last: &ValueMap,
    kernel: &Mat<f64>,
    Regularization { ridge, strength }: Regularization,
) -> Result<ValueMap> {
    let system = ValueSystem::new(features, moments, kernel, strength);
    let shape = (features.count(), features.s_head_dim);
    match last {
        ValueMap::General(blocks) => {
            let (found, _) = system.general(blocks, ridge, shape)?;
            Ok(ValueMap::General(found))
        }
        ValueMap::Factored { a, b } => {
            let b = system.better_b(a, b, ridge);
            let a = system.better_a(a, &b, ridge);
            Ok(ValueMap::Factored { a, b })
        }
        ValueMap::Pairs(pairs) => {
            let (general, pull) = system.general(&pairs.blocks(), ridge, shape)?;
            let nearest = Pairs::nearest_to_blocks(&general, features.t_head_dim, pairs.rank())?;
            // The pull is part of what is made small.
            let apply = |map: &Mat<f64>| {
                let blocks = pairs::blocks(map, features.s_head_dim);
                pairs::joined(&system.apply(&blocks)) + faer::Scale(pull) * map
            };
            let right = pairs::joined(&system.right) + faer::Scale(pull) * pairs.sum();
            let diagonal = pairs::joined(&system.diagonal);
            let diagonal = Mat::from_fn(diagonal.nrows(), diagonal.ncols(), |row, column| {
                diagonal[(row, column)] + pull
            });
            Ok(ValueMap::Pairs(nearest.improved(&Quadratic {
                apply: &apply,
                right,
                diagonal,
            })))
        }
    }
}

/// The normal equations of a value map for a given output.
struct ValueSystem<'a> {
    features: &'a ValueFeatures<'a>,
    gram: &'a Mat<f64>,
    /// `O_v O_u^T` by head `v`, then `u`.
    outputs: Vec<Vec<Mat<f64>>>,
    right: Vec<Mat<f64>>,
    diagonal: Vec<Mat<f64>>,
}

impl<'a> ValueSystem<'a> {
    fn new(
        features: &'a ValueFeatures<'a>,
        moments: &'a Moments,
        kernel: &Mat<f64>,
        strength: f64,
    ) -> Self {
        let (heads, size) = (features.heads.s_query, features.s_head_dim);
        let (group, count) = (features.heads.s_group(), features.count());
        let part = |head: usize| kernel.subrows(head * size, size).to_owned();
        let parts: Vec<Mat<f64>> = (0..heads).map(part).collect();
        let outputs = products(&parts);
        let cross = moments.cross(strength);
        let mut right = vec![Mat::<f64>::zeros(count, size); features.heads.s_key_value];
        let mut diagonal = right.clone();
        for u in 0..heads {
            right[u / group] += cross.subrows(u * count, count) * parts[u].transpose();
            let of_group = outputs.iter().enumerate().skip(u / group * group);
            for (v, outputs) in of_group.take(group) {
                for column in 0..size {
                    for row in 0..count {
                        diagonal[u / group][(row, column)] += moments.gram
                            [(u * count + row, v * count + row)]
                            * outputs[u][(column, column)];
                    }
                }
            }
        }
        // Heads of one group may work against one another; a diagonal must not.
        for column in diagonal.iter_mut().flat_map(Mat::col_iter_mut) {
            column.iter_mut().for_each(|value| *value = value.max(0.0));
        }
        Self {
            features,
            gram: &moments.gram,
            outputs,
            right,
            diagonal,
        }
    }

    /// `sum_u sum_v G_uv M_v O_v O_u^T` for each key/value head.
    fn apply(&self, value: &[Mat<f64>]) -> Vec<Mat<f64>> {
        let (heads, size) = (self.features.heads.s_query, self.features.s_head_dim);
        let (group, features) = (self.features.heads.s_group(), self.features.count());
        let mut images = vec![Mat::<f64>::zeros(features, size); value.len()];
        let mut stacked = Mat::<f64>::zeros(heads * features, size);
        for u in 0..heads {
            for v in 0..heads {
                let block = &value[v / group] * &self.outputs[v][u];
                stacked
                    .subrows_mut(v * features, features)
                    .copy_from(&block);
            }
            images[u / group] += self.gram.subrows(u * features, features) * &stacked;
        }
        images
    }

    /// General maps, as far as some steps bring them from `blocks`, each of that shape, and how strongly
    /// they were pulled back to there, so that what no token decides stays.
    fn general(
        &self,
        blocks: &[Mat<f64>],
        ridge: f64,
        shape: (usize, usize),
    ) -> Result<(Vec<Mat<f64>>, f64)> {
        let apply = |flat: &[f64]| flatten(&self.apply(&unflatten(flat, shape)));
        let diagonal = flatten(&self.diagonal);
        let start = flatten(blocks);
        let pull = pull(ridge, &diagonal);
        let inverses = self.inverses(pull)?;
        let precondition = |residual: &[f64]| {
            let parts = residual.chunks_exact(shape.0 * shape.1).zip(&inverses);
            parts
                .flat_map(|(part, inverse)| inverse.apply(part))
                .collect()
        };
        let (apply, right) = towards(apply, flatten(&self.right), &diagonal, &start, ridge);
        let found = conjugate_gradients(apply, precondition, &right, start, STEPS);
        Ok((unflatten(&found, shape), pull))
    }

    /// For each key/value head what nearly undoes [`Self::apply`] with `pull` on its diagonal: the heads of
    /// its group each by itself, with one Gram matrix for all, their mean by the size of their outputs.
    fn inverses(&self, pull: f64) -> Result<Vec<Kronecker>> {
        let (group, features) = (self.features.heads.s_group(), self.features.count());
        let size = self.features.s_head_dim;
        let inverse = |head: usize| {
            let mut gram = Mat::<f64>::zeros(features, features);
            let mut outputs = Mat::<f64>::zeros(size, size);
            for u in head * group..(head + 1) * group {
                let own = &self.outputs[u][u];
                let begins = u * features;
                let of_head = self.gram.submatrix(begins, begins, features, features);
                gram += faer::Scale(mean_diagonal(own)) * of_head;
                outputs += own;
            }
            let whole = mean_diagonal(&outputs);
            let scale = if whole > 0.0 { 1.0 / whole } else { 0.0 };
            Kronecker::new(&(faer::Scale(scale) * gram), &outputs, pull)
        };
        (0..self.features.heads.s_key_value).map(inverse).collect()
    }

    /// The best `a` beside this `b`.
    fn better_a(&self, a: &Mat<f64>, b: &Mat<f64>, ridge: f64) -> Mat<f64> {
        let (rows, heads, size) = (a.nrows(), a.ncols(), b.nrows());
        let expand = |flat: &[f64]| ValueMap::Factored {
            a: from_columns(flat, rows),
            b: b.clone(),
        };
        let gather = |blocks: &[Mat<f64>], power: i32| {
            let mut sums = Vec::with_capacity(rows * heads);
            for block in blocks {
                for row in 0..rows {
                    let mut sum = 0.0;
                    for column in 0..b.ncols() {
                        for feature in 0..size {
                            let weight = b[(feature, column)].powi(power);
                            sum += block[(row * size + feature, column)] * weight;
                        }
                    }
                    sums.push(sum);
                }
            }
            sums
        };
        let found = self.factor(column_major(a.as_ref()), ridge, expand, gather);
        from_columns(&found, rows)
    }

    /// The best `b` beside this `a`.
    fn better_b(&self, a: &Mat<f64>, b: &Mat<f64>, ridge: f64) -> Mat<f64> {
        let (size, columns) = (b.nrows(), b.ncols());
        let expand = |flat: &[f64]| ValueMap::Factored {
            a: a.clone(),
            b: from_columns(flat, size),
        };
        let gather = |blocks: &[Mat<f64>], power: i32| {
            let mut sums = vec![0.0; size * columns];
            for (head, block) in blocks.iter().enumerate() {
                for row in 0..a.nrows() {
                    let weight = a[(row, head)].powi(power);
                    for column in 0..columns {
                        for feature in 0..size {
                            sums[column * size + feature] +=
                                block[(row * size + feature, column)] * weight;
                        }
                    }
                }
            }
            sums
        };
        let found = self.factor(column_major(b.as_ref()), ridge, expand, gather);
        from_columns(&found, size)
    }

    /// The best numbers of one factor, as far as some steps bring them from `start`. `expand` makes maps of
    /// them, in which they are linear; `gather` is the way back, `expand` transposed, with its
    /// coefficients raised to a power.
    fn factor(
        &self,
        start: Vec<f64>,
        ridge: f64,
        expand: impl Fn(&[f64]) -> ValueMap,
        gather: impl Fn(&[Mat<f64>], i32) -> Vec<f64>,
    ) -> Vec<f64> {
        let diagonal = gather(&self.diagonal, 2);
        let apply = |flat: &[f64]| gather(&self.apply(&expand(flat).blocks()), 1);
        let right = gather(&self.right, 1);
        let (apply, right) = towards(apply, right, &diagonal, &start, ridge);
        conjugate_gradients(apply, by_diagonal(&diagonal), &right, start, STEPS)
    }
}

fn flatten(blocks: &[Mat<f64>]) -> Vec<f64> {
    let blocks = blocks.iter();
    blocks
        .flat_map(|block| column_major(block.as_ref()))
        .collect()
}

fn unflatten(flat: &[f64], (rows, columns): (usize, usize)) -> Vec<Mat<f64>> {
    let blocks = flat.chunks_exact(rows * columns);
    blocks.map(|block| from_columns(block, rows)).collect()
}

#[cfg(test)]
mod tests {
    use burn::backend::Flex;
    use burn::tensor::{Tensor, TensorData};

    use super::super::heads::HeadCounts;
    use super::super::value_features::Span;
    use super::*;

    fn numbers(rows: usize, columns: usize, seed: usize) -> Mat<f64> {
        Mat::from_fn(rows, columns, |i, j| {
            ((i * 7919 + j * 104_729 + i * j * 31 + seed * 613) % 1009) as f64 / 504.5 - 1.0
        })
    }

    fn tensor(matrix: &Mat<f64>) -> Tensor<Flex, 2> {
        let (rows, columns) = (matrix.nrows(), matrix.ncols());
        let places = 0..rows * columns;
        let values: Vec<f32> = places
            .map(|i| matrix[(i / columns, i % columns)] as f32)
            .collect();
        Tensor::from_data(
            TensorData::new(values, [rows, columns]),
            &Default::default(),
        )
    }

    #[test]
    fn values_that_make_the_target_are_found_in_every_form() {
        let features = ValueFeatures {
            heads: HeadCounts::counted([3, 3], [4, 2]),
            query: &[0, 0, 2, 2],
            key_value: &[vec![0], vec![2]],
            t_head_dim: 2,
            s_head_dim: 2,
            span: Span::All,
        };
        // Outputs of 4 heads of 2 features; 6 value features for each.
        let kernel = numbers(8, 12, 1);
        let planted = |seed: usize, size: f64| ValueMap::Factored {
            a: numbers(3, 2, 2) + faer::Scale(size) * numbers(3, 2, seed),
            b: numbers(2, 2, 3) + faer::Scale(size) * numbers(2, 2, seed + 1),
        };
        let rows = numbers(80, 24, 4);
        let blocks = planted(0, 0.0).blocks();
        let outputs: Vec<Mat<f64>> = (0..4)
            .map(|head| rows.subcols(head * 6, 6) * &blocks[head / 2])
            .collect();
        let target = pairs::joined(&outputs) * &kernel;
        let mut moments = Moments::zeros(24, 12);
        let nothing = tensor(&Mat::zeros(80, 12));
        moments
            .add(tensor(&rows), tensor(&target), nothing)
            .unwrap();
        let start = planted(7, 0.1);
        let all = Pairs::nearest_to_blocks(&start.blocks(), 2, 2).unwrap();
        let regularization = Regularization {
            ridge: 1e-9,
            strength: 1.0,
        };
        for start in [
            ValueMap::General(start.blocks()),
            ValueMap::Pairs(all),
            start,
        ] {
            let left = |map: &ValueMap| map.through(&features, &moments).residual(&kernel);
            let found = improved(&features, &moments, &start, &kernel, regularization).unwrap();
            let (before, after) = (left(&start), left(&found));
            assert!(after < 0.1 * before, "{after}, before {before}: {found:?}");
        }
    }
}
