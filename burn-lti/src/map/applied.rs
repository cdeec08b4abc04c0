//! [`AppliedMap`]: what the maps of a weight are applied to, in their order, and what that costs.

use super::contraction::{SideCost, contraction_cost, left_is_first};
use super::{AxisSpec, ContractionCost, MapKind};
use crate::geometry::HeadGrid;

/// A map as it is applied to what a kernel is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AppliedMap {
    /// Its form.
    pub form: MapKind,
    /// The teacher's features along its axis.
    pub teacher: HeadGrid,
    /// The student's.
    pub student: HeadGrid,
    /// Rows that it is applied to: the features of the other side, as many as that has by then.
    pub rows: usize,
    /// Whether these are the teacher's kernel, which has no gradient, and not what another map made of it.
    pub is_on_teacher: bool,
    /// What it costs.
    pub cost: ContractionCost,
}

impl AppliedMap {
    /// Of the map of an axis, if it has one, with so many features on the other side.
    fn new(axis: &AxisSpec, rows: usize) -> Option<Self> {
        let form = axis.map?;
        Some(Self {
            form,
            teacher: axis.teacher,
            student: axis.student,
            rows,
            is_on_teacher: true,
            cost: contraction_cost(form, axis.teacher, axis.student),
        })
    }

    /// Of a weight's sides, in the order in which they are contracted.
    pub(super) fn of_sides(left: &AxisSpec, right: &AxisSpec) -> Vec<Self> {
        let rows = [right.teacher.width(), left.teacher.width()];
        match (Self::new(left, rows[0]), Self::new(right, rows[1])) {
            (Some(on_left), Some(on_right)) => {
                let side = |map: &Self| SideCost {
                    cost: map.cost.first + map.cost.second,
                    features: [map.teacher.width(), map.student.width()],
                };
                let (first, mut second) = match left_is_first(side(&on_left), side(&on_right)) {
                    true => (on_left, on_right),
                    false => (on_right, on_left),
                };
                (second.is_on_teacher, second.rows) = (false, first.student.width());
                vec![first, second]
            }
            (on_left, on_right) => on_left.into_iter().chain(on_right).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn that_side_comes_first_after_which_less_is_left_to_do() {
        let axis = |teacher, student| {
            let grid = |features| HeadGrid::new(features, 1);
            AxisSpec::mapped(MapKind::General, grid(teacher), grid(student))
        };
        // The axis of 8 first: 8 * 2 * 9 and 9 * 6 * 2; that of 9 first: 9 * 6 * 8 and 8 * 2 * 6. On either side.
        for sides in [[axis(8, 2), axis(9, 6)], [axis(9, 6), axis(8, 2)]] {
            let [first, second] = AppliedMap::of_sides(&sides[0], &sides[1])[..] else {
                panic!("two maps");
            };
            assert_eq!(
                (first.rows, first.is_on_teacher, first.cost.first),
                (9, true, 16)
            );
            assert_eq!(
                (second.rows, second.is_on_teacher, second.cost.first),
                (2, false, 54)
            );
        }
        let kept = AxisSpec::kept(HeadGrid::new(5, 1));
        let [only] = AppliedMap::of_sides(&kept, &axis(8, 2))[..] else {
            panic!("one map");
        };
        assert_eq!((only.rows, only.is_on_teacher), (5, true));
        assert!(AppliedMap::of_sides(&kept, &kept).is_empty());
    }
}
