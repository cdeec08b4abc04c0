//! Each student head begins as a group of neighbouring teacher heads.
//!
//! With `g = t_heads / s_heads`, student head `u` stands for teacher heads `u g .. (u + 1) g`: outputs of
//! a projection take the *mean* of the group, inputs the *sum*, because each of them now receives one
//! averaged head where the teacher received `g`. Head features keep their places, so rotary pairs stay
//! together. With `g = 1` the map is the identity.
//!
//! Of a sum of pairs the first is that map, and the others add nothing yet.

use rand::rngs::StdRng;

use super::super::axis_map::FirstValues;
use super::super::{AxisSpec, MapKind, Side};
use super::{StartError, fill_up};

pub(super) fn check(spec: &AxisSpec) -> Result<(), StartError> {
    let (teacher, student) = (spec.teacher, spec.student);
    if student.heads == 0 || teacher.heads % student.heads != 0 {
        return Err(StartError::HeadsDoNotDivide {
            teacher: teacher.heads,
            student: student.heads,
            allowed: (1..=teacher.heads)
                .filter(|n| teacher.heads.is_multiple_of(*n))
                .collect(),
        });
    }
    if teacher.head_dim != student.head_dim {
        return Err(StartError::HeadDim { teacher, student });
    }
    Ok(())
}

pub(super) fn values(spec: &AxisSpec, side: Side, rng: &mut StdRng) -> FirstValues {
    let (heads, s_heads, size) = (
        spec.teacher.heads,
        spec.student.heads,
        spec.teacher.head_dim,
    );
    let group = heads / s_heads;
    let weight = match side {
        Side::Right => 1.0 / group as f32,
        Side::Left => 1.0,
    };
    if let Some(shape) = spec.rotary() {
        let (r, w) = shape.picked(|head, s_head| match head / group == s_head {
            true => weight,
            false => 0.0,
        });
        return FirstValues::Rotary { r, w };
    }
    if spec.map == Some(MapKind::General) {
        // `W[xy,uv] = A[x,u] I[y,v]`
        let mut w = vec![0.0; spec.teacher.width() * spec.student.width()];
        for row in 0..heads * size {
            let (head, feature) = (row / size, row % size);
            let column = head / group * size + feature;
            w[row * spec.student.width() + column] = weight;
        }
        return FirstValues::Dense { w };
    }
    let mut a = vec![0.0; heads * s_heads];
    for head in 0..heads {
        a[head * s_heads + head / group] = weight;
    }
    let mut b = vec![0.0; size * size];
    for feature in 0..size {
        b[feature * size + feature] = 1.0;
    }
    fill_up(spec, &mut a, &mut b, rng);
    FirstValues::Factors { a, b }
}
