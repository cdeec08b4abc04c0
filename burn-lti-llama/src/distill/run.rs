//! [`Job`]: a recipe, where its results go, and who is told.

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use burn::module::AutodiffModule;
use burn::tensor::backend::AutodiffBackend;
use burn_lti::calibration::Budget;
use burn_lti::decoder::{CausalLm, LayeredDecoder};
use burn_lti::train::{Checkpoint, CheckpointDir};

use super::export::Export;
use super::hook::{Hook, Interrupt, Rules};
use super::inputs::RunInputs;
use super::manifest::{Compute, Manifest, Note};
use super::metrics::MetricsLog;
use super::module::Student;
use super::output::Existing;
use super::progress::{HeldOut, Phase, PhaseEnd, RunProgress};
use super::schedule::PhaseSchedule;
use super::start::{StartTensors, start_tensors};
use super::start_summary::StartSummary;
use super::student::{free_student, learning_student, without_maps};
use super::teacher_cache::the_teacher;
use super::tensorboard::TensorBoard;
use super::training::{Attempt, Trainer, whitening};
use super::{DistillError, Event, Kept, Listener, OutputDir, Summary, card};
use crate::eval::{Evaluation, evaluate};
use crate::model::{LearningLlama, NotFinite, Place, PlainLlama, first_not_finite};
use crate::recipe::{Recipe, Trained};

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

    /// Carries the recipe out, from the start or from the newest checkpoint, as `out` was asked for.
    ///
    /// # Errors
    ///
    /// [`DistillError`] naming what went wrong and, where there is one, the way out. An earlier run's
    /// results are taken away once everything is read; a run that fails after that leaves neither
    /// `summary.json` nor `student`, and its checkpoints.
    pub fn run<A: AutodiffBackend>(&self, device: &A::Device) -> Result<Summary, DistillError> {
        let began = Instant::now();
        let (inputs, manifest) = self.load::<A>(device)?;
        let resumed = match self.out.existing() {
            Existing::Resume => self.take_up(&manifest)?,
            Existing::Refuse | Existing::Overwrite => None,
        };
        match &resumed {
            Some(_) => self.out.take_up()?,
            None => self.out.begin(self.recipe, &manifest)?,
        }
        let run = Run::begin(self, device, inputs, None, began)?;
        run.carry_out(resumed)
    }

    /// What the run reads, and what it is made of.
    fn load<A: AutodiffBackend>(
        &self,
        device: &A::Device,
    ) -> Result<(RunInputs<A>, Manifest), DistillError> {
        A::seed(device, self.recipe.train.seed);
        (self.listener)(Event::Stage("loading the teacher"));
        let kept = self.kept_layers()?;
        let inputs = RunInputs::<A>::load(self.recipe, kept.as_deref(), device, &self.listener)?;
        let compute = Compute::of::<A::InnerBackend>(device);
        let mut manifest = Manifest::new(self.recipe, self.command.clone(), compute)?;
        manifest.kept_layers = inputs.plan.kept_layers.clone();
        inputs.check_cache(&manifest)?;
        Ok((inputs, manifest))
    }

    /// The layers of the teacher's that the run in the output folder keeps, if it is to go on and keeps some.
    fn kept_layers(&self) -> Result<Option<Vec<usize>>, DistillError> {
        match self.out.existing() == Existing::Resume && self.out.has_run() {
            true => Ok(Manifest::read(&self.out.manifest_path())?.kept_layers),
            false => Ok(None),
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
        let began = Instant::now();
        let (inputs, manifest) = self.load::<A>(device)?;
        self.out.begin(self.recipe, &manifest)?;
        // Nothing follows, unless the recipe says so.
        let budget = self.recipe.calibration.budget.unwrap_or(Budget::None);
        let run = Run::begin(self, device, inputs, Some(budget), began)?;
        let student = run.free()?.valid();
        run.tell(Event::Stage("exporting"));
        let exported = run.export(&student, &self.out.unchecked_student_dir())?;
        self.out.accept_student()?;
        let evaluation = run.evaluate("evaluating the exported student", &exported.student)?;
        let summary = StartSummary {
            evaluation,
            layers: run.start.layers,
            seconds: began.elapsed().as_secs_f64(),
        };
        self.out.write_start(&summary)?;
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
        if !self.out.has_run() {
            return Ok(None);
        }
        let notes = self.check_same(now)?;
        let summary = self.out.summary()?;
        if summary.is_some() {
            self.tell_all(&notes);
        }
        Ok(summary)
    }

    /// What is another since the run in the output folder began, if it is the same run.
    fn check_same(&self, now: &Manifest) -> Result<Vec<Note>, DistillError> {
        let begun = Manifest::read(&self.out.manifest_path())?;
        let recipe = Recipe::load(&self.out.recipe_path(), &[])?;
        Ok(begun.check_resumable(now, &recipe, self.recipe)?)
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
        self.tell_all(&self.check_same(manifest)?);
        if self.out.is_finished()? {
            return Err(DistillError::Refused(format!(
                "the run in {} is finished: its student is in {}; for another run choose another --out, \
                 or --overwrite",
                self.out.path().display(),
                self.out.student_dir().display()
            )));
        }
        let checkpoints = self.checkpoints()?;
        for broken in checkpoints.broken() {
            let note = format!("passed over {}: {}", broken.path.display(), broken.reason);
            (self.listener)(Event::Note(&note));
        }
        let latest = checkpoints.latest().cloned();
        match &latest {
            Some(checkpoint) => {
                let note = format!("going on after step {}", checkpoint.run().step);
                (self.listener)(Event::Note(&note));
            }
            None => (self.listener)(Event::Note("no checkpoint was saved: starting over")),
        }
        Ok(latest)
    }

    fn checkpoints(&self) -> Result<CheckpointDir, DistillError> {
        let keep = NonZeroUsize::new(self.recipe.train.keep_checkpoints);
        let keep = keep.unwrap_or(NonZeroUsize::MIN);
        Ok(CheckpointDir::open(self.out.checkpoints_path(), keep)?)
    }
}

/// A run whose teacher is loaded.
struct Run<'a, A: AutodiffBackend> {
    job: &'a Job<'a>,
    device: &'a A::Device,
    inputs: RunInputs<A>,
    start: StartTensors<A::InnerBackend>,
    began: Instant,
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
    /// The start is calibrated for a `budget`, if none is given for that of the plan.
    fn begin(
        job: &'a Job<'a>,
        device: &'a A::Device,
        inputs: RunInputs<A>,
        budget: Option<Budget>,
        began: Instant,
    ) -> Result<Self, DistillError> {
        let file = job.out.start_path();
        let planned = inputs.plan.calibration.and_then(|section| section.budget);
        let budget = budget.or(planned).unwrap_or_default();
        // A teacher that computes no numbers would make a start of them first.
        if let Some(batch) = inputs.watched.iter().next() {
            NotFinite::check(&the_teacher(job.recipe), inputs.teacher.as_ref(), &batch)?;
        }
        let start = start_tensors(job.recipe, &inputs, budget, &file, device, &job.listener)?;
        Ok(Self {
            job,
            device,
            inputs,
            start,
            began,
        })
    }

    /// The phases in their order, from the one that `checkpoint` was saved in.
    fn carry_out(&self, checkpoint: Option<Checkpoint>) -> Result<Summary, DistillError> {
        let recipe = self.job.recipe;
        let progress = checkpoint.as_ref().map(RunProgress::at).transpose()?;
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

    fn first_phase<M: Student<A>>(
        &self,
        student: M,
        checkpoint: Option<&Checkpoint>,
    ) -> Result<Ended<M::InnerModule>, DistillError> {
        let progress = match checkpoint {
            Some(checkpoint) => RunProgress::at(checkpoint)?,
            None => {
                let start = student.valid();
                let watched = self.watched_kl(&start);
                RunProgress::begin(self.evaluate("evaluating the start", &start)?, watched)
            }
        };
        self.phase(student, progress, checkpoint)
    }

    /// Folds the maps away and trains what they made.
    fn fold_and_go_on<M: LayeredDecoder<A::InnerBackend>>(
        &self,
        ended: &Ended<M>,
    ) -> Result<Summary, DistillError> {
        let maps = self.evaluate("evaluating the maps", &ended.student)?;
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
            on_policy: None,
            setback: None,
            failure: None,
        }));
        let lock = || hook.lock().unwrap_or_else(PoisonError::into_inner);
        let last = loop {
            let factor = lock().progress.held_out.rate_factor();
            attempt = attempt.with_rate_factor(factor);
            let setback = match attempt.train(recipe, &self.inputs, self.device, &hook)? {
                Attempt::Over(student) => break student,
                Attempt::SetBack(setback) => setback,
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
        let exported = self.export(&ended.student, &out.unchecked_student_dir())?;
        out.accept_student()?;
        let end = self.evaluate("evaluating the exported student", &exported.student)?;
        let summary = Summary {
            student_step: ended.student_step,
            kept: ended.kept,
            trainable_parameters: ended.trainable_parameters,
            collapse_max_abs_logit_diff: exported.difference,
            total_seconds: self.began.elapsed().as_secs_f64(),
            ..Summary::new(self.job.recipe, &self.inputs.plan, &ended.progress, &end)
        };
        card::write(
            &out.student_dir(),
            self.job.recipe,
            &self.inputs.plan,
            &summary,
        )?;
        out.write_summary(&summary)?;
        Ok(summary)
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
            teacher: &recipe.teacher.path,
            dir,
        };
        export.run(student, self.inputs.valid.iter().next(), self.device)
    }

    fn evaluate(
        &self,
        stage: &str,
        student: &impl LayeredDecoder<A::InnerBackend>,
    ) -> Result<Evaluation, DistillError> {
        self.tell(Event::Stage(stage));
        let teacher = self.inputs.teacher.as_ref();
        let evaluation = evaluate(student, teacher, &self.inputs.valid, |done, all| {
            self.tell(Event::Advanced(done, all));
        });
        let (teacher_is, batches) = (the_teacher(self.job.recipe), &self.inputs.valid);
        let teacher = (teacher_is.as_str(), teacher);
        evaluation.check_finite(teacher, (THE_STUDENT, student), batches)?;
        self.tell(Event::Evaluation(&evaluation));
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
    let recipe = Recipe::load(&out.recipe_path(), &[])?;
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
    let kept = job.kept_layers()?;
    let inputs = RunInputs::<A>::load(&recipe, kept.as_deref(), device, listener)?;
    let run = Run::begin(&job, device, inputs, None, Instant::now())?;
    let progress = RunProgress::at(checkpoint)?;
    OutputDir::check_empty(student_dir, "choose another --out, or take them away")?;
    (listener)(Event::Stage("collapsing and exporting"));
    let student = match (progress.phase, recipe.trained()) {
        (Phase::First, Trained::Maps) => {
            let student = run.restored(run.learning()?, &progress, checkpoint)?;
            run.export(&student, student_dir)?
        }
        (Phase::First, Trained::Projections | Trained::All) | (Phase::Second, _) => {
            let student = run.restored(run.free()?, &progress, checkpoint)?;
            run.export(&student, student_dir)?
        }
    };
    let evaluation = run.evaluate("evaluating the exported student", &student.student)?;
    Ok((checkpoint.run().step, evaluation))
}
