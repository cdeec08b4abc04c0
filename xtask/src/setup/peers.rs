//! Python environments with what this project is compared with.

use std::fmt;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use xshell::{Shell, cmd};

use crate::cache::Cache;

use super::python::{self, PYTHON};
use super::{Component, report};

/// The PyTorch whose libtorch is that of `tch`, transformers, and JAX.
pub(crate) const PEERS: Venv = Venv {
    component: Component::Peers,
    what: "PyTorch, transformers and JAX",
    requirements: include_str!("../../requirements/peers.txt"),
    imports: "import accelerate, gguf, jax, numpy, safetensors.torch, torch, transformers; \
              print('torch', torch.__version__, 'transformers', transformers.__version__, \
              'jax', jax.__version__)",
};

/// The newest PyTorch, and the same transformers.
pub(crate) const NEWEST: Venv = Venv {
    component: Component::PeersNewest,
    what: "the newest PyTorch",
    requirements: include_str!("../../requirements/peers-newest.txt"),
    imports: "import numpy, safetensors.torch, torch, transformers; \
              print('torch', torch.__version__, 'transformers', transformers.__version__)",
};

/// The folder's file that tells what the environment was made from. An environment cannot be renamed:
/// its scripts have the path in them. So a file marks a complete one.
const MARK: &str = "complete.txt";

/// Prints the versions of what is installed; imports none of it, which would take seconds.
const VERSIONS: &str = "import importlib.metadata, json; \
                        print(json.dumps({package.name: package.version \
                        for package in importlib.metadata.distributions()}))";

/// A Python environment that can be set up: in the cache, in a folder named as its component is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Venv {
    component: Component,
    what: &'static str,
    /// What is installed: the file in `xtask/requirements` that is named as the component is.
    requirements: &'static str,
    /// A program that fails if one of them does not work here.
    imports: &'static str,
}

/// An environment that is set up.
#[derive(Clone, Debug)]
pub(crate) struct Peers {
    pub(crate) interpreter: PathBuf,
    pub(crate) versions: Versions,
}

#[cfg(test)]
impl Peers {
    /// Of an environment that says it has these.
    pub(crate) fn of(torch: &str, jax: Option<&str>) -> Self {
        Self {
            interpreter: "python".into(),
            versions: Versions {
                torch: torch.to_owned(),
                transformers: "5.23.0".to_owned(),
                jax: jax.map(str::to_owned),
            },
        }
    }
}

/// What an environment says that it has.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub(crate) struct Versions {
    pub(crate) torch: String,
    pub(crate) transformers: String,
    pub(crate) jax: Option<String>,
}

/// The environments that are set up, and what is left out: a line that says how to have it.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) environments: Vec<Peers>,
    pub(crate) left_out: Vec<String>,
}

/// Looks for both environments. Without [`PEERS`] it is an error.
pub(crate) fn find(shell: &Shell, cache: &Cache) -> Result<Found> {
    let mut found = Found::default();
    found.environments.push(PEERS.find(shell, cache)?);
    match NEWEST.is_complete(cache) {
        true => found.environments.push(NEWEST.find(shell, cache)?),
        false => found.left_out.push(NEWEST.hint()),
    }
    Ok(found)
}

impl Venv {
    /// The environment, if it is set up.
    pub(crate) fn find(&self, shell: &Shell, cache: &Cache) -> Result<Peers> {
        let name = self.component.name();
        ensure!(
            self.is_complete(cache),
            "not set up: {name}; run `cargo xtask setup {name}` first"
        );
        let interpreter = self.interpreter(cache);
        let printed = cmd!(shell, "{interpreter} -c {VERSIONS}").quiet().read()?;
        let versions = serde_json::from_str(&printed);
        let versions = versions.with_context(|| format!("cannot read the versions of {name}"))?;
        Ok(Peers {
            interpreter,
            versions,
        })
    }

    /// What it has, and how to have it.
    fn hint(&self) -> String {
        format!(
            "{}: `cargo xtask setup {}`",
            self.what,
            self.component.name()
        )
    }

    fn interpreter(&self, cache: &Cache) -> PathBuf {
        python::in_venv(&cache.path(self.component.name()))
    }

    fn is_complete(&self, cache: &Cache) -> bool {
        let mark = cache.path(self.component.name()).join(MARK);
        fs::read_to_string(&mark).is_ok_and(|made_from| made_from == self.requirements)
            && self.interpreter(cache).exists()
    }

    /// Sets the environment up. Returns its interpreter.
    pub(super) fn set_up(&self, shell: &Shell, cache: &Cache) -> Result<PathBuf> {
        let Self {
            component,
            what,
            requirements,
            imports,
        } = *self;
        let folder = cache.path(component.name());
        let interpreter = self.interpreter(cache);
        if !self.is_complete(cache) {
            python::require_venv(shell)?;
            cmd!(shell, "{PYTHON} -m venv {folder}").run()?;
            let file = format!("xtask/requirements/{}.txt", component.name());
            cmd!(shell, "{interpreter} -m pip install --requirement {file}").run()?;
            cmd!(shell, "{interpreter} -c {imports}").run()?;
            cache.write(&folder.join(MARK), requirements)?;
        }
        report(component, &format!("a Python with {what}"), &folder);
        println!(
            "a yardstick runs with it as in\n  {} ../shared/yardsticks/torch_lti_layer.py",
            interpreter.display()
        );
        Ok(interpreter)
    }
}

impl Versions {
    /// PyTorch's without its patch: `2.9` of `2.9.0`.
    pub(crate) fn torch_release(&self) -> &str {
        let release = self.torch.rsplit_once('.');
        release.map_or(&self.torch, |(release, _)| release)
    }
}

/// What takes part in which version, and what does not: two paragraphs of a page.
impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let environments = self.environments.iter();
        let versions: Vec<_> = environments
            .map(|peers| peers.versions.to_string())
            .collect();
        writeln!(f, "The peers: {}.", versions.join("; "))?;
        let mut left_out = self.left_out.iter();
        left_out.try_for_each(|what| writeln!(f, "\nLeft out: {what}."))
    }
}

/// `PyTorch 2.9.0, transformers 5.23.0, JAX 0.10.2`
impl fmt::Display for Versions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            torch,
            transformers,
            jax,
        } = self;
        write!(f, "PyTorch {torch}, transformers {transformers}")?;
        jax.iter().try_for_each(|jax| write!(f, ", JAX {jax}"))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// The packages of a file of requirements, and their versions.
    fn pins(venv: Venv) -> BTreeMap<&'static str, &'static str> {
        let lines = venv.requirements.lines();
        let lines = lines.filter(|line| !line.starts_with('#'));
        lines.map(|line| line.split_once("==").unwrap()).collect()
    }

    #[test]
    fn between_the_environments_pytorch_is_what_differs() {
        let (peers, newest) = (pins(PEERS), pins(NEWEST));
        let differ = newest.iter().filter(|(name, pin)| peers[*name] != **pin);
        let differ: Vec<_> = differ.map(|(name, _)| *name).collect();
        assert_eq!(differ, ["torch"]);
        let libtorch = include_str!("../../requirements/libtorch.txt");
        assert!(libtorch.contains(&format!("torch=={} ", peers["torch"])));
    }

    #[test]
    fn what_is_not_set_up_or_made_from_other_pins_is_named() {
        let (dir, shell) = (tempfile::tempdir().unwrap(), Shell::new().unwrap());
        let cache = Cache::at(dir.path().to_owned());
        let error = find(&shell, &cache).unwrap_err().to_string();
        let expected = "not set up: peers; run `cargo xtask setup peers` first";
        assert_eq!(error, expected);

        let interpreter = NEWEST.interpreter(&cache);
        fs::create_dir_all(interpreter.parent().unwrap()).unwrap();
        fs::write(interpreter, "").unwrap();
        let mark = |made_from| cache.write(&cache.path("peers-newest").join(MARK), made_from);
        assert!(!NEWEST.is_complete(&cache));
        mark("torch==2.0.0\n").unwrap();
        assert!(!NEWEST.is_complete(&cache));
        mark(NEWEST.requirements).unwrap();
        assert!(NEWEST.is_complete(&cache) && !PEERS.is_complete(&cache));
    }

    #[test]
    fn a_page_has_the_versions_and_what_is_left_out() {
        let mut found = Found {
            environments: vec![Peers::of("2.9.0", Some("0.10.2"))],
            left_out: vec![NEWEST.hint()],
        };
        assert_eq!(
            found.to_string(),
            "The peers: PyTorch 2.9.0, transformers 5.23.0, JAX 0.10.2.\n\n\
             Left out: the newest PyTorch: `cargo xtask setup peers-newest`.\n"
        );
        found.environments.push(Peers::of("2.15.0", None));
        found.left_out.clear();
        assert_eq!(
            found.to_string(),
            "The peers: PyTorch 2.9.0, transformers 5.23.0, JAX 0.10.2; \
             PyTorch 2.15.0, transformers 5.23.0.\n"
        );
    }

    #[test]
    fn versions_are_read_from_all_that_is_installed() {
        let read = serde_json::from_str::<Versions>;
        let printed = "{\"torch\": \"2.15.0\", \"numpy\": \"2\", \"transformers\": \"5.23.0\"}";
        assert_eq!(read(printed).unwrap(), Peers::of("2.15.0", None).versions);
        assert!(read("{\"torch\": \"2.15.0\"}").is_err());
    }
}
