//! Tests of the event files.

use super::*;

/// CRC-32C bit by bit, from its definition.
fn crc32c(data: &[u8]) -> u32 {
    !data.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| match crc & 1 {
            1 => crc >> 1 ^ 0x82f6_3b78,
            _ => crc >> 1,
        })
    })
}

fn take<'a>(bytes: &mut &'a [u8], count: usize) -> &'a [u8] {
    let (taken, rest) = bytes.split_at(count);
    *bytes = rest;
    taken
}

/// Takes a block and the checksum that has to follow it.
fn take_checked<'a>(bytes: &mut &'a [u8], count: usize) -> &'a [u8] {
    let block = take(bytes, count);
    let masked = u32::from_le_bytes(take(bytes, 4).try_into().unwrap());
    let crc = masked.wrapping_sub(0xa282_ead8);
    assert_eq!(crc.rotate_left(15), crc32c(block));
    block
}

fn records(path: &Path) -> Vec<Vec<u8>> {
    let bytes = fs::read(path).unwrap();
    let (mut rest, mut records) = (bytes.as_slice(), Vec::new());
    while !rest.is_empty() {
        let length = take_checked(&mut rest, 8).try_into().unwrap();
        let length = u64::from_le_bytes(length) as usize;
        records.push(take_checked(&mut rest, length).to_vec());
    }
    records
}

#[derive(Debug, PartialEq)]
enum Value {
    Varint(u64),
    Double(f64),
    Bytes(Vec<u8>),
    Float(f32),
}

fn take_varint(bytes: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in (0..).step_by(7) {
        let byte = take(bytes, 1)[0];
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            break;
        }
    }
    value
}

/// The fields of a message, in their order.
fn fields(mut bytes: &[u8]) -> Vec<(u64, Value)> {
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let key = take_varint(&mut bytes);
        let value = match key & 7 {
            0 => Value::Varint(take_varint(&mut bytes)),
            1 => Value::Double(f64::from_le_bytes(take(&mut bytes, 8).try_into().unwrap())),
            2 => {
                let length = take_varint(&mut bytes) as usize;
                Value::Bytes(take(&mut bytes, length).to_vec())
            }
            5 => Value::Float(f32::from_le_bytes(take(&mut bytes, 4).try_into().unwrap())),
            other => panic!("wire type {other}"),
        };
        fields.push((key >> 3, value));
    }
    fields
}

/// Takes the time away, which has to come first.
fn timed(record: &[u8]) -> Vec<(u64, Value)> {
    let mut fields = fields(record);
    let (number, time) = fields.remove(0);
    assert_eq!(number, 1);
    // From September 2001 to November 2286, if the clock is set.
    assert!(matches!(time, Value::Double(time) if (1e9..1e10).contains(&time)));
    fields
}

fn message(value: &Value) -> Vec<(u64, Value)> {
    match value {
        Value::Bytes(bytes) => fields(bytes),
        other => panic!("no message: {other:?}"),
    }
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    files
}

fn version() -> (u64, Value) {
    (3, Value::Bytes(b"brain.Event:2".to_vec()))
}

#[test]
fn the_checksum_is_that_of_rfc_3720() {
    for checksum in [crc32c, |data: &[u8]| CRC.checksum(data)] {
        assert_eq!(checksum(&[0; 32]), 0x8a91_36aa);
        assert_eq!(checksum(b"123456789"), 0xe306_9283);
    }
}

#[test]
fn scalars_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("run/tensorboard");
    let mut board = TensorBoard::create(&dir).unwrap();
    let scalars = [("train/loss", 1, 2.5), ("valid/kl", 300, -0.125)];
    for (tag, step, value) in scalars {
        board.scalar(tag, step, value).unwrap();
    }
    board.flush().unwrap();

    let [file] = files(&dir).try_into().unwrap();
    let records = records(&file);
    assert_eq!(records.len(), 3);
    assert_eq!(timed(&records[0]), [version()]);
    for (record, (tag, step, value)) in records[1..].iter().zip(scalars) {
        let event = timed(record);
        assert_eq!(event[0], (2, Value::Varint(step as u64)));
        let [(5, summary)] = &event[1..] else {
            panic!("{event:?}");
        };
        let [(1, inner)] = &message(summary)[..] else {
            panic!("{summary:?}");
        };
        let expected = [
            (1, Value::Bytes(tag.as_bytes().to_vec())),
            (2, Value::Float(value as f32)),
        ];
        assert_eq!(message(inner), expected);
    }
}

#[test]
fn a_resumed_run_has_another_file_that_comes_later() {
    let dir = tempfile::tempdir().unwrap();
    // The clock was put back, or the events are another program's.
    let first = dir
        .path()
        .join("events.out.tfevents.9000000000.elsewhere.1.0");
    fs::write(&first, "").unwrap();
    drop(TensorBoard::resume(dir.path(), 200).unwrap());
    drop(TensorBoard::resume(dir.path(), 250).unwrap());

    let files = files(dir.path());
    assert_eq!(files[0], first);
    for (file, step) in files[1..].iter().zip([201, 251]) {
        let [start, session] = records(file).try_into().unwrap();
        assert_eq!(timed(&start), [version()]);
        let event = timed(&session);
        assert_eq!(event[0], (2, Value::Varint(step)));
        assert_eq!(event[1].0, 7);
        assert_eq!(message(&event[1].1), [(1, Value::Varint(1))]);
    }
    assert_eq!(files.len(), 3);
}

#[test]
fn a_file_in_the_folders_place_is_named() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let error = TensorBoard::create(file.path()).unwrap_err();
    assert!(matches!(error, FileError::Write { file: named, .. } if named == file.path()));
}

#[test]
fn what_cannot_be_written_is_an_error() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().to_owned();
    // Opened for reading alone.
    let mut board = TensorBoard {
        file: BufWriter::new(File::open(&path).unwrap()),
        path: path.clone(),
    };
    board.scalar("train/loss", 1, 2.5).unwrap();
    let error = board.flush().unwrap_err();
    assert!(matches!(error, FileError::Write { file, .. } if file == path));
}
