//! Unpacks parts of Python wheels, which are zip files.

use std::fs::{self, File};
use std::io;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, ensure};
use zip::ZipArchive;

/// The one wheel of `package` in `folder`; `package` as it is spelt in file names.
pub(super) fn find(folder: &Path, package: &str) -> Result<PathBuf> {
    let read = || fs::read_dir(folder)?.collect::<Result<Vec<_>, _>>();
    let entries = read().with_context(|| format!("cannot read {}", folder.display()))?;
    let mut wheels = entries.iter().map(|entry| entry.path()).filter(|path| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| name.starts_with(&format!("{package}-")) && name.ends_with(".whl"))
    });
    let wheel = wheels.next();
    wheel.with_context(|| format!("there is no wheel of {package} in {}", folder.display()))
}

/// Unpacks those files of `wheel` that `place` has a path for, relative to `folder`.
pub(super) fn unpack(
    wheel: &Path,
    folder: &Path,
    place: impl Fn(&str) -> Option<PathBuf>,
) -> Result<()> {
    let unpack = || {
        let mut archive = ZipArchive::new(io::BufReader::new(File::open(wheel)?))?;
        for index in 0..archive.len() {
            let mut entry = archive.by_index(index)?;
            let Some(path) = place(entry.name()).filter(|_| entry.is_file()) else {
                continue;
            };
            ensure!(
                path.components()
                    .all(|part| matches!(part, Component::Normal(_))),
                "{} leads out of the folder",
                entry.name()
            );
            let path = folder.join(path);
            path.parent().map_or(Ok(()), fs::create_dir_all)?;
            // Checked against the file's checksum at its end.
            io::copy(&mut entry, &mut File::create(&path)?)?;
        }
        Ok(())
    };
    unpack().with_context(|| format!("cannot unpack {}", wheel.display()))
}

#[cfg(test)]
pub(super) mod tests {
    use std::io::Write;

    use zip::ZipWriter;
    use zip::write::SimpleFileOptions;

    use super::*;

    /// Writes a wheel that holds `files`, each with its own name in it.
    pub(crate) fn write(path: &Path, files: &[&str]) {
        let mut writer = ZipWriter::new(File::create(path).unwrap());
        for name in files {
            writer
                .start_file(*name, SimpleFileOptions::default())
                .unwrap();
            writer.write_all(name.as_bytes()).unwrap();
        }
        writer.finish().unwrap();
    }

    #[test]
    fn only_what_has_a_place_is_unpacked() {
        let dir = tempfile::tempdir().unwrap();
        let wheel = dir.path().join("torch-1-any.whl");
        write(
            &wheel,
            &["torch/include/a/b.h", "torch/lib/x.so", "torch/nn.py"],
        );
        let into = dir.path().join("into");
        unpack(&wheel, &into, |name| {
            Some(name.strip_prefix("torch/include/")?.into())
        })
        .unwrap();
        assert_eq!(
            fs::read(into.join("a/b.h")).unwrap(),
            b"torch/include/a/b.h"
        );
        assert_eq!(fs::read_dir(&into).unwrap().count(), 1);
    }

    #[test]
    fn nothing_is_written_outside_the_folder() {
        let dir = tempfile::tempdir().unwrap();
        let wheel = dir.path().join("evil-1-any.whl");
        write(&wheel, &["include/../../out"]);
        let into = dir.path().join("into");
        let error = unpack(&wheel, &into, |name| {
            Some(name.strip_prefix("include/")?.into())
        });
        assert!(format!("{:#}", error.unwrap_err()).contains("leads out"));
        assert!(!dir.path().join("out").exists());
    }

    #[test]
    fn a_damaged_wheel_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let wheel = dir.path().join("torch-1-any.whl");
        write(&wheel, &["a"]);
        let bytes = fs::read(&wheel).unwrap();
        fs::write(&wheel, &bytes[..bytes.len() / 2]).unwrap();
        let error = unpack(&wheel, dir.path(), |name| Some(name.into())).unwrap_err();
        assert!(
            format!("{error:#}").contains("torch-1-any.whl"),
            "{error:#}"
        );
    }

    #[test]
    fn a_wheel_is_found_by_its_package() {
        let dir = tempfile::tempdir().unwrap();
        for name in [
            "torch-2.9.0-cp311.whl",
            "torch_other-1.whl",
            "torch-2.9.0.zip",
        ] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        assert!(
            find(dir.path(), "torch")
                .unwrap()
                .ends_with("torch-2.9.0-cp311.whl")
        );
        let error = find(dir.path(), "jax").unwrap_err().to_string();
        assert!(error.starts_with("there is no wheel of jax in "), "{error}");
    }
}
