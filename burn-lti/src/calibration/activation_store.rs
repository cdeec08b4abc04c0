//! Hidden states of the calibration text, on disk: memory holds one batch.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use burn::prelude::*;
use burn::tensor::{DType, TensorData};

use super::error::{CalibrationError, Result};

/// Activations that are kept for each batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stream {
    /// What the teacher's attention adds in the layer that is being fitted.
    Attention,
    /// The student's layer input: its residual stream before that layer.
    Student,
    /// The teacher's input of this layer, or the last layer's output.
    Teacher(usize),
}

impl Stream {
    /// Its number among the streams of a batch.
    const fn index(self) -> u64 {
        match self {
            Self::Attention => 0,
            Self::Student => 1,
            Self::Teacher(layer) => 2 + layer as u64,
        }
    }
}

/// Activations of all batches in a temporary file, which the system removes when it is closed.
#[derive(Debug)]
pub(super) struct ActivationStore {
    file: File,
    folder: PathBuf,
    dtype: DType,
    /// Streams that a batch has room for.
    streams: u64,
    /// Features of the student's stream, if they are fewer than the teacher's.
    narrow: Option<usize>,
    batches: Vec<Region>,
    end: u64,
}

#[derive(Clone, Copy, Debug)]
struct Region {
    shape: [usize; 3],
    begins: u64,
    bytes: u64,
}

impl ActivationStore {
    /// For a teacher of so many layers, and a student whose stream may be `narrow`er.
    pub(super) fn new(dtype: DType, layers: usize, narrow: Option<usize>) -> Result<Self> {
        Self::in_folder(&std::env::temp_dir(), dtype, layers, narrow)
    }

    fn in_folder(
        folder: &Path,
        dtype: DType,
        layers: usize,
        narrow: Option<usize>,
    ) -> Result<Self> {
        Ok(Self {
            file: tempfile::tempfile_in(folder).map_err(|source| problem(folder, source))?,
            folder: folder.to_owned(),
            dtype,
            streams: Stream::Teacher(layers).index() + 1,
            narrow,
            batches: Vec::new(),
            end: 0,
        })
    }

    /// Makes room for another batch whose streams have this shape, and returns its number.
    pub(super) fn add_batch(&mut self, shape: [usize; 3]) -> usize {
        let elements = shape.iter().product::<usize>() as u64;
        let bytes = elements * self.dtype.size() as u64;
        self.batches.push(Region {
            shape,
            begins: self.end,
            bytes,
        });
        self.end += self.streams * bytes;
        self.batches.len() - 1
    }

    pub(super) fn write<B: Backend>(
        &mut self,
        batch: usize,
        stream: Stream,
        tensor: Tensor<B, 3>,
    ) -> Result<()> {
        let data = tensor.cast(self.dtype).into_data();
        self.seek(batch, stream)?;
        let written = self.file.write_all(data.as_bytes());
        written.map_err(|source| problem(&self.folder, source))
    }

    pub(super) fn read<B: Backend>(
        &mut self,
        batch: usize,
        stream: Stream,
        device: &B::Device,
    ) -> Result<Tensor<B, 3>> {
        let mut shape = self.batches[batch].shape;
        if let (Stream::Student, Some(features)) = (stream, self.narrow) {
            shape[2] = features;
        }
        self.seek(batch, stream)?;
        let mut values = vec![0; shape.iter().product::<usize>() * self.dtype.size()];
        let read = self.file.read_exact(&mut values);
        read.map_err(|source| problem(&self.folder, source))?;
        let data = TensorData::from_bytes_vec(values, shape, self.dtype);
        Ok(Tensor::from_data(data, (device, self.dtype)))
    }

    fn seek(&mut self, batch: usize, stream: Stream) -> Result<()> {
        let Region { begins, bytes, .. } = self.batches[batch];
        let to = SeekFrom::Start(begins + stream.index() * bytes);
        let found = self.file.seek(to).map(drop);
        found.map_err(|source| problem(&self.folder, source))
    }
}

fn problem(folder: &Path, source: io::Error) -> CalibrationError {
    CalibrationError::ActivationStore {
        folder: folder.display().to_string(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use burn::backend::Flex;

    use super::*;

    #[test]
    fn every_stream_of_every_batch_has_its_own_place() {
        let device = Default::default();
        let shapes = [[2, 3, 4], [1, 3, 4]];
        let streams = [
            Stream::Student,
            Stream::Teacher(2),
            Stream::Attention,
            Stream::Teacher(0),
            Stream::Teacher(1),
        ];
        for dtype in [DType::F32, DType::BF16] {
            let mut store = ActivationStore::new(dtype, 2, None).unwrap();
            assert_eq!(shapes.map(|shape| store.add_batch(shape)), [0, 1]);
            let number = |batch: usize, index: usize| (10 * batch + index) as f32;
            for (index, stream) in streams.into_iter().enumerate() {
                for (batch, shape) in shapes.into_iter().enumerate() {
                    let tensor = Tensor::<Flex, 3>::full(shape, number(batch, index), &device);
                    store.write(batch, stream, tensor).unwrap();
                }
            }
            for (index, stream) in streams.into_iter().enumerate() {
                for (batch, shape) in shapes.into_iter().enumerate() {
                    let found = store.read::<Flex>(batch, stream, &device).unwrap();
                    assert_eq!((found.dims(), found.dtype()), (shape, dtype));
                    let data = found.into_data();
                    let expected = number(batch, index);
                    assert!(data.iter::<f32>().all(|value| value == expected));
                }
            }
        }
    }

    #[test]
    fn a_folder_that_takes_no_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let gone = folder.path().join("gone");
        let error =
            ActivationStore::in_folder(&gone, DType::F32, 1, None).expect_err("there is no folder");
        let message = error.to_string();
        assert!(message.contains(&gone.display().to_string()), "{message}");
        assert!(message.contains("TMPDIR"), "{message}");
    }
}
