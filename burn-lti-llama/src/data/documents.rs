//! Text files into documents.

use std::fs;
use std::path::Path;

use serde_json::Value;

use super::DataError;

/// Reads the documents of a text file, in its order; empty documents are left out.
///
/// - `.jsonl`: one JSON object a line, with the document as its string `text`.
/// - `.txt`: documents separated by blank lines, if a blank line stands between two others; if
///   none does, every line is a document.
///
/// # Errors
///
/// - [`DataError::Read`]: the file cannot be read.
/// - [`DataError::File`]: it is neither of the two kinds, or there is no document in all of it.
/// - [`DataError::Line`]: a line is no text, or one of a `.jsonl` holds no document.
pub fn read_documents(path: &Path) -> Result<Vec<String>, DataError> {
    let refused = |reason| DataError::File {
        file: path.into(),
        reason,
    };
    let extension = path.extension().unwrap_or_default().to_ascii_lowercase();
    let documents = match extension.to_str() {
        Some("jsonl") => json_lines(path, &read_text(path)?)?,
        Some("txt") => plain_text(&read_text(path)?),
        _ => {
            return Err(refused(
                "is neither a .txt nor a .jsonl file: convert it to one of them",
            ));
        }
    };
    match documents.is_empty() {
        true => Err(refused(
            "holds no text: give a file with at least one document",
        )),
        false => Ok(documents),
    }
}

fn read_text(path: &Path) -> Result<String, DataError> {
    let bytes = fs::read(path).map_err(|source| DataError::Read {
        file: path.into(),
        source,
    })?;
    // Editors on Windows put a byte order mark before the text; it is no part of a document.
    let bytes = match bytes.strip_prefix(b"\xef\xbb\xbf") {
        Some(text) => text.to_vec(),
        None => bytes,
    };
    String::from_utf8(bytes).map_err(|error| {
        let source = error.utf8_error();
        let before = &error.as_bytes()[..source.valid_up_to()];
        DataError::Line {
            file: path.into(),
            line: 1 + before.iter().filter(|&&byte| byte == b'\n').count(),
            reason: "not UTF-8: convert the file, for instance with iconv".to_owned(),
            source: Some(source.into()),
        }
    })
}

/// Whether a text is left out, because it holds nothing to read.
pub(crate) fn is_blank(line: &str) -> bool {
    line.trim().is_empty()
}

fn plain_text(text: &str) -> Vec<String> {
    let lines: Vec<&str> = text.lines().collect();
    let blocks: Vec<&[&str]> = lines
        .split(|line| is_blank(line))
        .filter(|block| !block.is_empty())
        .collect();
    match blocks[..] {
        [lines] => lines.iter().map(ToString::to_string).collect(),
        _ => blocks.iter().map(|block| block.join("\n")).collect(),
    }
}

fn json_lines(path: &Path, text: &str) -> Result<Vec<String>, DataError> {
    text.lines()
        .zip(1..)
        .filter(|(line, _)| !is_blank(line))
        .map(|(line, number)| json_document(path, line, number))
        .filter(|document| !document.as_deref().is_ok_and(is_blank))
        .collect()
}

fn json_document(path: &Path, line: &str, number: usize) -> Result<String, DataError> {
    let refused = |found: &str, source| DataError::Line {
        file: path.into(),
        line: number,
        reason: format!("{found}: every line has to be an object with a string `text`"),
        source,
    };
    let value = serde_json::from_str(line);
    let found = match value.map_err(|source| refused("not JSON", Some(source.into())))? {
        Value::Object(mut object) => match object.remove("text") {
            Some(Value::String(text)) => return Ok(text),
            Some(_) => "a `text` that is no string",
            None => "no `text`",
        },
        _ => "no JSON object",
    };
    Err(refused(found, None))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &str, content: impl AsRef<[u8]>) -> Result<Vec<String>, DataError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        fs::write(&path, content).unwrap();
        read_documents(&path)
    }

    #[test]
    fn a_text_without_blank_lines_has_one_document_a_line() {
        assert_eq!(read("a.txt", "one\ntwo\n").unwrap(), ["one", "two"]);
        assert_eq!(
            read("a.TXT", "\n\none\r\ntwo\r\n\n").unwrap(),
            ["one", "two"]
        );
    }

    #[test]
    fn blank_lines_separate_documents_and_line_breaks_stay() {
        let documents = read("a.txt", "one\n  two\n\n \nthree\n\n").unwrap();
        assert_eq!(documents, ["one\n  two", "three"]);
    }

    #[test]
    fn json_lines_give_their_text() {
        let lines =
            "{\"text\": \"one\\ntwo\", \"id\": 7}\n\n{\"text\": \" \"}\n{\"text\": \"three\"}";
        assert_eq!(read("a.jsonl", lines).unwrap(), ["one\ntwo", "three"]);
    }

    #[test]
    fn a_byte_order_mark_is_no_text() {
        assert_eq!(read("a.txt", "\u{feff}one").unwrap(), ["one"]);
        assert_eq!(
            read("a.jsonl", "\u{feff}{\"text\": \"one\"}").unwrap(),
            ["one"]
        );
    }

    #[test]
    fn bad_json_names_its_line() {
        let error = read("a.jsonl", "{\"text\": \"one\"}\n{\"text\"").unwrap_err();
        assert!(error.to_string().contains("a.jsonl, line 2: not JSON: "));
    }

    #[test]
    fn json_without_a_text_says_what_is_wrong() {
        for (line, wanted) in [
            ("[\"one\"]", "no JSON object"),
            ("{\"content\": \"one\"}", "no `text`"),
            ("{\"text\": 1}", "a `text` that is no string"),
        ] {
            let error = read("a.jsonl", format!("\n{line}\n")).unwrap_err();
            let wanted = format!("line 2: {wanted}: every line");
            assert!(error.to_string().contains(&wanted), "{error}");
        }
    }

    #[test]
    fn bytes_that_are_no_text_name_their_line() {
        let error = read("a.txt", b"one\ntwo\nth\xffree").unwrap_err();
        assert!(error.to_string().contains("line 3: not UTF-8"), "{error}");
    }

    #[test]
    fn a_file_without_documents_is_an_error() {
        for name in ["a.txt", "a.jsonl"] {
            let error = read(name, "\n \n").unwrap_err();
            assert!(error.to_string().contains("holds no text"), "{error}");
        }
    }

    #[test]
    fn other_kinds_of_file_are_refused() {
        for name in ["a.csv", "txt"] {
            let error = read(name, "one").unwrap_err();
            assert!(error.to_string().contains("is neither a .txt"), "{error}");
        }
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = read_documents(Path::new("/nowhere/a.txt")).unwrap_err();
        assert!(matches!(error, DataError::Read { .. }));
        assert!(error.to_string().contains("/nowhere/a.txt"));
    }
}
