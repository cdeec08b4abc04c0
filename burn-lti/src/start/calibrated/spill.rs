//! Hidden states of the calibration text, on disk: memory holds one batch.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};

use burn::prelude::*;
use burn::tensor::{DType, TensorData};

use super::CalibrationError;

/// Streams that are kept for each batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stream {
    /// The teacher's residual stream in front of the layer.
    Teacher,
    /// The teacher's residual stream behind the layer.
    TeacherNext,
    /// What the teacher's attention adds.
    Attention,
    /// The student's residual stream.
    Student,
}

const STREAMS: u64 = 4;

/// Streams of all batches in a temporary file, which the system removes when it is closed.
#[derive(Debug)]
pub(super) struct Spill {
    file: File,
    dtype: DType,
    batches: Vec<Place>,
    end: u64,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    shape: [usize; 3],
    begins: u64,
    bytes: u64,
}

impl Spill {
    pub(super) fn new(dtype: DType) -> Result<Self, CalibrationError> {
        Ok(Self {
            file: tempfile::tempfile().map_err(problem)?,
            dtype,
            batches: Vec::new(),
            end: 0,
        })
    }

    /// Makes room for another batch whose streams have this shape, and returns its number.
    pub(super) fn add_batch(&mut self, shape: [usize; 3]) -> usize {
        let elements = shape.iter().product::<usize>() as u64;
        let bytes = elements * self.dtype.size() as u64;
        self.batches.push(Place {
            shape,
            begins: self.end,
            bytes,
        });
        self.end += STREAMS * bytes;
        self.batches.len() - 1
    }

    pub(super) fn write<B: Backend>(
        &mut self,
        batch: usize,
        stream: Stream,
        tensor: Tensor<B, 3>,
    ) -> Result<(), CalibrationError> {
        let data = tensor.cast(self.dtype).into_data();
        self.seek(batch, stream)?;
        self.file.write_all(data.as_bytes()).map_err(problem)
    }

    pub(super) fn read<B: Backend>(
        &mut self,
        batch: usize,
        stream: Stream,
        device: &B::Device,
    ) -> Result<Tensor<B, 3>, CalibrationError> {
        let Place { shape, bytes, .. } = self.batches[batch];
        self.seek(batch, stream)?;
        let mut values = vec![0; bytes as usize];
        self.file.read_exact(&mut values).map_err(problem)?;
        let data = TensorData::from_bytes_vec(values, shape, self.dtype);
        Ok(Tensor::from_data(data, (device, self.dtype)))
    }

    fn seek(&mut self, batch: usize, stream: Stream) -> Result<(), CalibrationError> {
        let Place { begins, bytes, .. } = self.batches[batch];
        let to = SeekFrom::Start(begins + stream as u64 * bytes);
        self.file.seek(to).map_err(problem).map(drop)
    }
}

fn problem(source: io::Error) -> CalibrationError {
    CalibrationError::Spill {
        folder: std::env::temp_dir().display().to_string(),
        source,
    }
}
