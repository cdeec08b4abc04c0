//! Text as people have it. Every kind gives documents, which written as lines of JSON are the same again.

use std::io::Write;
use std::sync::Arc;

use burn_lti_llama::data::{Document, read_documents};
use flate2::Compression;
use flate2::write::GzEncoder;
use parquet::column::writer::ColumnWriter;
use parquet::data_type::ByteArray;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use serde_json::json;

use super::{folder, more_seeds, seeds, write};
use crate::Target;
use crate::memory::BOUND;

const WORDS: &[&str] = &[
    "\"text\"",
    "\"messages\"",
    "\"prompt\"",
    "\"completion\"",
    "\"role\"",
    "\"content\"",
    "\"user\"",
    "\r\n",
    "\n\n",
    "\u{2028}",
    "\u{85}",
    ",",
    "\"",
    "{\"text\": \"a\"}\n",
    "[{\"role\": \"user\", \"content\": \"a\"}]",
];

/// Documents a line, or between blank lines.
pub fn text_lines() -> Target {
    target("a.txt", seeds("text_lines"))
}

/// An object a line.
pub fn json_lines() -> Target {
    target("a.jsonl", seeds("json_lines"))
}

/// A list of objects or strings.
pub fn json_list() -> Target {
    target("a.json", seeds("json_list"))
}

/// A header and records.
pub fn csv_table() -> Target {
    target("a.csv", seeds("csv_table"))
}

/// Lines that gzip packed.
pub fn packed_gzip() -> Target {
    let pack = |text: Vec<u8>| {
        let mut packer = GzEncoder::new(Vec::new(), Compression::fast());
        packer
            .write_all(&text)
            .and_then(|()| packer.finish())
            .expect("it is packed")
    };
    target(
        "a.jsonl.gz",
        seeds("json_lines").into_iter().map(pack).collect(),
    )
}

/// Lines that zstd packed.
pub fn packed_zstd() -> Target {
    let pack = |text: Vec<u8>| zstd::encode_all(&text[..], 1).expect("it is packed");
    target(
        "a.jsonl.zst",
        seeds("json_lines").into_iter().map(pack).collect(),
    )
}

/// Parquet.
pub fn columns() -> Target {
    let seeds = [vec![parquet_file()], more_seeds("columns")].concat();
    Target {
        // A page may hold as much as 32 bits can say, and its library makes room for it at once.
        bound: 4 << 30,
        ..target("a.parquet", seeds)
    }
}

fn target(name: &'static str, seeds: Vec<Vec<u8>>) -> Target {
    let dir = folder();
    let (path, lines) = (dir.path().join(name), dir.path().join("again.jsonl"));
    Target {
        seeds,
        words: WORDS,
        bound: BOUND,
        check: Box::new(move |bytes| {
            let _kept = &dir;
            write(&path, bytes);
            let _ = read_documents(&path, Some("body"));
            let Ok(documents) = read_documents(&path, None) else {
                return false;
            };
            assert!(!documents.is_empty());
            let line = |document: &Document| match document {
                Document::Text(text) => json!({ "text": text }).to_string(),
                Document::Messages(messages) => json!({ "messages": messages }).to_string(),
            };
            let written: Vec<String> = documents.iter().map(line).collect();
            write(&lines, written.join("\n").as_bytes());
            assert_eq!(
                read_documents(&lines, None).expect("it was written"),
                documents
            );
            true
        }),
    }
}

fn parquet_file() -> Vec<u8> {
    let mut bytes = Vec::new();
    let schema =
        parse_message_type("message m { required binary text (UTF8); }").expect("a schema");
    let mut writer =
        SerializedFileWriter::new(&mut bytes, Arc::new(schema), Arc::default()).expect("a file");
    let mut group = writer.next_row_group().expect("a group");
    let mut column = group.next_column().expect("a column").expect("one");
    if let ColumnWriter::ByteArrayColumnWriter(typed) = column.untyped() {
        let texts = ["one", "two", "three"].map(ByteArray::from);
        typed.write_batch(&texts, None, None).expect("texts");
    }
    column.close().expect("a column");
    group.close().expect("a group");
    writer.close().expect("a file");
    bytes
}
