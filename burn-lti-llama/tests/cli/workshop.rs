//! A folder to run the command in.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

/// A folder with the tiny teacher, a word tokenizer for it, text, and a recipe.
pub(crate) struct Workshop {
    dir: TempDir,
}

/// From a start that needs no text; `start.rs` is about the other.
pub(crate) const RECIPE: &str = r#"
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
steps = 4
batch_size = 2
seq_len = 16
learning_rate = 1e-2
[data]
train = ["train.txt"]
valid = ["valid.txt"]
"#;

impl Workshop {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let teacher = dir.path().join("teacher");
        fs::create_dir(&teacher).unwrap();
        let fixture =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/tiny_llama/tied");
        for file in ["config.json", "model.safetensors"] {
            fs::copy(fixture.join(file), teacher.join(file)).unwrap();
        }
        fs::write(teacher.join("tokenizer.json"), tokenizer()).unwrap();
        let special = r#"{"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": true}"#;
        fs::write(teacher.join("tokenizer_config.json"), special).unwrap();
        fs::write(dir.path().join("train.txt"), text(0, 40)).unwrap();
        fs::write(dir.path().join("valid.txt"), text(1, 10)).unwrap();
        fs::write(dir.path().join("recipe.toml"), RECIPE).unwrap();
        Self { dir }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_burn-lti"));
        command.args(arguments).current_dir(self.dir.path());
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// What a run prints that must succeed.
    pub(crate) fn succeed(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {errors}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// What a run complains of that must fail, without a panic.
    pub(crate) fn fail(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let errors = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success(), "{arguments:?} succeeded");
        assert!(!errors.contains("panicked"), "{errors}");
        errors
    }

    pub(crate) fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.succeed(arguments)).unwrap()
    }
}

/// Words `w3` to `w60` after the three special tokens: as many as the tiny teacher's vocabulary.
fn tokenizer() -> String {
    let special = ["<unk>", "<s>", "</s>"];
    let mut vocab = serde_json::Map::new();
    for (id, token) in special.iter().enumerate() {
        vocab.insert((*token).to_owned(), id.into());
    }
    for id in 3..61 {
        vocab.insert(format!("w{id}"), id.into());
    }
    let added: Vec<Value> = special
        .iter()
        .enumerate()
        .map(|(id, token)| {
            serde_json::json!({"id": id, "content": token, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": true})
        })
        .collect();
    serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": null, "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"}
    })
    .to_string()
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
