//! Products of matrices that lie in larger ones, on one core, for those too small to be packed first.

use std::array;

use pulp::Simd;

/// The left factor of a product `[m, n] = [m, k] [k, n]`.
#[derive(Clone, Copy)]
pub(crate) enum Left<'a> {
    /// `[m, k]`, rows so many numbers apart.
    Rows(&'a [f32], usize),
    /// `[k, m]`, rows so many numbers apart: the factor is this one transposed.
    Columns(&'a [f32], usize),
}

/// A matrix whose rows are so many numbers apart.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a>(pub(crate) &'a [f32], pub(crate) usize);

/// As [`Rows`], to be written.
pub(crate) struct RowsMut<'a>(pub(crate) &'a mut [f32], pub(crate) usize);

/// Numbers of a row of the left factor, and rows of the right one, that are taken at a time: two vectors of
/// each of these rows are in the first cache.
const DEPTH: usize = 256;

/// `output [m, n] = left [m, k] right [k, n]`, or with `ADD` that much more. `k` is not 0.
#[inline(always)]
pub(crate) fn product<S: Simd, const ADD: bool>(
    simd: S,
    output: &mut RowsMut<'_>,
    left: Left<'_>,
    Rows(right, step): Rows<'_>,
    [m, n, k]: [usize; 3],
) {
    for from in (0..k).step_by(DEPTH) {
        let depth = DEPTH.min(k - from);
        let left = match left {
            Left::Rows(data, step) => Left::Rows(&data[from..], step),
            Left::Columns(data, step) => Left::Columns(&data[from * step..], step),
        };
        let right = Rows(&right[from * step..], step);
        match ADD || from > 0 {
            true => columns::<S, true>(simd, output, left, right, [m, n, depth]),
            false => columns::<S, false>(simd, output, left, right, [m, n, depth]),
        }
    }
}

/// Columns of the output two vectors at a time, one, and the rest.
#[inline(always)]
fn columns<S: Simd, const ADD: bool>(
    simd: S,
    output: &mut RowsMut<'_>,
    left: Left<'_>,
    Rows(right, step): Rows<'_>,
    [m, n, k]: [usize; 3],
) {
    let mut from = 0;
    while from < n {
        let width = (n - from).min(2 * S::F32_LANES);
        let panel = Panel {
            right: Rows(&right[from..], step),
            from,
            width,
            m,
            k,
        };
        if width == 2 * S::F32_LANES {
            panel.rows::<S, ADD, false, 4, 2>(simd, output, left);
            from += width;
        } else if width >= S::F32_LANES {
            let panel = Panel {
                width: S::F32_LANES,
                ..panel
            };
            panel.rows::<S, ADD, false, 8, 1>(simd, output, left);
            from += S::F32_LANES;
        } else {
            panel.rows::<S, ADD, true, 8, 1>(simd, output, left);
            from += width;
        }
    }
}

/// Some columns of the output, and what they are made of.
struct Panel<'a> {
    right: Rows<'a>,
    from: usize,
    width: usize,
    m: usize,
    k: usize,
}

impl Panel<'_> {
    /// All rows of the panel, `HIGH` at a time: as many sums are in registers as a processor needs to
    /// have one to add to while the others are being added. `PARTIAL`: the panel is narrower than a vector.
    #[inline(always)]
    fn rows<S: Simd, const ADD: bool, const PARTIAL: bool, const HIGH: usize, const WIDE: usize>(
        &self,
        simd: S,
        output: &mut RowsMut<'_>,
        left: Left<'_>,
    ) {
        let mut row = 0;
        while row + HIGH <= self.m {
            self.tile::<S, ADD, PARTIAL, HIGH, WIDE>(simd, output, left, row);
            row += HIGH;
        }
        while row < self.m {
            self.tile::<S, ADD, PARTIAL, 1, WIDE>(simd, output, left, row);
            row += 1;
        }
    }

    #[inline(always)]
    fn tile<S: Simd, const ADD: bool, const PARTIAL: bool, const HIGH: usize, const WIDE: usize>(
        &self,
        simd: S,
        output: &mut RowsMut<'_>,
        left: Left<'_>,
        row: usize,
    ) {
        let sums = match left {
            Left::Rows(data, step) => {
                let rows: [&[f32]; HIGH] =
                    array::from_fn(|high| &data[(row + high) * step..][..self.k]);
                self.sums::<S, PARTIAL, HIGH, WIDE>(simd, |depth| {
                    array::from_fn(|high| rows[high][depth])
                })
            }
            Left::Columns(data, step) => self.sums::<S, PARTIAL, HIGH, WIDE>(simd, |depth| {
                let numbers = &data[depth * step + row..][..HIGH];
                array::from_fn(|high| numbers[high])
            }),
        };
        for (high, sums) in sums.into_iter().enumerate() {
            let begins = (row + high) * output.1 + self.from;
            let places = &mut output.0[begins..begins + self.width];
            if PARTIAL {
                let before = match ADD {
                    true => simd.partial_load_f32s(places),
                    false => simd.splat_f32s(0.0),
                };
                simd.partial_store_f32s(places, simd.add_f32s(before, sums[0]));
                continue;
            }
            let (places, _) = S::as_mut_simd_f32s(places);
            for (place, sum) in places.iter_mut().zip(sums) {
                *place = match ADD {
                    true => simd.add_f32s(*place, sum),
                    false => sum,
                };
            }
        }
    }

    #[inline(always)]
    fn sums<S: Simd, const PARTIAL: bool, const HIGH: usize, const WIDE: usize>(
        &self,
        simd: S,
        left: impl Fn(usize) -> [f32; HIGH],
    ) -> [[S::f32s; WIDE]; HIGH] {
        let mut sums = [[simd.splat_f32s(0.0); WIDE]; HIGH];
        for depth in 0..self.k {
            let row = &self.right.0[depth * self.right.1..];
            let right: [S::f32s; WIDE] = match PARTIAL {
                true => [simd.partial_load_f32s(&row[..self.width]); WIDE],
                false => {
                    let (vectors, _) = S::as_simd_f32s(&row[..WIDE * S::F32_LANES]);
                    array::from_fn(|wide| vectors[wide])
                }
            };
            let left = left(depth);
            for (sums, number) in sums.iter_mut().zip(left) {
                let number = simd.splat_f32s(number);
                for (sum, right) in sums.iter_mut().zip(right) {
                    *sum = simd.mul_add_e_f32s(number, right, *sum);
                }
            }
        }
        sums
    }
}

#[cfg(test)]
mod tests {
    use pulp::{Arch, WithSimd};

    use super::{Left, Rows, RowsMut, product};

    struct Product<'a> {
        output: &'a mut [f32],
        left: Left<'a>,
        right: &'a [f32],
        shape: [usize; 3],
        add: bool,
    }

    impl WithSimd for Product<'_> {
        type Output = ();

        fn with_simd<S: pulp::Simd>(self, simd: S) {
            let step = self.shape[1] + 3;
            let mut output = RowsMut(self.output, step);
            let right = Rows(self.right, step);
            match self.add {
                true => product::<S, true>(simd, &mut output, self.left, right, self.shape),
                false => product::<S, false>(simd, &mut output, self.left, right, self.shape),
            }
        }
    }

    /// Small whole numbers, so that every sum is exact.
    fn numbers(count: usize, seed: usize) -> Vec<f32> {
        (0..count)
            .map(|index| ((index * 7 + seed * 13) % 11) as f32 - 5.0)
            .collect()
    }

    #[test]
    fn a_product_is_the_sum_of_products_and_leaves_what_lies_beside() {
        for shape in [
            [1, 1, 1],
            [4, 16, 8],
            [9, 35, 3],
            [13, 70, 5],
            [6, 8, 300],
            [9, 35, 300],
        ] {
            let [m, n, k] = shape;
            let step = n + 3;
            let (left, right) = (numbers(m * (k + 2), 1), numbers(k * step, 2));
            let columns: Vec<f32> = (0..k * (m + 1))
                .map(|at| (at / (m + 1), at % (m + 1)))
                .map(|(depth, row)| {
                    if row < m {
                        left[row * (k + 2) + depth]
                    } else {
                        f32::NAN
                    }
                })
                .collect();
            let before = numbers(m * step, 3);
            for add in [false, true] {
                let mut expected = before.clone();
                for row in 0..m {
                    for column in 0..n {
                        let terms = (0..k).map(|depth| {
                            left[row * (k + 2) + depth] * right[depth * step + column]
                        });
                        let place = &mut expected[row * step + column];
                        *place = terms.sum::<f32>() + if add { *place } else { 0.0 };
                    }
                }
                for left in [Left::Rows(&left, k + 2), Left::Columns(&columns, m + 1)] {
                    let mut output = before.clone();
                    Arch::new().dispatch(Product {
                        output: &mut output,
                        left,
                        right: &right,
                        shape,
                        add,
                    });
                    assert_eq!(output, expected, "{shape:?}, {add}");
                }
            }
        }
    }
}
