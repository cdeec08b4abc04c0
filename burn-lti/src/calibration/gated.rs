//! What a gated feed-forward block reads, fitted: its up projection, and its gate.
//!
//! A block adds `sum_j a(x . g_j) (x . u_j) d_j`. It is linear in the `u_j`: with `S_j = a(x . g_j)`, the best
//! change `V` of the up projection minimises `|M - (S * (x V)) D|^2`, `M` being what the block misses. Its normal
//! equations are as large as the projection squared, so they are never made: conjugate gradients apply them to
//! rows of text. The gate is the same with `S_j = a'(x . g_j) (x . u_j)`, to first order (Gauss-Newton).

use burn::prelude::*;
use burn::tensor::{DType, TensorData};
use faer::Mat;
use faer::linalg::solvers::Solve;

use super::error::{CalibrationError, Result};
use super::map_values::row_major;
use super::moments::{floats, matrix};
use super::solve::cholesky;
use super::split::is_held_out;
use super::teacher::site_name;
use super::text::Text;
use crate::compat;
use crate::decoder::LayeredDecoder;
use crate::geometry::Role;
use crate::tensors::{TensorSet, join_name};

/// The most rows of text that are kept in memory.
const ROWS: usize = 16_384;
/// Steps of conjugate gradients.
const STEPS: usize = 10;
/// The pull towards no change, as a part of the mean diagonal.
const RIDGE: f64 = 1e-3;

/// What is fitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gated {
    Up,
    Gate,
}

/// Rows of text in a layer, each times the root of its weight but for `input`.
struct Rows<B: Backend> {
    /// `[rows, d_model]`
    input: Tensor<B, 2>,
    /// By what a change of each unit's product is multiplied, `[rows, units]`.
    factor: Tensor<B, 2>,
    /// `[rows, d_model]`
    missing: Tensor<B, 2>,
}

/// The changed projection of `layer`; `None` where the decoder does not say what its gate does. Whether it helps
/// is for the caller to find out.
pub(super) fn moved<B: Backend>(
    text: &mut Text<'_, B, impl LayeredDecoder<B>>,
    layer: usize,
    student: &impl LayeredDecoder<B>,
    gated: Gated,
) -> Result<Option<TensorSet<B>>> {
    let Some(rows) = rows(text, layer, student, gated)? else {
        return Ok(None);
    };
    let name_of = |role| -> Result<String> {
        Ok(join_name(&site_name(text.teacher, layer, role)?, "weight"))
    };
    let role = match gated {
        Gated::Up => Role::Up,
        Gated::Gate => Role::Gate,
    };
    let (name, down) = (name_of(role)?, name_of(Role::Down)?);
    let tensors = TensorSet::collect(student);
    let (Some(weight), Some(down)) = (tensors.get(&name), tensors.get(&down)) else {
        return Ok(None);
    };
    let (d_model, units) = (text.d_model, rows.factor.dims()[1]);
    let down = down.tensor.to_rank([units, d_model]).cast(DType::F32);
    let weight = weight.tensor.to_rank::<2>([d_model, units]);
    let dtype = weight.dtype();
    let change = match fitted_change(&rows, &down) {
        // Numbers that are none make no change: they are no better.
        Err(CalibrationError::NotFinite) => return Ok(None),
        change => change?,
    };
    let weight = weight.cast(DType::F32) + change;
    let mut changed = TensorSet::new();
    changed.insert(&name, "Linear", weight.cast(dtype));
    Ok(Some(changed))
}

/// Weighted square of what the student's layer misses, on held-out tokens.
pub(super) fn held_out_missing<B: Backend>(
    text: &mut Text<'_, B, impl LayeredDecoder<B>>,
    layer: usize,
    student: &impl LayeredDecoder<B>,
) -> Result<f64> {
    let mut sum = 0.0;
    for (index, batch) in text.batches().filter(|(index, _)| is_held_out(*index)) {
        let block = |attended| student.feed_forward(layer, attended);
        let (_, missing) = text.missing(index, layer, &batch, student, block)?;
        let missing = text.targets(index, layer, &batch)?.weigh(missing);
        let squares = compat::total(missing.powi_scalar(2)).into_data();
        sum += squares.iter::<f64>().sum::<f64>();
    }
    Ok(sum)
}

/// Rows of the batches that are fitted on, evenly out of all of them.
fn rows<B: Backend>(
    text: &mut Text<'_, B, impl LayeredDecoder<B>>,
    layer: usize,
    student: &impl LayeredDecoder<B>,
    gated: Gated,
) -> Result<Option<Rows<B>>> {
    let fitted: Vec<_> = text
        .batches()
        .filter(|(index, _)| !is_held_out(*index))
        .collect();
    let total: usize = fitted
        .iter()
        .map(|(_, batch)| batch.tokens.dims().iter().product::<usize>())
        .sum();
    let every = total.div_ceil(ROWS).max(1);
    let (mut input, mut factor, mut missing) = (Vec::new(), Vec::new(), Vec::new());
    for (index, batch) in fitted.into_iter().step_by(every) {
        let block = |attended| student.feed_forward(layer, attended);
        let (attended, left) = text.missing(index, layer, &batch, student, block)?;
        let Some(units) = student.gated_units(layer, attended) else {
            return Ok(None);
        };
        let targets = text.targets(index, layer, &batch)?;
        input.push(units.input.cast(DType::F32));
        factor.push(targets.weigh(match gated {
            Gated::Up => units.gate,
            Gated::Gate => units.slope * units.up,
        }));
        missing.push(targets.weigh(left));
    }
    Ok(Some(Rows {
        input: Tensor::cat(input, 0),
        factor: Tensor::cat(factor, 0),
        missing: Tensor::cat(missing, 0),
    }))
}

/// `V [d_model, units]`, by preconditioned conjugate gradients from none.
fn fitted_change<B: Backend>(rows: &Rows<B>, down: &Tensor<B, 2>) -> Result<Tensor<B, 2>> {
    let Rows {
        input,
        factor,
        missing,
    } = rows;
    let ([count, d_model], units) = (input.dims(), factor.dims()[1]);
    let scale = 1.0 / count as f64;
    let device = input.device();
    // The operator's diagonal is about that of two factors: second moments of what is read, and of each unit's
    // factor times the square of its row of the last projection.
    let squares = factor.clone().powi_scalar(2).mean_dim(0)
        * down.clone().powi_scalar(2).sum_dim(1).transpose();
    let of_units = floats(squares.clone())?;
    let mean = of_units.iter().map(|value| f64::from(*value)).sum::<f64>() / units as f64;
    let gram = input
        .clone()
        .transpose()
        .matmul(input.clone())
        .mul_scalar(scale);
    let gram = matrix(gram, d_model)?;
    let mean_of_input = (0..d_model).map(|i| gram[(i, i)]).sum::<f64>() / d_model as f64;
    if !(mean > 0.0 && mean_of_input > 0.0) {
        return Ok(Tensor::zeros([d_model, units], (&device, DType::F32)));
    }
    let inverse = cholesky(&gram, 1e-2)?.solve(Mat::<f64>::identity(d_model, d_model));
    let inverse = TensorData::new(row_major(&inverse), [d_model, d_model]);
    let inverse = Tensor::<B, 2>::from_data(inverse, (&device, DType::F32));
    let by_unit = squares.add_scalar(1e-2 * mean).recip();
    let precondition = |v: Tensor<B, 2>| inverse.clone().matmul(v) * by_unit.clone();
    let pull = RIDGE * mean * mean_of_input;
    let back = |output: Tensor<B, 2>| {
        let of_units = output.matmul(down.clone().transpose()) * factor.clone();
        input.clone().transpose().matmul(of_units).mul_scalar(scale)
    };
    let apply = |v: Tensor<B, 2>| {
        let output = (factor.clone() * input.clone().matmul(v.clone())).matmul(down.clone());
        back(output) + v.mul_scalar(pull)
    };
    let inner = |a: &Tensor<B, 2>, b: &Tensor<B, 2>| -> Result<f64> {
        let sum = floats(compat::total(a.clone() * b.clone()))?;
        Ok(f64::from(sum[0]))
    };
    let mut change = Tensor::<B, 2>::zeros([d_model, units], (&device, DType::F32));
    let mut residual = back(missing.clone());
    let mut preconditioned = precondition(residual.clone());
    let mut direction = preconditioned.clone();
    let mut size = inner(&residual, &preconditioned)?;
    for _ in 0..STEPS {
        if size.is_nan() || size <= 0.0 {
            break;
        }
        let image = apply(direction.clone());
        let curvature = inner(&direction, &image)?;
        if curvature.is_nan() || curvature <= 0.0 {
            break;
        }
        let step = size / curvature;
        change = change + direction.clone().mul_scalar(step);
        residual = residual - image.mul_scalar(step);
        preconditioned = precondition(residual.clone());
        let next = inner(&residual, &preconditioned)?;
        direction = preconditioned.clone() + direction.mul_scalar(next / size);
        size = next;
    }
    Ok(change)
}

#[cfg(test)]
mod tests {
    use burn::backend::Flex;
    use burn::tensor::Distribution;

    use super::*;

    #[test]
    fn a_change_that_is_missing_is_found() {
        let device = Default::default();
        let random = |shape: [usize; 2]| {
            Tensor::<Flex, 2>::random(shape, Distribution::Normal(0.0, 1.0), &device)
        };
        let (input, factor) = (random([400, 6]), random([400, 4]));
        // As many outputs as units: every change shows.
        let (down, wanted) = (random([4, 6]), random([6, 4]));
        let missing = (factor.clone() * input.clone().matmul(wanted.clone())).matmul(down.clone());
        let rows = Rows {
            input,
            factor,
            missing,
        };
        let found = fitted_change(&rows, &down).unwrap();
        let off = (found - wanted.clone()).abs().max().into_scalar();
        assert!(off < 0.05, "{off}");
        // Nothing is missing: nothing changes.
        let none = Rows {
            missing: rows.missing.zeros_like(),
            ..rows
        };
        assert_eq!(
            fitted_change(&none, &down)
                .unwrap()
                .abs()
                .max()
                .into_scalar(),
            0.0
        );
    }
}
