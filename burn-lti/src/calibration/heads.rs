//! How many heads both sides have, and which choices there are between the teacher's.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::error::{CalibrationError, Result};
use crate::geometry::Axes;

/// The teacher's heads that those of a student begin as.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeadChoice {
    /// The teacher's query head for each query head of the student.
    pub query: Vec<usize>,
    /// The teacher's key/value heads for each of the student's: one, or several that are merged in it.
    pub key_value: Vec<Vec<usize>>,
}

/// The heads of teacher and student.
///
/// Query heads `k * t_group .. (k + 1) * t_group` of the teacher share its key/value head `k`, and so in
/// the student.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct HeadCounts {
    pub(super) t_query: usize,
    pub(super) t_key_value: usize,
    pub(super) s_query: usize,
    pub(super) s_key_value: usize,
}

impl HeadCounts {
    /// Of both sides' grids, once they can be calibrated.
    pub(super) fn of(teacher: &Axes, student: &Axes) -> Result<Self> {
        for geometry in [teacher, student] {
            let Axes {
                query, key_value, ..
            } = *geometry;
            if let Some(grid) = [query, key_value].iter().find(|grid| grid.width() == 0) {
                return Err(CalibrationError::Refused(format!(
                    "the grid {grid} is empty: every projection needs at least one head of one feature"
                )));
            }
            let shared = query.heads.is_multiple_of(key_value.heads);
            if !shared || query.head_dim != key_value.head_dim {
                return Err(CalibrationError::Refused(format!(
                    "{query} cannot share {key_value}: calibration needs a multiple as many query heads as \
                     key/value heads, of one size"
                )));
            }
        }
        if teacher.d_model != student.d_model {
            let what = "features in the residual stream";
            return Err(CalibrationError::misfit(
                what,
                teacher.d_model,
                student.d_model,
            ));
        }
        Ok(Self {
            t_query: teacher.query.heads,
            t_key_value: teacher.key_value.heads,
            s_query: student.query.heads,
            s_key_value: student.key_value.heads,
        })
    }

    /// Of `[query, key_value]` heads each, for a test.
    #[cfg(test)]
    pub(super) fn counted([t_query, t_key_value]: [usize; 2], student: [usize; 2]) -> Self {
        Self {
            t_query,
            t_key_value,
            s_query: student[0],
            s_key_value: student[1],
        }
    }

    /// Query heads of the teacher that share a key/value head.
    pub(super) const fn t_group(&self) -> usize {
        self.t_query / self.t_key_value
    }

    /// Query heads of the student that share a key/value head.
    pub(super) const fn s_group(&self) -> usize {
        self.s_query / self.s_key_value
    }

    /// How many of the student's query heads are chosen. Where the student has more than its groups can
    /// give it, the others repeat.
    pub(super) fn natural(&self) -> usize {
        let groups = self.s_key_value.min(self.t_key_value);
        groups * self.taken_of_a_group()
    }

    /// Query heads that a key/value head of the student takes from the group that it began as.
    fn taken_of_a_group(&self) -> usize {
        self.s_group().min(self.t_group())
    }

    /// Query heads of the teacher that share its key/value head `key_value`.
    pub(super) const fn own(&self, key_value: usize) -> Range<usize> {
        key_value * self.t_group()..(key_value + 1) * self.t_group()
    }

    /// Whether more of the teacher's query heads can be kept, each once, where its key/value heads are merged.
    pub(super) fn gain_by_merging(&self) -> bool {
        self.s_key_value < self.t_key_value && self.natural() < self.s_query.min(self.t_query)
    }

    /// How many of the teacher's query heads a student with these groups of its key/value heads can keep.
    pub(super) fn kept_of(&self, groups: &[Vec<usize>]) -> usize {
        let of_group = |group: &Vec<usize>| self.s_group().min(group.len() * self.t_group());
        groups.iter().map(of_group).sum()
    }

    /// The number of choices, if it can be counted.
    pub(super) fn choices(&self) -> Option<usize> {
        let groups = self.s_key_value.min(self.t_key_value);
        let of_a_group = binomial(self.t_group(), self.taken_of_a_group())?;
        let exponent = u32::try_from(groups).ok()?;
        binomial(self.t_key_value, groups)?.checked_mul(of_a_group.checked_pow(exponent)?)
    }

    /// All choices of key/value heads and of query heads under them.
    pub(super) fn all_choices(&self) -> Vec<Vec<(usize, Vec<usize>)>> {
        let groups = self.s_key_value.min(self.t_key_value);
        let mut all = Vec::new();
        for key_value in combinations(0..self.t_key_value, groups) {
            let mut choices = vec![Vec::new()];
            for head in key_value {
                let queries = combinations(self.own(head), self.taken_of_a_group());
                choices = choices
                    .into_iter()
                    .flat_map(|choice| {
                        queries.iter().map(move |query| {
                            let mut longer: Vec<(usize, Vec<usize>)> = choice.clone();
                            longer.push((head, query.clone()));
                            longer
                        })
                    })
                    .collect();
            }
            all.extend(choices);
        }
        all
    }

    /// Whether `head` may be added to the groups: its own is open and not full, or another may be opened.
    pub(super) fn may_take(&self, open: &[(usize, Vec<usize>)], head: usize) -> bool {
        let own = head / self.t_group();
        match open.iter().find(|(key_value, _)| *key_value == own) {
            Some((_, query)) => query.len() < self.taken_of_a_group(),
            None => open.len() < self.s_key_value.min(self.t_key_value),
        }
    }

    /// The choice with these groups of the teacher's key/value heads and, of each, query heads. Where there are
    /// fewer than the student has, they are repeated.
    pub(super) fn merged(&self, groups: Vec<Vec<usize>>, mut query: Vec<Vec<usize>>) -> HeadChoice {
        for queries in &mut query {
            queries.sort_unstable();
            let again = queries.clone();
            let missing = self.s_group().saturating_sub(queries.len());
            queries.extend(again.iter().cycle().take(missing));
        }
        HeadChoice {
            query: query.concat(),
            key_value: groups,
        }
    }

    /// The groups that these query heads open, in their order.
    pub(super) fn opened(&self, taken: &[usize]) -> Vec<(usize, Vec<usize>)> {
        let mut open: Vec<(usize, Vec<usize>)> = Vec::new();
        for &head in taken {
            let own = head / self.t_group();
            match open.iter_mut().find(|(key_value, _)| *key_value == own) {
                Some((_, query)) => query.push(head),
                None => open.push((own, vec![head])),
            }
        }
        open
    }

    /// The choice with a teacher head for every head of the student, in the teacher's order. A student
    /// with more key/value heads than the teacher uses the teacher's again, with those query heads of
    /// their groups first that are not used yet; query heads that a group cannot give are repeated.
    pub(super) fn filled(&self, mut groups: Vec<(usize, Vec<usize>)>) -> HeadChoice {
        groups.sort();
        for (_, query) in &mut groups {
            query.sort_unstable();
        }
        let first = groups.len();
        while groups.len() < self.s_key_value && first > 0 {
            let (head, _) = groups[(groups.len() - first) % first];
            let used = |query: &usize| {
                let same = groups.iter().filter(|(other, _)| *other == head);
                same.flat_map(|(_, queries)| queries)
                    .filter(|q| *q == query)
                    .count()
            };
            let mut queries: Vec<usize> = self.own(head).collect();
            queries.sort_by_key(used);
            queries.truncate(self.s_group());
            groups.push((head, queries));
        }
        for (head, query) in &mut groups {
            let again: Vec<usize> = self.own(*head).collect();
            let missing = self.s_group().saturating_sub(query.len());
            query.extend(again.iter().cycle().take(missing));
        }
        HeadChoice {
            key_value: groups.iter().map(|(head, _)| vec![*head]).collect(),
            query: groups.into_iter().flat_map(|(_, query)| query).collect(),
        }
    }
}

/// All ways to take `count` of `items`, in order.
fn combinations(items: Range<usize>, count: usize) -> Vec<Vec<usize>> {
    if count == 0 {
        return vec![Vec::new()];
    }
    let mut all = Vec::new();
    for first in items.clone() {
        for mut rest in combinations(first + 1..items.end, count - 1) {
            rest.insert(0, first);
            all.push(rest);
        }
    }
    all
}

fn binomial(n: usize, k: usize) -> Option<usize> {
    (0..k).try_fold(1usize, |product, i| {
        Some(product.checked_mul(n - i)? / (i + 1))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::HeadGrid;

    #[test]
    fn choices_are_counted_as_they_are_listed() {
        for (teacher, student, count) in [
            ([8, 4], [4, 2], 6),
            ([9, 3], [3, 1], 3),
            ([8, 2], [4, 2], 36),
            ([8, 4], [2, 1], 4),
            ([9, 3], [2, 1], 9),
            ([4, 2], [6, 3], 1),
        ] {
            let heads = HeadCounts::counted(teacher, student);
            assert_eq!(heads.choices(), Some(count), "{teacher:?} {student:?}");
            assert_eq!(heads.all_choices().len(), count);
        }
        let many = HeadCounts::counted([4096, 64], [2048, 32]);
        assert_eq!(many.choices(), None);
    }

    #[test]
    fn a_choice_is_filled_up_to_the_students_heads() {
        let heads = HeadCounts::counted([4, 2], [6, 3]);
        let choice = heads.filled(vec![(1, vec![3, 2]), (0, vec![0, 1])]);
        assert_eq!(choice.key_value, [[0], [1], [0]]);
        assert_eq!(choice.query, [0, 1, 2, 3, 0, 1]);
        // Two of three query heads in the first copy of a group: the third comes in with the second.
        let heads = HeadCounts::counted([3, 1], [4, 2]);
        let choice = heads.filled(vec![(0, vec![0, 2])]);
        assert_eq!(choice.query[..2], [0, 2]);
        assert_eq!(choice.query[2], 1);
    }

    #[test]
    fn heads_are_merged_where_more_query_heads_are_kept_so() {
        for (teacher, student, gains) in [
            ([8, 4], [8, 2], true),
            ([9, 3], [9, 1], true),
            ([8, 4], [6, 1], true),
            ([8, 4], [4, 2], false),
            ([4, 2], [6, 3], false),
            ([9, 3], [9, 3], false),
        ] {
            let heads = HeadCounts::counted(teacher, student);
            assert_eq!(heads.gain_by_merging(), gains, "{teacher:?} {student:?}");
        }
        let heads = HeadCounts::counted([8, 4], [8, 2]);
        assert_eq!(heads.kept_of(&[vec![0], vec![1, 2, 3]]), 6);
        let groups = vec![vec![0, 3], vec![1, 2]];
        assert_eq!(heads.kept_of(&groups), 8);
        let choice = heads.merged(groups.clone(), vec![vec![6, 7, 0, 1], vec![2, 3, 4]]);
        assert_eq!(choice.query, [0, 1, 6, 7, 2, 3, 4, 2]);
        assert_eq!(choice.key_value, groups);
    }

    #[test]
    fn grids_that_cannot_be_calibrated_are_refused() {
        let geometry = Axes::of_attention;
        let grid = HeadGrid::new;
        let good = geometry(16, grid(4, 8), grid(2, 8));
        assert!(HeadCounts::of(&good, &geometry(16, grid(2, 4), grid(1, 4))).is_ok());
        let refused = |student: &Axes| HeadCounts::of(&good, student).unwrap_err().to_string();
        let empty = refused(&geometry(16, grid(2, 8), grid(0, 8)));
        assert!(empty.contains("is empty"), "{empty}");
        for (query, key_value) in [(grid(3, 8), grid(2, 8)), (grid(2, 8), grid(1, 4))] {
            let error = refused(&geometry(16, query, key_value));
            assert!(error.contains("cannot share"), "{error}");
        }
        let wide = refused(&geometry(24, grid(2, 8), grid(1, 8)));
        assert!(wide.contains("16 and 24 features"), "{wide}");
    }
}
