//! A Python environment with what this project is compared with.

use std::fs;
use std::path::PathBuf;

use anyhow::{Result, ensure};
use xshell::{Shell, cmd};

use crate::cache::Cache;

use super::python::{self, PYTHON};
use super::{Component, report};

/// What is installed.
const REQUIREMENTS: &str = include_str!("../../requirements/peers.txt");

/// The folder's file that tells what the environment was made from. An environment cannot be renamed:
/// its scripts have the path in them. So a file marks a complete one.
const MARK: &str = "complete.txt";

/// The interpreter of the environment, which must be set up.
pub(crate) fn find(cache: &Cache) -> Result<PathBuf> {
    let interpreter = python::in_venv(&cache.path("peers"));
    ensure!(
        is_complete(cache) && interpreter.exists(),
        "not set up: peers; run `cargo xtask setup peers` first"
    );
    Ok(interpreter)
}

fn is_complete(cache: &Cache) -> bool {
    let mark = cache.path("peers").join(MARK);
    fs::read_to_string(&mark).is_ok_and(|made_from| made_from == REQUIREMENTS)
}

/// Sets the environment up. Returns its interpreter.
pub(super) fn set_up(shell: &Shell, cache: &Cache) -> Result<PathBuf> {
    let folder = cache.path("peers");
    let interpreter = python::in_venv(&folder);
    if !is_complete(cache) || !interpreter.exists() {
        python::require_venv(shell)?;
        cmd!(shell, "{PYTHON} -m venv {folder}").run()?;
        let requirements = "xtask/requirements/peers.txt";
        cmd!(
            shell,
            "{interpreter} -m pip install --requirement {requirements}"
        )
        .run()?;
        cmd!(shell, "{interpreter} -c {IMPORTS}").run()?;
        cache.write(&folder.join(MARK), REQUIREMENTS)?;
    }
    report(
        Component::Peers,
        "a Python with PyTorch, transformers and JAX",
        &folder,
    );
    println!(
        "a yardstick runs with it as in\n  {} ../shared/yardsticks/torch_lti_layer.py",
        interpreter.display()
    );
    Ok(interpreter)
}

/// Fails if one of them does not work here.
const IMPORTS: &str = "import accelerate, gguf, jax, numpy, safetensors.torch, torch, transformers; \
                       print('torch', torch.__version__, 'transformers', transformers.__version__, \
                       'jax', jax.__version__)";
