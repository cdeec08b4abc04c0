//! Programs on the same task, in turn, round by round.

use std::fmt::{self, Write as _};
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use serde_json::{Value, json};

use super::program::{Measurement, Program, Programs, Task};
use super::statistics::{Spread, digits};

/// In which type projections are multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Precision {
    Float32,
    /// Ours by `train.precision`, PyTorch by `autocast`.
    #[value(name = "bfloat16")]
    BFloat16,
}

impl Precision {
    /// The first losses of two programs that compute the same may differ by this part of themselves: sums of
    /// some ten thousand float32 terms, in other orders; in bfloat16 of products that are rounded at other
    /// places.
    const fn same_loss(self) -> f64 {
        match self {
            Self::Float32 => 1e-3,
            Self::BFloat16 => 2e-2,
        }
    }
}

/// A task, and the programs that take it.
#[derive(Clone, Debug)]
pub(crate) struct Contest<'a> {
    /// What is done, in a line.
    pub(crate) title: String,
    pub(crate) task: Task,
    pub(crate) precision: Precision,
    /// The folder of the teacher, if there is one. Results do not hold it: it is this machine's.
    pub(crate) teacher: Option<PathBuf>,
    /// What else every program is called with.
    pub(crate) args: Vec<String>,
    pub(crate) programs: Vec<Program<'a>>,
}

/// What became of a contest: a measurement a round of each program.
#[derive(Debug)]
pub(crate) struct Outcome<'a> {
    contest: Contest<'a>,
    runs: Vec<Vec<Measurement>>,
}

impl<'a> Contest<'a> {
    /// Runs every program once a round, each time in a process of its own. That one computes something
    /// else is an error.
    pub(crate) fn run(self, programs: &Programs<'_>, rounds: usize) -> Result<Outcome<'a>> {
        let teacher = self.teacher.as_deref().map(super::teacher_args);
        let args = teacher
            .into_iter()
            .flatten()
            .chain(self.args.iter().cloned());
        let args: Vec<String> = args.collect();
        let mut runs = vec![Vec::new(); self.programs.len()];
        for round in 1..=rounds {
            for (program, runs) in self.programs.iter().zip(&mut runs) {
                let measured = programs
                    .measure(*program, self.task, &args)
                    .with_context(|| self.title.clone())?;
                let seconds = measured.step_seconds().map(digits).unwrap_or_default();
                println!(
                    "{}, round {round}: {}: {seconds} s",
                    self.title,
                    program.name()
                );
                runs.push(measured);
            }
        }
        let outcome = Outcome {
            contest: self,
            runs,
        };
        outcome.check_losses()?;
        Ok(outcome)
    }
}

impl<'a> Outcome<'a> {
    fn programs(&self) -> impl Iterator<Item = (Program<'a>, &[Measurement])> {
        let programs = self.contest.programs.iter().copied();
        programs.zip(self.runs.iter().map(Vec::as_slice))
    }

    fn check_losses(&self) -> Result<()> {
        let firsts = self.programs().flat_map(|(program, runs)| {
            let firsts = runs.iter().filter_map(|run| run.losses.first());
            firsts.map(move |loss| (program, *loss))
        });
        let firsts: Vec<(Program<'_>, f64)> = firsts.collect();
        let Some(&(first, expected)) = firsts.first() else {
            return Ok(());
        };
        for (program, loss) in firsts {
            let (first, program) = (first.name(), program.name());
            ensure!(
                (loss - expected).abs() <= self.contest.precision.same_loss() * expected.abs(),
                "{}: they do not compute the same: the first loss of {first} is {expected}, that of \
                 {program} {loss}",
                self.contest.title
            );
        }
        Ok(())
    }

    /// All that was measured.
    pub(crate) fn to_json(&self) -> Value {
        let programs = self
            .programs()
            .map(|(program, runs)| json!({ "program": program.name(), "runs": runs }));
        json!({
            "title": self.contest.title,
            "arguments": self.contest.args,
            "programs": programs.collect::<Vec<_>>(),
        })
    }
}

/// A heading and two tables: the programs, and the ratios of ours to the others.
impl fmt::Display for Outcome<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "### {}\n", self.contest.title)?;
        writeln!(
            f,
            "| program | seconds a step | peak MiB | first loss | last loss |"
        )?;
        writeln!(f, "|---|---|---|---|---|")?;
        for (program, runs) in self.programs() {
            let loss = |of: fn(&[f64]) -> Option<&f64>| {
                let loss = runs.first().and_then(|run| of(&run.losses));
                loss.map_or_else(unknown, |loss| format!("{loss:.6}"))
            };
            let mut row = format!("| {} ", program.name());
            for cell in [
                spread(Spread::of(seconds(runs).into_iter().flatten())),
                spread(Spread::of(peaks(runs).into_iter().flatten())),
                loss(|losses| losses.first()),
                loss(|losses| losses.last()),
            ] {
                write!(row, "| {cell} ")?;
            }
            writeln!(f, "{row}|")?;
        }
        writeln!(f, "\n| ratio | time | peak memory |")?;
        writeln!(f, "|---|---|---|")?;
        for (ours, our_runs) in self.programs().filter(|(program, _)| program.is_ours()) {
            for (peer, runs) in self.programs().filter(|(program, _)| !program.is_ours()) {
                writeln!(
                    f,
                    "| {} / {} | {} | {} |",
                    ours.name(),
                    peer.name(),
                    spread(Spread::of_ratios(&seconds(our_runs), &seconds(runs))),
                    spread(Spread::of_ratios(&peaks(our_runs), &peaks(runs))),
                )?;
            }
        }
        Ok(())
    }
}

fn seconds(runs: &[Measurement]) -> Vec<Option<f64>> {
    runs.iter().map(Measurement::step_seconds).collect()
}

fn peaks(runs: &[Measurement]) -> Vec<Option<f64>> {
    runs.iter().map(Measurement::peak_mib).collect()
}

fn spread(spread: Option<Spread>) -> String {
    spread.map_or_else(unknown, |spread| spread.to_string())
}

fn unknown() -> String {
    "-".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Backend;
    use crate::setup::peers::Peers;

    fn outcome<'a>(peers: &'a Peers, runs: [&[(f64, f64)]; 2]) -> Outcome<'a> {
        let run = |&(seconds, loss): &(f64, f64)| Measurement {
            losses: vec![loss; 3],
            seconds: vec![9.0, 9.0, seconds],
            start_peak_mib: Some(100.0 * seconds),
            step_peak_mib: Some(50.0),
        };
        Outcome {
            contest: Contest {
                title: "a task".to_owned(),
                task: Task::Step,
                precision: Precision::Float32,
                teacher: Some("somewhere".into()),
                args: vec!["--heads".to_owned(), "3".to_owned()],
                programs: vec![Program::Ours(Backend::Flex), Program::Torch(peers)],
            },
            runs: runs.map(|runs| runs.iter().map(run).collect()).into(),
        }
    }

    #[test]
    fn the_tables_hold_spreads_and_ratios() {
        let peers = Peers::of("2.9.0", None);
        let outcome = outcome(
            &peers,
            [&[(1.0, 2.0), (2.0, 2.0)], &[(2.0, 2.001), (2.5, 2.001)]],
        );
        outcome.check_losses().unwrap();
        let text = outcome.to_string();
        for line in [
            "### a task",
            "| burn-lti, flex | 1.50 (1.00..2.00) | 150 (100..200) | 2.000000 | 2.000000 |",
            "| PyTorch 2.9 | 2.25 (2.00..2.50) | 225 (200..250) | 2.001000 | 2.001000 |",
            "| burn-lti, flex / PyTorch 2.9 | 0.650 (0.500..0.800) | 0.650 (0.500..0.800) |",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        let json = outcome.to_json();
        assert_eq!(json["programs"][1]["runs"][0]["seconds"][2], 2.0);
        assert!(!json.to_string().contains("somewhere"), "{json}");
    }

    #[test]
    fn programs_that_compute_something_else_are_refused() {
        let peers = Peers::of("2.9.0", None);
        let error = outcome(&peers, [&[(1.0, 2.0)], &[(1.0, 2.01)]]).check_losses();
        let error = error.unwrap_err().to_string();
        for part in ["a task", "burn-lti, flex is 2,", "PyTorch 2.9 2.01"] {
            assert!(error.contains(part), "{error}");
        }
        assert!(
            outcome(&peers, [&[(1.0, f64::NAN)], &[(1.0, 2.0)]])
                .check_losses()
                .is_err()
        );
    }
}
