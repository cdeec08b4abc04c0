//! The contraction, the dense layer and their gradients, as plain loops in float64.
//!
//! Nothing clever: a factored map is multiplied out into a general one, and every sum is a loop over
//! its indices.
//!
//! The same loops bound the error of a float32 program ([`Projection::bounds`]), stage by stage. A
//! sum of `n` products has `n` roundings of its partial sums; with terms of either sign these are of
//! the size of `|sum| + sqrt(sum of squares)`, in whatever order they are added, so with
//! [`rounding`]`(n) = 6 sqrt(n) u` the stage adds, squared,
//!
//! `2 rounding(n)^2 (sum^2 + sum of squares)`
//!
//! and passes on the error `e` of the stage before through what multiplies it, `sum (w e)^2`:
//! errors of different roundings are independent (Higham and Mary 2019).

use burn_lti::map::ProjectionKind;

use crate::close::rounding;

/// A map's values, row-major, in the shapes that `burn_lti` documents.
#[derive(Clone, Debug)]
pub enum Map {
    /// `A` and `B`, or those of several pairs, one behind the other: their products are added.
    Factored {
        /// `[x, u]` for each pair.
        a: Vec<f64>,
        /// `[y, v]`, or `[v, y]` for out, for each pair.
        b: Vec<f64>,
    },
    /// `W`.
    General {
        /// `[x, y, u, v]`
        w: Vec<f64>,
    },
}

/// A projection: `d` is the model's width, `x, y` the teacher's and `u, v` the student's grid.
#[derive(Clone, Debug)]
pub struct Projection {
    /// Which way it goes.
    pub kind: ProjectionKind,
    /// `[d, x, y, u, v]`
    pub sizes: [usize; 5],
    /// `C`: `[d, x, y]`, or `[x, y, d]` for out.
    pub c: Vec<f64>,
    /// The map.
    pub map: Map,
    /// `[u * v]`, or `[d]` for out.
    pub bias: Option<Vec<f64>>,
}

/// Gradients, in the shapes of what they belong to.
#[derive(Clone, Debug)]
pub struct Gradients {
    /// Of `A`.
    pub a: Vec<f64>,
    /// Of `B`.
    pub b: Vec<f64>,
    /// Of `W`.
    pub w: Vec<f64>,
    /// Of the bias, were there one.
    pub bias: Vec<f64>,
}

/// What a float32 program may be off by.
#[derive(Clone, Debug)]
pub struct Bounds {
    /// In the output.
    pub output: Vec<f64>,
    /// In the gradients.
    pub gradients: Gradients,
}

impl Projection {
    /// The same with every number squared.
    fn squares(&self) -> Self {
        let map = match &self.map {
            Map::Factored { a, b } => Map::Factored {
                a: squares(a),
                b: squares(b),
            },
            Map::General { w } => Map::General { w: squares(w) },
        };
        Self {
            c: squares(&self.c),
            map,
            bias: self.bias.as_deref().map(squares),
            ..*self
        }
    }

    /// What a float32 program may be off by in the kernel: `x + y` roundings for a factored map,
    /// `x y` for a general one. Several pairs may be contracted one by one or summed up to a general
    /// map: the roundings of both.
    pub fn kernel_bounds(&self) -> Vec<f64> {
        roots(&self.kernel_variances())
    }

    fn kernel_variances(&self) -> Vec<f64> {
        let [_, x, y, ..] = self.sizes;
        let roundings = match self.map {
            Map::Factored { .. } => match self.pairs() {
                1 => x + y,
                pairs => pairs * (x + y) + x * y,
            },
            Map::General { .. } => x * y,
        };
        stage(roundings, &self.kernel(), &self.squares().kernel())
    }

    /// What a float32 program may be off by in everything, in roundings: the kernel's, `d_input + 1`
    /// for the output, 3 for its square and mean, the input's rows for the gradient of kernel and
    /// bias, then the sum that leads on: `d_model` terms for `W`; for `A` and `B` at most `d m + m`,
    /// with `m` the largest of `x, y, u, v`.
    pub fn bounds(&self, input: &[f64]) -> Bounds {
        let squared = self.squares();
        let squared_input = squares(input);
        let kernel = self.kernel();
        let output = self.output(input);
        let mean = 2.0 / output.len() as f64;

        let terms = squared.apply(&squares(&kernel), squared.bias.as_deref(), &squared_input);
        let output_variances = added(
            &stage(self.d_input() + 1, &output, &terms),
            &squared.apply(&self.kernel_variances(), None, &squared_input),
        );
        let of_output = scaled(&output, mean);
        let of_output_variances = added(
            &scaled(&squares(&of_output), rounding(3).powi(2)),
            &scaled(&output_variances, mean.powi(2)),
        );
        let of_kernel = self.kernel_gradient(input, &of_output);
        let rows = input.len() / self.d_input();
        let terms = self.kernel_gradient(&squared_input, &squares(&of_output));
        let of_kernel_variances = added(
            &stage(rows, &of_kernel, &terms),
            &self.kernel_gradient(&squared_input, &of_output_variances),
        );
        let bias_variances = added(
            &stage(
                rows,
                &self.bias_gradient(&of_output),
                &self.bias_gradient(&squares(&of_output)),
            ),
            &self.bias_gradient(&of_output_variances),
        );
        Bounds {
            output: roots(&output_variances),
            gradients: Gradients {
                bias: roots(&bias_variances),
                ..self.map_bounds(&of_kernel, &of_kernel_variances)
            },
        }
    }

    /// The last stage: from the kernel's gradient to the map's.
    fn map_bounds(&self, of_kernel: &[f64], variances: &[f64]) -> Gradients {
        let [d, x, y, u, v] = self.sizes;
        let largest = x.max(y).max(u).max(v);
        let squared = self.squares();
        let exact = self.map_gradient(of_kernel);
        let terms = squared.map_gradient(&squares(of_kernel));
        let passed_on = squared.map_gradient(variances);
        let (exact_a, exact_b) = self.factor_gradients(&exact);
        let (terms_a, terms_b) = squared.factor_gradients(&terms);
        let (passed_a, passed_b) = squared.factor_gradients(&passed_on);
        let bound = |roundings, exact: &[f64], terms: &[f64], passed_on: &[f64]| {
            roots(&added(&stage(roundings, exact, terms), passed_on))
        };
        Gradients {
            a: bound(d * largest + largest, &exact_a, &terms_a, &passed_a),
            b: bound(d * largest + largest, &exact_b, &terms_b, &passed_b),
            w: bound(d, &exact, &terms, &passed_on),
            bias: Vec::new(),
        }
    }

    /// Pairs of factors.
    fn pairs(&self) -> usize {
        let [_, x, _, u, _] = self.sizes;
        match &self.map {
            Map::Factored { a, .. } => a.len() / (x * u),
            Map::General { .. } => 0,
        }
    }

    fn d_input(&self) -> usize {
        let [d, _, _, u, v] = self.sizes;
        match self.kind {
            ProjectionKind::Qkv => d,
            ProjectionKind::Output => u * v,
        }
    }

    fn d_output(&self) -> usize {
        let [d, _, _, u, v] = self.sizes;
        match self.kind {
            ProjectionKind::Qkv => u * v,
            ProjectionKind::Output => d,
        }
    }

    fn c_index(&self, m: usize, i: usize, j: usize) -> usize {
        let [d, x, y, ..] = self.sizes;
        match self.kind {
            ProjectionKind::Qkv => (m * x + i) * y + j,
            ProjectionKind::Output => (i * y + j) * d + m,
        }
    }

    fn kernel_index(&self, m: usize, k: usize, l: usize) -> usize {
        let [d, _, _, u, v] = self.sizes;
        match self.kind {
            ProjectionKind::Qkv => (m * u + k) * v + l,
            ProjectionKind::Output => (k * v + l) * d + m,
        }
    }

    fn b_index(&self, j: usize, l: usize) -> usize {
        let [_, _, y, _, v] = self.sizes;
        match self.kind {
            ProjectionKind::Qkv => j * v + l,
            ProjectionKind::Output => l * y + j,
        }
    }

    /// Visits all of `x, y, u, v`, with the index of `W[x, y, u, v]`.
    fn for_map(&self, mut visit: impl FnMut(usize, [usize; 4])) {
        let [_, x, y, u, v] = self.sizes;
        let mut index = 0;
        for i in 0..x {
            for j in 0..y {
                for k in 0..u {
                    for l in 0..v {
                        visit(index, [i, j, k, l]);
                        index += 1;
                    }
                }
            }
        }
    }

    /// The map as `W[x, y, u, v]`.
    pub fn general(&self) -> Vec<f64> {
        let [_, x, y, u, v] = self.sizes;
        match &self.map {
            Map::General { w } => w.clone(),
            Map::Factored { a, b } => {
                let mut w = vec![0.0; x * y * u * v];
                for (a, b) in a.chunks_exact(x * u).zip(b.chunks_exact(y * v)) {
                    self.for_map(|index, [i, j, k, l]| {
                        w[index] += a[i * u + k] * b[self.b_index(j, l)];
                    });
                }
                w
            }
        }
    }

    /// The kernel: `[d, u, v]`, or `[u, v, d]` for out.
    pub fn kernel(&self) -> Vec<f64> {
        let [d, _, _, u, v] = self.sizes;
        let w = self.general();
        let mut kernel = vec![0.0; d * u * v];
        self.for_map(|index, [i, j, k, l]| {
            for m in 0..d {
                kernel[self.kernel_index(m, k, l)] += self.c[self.c_index(m, i, j)] * w[index];
            }
        });
        kernel
    }

    /// `input [rows, d_input] -> [rows, d_output]`
    pub fn output(&self, input: &[f64]) -> Vec<f64> {
        self.apply(&self.kernel(), self.bias.as_deref(), input)
    }

    fn apply(&self, kernel: &[f64], bias: Option<&[f64]>, input: &[f64]) -> Vec<f64> {
        let (d_input, d_output) = (self.d_input(), self.d_output());
        let mut output = Vec::new();
        for row in input.chunks_exact(d_input) {
            for column in 0..d_output {
                let sum: f64 = (0..d_input)
                    .map(|feature| row[feature] * kernel[feature * d_output + column])
                    .sum();
                output.push(sum + bias.map_or(0.0, |bias| bias[column]));
            }
        }
        output
    }

    /// Gradients of `mean(output^2)`.
    pub fn gradients(&self, input: &[f64]) -> Gradients {
        let output = self.output(input);
        let of_output = scaled(&output, 2.0 / output.len() as f64);
        let w = self.map_gradient(&self.kernel_gradient(input, &of_output));
        let (a, b) = self.factor_gradients(&w);
        let bias = self.bias_gradient(&of_output);
        Gradients { a, b, w, bias }
    }

    /// The kernel's gradient from the output's.
    fn kernel_gradient(&self, input: &[f64], of_output: &[f64]) -> Vec<f64> {
        let (d_input, d_output) = (self.d_input(), self.d_output());
        let mut kernel = vec![0.0; d_input * d_output];
        let rows = input.chunks_exact(d_input);
        for (row, gradient) in rows.zip(of_output.chunks_exact(d_output)) {
            for (feature, value) in row.iter().enumerate() {
                for (column, gradient) in gradient.iter().enumerate() {
                    kernel[feature * d_output + column] += value * gradient;
                }
            }
        }
        kernel
    }

    fn bias_gradient(&self, of_output: &[f64]) -> Vec<f64> {
        let mut bias = vec![0.0; self.d_output()];
        for row in of_output.chunks_exact(bias.len()) {
            bias = added(&bias, row);
        }
        bias
    }

    /// `W`'s gradient from the kernel's.
    fn map_gradient(&self, kernel: &[f64]) -> Vec<f64> {
        let [d, x, y, u, v] = self.sizes;
        let mut w = vec![0.0; x * y * u * v];
        self.for_map(|index, [i, j, k, l]| {
            for m in 0..d {
                w[index] += self.c[self.c_index(m, i, j)] * kernel[self.kernel_index(m, k, l)];
            }
        });
        w
    }

    /// `A`'s and `B`'s gradients from `W`'s; empty for a general map.
    fn factor_gradients(&self, w: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let [_, x, y, u, v] = self.sizes;
        let Map::Factored { a, b } = &self.map else {
            return (Vec::new(), Vec::new());
        };
        let (mut of_a, mut of_b) = (vec![0.0; a.len()], vec![0.0; b.len()]);
        for pair in 0..self.pairs() {
            let (a_begins, b_begins) = (pair * x * u, pair * y * v);
            self.for_map(|index, [i, j, k, l]| {
                let (in_a, in_b) = (a_begins + i * u + k, b_begins + self.b_index(j, l));
                of_a[in_a] += w[index] * b[in_b];
                of_b[in_b] += w[index] * a[in_a];
            });
        }
        (of_a, of_b)
    }
}

/// The variance, so to say, that a stage of so many roundings adds.
fn stage(roundings: usize, sums: &[f64], sums_of_squares: &[f64]) -> Vec<f64> {
    let factor = 2.0 * rounding(roundings).powi(2);
    scaled(&added(&squares(sums), sums_of_squares), factor)
}

fn squares(values: &[f64]) -> Vec<f64> {
    values.iter().map(|value| value * value).collect()
}

fn roots(values: &[f64]) -> Vec<f64> {
    values.iter().map(|value| value.sqrt()).collect()
}

fn scaled(values: &[f64], factor: f64) -> Vec<f64> {
    values.iter().map(|value| value * factor).collect()
}

fn added(left: &[f64], right: &[f64]) -> Vec<f64> {
    left.iter().zip(right).map(|(a, b)| a + b).collect()
}

/// `values` as float64.
pub fn widen(values: &[f32]) -> Vec<f64> {
    values.iter().map(|value| f64::from(*value)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn projection() -> Projection {
        Projection {
            kind: ProjectionKind::Output,
            sizes: [2, 1, 2, 1, 3],
            c: vec![1.0, 2.0, 3.0, -4.0],
            map: Map::Factored {
                a: vec![0.5],
                b: vec![1.0, -1.0, 2.0, 0.0, 0.0, 1.0],
            },
            bias: Some(vec![0.1, 0.2]),
        }
    }

    #[test]
    fn a_kernel_by_hand() {
        // K[0, l, m] = 0.5 sum_j C[0, j, m] B[l, j]
        let expected = [-1.0, 3.0, 1.0, 2.0, 1.5, -2.0];
        assert_eq!(projection().kernel(), expected);
    }

    /// The gradients are checked against differences of the loss itself.
    #[test]
    fn gradients_are_the_slopes_of_the_loss() {
        let input = [0.3, -0.2, 0.7, 1.1, 0.4, -0.9];
        let loss = |projection: &Projection| {
            let output = projection.output(&input);
            output.iter().map(|value| value * value).sum::<f64>() / output.len() as f64
        };
        let gradients = projection().gradients(&input);
        let step = 1e-5;
        let slope = |change: &dyn Fn(&mut Projection, f64)| {
            let (mut up, mut down) = (projection(), projection());
            change(&mut up, step);
            change(&mut down, -step);
            (loss(&up) - loss(&down)) / (2.0 * step)
        };
        for index in 0..6 {
            let expected = slope(&|projection, step| {
                if let Map::Factored { b, .. } = &mut projection.map {
                    b[index] += step;
                }
            });
            assert!((gradients.b[index] - expected).abs() < 1e-8);
        }
        let expected = slope(&|projection, step| {
            if let Map::Factored { a, .. } = &mut projection.map {
                a[0] += step;
            }
        });
        assert!((gradients.a[0] - expected).abs() < 1e-8);
        let expected = slope(&|projection, step| {
            projection.bias.as_mut().expect("a bias")[1] += step;
        });
        assert!((gradients.bias[1] - expected).abs() < 1e-8);
    }
}
