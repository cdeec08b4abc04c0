//! The search for a student's shape: of those that are small enough, the one that is nearest to its teacher after a
//! short training.
//!
//! The start of a shape is calculated, on less text than a run's, and judged on held-out text: first of each width the
//! shape that keeps about the same part of every axis, then always the one that is most like the nearest so far. What is
//! nearest before training need not be after it: the nearest few are trained for some steps, as runs of the recipe that
//! are cut short, and judged again. The teacher is read once.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use burn::tensor::backend::AutodiffBackend;
use tempfile::TempDir;

use super::interrupt::Scratch;
use super::run::Read;
use super::{
    DistillError, Event, Interrupt, Job, Listener, Manifest, OutputDir, PhaseEnd, Shape, shapes,
};
use crate::recipe::{KeptLayers, Recipe, StudentSection};

/// Sequences to calibrate a shape on, at most, and to judge it by.
const SEQUENCES: usize = 64;
/// Seconds of a search, unless the recipe says so.
const SECONDS: f64 = 600.0;
/// What part of them may go into starts, where some of the shapes are to be trained.
const FOR_STARTS: f64 = 0.6;
/// Steps of a short training, unless the recipe says so.
const TRAIN_STEPS: usize = 50;
/// How many shapes are trained.
const TRAINED: usize = 3;

/// The recipe with the shape that was found in the place of its target, and all shapes, the one that was found first:
/// those that were trained, nearest first, then those whose start was calculated, then those for which there was no
/// time.
///
/// What is written on the way is removed at the end, or where the program is to end before by
/// [`Interrupt::end_search`]. Whoever asks `interrupt` to stop ends the search before its next shape.
///
/// # Errors
///
/// As [`shapes`], and those of a start; [`DistillError::Refused`] if it was interrupted.
pub fn search_shape<A: AutodiffBackend>(
    recipe: &Recipe,
    device: &A::Device,
    listener: &Listener,
    interrupt: &Interrupt,
) -> Result<(Recipe, Vec<Shape>), DistillError> {
    let began = Instant::now();
    let mut shapes = shapes(recipe)?;
    let target = recipe.student.target.unwrap_or_default();
    let scratch = interrupt.make_scratch();
    let scratch = scratch.map_err(|source| DistillError::Output {
        path: std::env::temp_dir(),
        source,
    })?;
    listener(Event::Stage("loading the teacher"));
    let search = Search {
        recipe,
        device,
        listener,
        interrupt,
        scratch,
        read: Read::<A>::of(recipe, device)?,
        began,
        limit: target.seconds.unwrap_or(SECONDS),
        steps: target.train_steps.unwrap_or(TRAIN_STEPS),
    };
    let failed = search.start_all(&mut shapes)?;
    if shapes.first().is_none_or(|nearest| nearest.kl.is_none()) {
        return Err(failed.unwrap_or_else(|| {
            DistillError::Refused(
                "no shape that was tried has a KL that is a number: look at the teacher and the held-out text with \
                 `burn-lti eval`"
                    .to_owned(),
            )
        }));
    }
    search.train_nearest(&mut shapes)?;
    let student = shapes[0].student.clone();
    let recipe = recipe.clone();
    Ok((Recipe { student, ..recipe }, shapes))
}

struct Search<'a, A: AutodiffBackend> {
    recipe: &'a Recipe,
    device: &'a A::Device,
    listener: &'a Listener,
    interrupt: &'a Interrupt,
    scratch: Scratch,
    read: Read<A>,
    began: Instant,
    /// In seconds.
    limit: f64,
    /// Of a short training, at most.
    steps: usize,
}

impl<A: AutodiffBackend> Search<'_, A> {
    /// Calculates the starts of `shapes`, as far as there is time, and sorts them. What the first failed of that could
    /// not be made, if one did.
    fn start_all(&self, shapes: &mut [Shape]) -> Result<Option<DistillError>, DistillError> {
        let limit = match self.steps {
            0 => self.limit,
            _ => FOR_STARTS * self.limit,
        };
        let mut chosen: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        let (count, mut failed) = (shapes.len(), None);
        for index in 0..count {
            self.check_wanted()?;
            let Some(next) = next(shapes) else {
                break;
            };
            let shape = &mut shapes[next];
            // One at least.
            if index > 0 && self.began.elapsed().as_secs_f64() > limit {
                self.note(&format!(
                    "the search for a shape has had {limit:.0} seconds for starts: {index} of {count} shapes were tried; \
                     raise student.target.seconds for more"
                ));
                break;
            }
            if let Some(KeptLayers::Count(layers)) = shape.student.layers
                && let Some(kept) = chosen.get(&layers)
            {
                shape.student.layers = Some(KeptLayers::These(kept.clone()));
            }
            self.stage(&format!("trying a shape: {}", shape.student));
            let tried = Instant::now();
            let started = self.started(&shape.student);
            self.check_wanted()?;
            shape.seconds = Some(tried.elapsed().as_secs_f64());
            let (kl, kept) = match started {
                Ok(found) => found,
                // Other shapes may do.
                Err(error) => {
                    self.note(&format!("it cannot be made: {error}"));
                    failed = failed.or(Some(error));
                    continue;
                }
            };
            shape.student.layers = kept.map(|kept| {
                chosen.insert(kept.len(), kept.clone());
                KeptLayers::These(kept)
            });
            shape.kl = kl;
            if let Some(kl) = kl {
                self.note(&format!("KL {kl:.4} nats/token before any training"));
            }
        }
        sort(shapes);
        Ok(failed)
    }

    /// Trains the nearest of `shapes` for some steps, as far as there is time, and sorts them.
    fn train_nearest(&self, shapes: &mut [Shape]) -> Result<(), DistillError> {
        let nearest = shapes.iter().filter(|shape| shape.kl.is_some()).count();
        let steps = self.steps_of_run().min(self.steps);
        if steps == 0 || nearest < 2 {
            return Ok(());
        }
        for (index, shape) in shapes[..nearest.min(TRAINED)].iter_mut().enumerate() {
            self.check_wanted()?;
            if self.is_late() {
                self.tell_late(index);
                break;
            }
            let student = &shape.student;
            self.stage(&format!("training a shape, {steps} steps: {student}"));
            let tried = Instant::now();
            let trained = self.trained(shape);
            self.check_wanted()?;
            let kl = match trained {
                Ok(kl) => kl,
                Err(error) => {
                    self.note(&format!("it cannot be trained: {error}"));
                    continue;
                }
            };
            if kl.is_none() && self.is_late() {
                self.tell_late(index);
                break;
            }
            shape.seconds_trained = Some(tried.elapsed().as_secs_f64());
            shape.kl_trained = kl;
            if let Some(kl) = kl {
                self.note(&format!("KL {kl:.4} nats/token after {steps} steps"));
            }
        }
        sort(shapes);
        Ok(())
    }

    /// KL of the start of that shape, and the layers that it keeps, if they are some.
    fn started(
        &self,
        student: &StudentSection,
    ) -> Result<(Option<f64>, Option<Vec<usize>>), DistillError> {
        let recipe = self.small(student);
        let folder = self.folder()?;
        let dir = folder.path().join("shape");
        let out = OutputDir::prepare(&dir, false)?;
        let job = Job::new(&recipe, &out);
        let summary = job.start_with::<A>(Some(&self.read), self.device)?;
        let manifest = Manifest::read(&out.manifest_path())?;
        Ok((summary.evaluation.kl, manifest.kept_layers))
    }

    /// KL of that shape after the run of it that is cut short; none if it did not come to its end.
    fn trained(&self, shape: &Shape) -> Result<Option<f64>, DistillError> {
        let mut recipe = self.small(&shape.student);
        // For as much training as is to follow in the end.
        let budget = self.recipe.budget(shape.sizes.parameters as usize);
        recipe.calibration.budget = Some(budget);
        let all = self.steps_of_run();
        let steps = all.min(self.steps);
        if let Some(phase2) = &mut recipe.phase2 {
            let of_maps = (steps * recipe.train.steps / all.max(1)).max(1);
            (recipe.train.steps, phase2.steps) = (of_maps, (steps - of_maps.min(steps)).max(1));
        } else {
            recipe.train.steps = steps;
        }
        recipe.train.checkpoint_every = None;
        recipe.train.patience = None;
        recipe.train.tensorboard = false;
        let folder = self.folder()?;
        let out = OutputDir::prepare(&folder.path().join("shape"), false)?;
        // Of its own: whoever interrupts the search does not wait for a checkpoint.
        let interrupt = Interrupt::default();
        let job = Job::new(&recipe, &out)
            .with_listener(self.watched(interrupt.clone()))
            .with_interrupt(interrupt);
        let summary = job.run_with::<A>(Some(&self.read), self.device)?;
        Ok(match summary.ending {
            PhaseEnd::Finished | PhaseEnd::Plateau | PhaseEnd::Patience => summary.kl_end,
            PhaseEnd::Interrupted | PhaseEnd::NotFinite => None,
        })
    }

    /// Tells of the steps of a short training, and asks it to stop when the time is up.
    fn watched(&self, training: Interrupt) -> Listener {
        let (listener, interrupt) = (self.listener.clone(), self.interrupt.clone());
        let (began, limit) = (self.began, self.limit);
        Arc::new(move |event| {
            if let Event::Step(report, steps) = event {
                listener(Event::Advanced(report.step, steps));
                if interrupt.is_asked() || began.elapsed().as_secs_f64() > limit {
                    training.ask();
                }
            }
        })
    }

    /// The recipe with that shape, on less text.
    fn small(&self, student: &StudentSection) -> Recipe {
        let mut recipe = self.recipe.clone();
        recipe.student = student.clone();
        recipe.calibration.sequences = recipe.calibration.sequences.min(SEQUENCES);
        recipe.train.eval_sequences = recipe.train.eval_sequences.min(SEQUENCES);
        recipe
    }

    /// Steps that the run takes in the end.
    fn steps_of_run(&self) -> usize {
        let of_phase2 = self.recipe.phase2.as_ref().map_or(0, |phase| phase.steps);
        self.recipe.train.steps.saturating_add(of_phase2)
    }

    fn folder(&self) -> Result<TempDir, DistillError> {
        let scratch: &Path = self.scratch.path();
        tempfile::tempdir_in(scratch).map_err(|source| DistillError::Output {
            path: scratch.to_owned(),
            source,
        })
    }

    fn check_wanted(&self) -> Result<(), DistillError> {
        match self.interrupt.is_search_wanted() {
            true => Ok(()),
            false => Err(DistillError::Refused(
                "the search for a shape was interrupted, and nothing of it is kept: search again, or give the shape \
                 itself"
                    .to_owned(),
            )),
        }
    }

    fn is_late(&self) -> bool {
        self.began.elapsed().as_secs_f64() > self.limit
    }

    fn tell_late(&self, trained: usize) {
        let what = match trained {
            0 => "the nearest before training is taken".to_owned(),
            count => format!("{count} of the nearest were trained"),
        };
        self.note(&format!(
            "the search for a shape has had its {} seconds: {what}; raise student.target.seconds for more",
            self.limit
        ));
    }

    fn stage(&self, stage: &str) {
        (self.listener)(Event::Stage(stage));
    }

    fn note(&self, note: &str) {
        (self.listener)(Event::Note(note));
    }
}

/// The next of `shapes` to be tried, if one is left: the first of a width of which none was, else the one that is most
/// like the nearest so far.
fn next(shapes: &[Shape]) -> Option<usize> {
    let is_tried = |shape: &Shape| shape.seconds.is_some();
    let is_new = |shape: &Shape| {
        let mut tried = shapes.iter().filter(|it| is_tried(it));
        tried.all(|it| it.student.hidden_size != shape.student.hidden_size)
    };
    let tried = shapes.iter().filter(|shape| shape.kl.is_some());
    let nearest = tried.min_by(|a, b| {
        a.kl.unwrap_or(f64::NAN)
            .total_cmp(&b.kl.unwrap_or(f64::NAN))
    });
    let parts = nearest.map_or([1.0; 4], |nearest| nearest.parts);
    let left = || shapes.iter().enumerate().filter(|(_, it)| !is_tried(it));
    let of_new = left().find(|(_, shape)| is_new(shape));
    let alike = left().min_by(|(_, a), (_, b)| a.distance(&parts).total_cmp(&b.distance(&parts)));
    of_new.or(alike).map(|(index, _)| index)
}

/// Those that were trained come first, then those that were made, those that could not be, and those for which there was
/// no time.
fn sort(shapes: &mut [Shape]) {
    let rank = |shape: &Shape| match (shape.kl_trained, shape.kl, shape.seconds) {
        (Some(kl), _, _) => (0, kl),
        (None, Some(kl), _) => (1, kl),
        (None, None, Some(_)) => (2, 0.0),
        (None, None, None) => (3, 0.0),
    };
    shapes.sort_by(|a, b| {
        let (a, b) = (rank(a), rank(b));
        a.0.cmp(&b.0).then(a.1.total_cmp(&b.1))
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::distill::Sizes;

    fn shape(width: Option<usize>, parts: [f64; 4]) -> Shape {
        Shape {
            student: StudentSection {
                hidden_size: width,
                ..StudentSection::default()
            },
            parts,
            sizes: Sizes {
                parameters: 1.0,
                file_bytes: 4.0,
                kv_bytes_per_token: 4.0,
                flops_per_token: 2.0,
            },
            kl: None,
            seconds: None,
            kl_trained: None,
            seconds_trained: None,
        }
    }

    #[test]
    fn each_width_is_tried_once_and_then_what_is_like_the_nearest() {
        let mut shapes = [
            shape(Some(48), [0.75, 0.8, 1.0, 0.7]),
            shape(Some(48), [0.75, 0.8, 0.5, 0.9]),
            shape(None, [1.0, 0.6, 0.75, 0.7]),
            shape(None, [1.0, 0.8, 0.5, 0.5]),
            shape(None, [1.0, 0.6, 0.5, 0.8]),
        ];
        let kls = [Some(2.0), None, Some(1.0), Some(0.9), Some(1.1)];
        let mut order = Vec::new();
        while let Some(index) = next(&shapes) {
            order.push(index);
            // The second of them cannot be made.
            (shapes[index].kl, shapes[index].seconds) = (kls[index], Some(1.0));
        }
        assert_eq!(order, [0, 2, 4, 3, 1]);
        sort(&mut shapes);
        let found: Vec<_> = shapes.iter().map(|shape| shape.kl).collect();
        assert_eq!(found, [Some(0.9), Some(1.0), Some(1.1), Some(2.0), None]);
        shapes[2].kl_trained = Some(0.5);
        shapes[1].kl_trained = Some(0.6);
        sort(&mut shapes);
        assert_eq!(shapes[0].kl, Some(1.1));
        assert_eq!(shapes[1].kl, Some(1.0));
    }
}
