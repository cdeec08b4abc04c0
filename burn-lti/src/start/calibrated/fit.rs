//! The value and output maps of one layer, by least squares in the maps' own parameters.
//!
//! With the attention patterns of a layer fixed, head `u` of the student puts out `F_u M_g O_u`: `F_u`
//! is what its pattern makes of the teacher's values, `M_g` the value map of its key/value head, `O_u`
//! its part of the output kernel. The sum over heads should be the target of
//! [`Moments`](super::moments::Moments). That is linear in `O` for given `M` and in `M` for given `O`, so
//! both are fitted in turn.

use faer::Mat;

use super::moments::Moments;
use super::out::{OutFit, OutMap};
use super::pairs::{self, Pairs, Quadratic};
use super::solve::{Kronecker, by_diagonal, conjugate_gradients, mean_diagonal, ridge};
use super::{CalibrationError, HeadCounts};
use crate::map::MapKind;

/// What a layer's value features are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Span {
    /// The values of all the teacher's key/value heads, in their order: a map may mix them.
    All,
    /// The values of the teacher's head that the student's head began as.
    Own,
}

/// What is fitted, and from what.
#[derive(Debug)]
pub(super) struct LayerFit<'a> {
    pub(super) heads: HeadCounts,
    /// The teacher's key/value head for each of the student's.
    pub(super) key_value: &'a [usize],
    pub(super) t_head_dim: usize,
    pub(super) s_head_dim: usize,
    pub(super) span: Span,
    pub(super) value: MapKind,
    pub(super) out: &'a OutMap,
    /// Of the tokens that are fitted on.
    pub(super) fitted: &'a Moments,
    /// Of the tokens by which ridge, strength and rounds are chosen.
    pub(super) held_out: &'a Moments,
}

/// How strictly a layer is fitted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Firmness {
    /// Added to the diagonal, as a part of its mean.
    pub(super) ridge: f64,
    /// How much of the way back to the teacher's residual stream the layer should take.
    pub(super) strength: f64,
}

/// The maps of a layer.
#[derive(Clone, Debug)]
pub(super) struct Fitted {
    pub(super) value: ValueMap,
    pub(super) out: OutFit,
    pub(super) firmness: Firmness,
    /// Rounds of value and output that were worth it.
    pub(super) rounds: usize,
    /// Relative squared distance to the full target on held-out tokens, while these were no part of the
    /// fit: of the output alone, with the values as they began, and after all rounds.
    pub(super) residuals: [f64; 2],
}

/// A value map, before it has its shape.
#[derive(Clone, Debug)]
pub(super) enum ValueMap {
    /// For each key/value head of the student, `[value features, s_head_dim]`.
    General(Vec<Mat<f64>>),
    /// `a [t_kv_heads, s_kv_heads]`, or `[1, s_kv_heads]` over own values alone, and
    /// `b [t_head_dim, s_head_dim]`.
    Factored { a: Mat<f64>, b: Mat<f64> },
    /// A sum of several pairs, over all the teacher's heads, or over own values alone.
    Pairs(Pairs),
}

impl ValueMap {
    /// As one matrix a key/value head.
    fn blocks(&self) -> Vec<Mat<f64>> {
        match self {
            Self::General(blocks) => blocks.clone(),
            Self::Factored { a, b } => (0..a.ncols())
                .map(|head| {
                    Mat::from_fn(a.nrows() * b.nrows(), b.ncols(), |row, column| {
                        a[(row / b.nrows(), head)] * b[(row % b.nrows(), column)]
                    })
                })
                .collect(),
            Self::Pairs(pairs) => pairs.blocks(),
        }
    }
}

/// Ridges to choose from. The first keeps what there was.
const RIDGES: [f64; 9] = [f64::INFINITY, 1.0, 1e-1, 3e-2, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6];

/// What a change must save on held-out tokens, as a part of the target's squared size: less is rounding.
const WORTH: f64 = 1e-6;

/// Steps of conjugate gradients in a round.
const STEPS: usize = 60;

/// The two maps of a layer that are fitted in turn.
type Maps = (ValueMap, OutFit);

impl LayerFit<'_> {
    /// Fits the layer with the best firmness for the held-out tokens, and at most so many rounds.
    ///
    /// # Errors
    ///
    /// [`CalibrationError::Singular`].
    pub(super) fn run(
        &self,
        strengths: &[f64],
        most_rounds: usize,
    ) -> Result<Fitted, CalibrationError> {
        let start = self.start()?;
        let firmness = self.firmness(&start, strengths)?;
        let mut best = self.output(self.fitted, &start, firmness)?;
        let first = self.residual(&best);
        let (mut least, mut rounds) = (first, 0);
        let most_rounds = if firmness.ridge.is_finite() {
            most_rounds
        } else {
            0
        };
        for round in 1..=most_rounds {
            let next = self.round(self.fitted, &best, firmness)?;
            let residual = self.residual(&next);
            if residual > least - WORTH {
                break;
            }
            (best, least, rounds) = (next, residual, round);
        }
        // What was chosen by the held-out tokens is fitted once more, on all.
        let all = self.fitted.plus(self.held_out);
        let mut last = self.output(&all, &start, firmness)?;
        for _ in 0..rounds {
            last = self.round(&all, &last, firmness)?;
        }
        Ok(Fitted {
            value: last.0,
            out: last.1,
            firmness,
            rounds,
            residuals: [first, least],
        })
    }

    /// The strictest fit that held-out tokens bear out.
    fn firmness(
        &self,
        (value, out): &Maps,
        strengths: &[f64],
    ) -> Result<Firmness, CalibrationError> {
        let fitted = self.through(self.fitted, value);
        let held_out = self.through(self.held_out, value);
        let mut best = Firmness {
            ridge: f64::INFINITY,
            strength: 1.0,
        };
        let mut least = held_out.residual(&out.kernel);
        let spectrum = self.out.spectrum(&fitted, &held_out, out)?;
        // `None` with a ridge too little for the rounding of the sums; another one will do.
        let residual = |firmness: Firmness| match &spectrum {
            Some(spectrum) => Ok(spectrum.residual(firmness)),
            None => match self.out.fit(&fitted, firmness, out) {
                Err(CalibrationError::Singular { .. }) => Ok(None),
                out => out.map(|out| Some(held_out.residual(&out.kernel))),
            },
        };
        for &strength in strengths {
            for ridge in RIDGES {
                let firmness = Firmness { ridge, strength };
                let Some(residual) = residual(firmness)? else {
                    continue;
                };
                if residual < least - WORTH {
                    (best, least) = (firmness, residual);
                }
            }
        }
        Ok(best)
    }

    /// Values and output once more, in turn.
    fn round(
        &self,
        moments: &Moments,
        (value, out): &Maps,
        firmness: Firmness,
    ) -> Result<Maps, CalibrationError> {
        let value = self.improved(moments, value, &out.kernel, firmness)?;
        self.output(moments, &(value, out.clone()), firmness)
    }

    /// The output that goes with the value map.
    fn output(
        &self,
        moments: &Moments,
        (value, out): &Maps,
        firmness: Firmness,
    ) -> Result<Maps, CalibrationError> {
        let out = self.out.fit(&self.through(moments, value), firmness, out)?;
        Ok((value.clone(), out))
    }

    fn residual(&self, (value, out): &Maps) -> f64 {
        self.through(self.held_out, value).residual(&out.kernel)
    }

    /// Moments of the student's head outputs.
    fn through(&self, moments: &Moments, value: &ValueMap) -> Moments {
        let blocks = value.blocks();
        let of_heads: Vec<&Mat<f64>> = (0..self.heads.s_query)
            .map(|head| &blocks[head / self.heads.s_group()])
            .collect();
        moments.through(&of_heads)
    }

    /// Value features of one head.
    fn features(&self) -> usize {
        match self.span {
            Span::All => self.heads.t_key_value * self.t_head_dim,
            Span::Own => self.t_head_dim,
        }
    }

    /// Where the values of the teacher's head `head` begin among the features of a student's head that
    /// began as it.
    fn own_features(&self, student: usize) -> usize {
        match self.span {
            Span::All => self.key_value[student] * self.t_head_dim,
            Span::Own => 0,
        }
    }

    /// Each head with the values of the head that it began as: all of them, or where the student's heads
    /// are smaller, as many directions, those that the best output of whole heads hears most of.
    fn start(&self) -> Result<Maps, CalibrationError> {
        let (teacher, student) = (self.t_head_dim, self.s_head_dim);
        let whole = |size: usize| {
            Mat::from_fn(teacher, size, |row, column| {
                f64::from(u8::from(row == column))
            })
        };
        let kept: Vec<Mat<f64>> = match student < teacher {
            true => self.loudest(&whole(teacher))?,
            false => vec![whole(student); self.heads.s_key_value],
        };
        let of_heads: Vec<&Mat<f64>> = (0..self.heads.s_query)
            .map(|head| &kept[head / self.heads.s_group()])
            .collect();
        let out = self.out.first(&of_heads)?;
        let value = match self.value {
            // What a larger head has left over hears the next head's values, so that it can learn.
            MapKind::General if student > teacher => {
                let features = self.features();
                let heads = 0..self.heads.s_key_value;
                let wrapped = heads.map(|head| {
                    Mat::from_fn(features, student, |row, column| {
                        let own = (self.own_features(head) + column) % features;
                        f64::from(u8::from(row == own))
                    })
                });
                ValueMap::General(wrapped.collect())
            }
            MapKind::General => {
                let placed = kept.iter().enumerate();
                ValueMap::General(placed.map(|(head, kept)| self.placed(head, kept)).collect())
            }
            MapKind::Kronecker(rank) => {
                // What a larger head has left over hears its values again, so that it can learn.
                let again = |kept: &Mat<f64>| {
                    Mat::from_fn(teacher, student, |row, column| {
                        kept[(row, column % teacher.min(student))]
                    })
                };
                let placed = kept.iter().enumerate();
                let placed = placed.map(|(head, kept)| self.placed(head, &again(kept)));
                let blocks: Vec<Mat<f64>> = placed.collect();
                ValueMap::Pairs(Pairs::nearest_to_blocks(&blocks, teacher, rank)?)
            }
            MapKind::Factored => ValueMap::Factored {
                a: Mat::from_fn(
                    self.features() / teacher,
                    self.heads.s_key_value,
                    |row, head| f64::from(u8::from(row * teacher == self.own_features(head))),
                ),
                b: kept[0].clone(),
            },
        };
        Ok((value, out))
    }

    /// `kept [t_head_dim, s_head_dim]` of a head's own values, among all its features.
    fn placed(&self, student: usize, kept: &Mat<f64>) -> Mat<f64> {
        let begins = self.own_features(student);
        let mut placed = Mat::zeros(self.features(), kept.ncols());
        placed.subrows_mut(begins, kept.nrows()).copy_from(kept);
        placed
    }

    /// For each key/value head the directions of its own values that matter most to the output, or the
    /// same for all where the map is factored: the leading eigenvectors of `sum_u L^T O_u O_u^T L`, where
    /// `O` is the best output of whole heads and `L L^T` the heads' own second moments.
    fn loudest(&self, whole: &Mat<f64>) -> Result<Vec<Mat<f64>>, CalibrationError> {
        let blocks: Vec<Mat<f64>> = (0..self.heads.s_key_value)
            .map(|head| self.placed(head, whole))
            .collect();
        let of_heads: Vec<&Mat<f64>> = (0..self.heads.s_query)
            .map(|head| &blocks[head / self.heads.s_group()])
            .collect();
        let own = self.fitted.through(&of_heads);
        let output = ridge(&own.gram, &own.cross(1.0), 1e-4)?;
        // A factor, of values or output, has one set of directions for all heads.
        let shared = self.value != MapKind::General || self.out.kind() != MapKind::General;
        let group = self.heads.s_group();
        let groups = (0..self.heads.s_key_value).map(|head| match shared {
            true => 0..self.heads.s_query,
            false => head * group..(head + 1) * group,
        });
        let size = self.t_head_dim;
        groups
            .map(|group| {
                let mut gram = Mat::<f64>::zeros(size, size);
                let mut heard = Mat::<f64>::zeros(size, size);
                for head in group {
                    gram += own.gram.submatrix(head * size, head * size, size, size);
                    let rows = output.subrows(head * size, size);
                    heard += rows * rows.transpose();
                }
                leading(&gram, &heard, self.s_head_dim)
            })
            .collect()
    }

    /// The value map that is best with the output `kernel`, as far as some steps bring it.
    fn improved(
        &self,
        moments: &Moments,
        last: &ValueMap,
        kernel: &Mat<f64>,
        firmness: Firmness,
    ) -> Result<ValueMap, CalibrationError> {
        let system = ValueSystem::new(self, moments, kernel, firmness.strength);
        let shape = (self.features(), self.s_head_dim);
        match last {
            ValueMap::General(blocks) => {
                let (found, _) = system.general(blocks, firmness.ridge, shape)?;
                Ok(ValueMap::General(found))
            }
            ValueMap::Factored { a, b } => {
                let b = system.better_b(a, b, firmness.ridge);
                let a = system.better_a(a, &b, firmness.ridge);
                Ok(ValueMap::Factored { a, b })
            }
            ValueMap::Pairs(pairs) => {
                let (general, pull) = system.general(&pairs.blocks(), firmness.ridge, shape)?;
                let nearest = Pairs::nearest_to_blocks(&general, self.t_head_dim, pairs.rank())?;
                // The pull is part of what is made small.
                let apply = |map: &Mat<f64>| {
                    let blocks = pairs::blocks(map, self.s_head_dim);
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
}

/// The `count` directions that carry most of `heard` in the metric of `gram`, as columns.
fn leading(gram: &Mat<f64>, heard: &Mat<f64>, count: usize) -> Result<Mat<f64>, CalibrationError> {
    let singular = CalibrationError::Singular { ridge: 1e-6 };
    let size = gram.nrows();
    let factor = super::solve::ridged(gram, 1e-6).llt(faer::Side::Lower);
    let Ok(factor) = factor else {
        return Err(singular);
    };
    let lower = factor.L();
    let inner = lower.transpose() * heard * lower;
    let Ok(eigen) = inner.self_adjoint_eigen(faer::Side::Lower) else {
        return Err(singular);
    };
    // In ascending order.
    let vectors = eigen.U();
    let mut kept = Mat::from_fn(size, count, |row, column| vectors[(row, size - 1 - column)]);
    // F M has these directions of its own second moments: M = L^-T E, scaled to the size of values.
    faer::linalg::triangular_solve::solve_upper_triangular_in_place(
        lower.transpose(),
        kept.as_mut(),
        faer::Par::Seq,
    );
    let scale = mean_diagonal(gram).sqrt();
    Ok(faer::Scale(scale) * kept)
}

/// The normal equations of a value map for a given output.
struct ValueSystem<'a> {
    fit: &'a LayerFit<'a>,
    gram: &'a Mat<f64>,
    /// `O_v O_u^T` by head `v`, then `u`.
    outputs: Vec<Vec<Mat<f64>>>,
    right: Vec<Mat<f64>>,
    diagonal: Vec<Mat<f64>>,
}

impl<'a> ValueSystem<'a> {
    fn new(fit: &'a LayerFit<'a>, moments: &'a Moments, kernel: &Mat<f64>, strength: f64) -> Self {
        let (heads, size) = (fit.heads.s_query, fit.s_head_dim);
        let (group, features) = (fit.heads.s_group(), fit.features());
        let part = |head: usize| kernel.subrows(head * size, size);
        let outputs: Vec<Vec<Mat<f64>>> = (0..heads)
            .map(|v| (0..heads).map(|u| part(v) * part(u).transpose()).collect())
            .collect();
        let cross = moments.cross(strength);
        let mut right = vec![Mat::<f64>::zeros(features, size); fit.heads.s_key_value];
        let mut diagonal = right.clone();
        for u in 0..heads {
            right[u / group] += cross.subrows(u * features, features) * part(u).transpose();
            let of_group = outputs.iter().enumerate().skip(u / group * group);
            for (v, outputs) in of_group.take(group) {
                for column in 0..size {
                    for row in 0..features {
                        diagonal[u / group][(row, column)] += moments.gram
                            [(u * features + row, v * features + row)]
                            * outputs[u][(column, column)];
                    }
                }
            }
        }
        // Heads of one group may work against one another; a diagonal must not.
        for block in &mut diagonal {
            for column in 0..size {
                for row in 0..features {
                    block[(row, column)] = block[(row, column)].max(0.0);
                }
            }
        }
        Self {
            fit,
            gram: &moments.gram,
            outputs,
            right,
            diagonal,
        }
    }

    /// `sum_u sum_v G_uv M_v O_v O_u^T` for each key/value head.
    fn apply(&self, value: &[Mat<f64>]) -> Vec<Mat<f64>> {
        let (heads, size) = (self.fit.heads.s_query, self.fit.s_head_dim);
        let (group, features) = (self.fit.heads.s_group(), self.fit.features());
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
    ) -> Result<(Vec<Mat<f64>>, f64), CalibrationError> {
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
    /// its group each by itself, with one gram for all, their mean by the size of their outputs.
    fn inverses(&self, pull: f64) -> Result<Vec<Kronecker>, CalibrationError> {
        let (group, features) = (self.fit.heads.s_group(), self.fit.features());
        let size = self.fit.s_head_dim;
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
        (0..self.fit.heads.s_key_value).map(inverse).collect()
    }

    /// The best `a` beside this `b`.
    fn better_a(&self, a: &Mat<f64>, b: &Mat<f64>, ridge: f64) -> Mat<f64> {
        let (rows, heads, size) = (a.nrows(), a.ncols(), b.nrows());
        let unflattened =
            |flat: &[f64]| Mat::from_fn(rows, heads, |row, head| flat[head * rows + row]);
        let expand = |flat: &[f64]| ValueMap::Factored {
            a: unflattened(flat),
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
        let start = (0..heads).flat_map(|head| (0..rows).map(move |row| a[(row, head)]));
        unflattened(&self.factor(start.collect(), ridge, expand, gather))
    }

    /// The best `b` beside this `a`.
    fn better_b(&self, a: &Mat<f64>, b: &Mat<f64>, ridge: f64) -> Mat<f64> {
        let (size, columns) = (b.nrows(), b.ncols());
        let unflattened =
            |flat: &[f64]| Mat::from_fn(size, columns, |row, column| flat[column * size + row]);
        let expand = |flat: &[f64]| ValueMap::Factored {
            a: a.clone(),
            b: unflattened(flat),
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
        let start = (0..columns).flat_map(|column| (0..size).map(move |row| b[(row, column)]));
        unflattened(&self.factor(start.collect(), ridge, expand, gather))
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

/// The same equations with `ridge` times the mean of the diagonal pulling towards `start`.
pub(super) fn towards<'f>(
    apply: impl Fn(&[f64]) -> Vec<f64> + 'f,
    mut right: Vec<f64>,
    diagonal: &[f64],
    start: &[f64],
    ridge: f64,
) -> (impl Fn(&[f64]) -> Vec<f64> + 'f, Vec<f64>) {
    let pull = pull(ridge, diagonal);
    for (right, start) in right.iter_mut().zip(start) {
        *right += pull * start;
    }
    let apply = move |flat: &[f64]| {
        let mut image = apply(flat);
        for (image, value) in image.iter_mut().zip(flat) {
            *image += pull * value;
        }
        image
    };
    (apply, right)
}

/// `ridge` as a part of the mean diagonal.
fn pull(ridge: f64, diagonal: &[f64]) -> f64 {
    ridge * diagonal.iter().sum::<f64>() / diagonal.len().max(1) as f64
}

fn flatten(blocks: &[Mat<f64>]) -> Vec<f64> {
    let mut flat = Vec::new();
    for block in blocks {
        for column in 0..block.ncols() {
            flat.extend((0..block.nrows()).map(|row| block[(row, column)]));
        }
    }
    flat
}

fn unflatten(flat: &[f64], (rows, columns): (usize, usize)) -> Vec<Mat<f64>> {
    flat.chunks_exact(rows * columns)
        .map(|block| Mat::from_fn(rows, columns, |row, column| block[column * rows + row]))
        .collect()
}
