//! libtorch 2.9.0, for the backend `tch`.
//!
//! It is put together from the PyTorch wheel. The wheel's CPU half is linked to two small libraries of
//! CUDA; the other 3 GB that PyTorch depends on are for GPUs and are not fetched.

use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use xshell::{Shell, cmd};

use crate::cache::{Cache, remove_dir, rename_dir};
use crate::programs::{Missing, on_path};

use super::python::{self, PYTHON};
use super::{Component, report, wheel};

/// The version that tch 0.22 is written for. Its build script reads it from the file `build-version`.
const VERSION: &str = "2.9.0";
/// Of the folder in the cache, which has this name only when it is complete.
const FOLDER: &str = "libtorch-2.9.0";

/// Where the system's loader looks for libraries first.
pub(crate) const LIBRARY_PATH: &str = if cfg!(windows) {
    "PATH"
} else if cfg!(target_vendor = "apple") {
    "DYLD_LIBRARY_PATH"
} else {
    "LD_LIBRARY_PATH"
};

/// The libraries by the wheel that holds them.
const LIBRARIES: [(&str, &str, &[&str]); 3] = [
    (
        "torch",
        "torch/lib/",
        &["libtorch_cpu.so", "libc10.so", "libgomp.so.1"],
    ),
    (
        "nvidia_cuda_runtime_cu12",
        "nvidia/cuda_runtime/lib/",
        &["libcudart.so.12"],
    ),
    (
        "nvidia_cuda_cupti_cu12",
        "nvidia/cuda_cupti/lib/",
        &["libcupti.so.12"],
    ),
];
const HEADERS: &str = "torch/include/";

/// What else must be there for the folder to be complete.
const OTHER_FILES: [&str; 4] = [
    "lib/libtorch.so",
    "include/torch/csrc/api/include/torch/torch.h",
    "include/ATen/ATen.h",
    "build-version",
];

/// One for CPython 3.11, whatever Python is here: only the libraries in it are used.
const PIP_OPTIONS: [&str; 10] = [
    "--platform",
    "manylinux_2_28_x86_64", // torch
    "--platform",
    "manylinux2014_x86_64", // the two others
    "--implementation",
    "cp",
    "--python-version",
    "3.11",
    "--abi",
    "cp311",
];

const COMPILER: Missing = Missing {
    what: "a C++ compiler",
    debian: &["g++"],
    elsewhere: "install GCC or Clang with C++",
};

/// A libtorch that can be built and run with.
#[derive(Debug)]
pub(crate) struct Libtorch {
    /// What `LIBTORCH` has to be set to. Absent if the environment already names a libtorch.
    pub(crate) root: Option<PathBuf>,
    /// The folder of its libraries.
    pub(crate) lib: PathBuf,
}

impl Libtorch {
    /// The libtorch that the environment names, else the one in the cache. That the environment names
    /// one that is not there is an error.
    pub(crate) fn find(shell: &Shell, cache: &Cache) -> Result<Option<Self>> {
        if let Some((variable, lib)) = given(shell)? {
            let file = lib.join(library_file());
            ensure!(
                file.exists(),
                "{variable} is set, but {} is not there: set it to a libtorch {VERSION}, or unset it \
                 and run `cargo xtask setup tch`",
                file.display()
            );
            return Ok(Some(Self { root: None, lib }));
        }
        let root = cache.path(FOLDER);
        Ok(is_complete(&root).then(|| Self {
            lib: root.join("lib"),
            root: Some(root),
        }))
    }
}

pub(super) fn set_up(shell: &Shell, cache: &Cache) -> Result<()> {
    // Needed for the bindings, wherever libtorch comes from.
    if !has_compiler() {
        COMPILER.install(shell, has_compiler)?;
    }
    if let Some((variable, _)) = given(shell)? {
        if let Some(libtorch) = Libtorch::find(shell, cache)? {
            let what = format!("the libtorch that {variable} chooses");
            report(Component::Tch, &what, &libtorch.lib);
        }
        return Ok(());
    }
    let root = cache.path(FOLDER);
    let wheels = cache.path(&format!("{FOLDER}.wheels"));
    if !is_complete(&root) {
        fetch(shell, &wheels)?;
        let partial = cache.path(&format!("{FOLDER}.partial"));
        assemble(&wheels, &partial)?;
        check_loads(shell, &partial)?;
        rename_dir(&partial, &root)?;
    }
    remove_dir(&wheels)?; // 900 MB
    report(Component::Tch, &format!("libtorch {VERSION}"), &root);

    let exports = exports(&root)?;
    let file = cache.path("env.sh");
    cache.write(&file, &exports)?;
    println!(
        "xtask finds it there; to call cargo yourself, source {}:",
        file.display()
    );
    print!("{exports}");
    Ok(())
}

/// The variable by which the environment names a libtorch, and the folder of its libraries. The
/// build script of tch looks at the same variables in the same order.
fn given(shell: &Shell) -> Result<Option<(&'static str, PathBuf)>> {
    let by_python = "LIBTORCH_USE_PYTORCH";
    if shell.var_os(by_python).is_some() {
        let script = "import importlib.util as i, os; \
                      print(os.path.join(os.path.dirname(i.find_spec('torch').origin), 'lib'))";
        let lib = cmd!(shell, "{PYTHON} -c {script}")
            .quiet()
            .ignore_stderr()
            .read();
        let lib = lib.map_err(|_| {
            anyhow!(
                "{by_python} is set, but `{PYTHON}` has no PyTorch: install {VERSION}, or unset it"
            )
        })?;
        return Ok(Some((by_python, lib.into())));
    }
    let root = |name| shell.var_os(name).map(PathBuf::from);
    Ok(root("LIBTORCH").map(|libtorch| {
        let lib = root("LIBTORCH_LIB").unwrap_or(libtorch);
        ("LIBTORCH", lib.join("lib"))
    }))
}

/// The name of the library's CPU part on this system.
fn library_file() -> String {
    let (prefix, suffix) = (env::consts::DLL_PREFIX, env::consts::DLL_SUFFIX);
    format!("{prefix}torch_cpu{suffix}")
}

fn has_compiler() -> bool {
    cfg!(windows) || env::var_os("CXX").is_some() || on_path("c++")
}

fn fetch(shell: &Shell, wheels: &Path) -> Result<()> {
    if !cfg!(all(
        target_os = "linux",
        target_arch = "x86_64",
        target_env = "gnu"
    )) {
        bail!(
            "for this system there is no set-up of libtorch: install libtorch {VERSION} for C++ and \
             set LIBTORCH to its folder"
        );
    }
    python::download(shell, "libtorch.txt", wheels, &PIP_OPTIONS)
}

/// Unpacks the wheels in the folder `wheels` to a libtorch in the folder `root`, in place of whatever
/// an interrupted run has left there.
fn assemble(wheels: &Path, root: &Path) -> Result<()> {
    println!("unpacking to {}", root.display());
    remove_dir(root)?;
    for (package, folder, libraries) in LIBRARIES {
        wheel::unpack(&wheel::find(wheels, package)?, root, |name| {
            let library = name.strip_prefix(folder);
            let library = library.filter(|library| libraries.contains(library));
            let library = library.map(|library| Path::new("lib").join(library));
            let header = name.strip_prefix(HEADERS);
            library.or_else(|| Some(Path::new("include").join(header?)))
        })?;
    }
    let finish = || {
        // The wheel's own `libtorch.so` holds nothing but a reference to the CUDA half.
        link("libtorch_cpu.so", &root.join("lib/libtorch.so"))?;
        fs::write(root.join("build-version"), VERSION)
    };
    finish().with_context(|| format!("cannot write to {}", root.display()))?;
    ensure!(
        is_complete(root),
        "the wheels in {} lack a file of libtorch",
        wheels.display()
    );
    Ok(())
}

fn is_complete(root: &Path) -> bool {
    let mut libraries = LIBRARIES
        .iter()
        .flat_map(|(_, _, libraries)| libraries.iter());
    libraries.all(|library| root.join("lib").join(library).is_file())
        && OTHER_FILES.iter().all(|file| root.join(file).is_file())
}

/// That a program can load it: all that it is linked to is there too.
fn check_loads(shell: &Shell, root: &Path) -> Result<()> {
    let lib = root.join("lib");
    let script = "import ctypes, sys; ctypes.CDLL(sys.argv[1])";
    let library = lib.join("libtorch.so");
    let command = cmd!(shell, "{PYTHON} -c {script} {library}").env(LIBRARY_PATH, &lib);
    command
        .quiet()
        .run()
        .with_context(|| format!("{} cannot be loaded", library.display()))
}

/// What a shell needs to build and run with the libtorch in `root`.
fn exports(root: &Path) -> Result<String> {
    let (root, lib) = (root.to_string_lossy(), root.join("lib"));
    let (root, lib) = (shlex::try_quote(&root)?, lib.to_string_lossy());
    let lib = shlex::try_quote(&lib)?;
    Ok(format!(
        "export LIBTORCH={root}\n\
         export {LIBRARY_PATH}={lib}\"${{{LIBRARY_PATH}:+:${LIBRARY_PATH}}}\"\n"
    ))
}

#[cfg(unix)]
fn link(target: &str, link: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

/// `fetch` has refused before.
#[cfg(not(unix))]
fn link(target: &str, link: &Path) -> io::Result<()> {
    fs::copy(link.with_file_name(target), link).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Wheels with the files that count, and some that do not.
    fn write_wheels(folder: &Path, leave_out: &str) {
        fs::create_dir_all(folder).unwrap();
        for (package, path, libraries) in LIBRARIES {
            let mut files: Vec<_> = libraries
                .iter()
                .map(|name| format!("{path}{name}"))
                .collect();
            if package == "torch" {
                files.extend(["torch/lib/libtorch.so", "torch/nn.py"].map(String::from));
                let headers = OTHER_FILES
                    .iter()
                    .filter(|file| file.starts_with("include"));
                files.extend(headers.map(|header| format!("torch/{header}")));
            }
            let files: Vec<_> = files.iter().map(String::as_str).collect();
            let files: Vec<_> = files
                .into_iter()
                .filter(|file| *file != leave_out)
                .collect();
            wheel::tests::write(&folder.join(format!("{package}-1-any.whl")), &files);
        }
    }

    #[test]
    fn an_interrupted_run_is_finished_and_leaves_nothing_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let [wheels, root] = ["wheels", "root"].map(|name| dir.path().join(name));
        write_wheels(&wheels, "");
        for file in ["lib/libtorch_cpu.so", "lib/stale"] {
            fs::create_dir_all(root.join("lib")).unwrap();
            fs::write(root.join(file), "half").unwrap();
        }
        assert!(!is_complete(&root));
        assemble(&wheels, &root).unwrap();
        assert!(is_complete(&root) && !root.join("lib/stale").exists());
        let read = |file: &str| fs::read_to_string(root.join(file)).unwrap();
        assert_eq!(read("lib/libtorch_cpu.so"), "torch/lib/libtorch_cpu.so");
        assert_eq!(read("lib/libtorch.so"), "torch/lib/libtorch_cpu.so");
        assert_eq!(read("build-version"), VERSION);
    }

    #[test]
    fn wheels_without_a_file_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let [wheels, root] = ["wheels", "root"].map(|name| dir.path().join(name));
        write_wheels(&wheels, "torch/lib/libc10.so");
        let error = assemble(&wheels, &root).unwrap_err().to_string();
        assert!(error.contains("lack a file"), "{error}");
    }

    #[test]
    fn a_libtorch_that_the_environment_names_is_taken_or_refused() {
        let dir = tempfile::tempdir().unwrap();
        let shell = Shell::new().unwrap();
        shell.set_var("LIBTORCH", dir.path());
        let cache = Cache::find().unwrap();
        if shell.var_os("LIBTORCH_USE_PYTORCH").is_some() || shell.var_os("LIBTORCH_LIB").is_some()
        {
            return; // They go before LIBTORCH.
        }
        let error = Libtorch::find(&shell, &cache).unwrap_err().to_string();
        assert!(error.starts_with("LIBTORCH is set, but"), "{error}");
        fs::create_dir(dir.path().join("lib")).unwrap();
        fs::write(dir.path().join("lib").join(library_file()), "").unwrap();
        let found = Libtorch::find(&shell, &cache).unwrap().unwrap();
        assert!(found.root.is_none() && found.lib == dir.path().join("lib"));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_exports_are_those_of_a_shell() {
        assert_eq!(
            exports(Path::new("/a folder/libtorch")).unwrap(),
            "export LIBTORCH='/a folder/libtorch'\n\
             export LD_LIBRARY_PATH='/a folder/libtorch/lib'\"${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}\"\n"
        );
    }
}
