//! The teacher at the width of a student whose residual stream is narrower: a decoder with all of the teacher's heads
//! and units, which reads and writes the student's stream.
//!
//! The stream keeps the directions in which the teacher's lies: of its states between all blocks, each of length one,
//! the principal components (as SliceGPT has them for each block: Ashkboos et al. 2024, arXiv 2401.15024), weighed by
//! what the loss says of them (see `directions.rs`), as `P [t_width, s_width]`, times `sqrt(s_width / t_width)`, so that
//! states keep their mean square. What writes to the stream goes through `P`. What reads it
//! reads after a norm, through which no matrix goes: so at each norm, on the student's own stream, a matrix `A` is
//! fitted that takes what the student's norm makes, without gains, to what the teacher's makes, gains and all, by
//! ridge least squares; a weight that reads becomes `A` times it. The gains are in it, and those of the student begin
//! as one.
//!
//! Where the head is the embedding, one table has to do as both. With `B = E P` what the embedding is in the student
//! and `C` what the head would be, a change `S` of the stream's basis makes them `B S` and `C S^-T`; the symmetric
//! `S` for which they are nearest solves `B X = C`, `X = S^2`, in least squares, a Lyapunov equation. A norm takes away
//! how much longer `S` makes the last states, so table and basis are made as much larger.

use burn::prelude::*;
use burn::tensor::DType;
use faer::Mat;

use super::error::{CalibrationError, Result};
use super::features::flat;
use super::feed_forward::change;
use super::moments::{floats, matrix};
use super::solve;
use super::split::SplitMoments;
use super::stream::{Basis, lengths, tensor};
use super::teacher::site_name;
use super::text::Text;
use crate::compat;
use crate::decoder::{LayeredDecoder, Reader, TokenBatch};
use crate::geometry::{Axis, Role, Site};
use crate::tensors::{TensorSet, join_name};

/// Of the basis in which a tied table lies, the least part of the largest eigenvalue.
const LEAST: f64 = 1e-2;

/// The tensors of the teacher at the student's width before any layer is fitted, by the teacher's names: gains of one,
/// what biases add in the basis, the embedding, and of what is yet to be fitted the shape. Where one table is to do
/// as embedding and head, the basis becomes that in which it can.
pub(super) fn first<B: Backend>(
    text: &mut Text<'_, B, impl LayeredDecoder<B>>,
    ties_head: Option<bool>,
) -> Result<TensorSet<B>> {
    let teacher = text.teacher;
    let Some(basis) = text.basis().cloned() else {
        return Ok(TensorSet::new());
    };
    let [t_width, width] = basis.into.dims();
    let (head, device) = (teacher.head().weight, basis.into.device());
    let (dtype, vocab) = (head.dtype(), head.dims()[1]);
    let name_of = |site| {
        teacher
            .site_name(site)
            .map(|name| join_name(&name, "weight"))
    };
    let of_teacher = TensorSet::collect(teacher);
    let table = name_of(Site::EMBEDDING).and_then(|name| {
        Some((
            of_teacher.get(&name)?.tensor.to_rank([vocab, t_width]),
            name,
        ))
    });
    let Some((table, table_name)): Option<(Tensor<B, 2>, String)> = table else {
        return Err(CalibrationError::no_norms());
    };
    let is_tied = ties_head.unwrap_or_else(|| teacher.site_name(Site::HEAD).is_none());
    let mut tensors = TensorSet::new();
    let embedded = match is_tied {
        false => {
            // Where the teacher has none, whoever makes the student knows what it is called.
            if let Some(name) = name_of(Site::HEAD) {
                let zeros = Tensor::<B, 2>::zeros([width, vocab], (&device, dtype));
                tensors.insert(&name, "Linear", zeros);
            }
            table.cast(DType::F32).matmul(basis.into.clone())
        }
        true => tied(text, table, head)?,
    };
    let basis = text.basis().cloned().unwrap_or(basis);
    tensors.insert(&table_name, "Embedding", embedded.cast(dtype));
    let mut of_sites = Vec::new();
    for layer in 0..teacher.layers() {
        for role in ROLES {
            let Some(site) = teacher.site_name(Site::new(layer, role)) else {
                continue;
            };
            let [weight, bias] = ["weight", "bias"].map(|leaf| join_name(&site, leaf));
            if let Some(named) = of_teacher.get(&weight) {
                let others = named.tensor.num_elements() / t_width;
                let shape = match role.axes() {
                    [Axis::Width, _] => [width, others],
                    _ => [others, width],
                };
                let zeros = Tensor::<B, 2>::zeros(shape, (&device, dtype));
                tensors.insert(&weight, "Linear", zeros);
            }
            if let Some(named) = of_teacher.get(&bias).filter(|_| writes(role)) {
                let row: Tensor<B, 2> = named.tensor.to_rank([1, t_width]);
                let row = row.cast(DType::F32).matmul(basis.into.clone());
                tensors.insert(&bias, "Linear", row.reshape([width]).cast(dtype));
            }
            of_sites.push(bias);
        }
    }
    // What else has a number for each feature is the gain of a norm.
    let along_heads: Vec<String> = teacher.gains().into_iter().map(|(name, _)| name).collect();
    for (name, named) in of_teacher.iter() {
        let own = name.to_owned();
        let is_gain = named.tensor.shape() == [t_width]
            && !of_sites.contains(&own)
            && !along_heads.contains(&own);
        if is_gain {
            let ones = Tensor::<B, 1>::ones([width], (&device, dtype));
            tensors.insert(name, "RmsNorm", ones);
        }
    }
    Ok(tensors)
}

/// Query, key, value and output of the teacher's layer that `layer` stands for, at the student's width, by the
/// student's names; the teacher at that width has them too.
pub(super) fn attention<B: Backend>(
    text: &mut Text<'_, B, impl LayeredDecoder<B>>,
    layer: usize,
    student: &impl LayeredDecoder<B>,
) -> Result<TensorSet<B>> {
    let input = input_map(text, Reader::Attention(layer), student)?;
    let roles = [Role::Query, Role::Key, Role::Value, Role::Out];
    narrowed(text, layer, &roles, &input)
}

/// The same of the feed-forward block, on what the student's attention adds.
pub(super) fn feed_forward<B: Backend>(
    text: &mut Text<'_, B, impl LayeredDecoder<B>>,
    layer: usize,
    student: &impl LayeredDecoder<B>,
) -> Result<TensorSet<B>> {
    let input = input_map(text, Reader::FeedForward(layer), student)?;
    narrowed(text, layer, &[Role::Gate, Role::Up, Role::Down], &input)
}

/// The head of `student`, by its name; nothing where that is the embedding.
pub(super) fn head<B: Backend>(
    text: &mut Text<'_, B, impl LayeredDecoder<B>>,
    student: &impl LayeredDecoder<B>,
) -> Result<TensorSet<B>> {
    let mut tensors = TensorSet::new();
    if let Some(name) = student.site_name(Site::HEAD) {
        let input = input_map(text, Reader::Head, student)?;
        let head = text.teacher.head().weight;
        let dtype = head.dtype();
        let weight = input.matmul(head.cast(DType::F32)).cast(dtype);
        tensors.insert(&join_name(&name, "weight"), "Linear", weight);
    }
    Ok(tensors)
}

/// The roles of a layer's weights, all of which lie along the stream.
const ROLES: [Role; 7] = [
    Role::Query,
    Role::Key,
    Role::Value,
    Role::Out,
    Role::Gate,
    Role::Up,
    Role::Down,
];

/// Whether a weight in this role writes to the stream.
const fn writes(role: Role) -> bool {
    matches!(role.axes(), [_, Axis::Width])
}

/// Weights of the teacher's layer that `layer` stands for at the student's width; `input` is what takes what the
/// student reads to what the teacher does.
fn narrowed<B: Backend>(
    text: &mut Text<'_, B, impl LayeredDecoder<B>>,
    layer: usize,
    roles: &[Role],
    input: &Tensor<B, 2>,
) -> Result<TensorSet<B>> {
    let Some(basis) = text.basis().cloned() else {
        return Ok(TensorSet::new());
    };
    let of_teacher = TensorSet::collect(text.teacher);
    let [t_width, _] = basis.into.dims();
    let (mut own, mut by_teacher) = (TensorSet::new(), TensorSet::new());
    for role in roles {
        let from = join_name(&text.source_name(layer, *role)?, "weight");
        let to = join_name(&site_name(text.teacher, layer, *role)?, "weight");
        let named = of_teacher.get(&from);
        let named = named.ok_or_else(|| CalibrationError::no_weight(&from))?;
        let others = named.tensor.num_elements() / t_width;
        let dtype = named.tensor.dtype();
        let weight = match writes(*role) {
            true => {
                let weight: Tensor<B, 2> = named.tensor.to_rank([others, t_width]);
                weight.cast(DType::F32).matmul(basis.into.clone())
            }
            false => {
                let weight: Tensor<B, 2> = named.tensor.to_rank([t_width, others]);
                input.clone().matmul(weight.cast(DType::F32))
            }
        };
        let weight = weight.cast(dtype);
        own.insert(&to, "Linear", weight.clone());
        by_teacher.insert(&from, "Linear", weight);
    }
    text.narrowed(&by_teacher);
    Ok(own)
}

/// `A [s_width, t_width]`, which takes what the student's `reader` reads, after a norm without gains, to what the
/// teacher's reads.
fn input_map<B: Backend>(
    text: &mut Text<'_, B, impl LayeredDecoder<B>>,
    reader: Reader,
    student: &impl LayeredDecoder<B>,
) -> Result<Tensor<B, 2>> {
    fitted_input(text, reader, |text, index, batch| {
        let h = match reader {
            Reader::Attention(layer) => text.student_input(index, layer)?,
            Reader::FeedForward(layer) => {
                let h = text.student_input(index, layer)?;
                h.clone() + student.attention(layer, h, &student.context(batch))
            }
            Reader::Head => text.student_output(index)?,
        };
        Ok(student.normed(reader, h).map(flat))
    })
}

/// The same for what is `read` of each batch, `[rows, s_width]`.
fn fitted_input<B: Backend, T: LayeredDecoder<B>>(
    text: &mut Text<'_, B, T>,
    reader: Reader,
    read: impl Fn(&mut Text<'_, B, T>, usize, &TokenBatch<B>) -> Result<Option<Tensor<B, 2>>>,
) -> Result<Tensor<B, 2>> {
    // Were nothing lost, the way back would be the map, but for the gains.
    let gains = text.gains(reader).ok_or_else(CalibrationError::no_norms)?;
    let back = text.basis().map(|basis| basis.back.clone() * gains);
    let back = back.ok_or_else(CalibrationError::no_norms)?;
    let [width, t_width] = back.dims();
    let mut sums = SplitMoments::zeros(width, t_width);
    for (index, batch) in text.batches() {
        let own = read(text, index, &batch)?.ok_or_else(CalibrationError::no_norms)?;
        let wanted = text
            .read_by_teacher(index, reader)?
            .ok_or_else(CalibrationError::no_norms)?;
        let root = text.roots(index, &batch);
        let own = own.cast(DType::F32) * root.clone();
        let missing = flat(wanted).cast(DType::F32) * root - own.clone().matmul(back.clone());
        let nothing = missing.zeros_like();
        sums.add(index, own, missing, nothing)?;
    }
    Ok(match change(&sums)? {
        (_, Some(change)) => tensor(&change, &back.device()) + back,
        (_, None) => back,
    })
}

/// Rows with a mean square of one: what a norm without gains makes of them, but for what it adds to be safe.
fn unit_rows<B: Backend>(rows: Tensor<B, 2>) -> Tensor<B, 2> {
    let rows = rows.cast(DType::F32);
    rows.clone() / lengths(rows)
}

/// The table that is embedding and head, `[vocab, s_width]`, and the basis in which it is, which becomes that of the
/// text. `table [vocab, t_width]` is the teacher's embedding, `head [t_width, vocab]` its head.
fn tied<B: Backend>(
    text: &mut Text<'_, B, impl LayeredDecoder<B>>,
    table: Tensor<B, 2>,
    head: Tensor<B, 2>,
) -> Result<Tensor<B, 2>> {
    let Some(basis) = text.basis().cloned() else {
        return Ok(table);
    };
    // Of the teacher's own stream in the basis: the student's is not there yet.
    let last = text.layers() - 1;
    let input = fitted_input(text, Reader::Head, |text, index, _| {
        Ok(Some(unit_rows(flat(text.wanted_output(index, last)?))))
    })?;
    let (table, head) = (table.cast(DType::F32), head.cast(DType::F32));
    let Basis { into, back } = basis;
    let (width, device) = (into.dims()[1], into.device());
    let (embedded, read) = (table.matmul(into.clone()), input.matmul(head).transpose());
    let own = matrix(embedded.clone().transpose().matmul(embedded.clone()), width)?;
    let cross = matrix(embedded.clone().transpose().matmul(read.clone()), width)?;
    let (vectors, values) = solve::eigen(&own)?;
    let right = vectors.transpose() * (&cross + cross.transpose()) * &vectors;
    let right = Mat::from_fn(width, width, |i, j| {
        right[(i, j)] / (values[i] + values[j]).max(f64::MIN_POSITIVE)
    });
    let square = &vectors * right * vectors.transpose();
    let square = faer::Scale(0.5) * (&square + square.transpose());
    let (vectors, values) = solve::eigen(&square)?;
    let largest = values.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
    let roots: Vec<f64> = values
        .iter()
        .map(|value| value.max(LEAST * largest).sqrt())
        .collect();
    let of = |by: &dyn Fn(f64) -> f64| {
        let scaled = Mat::from_fn(width, width, |i, j| vectors[(i, j)] * by(roots[j]));
        tensor::<B>(&(scaled * vectors.transpose()), &device)
    };
    let (change, undone) = (of(&|root| root), of(&|root| 1.0 / root));
    // Before the head a norm takes away how much longer the change makes states, so the head has to be as much
    // larger; and so has the embedding, with all that writes to the stream, which no norm sees.
    let (mut squares, mut count) = (0.0, 0.0);
    for (index, batch) in text.batches() {
        let changed = unit_rows(flat(text.wanted_output(index, last)?)).matmul(change.clone());
        let root = text.roots(index, &batch);
        let sum = |rows: Tensor<B, 2>| floats(compat::total(rows.powi_scalar(2)));
        squares += f64::from(sum(changed * root.clone())?[0]) / width as f64;
        count += f64::from(sum(root)?[0]);
    }
    let longer = (squares / count.max(f64::MIN_POSITIVE)).sqrt();
    text.set_basis(Basis {
        into: into.matmul(change.clone()).mul_scalar(longer),
        back: undone.clone().matmul(back).mul_scalar(longer),
    });
    Ok((embedded.matmul(change) + read.matmul(undone)).mul_scalar(0.5 * longer))
}
