//! Which of the teacher's values a value map of the student reads, and where they stand.

use faer::Mat;

use super::heads::HeadCounts;

/// What a layer's value features are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Span {
    /// The values of all the teacher's key/value heads, in their order: a map may mix them.
    All,
    /// The values of the teacher's heads that the student's head began as.
    Own,
}

/// The value features of each of the student's heads.
#[derive(Clone, Copy, Debug)]
pub(super) struct ValueFeatures<'a> {
    pub(super) heads: HeadCounts,
    /// The teacher's query head for each of the student's.
    pub(super) query: &'a [usize],
    /// The teacher's key/value heads for each of the student's: several where they are merged.
    pub(super) key_value: &'a [Vec<usize>],
    pub(super) t_head_dim: usize,
    pub(super) s_head_dim: usize,
    pub(super) span: Span,
}

impl ValueFeatures<'_> {
    /// Those of one head. Where some heads began as more than others, these have features that are nothing.
    pub(super) fn count(&self) -> usize {
        let heads = match self.span {
            Span::All => self.heads.t_key_value,
            Span::Own => self.largest(),
        };
        heads * self.t_head_dim
    }

    /// The most heads of the teacher's that one of the student's began as.
    pub(super) fn largest(&self) -> usize {
        self.key_value.iter().map(Vec::len).max().unwrap_or(0)
    }

    /// Whether a head began as several.
    pub(super) fn is_merged(&self) -> bool {
        self.largest() > 1
    }

    /// Where among them the values begin of a teacher's head that this key/value head of the student began as.
    pub(super) fn own(&self, student: usize, member: usize) -> usize {
        let head = match self.span {
            Span::All => self.key_value[student][member],
            Span::Own => member,
        };
        head * self.t_head_dim
    }

    /// Which of the heads that its key/value head began as this query head of the student read.
    pub(super) fn member(&self, query: usize) -> usize {
        let own = self.query[query] / self.heads.t_group();
        let group = &self.key_value[query / self.heads.s_group()];
        let member = group.iter().position(|head| *head == own);
        member.unwrap_or(0)
    }

    /// `kept [members * t_head_dim, s_head_dim]` of a head's own values, among all its features.
    pub(super) fn placed(&self, student: usize, kept: &Mat<f64>) -> Mat<f64> {
        let mut placed = Mat::zeros(self.count(), kept.ncols());
        for member in 0..kept.nrows() / self.t_head_dim {
            let of_member = kept.subrows(member * self.t_head_dim, self.t_head_dim);
            placed
                .subrows_mut(self.own(student, member), self.t_head_dim)
                .copy_from(of_member);
        }
        placed
    }

    /// The same for each key/value head.
    pub(super) fn all_placed(&self, kept: &[Mat<f64>]) -> Vec<Mat<f64>> {
        let heads = kept.iter().enumerate();
        heads.map(|(head, kept)| self.placed(head, kept)).collect()
    }

    /// For each query head the block of its key/value head.
    pub(super) fn by_query<'m>(&self, blocks: &'m [Mat<f64>]) -> Vec<&'m Mat<f64>> {
        (0..self.heads.s_query)
            .map(|head| &blocks[head / self.heads.s_group()])
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_heads_own_values_stand_where_its_span_has_them() {
        let kept = Mat::from_fn(2, 1, |i, _| (i + 1) as f64);
        let key_value = [vec![0], vec![2]];
        let features = |span| ValueFeatures {
            heads: HeadCounts::counted([6, 3], [4, 2]),
            query: &[0, 1, 4, 5],
            key_value: &key_value,
            t_head_dim: 2,
            s_head_dim: 1,
            span,
        };
        let all = features(Span::All).placed(1, &kept);
        let values: Vec<f64> = (0..6).map(|row| all[(row, 0)]).collect();
        assert_eq!(values, [0.0, 0.0, 0.0, 0.0, 1.0, 2.0]);
        assert_eq!(features(Span::Own).placed(1, &kept), kept);
        let blocks = [kept.clone(), all];
        let rows = features(Span::All).by_query(&blocks);
        let rows: Vec<usize> = rows.iter().map(|block| block.nrows()).collect();
        assert_eq!(rows, [2, 2, 6, 6]);
    }

    #[test]
    fn merged_heads_have_the_values_of_all_their_members() {
        let key_value = [vec![0, 2], vec![1]];
        let features = |span| ValueFeatures {
            heads: HeadCounts::counted([3, 3], [4, 2]),
            query: &[0, 2, 1, 1],
            key_value: &key_value,
            t_head_dim: 1,
            s_head_dim: 1,
            span,
        };
        let kept = Mat::from_fn(2, 1, |i, _| (i + 1) as f64);
        let column = |placed: Mat<f64>| -> Vec<f64> {
            (0..placed.nrows()).map(|row| placed[(row, 0)]).collect()
        };
        let (all, own) = (features(Span::All), features(Span::Own));
        assert_eq!(column(all.placed(0, &kept)), [1.0, 0.0, 2.0]);
        assert_eq!(column(own.placed(0, &kept)), [1.0, 2.0]);
        let one = Mat::from_fn(1, 1, |_, _| 3.0);
        assert_eq!(column(own.placed(1, &one)), [3.0, 0.0]);
        assert_eq!(
            (0..4).map(|head| own.member(head)).collect::<Vec<_>>(),
            [0, 1, 0, 0]
        );
        assert!(own.is_merged() && own.count() == 2);
    }
}
