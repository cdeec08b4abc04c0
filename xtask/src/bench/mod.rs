//! `cargo xtask bench`: the benches, ours against the peers, and how cost grows.
//!
//! | file | what |
//! |---|---|
//! | `program` | what is started, and what it prints |
//! | `contest` | programs on the same task, in turn, and the table of their ratios |
//! | `growth` | a step against tokens, vocabulary and layers |
//! | `statistics` | medians and their spread |

mod contest;
mod growth;
mod program;
mod statistics;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use xshell::Shell;

use crate::backend::{self, Backend};
use crate::cache::Cache;
use crate::setup::peers::{self, Found};
use crate::setup::{Installed, teachers};
use crate::step::{Step, cargo};

use contest::{Contest, Precision};
pub(crate) use program::executables;
use program::{Device, Program, Programs, Task, WARM_UP};

/// Where results are committed.
const RESULTS: &str = "benches/results";

/// Steps of a run, if not told otherwise.
const STEPS: usize = 7;

#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// Hold our programs against PyTorch and JAX, in turn, and print the ratios.
    ///
    /// Needs `cargo xtask setup peers`, and for the contest `smollm2` also `teachers`. With
    /// `peers-newest` the newest PyTorch takes part too.
    #[arg(long, group = "measurement")]
    peers: bool,
    /// Measure a step against tokens, vocabulary and layers.
    #[arg(long, group = "measurement")]
    growth: bool,
    /// Only these; all if absent.
    #[arg(
        long = "contest",
        value_name = "CONTEST",
        value_enum,
        requires = "measurement",
        conflicts_with = "growth"
    )]
    contests: Vec<Name>,
    /// In which type a step's projections are multiplied; of several, contests in each.
    #[arg(
        long = "precision",
        value_name = "TYPE",
        value_enum,
        default_value = "float32",
        requires = "measurement",
        conflicts_with = "growth"
    )]
    precisions: Vec<Precision>,
    /// Our backends, which must be set up. If absent: flex, and tch if it is set up.
    #[arg(
        long = "backend",
        value_name = "BACKEND",
        value_enum,
        requires = "measurement"
    )]
    backends: Vec<Backend>,
    /// Where the peers compute.
    #[arg(
        long,
        value_enum,
        default_value_t = Device::Cpu,
        value_name = "DEVICE",
        requires = "measurement",
        conflicts_with = "growth"
    )]
    device: Device,
    /// How often every program runs.
    #[arg(
        long,
        default_value_t = 5,
        value_name = "N",
        requires = "measurement",
        conflicts_with = "growth"
    )]
    rounds: usize,
    /// Steps of a run, of which the first two warm up.
    #[arg(long, default_value_t = STEPS, value_name = "N", requires = "measurement")]
    steps: usize,
    /// Only the first values of what grows.
    #[arg(
        long,
        value_name = "N",
        requires = "measurement",
        conflicts_with = "peers"
    )]
    values: Option<usize>,
    /// Threads to compute with, of every program.
    #[arg(long, default_value_t = 2, value_name = "N", requires = "measurement")]
    threads: usize,
    /// The profile of cargo that ours are built with.
    #[arg(
        long,
        default_value = "release",
        value_name = "NAME",
        requires = "measurement"
    )]
    profile: String,
    /// Keep the results in `benches/results`, in files named after this device.
    #[arg(long, value_name = "DEVICE", requires = "measurement")]
    write: Option<String>,
    /// Handed on to the benches: a filter, or options of criterion.
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        conflicts_with = "measurement"
    )]
    arguments: Vec<String>,
}

/// A contest, or several of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Name {
    /// One projection, forward and backward: five cases.
    Projection,
    /// A step of a model as small as stories260k.
    Stories,
    /// A step of SmolLM2-135M.
    Smollm2,
}

impl BenchArgs {
    /// What cargo does by itself; nothing if programs are measured.
    pub(crate) fn commands(&self) -> Vec<Step> {
        if self.measures() {
            return Vec::new();
        }
        // The benches by pattern: the package's library has none, and another harness.
        let bench = cargo("bench", ["bench", "--package", "burn-lti-benches"]);
        let bench = bench.with_args(["--bench", "*", "--"]);
        vec![bench.with_args(&self.arguments)]
    }

    /// Whether programs are measured, by [`Self::measure`].
    pub(crate) fn measures(&self) -> bool {
        self.peers || self.growth
    }

    /// Measures programs, and prints what came out. `shell` is in the repository and has the environment
    /// of what is started.
    pub(crate) fn measure(
        &self,
        shell: &Shell,
        cache: &Cache,
        installed: &Installed,
    ) -> Result<()> {
        ensure!(
            self.steps > WARM_UP,
            "--steps: at least {}, of which {WARM_UP} warm up",
            WARM_UP + 1
        );
        ensure!(
            self.rounds > 0 && self.threads > 0,
            "--rounds, --threads: at least 1"
        );
        let backends = match self.backends.as_slice() {
            [] => [Backend::Flex, Backend::Tch]
                .into_iter()
                .filter(|backend| backend::require(&[*backend], installed).is_ok())
                .collect(),
            some => backend::require(some, installed)?,
        };
        // What is not set up is said before anything is built.
        let peers = self.peers.then(|| peers::find(shell, cache)).transpose()?;
        peers.iter().for_each(|peers| println!("{peers}"));
        let smollm2 = self.holds(Name::Smollm2).then(|| teachers::find(cache));
        let smollm2 = smollm2.transpose()?;
        let programs = Programs::build(shell, &self.profile, &backends, self.device, self.threads)?;
        match peers {
            Some(peers) => {
                self.hold_contests(shell, &programs, &backends, &peers, smollm2.as_deref())
            }
            None => self.measure_growth(shell, &programs, &backends),
        }
    }

    fn holds(&self, name: Name) -> bool {
        self.peers && (self.contests.is_empty() || self.contests.contains(&name))
    }

    fn hold_contests(
        &self,
        shell: &Shell,
        programs: &Programs<'_>,
        backends: &[Backend],
        peers: &Found,
        smollm2: Option<&Path>,
    ) -> Result<()> {
        let ours = backends.iter().copied().map(Program::Ours);
        let all_of = |task: Task| {
            let peers = task.peers(&peers.environments).into_iter();
            let peers = peers.filter(|peer| self.device.has(*peer));
            ours.clone().chain(peers).collect()
        };
        let dir = tempfile::tempdir().context("cannot make a temporary folder")?;
        let mut contests = Vec::new();
        if self.holds(Name::Projection) {
            contests.extend(CASES.map(|(case, what)| {
                Contest {
                    title: format!("One projection of 512 tokens: {what}"),
                    task: Task::Projection,
                    precision: Precision::Float32,
                    teacher: None,
                    args: ["--case", case, "--steps", &self.steps.to_string()]
                        .map(str::to_owned)
                        .into(),
                    programs: all_of(Task::Projection),
                }
            }));
        }
        let mut step = |title: &str, teacher: &Path, heads, tokens| {
            for precision in &self.precisions {
                let (precision, named) = (*precision, named("--precision", *precision));
                let mut args = step_args(heads, tokens, self.steps);
                args.extend(named.split_whitespace().map(str::to_owned));
                contests.push(Contest {
                    title: match precision {
                        Precision::Float32 => title.to_owned(),
                        Precision::BFloat16 => format!("{title}, products in bfloat16"),
                    },
                    task: Task::Step,
                    precision,
                    teacher: Some(teacher.to_owned()),
                    args,
                    programs: all_of(Task::Step),
                });
            }
        };
        if self.holds(Name::Stories) {
            let teacher = dir.path().display().to_string();
            let args = [&teacher, "--shape", "stories260k"].map(str::to_owned);
            programs.run("random_teacher", &args)?;
            let title =
                "A step of a model shaped as stories260k: 8/4 heads to 4/2, 16 x 128 tokens";
            step(title, dir.path(), [4, 2], [16, 128]);
        }
        if let Some(teacher) = smollm2 {
            let title = "A step of SmolLM2-135M: 9/3 heads to 3/1, 2 x 256 tokens";
            step(title, teacher, [3, 1], [2, 256]);
        }

        let mut outcomes = Vec::new();
        for contest in contests {
            let outcome = contest.run(programs, self.rounds)?;
            println!("\n{outcome}");
            outcomes.push(outcome);
        }
        println!("{peers}");
        let tables: Vec<String> = outcomes.iter().map(ToString::to_string).collect();
        let text = format!("{peers}\n{}", tables.join("\n"));
        let environments = peers.environments.iter().map(|peers| &peers.versions);
        let all = json!({
            "settings": self.settings(),
            "peers": environments.collect::<Vec<_>>(),
            "left_out": peers.left_out,
            "contests": outcomes.iter().map(|outcome| outcome.to_json()).collect::<Vec<_>>(),
        });
        self.keep(
            shell,
            "peers",
            &all,
            &self.page("Ours and the peers", &text),
        )?;
        Ok(())
    }

    fn measure_growth(
        &self,
        shell: &Shell,
        programs: &Programs<'_>,
        backends: &[Backend],
    ) -> Result<()> {
        let mut growth = growth::run(programs, backends, self.steps, self.values)?;
        growth["settings"] = self.settings();
        let table = growth::table(&growth);
        println!("\n{table}");
        let page = self.page("How a step grows", &table);
        if let Some(path) = self.keep(shell, "growth", &growth, &page)? {
            growth::plot(programs, shell, &path, &path.with_extension("svg"))?;
        }
        Ok(())
    }

    fn settings(&self) -> Value {
        json!({
            "rounds": self.peers.then_some(self.rounds),
            "steps": self.steps,
            "warm_up": WARM_UP,
            "threads": self.threads,
            "profile": self.profile,
        })
    }

    /// A page of results, which says what made it.
    fn page(&self, title: &str, tables: &str) -> String {
        let device = self.write.as_deref().unwrap_or("this device");
        let contests = self.contests.iter().map(|one| named("--contest", *one));
        let backends = self.backends.iter().map(|one| named("--backend", *one));
        let precisions = match self.precisions.as_slice() {
            [Precision::Float32] => &[],
            some => some,
        };
        let precisions = precisions.iter().map(|one| named("--precision", *one));
        let peers_on = (self.device != Device::Cpu).then(|| named("--device", self.device));
        let values = self.values.map(|values| format!(" --values {values}"));
        let steps = (self.steps != STEPS).then(|| format!(" --steps {}", self.steps));
        let chosen = contests
            .chain(backends)
            .chain(precisions)
            .chain(peers_on)
            .chain(values)
            .chain(steps);
        let chosen: String = chosen.collect();
        let (what, rounds) = match self.peers {
            true => ("peers", format!(", {} rounds", self.rounds)),
            false => ("growth", String::new()),
        };
        let Self {
            steps,
            threads,
            profile,
            ..
        } = self;
        format!(
            "# {title}: {device}\n\n`cargo xtask bench --{what}{chosen} --write {device}`: medians, least and \
             greatest in brackets{rounds}; {steps} steps a run, of which the first {WARM_UP} warm up; \
             {threads} threads; profile {profile}. Peaks are of resident memory.\n\n{tables}"
        )
    }

    /// Writes results, if they are to be kept. Returns the file of the numbers.
    fn keep(&self, shell: &Shell, what: &str, all: &Value, page: &str) -> Result<Option<PathBuf>> {
        let Some(device) = &self.write else {
            return Ok(None);
        };
        let path = Path::new(RESULTS).join(format!("{device}-{what}.json"));
        shell.write_file(&path, format!("{all:#}\n"))?;
        shell.write_file(path.with_extension("md"), page)?;
        println!("written: {} and the page beside it", path.display());
        Ok(Some(path))
    }
}

/// What tells a program of a step where its teacher is.
fn teacher_args(dir: &Path) -> [String; 2] {
    ["--teacher".to_owned(), dir.display().to_string()]
}

/// ` --option value`, as it is written on a command line.
fn named(option: &str, value: impl ValueEnum) -> String {
    let value = value.to_possible_value();
    value.map_or_else(String::new, |value| {
        format!(" {option} {}", value.get_name())
    })
}

/// The names of `benches/src/projection.rs`, and what they mean.
const CASES: [(&str, &str); 5] = [
    ("smol_q_factored", "SmolLM2's query, factored"),
    ("smol_out_factored", "SmolLM2's output, factored"),
    ("smol_q_general", "SmolLM2's query, general"),
    ("llama8b_q_factored", "Llama-3.1-8B's query, factored"),
    ("llama8b_out_factored", "Llama-3.1-8B's output, factored"),
];

/// What the programs of a step are called with, besides the teacher.
fn step_args(
    [heads, kv_heads]: [usize; 2],
    [batch_size, seq_len]: [usize; 2],
    steps: usize,
) -> Vec<String> {
    let numbers = [
        ("--heads", heads),
        ("--kv-heads", kv_heads),
        ("--batch-size", batch_size),
        ("--seq-len", seq_len),
        ("--steps", steps),
    ];
    let numbers = numbers.into_iter();
    let numbers = numbers.flat_map(|(name, value)| [name.to_owned(), value.to_string()]);
    numbers.collect()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: BenchArgs,
    }

    fn parse(line: &[&str]) -> Result<BenchArgs, String> {
        let line = Line::try_parse_from([&["bench"], line].concat());
        line.map(|line| line.args)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn without_a_measurement_all_goes_to_the_benches() {
        let args = parse(&["step", "--quick", "--save-baseline", "x"]).unwrap();
        assert!(!args.measures());
        assert_eq!(
            args.commands()[0].line().unwrap(),
            "cargo bench --package burn-lti-benches --bench '*' -- step --quick --save-baseline x"
        );
        assert!(parse(&["--quick"]).is_ok());
    }

    #[test]
    fn a_measurement_has_options_of_its_own() {
        let args = parse(&["--peers", "--contest", "smollm2", "--rounds", "3"]).unwrap();
        assert!(args.measures() && args.commands().is_empty());
        assert!(args.holds(Name::Smollm2) && !args.holds(Name::Projection));
        assert_eq!((args.rounds, args.steps, args.threads), (3, 7, 2));
        for refused in [
            &["--peers", "--growth"][..],
            &["--peers", "step"],
            &["--growth", "--rounds", "3"],
            &["--peers", "--values", "2"],
            &["--rounds", "3"],
        ] {
            assert!(parse(refused).is_err(), "{refused:?}");
        }
        assert!(parse(&["--growth", "--values", "2"]).is_ok());
    }

    #[test]
    fn the_cases_are_those_of_the_programs() {
        let ours = include_str!("../../../benches/src/projection.rs");
        let peers = include_str!("../../../benches/peers/common.py");
        for (case, _) in CASES {
            let name = format!("\"{case}\"");
            assert!(ours.contains(&name) && peers.contains(&name), "{case}");
        }
    }

    #[test]
    fn a_page_says_what_made_it() {
        let args = parse(&["--peers", "--write", "two-cores"]).unwrap();
        let page = args.page("Ours and the peers", "| table |");
        assert!(
            page.starts_with("# Ours and the peers: two-cores\n"),
            "{page}"
        );
        assert!(page.contains("`cargo xtask bench --peers --write two-cores`"));
        let args = parse(&["--peers", "--contest", "stories", "--backend", "flex"]).unwrap();
        let chosen = "`cargo xtask bench --peers --contest stories --backend flex --write";
        assert!(args.page("", "").contains(chosen));
        let args = parse(&["--growth", "--steps", "5"]).unwrap();
        assert!(
            args.page("", "")
                .contains("bench --growth --steps 5 --write")
        );
        assert!(page.contains("5 rounds") && page.ends_with("| table |"));
    }
}
