//! A Vulkan driver, for the backend `wgpu`.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use libloading::Library;
use xshell::Shell;

use crate::programs::Missing;

use super::Component;

/// The library that finds drivers and hands calls on to them.
const LOADER: &str = if cfg!(windows) {
    "vulkan-1.dll"
} else {
    "libvulkan.so.1"
};

const DRIVER: Missing = Missing {
    what: "a Vulkan driver",
    debian: &["libvulkan1", "mesa-vulkan-drivers"],
    elsewhere: "install the Vulkan loader and the driver of your GPU, or Mesa's software device \
                (Fedora: `dnf install vulkan-loader mesa-vulkan-drivers`; Arch: `pacman -S \
                vulkan-icd-loader vulkan-swrast`)",
};

/// Whether the backend `wgpu` has something to run on.
pub(super) fn is_there() -> bool {
    if cfg!(target_vendor = "apple") {
        return true; // Metal is a part of the system.
    }
    // SAFETY: the loader's start-up code reads its settings and touches nothing of this program.
    let loader = unsafe { Library::new(LOADER) }.is_ok();
    // On Windows drivers are listed in the registry, where the loader comes from a driver.
    loader && (cfg!(windows) || !manifests(&driver_places(|name| env::var_os(name))).is_empty())
}

pub(super) fn set_up(shell: &Shell) -> Result<()> {
    let name = Component::Wgpu.name();
    if cfg!(target_vendor = "apple") {
        println!("{name}: Metal is a part of the system");
        return Ok(());
    }
    if !is_there() {
        DRIVER.install(shell, is_there)?;
    }
    let drivers = manifests(&driver_places(|name| env::var_os(name)));
    let drivers = drivers.iter().filter_map(|path| path.file_stem()?.to_str());
    let drivers: Vec<_> = drivers.collect();
    println!("{name}: the Vulkan drivers are {}", drivers.join(", "));
    Ok(())
}

/// Files and folders where the loader looks for the manifests of drivers.
fn driver_places(variable: impl Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
    let paths = |name: &str| -> Vec<PathBuf> {
        let value = variable(name).filter(|value| !value.is_empty());
        value.iter().flat_map(env::split_paths).collect()
    };
    // Either takes the place of all folders.
    for name in ["VK_DRIVER_FILES", "VK_ICD_FILENAMES"] {
        if variable(name).is_some_and(|value| !value.is_empty()) {
            return paths(name);
        }
    }
    let folders = ["/etc", "/usr/local/share", "/usr/share"].map(PathBuf::from);
    let folders = folders.into_iter().chain(paths("XDG_DATA_DIRS"));
    folders.map(|folder| folder.join("vulkan/icd.d")).collect()
}

fn manifests(places: &[PathBuf]) -> Vec<PathBuf> {
    let in_place = |place: &PathBuf| match fs::read_dir(place) {
        Ok(entries) => entries.flatten().map(|entry| entry.path()).collect(),
        Err(_) => vec![place.clone()],
    };
    let is_manifest = |path: &Path| {
        path.is_file()
            && path
                .extension()
                .is_some_and(|extension| extension == "json")
    };
    let paths = places.iter().flat_map(in_place);
    let mut paths: Vec<_> = paths.filter(|path| is_manifest(path)).collect();
    paths.sort();
    paths.dedup();
    paths
}

#[cfg(test)]
#[cfg(unix)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_is_a_manifest_in_a_folder_or_by_itself() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("vulkan/icd.d");
        fs::create_dir_all(&folder).unwrap();
        let find = |name: &str, value: &Path| {
            let set = |asked: &str| (asked == name).then(|| value.as_os_str().to_owned());
            let mut found = manifests(&driver_places(set));
            found.retain(|path| path.starts_with(dir.path()));
            found
        };
        assert!(find("XDG_DATA_DIRS", dir.path()).is_empty());
        for name in ["soft.json", "readme.txt"] {
            fs::write(folder.join(name), "{}").unwrap();
        }
        let soft = vec![folder.join("soft.json")];
        assert_eq!(find("XDG_DATA_DIRS", dir.path()), soft);
        assert_eq!(find("VK_DRIVER_FILES", &soft[0]), soft);
        assert_eq!(find("VK_ICD_FILENAMES", &folder), soft);
        assert!(find("VK_ICD_FILENAMES", &dir.path().join("none.json")).is_empty());
    }
}
