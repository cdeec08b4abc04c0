//! Which teacher heads a layer of the student begins with.
//!
//! A student's key/value head begins as one of the teacher's, and its query heads as query heads that
//! the teacher shares with that one, so that each begins with an attention pattern of the teacher's. They
//! are chosen by how well their outputs, through the best output projection, give what the attention block
//! should: exhaustively where the choices are few, else greedily by a pivoted block factorisation, in
//! which each step takes the head that explains most of what is left.

use std::ops::Range;

use faer::linalg::solvers::{Llt, Solve};
use faer::{Mat, Side};

use super::error::{CalibrationError, Result};
use super::heads::{HeadChoice, HeadCounts};
use super::moments::Moments;
use super::solve::{dot, ridge, ridged};

/// The ridge of the choice. What it decides between differs by far more.
const RIDGE: f64 = 1e-4;

/// Multiply-adds up to which all choices are tried.
const EXHAUSTIVE: f64 = 4e9;

/// Chooses by `moments` of the teacher's head outputs, `[t_heads * head_dim]` features, each with its own
/// values.
pub(super) fn choose(moments: &Moments, heads: &HeadCounts) -> Result<HeadChoice> {
    let features = head_features(moments, heads);
    let kept = (heads.s_query.min(heads.t_query) * features) as f64;
    let cost = kept.powi(3) / 3.0 + kept * kept * moments.d_model() as f64;
    let choice = match heads.choices() {
        Some(1) => heads.all_choices().swap_remove(0),
        Some(choices) if choices as f64 * cost <= EXHAUSTIVE => exhaustive(moments, heads)?,
        _ => greedy(moments, heads)?,
    };
    Ok(heads.filled(choice))
}

/// For each key/value head of the student its teacher head, and the query heads chosen under it; there may
/// be fewer than the student has, never more.
type Groups = Vec<(usize, Vec<usize>)>;

fn exhaustive(moments: &Moments, heads: &HeadCounts) -> Result<Groups> {
    let (cross, features) = (moments.cross(1.0), head_features(moments, heads));
    let mut best: Option<(f64, Groups)> = None;
    for groups in heads.all_choices() {
        let chosen = groups.iter().flat_map(|(_, query)| query);
        let columns: Vec<usize> = chosen.flat_map(|head| block(*head, features)).collect();
        let gain = explained(&moments.gram, &cross, &columns)?;
        if best.as_ref().is_none_or(|(least, _)| gain > *least) {
            best = Some((gain, groups));
        }
    }
    Ok(best.map(|(_, groups)| groups).unwrap_or_default())
}

/// How much of the target the features in `columns` explain.
fn explained(gram: &Mat<f64>, cross: &Mat<f64>, columns: &[usize]) -> Result<f64> {
    let count = columns.len();
    let gram = Mat::from_fn(count, count, |i, j| gram[(columns[i], columns[j])]);
    let rows = Mat::from_fn(count, cross.ncols(), |i, j| cross[(columns[i], j)]);
    Ok(dot(&rows, &ridge(&gram, &rows, RIDGE)?))
}

fn greedy(moments: &Moments, heads: &HeadCounts) -> Result<Groups> {
    let taken = one_by_one(moments, heads, heads.natural(), |taken, head| {
        heads.may_take(&heads.opened(taken), head)
    })?;
    Ok(heads.opened(&taken))
}

/// The query heads that the student keeps of each group of merged key/value heads, by the same moments.
pub(super) fn of_groups(
    moments: &Moments,
    heads: &HeadCounts,
    groups: &[Vec<usize>],
) -> Result<Vec<Vec<usize>>> {
    let group_of = |query: usize| {
        let own = query / heads.t_group();
        groups.iter().position(|group| group.contains(&own))
    };
    let taken = one_by_one(moments, heads, heads.kept_of(groups), |taken, head| {
        let group = group_of(head);
        let same = taken.iter().filter(|other| group_of(**other) == group);
        group.is_some() && same.count() < heads.s_group()
    })?;
    let of_group = |group: usize| {
        let own = taken
            .iter()
            .filter(|query| group_of(**query) == Some(group));
        own.copied().collect()
    };
    Ok((0..groups.len()).map(of_group).collect())
}

/// Takes `count` query heads one after another, each time the one that explains most of what is left among
/// those that may be taken after the others.
fn one_by_one(
    moments: &Moments,
    heads: &HeadCounts,
    count: usize,
    may_take: impl Fn(&[usize], usize) -> bool,
) -> Result<Vec<usize>> {
    let features = head_features(moments, heads);
    let (mut gram, mut cross) = (ridged(&moments.gram, RIDGE), moments.cross(1.0));
    let mut taken = Vec::new();
    for _ in 0..count {
        let mut best: Option<(f64, usize)> = None;
        let open = |head: &usize| !taken.contains(head) && may_take(&taken, *head);
        for head in (0..heads.t_query).filter(open) {
            let gain = gain(&gram, &cross, block(head, features))?;
            if best.is_none_or(|(most, _)| gain > most) {
                best = Some((gain, head));
            }
        }
        let Some((_, head)) = best else { break };
        taken.push(head);
        eliminate(&mut gram, &mut cross, block(head, features))?;
    }
    Ok(taken)
}

/// Of each of the teacher's heads.
fn head_features(moments: &Moments, heads: &HeadCounts) -> usize {
    moments.features() / heads.t_query
}

fn block(head: usize, features: usize) -> Range<usize> {
    head * features..(head + 1) * features
}

/// The Cholesky factor of a block on the diagonal of `gram`, to which the ridge was added before.
fn factor(gram: &Mat<f64>, block: &Range<usize>) -> Result<Llt<f64>> {
    let block = gram.submatrix(block.start, block.start, block.len(), block.len());
    let factor = block.llt(Side::Lower);
    factor.map_err(|_| CalibrationError::Singular { ridge: RIDGE })
}

/// What is explained by one more block, after `gram` and `cross` lost what the chosen ones explain.
fn gain(gram: &Mat<f64>, cross: &Mat<f64>, block: Range<usize>) -> Result<f64> {
    let rows = cross.subrows(block.start, block.len()).to_owned();
    Ok(dot(&rows, &factor(gram, &block)?.solve(&rows)))
}

/// Takes what a block explains out of all the others: a step of a block Cholesky factorisation.
fn eliminate(gram: &mut Mat<f64>, cross: &mut Mat<f64>, block: Range<usize>) -> Result<()> {
    let factor = factor(gram, &block)?;
    let columns = gram.subcols(block.start, block.len()).to_owned();
    let to_gram = factor.solve(&gram.subrows(block.start, block.len()).to_owned());
    let to_cross = factor.solve(&cross.subrows(block.start, block.len()).to_owned());
    *gram -= &columns * to_gram;
    *cross -= &columns * to_cross;
    Ok(())
}

#[cfg(test)]
mod tests {
    use burn::backend::Flex;
    use burn::tensor::{Tensor, TensorData};

    use super::*;

    /// Moments of rows whose target is the sum of the heads named, each of two features.
    fn moments_of(heads: usize, explaining: &[usize]) -> Moments {
        let (rows, width) = (64, heads * 2);
        let value = |row: usize, column: usize| -> f32 {
            // Pseudo-random and alike in no two columns.
            let mixed = (row * 7919 + column * 104_729 + row * column * 31) % 1009;
            mixed as f32 / 504.5 - 1.0
        };
        let features: Vec<f32> = (0..rows * width)
            .map(|i| value(i / width, i % width))
            .collect();
        let target: Vec<f32> = (0..rows * 2)
            .map(|i| {
                explaining
                    .iter()
                    .map(|head| value(i / 2, head * 2 + i % 2))
                    .sum()
            })
            .collect();
        let device = Default::default();
        let tensor = |values, columns| {
            Tensor::<Flex, 2>::from_data(TensorData::new(values, [rows, columns]), &device)
        };
        let mut moments = Moments::zeros(width, 2);
        let drift = Tensor::zeros([rows, 2], &device);
        let (features, target) = (tensor(features, width), tensor(target, 2));
        moments.add(features, target, drift).unwrap();
        moments
    }

    #[test]
    fn the_heads_that_explain_the_target_are_chosen() {
        let heads = HeadCounts::counted([8, 4], [4, 2]);
        let moments = moments_of(8, &[2, 3, 6, 7]);
        let expected = HeadChoice {
            query: vec![2, 3, 6, 7],
            key_value: vec![vec![1], vec![3]],
        };
        assert_eq!(choose(&moments, &heads).unwrap(), expected);
        let mut groups = greedy(&moments, &heads).unwrap();
        groups.sort();
        for (_, query) in &mut groups {
            query.sort();
        }
        assert_eq!(groups, [(1, vec![2, 3]), (3, vec![6, 7])]);
    }

    #[test]
    fn some_of_a_group_can_be_kept() {
        let heads = HeadCounts::counted([8, 2], [4, 2]);
        let choice = choose(&moments_of(8, &[0, 3, 5, 6]), &heads).unwrap();
        assert_eq!(choice.query, [0, 3, 5, 6]);
        assert_eq!(choice.key_value, [[0], [1]]);
    }

    #[test]
    fn merged_groups_keep_the_query_heads_that_explain_the_target() {
        let heads = HeadCounts::counted([8, 4], [4, 1]);
        let groups = [vec![0, 1, 2, 3]];
        let mut kept = of_groups(&moments_of(8, &[0, 3, 5, 6]), &heads, &groups).unwrap();
        kept[0].sort_unstable();
        assert_eq!(kept, [[0, 3, 5, 6]]);
    }

    #[test]
    fn a_student_with_more_heads_than_the_teacher_repeats_some() {
        let heads = HeadCounts::counted([4, 2], [6, 3]);
        let choice = choose(&moments_of(4, &[0, 1, 2, 3]), &heads).unwrap();
        assert_eq!((choice.query.len(), choice.key_value.len()), (6, 3));
        for head in 0..4 {
            assert!(choice.query.contains(&head), "{choice:?}");
        }
    }
}
