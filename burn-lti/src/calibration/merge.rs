//! Key/value heads of the student that stand for several of the teacher's.
//!
//! Where a student's key/value heads serve more query heads than the teacher's do, one that began as a single
//! head of the teacher's would leave its query heads nothing to be but copies of one another. So the teacher's
//! heads are parted into groups, and a student's key head is the mean of a group, each turned to lie as near to
//! the others as can be; the query heads take the turn back. A rotary embedding multiplies each of its pairs of
//! features by a complex number, so a turn of each pair by one of length 1 commutes with it and makes no
//! feature small. (Aligned before they are averaged: Jin et al. 2024, arXiv 2412.20677, who align by
//! Procrustes turns of two heads.)
//!
//! What a group costs is what its scores lose: `w_j^2 E |k_j - c_j m|^2` over rotary pairs and members `j`,
//! with `m` the mean, `c_j` the turn and `w_j^2` the energy of the queries that read `k_j`. The turns are the
//! phases of the leading eigenvector of the keys' covariance, weighted by `w`. Members come to groups by trying
//! all ways, or where those are too many by exchanging two of neighbours as long as that helps.

use faer::{Mat, Side, c64};

use super::error::{CalibrationError, Result};
use super::heads::HeadCounts;

/// Ways to part the heads up to which all are tried.
const EXHAUSTIVE: usize = 2_000;

/// Second moments of what keys and queries are before they are turned by position.
pub(super) struct QueryKeys {
    pub(super) heads: HeadCounts,
    pub(super) head_dim: usize,
    /// The two features of a head that the rotary embedding turns together. A feature of no pair keeps its
    /// place in every head.
    pub(super) pairs: Vec<[usize; 2]>,
    /// `[t_kv_heads * head_dim, t_kv_heads * head_dim]`
    pub(super) keys: Mat<f64>,
    /// The mean square of each feature, `[t_heads * head_dim]`.
    pub(super) queries: Vec<f64>,
}

/// How the members of a group lie to one another: for each of them a complex number for each rotary pair, by
/// which the key is multiplied before they are averaged. Its conjugate brings the mean back.
pub(super) type Turns = Vec<Vec<c64>>;

impl QueryKeys {
    /// The groups of the teacher's key/value heads with which most of its query heads can be kept, and among
    /// these that cost least.
    pub(super) fn groups(&self) -> Result<Vec<Vec<usize>>> {
        let (heads, count) = (self.heads.t_key_value, self.heads.s_key_value);
        let ways = match partitions(heads, count) {
            Some(ways) if ways <= EXHAUSTIVE => all_partitions(heads, count),
            _ => return self.exchanged(neighbours(heads, count)),
        };
        let most = ways.iter().map(|groups| self.heads.kept_of(groups)).max();
        let mut best: Option<(f64, Vec<Vec<usize>>)> = None;
        for groups in ways {
            if Some(self.heads.kept_of(&groups)) != most {
                continue;
            }
            let costs: Result<Vec<f64>> = groups.iter().map(|group| self.cost(group)).collect();
            let cost = costs?.iter().sum();
            if best.as_ref().is_none_or(|(least, _)| cost < *least) {
                best = Some((cost, groups));
            }
        }
        Ok(best.map(|(_, groups)| groups).unwrap_or_default())
    }

    /// Exchanges members of two groups as long as that costs less.
    fn exchanged(&self, mut groups: Vec<Vec<usize>>) -> Result<Vec<Vec<usize>>> {
        let costs: Result<Vec<f64>> = groups.iter().map(|group| self.cost(group)).collect();
        let mut costs = costs?;
        loop {
            let mut changed = false;
            for one in 0..groups.len() {
                for other in one + 1..groups.len() {
                    for (i, j) in places(groups[one].len(), groups[other].len()) {
                        let (mut first, mut second) = (groups[one].clone(), groups[other].clone());
                        std::mem::swap(&mut first[i], &mut second[j]);
                        let cost = [self.cost(&first)?, self.cost(&second)?];
                        // By more than rounding, so that it ends.
                        let before = costs[one] + costs[other];
                        if cost[0] + cost[1] < before * (1.0 - 1e-9) {
                            (groups[one], groups[other]) = (first, second);
                            (costs[one], costs[other]) = (cost[0], cost[1]);
                            changed = true;
                        }
                    }
                }
            }
            if !changed {
                groups.iter_mut().for_each(|group| group.sort_unstable());
                groups.sort();
                return Ok(groups);
            }
        }
    }

    /// What the scores of all query heads lose by a group.
    fn cost(&self, group: &[usize]) -> Result<f64> {
        if group.len() == 1 {
            return Ok(0.0);
        }
        let readers: Vec<usize> = group
            .iter()
            .flat_map(|head| self.heads.own(*head))
            .collect();
        let turns = self.turns(group, &readers)?;
        let mut cost = 0.0;
        for (index, pair) in self.all_pairs().enumerate() {
            let covariance = self.covariance(group, pair);
            let weights = self.weights(group, &readers, pair);
            let n = group.len();
            let turned = |j: usize, l: usize| {
                let turn = |member: usize| turns[member].get(index).copied().unwrap_or(c64::ONE);
                (turn(j) * covariance[(j, l)] * turn(l).conj()).re
            };
            let all = (0..n).flat_map(|j| (0..n).map(move |l| (j, l)));
            let of_mean: f64 = all.map(|(j, l)| turned(j, l)).sum::<f64>() / (n * n) as f64;
            for (j, weight) in weights.iter().enumerate() {
                let with_mean: f64 = (0..n).map(|l| turned(j, l)).sum::<f64>() / n as f64;
                cost += weight * (turned(j, j) - 2.0 * with_mean + of_mean);
            }
        }
        Ok(cost)
    }

    /// The turns of the members of `group`, read by these query heads of the teacher's.
    pub(super) fn turns(&self, group: &[usize], readers: &[usize]) -> Result<Turns> {
        let mut turns = vec![Vec::with_capacity(self.pairs.len()); group.len()];
        for &pair in &self.pairs {
            if group.len() == 1 {
                turns[0].push(c64::ONE);
                continue;
            }
            let covariance = self.covariance(group, pair);
            let weights = self.weights(group, readers, pair);
            let most = weights.iter().copied().fold(0.0, f64::max);
            // A member that nobody reads has a direction all the same.
            let root = |j: usize| (weights[j] + 1e-9 * most.max(f64::MIN_POSITIVE)).sqrt();
            let weighted = Mat::from_fn(group.len(), group.len(), |j, l| {
                covariance[(j, l)] * (root(j) * root(l))
            });
            let parts = weighted.self_adjoint_eigen(Side::Lower);
            // It fails on what is not finite alone.
            let parts = parts.map_err(|_| CalibrationError::NotFinite)?;
            let leading = parts.U().col(group.len() - 1);
            // One phase is free: the first member stays as it is.
            let phase = |value: c64| match value.norm() {
                0.0 => c64::ONE,
                norm => value / norm,
            };
            let first = phase(leading[0]);
            for (member, turns) in turns.iter_mut().enumerate() {
                turns.push((phase(leading[member]) * first.conj()).conj());
            }
        }
        Ok(turns)
    }

    /// The pairs, and features of no pair as one with nothing.
    fn all_pairs(&self) -> impl Iterator<Item = [usize; 2]> {
        let of_none = (0..self.head_dim).filter(|feature| {
            let has = |pair: &[usize; 2]| pair.contains(feature);
            !self.pairs.iter().any(has)
        });
        self.pairs
            .iter()
            .copied()
            .chain(of_none.map(|feature| [feature, feature]))
    }

    /// `E k_j conj(k_l)` of a rotary pair; of a feature by itself `E k_j k_l`.
    fn covariance(&self, group: &[usize], [re, im]: [usize; 2]) -> Mat<c64> {
        let of = |j: usize, a: usize, l: usize, b: usize| {
            let at = |head: usize, feature: usize| group[head] * self.head_dim + feature;
            self.keys[(at(j, a), at(l, b))]
        };
        Mat::from_fn(group.len(), group.len(), |j, l| match re == im {
            true => c64::new(of(j, re, l, re), 0.0),
            false => c64::new(
                of(j, re, l, re) + of(j, im, l, im),
                of(j, im, l, re) - of(j, re, l, im),
            ),
        })
    }

    /// The energy of a pair in the query heads that read each member.
    fn weights(&self, group: &[usize], readers: &[usize], [re, im]: [usize; 2]) -> Vec<f64> {
        let energy = |query: usize| {
            let of = |feature: usize| self.queries[query * self.head_dim + feature];
            if re == im { of(re) } else { of(re) + of(im) }
        };
        let of_member = |&head: &usize| {
            let own = self.heads.own(head);
            let readers = readers.iter().filter(|query| own.contains(query));
            readers.map(|query| energy(*query)).sum()
        };
        group.iter().map(of_member).collect()
    }
}

fn places(of_one: usize, of_other: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..of_one).flat_map(move |i| (0..of_other).map(move |j| (i, j)))
}

/// Neighbours together, in groups as even as can be.
fn neighbours(items: usize, groups: usize) -> Vec<Vec<usize>> {
    let from = |group: usize| group * items / groups;
    let groups = 0..groups;
    groups
        .map(|group| (from(group)..from(group + 1)).collect())
        .collect()
}

/// How many ways there are to part so many items into so many groups, none of them empty (Stirling numbers of
/// the second kind), if it can be counted.
fn partitions(items: usize, groups: usize) -> Option<usize> {
    let mut ways = vec![0_usize; groups + 1];
    ways[0] = 1;
    for _ in 0..items {
        for group in (1..=groups).rev() {
            ways[group] = group
                .checked_mul(ways[group])?
                .checked_add(ways[group - 1])?;
        }
        ways[0] = 0;
    }
    Some(ways[groups])
}

/// All of them, groups in the order of their first items.
fn all_partitions(items: usize, count: usize) -> Vec<Vec<Vec<usize>>> {
    let mut all: Vec<Vec<Vec<usize>>> = vec![Vec::new()];
    for item in 0..items {
        all = all
            .into_iter()
            .flat_map(|groups| {
                let mut longer: Vec<Vec<Vec<usize>>> = (0..groups.len())
                    .map(|group| {
                        let mut groups = groups.clone();
                        groups[group].push(item);
                        groups
                    })
                    .collect();
                let mut opened = groups;
                opened.push(vec![item]);
                longer.push(opened);
                longer
            })
            .filter(|groups| groups.len() <= count && groups.len() + items - item > count)
            .collect();
    }
    all.retain(|groups| groups.len() == count);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ways_to_part_heads_are_counted_as_they_are_listed() {
        for (items, groups, ways) in [(4, 2, 7), (3, 1, 1), (5, 3, 25), (4, 4, 1)] {
            assert_eq!(partitions(items, groups), Some(ways));
            assert_eq!(all_partitions(items, groups).len(), ways);
        }
        assert!(partitions(64, 8).is_none_or(|ways| ways > EXHAUSTIVE));
        assert_eq!(neighbours(5, 2), [vec![0, 1], vec![2, 3, 4]]);
    }

    /// Keys of four heads of one rotary pair: heads 0 and 2 are one key and that key turned, 1 and 3 another.
    fn turned_heads(angle: f64) -> QueryKeys {
        let samples: [[f64; 4]; 4] = [
            [1.0, 0.5, -0.3, 0.8],
            [-0.7, 1.1, 0.9, 0.2],
            [0.4, -1.3, 1.2, 0.6],
            [0.1, 0.2, -0.8, -1.4],
        ];
        let rows = samples.map(|[a, b, c, d]| {
            let turn = |[re, im]: [f64; 2]| {
                let (sin, cos) = angle.sin_cos();
                [cos * re - sin * im, sin * re + cos * im]
            };
            [[a, b], [c, d], turn([a, b]), turn([c, d])].concat()
        });
        let keys = Mat::from_fn(8, 8, |i, j| rows.iter().map(|row| row[i] * row[j]).sum());
        QueryKeys {
            heads: HeadCounts::counted([8, 4], [8, 2]),
            head_dim: 2,
            pairs: vec![[0, 1]],
            keys,
            queries: vec![1.0; 16],
        }
    }

    #[test]
    fn heads_that_are_one_another_turned_are_merged_without_loss() {
        let angle = 0.7;
        let stats = turned_heads(angle);
        let groups = stats.groups().unwrap();
        assert_eq!(groups, [vec![0, 2], vec![1, 3]]);
        assert!(stats.cost(&groups[0]).unwrap().abs() < 1e-9);
        assert!(stats.cost(&[0, 1]).unwrap() > 0.1);
        let turns = stats.turns(&groups[0], &[0, 1, 4, 5]).unwrap();
        // The second is turned back.
        assert!((turns[0][0] - c64::ONE).norm() < 1e-9);
        assert!((turns[1][0] - c64::new(angle.cos(), -angle.sin())).norm() < 1e-9);
        let exchanged = stats.exchanged(neighbours(4, 2)).unwrap();
        assert_eq!(exchanged, groups);
    }
}
