//! Files and folders that are whole: written in one stroke, hashed, and read no further than they reach; the one
//! codec of safetensors; and a guard around libraries that panic over a file.

mod atomic;
mod bounded;
mod git_lfs;
mod guard;
mod hash;
mod lock;
mod new_folder;
mod tensor_file;

pub use atomic::{FileError, UNFINISHED, remove_unfinished, replace, write_atomically};
pub use bounded::{read_at_most, read_text_at_most};
pub use git_lfs::{GIT_LFS_POINTER, is_git_lfs_pointer};
pub use guard::guarded;
pub use hash::sha256;
pub use lock::{FolderLock, LOCK, LockError};
pub use new_folder::NewFolder;
pub use tensor_file::{
    HeaderError, LENGTH_BYTES, TensorFile, safetensors_float, safetensors_header,
};
