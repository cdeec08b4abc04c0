//! A factored output map: least squares in its two factors, one given the other.

use faer::{Mat, MatRef};

use super::error::Result;
use super::heads::HeadCounts;
use super::solve::{
    self, by_diagonal, column_major, conjugate_gradients, dot, from_columns, products, towards,
};

/// The teacher's output kernel by heads, and what two factors make of it.
#[derive(Debug)]
pub(super) struct OutFactors {
    pub(super) heads: HeadCounts,
    pub(super) t_head_dim: usize,
    pub(super) s_head_dim: usize,
    /// `C`: `[t_heads * t_head_dim, d_model]`
    pub(super) kernel: Mat<f64>,
}

/// What an output kernel is fitted to: `gram * kernel = cross`, and a ridge that pulls towards what there was.
pub(super) struct Equations<'a> {
    pub(super) gram: &'a Mat<f64>,
    /// `[s_heads * s_head_dim, d_model]`
    pub(super) cross: Mat<f64>,
    pub(super) ridge: f64,
}

/// Rounds of the two factors in turn.
const ROUNDS: usize = 4;
/// Steps of conjugate gradients for a factor.
const STEPS: usize = 40;

impl OutFactors {
    /// `a [t_heads, s_heads]` and `b [s_head_dim, t_head_dim]` in turn, from `last`, whose kernel should
    /// solve the equations.
    pub(super) fn fit(
        &self,
        equations: &Equations<'_>,
        last: (&Mat<f64>, &Mat<f64>),
    ) -> Result<(Mat<f64>, Mat<f64>)> {
        let (mut a, mut b) = (last.0.clone(), last.1.clone());
        for _ in 0..ROUNDS {
            a = self.better_a(equations, &a, &b)?;
            b = self.better_b(equations, &a, &b);
        }
        Ok((a, b))
    }

    /// `K[u,v,b] = sum_xy C[x,y,b] A[x,u] B[v,y]`
    pub(super) fn made(&self, a: &Mat<f64>, b: &Mat<f64>) -> Mat<f64> {
        let size = self.s_head_dim;
        let mut kernel = Mat::zeros(self.heads.s_query * size, self.kernel.ncols());
        for head in 0..self.heads.s_query {
            let part = b * self.mixed(a, head);
            kernel.subrows_mut(head * size, size).copy_from(&part);
        }
        kernel
    }

    /// The teacher's kernel of one head, `[t_head_dim, d_model]`.
    fn head(&self, head: usize) -> MatRef<'_, f64> {
        let size = self.t_head_dim;
        self.kernel.subrows(head * size, size)
    }

    /// `sum_x A[x,u] C[x]`, `[t_head_dim, d_model]`
    fn mixed(&self, a: &Mat<f64>, student: usize) -> Mat<f64> {
        let mut mixed = Mat::zeros(self.t_head_dim, self.kernel.ncols());
        for teacher in 0..self.heads.t_query {
            mixed += faer::Scale(a[(teacher, student)]) * self.head(teacher);
        }
        mixed
    }

    fn better_a(
        &self,
        equations: &Equations<'_>,
        last: &Mat<f64>,
        b: &Mat<f64>,
    ) -> Result<Mat<f64>> {
        let Equations { gram, cross, ridge } = equations;
        let (teacher, student) = (self.heads.t_query, self.heads.s_query);
        let size = self.s_head_dim;
        let parts: Vec<Mat<f64>> = (0..teacher).map(|head| b * self.head(head)).collect();
        let inner = products(&parts);
        let blocks: Vec<Vec<Mat<f64>>> = (0..student)
            .map(|u| {
                (0..student)
                    .map(|v| {
                        let block = gram.submatrix(u * size, v * size, size, size);
                        block.to_owned()
                    })
                    .collect()
            })
            .collect();
        let normal = Mat::from_fn(teacher * student, teacher * student, |i, j| {
            dot(
                &blocks[i / teacher][j / teacher],
                &inner[i % teacher][j % teacher],
            )
        });
        let right = Mat::from_fn(teacher * student, 1, |i, _| {
            let rows = cross.subrows(i / teacher * size, size).to_owned();
            dot(&rows, &parts[i % teacher])
        });
        let start = Mat::from_fn(teacher * student, 1, |i, _| {
            last[(i % teacher, i / teacher)]
        });
        let flat = solve::ridge(&normal, &(right - &normal * &start), *ridge)? + start;
        Ok(Mat::from_fn(teacher, student, |t, s| {
            flat[(s * teacher + t, 0)]
        }))
    }

    fn better_b(&self, equations: &Equations<'_>, a: &Mat<f64>, last: &Mat<f64>) -> Mat<f64> {
        let Equations { gram, cross, ridge } = equations;
        let (student, teacher, heads) = (self.s_head_dim, self.t_head_dim, self.heads.s_query);
        let mixed: Vec<Mat<f64>> = (0..heads).map(|head| self.mixed(a, head)).collect();
        let block = |u: usize, v: usize| {
            let (row, column) = (u * student, v * student);
            gram.submatrix(row, column, student, student)
        };
        let inner = products(&mixed);
        // Row by row.
        let unflattened = |flat: &[f64]| from_columns(flat, teacher).transpose().to_owned();
        let flattened = |matrix: &Mat<f64>| column_major(matrix.transpose());
        let apply = |flat: &[f64]| {
            let b = unflattened(flat);
            let mut image = Mat::<f64>::zeros(student, teacher);
            for u in 0..heads {
                let mut sum = Mat::<f64>::zeros(student, teacher);
                for (v, inner) in inner.iter().enumerate() {
                    sum += block(u, v) * &b * &inner[u];
                }
                image += &sum;
            }
            flattened(&image)
        };
        let mut right = Mat::<f64>::zeros(student, teacher);
        let mut diagonal = Mat::<f64>::zeros(student, teacher);
        for u in 0..heads {
            right += cross.subrows(u * student, student) * mixed[u].transpose();
            for row in 0..student {
                for column in 0..teacher {
                    diagonal[(row, column)] +=
                        block(u, u)[(row, row)] * inner[u][u][(column, column)];
                }
            }
        }
        let (diagonal, start) = (flattened(&diagonal), flattened(last));
        let (apply, right) = towards(apply, flattened(&right), &diagonal, &start, *ridge);
        let precondition = by_diagonal(&diagonal);
        unflattened(&conjugate_gradients(
            apply,
            precondition,
            &right,
            start,
            STEPS,
        ))
    }
}

#[cfg(test)]
mod tests {
    use burn::backend::Flex;
    use burn::tensor::{Distribution, Tensor};

    use super::super::moments::Moments;
    use super::*;

    #[test]
    fn factors_that_make_the_target_stay_and_others_come_nearer() {
        let random = |rows: usize, columns: usize, seed: usize| {
            Mat::from_fn(rows, columns, |i, j| {
                ((i * 37 + j * 101 + i * j * 7 + seed * 13) % 29) as f64 / 14.0 - 1.0
            })
        };
        let factors = OutFactors {
            heads: HeadCounts::counted([3, 3], [2, 2]),
            t_head_dim: 3,
            s_head_dim: 2,
            kernel: random(9, 8, 1),
        };
        let (a, b) = (random(3, 2, 2), random(2, 3, 3));
        let device = Default::default();
        let features = Tensor::<Flex, 2>::random([40, 4], Distribution::Normal(0.0, 1.0), &device);
        let mut moments = Moments::zeros(4, 8);
        let nothing = Tensor::zeros([40, 8], &device);
        moments.add(features, nothing.clone(), nothing).unwrap();
        let kernel = factors.made(&a, &b);
        let equations = Equations {
            gram: &moments.gram,
            cross: &moments.gram * &kernel,
            ridge: 1e-9,
        };
        let distance = |a: &Mat<f64>, b: &Mat<f64>| (factors.made(a, b) - &kernel).norm_l2();
        let (same_a, same_b) = factors.fit(&equations, (&a, &b)).unwrap();
        assert!(distance(&same_a, &same_b) < 1e-6 * kernel.norm_l2());
        let (off_a, off_b) = (
            &a + random(3, 2, 5) * faer::Scale(0.2),
            &b + random(2, 3, 6) * faer::Scale(0.2),
        );
        let found = factors.fit(&equations, (&off_a, &off_b)).unwrap();
        let (before, after) = (distance(&off_a, &off_b), distance(&found.0, &found.1));
        assert!(after < 0.2 * before, "{after}, before {before}");
    }
}
