//! What the user has: a teacher, texts and recipes, and a run with checkpoints.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::inspect::files_in;
use super::process::Program;

/// From a start that needs no text.
const RECIPE: &str = r#"
[teacher]
path = "teacher"
[student]
heads = 2
kv_heads = 1
[lti]
start = "grouped"
map = "factored"
train = "maps"
[train]
steps = 24
batch_size = 4
seq_len = 16
learning_rate = 1e-2
checkpoint_every = 3
log_every = 2
[data]
train = ["train.txt"]
valid = ["valid.txt"]
"#;

/// A folder with all that commands read. It is made out of a fixture of this repository.
pub(super) struct Workshop {
    dir: TempDir,
    files: BTreeMap<PathBuf, Vec<u8>>,
}

impl Workshop {
    pub(super) fn new(root: &Path) -> Result<Self> {
        let dir = tempfile::tempdir().context("cannot make a temporary folder")?;
        let teacher = dir.path().join("teacher");
        fs::create_dir(&teacher)?;
        let fixture = root.join("tests/fixtures/tiny_llama/tied");
        for file in ["config.json", "model.safetensors"] {
            let from = fixture.join(file);
            fs::copy(&from, teacher.join(file)).with_context(|| from.display().to_string())?;
        }
        fs::write(teacher.join("tokenizer.json"), tokenizer().to_string())?;
        let special = r#"{"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": true}"#;
        fs::write(teacher.join("tokenizer_config.json"), special)?;
        fs::write(dir.path().join("train.txt"), text(0, 40))?;
        fs::write(dir.path().join("valid.txt"), text(1, 10))?;
        fs::write(dir.path().join("recipe.toml"), RECIPE)?;
        let files = files_in(dir.path())?;
        Ok(Self { dir, files })
    }

    /// Trains a run with checkpoints here, which is the user's from now on.
    pub(super) fn train(&mut self, program: &Program) -> Result<()> {
        let args = ["distill", "recipe.toml", "--out", "run"].map(str::to_owned);
        let ended = program.run(&args)?;
        ensure!(
            ended.succeeded(),
            "the run that others read cannot be made: {ended}"
        );
        self.files = files_in(self.path())?;
        Ok(())
    }

    pub(super) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// What is not as the user left it, file by file.
    pub(super) fn changed(&self) -> Result<Vec<String>> {
        let now = files_in(self.path())?;
        let mut changed = Vec::new();
        for (file, bytes) in &self.files {
            match now.get(file) {
                None => changed.push(format!("{} is gone", file.display())),
                Some(found) if found != bytes => {
                    changed.push(format!("{} is another", file.display()))
                }
                Some(_) => {}
            }
        }
        let new = now.keys().filter(|file| !self.files.contains_key(*file));
        changed.extend(new.map(|file| format!("{} was put there", file.display())));
        Ok(changed)
    }

    /// Puts everything back, so that one loss is counted once.
    pub(super) fn mend(&self) -> Result<()> {
        for file in files_in(self.path())?.keys() {
            if !self.files.contains_key(file) {
                fs::remove_file(self.path().join(file))?;
            }
        }
        for (file, bytes) in &self.files {
            fs::write(self.path().join(file), bytes)?;
        }
        Ok(())
    }
}

/// Pairs of bytes, which GGUF has a form for: three special tokens, what a word is made of, and all numbers of two
/// digits that the tiny teacher's vocabulary has room for.
fn tokenizer() -> Value {
    let special = ["<unk>", "<s>", "</s>"];
    let digits = (0..10).map(|digit| digit.to_string());
    let pairs: Vec<[u32; 2]> = (1..5).flat_map(|a| (0..10).map(move |b| [a, b])).collect();
    let numbers = pairs.iter().map(|[a, b]| format!("{a}{b}"));
    let pieces = ["w", "\u{120}", "\u{120}w"].map(str::to_owned);
    let all = special.map(str::to_owned).into_iter().chain(pieces);
    let vocab: serde_json::Map<String, Value> = all
        .chain(digits)
        .chain(numbers)
        .zip(0u32..)
        .map(|(token, id)| (token, Value::from(id)))
        .collect();
    let merges = pairs.iter().map(|[a, b]| format!("{a} {b}"));
    let merges: Vec<String> = [String::from("\u{120} w")]
        .into_iter()
        .chain(merges)
        .collect();
    let added: Vec<Value> = special
        .iter()
        .enumerate()
        .map(|(id, token)| {
            json!({"id": id, "content": token, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": true})
        })
        .collect();
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
        "use_regex": true});
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": null, "pre_tokenizer": bytes, "post_processor": null, "decoder": bytes,
        "model": {"type": "BPE", "vocab": vocab, "merges": merges}
    })
}

/// Lines of words, no two alike.
fn text(seed: usize, lines: usize) -> String {
    let word = |i: usize| format!("w{}", 3 + (i * i + 7 * i + seed) % 58);
    let line = |l: usize| {
        let words: Vec<String> = (0..5 + l % 13).map(|i| word(31 * l + i)).collect();
        words.join(" ") + "\n"
    };
    (0..lines).map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lost_changed_or_put_there_is_found_and_mended() {
        let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
        let workshop = Workshop::new(root).unwrap();
        assert_eq!(workshop.changed().unwrap(), [""; 0]);
        fs::remove_file(workshop.path().join("train.txt")).unwrap();
        fs::write(workshop.path().join("teacher/config.json"), "{}").unwrap();
        fs::write(workshop.path().join("left.tmp"), "").unwrap();
        assert_eq!(
            workshop.changed().unwrap(),
            [
                "teacher/config.json is another",
                "train.txt is gone",
                "left.tmp was put there"
            ]
        );
        workshop.mend().unwrap();
        assert_eq!(workshop.changed().unwrap(), [""; 0]);
    }
}
