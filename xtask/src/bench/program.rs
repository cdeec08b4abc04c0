//! The programs that are measured: ours on a backend, and those of the peers.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use xshell::{Shell, cmd};

use crate::backend::{Backend, feature_args_of};
use crate::programs::cargo;
use crate::setup::libtorch::LIBRARY_PATH;
use crate::setup::peers::Peers;

use super::statistics::Spread;

/// The package of our programs.
const PACKAGE: &str = "burn-lti-benches";
/// Steps that warm caches up and have code compiled; they are no part of a median.
pub(super) const WARM_UP: usize = 2;
/// What tells the libraries of both sides how many threads to compute with.
const THREADS: [&str; 4] = [
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "RAYON_NUM_THREADS",
    "MATMUL_NUM_THREADS",
];

/// What a program printed: `benches/src/measurement.rs`, `benches/peers/common.py`.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Measurement {
    pub(crate) losses: Vec<f64>,
    pub(crate) seconds: Vec<f64>,
    pub(crate) start_peak_mib: Option<f64>,
    pub(crate) step_peak_mib: Option<f64>,
}

impl Measurement {
    /// The last line of `output` that is an object; libraries print before it.
    fn parse(output: &str) -> Result<Self> {
        let mut lines = output.lines().rev();
        let line = lines.find(|line| line.starts_with('{'));
        let line = line.with_context(|| format!("it printed no line of JSON: {output}"))?;
        let measured: Self =
            serde_json::from_str(line).with_context(|| format!("it printed {line}"))?;
        let steps = measured.seconds.len();
        ensure!(
            steps > WARM_UP && measured.losses.len() == steps,
            "it took {steps} steps, and {WARM_UP} are to warm up: {line}"
        );
        Ok(measured)
    }

    /// The median of a step, without those that warm up.
    pub(crate) fn step_seconds(&self) -> Option<f64> {
        let seconds = self.seconds.iter().copied().skip(WARM_UP);
        Some(Spread::of(seconds)?.median)
    }

    /// The most memory of the process, from its start to its end.
    pub(crate) fn peak_mib(&self) -> Option<f64> {
        Some(self.start_peak_mib?.max(self.step_peak_mib?))
    }
}

/// A program that takes the arguments of a task.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Program<'a> {
    /// Ours, on a backend.
    Ours(Backend),
    /// The PyTorch of an environment, one operation at a time.
    Torch(&'a Peers),
    /// The same, by `torch.compile`.
    TorchCompiled(&'a Peers),
    /// The JAX of an environment, compiled.
    Jax(&'a Peers),
}

impl Program<'_> {
    pub(crate) fn name(self) -> String {
        match self {
            Self::Ours(backend) => format!("burn-lti, {}", backend.name()),
            Self::Torch(peers) => format!("PyTorch {}", peers.versions.torch_release()),
            Self::TorchCompiled(peers) => {
                format!("PyTorch {}, compiled", peers.versions.torch_release())
            }
            Self::Jax(_) => "JAX, compiled".to_owned(),
        }
    }

    pub(crate) fn is_ours(self) -> bool {
        matches!(self, Self::Ours(_))
    }
}

/// Where the peers compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Device {
    /// The CPU.
    Cpu,
    /// An NVIDIA GPU: PyTorch alone, since the JAX that is set up has no CUDA.
    Cuda,
}

impl Device {
    fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
        }
    }

    /// Whether `peer` is there.
    pub(crate) fn has(self, peer: Program<'_>) -> bool {
        self == Self::Cpu || !matches!(peer, Program::Jax(_))
    }
}

/// What is measured: the program of ours, and the scripts of the peers, that take the same arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Task {
    Projection,
    Step,
}

impl Task {
    fn ours(self) -> &'static str {
        match self {
            Self::Projection => "one_projection",
            Self::Step => "one_step",
        }
    }

    /// The script for PyTorch.
    fn torch(self) -> &'static str {
        match self {
            Self::Projection => "torch_projection.py",
            Self::Step => "torch_step.py",
        }
    }

    /// What takes it in these environments: PyTorch in each of them, JAX where it is.
    pub(crate) fn peers(self, environments: &[Peers]) -> Vec<Program<'_>> {
        let programs = environments.iter().flat_map(|peers| {
            let torch = Some(Program::Torch(peers));
            match self {
                Self::Projection => {
                    let jax = peers.versions.jax.as_ref();
                    [torch, jax.map(|_| Program::Jax(peers))]
                }
                Self::Step => [torch, Some(Program::TorchCompiled(peers))],
            }
        });
        programs.flatten().collect()
    }
}

/// Starts programs.
pub(crate) struct Programs<'a> {
    shell: &'a Shell,
    /// Ours, by name.
    binaries: BTreeMap<String, PathBuf>,
    /// Of the peers.
    device: Device,
    threads: usize,
}

impl<'a> Programs<'a> {
    /// Builds ours. `shell` has the environment that they need.
    pub(crate) fn build(
        shell: &'a Shell,
        profile: &str,
        backends: &[Backend],
        device: Device,
        threads: usize,
    ) -> Result<Self> {
        let messages = cargo(shell)
            .args([
                "build",
                "--profile",
                profile,
                "--package",
                PACKAGE,
                "--bins",
            ])
            .args(feature_args_of(PACKAGE, backends))
            .arg("--message-format=json-render-diagnostics")
            .read()?;
        Ok(Self {
            shell,
            binaries: executables(&messages),
            device,
            threads,
        })
    }

    /// Runs `program` on `task` in a process of its own.
    pub(crate) fn measure(
        &self,
        program: Program<'_>,
        task: Task,
        args: &[String],
    ) -> Result<Measurement> {
        let mut command = match program {
            Program::Ours(backend) => {
                let mut command = self.binary(task.ours())?;
                command.args(["--backend", backend.name()]);
                command
            }
            Program::Torch(peers) => self.torch(peers, task),
            Program::TorchCompiled(peers) => {
                let mut command = self.torch(peers, task);
                command.arg("--compile");
                command
            }
            // A step is not its task: `Task::peers`.
            Program::Jax(peers) => self.peer(peers, "jax_projection.py"),
        };
        command.args(args);
        let output = output_of(command).and_then(|output| Measurement::parse(&output));
        output.with_context(|| format!("{} failed", program.name()))
    }

    /// Runs a program of ours that measures nothing.
    pub(crate) fn run(&self, name: &str, args: &[String]) -> Result<()> {
        let mut command = self.binary(name)?;
        command.args(args);
        output_of(command).with_context(|| format!("{name} failed"))?;
        Ok(())
    }

    fn binary(&self, name: &str) -> Result<Command> {
        let path = self.binaries.get(name);
        let path = path.with_context(|| format!("cargo built no program {name} in {PACKAGE}"))?;
        let mut command: Command = cmd!(self.shell, "{path}").into();
        self.set_threads(&mut command);
        Ok(command)
    }

    fn torch(&self, peers: &Peers, task: Task) -> Command {
        let mut command = self.peer(peers, task.torch());
        command.args(["--device", self.device.name()]);
        command
    }

    fn peer(&self, peers: &Peers, script: &str) -> Command {
        let script = self.shell.current_dir().join("benches/peers").join(script);
        let mut command = Command::new(&peers.interpreter);
        command.arg(script).env("PYTHONDONTWRITEBYTECODE", "1");
        command.env("HF_HUB_OFFLINE", "1");
        if cfg!(not(windows)) {
            // PyTorch has a libtorch of its own, of another version than ours.
            command.env_remove(LIBRARY_PATH);
        }
        self.set_threads(&mut command);
        command
    }

    fn set_threads(&self, command: &mut Command) {
        for name in THREADS {
            command.env(name, self.threads.to_string());
        }
    }
}

/// What a command printed. What it says of errors is shown if it fails.
fn output_of(mut command: Command) -> Result<String> {
    command.stdin(Stdio::null());
    let program = Path::new(command.get_program()).display().to_string();
    let output = command.output();
    let output = output.with_context(|| format!("cannot start {program}"))?;
    ensure!(
        output.status.success(),
        "{program}: {}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The programs in what `cargo build --message-format json` says.
pub(crate) fn executables(messages: &str) -> BTreeMap<String, PathBuf> {
    let messages = messages.lines();
    let messages = messages.filter_map(|line| serde_json::from_str::<Value>(line).ok());
    messages
        .filter_map(|message| {
            let path = message.get("executable")?.as_str()?;
            let name = message.get("target")?.get("name")?.as_str()?;
            Some((name.to_owned(), path.into()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(losses: &[f64], seconds: &[f64]) -> Result<Measurement> {
        Measurement::parse(&format!(
            "a warning\n{{\"losses\": {losses:?}, \"seconds\": {seconds:?}, \
             \"start_peak_mib\": 5, \"step_peak_mib\": null}}\n"
        ))
    }

    #[test]
    fn the_line_of_json_is_found_and_warming_up_left_out() {
        let measured = printed(&[2.0, 1.5, 1.0, 0.5], &[9.0, 8.0, 1.0, 2.0]).unwrap();
        assert_eq!(measured.losses[0], 2.0);
        assert_eq!(measured.step_seconds(), Some(1.5));
        // What the system does not say is no zero.
        assert_eq!(measured.peak_mib(), None);
        let known = Measurement {
            step_peak_mib: Some(7.0),
            ..measured
        };
        assert_eq!(known.peak_mib(), Some(7.0));
    }

    #[test]
    fn what_measured_nothing_is_an_error() {
        let error = |result: Result<Measurement>| format!("{:#}", result.unwrap_err());
        assert!(error(Measurement::parse("Killed")).contains("no line of JSON: Killed"));
        assert!(error(Measurement::parse("{}")).contains("it printed {}"));
        assert!(error(printed(&[1.0, 1.0], &[1.0, 1.0])).contains("took 2 steps"));
        assert!(error(printed(&[1.0], &[1.0, 1.0, 1.0])).contains("to warm up"));
    }

    #[test]
    fn every_environment_takes_part_with_what_it_has() {
        let environments = [
            Peers::of("2.9.0", Some("0.10.2")),
            Peers::of("2.15.0+cpu", None),
        ];
        let names = |task: Task| {
            let programs = task.peers(&environments).into_iter();
            programs.map(Program::name).collect::<Vec<_>>()
        };
        assert_eq!(
            names(Task::Projection),
            ["PyTorch 2.9", "JAX, compiled", "PyTorch 2.15"]
        );
        assert_eq!(
            names(Task::Step),
            [
                "PyTorch 2.9",
                "PyTorch 2.9, compiled",
                "PyTorch 2.15",
                "PyTorch 2.15, compiled"
            ]
        );
    }

    #[test]
    fn on_a_gpu_pytorch_is_the_only_peer() {
        let peers = &Peers::of("2.9.0", Some("0.10.2"));
        let peers = [Program::Torch, Program::TorchCompiled, Program::Jax].map(|of| of(peers));
        let on = |device: Device| peers.map(|peer| device.has(peer));
        assert_eq!(on(Device::Cpu), [true; 3]);
        assert_eq!(on(Device::Cuda), [true, true, false]);
    }

    #[test]
    fn cargo_says_where_programs_are() {
        let messages = "{\"reason\":\"compiler-artifact\",\"target\":{\"name\":\"one_step\"},\
                        \"executable\":\"/t/one_step\"}\n\
                        {\"reason\":\"compiler-artifact\",\"target\":{\"name\":\"lib\"},\
                        \"executable\":null}\nnot JSON\n{\"reason\":\"build-finished\"}";
        let found = executables(messages);
        assert_eq!(found.len(), 1);
        assert_eq!(found["one_step"], Path::new("/t/one_step"));
    }

    #[cfg(unix)]
    #[test]
    fn what_a_program_says_of_its_failure_is_shown() {
        let sh = |script: &str| {
            let mut command = Command::new("sh");
            command.args(["-c", script]);
            output_of(command)
        };
        assert_eq!(sh("echo yes").unwrap(), "yes\n");
        let error = sh("echo no memory >&2; exit 3").unwrap_err().to_string();
        assert!(
            error.contains("no memory") && error.contains("3"),
            "{error}"
        );
    }
}
