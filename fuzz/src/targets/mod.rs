//! The targets: one for each kind of file that burn-lti reads, and for what the command line hands on.

mod cache;
mod checkpoint;
mod gguf;
mod settings;
mod start;
mod text;
mod tokenizer;
mod weights;

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

pub use cache::{cache_index, cache_shard};
pub use checkpoint::{checkpoint_optimizer, checkpoint_state, checkpoint_trained};
pub use gguf::gguf;
pub use settings::{config, manifest, metrics, overrides, recipe, shard_size};
pub use start::start;
pub use text::{columns, csv_table, json_lines, json_list, packed_gzip, packed_zstd, text_lines};
pub use tokenizer::{chat_template, tokenizer, tokenizer_config};
pub use weights::{tensor_file, weights, weights_index};

/// The seeds of a target that are files of the repository: all of `fuzz/seeds/NAME`.
fn seeds(name: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("seeds")
        .join(name);
    let found = files_of(&folder);
    assert!(!found.is_empty(), "{} holds no seed", folder.display());
    found
}

/// Those of a target whose other seeds are made by what writes such files: there may be none.
fn more_seeds(name: &str) -> Vec<Vec<u8>> {
    files_of(
        &Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("seeds")
            .join(name),
    )
}

fn files_of(folder: &Path) -> Vec<Vec<u8>> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    let read = |path: &PathBuf| fs::read(path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
    paths.iter().map(read).collect()
}

/// A folder for the files of a target, in memory where the system has such a place: a file is written for
/// every execution.
fn folder() -> TempDir {
    let memory = Path::new("/dev/shm");
    let made = match memory.is_dir() {
        true => tempfile::tempdir_in(memory),
        false => tempfile::tempdir(),
    };
    made.expect("a temporary folder")
}

fn write(path: &Path, bytes: &[u8]) {
    fs::write(path, bytes).unwrap_or_else(|error| panic!("{path:?}: {error}"));
}

/// The SHA-256 that is written in a file is that of what stands there now.
fn sealed(text: &[u8], key: &str, hash: &str) -> Vec<u8> {
    let mut value: serde_json::Value = serde_json::from_slice(text).expect("a file of our own");
    let place = value.pointer_mut(key).expect("a hash");
    *place = hash.into();
    value.to_string().into_bytes()
}
