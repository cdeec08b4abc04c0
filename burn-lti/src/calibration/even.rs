//! An even basis inside each value head.
//!
//! The values of a head may be in any basis `T`, if what reads them undoes it: `V T` and `T^-1 O` are the same
//! function. To an optimizer they are not. Where some features are far larger than others, those that are small
//! hardly learn. So values are made uncorrelated, and as large as the teacher's are.

use faer::Mat;

use super::error::Result;
use super::heads::HeadCounts;
use super::solve::{eigen, mean_diagonal};

/// What the least of a head's directions may be of its largest, in variance: below is rounding.
const LEAST: f64 = 1e-9;

/// The maps of value `[t_kv_heads * t_head_dim, s_kv_heads * s_head_dim]` and out
/// `[t_heads * t_head_dim, s_heads * s_head_dim]` with even values, and how uneven the most uneven head's were:
/// the ratio of its largest standard deviation to its least. `gram` are the second moments of all the teacher's
/// values, `members` the heads of it that each of the student's began as.
pub(super) fn even(
    value: &Mat<f64>,
    out: &Mat<f64>,
    gram: &Mat<f64>,
    members: &[Vec<usize>],
    heads: HeadCounts,
) -> Result<(Mat<f64>, Mat<f64>, f64)> {
    let (mut value, mut out) = (value.clone(), out.clone());
    let (t_size, s_size) = (
        gram.nrows() / heads.t_key_value,
        value.ncols() / members.len(),
    );
    let mut most = 1.0_f64;
    for (head, members) in members.iter().enumerate() {
        let map = value.subcols(head * s_size, s_size).to_owned();
        let (vectors, values) = eigen(&(map.transpose() * gram * &map))?;
        let largest = values.iter().copied().fold(0.0, f64::max);
        let variance = |direction: usize| values[direction].max(LEAST * largest);
        let of_member = |head: &usize| {
            let begins = head * t_size;
            mean_diagonal(&gram.submatrix(begins, begins, t_size, t_size).to_owned())
        };
        let target = members.iter().map(of_member).sum::<f64>() / members.len() as f64;
        if largest == 0.0 || target == 0.0 {
            continue; // nothing is even, and nothing has a size to be made as large as
        }
        let power = |by: f64| {
            let scaled = Mat::from_fn(s_size, s_size, |row, direction| {
                vectors[(row, direction)] * (variance(direction) / target).powf(by)
            });
            scaled * vectors.transpose()
        };
        value
            .subcols_mut(head * s_size, s_size)
            .copy_from(&map * power(-0.5));
        let back = power(0.5);
        for query in head * heads.s_group()..(head + 1) * heads.s_group() {
            let read = out.subcols(query * s_size, s_size) * &back;
            out.subcols_mut(query * s_size, s_size).copy_from(&read);
        }
        let least = (0..s_size).map(variance).fold(f64::INFINITY, f64::min);
        most = most.max((largest / least).sqrt());
    }
    Ok((value, out, most))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(rows: usize, columns: usize, seed: usize) -> Mat<f64> {
        Mat::from_fn(rows, columns, |i, j| {
            let mixed = (12.9898 * i as f64 + 78.233 * j as f64 + seed as f64).sin() * 43_758.545;
            2.0 * (mixed - mixed.floor()) - 1.0
        })
    }

    #[test]
    fn even_values_are_uncorrelated_and_the_function_is_the_same() {
        // Two value heads of three features from three of the teacher's, two query heads each.
        let heads = HeadCounts::counted([6, 3], [4, 2]);
        let rows = numbers(40, 9, 1);
        let gram = rows.transpose() * &rows;
        let mut value = numbers(9, 6, 2);
        (0..9).for_each(|row| value[(row, 1)] *= 1e-3);
        let (out, kernel) = (numbers(18, 12, 3), numbers(18, 5, 4));
        let members = [vec![0, 2], vec![1]];
        let (even_value, even_out, uneven) = even(&value, &out, &gram, &members, heads).unwrap();
        assert!(uneven > 100.0, "{uneven}");
        let made = |value: &Mat<f64>, out: &Mat<f64>, query: usize| {
            let value = value.subcols(query / 2 * 3, 3);
            value * (out.subcols(query * 3, 3).transpose() * &kernel)
        };
        for query in 0..4 {
            let expected = made(&value, &out, query);
            let off = made(&even_value, &even_out, query) - &expected;
            assert!(off.norm_l2() < 1e-9 * expected.norm_l2(), "{query}");
        }
        for (head, members) in members.iter().enumerate() {
            let map = even_value.subcols(head * 3, 3);
            let found = map.transpose() * &gram * map;
            let sizes = members.iter().map(|head| {
                let of_head = gram.submatrix(head * 3, head * 3, 3, 3);
                (0..3).map(|i| of_head[(i, i)]).sum::<f64>() / 3.0
            });
            let size = sizes.sum::<f64>() / members.len() as f64;
            let off = found - faer::Scale(size) * Mat::<f64>::identity(3, 3);
            assert!(off.norm_l2() < 1e-8 * size, "{head}");
        }
    }

    #[test]
    fn a_head_whose_own_values_are_nothing_stays_as_it_is() {
        let heads = HeadCounts::counted([2, 2], [1, 1]);
        // The student's head began as the first, whose values are zero, and reads the second's too.
        let gram = Mat::from_fn(4, 4, |i, j| f64::from(i == j && i >= 2));
        let (value, out) = (numbers(4, 2, 1), numbers(4, 2, 2));
        let (even_value, even_out, uneven) = even(&value, &out, &gram, &[vec![0]], heads).unwrap();
        assert_eq!((even_value, even_out, uneven), (value, out, 1.0));
    }
}
