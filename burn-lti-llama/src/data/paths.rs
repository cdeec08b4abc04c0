//! Which files a path of text names.

use std::env;
use std::ffi::OsStr;
use std::path::{Component, Path, PathBuf};

use super::DataError;
use super::formats::Format;

/// The files that `paths` name, in their order: a file itself, all files of a folder that are text of a kind that
/// is known, by name, and those that a pattern as `text/*.jsonl.gz` fits, by name.
///
/// # Errors
///
/// [`DataError::File`]: a folder or a pattern names no file, or a folder cannot be read. A path that is no
/// folder and no pattern is taken as it is.
pub fn text_files(paths: &[PathBuf]) -> Result<Vec<PathBuf>, DataError> {
    let mut files = Vec::new();
    for path in paths {
        let found = match path.to_str() {
            _ if path.is_dir() => files_of(path)?,
            Some(pattern) if !path.exists() && pattern.contains(['*', '?', '[']) => {
                let refused = |reason| DataError::File {
                    file: path.clone(),
                    reason,
                };
                let found = glob::glob(pattern)
                    .map_err(|_| refused("is no pattern of paths: close every ["))?;
                let mut found: Vec<PathBuf> = found.flatten().filter(|it| it.is_file()).collect();
                found.sort();
                match found.is_empty() {
                    true => return Err(refused("fits no file: correct the pattern")),
                    false => found,
                }
            }
            _ => vec![path.clone()],
        };
        files.extend(found);
    }
    Ok(files)
}

fn files_of(folder: &Path) -> Result<Vec<PathBuf>, DataError> {
    let entries = folder.read_dir().map_err(|source| DataError::Read {
        file: folder.to_owned(),
        source,
    })?;
    let mut files: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.is_file() && Format::of(path).is_some())
        .collect();
    files.sort();
    match files.is_empty() {
        false => Ok(files),
        true => Err(DataError::File {
            file: folder.to_owned(),
            reason: "is a folder without text: it holds none of .txt, .jsonl, .json, .csv and .parquet",
        }),
    }
}

/// The path with `~` at its beginning replaced by the user's home.
pub(crate) fn with_home(path: &Path) -> PathBuf {
    let mut parts = path.components();
    match (parts.next(), env::var_os("HOME")) {
        (Some(Component::Normal(first)), Some(home)) if first == OsStr::new("~") => {
            Path::new(&home).join(parts.as_path())
        }
        _ => path.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn folders_and_patterns_name_their_files_in_order() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["b.txt", "a.jsonl", "c.csv.gz", "notes.md"] {
            fs::write(folder.path().join(name), "x").unwrap();
        }
        let files = |path: &str| {
            let files = text_files(&[folder.path().join(path)])?;
            let name = |file: PathBuf| file.file_name().unwrap().to_str().unwrap().to_owned();
            Ok::<Vec<String>, DataError>(files.into_iter().map(name).collect())
        };
        assert_eq!(files("").unwrap(), ["a.jsonl", "b.txt", "c.csv.gz"]);
        assert_eq!(files("*.[tm]*").unwrap(), ["b.txt", "notes.md"]);
        assert_eq!(files("absent.txt").unwrap(), ["absent.txt"]);
        assert!(
            files("*.zip")
                .unwrap_err()
                .to_string()
                .contains("fits no file")
        );
        fs::create_dir(folder.path().join("empty")).unwrap();
        assert!(
            files("empty")
                .unwrap_err()
                .to_string()
                .contains("without text")
        );
    }

    #[test]
    fn a_home_is_put_in_its_place() {
        let home = PathBuf::from(env::var_os("HOME").unwrap());
        assert_eq!(with_home(Path::new("~/a/b")), home.join("a/b"));
        assert_eq!(with_home(Path::new("a/~/b")), Path::new("a/~/b"));
    }
}
