//! Files that are read no further than any of their kind is long.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// The bytes of the file at `path`, if it has no more than `most`.
///
/// # Errors
///
/// What the system says; [`io::ErrorKind::FileTooLarge`] with the bound, before more than that is in memory.
pub fn read_at_most(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = File::open(path)?.take(most + 1).read_to_end(&mut bytes)?;
    match read as u64 <= most {
        true => Ok(bytes),
        false => Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("it has more than {most} bytes, and no such file needs as many"),
        )),
    }
}

/// As [`read_at_most`], a text.
///
/// # Errors
///
/// As [`read_at_most`], and [`io::ErrorKind::InvalidData`] if it is no UTF-8.
pub fn read_text_at_most(path: &Path, most: u64) -> io::Result<String> {
    String::from_utf8(read_at_most(path, most)?)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.utf8_error()))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_file_is_read_up_to_its_bound_and_no_further() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.toml");
        fs::write(&path, "four").unwrap();
        assert_eq!(read_text_at_most(&path, 4).unwrap(), "four");
        let error = read_at_most(&path, 3).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
        assert!(error.to_string().contains("more than 3 bytes"), "{error}");
        fs::write(&path, b"f\xff").unwrap();
        let error = read_text_at_most(&path, 3).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        #[cfg(unix)]
        assert!(read_at_most(Path::new("/dev/zero"), 1 << 10).is_err());
    }
}
