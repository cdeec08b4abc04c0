//! Maps that commute with a rotary embedding.
//!
//! A rotary embedding multiplies each of its pairs of features, read as a complex number, by one of length 1 that
//! follows from position and pair (Su et al. 2021). What commutes with that at every position is a mixing of heads
//! by complex numbers, pair by pair: `z[u, p] = sum_x k[x, p] (a[x, u, p] + i b[x, u, p])`. Features that do not
//! turn may be mixed by any numbers. So is each gradient of it, whatever the loss.

use burn::prelude::*;
use burn::tensor::TensorData;

use super::MapKind;
use crate::geometry::{HeadGrid, nearest_pairs};

/// How many heads a rotary map is between, and how their features are paired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RotaryShape {
    /// Heads of teacher and student.
    pub(crate) heads: [usize; 2],
    /// Features of their heads.
    pub(crate) sizes: [usize; 2],
    /// Pairs of a head that turn.
    pub(crate) pairs: [usize; 2],
}

impl RotaryShape {
    /// Whether so many pairs can turn in a head.
    pub(super) const fn exists(head_dim: usize, pairs: usize) -> bool {
        head_dim.is_multiple_of(2) && pairs > 0 && 2 * pairs <= head_dim
    }

    /// Of a map of this form between heads; `None` of another form.
    pub(super) const fn between(
        map: MapKind,
        t_heads: HeadGrid,
        s_heads: HeadGrid,
    ) -> Option<Self> {
        match map {
            MapKind::Rotary { teacher, student } => Some(Self {
                heads: [t_heads.heads, s_heads.heads],
                sizes: [t_heads.head_dim, s_heads.head_dim],
                pairs: [teacher, student],
            }),
            _ => None,
        }
    }

    /// Of the shapes of `R` and of `W` beside it, over so many features of the teacher; `None` if they make no map.
    pub(super) fn of(
        features: usize,
        [s_pairs, parts, s_heads]: [usize; 3],
        still: Option<[usize; 2]>,
    ) -> Option<Self> {
        let t_heads = parts / 2;
        let parted = |all: usize, heads: usize| all.is_multiple_of(heads).then(|| all / heads);
        if t_heads == 0 || s_heads == 0 || !parts.is_multiple_of(2) {
            return None;
        }
        let t_size = parted(features, t_heads)?;
        let [t_still, s_still] = match still {
            Some([rows, columns]) => [parted(rows, t_heads)?, parted(columns, s_heads)?],
            None => [0, 0],
        };
        let t_turning = t_size.checked_sub(t_still)?;
        let shape = Self {
            heads: [t_heads, s_heads],
            sizes: [t_size, 2 * s_pairs + s_still],
            pairs: [t_turning / 2, s_pairs],
        };
        let exists = |of: usize| Self::exists(shape.sizes[of], shape.pairs[of]);
        (t_turning.is_multiple_of(2) && exists(0) && exists(1)).then_some(shape)
    }

    /// The form of such a map.
    pub(super) const fn kind(self) -> MapKind {
        MapKind::Rotary {
            teacher: self.pairs[0],
            student: self.pairs[1],
        }
    }

    /// The features of a head that do not turn, of teacher (0) or student (1).
    pub(crate) fn still(&self, of: usize) -> Vec<usize> {
        let (half, turning) = (self.sizes[of] / 2, self.pairs[of]);
        (turning..half).chain(half + turning..2 * half).collect()
    }

    /// For each pair of a student's head that turns, the two features of a teacher's head that it is made of.
    pub(crate) fn sources(&self) -> Vec<[usize; 2]> {
        let half = self.sizes[0] / 2;
        let pairs = nearest_pairs(self.pairs[0], self.pairs[1]).into_iter();
        pairs.map(|pair| [pair, pair + half]).collect()
    }

    /// For each feature of a student's head one of a teacher's head that lies in the map: of a pair its source, of
    /// what does not turn the nearest that does not.
    pub(crate) fn nearest_features(&self) -> Vec<usize> {
        let [t_half, s_half] = self.sizes.map(|size| size / 2);
        let [t_turning, s_turning] = self.pairs;
        let still = nearest_pairs(t_half - t_turning, s_half - s_turning).into_iter();
        let first = nearest_pairs(t_turning, s_turning).into_iter();
        let first: Vec<usize> = first.chain(still.map(|pair| t_turning + pair)).collect();
        let second = first.iter().map(|feature| feature + t_half);
        first.iter().copied().chain(second).collect()
    }

    /// Multiply-adds for each row that it is applied to: a real product of `2 x` by `2 u` for each pair, and one
    /// over what does not turn.
    pub(super) const fn cost(&self) -> usize {
        let [t_still, s_still] = [
            self.sizes[0].saturating_sub(2 * self.pairs[0]),
            self.sizes[1].saturating_sub(2 * self.pairs[1]),
        ];
        self.heads[0] * self.heads[1] * (4 * self.pairs[1] + t_still * s_still)
    }

    /// The student's features.
    pub(super) const fn features(&self) -> usize {
        self.heads[1] * self.sizes[1]
    }

    /// `R`, and `W` of what does not turn, of the map that has each feature of a student's head be its own in the
    /// teacher's heads, mixed by these weights.
    pub(super) fn picked(
        &self,
        weight: impl Fn(usize, usize) -> f32,
    ) -> (Vec<f32>, Option<Vec<f32>>) {
        let ([t_heads, s_heads], still) = (self.heads, [self.still(0), self.still(1)]);
        let mut r = Vec::with_capacity(self.pairs[1] * 2 * t_heads * s_heads);
        for _ in 0..self.pairs[1] {
            let heads =
                (0..t_heads).flat_map(|head| (0..s_heads).map(move |s_head| (head, s_head)));
            r.extend(heads.map(|(head, s_head)| weight(head, s_head)));
            r.resize(r.len() + t_heads * s_heads, 0.0);
        }
        let [of, to] = still.map(|features| features.len());
        let mut w = vec![0.0; t_heads * of * s_heads * to];
        for head in 0..t_heads {
            for s_head in 0..s_heads {
                for feature in 0..of.min(to) {
                    let (row, column) = (head * of + feature, s_head * to + feature);
                    w[row * s_heads * to + column] = weight(head, s_head);
                }
            }
        }
        (r, (of + to > 0).then_some(w))
    }

    /// `M R`, `m [rows, t_features] -> [rows, s_features]`: the pairs of all heads side by side, a batch of
    /// products, and what does not turn beside them.
    pub(super) fn apply<B: Backend>(
        &self,
        m: Tensor<B, 2>,
        r: Tensor<B, 3>,
        still: Option<Tensor<B, 2>>,
    ) -> Tensor<B, 2> {
        let ([x, u], [y, v], [_, pairs]) = (self.heads, self.sizes, self.pairs);
        let [rows, _] = m.dims();
        let m = m.reshape([rows, x, y]);
        let sources = self.sources();
        let halves = [0, 1].map(|half| sources.iter().map(move |source| source[half]));
        let of_pairs = chosen(m.clone(), halves.into_iter().flatten())
            .reshape([rows, x, 2, pairs])
            .permute([3, 0, 2, 1])
            .reshape([pairs, rows, 2 * x]);
        // (c_re + i c_im) (a + i b), as real numbers.
        let (a, b) = (r.clone().narrow(1, 0, x), r.narrow(1, x, x));
        let real = Tensor::cat(vec![a.clone(), b.clone().neg()], 1);
        let imaginary = Tensor::cat(vec![b, a], 1);
        let turned = of_pairs
            .matmul(Tensor::cat(vec![real, imaginary], 2))
            .reshape([pairs, rows, 2, u])
            .permute([1, 3, 2, 0])
            .reshape([rows, u, 2 * pairs]);
        let Some(w) = still else {
            return turned.reshape([rows, u * v]);
        };
        let [of, to] = [self.still(0), self.still(1)];
        let mixed = chosen(m, of.iter().copied())
            .reshape([rows, x * of.len()])
            .matmul(w)
            .reshape([rows, u, to.len()]);
        let half = to.len() / 2;
        let heads = vec![
            turned.clone().narrow(2, 0, pairs),
            mixed.clone().narrow(2, 0, half),
            turned.narrow(2, pairs, pairs),
            mixed.narrow(2, half, half),
        ];
        Tensor::cat(heads, 2).reshape([rows, u * v])
    }
}

/// These features of every head, in this order: `m [rows, heads, features]`.
fn chosen<B: Backend>(m: Tensor<B, 3>, features: impl Iterator<Item = usize>) -> Tensor<B, 3> {
    let features: Vec<i64> = features.map(|feature| feature as i64).collect();
    let [_, _, all] = m.dims();
    if features.iter().copied().eq(0..all as i64) {
        return m;
    }
    let count = features.len();
    let index = Tensor::from_data(TensorData::new(features, [count]), &m.device());
    m.select(2, index)
}

#[cfg(test)]
mod tests {
    use super::super::AxisSpec;
    use super::*;

    #[test]
    fn a_shape_follows_from_its_tensors() {
        for (sizes, pairs) in [([8, 8], [4, 4]), ([8, 4], [4, 2]), ([8, 12], [2, 3])] {
            let spec = AxisSpec::mapped(
                MapKind::Rotary {
                    teacher: pairs[0],
                    student: pairs[1],
                },
                HeadGrid::new(6, sizes[0]),
                HeadGrid::new(3, sizes[1]),
            );
            let asked = spec.rotary();
            let found = RotaryShape::of(6 * sizes[0], spec.r_shape(), spec.still_shape());
            assert_eq!(found, asked);
            assert_eq!(found.map(|shape| Some(shape.kind())), Some(spec.map));
        }
        // Heads that do not part the features, an odd number of those that turn, none.
        assert_eq!(RotaryShape::of(20, [2, 6, 1], None), None);
        assert_eq!(RotaryShape::of(24, [2, 6, 1], Some([9, 3])), None);
        assert_eq!(RotaryShape::of(24, [0, 6, 1], None), None);
        assert_eq!(RotaryShape::of(24, [2, 5, 1], None), None);
        assert_eq!(RotaryShape::of(0, [0, 0, 0], None), None);
    }

    #[test]
    fn what_does_not_turn_is_the_end_of_each_half() {
        let shape = RotaryShape {
            heads: [1, 1],
            sizes: [8, 4],
            pairs: [2, 1],
        };
        assert_eq!(shape.still(0), [2, 3, 6, 7]);
        assert_eq!(shape.still(1), [1, 3]);
        assert_eq!(shape.sources(), [[0, 4]]);
        assert_eq!(shape.nearest_features(), [0, 2, 4, 6]);
        assert_eq!(shape.cost(), 4 + 4 * 2);
    }
}
