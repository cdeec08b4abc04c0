//! The kinds of text files, and how each becomes records.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use burn_lti::files::guarded;
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use serde_json::{Map, Value};

use super::DataError;

/// The path that stands for the standard input.
const STANDARD_INPUT: &str = "-";

/// Values of a page of columns, at most; writers put some 20,000 into one.
const MOST_VALUES: usize = 1 << 24;

/// A kind of text file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// Documents a line, or between blank lines.
    Text,
    /// An object a line.
    JsonLines,
    /// A list of objects or strings.
    Json,
    /// A header, and a record a line.
    Csv,
    /// Columns.
    Parquet,
}

/// How a file is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Packing {
    None,
    Gzip,
    Zstd,
}

impl Format {
    /// Of a file by its name; `None` if it is none that is known.
    pub(super) fn of(path: &Path) -> Option<Self> {
        if path == Path::new(STANDARD_INPUT) {
            return Some(Self::Text);
        }
        let (path, packing) = unpacked_name(path);
        let extension = path.extension()?.to_ascii_lowercase();
        match (extension.to_str()?, packing) {
            ("txt", _) => Some(Self::Text),
            ("jsonl" | "ndjson", _) => Some(Self::JsonLines),
            ("json", _) => Some(Self::Json),
            ("csv", _) => Some(Self::Csv),
            // It is packed inside, and read from both ends.
            ("parquet", Packing::None) => Some(Self::Parquet),
            _ => None,
        }
    }
}

/// The name of what is in a packed file.
fn unpacked_name(path: &Path) -> (PathBuf, Packing) {
    let extension = path.extension().map(|it| it.to_ascii_lowercase());
    match extension.as_ref().and_then(|it| it.to_str()) {
        Some("gz") => (path.with_extension(""), Packing::Gzip),
        Some("zst") => (path.with_extension(""), Packing::Zstd),
        _ => (path.to_owned(), Packing::None),
    }
}

/// The text of a file, unpacked.
pub(super) fn read_text(path: &Path) -> Result<String, DataError> {
    let mut bytes = Vec::new();
    let mut read = || -> io::Result<usize> {
        if path == Path::new(STANDARD_INPUT) {
            return io::stdin().read_to_end(&mut bytes);
        }
        let file = File::open(path)?;
        match unpacked_name(path).1 {
            Packing::None => {
                bytes = fs::read(path)?;
                Ok(bytes.len())
            }
            Packing::Gzip => flate2::read::MultiGzDecoder::new(file).read_to_end(&mut bytes),
            Packing::Zstd => zstd::Decoder::new(file)?.read_to_end(&mut bytes),
        }
    };
    read().map_err(|source| DataError::Read {
        file: path.into(),
        source,
    })?;
    // Editors on Windows put a byte order mark before the text; it is no part of a document.
    if bytes.starts_with(b"\xef\xbb\xbf") {
        bytes.drain(..3);
    }
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

/// The records of a list.
pub(super) fn json_records(path: &Path) -> Result<Vec<Value>, DataError> {
    let text = read_text(path)?;
    let value: Value = serde_json::from_str(&text).map_err(|source| DataError::Line {
        file: path.into(),
        line: source.line(),
        reason: "not JSON: save the file again".to_owned(),
        source: Some(source.into()),
    })?;
    match value {
        Value::Array(records) => Ok(records),
        _ => Err(DataError::File {
            file: path.into(),
            reason: "is no list: give a file that holds [ ... ], or name one of an object a line .jsonl",
        }),
    }
}

/// The records of a table, with the line where each begins.
pub(super) fn csv_records(path: &Path) -> Result<Vec<(usize, Value)>, DataError> {
    let text = read_text(path)?;
    let failed = |source: csv::Error| DataError::Line {
        file: path.into(),
        line: source.position().map_or(1, |at| at.line() as usize),
        reason: "no record of a table: give every line as many fields as the first".to_owned(),
        source: Some(source.into()),
    };
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    let header = reader.headers().map_err(failed)?.clone();
    let mut records = Vec::new();
    for record in reader.records() {
        let record = record.map_err(failed)?;
        let line = record.position().map_or(0, |at| at.line() as usize);
        let fields = header.iter().zip(&record);
        let fields = fields.map(|(name, field)| (name.to_owned(), Value::from(field)));
        records.push((line, Value::Object(fields.collect::<Map<_, _>>())));
    }
    Ok(records)
}

/// The rows of columns.
pub(super) fn parquet_records(path: &Path) -> Result<Vec<Value>, DataError> {
    let failed = |source: io::Error| DataError::Read {
        file: path.into(),
        source,
    };
    let file = File::open(path).map_err(failed)?;
    // The library panics over a damaged file.
    let records = guarded(|| -> Result<_, ParquetError> {
        let reader = SerializedFileReader::new(file)?;
        check_pages(&reader)?;
        let rows = reader.get_row_iter(None)?;
        rows.map(|row| Ok(row?.to_json_value())).collect()
    });
    let records = records.unwrap_or_else(|said| Err(ParquetError::General(said)));
    records.map_err(|source| failed(io::Error::other(source)))
}

/// Refuses pages that claim more values than their column has, before room is made for them.
fn check_pages(reader: &SerializedFileReader<File>) -> Result<(), ParquetError> {
    for group in 0..reader.num_row_groups() {
        let group = reader.get_row_group(group)?;
        for column in 0..group.num_columns() {
            let values = group.metadata().column(column).num_values();
            let values = usize::try_from(values).unwrap_or(0).min(MOST_VALUES);
            let mut pages = group.get_column_page_reader(column)?;
            while let Some(page) = pages.peek_next_page()? {
                if page.num_levels.is_some_and(|claimed| claimed > values) {
                    let claims = "a page claims more values than its column has";
                    return Err(ParquetError::General(claims.to_owned()));
                }
                pages.skip_next_page()?;
            }
        }
    }
    Ok(())
}
