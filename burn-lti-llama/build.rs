//! Tells the program what it is built from: the compiler, and the revision of its sources.
//!
//! Where there is no git, or the sources are in no repository, the revision stays unknown.

use std::env;
use std::path::Path;
use std::process::Command;

/// What the program is made of, as seen from this package. A package on its own has not all of it.
const SOURCES: [&str; 7] = [
    "build.rs",
    "src",
    "Cargo.toml",
    "../burn-lti/src",
    "../burn-lti/Cargo.toml",
    "../Cargo.toml",
    "../Cargo.lock",
];

fn main() {
    for source in sources() {
        watch(source);
    }
    if let Some(rustc) = rustc() {
        println!("cargo::rustc-env=BURN_LTI_RUSTC={rustc}");
    }
    if let Some((revision, changes)) = revision() {
        println!("cargo::rustc-env=BURN_LTI_REVISION={revision}");
        println!("cargo::rustc-env=BURN_LTI_UNCOMMITTED_CHANGES={changes}");
    }
}

fn sources() -> impl Iterator<Item = &'static str> {
    SOURCES.into_iter().filter(|path| Path::new(path).exists())
}

/// To cargo, a watched path that is not there has changed in every build: watch none such.
fn watch(path: &str) {
    println!("cargo::rerun-if-changed={path}");
}

fn rustc() -> Option<String> {
    output(Command::new(env::var_os("RUSTC")?).arg("--version"))
}

/// The revision, and whether the sources differ from it.
fn revision() -> Option<(String, bool)> {
    // A package unpacked in somebody's repository is not of that repository's revision.
    git(&["ls-files", "--error-unmatch", "build.rs"])?;
    // A commit moves HEAD or the branch it names; its log grows in either case.
    for file in ["HEAD", "logs/HEAD"] {
        let path = git(&["rev-parse", "--git-path", file])?;
        if Path::new(&path).exists() {
            watch(&path);
        }
    }
    let revision = git(&["rev-parse", "HEAD"])?;
    let status = ["--no-optional-locks", "status", "--porcelain", "--"];
    let arguments: Vec<&str> = status.into_iter().chain(sources()).collect();
    Some((revision, !git(&arguments)?.is_empty()))
}

fn git(arguments: &[&str]) -> Option<String> {
    output(Command::new("git").args(arguments))
}

fn output(command: &mut Command) -> Option<String> {
    let output = command.output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}
