//! [`CompareJob`]: a recipe, the starts and seeds to carry it out with, and who is told.

use std::path::PathBuf;
use std::sync::Arc;

use burn::tensor::backend::AutodiffBackend;
use burn_lti::map::Start;

use super::folder::run_name;
use super::{CompareDir, CompareError, Comparison, RunReport, StartReport, names};
use crate::distill::{
    Compute, DistillError, Event, Interrupt, Job, Listener, Manifest, OutputDir, PhaseEnd, Summary,
    plan_of_config,
};
use crate::recipe::Recipe;

/// A comparison to be: one recipe, from each of some starts, with each of some seeds.
///
/// ```no_run
/// # use std::path::Path;
/// use burn::backend::{Autodiff, Flex};
/// use burn_lti::map::Start;
/// use burn_lti_llama::compare::{CompareDir, CompareJob};
/// use burn_lti_llama::recipe::Recipe;
///
/// let recipe = Recipe::load(Path::new("half.toml"), &[])?;
/// let job = CompareJob::new(&recipe, &Start::ALL, 3)?;
/// let out = CompareDir::prepare(Path::new("out"))?;
/// let comparison = job.run::<Autodiff<Flex>>(&out, &Default::default())?;
/// println!("{comparison}");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct CompareJob {
    recipe: Recipe,
    starts: Vec<Start>,
    seeds: Vec<u64>,
    listener: Listener,
    interrupt: Interrupt,
    command: Vec<String>,
}

/// One of the runs.
struct PlannedRun {
    start: Start,
    seed: u64,
    recipe: Recipe,
}

impl CompareJob {
    /// The comparison of `starts`, with so many seeds from the recipe's `train.seed` on. What the recipe
    /// says of its start does not count.
    ///
    /// # Errors
    ///
    /// - [`CompareError::Refused`]: nothing, or not this, can be compared.
    /// - [`CompareError::Run`]: the recipe cannot be carried out from one of the starts.
    /// - [`CompareError::Distill`]: it cannot be carried out from any.
    pub fn new(recipe: &Recipe, starts: &[Start], seeds: usize) -> Result<Self, CompareError> {
        if starts.is_empty() {
            return Err(CompareError::Refused(format!(
                "no start is named: name at least one of {}",
                names().join(", ")
            )));
        }
        let twice = |(index, start): (usize, &Start)| {
            let is_twice = starts[..index].contains(start);
            is_twice.then_some(*start)
        };
        if let Some(start) = starts.iter().enumerate().find_map(twice) {
            return Err(CompareError::Refused(format!(
                "the start `{start}` is named twice: name it once"
            )));
        }
        let seeds = seeds_from(recipe.train.seed, seeds)?;
        check_plans(recipe, starts)?;

        Ok(Self {
            recipe: recipe.clone(),
            starts: starts.to_vec(),
            seeds,
            listener: Arc::new(|_| {}),
            interrupt: Interrupt::default(),
            command: Vec::new(),
        })
    }

    /// Tells `listener` of every event of every run.
    pub fn with_listener(mut self, listener: Listener) -> Self {
        self.listener = listener;
        self
    }

    /// Stops when `interrupt` is asked to: the run under way as a run of its own would, and with it the
    /// comparison.
    pub fn with_interrupt(mut self, interrupt: Interrupt) -> Self {
        self.interrupt = interrupt;
        self
    }

    /// Puts the command that began the comparison into the manifest of each run.
    pub fn with_command(mut self, command: Vec<String>) -> Self {
        self.command = command;
        self
    }

    /// Carries out what of the runs is not finished in `out`, one after another, and writes what they
    /// came to.
    ///
    /// # Errors
    ///
    /// - [`CompareError::Run`]: a run in `out` is another one, which is found out before any begins; or a
    ///   run failed.
    /// - [`CompareError::Refused`]: someone asked to stop.
    /// - [`CompareError::Lock`]: another comparison writes into the folder.
    /// - [`CompareError::Distill`], [`CompareError::Output`], [`CompareError::File`],
    ///   [`CompareError::Chart`]: something cannot be read or written.
    ///
    /// Runs that are whole stay so. Once one has begun, there is no `compare.json` until all are whole.
    pub fn run<A: AutodiffBackend>(
        &self,
        out: &CompareDir,
        device: &A::Device,
    ) -> Result<Comparison, CompareError> {
        let runs = self.runs();
        let mut lock = out.lock()?;
        let finished = self.finished::<A>(out, &runs, device)?;
        if finished.iter().any(Option::is_none) {
            out.begin()?;
            if lock.is_none() {
                lock = out.lock()?;
            }
        }
        let (mut reports, count) = (Vec::new(), runs.len());
        for (index, (run, finished)) in runs.iter().zip(finished).enumerate() {
            let PlannedRun { start, seed, .. } = run;
            let stage = format!("run {} of {count}: start {start}, seed {seed}", index + 1);
            self.tell(Event::Stage(&stage));
            let summary = match finished {
                Some(summary) => {
                    self.tell(Event::Note("finished before: taken over"));
                    summary
                }
                None => self.carry_out::<A>(out, run, device)?,
            };
            reports.push(self.report(out, run, summary)?);
        }
        let comparison = self.comparison(reports);
        out.write(&comparison)?;
        drop(lock);
        Ok(comparison)
    }

    /// Every run, all seeds of a start after one another.
    fn runs(&self) -> Vec<PlannedRun> {
        let run = |start, seed| {
            let mut recipe = self.recipe.clone();
            recipe.lti.start = start;
            recipe.train.seed = seed;
            PlannedRun {
                start,
                seed,
                recipe,
            }
        };
        let of_start = |start: &Start| {
            let start = *start;
            self.seeds.iter().map(move |seed| run(start, *seed))
        };
        self.starts.iter().flat_map(of_start).collect()
    }

    /// The figures of those runs that `out` holds already.
    fn finished<A: AutodiffBackend>(
        &self,
        out: &CompareDir,
        runs: &[PlannedRun],
        device: &A::Device,
    ) -> Result<Vec<Option<Summary>>, CompareError> {
        if !out.is_resumed() {
            return Ok(vec![None; runs.len()]);
        }
        let compute = Compute::of::<A::InnerBackend>(device);
        // Start and seed are no part of it.
        let now = Manifest::new(&self.recipe, self.command.clone(), compute);
        let now = now.map_err(DistillError::from)?;
        let finished = |run: &PlannedRun| {
            let found = || {
                let dir = out.run_output(run.start, run.seed)?;
                let job = Job::new(&run.recipe, &dir).with_listener(self.listener.clone());
                job.finished(&now)
            };
            found().map_err(|source| match source {
                DistillError::Manifest(_) | DistillError::NoRun { .. } => CompareError::Run {
                    what: format!(
                        "what is in {} is no run of this comparison: choose another --out, or compare \
                         what was compared there",
                        out.run_dir(run.start, run.seed).display()
                    ),
                    source,
                },
                source => CompareError::Distill(source),
            })
        };
        runs.iter().map(finished).collect()
    }

    fn carry_out<A: AutodiffBackend>(
        &self,
        out: &CompareDir,
        run: &PlannedRun,
        device: &A::Device,
    ) -> Result<Summary, CompareError> {
        let folder = || out.run_dir(run.start, run.seed);
        self.check_not_interrupted(folder)?;
        let carry_out = || {
            let dir = out.run_output(run.start, run.seed)?;
            let job = Job::new(&run.recipe, &dir)
                .with_listener(self.listener.clone())
                .with_interrupt(self.interrupt.clone())
                .with_command(self.command.clone());
            job.run::<A>(device)
        };
        let summary = carry_out().map_err(|source| CompareError::Run {
            what: format!(
                "the run in {} did not come to its end: correct what is said; if the recipe stays as it \
                 is, --resume goes on",
                folder().display()
            ),
            source,
        })?;
        match summary.ending {
            PhaseEnd::Interrupted => Err(CompareError::Refused(format!(
                "interrupted in {} after step {}: the same command with --resume goes on from there",
                folder().display(),
                summary.steps
            ))),
            PhaseEnd::Finished | PhaseEnd::Plateau | PhaseEnd::Patience | PhaseEnd::NotFinite => {
                Ok(summary)
            }
        }
    }

    /// A run that was asked to stop in its last step ends as if nobody had asked; the next shall not begin.
    fn check_not_interrupted(&self, next: impl Fn() -> PathBuf) -> Result<(), CompareError> {
        match self.interrupt.is_asked() {
            true => Err(CompareError::Refused(format!(
                "interrupted before the run in {} began: the same command with --resume goes on with it",
                next().display()
            ))),
            false => Ok(()),
        }
    }

    fn report(
        &self,
        out: &CompareDir,
        run: &PlannedRun,
        summary: Summary,
    ) -> Result<RunReport, CompareError> {
        let dir = OutputDir::resume(&out.run_dir(run.start, run.seed))?;
        let evaluations = match dir.has_metrics() {
            true => dir.evaluations()?,
            false => {
                let note = "its metrics.jsonl is lost: its curve has nothing between the ends";
                self.tell(Event::Note(note));
                Vec::new()
            }
        };
        let name = run_name(run.start, run.seed);
        Ok(RunReport::new(
            name,
            summary,
            &evaluations,
            self.tokens_per_step(),
        ))
    }

    /// The reports of all runs, in their order, brought together.
    fn comparison(&self, reports: Vec<RunReport>) -> Comparison {
        let mut reports = reports.into_iter();
        let of_start = |start: &Start| {
            let runs = reports.by_ref().take(self.seeds.len());
            StartReport::new(*start, runs.collect())
        };
        Comparison {
            seeds: self.seeds.clone(),
            tokens_per_step: self.tokens_per_step(),
            starts: self.starts.iter().map(of_start).collect(),
        }
    }

    fn tokens_per_step(&self) -> usize {
        self.recipe.train.tokens_per_step()
    }

    fn tell(&self, event: Event<'_>) {
        (self.listener)(event);
    }
}

/// `first` and those after it.
fn seeds_from(first: u64, seeds: usize) -> Result<Vec<u64>, CompareError> {
    if seeds == 0 {
        let nothing = "0 seeds make no run: ask for at least 1, which is one run from each start";
        return Err(CompareError::Refused(nothing.to_owned()));
    }
    let end = first.checked_add(seeds as u64);
    let end = end.filter(|&end| end - 1 <= i64::MAX as u64);
    let end = end.ok_or_else(|| {
        CompareError::Refused(format!(
            "train.seed is {first}, from where {seeds} seeds go beyond {}, the largest that a recipe \
             holds: set train.seed lower, or ask for fewer",
            i64::MAX
        ))
    })?;
    Ok((first..end).collect())
}

/// Checks that the recipe can be carried out from each start. Where it can from another one, it is the
/// start that is named.
fn check_plans(recipe: &Recipe, starts: &[Start]) -> Result<(), CompareError> {
    let plan_from = |start: Start| {
        let mut recipe = recipe.clone();
        recipe.lti.start = start;
        plan_of_config(&recipe)
    };
    for &start in starts {
        if let Err(source) = plan_from(start) {
            let would_do = Start::ALL.into_iter().any(|other| plan_from(other).is_ok());
            return Err(match would_do {
                true => CompareError::Run {
                    what: format!(
                        "the start `{start}` does not suit the recipe: change the recipe as said, or \
                         compare without `{start}`"
                    ),
                    source,
                },
                false => CompareError::Distill(source),
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use tempfile::TempDir;

    use super::*;
    use crate::plan::PlanError;

    /// A recipe beside which lie the files that a plan looks at.
    fn recipe(overrides: &[&str]) -> (TempDir, Recipe) {
        let folder = tempfile::tempdir().unwrap();
        let fixture =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/tiny_llama/tied");
        fs::copy(
            fixture.join("config.json"),
            folder.path().join("config.json"),
        )
        .unwrap();
        fs::write(folder.path().join("text.txt"), "a text\n").unwrap();
        let text = r#"
            teacher.path = "."
            student = { heads = 2, kv_heads = 1 }
            train = { steps = 20, seq_len = 16, seed = 5 }
            data = { train = ["text.txt"], valid = ["text.txt"] }
        "#;
        let overrides: Vec<String> = overrides.iter().map(|&text| text.to_owned()).collect();
        let path = folder.path().join("recipe.toml");
        let recipe = Recipe::parse(text, &path, &overrides).unwrap();
        (folder, recipe)
    }

    fn refused(overrides: &[&str], starts: &[Start], seeds: usize) -> CompareError {
        let (_folder, recipe) = recipe(overrides);
        match CompareJob::new(&recipe, starts, seeds) {
            Ok(_) => panic!("{overrides:?} was not refused"),
            Err(error) => error,
        }
    }

    #[test]
    fn every_start_is_run_with_every_seed() {
        let (_folder, recipe) = recipe(&[]);
        let job = CompareJob::new(&recipe, &[Start::Grouped, Start::Lecun], 2).unwrap();
        let runs = job.runs();
        let pairs: Vec<(Start, u64)> = runs
            .iter()
            .map(|run| (run.recipe.lti.start, run.recipe.train.seed))
            .collect();
        let (grouped, lecun) = (Start::Grouped, Start::Lecun);
        assert_eq!(pairs, [(grouped, 5), (grouped, 6), (lecun, 5), (lecun, 6)]);
        assert!(
            runs.iter()
                .all(|run| (run.start, run.seed) == (run.recipe.lti.start, run.recipe.train.seed))
        );
    }

    #[test]
    fn what_cannot_be_compared_is_refused() {
        let lecun = [Start::Lecun];
        let error = refused(&[], &[], 1);
        assert!(error.to_string().contains("no start is named"), "{error}");
        assert!(error.to_string().contains("grouped"), "{error}");
        let error = refused(&[], &[Start::Lecun, Start::Lecun], 1);
        assert!(
            error.to_string().contains("`lecun` is named twice"),
            "{error}"
        );
        let error = refused(&[], &lecun, 0);
        assert!(error.to_string().contains("0 seeds make no run"), "{error}");
        let largest = format!("train.seed={}", i64::MAX);
        let error = refused(&[&largest], &lecun, 2);
        assert!(
            error.to_string().contains("from where 2 seeds go beyond"),
            "{error}"
        );
        let (_folder, recipe) = recipe(&[&largest]);
        assert!(CompareJob::new(&recipe, &lecun, 1).is_ok());
    }

    #[test]
    fn no_run_begins_once_someone_has_asked_to_stop() {
        let (_folder, recipe) = recipe(&[]);
        let interrupt = Interrupt::default();
        let job = CompareJob::new(&recipe, &[Start::Lecun], 1).unwrap();
        let job = job.with_interrupt(interrupt.clone());
        let next = || PathBuf::from("next");
        assert!(job.check_not_interrupted(next).is_ok());
        interrupt.ask();
        let error = job.check_not_interrupted(next).unwrap_err();
        assert!(
            error.to_string().contains("before the run in next began"),
            "{error}"
        );
        assert!(error.to_string().contains("--resume"), "{error}");
    }

    #[test]
    fn a_start_that_the_geometry_forbids_is_named() {
        let odd = ["student.heads=3", "student.kv_heads=1"];
        let error = refused(&odd, &[Start::Lecun, Start::Grouped], 1);
        assert!(matches!(
            &error,
            CompareError::Run {
                source: DistillError::Plan(PlanError::Refused { .. }),
                ..
            }
        ));
        assert!(error.to_string().contains("without `grouped`"), "{error}");
        let (_folder, recipe) = recipe(&odd);
        assert!(CompareJob::new(&recipe, &[Start::Lecun], 1).is_ok());
    }

    #[test]
    fn a_recipe_that_no_start_suits_is_to_blame_itself() {
        let error = refused(&["train.seq_len=100000"], &Start::ALL, 1);
        assert!(matches!(
            error,
            CompareError::Distill(DistillError::Plan(PlanError::Refused { .. }))
        ));
        let error = refused(&["data.valid=['absent.txt']"], &Start::ALL, 1);
        assert!(matches!(error, CompareError::Distill(_)));
        assert!(
            error.to_string().contains("there is no text file "),
            "{error}"
        );
    }
}
