//! A small file system in memory, which can be filled and locked. It takes Linux and root: elsewhere there is
//! none, and the report says so.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

/// It is gone when this is dropped.
pub(super) struct SmallDisk(PathBuf);

impl SmallDisk {
    /// A disk at `path`; `None` where the system has none for us.
    pub(super) fn new(path: PathBuf) -> Result<Option<Self>> {
        fs::create_dir(&path).with_context(|| path.display().to_string())?;
        let is_there =
            cfg!(target_os = "linux") && mount(&["-t", "tmpfs", "-o", "size=64M", "tmpfs"], &path);
        Ok(is_there.then_some(Self(path)))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// Leaves it so much room.
    pub(super) fn resize(&self, bytes: u64) -> Result<()> {
        let option = format!("remount,size={bytes}");
        ensure!(
            mount(&["-o", &option], &self.0),
            "the disk cannot be resized"
        );
        Ok(())
    }

    /// Lets nobody write on it.
    pub(super) fn lock(&self) -> Result<()> {
        ensure!(
            mount(&["-o", "remount,ro"], &self.0),
            "the disk cannot be locked"
        );
        Ok(())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // The folder around it cannot be removed otherwise, and says so.
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

fn mount(args: &[&str], path: &Path) -> bool {
    let mut command = Command::new("mount");
    command.args(args).arg(path).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}
