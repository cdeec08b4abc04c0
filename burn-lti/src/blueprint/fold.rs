//! A student once its maps are folded away.

use std::collections::BTreeMap;

use super::{Blueprint, Source, StudentTensor};
use crate::map::{Part, Side, mapped_length};
use crate::tensors::{join_name, split_name};

impl Blueprint {
    /// The same student without maps: in the place of each one's parts stands the `weight` that they make.
    /// Weights are one variable if all their parts were. What trains is left to
    /// [`train`](Self::train), and where values come from says what they were made of.
    pub fn folded(&self) -> Self {
        let mut parts: BTreeMap<&str, Vec<&StudentTensor>> = BTreeMap::new();
        for tensor in &self.tensors {
            if let (Part::TeacherKernel | Part::Map(_), Some(projection)) =
                (tensor.part, &tensor.projection)
            {
                parts.entry(projection).or_default().push(tensor);
            }
        }
        let mut tensors: Vec<StudentTensor> = Vec::new();
        for tensor in &self.tensors {
            match (tensor.part, &tensor.projection) {
                (Part::TeacherKernel, Some(projection)) => {
                    tensors.push(folded_weight(
                        tensor,
                        projection,
                        &parts[projection.as_str()],
                    ));
                }
                (Part::Map(_), _) => {}
                _ => tensors.push(StudentTensor {
                    part: Part::Plain,
                    ..tensor.clone()
                }),
            }
        }
        Self {
            tensors,
            unused: self.unused.clone(),
        }
    }

    /// The same student, each tensor brought under its own name: that of its variable.
    pub fn of_its_own(&self) -> Self {
        let own = |tensor: &StudentTensor| StudentTensor {
            source: Source::Teacher(tensor.variable().to_owned()),
            ..tensor.clone()
        };
        Self {
            tensors: self.tensors.iter().map(own).collect(),
            unused: Vec::new(),
        }
    }
}

/// The weight that `kernel` and the maps of its projection, `parts`, make.
fn folded_weight(
    kernel: &StudentTensor,
    projection: &str,
    parts: &[&StudentTensor],
) -> StudentTensor {
    // Along an axis what its map makes; of an axis without a map, `C`'s own.
    let length = |side: Side, own: usize| {
        let of_side = parts.iter().filter(|part| part.part == Part::Map(side));
        let tensors = of_side.map(|part| (split_name(&part.name).1, part.shape.as_slice()));
        mapped_length(tensors).unwrap_or(own)
    };
    let shape = match *kernel.shape.as_slice() {
        [t_in, t_out] => vec![length(Side::Left, t_in), length(Side::Right, t_out)],
        _ => kernel.shape.clone(),
    };
    let from = match &kernel.source {
        Source::Teacher(name) => Source::Mapped(name.clone()),
        other => other.clone(),
    };
    StudentTensor {
        name: join_name(projection, "weight"),
        part: Part::Plain,
        projection: Some(projection.to_owned()),
        shape,
        source: from,
        shared_with: shared_projection(parts, projection),
        trains: parts.iter().any(|part| part.trains),
    }
}

/// The weight that is one with that of `projection`: of the projection with whose parts all of these
/// are one.
fn shared_projection(parts: &[&StudentTensor], projection: &str) -> Option<String> {
    let mut others = parts.iter().map(|part| {
        let leaf = part.name.strip_prefix(projection)?;
        part.shared_with.as_ref()?.strip_suffix(leaf)
    });
    let first = others.next()??;
    others
        .all(|other| other == Some(first))
        .then(|| join_name(first, "weight"))
}
