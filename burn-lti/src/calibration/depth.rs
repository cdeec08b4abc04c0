//! Which of the teacher's layers a shorter student keeps: those whose absence costs least once the layer before
//! each gap has been fitted to do the part of those that are gone.
//!
//! What an absence costs is measured. The text is read through the layers that are kept, and behind each that has
//! a gap after it, what the teacher has behind the gap is fitted by the features of its feed-forward block, as a
//! start will do it: ridge least squares, here on few rows, so in its dual form. Tokens held out of these fits tell
//! the cost. Layers leave one at a time, each time that whose absence costs least beside those that left before;
//! and all runs of neighbours of the right length are tried, since what one layer begins another may end.

use burn::prelude::*;
use burn::tensor::{DType, TensorData};
use faer::linalg::solvers::Solve;
use faer::{Mat, Side};

use super::error::{CalibrationError, Result};
use super::features::flat;
use super::map_values::row_major;
use super::moments::matrix;
use super::solve::{added_to_diagonal, mean_diagonal};
use crate::decoder::{LayeredDecoder, TokenBatch};

/// Of the fits, as a part of the mean diagonal.
const RIDGE: f64 = 0.1;

/// The `count` layers of `teacher` that a student keeps, ascending.
///
/// Of the two batches, each of about a thousand tokens, the first is fitted on; on the second `cost` judges: it
/// gets the stream after the last layer, `[batch, tokens, d_model]`, and says how far the teacher's distribution is
/// from what the head makes of it. `done` hears how many of how many ways were tried.
///
/// # Errors
///
/// [`CalibrationError`] where there are not so many layers, or a number is none.
pub fn choose_layers<B: Backend, T: LayeredDecoder<B>>(
    teacher: &T,
    [fitted, held_out]: [&TokenBatch<B>; 2],
    count: usize,
    cost: impl Fn(Tensor<B, 3>) -> f64,
    mut done: impl FnMut(usize, usize),
) -> Result<Vec<usize>> {
    let layers = teacher.layers();
    if !(1..=layers).contains(&count) {
        return Err(CalibrationError::Refused(format!(
            "the teacher has {layers} layers, of which a student cannot keep {count}: keep from 1 to {layers}"
        )));
    }
    let reading = Reading::of(teacher, [fitted, held_out]);
    let leaving = layers - count;
    let (runs, singles) = (count + 1, (0..leaving).map(|gone| layers - gone));
    let all_tries = runs + singles.sum::<usize>();
    let mut tries = 0;
    let mut best: Option<(f64, Vec<usize>)> = None;
    let mut tried = |kept: &[usize]| -> Result<f64> {
        let cost = match reading.through(kept) {
            Ok(stream) => cost(stream),
            Err(CalibrationError::NotFinite) => f64::NAN,
            Err(error) => return Err(error),
        };
        tries += 1;
        done(tries, all_tries);
        // A model that has gone wrong is the worst, not an error: others are there.
        Ok(if cost.is_nan() { f64::INFINITY } else { cost })
    };
    let mut offer = |cost: f64, kept: Vec<usize>| {
        if best.as_ref().is_none_or(|(least, _)| cost < *least) {
            best = Some((cost, kept));
        }
    };
    for first in 0..runs {
        let gone = first..first + leaving;
        let kept: Vec<usize> = (0..layers).filter(|layer| !gone.contains(layer)).collect();
        offer(tried(&kept)?, kept);
    }
    let mut kept: Vec<usize> = (0..layers).collect();
    for _ in 0..leaving {
        let mut least: Option<(f64, Vec<usize>)> = None;
        for index in 0..kept.len() {
            let mut without = kept.clone();
            without.remove(index);
            let cost = tried(&without)?;
            if least.as_ref().is_none_or(|(known, _)| cost < *known) {
                least = Some((cost, without));
            }
        }
        if let Some((cost, without)) = least {
            kept = without;
            if kept.len() == count {
                offer(cost, kept.clone());
            }
        }
    }
    match best {
        Some((cost, kept)) if cost.is_finite() => Ok(kept),
        _ => Err(CalibrationError::NotFinite),
    }
}

/// Both batches, with the teacher's streams.
struct Reading<'a, B: Backend, T: LayeredDecoder<B>> {
    teacher: &'a T,
    contexts: [T::Context; 2],
    /// The input of each layer, and the last one's output, of both batches.
    streams: Vec<[Tensor<B, 3>; 2]>,
    /// What a row of the fitted batch counts, `[rows, 1]`: nothing where there is no token.
    present: Tensor<B, 2>,
}

impl<'a, B: Backend, T: LayeredDecoder<B>> Reading<'a, B, T> {
    fn of(teacher: &'a T, batches: [&TokenBatch<B>; 2]) -> Self {
        let contexts = batches.map(|batch| teacher.context(batch));
        let mut streams = vec![batches.map(|batch| teacher.embed(batch))];
        let segments = batches[0].segments.clone();
        let [rows, tokens] = segments.dims();
        let present = segments.greater_elem(0).float().cast(DType::F32);
        let mut reading = Self {
            teacher,
            contexts,
            streams: Vec::new(),
            present: present.reshape([rows * tokens, 1]),
        };
        for layer in 0..teacher.layers() {
            let next = reading.layer(layer, &streams[layer]);
            streams.push(next.map(|(_, output)| output));
        }
        reading.streams = streams;
        reading
    }

    /// The stream after the attention, and the output, of both batches.
    fn layer(&self, layer: usize, h: &[Tensor<B, 3>; 2]) -> [(Tensor<B, 3>, Tensor<B, 3>); 2] {
        [0, 1].map(|index| {
            let h = h[index].clone();
            let attended = h.clone() + self.teacher.attention(layer, h, &self.contexts[index]);
            let output = attended.clone() + self.teacher.feed_forward(layer, attended.clone());
            (attended, output)
        })
    }

    /// The held-out batch's stream after the last of the `kept` layers, and what was fitted behind each gap.
    fn through(&self, kept: &[usize]) -> Result<Tensor<B, 3>> {
        // Up to the first gap all is the teacher's.
        let whole = kept
            .iter()
            .enumerate()
            .take_while(|(index, layer)| index == *layer);
        let whole = whole.count();
        let mut h = self.streams[whole].clone();
        if whole > 0 && kept.get(whole).copied().unwrap_or(self.teacher.layers()) != whole {
            let next = kept.get(whole).copied().unwrap_or(self.teacher.layers());
            h = self.fitted(whole - 1, &self.streams[whole - 1], next)?;
        }
        for (index, layer) in kept.iter().enumerate().skip(whole) {
            let next = kept
                .get(index + 1)
                .copied()
                .unwrap_or(self.teacher.layers());
            h = match next == layer + 1 {
                true => self.layer(*layer, &h).map(|(_, output)| output),
                false => self.fitted(*layer, &h, next)?,
            };
        }
        let [_, held_out] = h;
        Ok(held_out)
    }

    /// What `layer` makes of `h`, with what is missing of the input of layer `next` fitted by its features.
    fn fitted(
        &self,
        layer: usize,
        h: &[Tensor<B, 3>; 2],
        next: usize,
    ) -> Result<[Tensor<B, 3>; 2]> {
        let [fitted, held_out] = self.layer(layer, h);
        let features = |attended: Tensor<B, 3>| {
            flat(self.teacher.feed_forward_features(layer, attended)).cast(DType::F32)
        };
        let (x, of_held_out) = (features(fitted.0), features(held_out.0));
        let wanted = flat(self.streams[next][0].clone()).cast(DType::F32);
        let missing = wanted.clone() - flat(fitted.1.clone()).cast(DType::F32);
        // A row counts one over the mean square of what is wanted: what follows is a norm.
        let size = wanted
            .powi_scalar(2)
            .mean_dim(1)
            .add_scalar(f32::MIN_POSITIVE);
        let root = size.recip().sqrt() * self.present.clone();
        let plain = x.clone();
        let x = x * root.clone();
        let missing = missing * root;
        let [rows, d_model] = missing.dims();
        let gram = matrix(x.clone().matmul(x.clone().transpose()), rows)?;
        let pull = added_to_diagonal(mean_diagonal(&gram), RIDGE);
        let ridged = Mat::from_fn(rows, rows, |i, j| {
            gram[(i, j)] + if i == j { pull } else { 0.0 }
        });
        let factor = ridged.llt(Side::Lower);
        let factor = factor.map_err(|_| CalibrationError::Singular { ridge: RIDGE })?;
        let dual = factor.solve(matrix(missing, rows)?);
        let dual = TensorData::new(row_major(&dual), [rows, d_model]);
        let dual = Tensor::<B, 2>::from_data(dual, (&x.device(), DType::F32));
        let change = x.clone().transpose().matmul(dual);
        let with = |output: Tensor<B, 3>, features: Tensor<B, 2>| {
            let (shape, dtype) = (output.dims(), output.dtype());
            let changed = flat(output).cast(DType::F32) + features.matmul(change.clone());
            changed.reshape(shape).cast(dtype)
        };
        Ok([with(fitted.1, plain), with(held_out.1, of_held_out)])
    }
}
