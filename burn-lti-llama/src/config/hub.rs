//! Models of the Hugging Face Hub, where its own programs keep them on this machine.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

/// What stands before a repository's name.
const SCHEME: &str = "hf:";

/// The repository, `organisation/name`, and the revision that `hf:organisation/name@revision` names; `main` if
/// none is.
pub(crate) fn repository(path: &Path) -> Option<(&str, &str)> {
    let id = path.to_str()?.strip_prefix(SCHEME)?;
    Some(id.split_once('@').unwrap_or((id, "main")))
}

/// The folder of a model: that of a repository, if it was fetched, else `path` as it is.
pub fn model_folder(path: &Path) -> PathBuf {
    let found = repository(path).and_then(|(id, revision)| snapshot(&cache()?, id, revision));
    found.unwrap_or_else(|| path.to_owned())
}

/// The repository of which a folder is a snapshot, if it is one.
pub(crate) fn repository_of(folder: &Path) -> Option<String> {
    let name = folder.parent()?.parent()?.file_name()?.to_str()?;
    Some(name.strip_prefix("models--")?.replacen("--", "/", 1))
}

/// Where the Hub's programs keep what they fetch.
pub(crate) fn cache() -> Option<PathBuf> {
    let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty());
    cache_of(&set)
}

fn cache_of(set: &dyn Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let folder = |name: &str| set(name).map(PathBuf::from);
    folder("HF_HUB_CACHE")
        .or_else(|| folder("HF_HOME").map(|home| home.join("hub")))
        .or_else(|| folder("XDG_CACHE_HOME").map(|cache| cache.join("huggingface/hub")))
        .or_else(|| folder("HOME").map(|home| home.join(".cache/huggingface/hub")))
}

fn snapshot(cache: &Path, id: &str, revision: &str) -> Option<PathBuf> {
    let repository = cache.join(format!("models--{}", id.replace('/', "--")));
    let commit = fs::read_to_string(repository.join("refs").join(revision));
    let commit = commit.map_or_else(|_| revision.to_owned(), |commit| commit.trim().to_owned());
    let folder = repository.join("snapshots").join(commit);
    folder.is_dir().then_some(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repository_is_found_by_its_revision() {
        let cache = tempfile::tempdir().unwrap();
        let repository = cache.path().join("models--some--model");
        fs::create_dir_all(repository.join("refs")).unwrap();
        fs::create_dir_all(repository.join("snapshots/0ab1")).unwrap();
        fs::write(repository.join("refs/main"), "0ab1\n").unwrap();
        let folder = Some(repository.join("snapshots/0ab1"));
        assert_eq!(snapshot(cache.path(), "some/model", "main"), folder);
        assert_eq!(snapshot(cache.path(), "some/model", "0ab1"), folder);
        assert_eq!(snapshot(cache.path(), "some/model", "v2"), None);
        assert_eq!(snapshot(cache.path(), "some/other", "main"), None);
        let of = folder.as_deref().and_then(repository_of);
        assert_eq!(of.as_deref(), Some("some/model"));
        assert_eq!(repository_of(cache.path()), None);
    }

    #[test]
    fn names_of_repositories_are_told_from_paths() {
        let of = |path: &str| repository(Path::new(path)).map(|(id, at)| format!("{id} {at}"));
        assert_eq!(of("hf:a/b").as_deref(), Some("a/b main"));
        assert_eq!(of("hf:b@v2").as_deref(), Some("b v2"));
        assert_eq!(of("a/b"), None);
    }

    #[test]
    fn the_cache_is_where_its_programs_are_told_to_keep_it() {
        for (name, folder) in [
            ("HF_HUB_CACHE", "/x"),
            ("HF_HOME", "/x/hub"),
            ("XDG_CACHE_HOME", "/x/huggingface/hub"),
            ("HOME", "/x/.cache/huggingface/hub"),
        ] {
            let set = |asked: &str| (asked == name).then(|| OsString::from("/x"));
            assert_eq!(cache_of(&set), Some(PathBuf::from(folder)));
        }
    }
}
