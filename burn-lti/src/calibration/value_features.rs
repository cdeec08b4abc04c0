//! Which of the teacher's values a value map of the student reads, and where they stand.

use faer::Mat;

use super::heads::HeadCounts;

/// What a layer's value features are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Span {
    /// The values of all the teacher's key/value heads, in their order: a map may mix them.
    All,
    /// The values of the teacher's head that the student's head began as.
    Own,
}

/// The value features of each of the student's heads.
#[derive(Clone, Copy, Debug)]
pub(super) struct ValueFeatures<'a> {
    pub(super) heads: HeadCounts,
    /// The teacher's key/value head for each of the student's.
    pub(super) key_value: &'a [usize],
    pub(super) t_head_dim: usize,
    pub(super) s_head_dim: usize,
    pub(super) span: Span,
}

impl ValueFeatures<'_> {
    /// Those of one head.
    pub(super) fn count(&self) -> usize {
        match self.span {
            Span::All => self.heads.t_key_value * self.t_head_dim,
            Span::Own => self.t_head_dim,
        }
    }

    /// Where among them the values begin of the teacher's head that this key/value head of the student
    /// began as.
    pub(super) fn own(&self, student: usize) -> usize {
        match self.span {
            Span::All => self.key_value[student] * self.t_head_dim,
            Span::Own => 0,
        }
    }

    /// `kept [t_head_dim, s_head_dim]` of a head's own values, among all its features.
    pub(super) fn placed(&self, student: usize, kept: &Mat<f64>) -> Mat<f64> {
        let mut placed = Mat::zeros(self.count(), kept.ncols());
        placed
            .subrows_mut(self.own(student), kept.nrows())
            .copy_from(kept);
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
        let features = |span| ValueFeatures {
            heads: HeadCounts::counted([6, 3], [4, 2]),
            key_value: &[0, 2],
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
}
