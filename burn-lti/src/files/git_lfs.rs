//! Pointers that Git LFS leaves where a file was not fetched.

/// What a pointer is, and the way out; the name of the file goes before it.
pub const GIT_LFS_POINTER: &str =
    "is a pointer of Git LFS, not the file itself: fetch it with `git lfs pull`";

/// Whether these are the first bytes of such a pointer (Git LFS specification, version 1).
pub fn is_git_lfs_pointer(bytes: &[u8]) -> bool {
    bytes.starts_with(b"version https://git-lfs.github.com/spec/")
}
