//! Text files into documents.

use std::path::Path;

use serde_json::Value;

use super::DataError;
use super::formats::{Format, csv_records, json_records, parquet_records, read_text};
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
/// - `.txt`, or `-` for the standard input: documents separated by blank lines, if a blank line stands between two
///   others; if none does, every line is a document.
/// - `.jsonl`: one JSON object a line; `.json`: a list of objects, or of strings; `.csv`: a header and records;
///   `.parquet`: columns. The document is the string `text`, a conversation the list `messages`, and one of two
///   parts `prompt` and `completion`, both strings or both lists of messages; or it is in `field`, a text or a
///   list of messages.
///
/// All but `.parquet` may be packed: `.jsonl.gz`, `.txt.zst`.
///
/// # Errors
///
/// - [`DataError::Read`]: the file cannot be read.
/// - [`DataError::File`]: it is of no such kind, or there is no document in all of it.
/// - [`DataError::Line`]: a line or a record is no text, or holds no document.
pub fn read_documents(path: &Path, field: Option<&str>) -> Result<Vec<Document>, DataError> {
    let refused = |reason| DataError::File {
        file: path.into(),
        reason,
    };
    let documents = match Format::of(path) {
        Some(Format::Text) => plain_text(&read_text(path)?),
        Some(format) => of_records(path, format, |record| Document::of_record(record, field))?,
        None => {
            return Err(refused(
                "is neither .txt, .jsonl, .json, .csv (or one of them .gz or .zst) nor .parquet: convert it to \
                 one of them",
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

/// Reads what a model is to go on with, or to answer, from a text file in its order; empty lines are left out.
///
/// - `.txt`: a text a line.
/// - Any other kind, an object each: a text or a conversation `prompt`, or a conversation `messages`, without the
///   answers at its end.
///
/// # Errors
///
/// As [`read_documents`].
pub fn read_prompts(path: &Path) -> Result<Vec<Document>, DataError> {
    let prompts = match Format::of(path) {
        Some(Format::Text) => {
            let text = read_text(path)?;
            let lines = text.lines().filter(|line| !is_blank(line));
            lines.map(|line| Document::Text(line.to_owned())).collect()
        }
        // What is of no kind is refused there.
        None => read_documents(path, None)?,
        Some(format) => of_records(path, format, Document::prompt_of)?,
    };
    match prompts.is_empty() {
        true => Err(DataError::File {
            file: path.into(),
            reason: "holds no prompt: give a file with at least one",
        }),
        false => Ok(prompts),
    }
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

fn json_lines(path: &Path) -> Result<Vec<(usize, Value)>, DataError> {
    let text = read_text(path)?;
    let lines = (1..).zip(text.lines()).filter(|(_, line)| !is_blank(line));
    let records = lines.map(|(number, line)| {
        let record = serde_json::from_str(line).map_err(|source| DataError::Line {
            file: path.into(),
            line: number,
            reason: format!("not JSON: {EVERY_RECORD}"),
            source: Some(source.into()),
        });
        Ok((number, record?))
    });
    records.collect()
}

/// What `of` makes of each record of a file, empty documents left out.
fn of_records(
    path: &Path,
    format: Format,
    of: impl Fn(&Value) -> Result<Document, String>,
) -> Result<Vec<Document>, DataError> {
    let counted = |records: Vec<Value>| (1..).zip(records).collect();
    let (what, records): (_, Vec<(usize, Value)>) = match format {
        Format::Text | Format::JsonLines => ("line", json_lines(path)?),
        Format::Json => ("record", counted(json_records(path)?)),
        Format::Csv => ("line", csv_records(path)?),
        Format::Parquet => ("row", counted(parquet_records(path)?)),
    };
    let mut documents = Vec::new();
    for (number, record) in records {
        let document = of(&record).map_err(|found| match what {
            "line" => DataError::Line {
                file: path.into(),
                line: number,
                reason: found,
                source: None,
            },
            _ => DataError::Record {
                file: path.into(),
                record: format!("{what} {number}"),
                reason: found,
            },
        })?;
        if !document.is_blank() {
            documents.push(document);
        }
    }
    Ok(documents)
}

const EVERY_RECORD: &str = "every line has to be an object with a string `text`, a list `messages`, or `prompt` \
                            and `completion`";

impl Document {
    fn is_blank(&self) -> bool {
        match self {
            Self::Text(text) => is_blank(text),
            Self::Messages(messages) => messages.is_empty(),
        }
    }

    /// Bytes of text, about.
    pub(crate) fn size(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Messages(messages) => messages.iter().map(Message::size).sum(),
        }
    }

    /// The document of a record, or what is wrong with it.
    fn of_record(record: &Value, field: Option<&str>) -> Result<Self, String> {
        let refused = |found: &str| format!("{found}: {EVERY_RECORD}");
        let object = match record {
            Value::Object(object) => object,
            Value::String(text) => return Ok(Self::Text(text.clone())),
            _ => return Err(refused("no JSON object")),
        };
        let value = |name: &str| object.get(name).filter(|value| !value.is_null());
        if let Some(name) = field {
            let found = value(name).ok_or_else(|| {
                let names: Vec<&str> = object.keys().map(String::as_str).collect();
                format!(
                    "no field `{name}`, which was asked for: there are {}",
                    names.join(", ")
                )
            })?;
            let document = Self::of(found);
            return document.ok_or_else(|| {
                format!("`{name}` is neither a text nor a list of messages: name another field")
            });
        }
        if let Some(text) = value("text") {
            let text = text.as_str().map(|text| Self::Text(text.to_owned()));
            return text.ok_or_else(|| refused("a `text` that is no string"));
        }
        if let Some(messages) = value("messages") {
            let messages = Self::of(messages).filter(|it| matches!(it, Self::Messages(_)));
            return messages
                .ok_or_else(|| refused("`messages` that are no list of objects with a `role`"));
        }
        let (Some(prompt), Some(completion)) = (value("prompt"), value("completion")) else {
            return Err(refused("no `text`"));
        };
        let parts = Self::of(prompt).zip(Self::of(completion));
        let joined = parts.and_then(|(prompt, completion)| prompt.joined(completion));
        joined.ok_or_else(|| {
            refused("`prompt` and `completion` that are neither strings nor lists of messages")
        })
    }

    /// The prompt of a record, or what is wrong with it.
    fn prompt_of(record: &Value) -> Result<Self, String> {
        const EVERY_PROMPT: &str = "every record has to be an object with a `prompt`, a string or a list of messages, or `messages`";
        let refused = |found: &str| format!("{found}: {EVERY_PROMPT}");
        let value = |name: &str| record.get(name).filter(|value| !value.is_null());
        let found = match (value("prompt"), value("messages")) {
            (Some(prompt), _) => Self::of(prompt).ok_or("a `prompt` that is neither"),
            (None, Some(messages)) => match Self::of(messages) {
                Some(Self::Messages(messages)) => Ok(Self::Messages(messages)),
                _ => Err("`messages` that are no list of objects with a `role`"),
            },
            (None, None) => Err("no `prompt` and no `messages`"),
        };
        match found.map_err(refused)? {
            Self::Messages(mut messages) => {
                let is_answer = |it: &&Message| it.role() == Some("assistant");
                let answers = messages.iter().rev().take_while(is_answer).count();
                messages.truncate(messages.len() - answers);
                match messages.is_empty() {
                    true => Err(refused("messages of which none asks")),
                    false => Ok(Self::Messages(messages)),
                }
            }
            text => Ok(text),
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

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn read(name: &str, content: impl AsRef<[u8]>) -> Result<Vec<String>, DataError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        fs::write(&path, content).unwrap();
        let text = |document| match document {
            Document::Text(text) => text,
            Document::Messages(messages) => format!("{messages:?}"),
        };
        Ok(read_documents(&path, None)?.into_iter().map(text).collect())
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
    fn prompts_are_lines_texts_and_conversations_without_their_answers() {
        let folder = tempfile::tempdir().unwrap();
        let read = |name: &str, content: &str| {
            let path = folder.path().join(name);
            fs::write(&path, content).unwrap();
            read_prompts(&path)
        };
        let text = |text: &str| Document::Text(text.into());
        assert_eq!(
            read("a.txt", "one\n\n two\n").unwrap(),
            [text("one"), text(" two")]
        );
        let lines = r#"{"prompt": "one", "completion": "left out"}
            {"prompt": [{"role": "user", "content": "two"}]}
            {"messages": [{"role": "user", "content": "three"}, {"role": "assistant", "content": "left out"}]}"#;
        let said = |content| Document::Messages(vec![Message::new("user", content)]);
        assert_eq!(
            read("a.jsonl", lines).unwrap(),
            [text("one"), said("two"), said("three")]
        );
        for (name, content, says) in [
            (
                "a.jsonl",
                r#"{"text": "one"}"#,
                "line 1: no `prompt` and no `messages`",
            ),
            (
                "a.jsonl",
                r#"{"prompt": 1}"#,
                "line 1: a `prompt` that is neither",
            ),
            (
                "a.json",
                r#"[{"messages": "one"}]"#,
                "record 1: `messages` that are no list",
            ),
            (
                "a.json",
                r#"[{"messages": [{"role": "assistant", "content": "one"}]}]"#,
                "none asks",
            ),
            ("a.txt", "\n", "holds no prompt"),
            ("a.xml", "one", "is neither .txt"),
        ] {
            let error = read(name, content).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
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
        for name in ["a.xml", "txt", "a.txt.zip"] {
            let error = read(name, "one").unwrap_err();
            assert!(error.to_string().contains("is neither .txt"), "{error}");
        }
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = read_documents(Path::new("/nowhere/a.txt"), None).unwrap_err();
        assert!(matches!(error, DataError::Read { .. }));
        assert!(error.to_string().contains("/nowhere/a.txt"));
    }

    #[test]
    fn lists_and_tables_give_their_documents() {
        let list = r#"[{"text": "one"}, "two", {"prompt": "th", "completion": "ree"}]"#;
        assert_eq!(read("a.json", list).unwrap(), ["one", "two", "three"]);
        let table = "id,text\n1,one\n2,\"two,\nthree\"\n3,\n";
        assert_eq!(read("a.csv", table).unwrap(), ["one", "two,\nthree"]);
        for (name, content, says) in [
            ("a.json", "{}", "is no list"),
            (
                "a.json",
                "[{\"text\": 1}]",
                "record 1: a `text` that is no string",
            ),
            ("a.csv", "text,id\none\n", "line 2: no record"),
            ("a.csv", "id\n1\n", "line 2: no `text`"),
            ("a.parquet", "PAR1", "cannot read"),
        ] {
            let error = read(name, content).unwrap_err();
            assert!(error.to_string().contains(says), "{error}");
        }
    }

    #[test]
    fn packed_files_are_unpacked() {
        use std::io::Write;
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(b"one\ntwo\n").unwrap();
        assert_eq!(
            read("a.txt.gz", gzip.finish().unwrap()).unwrap(),
            ["one", "two"]
        );
        let zstd = zstd::encode_all(&b"{\"text\": \"one\"}"[..], 1).unwrap();
        assert_eq!(read("a.jsonl.zst", zstd).unwrap(), ["one"]);
        assert!(matches!(
            read("a.txt.gz", "one"),
            Err(DataError::Read { .. })
        ));
    }

    #[test]
    fn a_field_is_read_by_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jsonl");
        let lines = "{\"text\": \"one\", \"body\": \"two\"}\n{\"body\": [{\"role\": \"user\", \"content\": \"three\"}]}";
        fs::write(&path, lines).unwrap();
        let found = read_documents(&path, Some("body")).unwrap();
        let said = Document::Messages(vec![Message::new("user", "three")]);
        assert_eq!(found, [Document::Text("two".into()), said]);
        let error = read_documents(&path, Some("title"))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("line 1: no field `title`") && error.contains("text, body"),
            "{error}"
        );
    }

    #[test]
    fn columns_give_their_documents() {
        use std::sync::Arc;

        use parquet::column::writer::ColumnWriter;
        use parquet::data_type::ByteArray;
        use parquet::file::writer::SerializedFileWriter;
        use parquet::schema::parser::parse_message_type;

        let mut bytes = Vec::new();
        let schema = parse_message_type("message m { required binary text (UTF8); }").unwrap();
        let mut writer =
            SerializedFileWriter::new(&mut bytes, Arc::new(schema), Arc::default()).unwrap();
        let mut group = writer.next_row_group().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        let ColumnWriter::ByteArrayColumnWriter(typed) = column.untyped() else {
            panic!("it is of bytes");
        };
        let texts = ["one", "two"].map(ByteArray::from);
        typed.write_batch(&texts, None, None).unwrap();
        column.close().unwrap();
        group.close().unwrap();
        writer.close().unwrap();
        assert_eq!(read("a.parquet", bytes).unwrap(), ["one", "two"]);
    }
}
