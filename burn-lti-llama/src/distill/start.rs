//! What the student starts from: the teacher's tensors, and those of a start that is calculated.

use std::num::NonZeroUsize;
use std::path::Path;
use std::time::{Duration, Instant};

use burn::module::AutodiffModule;
use burn::prelude::*;
use burn::tensor::DType;
use burn::tensor::backend::AutodiffBackend;
use burn_lti::blueprint::{Source, StudentTensor};
use burn_lti::calibration::{
    Blocks, Budget, CalibratedStart, Calibration, CalibrationError, FeedForward, LayerReport,
    MadeMaps, Residual, StartFileError, WidthMaps, calibrate_from, stream_gradients,
    with_maps_of_blocks, with_maps_of_width,
};
use burn_lti::map::Start;
use burn_lti::tensors::TensorSet;
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::inputs::RunInputs;
use super::progress::{Phase, RunProgress};
use super::student::learning;
use super::teacher_cache::the_teacher;
use super::{DistillError, Event, Listener, OutputDir, units};
use crate::config::site_name;
use crate::corpus::{CorpusOrder, sample_corpus};
use crate::data::{self, PackedSequence, of_each_length};
use crate::hf::burn_name;
use crate::model::{NotFinite, PlainLlama};
use crate::plan::sites;
use crate::recipe::{AxisMaps, CalibrationSection, CalibrationText, Coordinates, Recipe, Trained};

/// What a student starts from.
pub(super) struct StartTensors<B: Backend> {
    /// By the names under which the student takes them.
    pub(super) tensors: TensorSet<B>,
    /// How each layer was calibrated.
    pub(super) layers: Vec<LayerReport>,
}

/// What of a calculated start a run needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Need {
    /// All of it.
    Values,
    /// No more than the shapes of its tensors: the values come out of a checkpoint.
    Shapes,
}

impl Need {
    /// Of a run that goes on from where `progress` stands.
    pub(super) fn of_resumed(recipe: &Recipe, progress: &RunProgress) -> Self {
        let held_out = &progress.held_out;
        let trained = match (progress.phase, &recipe.phase2) {
            (Phase::Second, Some(phase2)) => phase2.train.into(),
            _ => recipe.trained(),
        };
        // A phase may still go back to its start, and whitened coordinates are those of the start.
        let is_whitened = trained == Trained::Maps && recipe.coordinates() == Coordinates::Whitened;
        match held_out.best_step == progress.phase_begins || is_whitened {
            true => Self::Values,
            false => Self::of_checkpoint(recipe, trained),
        }
    }

    /// Of a student whose `trained` parameters are in a checkpoint.
    pub(super) fn of_checkpoint(recipe: &Recipe, trained: Trained) -> Self {
        let shape = &recipe.student;
        let refits = recipe.calibration.feed_forward == FeedForward::Refit
            || shape.intermediate_size.is_some()
            || shape.hidden_size.is_some()
            || shape.tie_embeddings.is_some()
            || shape.layers.is_some();
        let is_all_trained = trained == Trained::All || !refits;
        match is_all_trained && recipe.weights.freeze.is_empty() {
            true => Self::Shapes,
            false => Self::Values,
        }
    }
}

/// The tensors that the student of `recipe` starts from, by the names under which it takes them: the
/// teacher's, and with the calibrated start its maps and what else was fitted. These are read from
/// the file in `out`, or calculated and written to it.
pub(super) fn start_tensors<A: AutodiffBackend>(
    recipe: &Recipe,
    inputs: &RunInputs<A>,
    budget: Budget,
    need: Need,
    out: &OutputDir,
    device: &A::Device,
    listener: &Listener,
) -> Result<StartTensors<A::InnerBackend>, DistillError> {
    if inputs.plan.start != Start::Calibrated {
        let picked = units::picked(&inputs.plan, recipe.train.seed, &inputs.tensors)?;
        return Ok(StartTensors {
            tensors: inputs.tensors.with(&picked),
            layers: Vec::new(),
        });
    }
    let start = match read(&out.start_path(), recipe, device)? {
        Found::Start(start) => start,
        Found::Nothing(why) if need == Need::Shapes => {
            let file = out.start_path();
            listener(Event::Note(&format!(
                "{} {why}: nothing of it is needed, since the checkpoint has all that was trained",
                file.display()
            )));
            CalibratedStart {
                tensors: shapes(inputs, device),
                layers: Vec::new(),
            }
        }
        Found::Nothing(why) => {
            if why != ABSENT {
                let file = out.start_path();
                let note = format!("{} {why}: it is calculated again", file.display());
                listener(Event::Note(&note));
            }
            out.list_unfinished_start()?;
            let start = calculated(recipe, inputs, budget, out, device, listener)?;
            start.save(&out.start_path())?;
            out.list_start()?;
            start
        }
    };
    Ok(StartTensors {
        tensors: inputs.tensors.with(&start.tensors),
        layers: start.layers,
    })
}

/// What is in the place of a calculated start.
enum Found<B: Backend> {
    Start(CalibratedStart<B>),
    /// It is not there, or damaged, which is as good: the same text gives the same start.
    Nothing(String),
}

/// What a file is that is not there.
const ABSENT: &str = "is not there";

fn read<B: Backend>(
    file: &Path,
    recipe: &Recipe,
    device: &B::Device,
) -> Result<Found<B>, DistillError> {
    if !file.exists() {
        return Ok(Found::Nothing(ABSENT.to_owned()));
    }
    match CalibratedStart::load(file, recipe.teacher.dtype.dtype(), device) {
        Ok(start) => Ok(Found::Start(start)),
        Err(StartFileError::Damaged { what, .. }) => Ok(Found::Nothing(what)),
        Err(error) => Err(error.into()),
    }
}

/// Zeros for all that a start calculates for maps.
fn shapes<A: AutodiffBackend>(
    inputs: &RunInputs<A>,
    device: &A::Device,
) -> TensorSet<A::InnerBackend> {
    let mut tensors = TensorSet::new();
    let blueprint = inputs.plan.with_maps.renamed(burn_name);
    // What the inputs have as it is to be, no start calculates.
    let is_there = |tensor: &&StudentTensor| {
        let named = inputs.tensors.get(&tensor.name);
        named.is_some_and(|named| named.tensor.shape() == tensor.shape)
    };
    for tensor in blueprint.tensors.iter().filter(|it| !is_there(it)) {
        match (&tensor.source, tensor.shape.as_slice()) {
            (Source::Start, &[rows, columns]) => {
                let shape = [rows, columns];
                let zeros = Tensor::<A::InnerBackend, 2>::zeros(shape, (device, DType::F32));
                tensors.insert(&tensor.name, "AxisMap", zeros);
            }
            (Source::Start, &[pairs, parts, heads]) => {
                let shape = [pairs, parts, heads];
                let zeros = Tensor::<A::InnerBackend, 3>::zeros(shape, (device, DType::F32));
                tensors.insert(&tensor.name, "AxisMap", zeros);
            }
            (Source::Start, &[length]) => {
                let zeros = Tensor::<A::InnerBackend, 1>::zeros([length], (device, DType::F32));
                tensors.insert(&tensor.name, "Linear", zeros);
            }
            _ => {}
        }
    }
    tensors
}

fn calculated<A: AutodiffBackend>(
    recipe: &Recipe,
    inputs: &RunInputs<A>,
    budget: Budget,
    out: &OutputDir,
    device: &A::Device,
    listener: &Listener,
) -> Result<CalibratedStart<A::InnerBackend>, DistillError> {
    // There are the fewest of the longest.
    let fewest = of_each_length(&inputs.train).map(<[_]>::len).min();
    let sequences = match text(recipe, fewest.unwrap_or(0), listener) {
        CalibrationText::Train => {
            let (count, seed) = (recipe.calibration.sequences, recipe.train.seed);
            let of_each = of_each_length(&inputs.train);
            of_each
                .flat_map(|of_one| chosen(of_one, share(recipe, of_one[0].len(), count), seed))
                .collect()
        }
        CalibrationText::Teacher => written(recipe, inputs, listener)?,
    };
    // Feed-forward blocks are fitted as weights, of which maps are made in the end.
    let of_heads = inputs.plan.with_maps_of_heads(recipe)?;
    let plan = of_heads.as_ref().unwrap_or(&inputs.plan);
    let of_teacher = match of_heads {
        Some(_) => inputs.teacher_tensors(plan, recipe.train.seed),
        None => inputs.tensors.clone(),
    };
    let section = &recipe.calibration;
    let mut calibration = Calibration::new(&plan.spec, plan.student.axes());
    calibration.kept = plan.kept_layers.clone();
    calibration.ties_head = Some(plan.student.tie_word_embeddings);
    calibration.budget = budget;
    calibration.rounds = section.rounds;
    calibration.feed_forward = section.feed_forward;
    if recipe.lti.map.hidden == AxisMaps::Shared {
        calibration.blocks = Blocks::Picked;
    }
    calibration.refinement.steps = section.refine_steps;
    calibration.refinement.learning_rate = section.refine_learning_rate;
    let tokens: usize = sequences.iter().map(PackedSequence::len).sum();
    let sequences_of_shortest = tokens / recipe.train.seq_len.shortest();
    let batch_size = batch_size(sequences_of_shortest, recipe.train.batch_size);
    let batches = data::loader::<A::InnerBackend>(sequences, batch_size, None, device);
    let teacher = inputs.teacher.as_ref();
    let found = |error: CalibrationError| -> DistillError {
        let checked = batches
            .iter()
            .try_for_each(|batch| NotFinite::check(&the_teacher(recipe), teacher, &batch));
        checked.map_or_else(DistillError::from, |()| error.into())
    };
    if plan.student.hidden_size != plan.teacher.hidden_size {
        listener(Event::Stage("sending the teacher's loss back through it"));
        let teacher = PlainLlama::<A>::from_inner(teacher.clone());
        let gradients = stream_gradients(&teacher, &batches, recipe.train.seed);
        calibration.gradients = Some(gradients.map_err(&found)?);
    }
    listener(Event::Stage("calibrating the start"));
    let layers = plan.layers.len();
    let file = out.partial_start_path();
    let known = match read(&file, recipe, device)? {
        Found::Start(known) => {
            let done = known.layers.len();
            listener(Event::Note(&format!(
                "going on after {done} of {layers} layers"
            )));
            Some(known)
        }
        Found::Nothing(_) => None,
    };
    let mut parts = Parts::new(&file);
    let report = |start: &CalibratedStart<A::InnerBackend>| {
        if let Some(report) = start.layers.last() {
            listener(Event::Calibrated(report));
        }
        listener(Event::Advanced(start.layers.len(), layers));
        if start.layers.len() < layers
            && let Err(error) = parts.save(start)
        {
            listener(Event::Note(&format!(
                "{error}: should the run be stopped, these layers are calculated again"
            )));
        }
    };
    let student_with = |tensors: &TensorSet<A::InnerBackend>| {
        let tensors = TensorSet::from_inner(&of_teacher.with(tensors));
        learning::<A>(plan, &tensors, device)
    };
    let calibrated =
        calibrate_from::<A, _, _, _>(&calibration, known, teacher, &batches, student_with, report);
    let calibrated = calibrated.map_err(found)?;
    let map = &recipe.lti.map;
    let (start, residual) = match inputs.plan.student.narrows(&inputs.plan.teacher) {
        true if map.has_other_axes() => mapped(recipe, inputs, &calibration, calibrated)?,
        false if map.hidden != AxisMaps::Weights => {
            with_maps_of_blocks(calibrated, &calibration, teacher)?
        }
        _ => return Ok(calibrated),
    };
    if residual > 0.0 {
        listener(Event::Note(&format!(
            "the weights of the start are made by maps of the teacher's, which leave {residual:.1e} of them at most, \
             before they are rounded to float32"
        )));
    }
    Ok(start)
}

/// A start of another width with the maps that the recipe asks for in the place of weights.
fn mapped<A: AutodiffBackend>(
    recipe: &Recipe,
    inputs: &RunInputs<A>,
    calibration: &Calibration<'_>,
    start: CalibratedStart<A::InnerBackend>,
) -> Result<(CalibratedStart<A::InnerBackend>, Residual), DistillError> {
    let maps = match recipe.lti.map.width {
        AxisMaps::Weights => WidthMaps::None,
        AxisMaps::General => WidthMaps::Each,
        AxisMaps::Shared => WidthMaps::One,
    };
    let student = &inputs.plan.student;
    let weights: Vec<_> = sites(student).map(|site| (site, site_name(site))).collect();
    let teacher = inputs.folded_teacher();
    let made = with_maps_of_width(start, calibration, &teacher, &weights, maps)?;
    let MadeMaps {
        mut start,
        residual,
        longer,
    } = made;
    if let Some(named) = start.tensors.get(LAST_GAINS).cloned()
        && student.tie_word_embeddings
    {
        let gains: Tensor<A::InnerBackend, 1> = named.tensor.to_rank([student.hidden_size]);
        let gains = gains.div_scalar(longer);
        start.tensors.insert(LAST_GAINS, &named.owner, gains);
    }
    Ok((start, residual))
}

/// The gains before the head.
const LAST_GAINS: &str = "model.norm.gamma";

/// The layers of a start that are calculated, saved so often that it costs little.
struct Parts<'a> {
    file: &'a Path,
    saved: Option<Instant>,
    cost: Duration,
}

impl<'a> Parts<'a> {
    /// Of the time, saving takes no more than one part in so many.
    const PART: u32 = 20;

    const fn new(file: &'a Path) -> Self {
        Self {
            file,
            saved: None,
            cost: Duration::ZERO,
        }
    }

    fn save<B: Backend>(&mut self, start: &CalibratedStart<B>) -> Result<(), StartFileError> {
        if self
            .saved
            .is_some_and(|saved| saved.elapsed() < Self::PART * self.cost)
        {
            return Ok(());
        }
        let began = Instant::now();
        start.save(self.file)?;
        self.cost = began.elapsed();
        self.saved = Some(Instant::now());
        Ok(())
    }
}

/// The recipe's choice of text. Where it makes none, the teacher writes if there are too few `sequences`
/// to train on.
fn text(recipe: &Recipe, sequences: usize, listener: &Listener) -> CalibrationText {
    match recipe.calibration.text {
        Some(text) => text,
        None if sequences >= CalibrationSection::LEAST => CalibrationText::Train,
        None => {
            listener(Event::Note(
                "the training text is too little to calibrate on: the teacher writes its own",
            ));
            CalibrationText::Teacher
        }
    }
}

/// Sequences of documents that the teacher writes.
fn written<A: AutodiffBackend>(
    recipe: &Recipe,
    inputs: &RunInputs<A>,
    listener: &Listener,
) -> Result<Vec<PackedSequence>, DistillError> {
    listener(Event::Stage("the teacher writes the calibration text"));
    let (lens, sequences) = (&recipe.train.seq_len, recipe.calibration.sequences);
    let tokens = NonZeroUsize::new(lens.shortest() * sequences).unwrap_or(NonZeroUsize::MIN);
    let order = CorpusOrder {
        seed: recipe.train.seed,
        ..CorpusOrder::new(tokens)
    };
    let (teacher, tokenizer) = (inputs.teacher.as_ref(), &inputs.tokenizer);
    let corpus = sample_corpus(teacher, tokenizer, &order, |done, all| {
        listener(Event::Advanced(done, all));
    })?;
    // Each length has some of the documents, so that all are read.
    let (documents, lens) = (corpus.into_tokens(), lens.all());
    let of_each = lens.iter().enumerate().flat_map(|(index, len)| {
        let documents = documents.iter().skip(index).step_by(lens.len()).cloned();
        let layout = recipe.data.documents;
        let mut of_one = data::pack_each(documents.collect(), &[*len], layout);
        of_one.truncate(share(recipe, *len, sequences));
        of_one
    });
    Ok(of_each.collect())
}

/// Of so many sequences to calibrate on those of length `len`: an equal share of their tokens.
fn share(recipe: &Recipe, len: usize, sequences: usize) -> usize {
    let lens = &recipe.train.seq_len;
    lens.sequences_of(len, sequences).div_ceil(lens.all().len())
}

/// Sequences that are read at a time: as many as in a training step, or fewer, so that there are batches
/// to hold out.
fn batch_size(sequences: usize, most: usize) -> usize {
    (sequences / 8).clamp(1, most.max(1))
}

/// So many sequences by chance, in their own order.
fn chosen(sequences: &[PackedSequence], count: usize, seed: u64) -> Vec<PackedSequence> {
    let mut rng = StdRng::seed_from_u64(seed);
    let count = count.min(sequences.len());
    let mut indices = rand::seq::index::sample(&mut rng, sequences.len(), count).into_vec();
    indices.sort_unstable();
    indices
        .into_iter()
        .map(|index| sequences[index].clone())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn little_text_is_read_in_small_batches() {
        let sizes = [256, 32, 4, 0].map(|sequences| batch_size(sequences, 16));
        assert_eq!(sizes, [16, 4, 1, 1]);
    }

    #[test]
    fn the_seed_chooses_sequences_and_their_order_stays() {
        let all: Vec<PackedSequence> = (0..50)
            .map(|row| PackedSequence {
                row,
                ..PackedSequence::default()
            })
            .collect();
        let rows = |count, seed| -> Vec<usize> {
            let sequences = chosen(&all, count, seed);
            sequences.iter().map(|sequence| sequence.row).collect()
        };
        assert_eq!(rows(10, 1), rows(10, 1));
        assert_ne!(rows(10, 1), rows(10, 2));
        assert!(rows(10, 1).is_sorted() && rows(10, 1).len() == 10);
        assert_eq!(rows(100, 1), (0..50).collect::<Vec<_>>());
    }
}
