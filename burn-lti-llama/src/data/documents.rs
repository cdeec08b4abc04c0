//! Text files into documents.

use std::fs;
use std::path::Path;

use serde_json::Value;

use super::DataError;
use crate::tokenizer::Message;

/// A document of a file.
#[derive(Clone, Debug, PartialEq)]
pub enum Document {
    /// A text.
    Text(String),
    /// A conversation, for a chat template.
    Messages(Vec<Message>),
}

/// Reads the documents of a text file, in its order; empty documents are left out.
///
/// - `.jsonl`: one JSON object a line, with the document as its string `text`, a conversation as its list
///   `messages`, or one of two parts as `prompt` and `completion`, both strings or both lists of messages.
/// - `.txt`: documents separated by blank lines, if a blank line stands between two others; if
///   none does, every line is a document.
///
/// # Errors
///
/// - [`DataError::Read`]: the file cannot be read.
/// - [`DataError::File`]: it is neither of the two kinds, or there is no document in all of it.
/// - [`DataError::Line`]: a line is no text, or one of a `.jsonl` holds no document.
pub fn read_documents(path: &Path) -> Result<Vec<Document>, DataError> {
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

fn plain_text(text: &str) -> Vec<Document> {
    let lines: Vec<&str> = text.lines().collect();
    let blocks: Vec<&[&str]> = lines
        .split(|line| is_blank(line))
        .filter(|block| !block.is_empty())
        .collect();
    let texts: Vec<String> = match blocks[..] {
        [lines] => lines.iter().map(ToString::to_string).collect(),
        _ => blocks.iter().map(|block| block.join("\n")).collect(),
    };
    texts.into_iter().map(Document::Text).collect()
}

fn json_lines(path: &Path, text: &str) -> Result<Vec<Document>, DataError> {
    text.lines()
        .zip(1..)
        .filter(|(line, _)| !is_blank(line))
        .map(|(line, number)| json_document(path, line, number))
        .filter(|document| !document.as_ref().is_ok_and(Document::is_blank))
        .collect()
}

impl Document {
    fn is_blank(&self) -> bool {
        match self {
            Self::Text(text) => is_blank(text),
            Self::Messages(messages) => messages.is_empty(),
        }
    }

    /// What a field holds: a text or a conversation.
    fn of(value: &Value) -> Option<Self> {
        match value {
            Value::String(text) => Some(Self::Text(text.clone())),
            Value::Array(all) => {
                let messages = all.iter().map(Message::of).collect::<Option<_>>();
                messages.map(Self::Messages)
            }
            _ => None,
        }
    }

    /// Two parts in one.
    fn joined(self, then: Self) -> Option<Self> {
        match (self, then) {
            (Self::Text(first), Self::Text(then)) => Some(Self::Text(first + &then)),
            (Self::Messages(first), Self::Messages(then)) => {
                Some(Self::Messages([first, then].concat()))
            }
            _ => None,
        }
    }
}

fn json_document(path: &Path, line: &str, number: usize) -> Result<Document, DataError> {
    let refused = |found: &str, source| DataError::Line {
        file: path.into(),
        line: number,
        reason: format!(
            "{found}: every line has to be an object with a string `text`, a list `messages`, or `prompt` and \
             `completion`"
        ),
        source,
    };
    let value: Value =
        serde_json::from_str(line).map_err(|source| refused("not JSON", Some(source.into())))?;
    let Value::Object(object) = value else {
        return Err(refused("no JSON object", None));
    };
    let field = |name: &str| object.get(name).filter(|value| !value.is_null());
    if let Some(text) = field("text") {
        let text = text.as_str().map(|text| Document::Text(text.to_owned()));
        return text.ok_or_else(|| refused("a `text` that is no string", None));
    }
    if let Some(messages) = field("messages") {
        let messages = Document::of(messages).filter(|it| matches!(it, Document::Messages(_)));
        return messages
            .ok_or_else(|| refused("`messages` that are no list of objects with a `role`", None));
    }
    let (Some(prompt), Some(completion)) = (field("prompt"), field("completion")) else {
        return Err(refused("no `text`", None));
    };
    let parts = Document::of(prompt).zip(Document::of(completion));
    let joined = parts.and_then(|(prompt, completion)| prompt.joined(completion));
    joined.ok_or_else(|| {
        let found = "`prompt` and `completion` that are neither strings nor lists of messages";
        refused(found, None)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &str, content: impl AsRef<[u8]>) -> Result<Vec<String>, DataError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        fs::write(&path, content).unwrap();
        let text = |document| match document {
            Document::Text(text) => text,
            Document::Messages(messages) => format!("{messages:?}"),
        };
        Ok(read_documents(&path)?.into_iter().map(text).collect())
    }

    #[test]
    fn conversations_and_two_parts_are_documents() {
        let lines = r#"{"messages": [{"role": "user", "content": "one"}]}
            {"prompt": "two ", "completion": "three"}
            {"prompt": [{"role": "user", "content": "four"}], "completion": [{"role": "assistant", "content": "five"}]}"#;
        let said = |messages: &[Message]| format!("{messages:?}");
        let expected = [
            said(&[Message::new("user", "one")]),
            "two three".to_owned(),
            said(&[
                Message::new("user", "four"),
                Message::new("assistant", "five"),
            ]),
        ];
        assert_eq!(read("a.jsonl", lines).unwrap(), expected);
        for wrong in [
            r#"{"messages": [{"content": "one"}]}"#,
            r#"{"prompt": "one", "completion": []}"#,
        ] {
            let error = read("a.jsonl", wrong).unwrap_err();
            assert!(error.to_string().contains("line 1: "), "{error}");
        }
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
