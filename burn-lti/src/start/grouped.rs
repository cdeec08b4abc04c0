//! Each student head begins as a group of neighbouring teacher heads.
//!
//! With `g = t_heads / s_heads`, student head `u` stands for teacher heads `u g .. (u + 1) g`: query,
//! key and value take the *mean* of the group, the output projection the *sum*, because each of its
//! heads now receives one averaged head where the teacher received `g` of them. Head features keep
//! their places, so rotary pairs stay together. With `g = 1` the map is the identity.
//!
//! Of a sum of pairs the first is that map, and the others add nothing yet.

use rand::rngs::StdRng;

use super::{HostMap, MapSpec, StartError, pairs};
use crate::dense::{MapKind, ProjectionKind};

pub(super) fn check(spec: &MapSpec) -> Result<(), StartError> {
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

pub(super) fn map(spec: &MapSpec, rng: &mut StdRng) -> HostMap {
    let (teacher, student) = (spec.teacher, spec.student);
    let group = teacher.heads / student.heads;
    let weight = match spec.kind {
        ProjectionKind::Qkv => 1.0 / group as f32,
        ProjectionKind::Output => 1.0,
    };
    let mut a = vec![0.0; teacher.heads * student.heads];
    for head in 0..teacher.heads {
        a[head * student.heads + head / group] = weight;
    }
    let size = teacher.head_dim;
    let mut b = vec![0.0; size * size];
    for feature in 0..size {
        b[feature * size + feature] = 1.0;
    }
    match spec.map {
        MapKind::Factored | MapKind::Kronecker(_) => {
            pairs::fill_up(spec, &mut a, &mut b, rng);
            HostMap::Pairs { a, b, spec: *spec }
        }
        MapKind::General => HostMap::General {
            w: outer_product(spec, &a),
            spec: *spec,
        },
    }
}

/// `W[x,y,u,v] = A[x,u] I[y,v]`
fn outer_product(spec: &MapSpec, a: &[f32]) -> Vec<f32> {
    let (x, y) = (spec.teacher.heads, spec.teacher.head_dim);
    let (u, v) = (spec.student.heads, spec.student.head_dim);
    let mut w = vec![0.0; x * y * u * v];
    for (teacher_head, row) in a.chunks_exact(u).enumerate() {
        for (student_head, &weight) in row.iter().enumerate() {
            for feature in 0..y {
                w[((teacher_head * y + feature) * u + student_head) * v + feature] = weight;
            }
        }
    }
    w
}
