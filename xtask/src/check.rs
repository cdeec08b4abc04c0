//! What `cargo xtask check` runs: format, spelling, lints, documents, the tests of xtask itself, the
//! library without its command, every feature alone, the features that must not be combined, and licences.

use crate::backend::{Backend, feature_args};
use crate::programs;
use crate::setup::{Component, Installed};
use crate::step::{Step, cargo};

const DENY_WARNINGS: [&str; 3] = ["--", "-D", "warnings"];

/// What differs between systems: which features compile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum System {
    Linux,
    Apple,
    Other,
}

impl System {
    fn here() -> Self {
        match () {
            () if cfg!(target_os = "linux") => Self::Linux,
            () if cfg!(target_vendor = "apple") => Self::Apple,
            () => Self::Other,
        }
    }
}

/// The checks, and what is left out of them. Lints and documents are those of a build with
/// `backends`.
pub(crate) fn steps(
    backends: &[Backend],
    installed: &Installed,
    with_cpu: bool,
) -> (Vec<Step>, Vec<String>) {
    let mut left_out = Vec::new();
    let mut steps = vec![cargo("format", ["fmt", "--all", "--check"])];
    if programs::on_path("typos") {
        let args = ["--config", "xtask/typos.toml"];
        steps.push(cargo("spelling", args).of_program("typos"));
    } else {
        left_out.push("spelling: `cargo install typos-cli`, or `pip install typos`".to_owned());
    }
    let clippy = cargo("clippy", ["clippy", "--workspace", "--all-targets"]);
    steps.push(
        clippy
            .with_args(feature_args(backends))
            .with_args(DENY_WARNINGS),
    );
    // The libraries alone: the program `burn-lti` and the crate `burn_lti` would be documented in the
    // same folder. The same features: what clippy has compiled serves again.
    let documents = cargo("documents", ["doc", "--workspace", "--no-deps", "--lib"]);
    let documents = documents.with_args(feature_args(backends));
    steps.push(documents.with_env("RUSTDOCFLAGS", "-D warnings"));
    // Not with the other tests: its dependencies would add their features to the build of those.
    steps.push(cargo("xtask", ["test", "--package", "xtask"]).testing("any", true));

    let here = System::here();
    steps.push(lint_of("library without its command", &["flex"]));
    let (features, not_here) = alone(here, installed, with_cpu);
    steps.extend(features.into_iter().map(feature_alone));
    left_out.extend(not_here);
    steps.extend(refused(here).map(|(features, saying)| refusal(features, saying)));
    let licences = ["run", "--quiet", "--package", "xtask", "--", "licences"];
    steps.push(cargo("licences", licences));
    (steps, left_out)
}

/// The features that compile on `system`, and a line about each that does not.
fn alone(
    system: System,
    installed: &Installed,
    with_cpu: bool,
) -> (Vec<&'static str>, Vec<String>) {
    let (apple, linux) = (system == System::Apple, system == System::Linux);
    let features = [
        ("flex", true, ""),
        ("ndarray", true, ""),
        (
            "tch",
            installed.has(Component::Tch),
            "`cargo xtask setup tch`",
        ),
        ("wgpu", true, ""),
        ("vulkan", !apple, "not for Apple's systems"),
        ("metal", apple, "for Apple's systems alone"),
        ("webgpu", true, ""),
        ("cuda", !apple, "not for Apple's systems"),
        ("rocm", linux, "for Linux alone"),
        ("cpu", with_cpu, "`--with-cpu`; its build downloads LLVM"),
        // What Burn does beside a backend: nothing of ours depends on it, and each must still compile.
        ("wgpu,fusion,autotune", true, ""),
    ];
    let (compiled, left_out): (Vec<_>, Vec<_>) =
        features.into_iter().partition(|(_, compiles, _)| *compiles);
    let left_out = left_out.into_iter();
    (
        compiled.into_iter().map(|(feature, ..)| feature).collect(),
        left_out
            .map(|(feature, _, why)| format!("{feature} alone: {why}"))
            .collect(),
    )
}

/// `feature` may be several with commas between. The command is linted with it.
fn feature_alone(feature: &str) -> Step {
    let features: Vec<_> = feature.split(',').chain(["cli"]).collect();
    lint_of(&format!("{feature} alone"), &features)
}

/// The lints of both libraries, and of the command if it is among `features`.
fn lint_of(part: &str, features: &[&str]) -> Step {
    // Forwarded to burn-lti.
    let forwarded: Vec<_> = features
        .iter()
        .map(|name| format!("burn-lti-llama/{name}"))
        .collect();
    let packages = ["--package", "burn-lti", "--package", "burn-lti-llama"];
    cargo(part, ["clippy"])
        .with_args(packages)
        .with_args(["--no-default-features", "--features", &forwarded.join(",")])
        .with_args(DENY_WARNINGS)
}

/// Features that burn-lti must refuse on `system`, and words of the error. They are the words of
/// `burn-lti/src/backend.rs`.
fn refused(system: System) -> [(&'static str, &'static str); 2] {
    let both = "enable only one: each selects the shader compiler";
    match system {
        System::Apple => [
            ("metal,webgpu", both),
            ("vulkan", "the feature `vulkan` needs a Vulkan driver"),
        ],
        System::Linux | System::Other => [
            ("vulkan,webgpu", both),
            (
                "metal",
                "the feature `metal` works on Apple's systems alone",
            ),
        ],
    }
}

fn refusal(features: &str, saying: &'static str) -> Step {
    cargo(
        format!("not {features}"),
        ["check", "--package", "burn-lti", "--color", "never"],
    )
    .with_args(["--no-default-features", "--features", features])
    .refused(saying)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: Installed = Installed::NOTHING;
    const ALL: Installed = Installed::ALL;

    #[test]
    fn every_feature_is_compiled_alone_or_named_as_left_out() {
        for system in [System::Linux, System::Apple, System::Other] {
            for (installed, with_cpu) in [(&NOTHING, false), (&ALL, true)] {
                let (compiled, left_out) = alone(system, installed, with_cpu);
                assert_eq!(compiled.len() + left_out.len(), 11);
            }
        }
        let (compiled, left_out) = alone(System::Linux, &ALL, false);
        assert!(compiled.contains(&"tch") && compiled.contains(&"rocm"));
        assert_eq!(left_out.len(), 2, "{left_out:?}");
        let (compiled, left_out) = alone(System::Apple, &NOTHING, false);
        assert_eq!(
            compiled,
            [
                "flex",
                "ndarray",
                "wgpu",
                "metal",
                "webgpu",
                "wgpu,fusion,autotune"
            ]
        );
        assert!(left_out.contains(&"tch alone: `cargo xtask setup tch`".to_owned()));
    }

    #[test]
    fn a_feature_alone_has_no_default_ones_beside_it() {
        assert_eq!(
            feature_alone("cuda").line().unwrap(),
            "cargo clippy --package burn-lti --package burn-lti-llama --no-default-features \
             --features 'burn-lti-llama/cuda,burn-lti-llama/cli' -- -D warnings"
        );
    }

    #[test]
    fn the_library_is_linted_without_its_command() {
        let (steps, _) = steps(&[Backend::Flex], &ALL, false);
        let lines: Vec<_> = steps.iter().filter_map(|step| step.line().ok()).collect();
        let alone = "--no-default-features --features burn-lti-llama/flex -- -D warnings";
        assert!(lines.iter().any(|line| line.ends_with(alone)), "{lines:#?}");
    }

    #[test]
    fn licences_are_looked_at_last() {
        let (steps, _) = steps(&[Backend::Flex], &ALL, false);
        let last = steps.last().and_then(|step| step.line().ok());
        assert_eq!(
            last.as_deref(),
            Some("cargo run --quiet --package xtask -- licences")
        );
    }

    #[test]
    fn lints_and_documents_have_the_same_features() {
        let (steps, _) = steps(&[Backend::Flex, Backend::Tch], &ALL, false);
        for part in ["clippy", "documents"] {
            let step = steps.iter().find(|step| step.part == part).unwrap();
            let line = step.line().unwrap();
            assert!(line.contains("--features burn-lti-tests/tch"), "{line}");
        }
    }

    /// The words are looked for in what the compiler says, long after they were changed.
    #[test]
    fn the_words_of_a_refusal_are_those_in_the_source() {
        let source = include_str!("../../burn-lti/src/backend.rs");
        for (_, saying) in refused(System::Linux)
            .into_iter()
            .chain(refused(System::Apple))
        {
            assert!(source.contains(saying), "{saying}");
        }
    }
}
