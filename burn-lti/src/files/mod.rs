//! Files that are whole: written in one stroke, and read no further than they reach.

mod atomic;
mod header;

pub use atomic::{FileError, UNFINISHED, replace, write_atomically};
pub use header::{HeaderError, LENGTH_BYTES, safetensors_header};
