//! What is in a folder: whether each file is whole, and whether two are the same.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;
use sha2::{Digest, Sha256};

/// How names begin that are not final: of files, of checkpoints, of a student that was not compared yet.
const NOT_FINAL: [&str; 3] = [".", "writing-step-", "student.unchecked"];

/// All files below a folder by their path in it, or a file itself by an empty path; none where nothing is.
pub(super) fn files_in(folder: &Path) -> Result<BTreeMap<PathBuf, Vec<u8>>> {
    let mut found = BTreeMap::new();
    let mut open = vec![folder.to_owned()];
    while let Some(path) = open.pop() {
        if path.is_dir() {
            for entry in path
                .read_dir()
                .with_context(|| path.display().to_string())?
            {
                open.push(entry?.path());
            }
        } else if path.exists() {
            let bytes = fs::read(&path).with_context(|| path.display().to_string())?;
            found.insert(path.strip_prefix(folder)?.to_owned(), bytes);
        }
    }
    Ok(found)
}

pub(super) fn is_final(file: &Path) -> bool {
    let mut parts = file
        .components()
        .map(|part| part.as_os_str().to_string_lossy());
    parts.all(|part| !NOT_FINAL.iter().any(|start| part.starts_with(start)))
}

/// What shows that a file is not whole.
pub(super) fn wrong_in(file: &Path, bytes: &[u8]) -> Option<String> {
    if bytes.is_empty() {
        return Some("it is empty".to_owned());
    }
    match file.extension()?.to_str()? {
        "json" => serde_json::from_slice::<Value>(bytes)
            .err()
            .map(|error| error.to_string()),
        "jsonl" => match bytes.ends_with(b"\n") {
            true => wrong_in_log(bytes),
            false => Some("its last line has no end".to_owned()),
        },
        "toml" => {
            let text = String::from_utf8_lossy(bytes);
            text.parse::<toml::Table>()
                .err()
                .map(|error| error.to_string())
        }
        "safetensors" => tensors(bytes).err().map(|error| error.to_string()),
        "svg" if !bytes.trim_ascii_end().ends_with(b"</svg>") => Some("it has no end".to_owned()),
        "csv" | "md" if !bytes.ends_with(b"\n") => Some("its last line has no end".to_owned()),
        _ => None,
    }
}

/// Of a file that grows line by line only the last may lack its end.
pub(super) fn wrong_in_log(bytes: &[u8]) -> Option<String> {
    let whole = match bytes.iter().rposition(|byte| *byte == b'\n') {
        Some(end) => &bytes[..end],
        None => return None,
    };
    let mut lines = (1..).zip(whole.split(|byte| *byte == b'\n'));
    let wrong = lines.find(|(_, line)| serde_json::from_slice::<Value>(line).is_err());
    wrong.map(|(number, _)| format!("line {number} is no JSON"))
}

/// What a file says of others beside it, by their hashes, and is not so.
pub(super) fn wrong_beside(
    file: &Path,
    bytes: &[u8],
    files: &BTreeMap<PathBuf, Vec<u8>>,
) -> Option<String> {
    let value: Value = serde_json::from_slice(bytes).ok()?;
    let hashes: Vec<(String, &str)> = match file.file_name()?.to_str()? {
        "state.json" => vec![
            (
                "trained.safetensors".to_owned(),
                value["trained_sha256"].as_str()?,
            ),
            (
                "optimizer.bin".to_owned(),
                value["optimizer_sha256"].as_str()?,
            ),
        ],
        "index.json" => {
            let shards = value["shards"].as_array()?.iter();
            let named = shards.map(|shard| {
                Some((
                    shard["file"].as_str()?.to_owned(),
                    shard["sha256"].as_str()?,
                ))
            });
            named.collect::<Option<_>>()?
        }
        _ => return None,
    };
    let wrong = hashes.into_iter().find(|(name, hash)| {
        let found = files.get(&file.with_file_name(name));
        found.is_none_or(|found| format!("{:x}", Sha256::digest(found)) != **hash)
    });
    wrong.map(|(name, _)| format!("{name} beside it is not what it says"))
}

/// The header of a safetensors file without its texts, and the numbers behind it.
fn tensors(bytes: &[u8]) -> Result<(BTreeMap<String, Value>, &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<8>().context("it has no header")?;
    let length = usize::try_from(u64::from_le_bytes(*length))?;
    let (header, data) = rest
        .split_at_checked(length)
        .context("its header is cut off")?;
    let mut header: BTreeMap<String, Value> = serde_json::from_slice(header)?;
    header.remove("__metadata__");
    let ends = header
        .values()
        .map(|tensor| tensor["data_offsets"][1].as_u64().unwrap_or(u64::MAX));
    let end = ends.max().unwrap_or(0);
    anyhow::ensure!(
        end == data.len() as u64,
        "it should hold {end} bytes and holds {}",
        data.len()
    );
    Ok((header, data))
}

/// In what a file differs from what it should be. Of most that says when, where and how fast only whether it is
/// there: no two runs have the same.
pub(super) fn difference(file: &Path, wanted: &[u8], found: &[u8]) -> Option<String> {
    let kind = file
        .extension()
        .and_then(|kind| kind.to_str())
        .unwrap_or_default();
    let in_checkpoints = file
        .components()
        .any(|part| part.as_os_str() == "checkpoints");
    let name = file
        .file_name()
        .map(|name| name.to_string_lossy())
        .unwrap_or_default();
    let is_same = match kind {
        // What is in them is numbered by each process.
        _ if in_checkpoints => true,
        "safetensors" => match (tensors(wanted), tensors(found)) {
            (Ok(wanted), Ok(found)) => wanted == found,
            _ => false,
        },
        "jsonl" if name == "metrics.jsonl" => timeless(wanted) == timeless(found),
        "jsonl" | "" => wanted == found,
        "json" if !["config.json", "index.json"].contains(&&*name) && !name.contains("token") => {
            true
        }
        "json" => wanted == found,
        _ => true,
    };
    (!is_same).then(|| "it is not what an undisturbed command makes".to_owned())
}

/// The lines of metrics without what the clock says.
fn timeless(log: &[u8]) -> Vec<Option<Value>> {
    let lines = log
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty());
    lines
        .map(|line| {
            let mut line: Value = serde_json::from_slice(line).ok()?;
            let fields = line.as_object_mut()?;
            fields.retain(|name, _| !name.contains("seconds") && !name.ends_with("_per_second"));
            Some(line)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor_file(data: &[u8]) -> Vec<u8> {
        let header =
            r#"{"__metadata__":{"a":"b"},"t":{"dtype":"U8","shape":[3],"data_offsets":[0,3]}}"#;
        let length = (header.len() as u64).to_le_bytes();
        [&length, header.as_bytes(), data].concat()
    }

    #[test]
    fn half_files_are_found() {
        let whole = tensor_file(b"abc");
        for (name, bytes) in [
            ("a.json", &b"{\"a\": 1}\n"[..]),
            ("a.jsonl", b"{}\n{}\n"),
            ("a.toml", b"a = 1\n"),
            ("a.safetensors", &whole),
            ("a.svg", b"<svg></svg>\n"),
            ("a.md", b"text\n"),
        ] {
            let wrong = |bytes: &[u8]| wrong_in(Path::new(name), bytes);
            assert_eq!(wrong(bytes), None, "{name}");
            let end = bytes.len()
                - if name == "a.svg" || name == "a.json" {
                    2
                } else {
                    1
                };
            if name != "a.toml" {
                assert!(wrong(&bytes[..end]).is_some(), "{name}");
            }
            assert!(wrong(b"").is_some(), "{name}");
        }
        assert!(wrong_in(Path::new("a.toml"), b"a = ").is_some());
        assert_eq!(wrong_in_log(b"{}\n{\"st"), None);
        assert!(wrong_in_log(b"{}\n{\"st\n{}\n").is_some());
    }

    #[test]
    fn names_that_are_not_final_may_be_half() {
        for (file, says) in [
            ("model.safetensors", true),
            (".writing-x", false),
            ("checkpoints/writing-step-00000003/state.json", false),
            ("student.unchecked/config.json", false),
            ("student/config.json", true),
        ] {
            assert_eq!(is_final(Path::new(file)), says, "{file}");
        }
    }

    #[test]
    fn a_checkpoint_is_what_its_state_says() {
        let hash = |bytes: &[u8]| format!("{:x}", Sha256::digest(bytes));
        let state =
            serde_json::json!({"trained_sha256": hash(b"a"), "optimizer_sha256": hash(b"b")})
                .to_string();
        let path = |name: &str| Path::new("step-1").join(name);
        let mut files = BTreeMap::from([
            (path("trained.safetensors"), b"a".to_vec()),
            (path("optimizer.bin"), b"b".to_vec()),
        ]);
        let wrong = |files: &_| wrong_beside(&path("state.json"), state.as_bytes(), files);
        assert_eq!(wrong(&files), None);
        files.insert(path("optimizer.bin"), b"c".to_vec());
        assert!(wrong(&files).unwrap().starts_with("optimizer.bin"));
        files.remove(&path("optimizer.bin"));
        assert!(wrong(&files).is_some());
    }

    #[test]
    fn clocks_and_texts_may_differ_and_numbers_may_not() {
        let differs = |file: &str, one: &[u8], other: &[u8]| {
            difference(Path::new(file), one, other).is_some()
        };
        let other_text = String::from_utf8(tensor_file(b"abc"))
            .unwrap()
            .replace("\"b\"", "\"c\"");
        assert!(!differs(
            "m.safetensors",
            &tensor_file(b"abc"),
            other_text.as_bytes()
        ));
        assert!(differs(
            "m.safetensors",
            &tensor_file(b"abc"),
            &tensor_file(b"abd")
        ));
        let line = |kl: f64, seconds: f64| {
            format!("{{\"kl\": {kl}, \"seconds\": {seconds}}}\n").into_bytes()
        };
        assert!(!differs("metrics.jsonl", &line(1.0, 2.0), &line(1.0, 3.0)));
        assert!(differs("metrics.jsonl", &line(1.0, 2.0), &line(1.5, 2.0)));
        assert!(differs("corpus.jsonl", b"a", b"b"));
        assert!(!differs("summary.json", b"a", b"b"));
    }
}
