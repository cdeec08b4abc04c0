//! The output map: least squares in its own parameters.

use faer::Mat;
use faer::linalg::solvers::{Llt, Solve};

use super::error::Result;
use super::heads::HeadCounts;
use super::map_values::MapValues;
use super::moments::Moments;
use super::out_factors::{Equations, OutFactors};
use super::pairs::{Pairs, Quadratic};
use super::regularization::Regularization;
use super::solve::{self, cholesky, ridge, ridged};
use super::spectrum::Spectrum;
use crate::map::MapKind;

/// The teacher's output kernel and what can be made of it.
#[derive(Debug)]
pub(super) struct OutMap {
    kind: MapKind,
    /// The kernel `C`.
    factors: OutFactors,
    /// The teacher's query head for each of the student's: where a factored map begins.
    query: Vec<usize>,
    /// `C C^T`
    gram: Mat<f64>,
    /// Factor of `C C^T`.
    span: Llt<f64>,
}

/// An output map that was fitted.
#[derive(Clone, Debug)]
pub(super) struct OutFit {
    pub(super) values: MapValues,
    /// What the map makes of `C`: `[s_heads * s_head_dim, d_model]`.
    pub(super) kernel: Mat<f64>,
}

/// `C C^T` may be singular where the teacher's heads are together wider than the model.
const SPAN_RIDGE: f64 = 1e-9;

impl OutFit {
    /// As an axis map has them. (The fit keeps the `B` of two factors as `[s_head_dim, t_head_dim]`, which
    /// makes the kernel's rows.)
    pub(super) fn map_values(&self) -> MapValues {
        match &self.values {
            MapValues::Factored { a, b } => MapValues::Factored {
                a: a.clone(),
                b: b.transpose().to_owned(),
            },
            values => values.clone(),
        }
    }
}

impl OutMap {
    /// Over `kernel [t_heads * t_head_dim, d_model]`.
    pub(super) fn new(
        kind: MapKind,
        heads: HeadCounts,
        [t_head_dim, s_head_dim]: [usize; 2],
        query: &[usize],
        kernel: Mat<f64>,
    ) -> Result<Self> {
        let gram = &kernel * kernel.transpose();
        Ok(Self {
            kind,
            factors: OutFactors {
                heads,
                t_head_dim,
                s_head_dim,
                kernel,
            },
            query: query.to_vec(),
            span: cholesky(&gram, SPAN_RIDGE)?,
            gram,
        })
    }

    /// The form of the map.
    pub(super) const fn kind(&self) -> MapKind {
        self.kind
    }

    /// The map that hands each of the student's heads to where the teacher's own went. `kept` is for each
    /// of the student's heads what it keeps of the values of the head that it began as,
    /// `[t_head_dim, s_head_dim]`; what it keeps goes on as it did.
    pub(super) fn first(&self, kept: &[&Mat<f64>]) -> Result<OutFit> {
        let size = self.factors.s_head_dim;
        let heads = self.factors.heads;
        let back: Vec<Mat<f64>> = kept
            .iter()
            .map(|kept| {
                let gram = kept.transpose() * *kept;
                ridge(&gram, &kept.transpose().to_owned(), SPAN_RIDGE)
            })
            .collect::<Result<_, _>>()?;
        if self.kind == MapKind::Factored {
            let a = Mat::from_fn(heads.t_query, heads.s_query, |t, s| {
                f64::from(self.query[s] == t) / self.copies(s)
            });
            let b = back
                .into_iter()
                .next()
                .unwrap_or_else(|| Mat::zeros(size, self.factors.t_head_dim));
            let kernel = self.factors.made(&a, &b);
            return Ok(OutFit {
                values: MapValues::Factored { a, b },
                kernel,
            });
        }
        let mut map = Mat::zeros(self.factors.kernel.nrows(), heads.s_query * size);
        for (student, back) in back.iter().enumerate() {
            for column in 0..size {
                for row in 0..self.factors.t_head_dim {
                    let teacher = self.query[student] * self.factors.t_head_dim + row;
                    map[(teacher, student * size + column)] =
                        back[(column, row)] / self.copies(student);
                }
            }
        }
        match self.kind {
            MapKind::Kronecker(rank) => {
                Ok(self.of_pairs(Pairs::nearest(&map, self.head_sizes(), rank)?))
            }
            MapKind::Factored | MapKind::General | MapKind::Rotary { .. } => Ok(self.of_map(map)),
        }
    }

    const fn head_sizes(&self) -> [usize; 2] {
        [self.factors.t_head_dim, self.factors.s_head_dim]
    }

    fn of_map(&self, map: Mat<f64>) -> OutFit {
        OutFit {
            kernel: map.transpose() * &self.factors.kernel,
            values: MapValues::General(map),
        }
    }

    fn of_pairs(&self, pairs: Pairs) -> OutFit {
        OutFit {
            kernel: pairs.sum().transpose() * &self.factors.kernel,
            values: MapValues::Pairs(pairs),
        }
    }

    /// How many of the student's heads began as the same one as this, and share its output.
    fn copies(&self, student: usize) -> f64 {
        let same = self
            .query
            .iter()
            .filter(|query| **query == self.query[student]);
        same.count() as f64
    }

    /// The map whose kernel best makes the target out of the heads' outputs; the ridge pulls towards
    /// `last`, and an infinite one keeps it.
    pub(super) fn fit(
        &self,
        moments: &Moments,
        Regularization { ridge, strength }: Regularization,
        last: &OutFit,
    ) -> Result<OutFit> {
        if ridge.is_infinite() {
            return Ok(last.clone());
        }
        let equations = Equations {
            gram: &moments.gram,
            cross: moments.cross(strength),
            ridge,
        };
        match &last.values {
            MapValues::General(_) => Ok(self.of_map(self.nearest(&equations, &last.kernel)?)),
            MapValues::Pairs(_) => self.pairs(&equations, &last.kernel),
            MapValues::Factored { a, b } => {
                let (a, b) = self.factors.fit(&equations, (a, b))?;
                let kernel = self.factors.made(&a, &b);
                Ok(OutFit {
                    values: MapValues::Factored { a, b },
                    kernel,
                })
            }
        }
    }

    /// What all ridges and strengths leave on held-out tokens, where that can be had at once.
    pub(super) fn spectrum(
        &self,
        fitted: &Moments,
        held_out: &Moments,
        last: &OutFit,
    ) -> Result<Option<Spectrum>> {
        if self.kind != MapKind::General {
            return Ok(None);
        }
        let onto = |free: &Mat<f64>| self.nearest_to(free).transpose() * &self.factors.kernel;
        Spectrum::new(fitted, held_out, &last.kernel, onto).map(Some)
    }

    /// The general map whose kernel is nearest to `free [s_heads * s_head_dim, d_model]`. With the
    /// moments' metric on one side of the kernel alone, that is also the best map for the target.
    fn nearest_to(&self, free: &Mat<f64>) -> Mat<f64> {
        self.span.solve(&self.factors.kernel * free.transpose())
    }

    /// The general map that is nearest to the kernel that would be best if a map could make every one.
    fn nearest(&self, equations: &Equations<'_>, last: &Mat<f64>) -> Result<Mat<f64>> {
        let Equations { gram, cross, ridge } = equations;
        let missing = cross - *gram * last;
        Ok(self.nearest_to(&(solve::ridge(gram, &missing, *ridge)? + last)))
    }

    /// What a general map would be fitted to, by as many pairs as there are, in the fit's own metric.
    fn pairs(&self, equations: &Equations<'_>, last: &Mat<f64>) -> Result<OutFit> {
        let general = self.nearest(equations, last)?;
        let Equations { gram, cross, ridge } = equations;
        let rank = self.kind.pairs().unwrap_or(1);
        // The ridge is part of what is made small: Gram matrix and target of the free kernel's own equations.
        let with_ridge = ridged(gram, *ridge);
        let apply = |map: &Mat<f64>| &self.gram * map * &with_ridge;
        let right = &self.factors.kernel * (cross + (&with_ridge - *gram) * last).transpose();
        let diagonal = Mat::from_fn(general.nrows(), general.ncols(), |row, column| {
            self.gram[(row, row)] * with_ridge[(column, column)]
        });
        let pairs = Pairs::nearest(&general, self.head_sizes(), rank)?;
        Ok(self.of_pairs(pairs.improved(&Quadratic {
            apply: &apply,
            right,
            diagonal,
        })))
    }
}

#[cfg(test)]
mod tests {
    use burn::backend::Flex;
    use burn::tensor::{Tensor, TensorData};

    use super::*;

    /// Of all heads' outputs together.
    const FEATURES: usize = 6;
    const D_MODEL: usize = 7;

    /// Pseudo-random.
    fn number(row: usize, column: usize, seed: usize) -> f32 {
        let mixed = (row * 7919 + column * 104_729 + row * column * 31 + seed * 613) % 1009;
        mixed as f32 / 504.5 - 1.0
    }

    fn moments(seed: usize) -> Moments {
        let device = Default::default();
        let rows = 40;
        let tensor = |columns: usize, seed: usize| {
            let places = 0..rows * columns;
            let values: Vec<f32> = places
                .map(|i| number(i / columns, i % columns, seed))
                .collect();
            Tensor::<Flex, 2>::from_data(TensorData::new(values, [rows, columns]), &device)
        };
        let mut moments = Moments::zeros(FEATURES, D_MODEL);
        let drift = tensor(D_MODEL, seed + 2) * 0.3;
        let features = tensor(FEATURES, seed);
        moments
            .add(features, tensor(D_MODEL, seed + 1), drift)
            .unwrap();
        moments
    }

    #[test]
    fn a_spectrum_knows_what_each_fit_leaves() {
        // Two heads of two features: the kernels of a map do not fill the seven of the model.
        let heads = HeadCounts::counted([2, 2], [2, 2]);
        let kernel = Mat::from_fn(4, D_MODEL, |i, j| f64::from(number(i, j, 9)));
        let map = OutMap::new(MapKind::General, heads, [2, 3], &[0, 1], kernel).unwrap();
        let kept = Mat::from_fn(2, 3, |i, j| f64::from(i == j));
        let first = map.first(&[&kept, &kept]).unwrap();
        let (fitted, held_out) = (moments(1), moments(5));
        let spectrum = map.spectrum(&fitted, &held_out, &first).unwrap().unwrap();
        for strength in [0.0, 0.4, 1.0] {
            for ridge in [1e-6, 1e-2, 1.0] {
                let regularization = Regularization { ridge, strength };
                let fit = map.fit(&fitted, regularization, &first).unwrap();
                let expected = held_out.residual(&fit.kernel);
                let found = spectrum.residual(regularization).unwrap();
                // The map's kernel has a ridge of 1e-9 of its own.
                assert!((found - expected).abs() < 1e-8, "{found}, {expected}");
            }
        }
    }
}
