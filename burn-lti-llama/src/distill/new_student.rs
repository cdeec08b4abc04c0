//! Where a student goes that is no run's.

use std::fs;
use std::path::Path;

use burn_lti::files::NewFolder;

use super::{DistillError, OutputDir};

/// The folder `target` for a student, where nothing is yet.
pub(super) fn new_student(target: &Path) -> Result<NewFolder, DistillError> {
    if fs::symlink_metadata(target).is_ok_and(|found| !found.is_dir()) {
        return Err(DistillError::Refused(format!(
            "{} is no folder, and is not replaced: choose another --out",
            target.display()
        )));
    }
    OutputDir::check_empty(target, "choose another --out, or take them away")?;
    if target.file_name().is_none() {
        return Err(DistillError::Refused(format!(
            "{} is no name for a new folder: choose another --out",
            target.display()
        )));
    }
    Ok(NewFolder::new(target)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_is_refused_and_two_do_not_write_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("student");
        let new = new_student(&target).unwrap();
        let error = new_student(&target).err().unwrap();
        assert!(error.to_string().contains("the process "), "{error}");
        new.accept().unwrap();
        fs::write(target.join("mine"), "").unwrap();
        let error = new_student(&target).err().unwrap();
        assert!(error.to_string().contains("already holds files"), "{error}");
        let error = new_student(&target.join("mine")).err().unwrap();
        assert!(error.to_string().contains("is no folder"), "{error}");
        let error = new_student(Path::new("..")).err().unwrap();
        assert!(
            error.to_string().contains("choose another --out"),
            "{error}"
        );
    }

    #[cfg(unix)]
    #[test]
    fn a_link_is_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("student");
        std::os::unix::fs::symlink(folder.path().join("elsewhere"), &target).unwrap();
        let error = new_student(&target).err().unwrap();
        assert!(error.to_string().contains("is no folder"), "{error}");
    }
}
