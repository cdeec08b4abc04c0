//! A start calculated from text: the student begins close to what its teacher computes.
//!
//! Calibration text goes through teacher and student together, layer by layer. In each layer
//!
//! 1. every head of the student is given a head of the teacher's to begin as, query and key maps one-hot
//!    (see [`HeadChoice`]); where the student has query heads for more than fewer key/value heads can serve so,
//!    key/value heads of the teacher are merged, turned to lie alike;
//! 2. value and output maps are fitted by least squares, so that the attention block adds what the
//!    teacher's adds, and what brings the student's residual stream back to the teacher's;
//! 3. if asked for, the last projection of the feed-forward block is fitted to what is still missing; where the
//!    student has fewer units or layers, those that stay are chosen, and all of the block is fitted.
//!
//! Where the student's residual stream is narrower, it has the directions in which the teacher's lies, those first on
//! which its loss depends most ([`stream_gradients`]); before each of these steps, what reads the stream is fitted to what the teacher reads there (see `narrow.rs`), and at the end
//! the head.
//!
//! The next layer is fitted on the hidden states that the student then has. How strictly a layer is fitted
//! (a ridge, and how much of the way back it is asked to go) is chosen by tokens held out of the fit. Rows
//! are weighted by the squared attention that their tokens receive (see `importance.rs`), and by one over
//! the mean square of the teacher's stream: what follows is a norm.
//!
//! Of the text only sums are kept, in float64, and a weight a token. Hidden states wait in a file in the
//! system's folder for temporary files, one batch in memory: the student's input of the layer, and the
//! teacher's inputs of all layers, so that the teacher reads the text once.
//!
//! The idea of choosing what to keep by its reconstruction error and refitting what follows is that of
//! structured pruning (He, Zhang and Sun 2017 for channels; Frantar and Alistarh 2022 for weights).

mod activation_store;
mod align;
mod depth;
mod directions;
mod error;
mod even;
mod features;
mod feed_forward;
mod file;
mod first_maps;
mod fit;
mod gated;
mod gradients;
mod heads;
mod importance;
mod map_tensors;
mod map_values;
mod merge;
mod moments;
mod narrow;
mod out;
mod out_factors;
mod pairs;
mod patterns;
mod pull_back;
mod pull_back_width;
mod refine;
mod regularization;
mod report;
mod select;
mod settings;
mod solve;
mod spectrum;
mod split;
mod stream;
mod student;
mod targets;
mod teacher;
mod text;
mod units;
mod value_features;
mod value_fit;
mod value_map;
mod walk;
mod whitening;

use std::sync::Arc;

use burn::data::dataloader::DataLoader;
use burn::module::AutodiffModule;
use burn::tensor::backend::AutodiffBackend;

pub use depth::choose_layers;
pub use error::CalibrationError;
pub use file::StartFileError;
pub use gradients::{StreamGradients, stream_gradients};
pub use heads::HeadChoice;
pub use pull_back::{Residual, with_maps_of_blocks};
pub use pull_back_width::{MadeMaps, WidthMaps, with_maps_of_width};
pub use report::{CalibratedStart, FittedOn, LayerReport};
pub use settings::{Blocks, Budget, Calibration, FeedForward, Refinement};
pub use whitening::Whitening;

use crate::decoder::{LayeredDecoder, TokenBatch};
use crate::tensors::TensorSet;
use walk::Walk;

/// Calculates the start of the student that `student_with` makes.
///
/// `student_with` is called once, with tensors of zeros for all maps, by the names of their tensors; what
/// is calculated is then filled into the student that it made, whose own values are those of the teacher
/// in all else. No variable of it may be another's too. `batches` is read several times and must give the
/// same batches in the same order. `done` gets the report of each layer.
///
/// # Errors
///
/// [`CalibrationError`].
pub fn calibrate<A, T, S, E>(
    calibration: &Calibration<'_>,
    teacher: &T,
    batches: &Arc<dyn DataLoader<A::InnerBackend, TokenBatch<A::InnerBackend>>>,
    student_with: impl FnOnce(&TensorSet<A::InnerBackend>) -> Result<S, E>,
    mut done: impl FnMut(&LayerReport),
) -> Result<CalibratedStart<A::InnerBackend>, CalibrationError>
where
    A: AutodiffBackend,
    T: LayeredDecoder<A::InnerBackend>,
    S: LayeredDecoder<A> + AutodiffModule<A, InnerModule: LayeredDecoder<A::InnerBackend>>,
    E: std::error::Error + Send + Sync + 'static,
{
    let told = |start: &CalibratedStart<_>| {
        if let Some(report) = start.layers.last() {
            done(report);
        }
    };
    calibrate_from::<A, _, _, _>(calibration, None, teacher, batches, student_with, told)
}

/// As [`calibrate`], going on with a start of which some layers are calculated: what `done` was given before. The
/// same teacher, text and settings then give what they would have given in one go.
///
/// `done` gets the start as far as it is after each layer: reports of those that are done, and tensors of all.
///
/// # Errors
///
/// [`CalibrationError`].
pub fn calibrate_from<A, T, S, E>(
    calibration: &Calibration<'_>,
    known: Option<CalibratedStart<A::InnerBackend>>,
    teacher: &T,
    batches: &Arc<dyn DataLoader<A::InnerBackend, TokenBatch<A::InnerBackend>>>,
    student_with: impl FnOnce(&TensorSet<A::InnerBackend>) -> Result<S, E>,
    mut done: impl FnMut(&CalibratedStart<A::InnerBackend>),
) -> Result<CalibratedStart<A::InnerBackend>, CalibrationError>
where
    A: AutodiffBackend,
    T: LayeredDecoder<A::InnerBackend>,
    S: LayeredDecoder<A> + AutodiffModule<A, InnerModule: LayeredDecoder<A::InnerBackend>>,
    E: std::error::Error + Send + Sync + 'static,
{
    let (mut walk, mut student) = Walk::begin(calibration, teacher, batches, student_with)?;
    let mut layers = Vec::new();
    if let Some(known) = known {
        student = student.filled(&known.tensors)?;
        layers = known.layers;
    }
    for layer in 0..student.module.layers() {
        let is_known = layers.iter().any(|report| report.layer == layer);
        if is_known || !calibration.spec.selects(layer) {
            walk.text.advance(layer, &student.valid())?;
            continue;
        }
        let (calibrated, report) = walk.calibrated(layer, student)?;
        student = calibrated;
        layers.push(report);
        let so_far = CalibratedStart {
            tensors: student.start.clone(),
            layers,
        };
        done(&so_far);
        layers = so_far.layers;
    }
    let student = walk.with_head(student)?;
    Ok(CalibratedStart {
        tensors: student.start,
        layers,
    })
}
