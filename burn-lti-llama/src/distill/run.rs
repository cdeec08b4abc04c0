//! [`Job`]: a recipe, where its results go, and who is told.

use std::cmp::Ordering;
use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use burn::module::AutodiffModule;
use burn::tensor::backend::AutodiffBackend;
use burn_lti::calibration::Budget;
use burn_lti::decoder::{CausalLm, LayeredDecoder};
use burn_lti::files::{FolderLock, sha256};
use burn_lti::train::{Checkpoint, CheckpointDir};

use super::export::Export;
use super::hook::{Hook, Rules};
use super::inputs::{Loaded, RunInputs};
use super::interrupt::Interrupt;
use super::manifest::{Compute, Manifest, Note, TokensHash};
use super::metrics::MetricsLog;
use super::module::Student;
use super::new_student::new_student;
use super::output::{Existing, SummaryState};
use super::progress::{HeldOut, Phase, PhaseEnd, RunProgress};
use super::schedule::PhaseSchedule;
use super::start::{Need, StartTensors, start_tensors};
use super::start_summary::StartSummary;
use super::student::{free_student, learning_student, without_maps};
use super::teacher_cache::the_teacher;
use super::tensorboard::TensorBoard;
use super::training::{Attempt, Trainer, whitening};
use super::{DistillError, Event, Kept, Listener, OutputDir, Summary, card};
use crate::eval::{DocumentEvaluation, Evaluation, evaluate, evaluate_documents};
use crate::model::{LearningLlama, NotFinite, Place, PlainLlama, first_not_finite};
use crate::recipe::{Recipe, StudentSection, Trained};

/// A run to be: a recipe, the folder for its results, and who is told of it.
///
/// ```no_run
/// # use std::path::Path;
/// use burn::backend::{Autodiff, Flex};
/// use burn_lti_llama::distill::{Interrupt, Job, OutputDir};
/// use burn_lti_llama::recipe::Recipe;
///
/// let recipe = Recipe::load(Path::new("half.toml"), &[])?;
/// let out = OutputDir::prepare(Path::new("out"), false)?;
/// let interrupt = Interrupt::default();
/// // Give a clone of `interrupt` to whoever may ask it to stop, a signal handler for instance.
/// let job = Job::new(&recipe, &out).with_interrupt(interrupt.clone());
/// let summary = job.run::<Autodiff<Flex>>(&Default::default())?;
/// println!("{:?}", summary.kl_end);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Job<'a> {
    recipe: &'a Recipe,
    out: &'a OutputDir,
    listener: Listener,
    interrupt: Interrupt,
    keep_last: bool,
    command: Vec<String>,
    searched: Option<StudentSection>,
}

impl<'a> Job<'a> {
    /// A run of `recipe` that nobody is told of.
    pub fn new(recipe: &'a Recipe, out: &'a OutputDir) -> Self {
        Self {
            recipe,
            out,
            listener: Arc::new(|_| {}),
            interrupt: Interrupt::default(),
            keep_last: false,
            command: Vec::new(),
            searched: None,
        }
    }

    /// Tells `listener` of every event.
    pub fn with_listener(mut self, listener: Listener) -> Self {
        self.listener = listener;
        self
    }

    /// Stops when `interrupt` is asked to, after the step under way: a checkpoint is saved and the
    /// student of that step exported.
    pub fn with_interrupt(mut self, interrupt: Interrupt) -> Self {
        self.interrupt = interrupt;
        self
    }

    /// Exports the student of the last step, whether or not an earlier one was better.
    pub fn with_keep_last(mut self, keep_last: bool) -> Self {
        self.keep_last = keep_last;
        self
    }

    /// Puts the command that began the run into its manifest.
    pub fn with_command(mut self, command: Vec<String>) -> Self {
        self.command = command;
        self
    }

    /// Says what of the shape was given where the recipe's was [searched](super::search_shape): a run that goes on has
    /// to be given the same.
    pub fn with_searched(mut self, given: Option<StudentSection>) -> Self {
        self.searched = given;
        self
    }

    /// Carries the recipe out, from the start or from the newest checkpoint, as `out` was asked for.
    ///
    /// # Errors
    ///
    /// [`DistillError`] naming what went wrong and, where there is one, the way out. An earlier run that is to
    /// be replaced stays until this one is finished; a run that fails leaves its checkpoints, and no `summary.json`
    /// and no `student` but what were there.
    pub fn run<A: AutodiffBackend>(&self, device: &A::Device) -> Result<Summary, DistillError> {
        self.run_with::<A>(None, device)
    }

    /// The same, of what is read already, if it is.
    pub(super) fn run_with<A: AutodiffBackend>(
        &self,
        read: Option<&Read<A>>,
        device: &A::Device,
    ) -> Result<Summary, DistillError> {
        let began = Instant::now();
        self.interrupt.set_work(false);
        let lock = self.take_folder()?;
        if let Some(summary) = self.finished_inside()? {
            return Ok(summary);
        }
        self.out.make_inside()?;
        let loaded = self.load::<A>(read, device);
        let (inputs, manifest) = loaded.inspect_err(|_| self.out.forget_inside())?;
        let lock = self.made_folder(lock)?;
        let resumed = match self.out.existing() {
            Existing::Resume => self.take_up(&manifest)?,
            Existing::Refuse | Existing::Overwrite => None,
        };
        match &resumed {
            Some(_) => self.tell_kept(self.out.take_up()?),
            None => self.out.begin(self.recipe, &manifest)?,
        }
        let need = match &resumed {
            Some(checkpoint) => Need::of_resumed(self.recipe, &RunProgress::at(checkpoint)?),
            None => Need::Values,
        };
        let carry_out = || {
            let run = Run::begin(self, device, inputs, (None, need), began, lock.clone())?;
            run.carry_out(resumed)
        };
        let summary = carry_out().map_err(|error| self.not_replaced(error));
        let summary = match summary {
            Ok(summary) if OutputDir::is_accepted(summary.ending) => {
                self.tell_kept(self.out.accept_run()?);
                Ok(summary)
            }
            other => other,
        };
        self.interrupt.set_work(false);
        summary
    }

    /// A run that was to replace another and was stopped when it was finished takes its place now.
    fn finished_inside(&self) -> Result<Option<Summary>, DistillError> {
        if self.out.existing() != Existing::Resume || !self.out.is_inside() {
            return Ok(None);
        }
        let summary = self.out.summary()?;
        let Some(summary) = summary.filter(|summary| OutputDir::is_accepted(summary.ending)) else {
            return Ok(None);
        };
        (self.listener)(Event::Note(
            "the run was finished already: it takes the place of the one before",
        ));
        self.tell_kept(self.out.accept_run()?);
        Ok(Some(summary))
    }

    /// Takes the output folder, if it is there, and checks that what is in it may be replaced.
    fn take_folder(&self) -> Result<Option<FolderLock>, DistillError> {
        let lock = self.out.lock()?;
        if lock.is_some() {
            self.tell_kept(self.out.settle()?);
        }
        self.out.check(self.recipe)?;
        if self.out.is_inside() {
            let (root, inside) = (self.out.root().display(), self.out.path().display());
            let note = format!(
                "the run in {root} stays until this one is finished, which is in {inside} until then"
            );
            (self.listener)(Event::Note(&note));
        }
        Ok(lock)
    }

    /// The folder, which is made if it was not there.
    fn made_folder(&self, lock: Option<FolderLock>) -> Result<Arc<FolderLock>, DistillError> {
        let lock = match lock {
            Some(lock) => lock,
            None => self.out.make()?,
        };
        Ok(Arc::new(lock))
    }

    /// Says where that is of an earlier run which no run wrote.
    fn tell_kept(&self, kept: Option<PathBuf>) {
        if let Some(kept) = kept {
            let kept = kept.display();
            let note = format!("{kept} keeps what no run wrote, or was changed since");
            (self.listener)(Event::Note(&note));
        }
    }

    /// Says that an earlier run is there still.
    fn not_replaced(&self, source: DistillError) -> DistillError {
        if !self.out.is_inside() || !self.out.path().exists() {
            return source;
        }
        DistillError::NotReplaced {
            kept: self.out.root().to_owned(),
            left: self.out.path().to_owned(),
            source: Box::new(source),
        }
    }

    /// What the run reads, and what it is made of.
    fn load<A: AutodiffBackend>(
        &self,
        read: Option<&Read<A>>,
        device: &A::Device,
    ) -> Result<(RunInputs<A>, Manifest), DistillError> {
        A::seed(device, self.recipe.train.seed);
        let kept = self.kept_layers();
        let (kept, listener) = (kept.as_deref(), &self.listener);
        let (inputs, mut manifest) = match read {
            Some(Read { loaded, manifest }) => {
                let inputs = RunInputs::of(loaded, self.recipe, kept, device, listener)?;
                (inputs, manifest.clone())
            }
            None => {
                listener(Event::Stage("loading the teacher"));
                let inputs = RunInputs::<A>::load(self.recipe, kept, device, listener)?;
                let compute = Compute::of::<A::InnerBackend>(device);
                let manifest = Manifest::new(self.recipe, self.command.clone(), compute)?;
                (inputs, manifest)
            }
        };
        manifest.searched = self.searched.clone();
        manifest.kept_layers = inputs.plan.kept_layers.clone();
        manifest.kept_tokens = inputs.files.kept().map(TokensHash::from);
        inputs.check_cache(&manifest)?;
        Ok((inputs, manifest))
    }

    /// The layers of the teacher's that the run in the output folder keeps, if it is to go on and keeps some.
    /// Where the manifest was lost, the same are chosen again.
    fn kept_layers(&self) -> Option<Vec<usize>> {
        match self.out.existing() {
            Existing::Resume => Manifest::read(&self.out.manifest_path()).ok()?.kept_layers,
            Existing::Refuse | Existing::Overwrite => None,
        }
    }

    /// Makes the student at its start and exports it, without any training. What is left in the output
    /// folder is a run that can be taken up.
    ///
    /// # Errors
    ///
    /// As [`run`](Self::run).
    pub fn start<A: AutodiffBackend>(
        &self,
        device: &A::Device,
    ) -> Result<StartSummary, DistillError> {
        self.start_with::<A>(None, device)
    }

    /// The same, of what is read already, if it is.
    pub(super) fn start_with<A: AutodiffBackend>(
        &self,
        read: Option<&Read<A>>,
        device: &A::Device,
    ) -> Result<StartSummary, DistillError> {
        let began = Instant::now();
        self.interrupt.set_work(false);
        let lock = self.take_folder()?;
        let (inputs, manifest) = self.load::<A>(read, device)?;
        let lock = self.made_folder(lock)?;
        self.out.begin(self.recipe, &manifest)?;
        // Nothing follows, unless the recipe says so.
        let budget = self.recipe.calibration.budget.unwrap_or(Budget::None);
        let make = || {
            let run = {
                let start = (Some(budget), Need::Values);
                Run::begin(self, device, inputs, start, began, lock.clone())?
            };
            let student = run.free()?.valid();
            run.tell(Event::Stage("exporting"));
            self.out.check_in_place(&lock)?;
            let exported = run.export(&student, &self.out.unchecked_student_dir())?;
            let evaluation = run.evaluate("evaluating the exported student", &exported.student)?;
            let summary = StartSummary {
                evaluation: evaluation.all,
                layers: run.start.layers,
                seconds: began.elapsed().as_secs_f64(),
            };
            self.out.write_evaluation(&evaluation)?;
            // A student beside which it stands is no end of a run.
            self.out.write_start(&summary)?;
            self.tell_kept(self.out.accept_student()?);
            Ok(summary)
        };
        let summary = make().map_err(|error| self.not_replaced(error))?;
        self.tell_kept(self.out.accept_run()?);
        Ok(summary)
    }

    /// The figures of the run in the output folder, if there is one that came to its end; `None` says
    /// that [`run`](Self::run) would have something to do. Nothing is loaded and nothing is run.
    ///
    /// # Errors
    ///
    /// [`DistillError::Manifest`] if the run there, finished or not, is not the one that `now` and the
    /// recipe say; [`DistillError::Foreign`] if its figures cannot be read.
    pub fn finished(&self, now: &Manifest) -> Result<Option<Summary>, DistillError> {
        if !self.out.manifest_path().is_file() {
            return Ok(None);
        }
        let recipe = self.recipe_then()?;
        let begun = Manifest::read(&self.out.manifest_path())?;
        let notes = begun.check_resumable(now, &recipe, self.recipe)?;
        let summary = self.out.summary()?;
        if summary.is_some() {
            self.tell_all(&notes);
        }
        Ok(summary)
    }

    /// The recipe of the run in the output folder. One that was lost or damaged is written again, if the recipe
    /// that is given now is the same.
    fn recipe_then(&self) -> Result<Recipe, DistillError> {
        let path = self.out.recipe_path();
        let hash = self.out.recipe_hash()?;
        let is_as_written = match (fs::read(&path), &hash) {
            (Ok(text), Some(hash)) => sha256(&text) == *hash,
            (Ok(_), None) => true, // as far as anybody knows
            (Err(_), _) => false,
        };
        let loaded = Recipe::load(&path, &[]);
        let source = match loaded {
            Ok(recipe) if is_as_written => return Ok(recipe),
            Ok(_) => None,
            Err(source) => Some(Box::new(source) as _),
        };
        let now = sha256(self.recipe.to_toml()?.as_bytes());
        if hash != Some(now) {
            return Err(DistillError::Recipe { file: path, source });
        }
        let note = format!(
            "{} was lost or damaged: it is written again from the recipe given, which is the same",
            path.display()
        );
        (self.listener)(Event::Note(&note));
        self.out.write_recipe(self.recipe)?;
        Ok(self.recipe.clone())
    }

    /// The manifest of the run in the output folder. One that was lost is written again.
    fn manifest_then(&self, now: &Manifest) -> Result<Manifest, DistillError> {
        let path = self.out.manifest_path();
        if path.exists() {
            return Ok(Manifest::read(&path)?);
        }
        let note = format!(
            "{} is lost: whether teacher and texts are those that the run began with cannot be checked",
            path.display()
        );
        (self.listener)(Event::Note(&note));
        self.out.write_manifest(now)?;
        Ok(now.clone())
    }

    fn tell_all(&self, notes: &[Note]) {
        for note in notes {
            (self.listener)(Event::Note(&note.to_string()));
        }
    }

    /// The newest whole checkpoint of the run in the output folder, if it has one and is the same run.
    fn take_up(&self, manifest: &Manifest) -> Result<Option<Checkpoint>, DistillError> {
        if !self.out.has_run() {
            return Ok(None);
        }
        let checkpoints = self.checkpoints()?;
        let latest = checkpoints.latest().cloned();
        let state = self.out.summary_state()?;
        let has_student = self.out.student_dir().is_dir();
        if latest.is_none() && !self.out.manifest_path().exists() && !has_student {
            return Ok(None); // it was stopped before there was anything to go on with
        }
        let then = self.recipe_then()?;
        let mut same = then.clone();
        let longer = self.lengthened(&mut same);
        let begun = self.manifest_then(manifest)?;
        let notes = begun.check_resumable(manifest, &same, self.recipe);
        self.tell_all(&notes.map_err(|error| self.other_inside(error.into()))?);
        for broken in checkpoints.broken() {
            let note = format!("passed over {}: {}", broken.path.display(), broken.reason);
            (self.listener)(Event::Note(&note));
        }
        self.check_unfinished(state, longer, latest.as_ref())?;
        match &latest {
            Some(checkpoint) => {
                let note = format!("going on after step {}", checkpoint.run().step);
                (self.listener)(Event::Note(&note));
                if longer {
                    self.tell_schedule(&then, checkpoint)?;
                }
                if state == SummaryState::Damaged {
                    let note = "summary.json is damaged: it will be written again";
                    (self.listener)(Event::Note(note));
                }
            }
            None => (self.listener)(Event::Note("no checkpoint was saved: starting over")),
        }
        if then != *self.recipe && latest.is_some() {
            self.out.write_recipe(self.recipe)?;
        }
        Ok(latest)
    }

    /// Gives `then` the steps of the recipe where those are more, and says whether they are.
    fn lengthened(&self, then: &mut Recipe) -> bool {
        let mut longer = false;
        if self.recipe.train.steps > then.train.steps {
            then.train.steps = self.recipe.train.steps;
            longer = true;
        }
        if let (Some(now), Some(then)) = (&self.recipe.phase2, &mut then.phase2)
            && now.steps > then.steps
        {
            then.steps = now.steps;
            longer = true;
        }
        longer
    }

    /// Refuses to go on with a run that came to its end, unless it was lengthened and can be.
    fn check_unfinished(
        &self,
        state: SummaryState,
        longer: bool,
        latest: Option<&Checkpoint>,
    ) -> Result<(), DistillError> {
        let (dir, student) = (self.out.path().display(), self.out.student_dir());
        let student = student.display();
        let refused = match state {
            SummaryState::Ended(PhaseEnd::Finished, _) if longer && latest.is_none() => format!(
                "the run in {dir} is finished and has no checkpoint to take more steps from \
                 (train.checkpoint_every keeps them): its student is in {student}"
            ),
            SummaryState::Ended(PhaseEnd::Finished, steps)
                if self.was_lengthened(steps, latest)? =>
            {
                return Ok(());
            }
            SummaryState::Ended(PhaseEnd::Finished, _) => {
                let (key, steps) = match &self.recipe.phase2 {
                    Some(phase2) => ("phase2.steps", phase2.steps),
                    None => ("train.steps", self.recipe.train.steps),
                };
                format!(
                    "the run in {dir} is finished: its student is in {student}; to train it further raise \
                     {key} above {steps}, and for another run choose another --out"
                )
            }
            SummaryState::Ended(PhaseEnd::Interrupted, _) => return Ok(()),
            SummaryState::Ended(..) => format!(
                "the run in {dir} is finished: it ended before its last step, as summary.json says, and \
                 more steps change nothing; its student is in {student}; for another run choose another --out"
            ),
            // The student that `start` makes is no end of a run.
            SummaryState::Absent | SummaryState::Damaged
                if latest.is_none()
                    && self.out.student_dir().is_dir()
                    && !self.out.has_start_summary() =>
            {
                format!(
                    "summary.json of the run in {dir} is lost or damaged, and there is no checkpoint to \
                     make it again from: the student in {student} may be whole, as `burn-lti eval` says; \
                     for another run choose another --out"
                )
            }
            SummaryState::Absent | SummaryState::Damaged => return Ok(()),
        };
        Err(DistillError::Refused(refused))
    }

    /// Whether a run that finished after so many steps has more to take, by the recipe and its newest checkpoint.
    fn was_lengthened(
        &self,
        steps: usize,
        latest: Option<&Checkpoint>,
    ) -> Result<bool, DistillError> {
        let Some(checkpoint) = latest else {
            return Ok(false);
        };
        let progress = RunProgress::at(checkpoint)?;
        Ok(match checkpoint.run().step.cmp(&steps) {
            Ordering::Less => false,
            Ordering::Equal => {
                progress.taken() < PhaseSchedule::new(self.recipe, progress.phase).steps
                    && progress.end == Some(PhaseEnd::Finished)
            }
            Ordering::Greater => true,
        })
    }

    /// Says what more steps make of the schedule.
    fn tell_schedule(&self, then: &Recipe, checkpoint: &Checkpoint) -> Result<(), DistillError> {
        let progress = RunProgress::at(checkpoint)?;
        let key = match progress.phase {
            Phase::First => "train.steps",
            Phase::Second => "phase2.steps",
        };
        if progress.phase == Phase::Second && self.recipe.train.steps > then.train.steps {
            return Err(DistillError::Refused(
                "the first phase of this run is over, and more train.steps come too late: raise \
                 phase2.steps"
                    .to_owned(),
            ));
        }
        let of = |recipe: &Recipe, step: usize| {
            let schedule = PhaseSchedule::new(recipe, progress.phase);
            let rates = schedule.learning_rates(&recipe.train, 1.0);
            let part = rates.rate(step) / rates.rate(schedule.warmup.max(1));
            (schedule.steps, part)
        };
        let taken = progress.taken();
        let ((was, had), (is, has)) = (of(then, taken), of(self.recipe, taken + 1));
        let note = format!(
            "{key} was {was} and is now {is}: from here on the rate is that of {is} steps, {has:.2} of its \
             peak, where it had come to {had:.2}; a run of {is} steps from its beginning would have had \
             another curve"
        );
        (self.listener)(Event::Note(&note));
        Ok(())
    }

    /// Says which run is meant, where there are two.
    fn other_inside(&self, source: DistillError) -> DistillError {
        match self.out.is_inside() {
            true => DistillError::OtherInside {
                outer: self.out.root().to_owned(),
                inner: self.out.path().to_owned(),
                source: Box::new(source),
            },
            false => source,
        }
    }

    fn checkpoints(&self) -> Result<CheckpointDir, DistillError> {
        let keep = NonZeroUsize::new(self.recipe.train.keep_checkpoints);
        let keep = keep.unwrap_or(NonZeroUsize::MIN);
        Ok(CheckpointDir::open(self.out.checkpoints_path(), keep)?)
    }
}

/// What several runs of a teacher and a text read once, and its hashes.
pub(super) struct Read<A: AutodiffBackend> {
    loaded: Loaded<A>,
    manifest: Manifest,
}

impl<A: AutodiffBackend> Read<A> {
    /// What `recipe` names.
    pub(super) fn of(recipe: &Recipe, device: &A::Device) -> Result<Self, DistillError> {
        let compute = Compute::of::<A::InnerBackend>(device);
        Ok(Self {
            loaded: Loaded::read(recipe, device)?,
            manifest: Manifest::new(recipe, Vec::new(), compute)?,
        })
    }
}

/// A run whose teacher is loaded.
struct Run<'a, A: AutodiffBackend> {
    job: &'a Job<'a>,
    device: &'a A::Device,
    inputs: RunInputs<A>,
    start: StartTensors<A::InnerBackend>,
    began: Instant,
    lock: Arc<FolderLock>,
}

/// A student after a phase.
struct Ended<M> {
    student: M,
    /// The step of the run that it is the student of, and why that one.
    student_step: usize,
    kept: Kept,
    progress: RunProgress,
    trainable_parameters: usize,
}

impl<'a, A: AutodiffBackend> Run<'a, A> {
    /// The start, of which so much is needed, is calibrated for a budget, if none is given for that of the plan.
    fn begin(
        job: &'a Job<'a>,
        device: &'a A::Device,
        inputs: RunInputs<A>,
        (budget, need): (Option<Budget>, Need),
        began: Instant,
        lock: Arc<FolderLock>,
    ) -> Result<Self, DistillError> {
        let planned = inputs.plan.calibration.and_then(|section| section.budget);
        let budget = budget.or(planned).unwrap_or_default();
        // A teacher that computes no numbers would make a start of them first.
        if let Some(batch) = inputs.watched.iter().next() {
            NotFinite::check(&the_teacher(job.recipe), inputs.teacher.as_ref(), &batch)?;
        }
        let start = start_tensors(
            job.recipe,
            &inputs,
            budget,
            need,
            job.out,
            device,
            &job.listener,
        )?;
        Ok(Self {
            job,
            device,
            inputs,
            start,
            began,
            lock,
        })
    }

    /// The phases in their order, from the one that `checkpoint` was saved in.
    fn carry_out(&self, checkpoint: Option<Checkpoint>) -> Result<Summary, DistillError> {
        let recipe = self.job.recipe;
        let at = |checkpoint| self.progress_at(checkpoint);
        let progress = checkpoint.as_ref().map(at).transpose()?;
        let progress = progress.filter(|progress| progress.phase == Phase::Second);
        if let Some(progress) = progress {
            // What is frozen in the second phase is the teacher's; all else comes out of the checkpoint.
            let student = self.taken_up(&progress)?;
            return self.finish(&self.phase(student, progress, checkpoint.as_ref())?);
        }
        self.tell(Event::Stage("starting the student"));
        match recipe.trained() {
            Trained::Maps => {
                let ended = self.first_phase(self.learning()?, checkpoint.as_ref())?;
                match &recipe.phase2 {
                    Some(_) if ended.progress.end != Some(PhaseEnd::Interrupted) => {
                        self.fold_and_go_on(&ended)
                    }
                    _ => self.finish(&ended),
                }
            }
            Trained::Projections | Trained::All => {
                self.finish(&self.first_phase(self.free()?, checkpoint.as_ref())?)
            }
        }
    }

    /// The student with its maps at the start.
    fn learning(&self) -> Result<LearningLlama<A>, DistillError> {
        let (plan, tensors) = (&self.inputs.plan, &self.start.tensors);
        learning_student::<A>(plan, tensors, self.device)
    }

    /// The student without maps at the start.
    fn free(&self) -> Result<PlainLlama<A>, DistillError> {
        let (plan, tensors) = (&self.inputs.plan, &self.start.tensors);
        free_student::<A>(self.job.recipe, plan, tensors, self.device)
    }

    /// Where the run stands at `checkpoint`: before its end, if it was given more steps since.
    fn progress_at(&self, checkpoint: &Checkpoint) -> Result<RunProgress, DistillError> {
        let mut progress = RunProgress::at(checkpoint)?;
        let steps = PhaseSchedule::new(self.job.recipe, progress.phase).steps;
        if progress.end == Some(PhaseEnd::Finished) && progress.taken() < steps {
            progress.end = None;
        }
        Ok(progress)
    }

    fn first_phase<M: Student<A>>(
        &self,
        student: M,
        checkpoint: Option<&Checkpoint>,
    ) -> Result<Ended<M::InnerModule>, DistillError> {
        let progress = match checkpoint {
            Some(checkpoint) => self.progress_at(checkpoint)?,
            None => {
                let start = student.valid();
                let watched = self.watched_kl(&start);
                let found = self.evaluate("evaluating the start", &start)?;
                RunProgress::begin(found.all, watched)
            }
        };
        self.phase(student, progress, checkpoint)
    }

    /// Folds the maps away and trains what they made.
    fn fold_and_go_on<M: LayeredDecoder<A::InnerBackend>>(
        &self,
        ended: &Ended<M>,
    ) -> Result<Summary, DistillError> {
        let maps = self.evaluate("evaluating the maps", &ended.student)?.all;
        let (recipe, plan) = (self.job.recipe, &self.inputs.plan);
        let student = without_maps::<A>(recipe, plan, &ended.student, self.device)?;
        let (watched, step) = (self.watched_kl(&ended.student), ended.student_step);
        let progress = ended.progress.clone().second_phase(maps, watched, step);
        self.finish(&self.phase(student, progress, None)?)
    }

    /// What a second phase is taken up with: the student that it began with, if it may go back there, and
    /// else any of its form.
    fn taken_up(&self, progress: &RunProgress) -> Result<PlainLlama<A>, DistillError> {
        if progress.held_out.best_step > progress.phase_begins {
            return self.free();
        }
        let learning = self.learning()?;
        let checkpoints = self.job.checkpoints()?;
        let maps = match (progress.maps_step, checkpoints.best()) {
            (0, _) => learning.valid(),
            (step, Some(best)) if best.run().step == step => {
                self.restored(learning, &RunProgress::at(best)?, best)?
            }
            // It was not the best, and its checkpoint is gone: what is taken up counts as the best.
            _ => return self.free(),
        };
        without_maps::<A>(self.job.recipe, &self.inputs.plan, &maps, self.device)
    }

    /// The student as `checkpoint` has it.
    fn restored<M: Student<A>>(
        &self,
        student: M,
        progress: &RunProgress,
        checkpoint: &Checkpoint,
    ) -> Result<M::InnerModule, DistillError> {
        let schedule = PhaseSchedule::new(self.job.recipe, progress.phase);
        let (recipe, inputs) = (self.job.recipe, &self.inputs);
        let trainer = Trainer::new(student, recipe, inputs, schedule, None, self.device)?;
        let trainer = trainer.restored(checkpoint, progress.taken())?;
        Ok(trainer.module.into_student().valid())
    }

    /// Trains through a phase, or what `checkpoint` left of it.
    fn phase<M: Student<A>>(
        &self,
        student: M,
        progress: RunProgress,
        checkpoint: Option<&Checkpoint>,
    ) -> Result<Ended<M::InnerModule>, DistillError> {
        let recipe = self.job.recipe;
        let schedule = PhaseSchedule::new(recipe, progress.phase);
        let checkpoints = self.job.checkpoints()?;
        let (inputs, device) = (&self.inputs, self.device);
        let is_over = progress.end.is_some_and(|end| end != PhaseEnd::Interrupted);
        let whitening = match is_over {
            true => None, // no more steps
            false => whitening(recipe, inputs, &student.valid(), device)?,
        };
        let trainer = |student| {
            let whitening = whitening.clone();
            Trainer::new(student, recipe, inputs, schedule, whitening, device)
        };
        let begun = trainer(student)?;
        let trainable_parameters = begun.trainable_parameters();
        let start = begun.module.clone();
        let (mut attempt, best) = match checkpoint {
            None => (begun, start),
            Some(checkpoint) => {
                let taken_up = begun.restored(checkpoint, progress.taken())?;
                let HeldOut { best_step, .. } = progress.held_out;
                let saved = checkpoints.best();
                let best = match saved.filter(|saved| saved.run().step == best_step) {
                    _ if best_step == progress.phase_begins => start,
                    Some(best) => trainer(start.into_student())?.restored(best, 0)?.module,
                    None => taken_up.module.clone(),
                };
                (taken_up, best)
            }
        };
        if is_over {
            let (last, best) = (attempt.module.into_student(), best.into_student());
            return Ok(self.ended(last.valid(), best.valid(), progress, trainable_parameters));
        }
        self.tell(Event::Stage(match progress.phase {
            Phase::First => "training",
            Phase::Second => "training without maps",
        }));
        let hook = Arc::new(Mutex::new(Hook {
            rules: Rules::new(recipe, &progress, schedule),
            log: self.log(&progress, schedule, checkpoint.is_some())?,
            progress,
            checkpoints,
            optimizer: attempt.optimizer.clone(),
            best,
            teacher: self.inputs.teacher.clone(),
            watched: self.inputs.watched.clone(),
            listener: self.job.listener.clone(),
            interrupt: self.job.interrupt.clone(),
            out: self.job.out.clone(),
            lock: self.lock.clone(),
            on_policy: None,
            setback: None,
            failure: None,
        }));
        let lock = || hook.lock().unwrap_or_else(PoisonError::into_inner);
        self.job.interrupt.set_work(true);
        let last = loop {
            let factor = lock().progress.held_out.rate_factor();
            attempt = attempt.with_rate_factor(factor);
            let setback = match attempt.train(recipe, &self.inputs, self.device, &hook) {
                Ok(Attempt::Over(student)) => break student,
                Ok(Attempt::SetBack(setback)) => setback,
                Err(DistillError::Gone { dir }) => {
                    let best = lock().best.student().valid();
                    return Err(self.rescued(&best, dir));
                }
                Err(error) => return Err(error),
            };
            let mut hook = lock();
            let best = hook.best.clone();
            if !hook.progress.held_out.roll_back() {
                if hook.progress.held_out.best_step == hook.progress.phase_begins {
                    return Err(DistillError::Refused(format!(
                        "{setback}; nor was it at lower rates: the run ends as it began"
                    )));
                }
                self.tell(Event::Note(&format!("{setback}: no more steps")));
                hook.progress.end = Some(PhaseEnd::NotFinite);
                hook.progress.log = hook.log.state()?;
                break best.into_student().valid();
            }
            let HeldOut { best_step, .. } = hook.progress.held_out;
            self.tell(Event::Note(&format!(
                "{setback}: going back to the weights of step {best_step}, at a third of the rate"
            )));
            let taken = hook.log.steps() - hook.progress.phase_begins;
            attempt = trainer(best.student().clone())?.going_on_from(best, taken);
            hook.optimizer = attempt.optimizer.clone();
        };
        let hook = lock();
        if hook.progress.held_out.is_lost() {
            let step = hook.progress.log.counts.steps;
            let place = self.not_finite(&last);
            let place = place.map_or_else(String::new, |place| format!(", first in {place}"));
            let found = format!(
                "training diverged: what the student of step {step} computes is not finite{place}"
            );
            match hook.progress.held_out.diverged() {
                true => {
                    return Err(DistillError::Refused(format!(
                        "{found}, and no step had a held-out KL below that of the start; lower train.rate or \
                         train.learning_rate"
                    )));
                }
                false => self.tell(Event::Note(&found)),
            }
        }
        let (best, progress) = (hook.best.student().valid(), hook.progress.clone());
        Ok(self.ended(last, best, progress, trainable_parameters))
    }

    /// A phase that is over: with its best student, or with the last if that is asked for.
    fn ended<M: CausalLm<A::InnerBackend>>(
        &self,
        last: M,
        best: M,
        progress: RunProgress,
        trainable_parameters: usize,
    ) -> Ended<M> {
        let (held_out, steps) = (progress.held_out, progress.log.counts.steps);
        // At an interruption nothing was evaluated.
        let is_better = |last: &M| {
            progress.end == Some(PhaseEnd::Interrupted)
                && self
                    .watched_kl(last)
                    .is_some_and(|kl| held_out.best.is_none_or(|best| kl < best))
        };
        let (student, student_step, kept) = match held_out.best_step {
            _ if self.job.keep_last && progress.end != Some(PhaseEnd::NotFinite) => {
                (last, steps, Kept::Last)
            }
            best_step if best_step == steps || is_better(&last) => (last, steps, Kept::Best),
            best_step => (best, best_step, Kept::Best),
        };
        Ended {
            student,
            student_step,
            kept,
            progress,
            trainable_parameters,
        }
    }

    /// Where the numbers of `student` are finite no more, on the text that is watched.
    fn not_finite(&self, student: &impl LayeredDecoder<A::InnerBackend>) -> Option<Place> {
        let mut batches = self.inputs.watched.iter();
        batches.find_map(|batch| first_not_finite(student, &batch))
    }

    /// The KL of `student` on the part of the held-out text that is watched.
    fn watched_kl(&self, student: &impl CausalLm<A::InnerBackend>) -> Option<f64> {
        let teacher = self.inputs.teacher.as_ref();
        evaluate(student, teacher, &self.inputs.watched, |_, _| {}).kl
    }

    /// The metrics of a phase, in the file of the run.
    fn log(
        &self,
        progress: &RunProgress,
        schedule: PhaseSchedule,
        resumes: bool,
    ) -> Result<MetricsLog, DistillError> {
        let (out, recipe) = (self.job.out, self.job.recipe);
        let steps = progress.phase_begins + schedule.steps;
        let (path, listener) = (out.metrics_path(), self.job.listener.clone());
        let begins = progress.log.counts.steps == 0;
        let mut log = match begins && !resumes {
            true => MetricsLog::create(path, recipe.train.log_every, steps, listener)?,
            false => {
                let state = progress.log;
                MetricsLog::resume(path, state, recipe.train.log_every, steps, listener)?
            }
        };
        let plan = &self.inputs.plan;
        let flops = match (progress.phase, &plan.phase2) {
            (Phase::Second, Some(phase2)) => phase2.step_flops.total(),
            _ => plan.totals.step_flops.total(),
        };
        log = log.with_flops_per_step(flops);
        if recipe.phase2.is_some() {
            log.begin_phase(progress.phase.name());
        }
        if recipe.train.tensorboard {
            let dir = out.tensorboard_path();
            let board = match begins {
                true => TensorBoard::create(&dir)?,
                false => TensorBoard::resume(&dir, progress.log.counts.steps)?,
            };
            log = log.with_tensorboard(board);
        }
        Ok(log)
    }

    /// Collapses, exports, reloads, compares and sums up.
    fn finish<M: LayeredDecoder<A::InnerBackend>>(
        &self,
        ended: &Ended<M>,
    ) -> Result<Summary, DistillError> {
        let out = self.job.out;
        self.tell(Event::Stage("collapsing and exporting"));
        if let Err(DistillError::Gone { dir }) = out.check_in_place(&self.lock) {
            return Err(self.rescued(&ended.student, dir));
        }
        let unchecked = out.unchecked_student_dir();
        let exported = self.export(&ended.student, &unchecked)?;
        let end = self.evaluate("evaluating the exported student", &exported.student)?;
        let summary = Summary {
            student_step: ended.student_step,
            kept: ended.kept,
            trainable_parameters: ended.trainable_parameters,
            collapse_max_abs_logit_diff: exported.difference,
            total_seconds: self.began.elapsed().as_secs_f64(),
            layers: self.start.layers.clone(),
            ..Summary::new(
                self.job.recipe,
                &self.inputs.plan,
                &ended.progress,
                &end.all,
            )
        };
        card::write(&unchecked, self.job.recipe, &self.inputs.plan, &summary)?;
        self.job.tell_kept(out.accept_student()?);
        out.remove_start_summary()?;
        out.write_evaluation(&end)?;
        out.write_summary(&summary)?;
        Ok(summary)
    }

    /// The folder `dir` of the run is gone: what of the student there is goes elsewhere.
    fn rescued<M: LayeredDecoder<A::InnerBackend>>(
        &self,
        student: &M,
        dir: PathBuf,
    ) -> DistillError {
        let rescue = self.job.out.rescue_dir();
        match self.export(student, &rescue) {
            Ok(_) => DistillError::Refused(format!(
                "{} was deleted or replaced while the run wrote into it: the run ends, and the best student \
                 that it had is in {}",
                dir.display(),
                rescue.display()
            )),
            Err(_) => DistillError::Gone { dir },
        }
    }

    fn export<M: LayeredDecoder<A::InnerBackend>>(
        &self,
        student: &M,
        dir: &Path,
    ) -> Result<super::export::Exported<A::InnerBackend>, DistillError> {
        let recipe = self.job.recipe;
        let export = Export {
            config: &self.inputs.plan.student,
            dtype: recipe.teacher.dtype,
            form: self.inputs.export_form,
            precision: recipe.lti.precision,
            tokenizer: self.inputs.files.tokenizer_files(),
            dir,
        };
        export.run(student, self.inputs.valid.iter().next(), self.device)
    }

    fn evaluate(
        &self,
        stage: &str,
        student: &impl LayeredDecoder<A::InnerBackend>,
    ) -> Result<DocumentEvaluation, DistillError> {
        self.tell(Event::Stage(stage));
        let teacher = self.inputs.teacher.as_ref();
        let evaluation = evaluate_documents(student, teacher, &self.inputs.valid, |done, all| {
            self.tell(Event::Advanced(done, all));
        });
        let (teacher_is, batches) = (the_teacher(self.job.recipe), &self.inputs.valid);
        let teacher = (teacher_is.as_str(), teacher);
        let all = &evaluation.all;
        all.check_finite(teacher, (THE_STUDENT, student), batches)?;
        self.tell(Event::Evaluation(all));
        Ok(evaluation)
    }

    fn tell(&self, event: Event<'_>) {
        (self.job.listener)(event);
    }
}

/// What errors call the student of a run.
const THE_STUDENT: &str = "the student";

/// Which checkpoint of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// The newest.
    Latest,
    /// The one with the lowest held-out KL.
    Best,
}

/// Makes a student out of a checkpoint of the run in `run_dir`, in the folder `student_dir`, and
/// gives the step of the checkpoint and what the student is worth.
///
/// # Errors
///
/// [`DistillError`], one of a run that has no whole checkpoint among them.
pub fn collapse_run<A: AutodiffBackend>(
    run_dir: &Path,
    which: Which,
    student_dir: &Path,
    device: &A::Device,
    listener: &Listener,
) -> Result<(usize, Evaluation), DistillError> {
    let out = OutputDir::of_run(run_dir);
    // A student in the run's own folder is the run's business.
    let _lock = match student_dir == out.student_dir() {
        true => out.lock()?,
        false => None,
    };
    let recipe = Recipe::load(&out.recipe_path(), &[]);
    let recipe = recipe.map_err(|source| DistillError::Foreign {
        file: out.recipe_path(),
        reason: "is lost or damaged: `distill --resume` with the run's recipe writes it again",
        source: Box::new(source),
    })?;
    let job = Job::new(&recipe, &out).with_listener(listener.clone());
    let checkpoints = job.checkpoints()?;
    let checkpoint = match which {
        Which::Latest => checkpoints.latest(),
        Which::Best => checkpoints.best(),
    };
    let checkpoint = checkpoint.ok_or_else(|| {
        DistillError::Refused(format!(
            "there is no whole checkpoint in {}: train with `train.checkpoint_every`",
            run_dir.display()
        ))
    })?;
    let place = new_student(student_dir)?;
    let kept = job.kept_layers();
    let inputs = RunInputs::<A>::load(&recipe, kept.as_deref(), device, listener)?;
    // Of texts that were changed it would be another one.
    if let Ok(begun) = Manifest::read(&out.manifest_path()) {
        begun.check_tokens(inputs.files.kept().map(TokensHash::from).as_ref())?;
    }
    let progress = RunProgress::at(checkpoint)?;
    let trained = match (progress.phase, &recipe.phase2) {
        (Phase::Second, Some(phase2)) => phase2.train.into(),
        _ => recipe.trained(),
    };
    let start = (None, Need::of_checkpoint(&recipe, trained));
    let run = Run::begin(&job, device, inputs, start, Instant::now(), place.lock())?;
    (listener)(Event::Stage("collapsing and exporting"));
    let student = match (progress.phase, recipe.trained()) {
        (Phase::First, Trained::Maps) => {
            let student = run.restored(run.learning()?, &progress, checkpoint)?;
            run.export(&student, place.path())?
        }
        (Phase::First, Trained::Projections | Trained::All) | (Phase::Second, _) => {
            let student = run.restored(run.free()?, &progress, checkpoint)?;
            run.export(&student, place.path())?
        }
    };
    let step = checkpoint.run().step;
    place.accept()?;
    let [made, own] = [student_dir, &out.student_dir()].map(|dir| fs::canonicalize(dir).ok());
    if made.is_some() && made == own {
        out.adopt_student()?;
    }
    let evaluation = run.evaluate("evaluating the exported student", &student.student)?;
    Ok((step, evaluation.all))
}
