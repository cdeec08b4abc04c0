//! The suites of `cargo xtask test`, as steps of one build.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;

use crate::backend::{Backend, feature_args};
use crate::chaos;
use crate::step::{Step, cargo};

/// Every package with a test, and its folder. All cargo calls name all of them, because the choice of
/// packages decides the features of what they share: with another choice cargo would build Burn again.
const PACKAGES: [(&str, &str); 5] = [
    ("burn-lti", "burn-lti"),
    ("burn-lti-llama", "burn-lti-llama"),
    ("burn-lti-tests", "tests"),
    ("burn-lti-benches", "benches"),
    ("burn-lti-fuzz", "fuzz"),
];
/// The folder in `tests/tests` that is the suite `laws`.
const LAWS: &str = "laws";
/// The file in `tests/tests` that is the suite `parity`.
const PARITY: &str = "reference_parity";
/// The file in `tests/tests` that is the suite `real`.
const REAL: &str = "real_teacher";
/// The kills of the suite `chaos`: with all else that it does some 20 seconds.
const KILLS: &str = "20";
/// What the suite `real` reads, beside the repository.
const REAL_INPUT: [&str; 2] = ["../shared/teachers/stories260k", "../shared/data/stories"];

/// A part of the tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Suite {
    /// The tests inside the crates, of the command, and the examples in the documents.
    Unit,
    /// The laws that hold on every backend.
    Laws,
    /// The comparison with what the reference computed.
    Parity,
    /// A trained teacher; needs `../shared` beside the repository.
    Real,
    /// A few kills, full disks and other mishaps of every command that writes.
    Chaos,
    /// All of these.
    All,
}

/// What needs nothing but this repository.
pub(crate) const DEFAULT: [Suite; 4] = [Suite::Unit, Suite::Laws, Suite::Parity, Suite::Chaos];

/// The steps of `suites` on `backends`, the build first. `root` is the repository.
pub(crate) fn steps(suites: &[Suite], backends: &[Backend], root: &Path) -> Result<Vec<Step>> {
    let mut suites = match suites.contains(&Suite::All) {
        true => [&DEFAULT[..], &[Suite::Real]].concat(),
        false => suites.to_vec(),
    };
    suites.sort();
    suites.dedup();
    if suites.contains(&Suite::Real) {
        check_real_input(root)?;
    }

    let mut steps = vec![test("build", backends).with_args(["--no-run"])];
    for suite in suites {
        match suite {
            Suite::Unit => steps.extend(unit(backends, root)?),
            Suite::Laws => steps.extend(on_each("laws", LAWS, backends, &[])),
            // What these two measure is worth reading.
            Suite::Parity => steps.extend(on_each("parity", PARITY, backends, &["--nocapture"])),
            Suite::Real => {
                // One after another: each uses all cores, and its time is printed.
                let options = ["--nocapture", "--test-threads", "1"];
                steps.extend(on_each("real", REAL, backends, &options));
            }
            Suite::Chaos => steps.push(few_kills()),
            Suite::All => {}
        }
    }
    Ok(steps)
}

/// The cargo command that all steps have in common, up to which tests.
fn test(part: &str, backends: &[Backend]) -> Step {
    let packages = PACKAGES
        .into_iter()
        .flat_map(|(name, _)| ["--package", name]);
    cargo(part, ["test"])
        .with_args(packages)
        .with_args(feature_args(backends))
}

/// The suite `unit`, whose tests choose their backends themselves.
fn unit(backends: &[Backend], root: &Path) -> Result<[Step; 2]> {
    let mut targets = Vec::new();
    for (_, folder) in PACKAGES {
        targets.extend(test_targets(&root.join(folder))?);
    }
    targets.retain(|name| ![LAWS, PARITY, REAL].contains(&name.as_str()));
    let targets = targets.iter().flat_map(|name| ["--test", name]);
    // Cargo runs the examples in documents only by themselves.
    Ok([
        test("unit", backends)
            .with_args(["--no-fail-fast", "--lib"])
            .with_args(targets)
            .testing("any", false),
        test("unit: examples", backends)
            .with_args(["--no-fail-fast", "--doc"])
            .testing("any", false),
    ])
}

/// The suite `chaos`, with the program that the build has made for the tests of the command.
fn few_kills() -> Step {
    let program = chaos::program_of_tests().display().to_string();
    let chaos = [
        "run",
        "--quiet",
        "--package",
        "xtask",
        "--",
        "chaos",
        "--kills",
        KILLS,
        "--command",
    ];
    cargo("chaos", chaos).with_args([program])
}

/// One step for each of `backends`, and one for the tests that belong to none.
fn on_each(suite: &str, target: &str, backends: &[Backend], options: &[&str]) -> Vec<Step> {
    let step = || test(suite, backends).with_args(["--test", target, "--"]);
    let mut steps: Vec<_> = backends
        .iter()
        .map(|backend| {
            let step = step()
                .with_args([backend.filter()])
                .with_args(options.iter().copied());
            step.testing(backend.name(), true)
        })
        .collect();
    let all = Backend::value_variants().iter();
    let mut filters: Vec<_> = all.map(|backend| backend.filter()).collect();
    filters.dedup(); // wgpu and webgpu have the same
    let skipped = filters.into_iter().flat_map(|filter| ["--skip", filter]);
    let any = step().with_args(skipped).with_args(options.iter().copied());
    steps.push(any.testing("any", false));
    steps
}

/// The names of a package's test programs: the files in its folder `tests`, and the folders there
/// that have a `main.rs`.
fn test_targets(package: &Path) -> Result<Vec<String>> {
    let folder = package.join("tests");
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let read = || fs::read_dir(&folder)?.collect::<Result<Vec<_>, _>>();
    let entries = read().with_context(|| format!("cannot read {}", folder.display()))?;
    let paths = entries.iter().map(|entry| entry.path());
    let targets = paths.filter(|path| match path.is_dir() {
        true => path.join("main.rs").exists(),
        false => path.extension().is_some_and(|extension| extension == "rs"),
    });
    let names = targets.filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned()));
    let mut names: Vec<_> = names.collect();
    names.sort();
    Ok(names)
}

/// Found out before anything is built for it.
fn check_real_input(root: &Path) -> Result<()> {
    for input in REAL_INPUT {
        ensure!(
            root.join(input).exists(),
            "the suite `real` needs {input}, counted from the repository, and it is not there; \
             `cargo xtask ci --without-real` leaves the suite out"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMON: &str = "cargo test --package burn-lti --package burn-lti-llama \
                          --package burn-lti-tests --package burn-lti-benches \
                          --package burn-lti-fuzz \
                          --features burn-lti-tests/tch";

    fn repository() -> &'static Path {
        Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
    }

    fn lines(suites: &[Suite]) -> Vec<String> {
        let steps = steps(suites, &[Backend::Flex, Backend::Tch], repository()).unwrap();
        steps.iter().map(|step| step.line().unwrap()).collect()
    }

    #[test]
    fn one_build_serves_all_suites() {
        let lines = lines(&DEFAULT);
        assert_eq!(lines[0], format!("{COMMON} --no-run"));
        let (last, tests) = lines.split_last().unwrap();
        assert!(
            tests.iter().all(|line| line.starts_with(COMMON)),
            "{lines:#?}"
        );
        assert!(last.contains(" chaos --kills 20 --command "), "{last}");
        assert!(last.ends_with("debug/burn-lti"), "{last}");
    }

    #[test]
    fn a_suite_runs_once_on_each_backend_and_once_on_none() {
        let skips = ["flex", "ndarray", "tch", "wgpu", "cuda", "rocm", "cpu"];
        let skips = skips.map(|name| format!(" --skip on_{name}::")).concat();
        let laws = format!("{COMMON} --test laws --");
        assert_eq!(
            lines(&[Suite::Laws, Suite::Laws])[1..],
            [
                format!("{laws} on_flex::"),
                format!("{laws} on_tch::"),
                format!("{laws}{skips}"),
            ]
        );
        let parity = &lines(&[Suite::Parity])[2];
        assert!(
            parity.ends_with("--test reference_parity -- on_tch:: --nocapture"),
            "{parity}"
        );
    }

    #[test]
    fn every_test_program_belongs_to_a_suite() {
        let unit = lines(&[Suite::Unit]);
        assert!(unit[1].contains(" --lib --test cli"), "{}", unit[1]);
        assert!(
            !unit[1].contains(LAWS) && unit[2].ends_with(" --doc"),
            "{unit:#?}"
        );
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(test_targets(dir.path()).unwrap(), [""; 0]);
        let tests = dir.path().join("tests");
        for folder in ["tree", "data"] {
            fs::create_dir_all(tests.join(folder)).unwrap();
        }
        for file in [
            "tree/main.rs",
            "tree/part.rs",
            "file.rs",
            "data/x.rs",
            "note.md",
        ] {
            fs::write(tests.join(file), "").unwrap();
        }
        assert_eq!(test_targets(dir.path()).unwrap(), ["file", "tree"]);
    }

    #[test]
    fn the_suite_real_says_what_it_needs() {
        let dir = tempfile::tempdir().unwrap();
        let error = steps(
            &[Suite::All],
            &[Backend::Flex],
            &dir.path().join("repository"),
        );
        let error = error.unwrap_err().to_string();
        assert!(
            error.contains("../shared/teachers") && error.contains("--without-real"),
            "{error}"
        );
    }
}
