//! Files that are either whole or not there: written to a temporary name in the same folder,
//! flushed, renamed, read back.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

/// How the names of files begin that are not finished.
pub const UNFINISHED: &str = ".writing-";

/// Why a file could not be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// The system refused a step of writing; what was at `file` before is still there.
    #[error("cannot write {file}: check that the folder exists, is writable and has room")]
    Write {
        /// The file that was to be written.
        file: PathBuf,
        /// What the system reported.
        source: io::Error,
    },
    /// What is there is a folder, a link, a device or the like.
    #[error("{file} is no regular file, and is not replaced: move it away, or write elsewhere")]
    NotAFile {
        /// What was to be replaced.
        file: PathBuf,
    },
    /// The file was written but does not hold what was meant to be in it.
    #[error("{file} does not hold what was written to it: check the disk, then run again")]
    ReadBack {
        /// The file that was written.
        file: PathBuf,
    },
}

impl FileError {
    /// Names the file of an input/output error: `map_err(FileError::writing(path))`.
    pub fn writing(file: &Path) -> impl Fn(io::Error) -> Self + '_ {
        move |source| Self::Write {
            file: file.to_owned(),
            source,
        }
    }
}

/// Takes away what a program that was killed has left unfinished in the folder `dir`, not in those inside. Whoever
/// calls it has the folder to itself.
///
/// # Errors
///
/// [`FileError::Write`], naming the folder, or the file that cannot be removed.
pub fn remove_unfinished(dir: &Path) -> Result<(), FileError> {
    for entry in fs::read_dir(dir).map_err(FileError::writing(dir))? {
        let entry = entry.map_err(FileError::writing(dir))?;
        if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
            let file = entry.path();
            fs::remove_file(&file).map_err(FileError::writing(&file))?;
        }
    }
    Ok(())
}

/// Writes `bytes` as the file `path`, replacing what was there only once they are on the disk.
///
/// # Errors
///
/// - [`FileError::Write`]: the system refused; the old file is untouched.
/// - [`FileError::NotAFile`]: what is there is no file, and stays.
/// - [`FileError::ReadBack`]: the new file does not read back as `bytes`.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    replace(path, |file| {
        file.write_all(bytes).map_err(FileError::writing(path))
    })?;
    read_back(path, bytes)
}

/// Runs `write` on a temporary file beside `path` and, if it succeeds, flushes the file and moves
/// it to `path`. The caller reads it back.
///
/// # Errors
///
/// What `write` fails with, [`FileError::Write`] or [`FileError::NotAFile`]; what was there is untouched.
pub fn replace<E: From<FileError>>(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<&File>) -> Result<(), E>,
) -> Result<(), E> {
    if fs::symlink_metadata(path).is_ok_and(|found| !found.is_file()) {
        let file = path.to_owned();
        return Err(FileError::NotAFile { file }.into());
    }
    let io = FileError::writing(path);
    let temporary = temporary_beside(path).map_err(&io)?;

    let mut buffer = BufWriter::new(temporary.as_file());
    write(&mut buffer)?;
    buffer.flush().map_err(&io)?;
    drop(buffer);

    temporary.as_file().sync_all().map_err(&io)?;
    temporary.persist(path).map_err(|error| io(error.error))?;
    Ok(())
}

/// A temporary file in the folder of `path`, so that moving it to `path` is a mere rename.
fn temporary_beside(path: &Path) -> io::Result<NamedTempFile> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let mut builder = tempfile::Builder::new();
    builder.prefix(UNFINISHED);
    // A temporary file is for its owner alone, unless told otherwise; this one becomes an ordinary
    // file, from whose permissions the system takes the umask away.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder.tempfile_in(folder)
}

fn read_back(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    match fs::read(path) {
        Ok(found) if found == bytes => Ok(()),
        _ => Err(FileError::ReadBack {
            file: path.to_owned(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaces_the_old_file_and_leaves_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("summary.json");
        fs::write(&path, "old").unwrap();
        write_atomically(&path, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn only_what_is_unfinished_is_taken_away() {
        let dir = tempfile::tempdir().unwrap();
        let inside = dir.path().join("inside");
        fs::create_dir(&inside).unwrap();
        for file in [".writing-abc", "mine", "inside/.writing-def"] {
            fs::write(dir.path().join(file), "half").unwrap();
        }
        remove_unfinished(dir.path()).unwrap();
        let left = |dir: &Path| fs::read_dir(dir).unwrap().count();
        assert_eq!((left(dir.path()), left(&inside)), (2, 1));
        let error = remove_unfinished(&dir.path().join("gone")).unwrap_err();
        assert!(error.to_string().contains("gone"), "{error}");
    }

    #[test]
    fn missing_folder_is_an_error_that_names_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("nowhere").join("config.json");
        let error = write_atomically(&path, b"{}").unwrap_err();
        assert!(matches!(&error, FileError::Write { file, .. } if *file == path));
        assert!(error.to_string().contains("config.json"));
    }

    #[cfg(unix)]
    #[test]
    fn a_link_and_a_folder_are_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let [target, link, inner] = ["target", "link", "inner"].map(|it| folder.path().join(it));
        fs::write(&target, "mine").unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        fs::create_dir(&inner).unwrap();
        for path in [&link, &inner] {
            let error = write_atomically(path, b"new").unwrap_err();
            assert!(matches!(&error, FileError::NotAFile { file } if file == path));
            assert!(error.to_string().contains("is not replaced"), "{error}");
        }
        assert_eq!(fs::read(&link).unwrap(), b"mine");
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    }

    #[test]
    fn a_write_that_fails_midway_leaves_the_old_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        fs::write(&path, "old").unwrap();
        let result: Result<(), FileError> = replace(&path, |file| {
            file.write_all(b"half").unwrap();
            Err(FileError::writing(&path)(io::ErrorKind::StorageFull.into()))
        });
        assert!(matches!(result, Err(FileError::Write { .. })));
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn other_bytes_on_the_disk_are_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        fs::write(&path, "other").unwrap();
        let error = read_back(&path, b"meant").unwrap_err();
        assert!(matches!(&error, FileError::ReadBack { file } if *file == path));
    }

    #[cfg(unix)]
    #[test]
    fn permissions_are_those_of_an_ordinary_file() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let [ordinary, ours] = ["ordinary", "ours"].map(|name| folder.path().join(name));
        fs::write(&ordinary, "").unwrap();
        write_atomically(&ours, b"").unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode(&ours), mode(&ordinary));
    }
}
