//! `cargo xtask licences`: whether every crate that a build may hold is under a licence that this project can be
//! given away with.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use spdx::{Expression, ParseMode};
use xshell::Shell;

use crate::programs::cargo;

/// Licences under which a program may be built into another of any licence. MPL-2.0 asks for the source of its own
/// files alone; CDLA-Permissive-2.0 is of data.
const ALLOWED: [&str; 14] = [
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "MPL-2.0",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// What we need of `cargo metadata`.
#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    version: String,
    license: Option<String>,
}

/// Checks all crates of `Cargo.lock` that this system compiles with any feature, and prints how many have which
/// licence.
pub(crate) fn run(shell: &Shell) -> Result<()> {
    let host = host(&shell.cmd("rustc").arg("-vV").quiet().read()?)?;
    let metadata = cargo(shell).args([
        "metadata",
        "--format-version",
        "1",
        "--locked",
        "--all-features",
    ]);
    let metadata = metadata.args(["--filter-platform", &host]).quiet().read()?;
    let Metadata { packages } =
        serde_json::from_str(&metadata).context("cargo metadata is not understood")?;
    let wrong: Vec<String> = packages.iter().filter_map(Package::wrong).collect();
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for package in &packages {
        *counts
            .entry(package.license.as_deref().unwrap_or("none"))
            .or_default() += 1;
    }
    for (licence, count) in counts {
        println!("{count:>5}  {licence}");
    }
    println!("{:>5}  crates", packages.len());
    ensure!(
        wrong.is_empty(),
        "{}\nleave them out, or add the licence to ALLOWED in xtask/src/licences.rs once somebody has read it",
        wrong.join("\n")
    );
    Ok(())
}

impl Package {
    /// What is wrong with its licence.
    fn wrong(&self) -> Option<String> {
        let Self {
            name,
            version,
            license,
        } = self;
        let Some(license) = license else {
            return Some(format!("{name} {version} names no licence"));
        };
        // Crates from before SPDX have a slash for "or".
        match Expression::parse_mode(license, ParseMode::LAX) {
            Ok(expression) => {
                let is_allowed =
                    expression.evaluate(|licence| ALLOWED.contains(&&*licence.to_string()));
                (!is_allowed).then(|| format!("{name} {version} is under {license}"))
            }
            Err(_) => Some(format!(
                "{name} {version} is under {license}, which is no SPDX expression"
            )),
        }
    }
}

/// The system in what `rustc -vV` says.
fn host(said: &str) -> Result<String> {
    let host = said.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host
        .context("rustc does not say which system it is for")?
        .to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(license: Option<&str>) -> Option<String> {
        let package = Package {
            name: "a".to_owned(),
            version: "1.0.0".to_owned(),
            license: license.map(str::to_owned),
        };
        package.wrong()
    }

    #[test]
    fn one_of_several_licences_is_enough_and_all_of_those_that_are_joined() {
        for allowed in [
            "MIT",
            "MIT/Apache-2.0",
            "GPL-3.0-only OR MIT",
            "(MIT OR Apache-2.0) AND Unicode-3.0",
            "Apache-2.0 WITH LLVM-exception",
        ] {
            assert_eq!(wrong(Some(allowed)), None, "{allowed}");
        }
        for refused in [
            "GPL-3.0-only",
            "MIT AND AGPL-3.0-only",
            "mine",
            "MIT WITH LLVM-exception",
        ] {
            let said = wrong(Some(refused)).expect("a licence that is refused");
            assert!(said.contains("a 1.0.0") && said.contains(refused), "{said}");
        }
        assert!(wrong(None).is_some_and(|said| said.contains("no licence")));
    }

    #[test]
    fn the_system_is_the_compilers() {
        assert_eq!(
            host("rustc 1.92.0\nhost: x86_64-unknown-linux-gnu\n").unwrap(),
            "x86_64-unknown-linux-gnu"
        );
        assert!(host("").is_err());
    }
}
