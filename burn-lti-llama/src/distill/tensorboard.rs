//! [`TensorBoard`]: event files, from which TensorBoard draws curves.
//!
//! A file is a row of TFRecords: the length of the data, a checksum of the length, the data, a
//! checksum of the data, all little-endian. The data is an `Event` of TensorFlow's `event.proto` in
//! the wire format of Protocol Buffers, of which four fields are used:
//!
//! ```text
//! Event      1 wall_time: double   2 step: int64   3 file_version: string
//!            5 summary: Summary    7 session_log: SessionLog
//! Summary    1 value: Value
//! Value      1 tag: string         2 simple_value: float
//! SessionLog 1 status: enum, of which 1 is START
//! ```

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use burn_lti::files::FileError;
use crc::{CRC_32_ISCSI, Crc};

/// TensorBoard takes files with `.tfevents.` in their names, and reads them in the names' order.
const PREFIX: &str = "events.out.tfevents.";
/// What the first event of a file says.
const FILE_VERSION: &str = "brain.Event:2";
/// `SessionLog.START`.
const START: u64 = 1;
/// The checksum of TFRecords, also called CRC-32C.
const CRC: Crc<u32> = Crc::<u32>::new(&CRC_32_ISCSI);

/// An event file that is being written.
///
/// ```
/// # use burn_lti_llama::distill::TensorBoard;
/// # let dir = tempfile::tempdir()?;
/// let mut board = TensorBoard::create(dir.path())?;
/// board.scalar("train/loss", 1, 2.5)?;
/// board.flush()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct TensorBoard {
    path: PathBuf,
    file: BufWriter<File>,
}

impl TensorBoard {
    /// Begins the events of a run in a new file of the folder `dir`, which is made if need be.
    ///
    /// # Errors
    ///
    /// [`FileError::Write`].
    pub fn create(dir: &Path) -> Result<Self, FileError> {
        let (path, file) = new_file(dir).map_err(FileError::writing(dir))?;
        let mut board = Self {
            path,
            file: BufWriter::new(file),
        };
        board.write(event().bytes(3, FILE_VERSION.as_bytes()))?;
        Ok(board)
    }

    /// Goes on after `step`, in a new file, with the run whose events are in `dir`. TensorBoard then
    /// leaves out what the earlier files say of later steps.
    ///
    /// # Errors
    ///
    /// [`FileError::Write`].
    pub fn resume(dir: &Path, step: usize) -> Result<Self, FileError> {
        let mut board = Self::create(dir)?;
        let session = Message::default().varint(1, START);
        // What is left out begins with the step of this event.
        let event = event().varint(2, step as u64 + 1);
        board.write(event.bytes(7, &session.0))?;
        Ok(board)
    }

    /// Writes one value of one curve, in single precision, as TensorBoard keeps it.
    ///
    /// # Errors
    ///
    /// [`FileError::Write`].
    pub fn scalar(&mut self, tag: &str, step: usize, value: f64) -> Result<(), FileError> {
        let value = Message::default()
            .bytes(1, tag.as_bytes())
            .float(2, value as f32);
        let summary = Message::default().bytes(1, &value.0);
        self.write(event().varint(2, step as u64).bytes(5, &summary.0))
    }

    /// Hands all that was written to the system, where TensorBoard can see it.
    ///
    /// # Errors
    ///
    /// [`FileError::Write`].
    pub fn flush(&mut self) -> Result<(), FileError> {
        self.file.flush().map_err(FileError::writing(&self.path))
    }

    fn write(&mut self, event: Message) -> Result<(), FileError> {
        let written = self.file.write_all(&record(&event.0));
        written.map_err(FileError::writing(&self.path))
    }
}

/// A new file whose name comes after those of all event files in the folder: it has the time in
/// seconds, or a later one where that is taken or the clock was put back.
fn new_file(dir: &Path) -> io::Result<(PathBuf, File)> {
    fs::create_dir_all(dir)?;
    let mut number = since_epoch().as_secs();
    for entry in fs::read_dir(dir)? {
        if let Some(taken) = entry?.file_name().to_str().and_then(number_in) {
            number = number.max(taken.saturating_add(1));
        }
    }
    let path = dir.join(format!("{PREFIX}{number:010}"));
    let file = File::create_new(&path)?;
    Ok((path, file))
}

/// The number in the name of an event file, ours or another's.
fn number_in(name: &str) -> Option<u64> {
    let number = name.strip_prefix(PREFIX)?.split('.').next()?;
    number.parse().ok()
}

/// A clock that stands before 1970 has not been set: its time is as good as none.
fn since_epoch() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

/// An event of now.
fn event() -> Message {
    Message::default().double(1, since_epoch().as_secs_f64())
}

/// A message of Protocol Buffers, field after field. Each begins with its number and the way in
/// which it is written, in one byte: our numbers are small.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(mut self, field: u8, value: u64) -> Self {
        self.0.push(field << 3);
        self.push_varint(value);
        self
    }

    fn double(mut self, field: u8, value: f64) -> Self {
        self.0.push(field << 3 | 1);
        self.0.extend(value.to_le_bytes());
        self
    }

    fn bytes(mut self, field: u8, bytes: &[u8]) -> Self {
        self.0.push(field << 3 | 2);
        self.push_varint(bytes.len() as u64);
        self.0.extend(bytes);
        self
    }

    fn float(mut self, field: u8, value: f32) -> Self {
        self.0.push(field << 3 | 5);
        self.0.extend(value.to_le_bytes());
        self
    }

    /// Seven bits a byte, the lowest first; the eighth says that another byte follows.
    fn push_varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }
}

/// `data` in the frame of a TFRecord.
fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let frame = [
        &length,
        &masked_crc(&length).to_le_bytes()[..],
        data,
        &masked_crc(data).to_le_bytes(),
    ];
    frame.concat()
}

/// Whether an event file that is begun here has such a name. Those of other programs have their host in it.
pub(super) fn is_event_file(name: &str) -> bool {
    let number = name.strip_prefix(PREFIX);
    number.is_some_and(|number| !number.is_empty() && number.bytes().all(|it| it.is_ascii_digit()))
}

/// A checksum is masked, so that one of data which holds checksums still tells something.
fn masked_crc(data: &[u8]) -> u32 {
    CRC.checksum(data)
        .rotate_right(15)
        .wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests;
