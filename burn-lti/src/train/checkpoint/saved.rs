//! [`Checkpoint`]: one saved step, written, checked and restored.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use burn::module::AutodiffModule;
use burn::optim::Optimizer;
use burn::prelude::*;
use burn::record::{
    DoublePrecisionSettings, FullPrecisionSettings, NamedMpkBytesRecorder, Record, Recorder,
    RecorderError,
};
use burn::tensor::DType;
use burn::tensor::backend::AutodiffBackend;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::CheckpointError;
use super::message_pack;
use super::trained::{self, TrainedFile};
use crate::files::{guarded, sha256};
use crate::parameters::tie;

const TRAINED: &str = "trained.safetensors";
const OPTIMIZER: &str = "optimizer.bin";
const STATE: &str = "state.json";

/// How these files are laid out, and how tensors are named: 2 since maps have two axes and a side, 3
/// since an optimizer may measure its rates.
const SCHEMA: u32 = 4;

/// Where a run stands, besides its model and its optimizer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunState {
    /// The optimizer steps taken.
    pub step: usize,
    /// How good the model is on data it does not train on, if that was measured: lower is better.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub score: Option<f64>,
    /// What else the caller needs to go on. Comes back number for number.
    pub caller: Value,
}

impl RunState {
    /// After `step` optimizer steps, with nothing else to keep.
    pub const fn at(step: usize) -> Self {
        Self {
            step,
            score: None,
            caller: Value::Null,
        }
    }
}

/// A checkpoint whose files were found to be what was saved.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    path: PathBuf,
    state: StateFile,
}

/// `state.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct StateFile {
    schema: u32,
    #[serde(flatten)]
    run: RunState,
    trained_sha256: String,
    optimizer_sha256: String,
}

impl Checkpoint {
    /// Its folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the run stood.
    pub const fn run(&self) -> &RunState {
        &self.state.run
    }

    /// Reads the checkpoint in a folder and compares its files with their hashes.
    ///
    /// # Errors
    ///
    /// - [`CheckpointError::Io`]: a file is not there or cannot be read.
    /// - [`CheckpointError::Damaged`]: a file is not what was saved.
    /// - [`CheckpointError::Refused`]: `state.json` is another version's.
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        let state_path = path.join(STATE);
        let text = fs::read(&state_path).map_err(CheckpointError::at(&state_path))?;
        let broken = CheckpointError::state(&state_path);
        let Schema { schema } = serde_json::from_slice(&text).map_err(&broken)?;
        if schema != SCHEMA {
            return Err(CheckpointError::refused(format!(
                "{} has schema {schema}, this version reads {SCHEMA}: use the version that wrote it",
                state_path.display()
            )));
        }
        let checkpoint = Self {
            path: path.to_owned(),
            state: serde_json::from_slice(&text).map_err(broken)?,
        };
        checkpoint.trained()?;
        checkpoint.optimizer()?;
        Ok(checkpoint)
    }

    /// Brings `module` and `optimizer` to where they stood.
    ///
    /// The parameters of `module` that train get their values and Burn ids back, by name; the ids are
    /// what the optimizer's state goes by. Those of one id are [tied](tie) again. So `module` has to be what was saved but for these, and
    /// `optimizer` has to be made with the same settings.
    ///
    /// # Errors
    ///
    /// Before anything is changed:
    ///
    /// - [`CheckpointError::Io`], [`CheckpointError::Damaged`]: the files have changed since.
    /// - [`CheckpointError::Refused`]: the tensors are not those that train, by name, or were not written
    ///   by this library, or the state is not that of such an optimizer.
    pub fn restore_into<B, M, O>(&self, module: M, optimizer: O) -> Result<(M, O), CheckpointError>
    where
        B: AutodiffBackend,
        M: AutodiffModule<B>,
        O: Optimizer<M, B>,
    {
        let bytes = self.trained()?;
        let tensors = TrainedFile::parse(&bytes, &self.path.join(TRAINED))?;
        tensors.check(&module, &self.path)?;
        let device = module.devices().into_iter().next().unwrap_or_default();
        let optimizer_bytes = self.optimizer()?;
        if !message_pack::is_whole(&optimizer_bytes) {
            return Err(CheckpointError::Damaged {
                path: self.path.join(OPTIMIZER),
                what: "no state of an optimizer",
                source: None,
            });
        }
        // Burn panics over an id that is none.
        let record = guarded(|| from_bytes::<B, O::Record>(optimizer_bytes, &device))
            .unwrap_or_else(|said| Err(RecorderError::Unknown(said)))
            .map_err(CheckpointError::optimizer)?;
        // Each parameter was restored on its own, and in which order the gradients of one variable are added is part of
        // their bits.
        let module = tie(tensors.put_into(module));
        Ok((module, optimizer.load_record(record)))
    }

    /// Writes a checkpoint into a folder that is empty, and reads it back.
    pub(super) fn write<B, M, O>(
        path: &Path,
        module: &M,
        optimizer: &O,
        run: RunState,
    ) -> Result<Self, CheckpointError>
    where
        B: AutodiffBackend,
        M: AutodiffModule<B>,
        O: Optimizer<M, B>,
    {
        let device = module.devices().into_iter().next().unwrap_or_default();
        let float = float_type::<B>(&device);
        let trained_path = path.join(TRAINED);
        let trained = trained::to_bytes(module, float, &trained_path)?;
        let trained_sha256 = write(&trained_path, &trained)?;
        drop(trained);
        let optimizer = to_bytes::<B, O::Record>(optimizer.to_record(), float)
            .map_err(CheckpointError::optimizer)?;
        let state = StateFile {
            schema: SCHEMA,
            run,
            trained_sha256,
            optimizer_sha256: write(&path.join(OPTIMIZER), &optimizer)?,
        };
        let state_path = path.join(STATE);
        let text = serde_json::to_vec_pretty(&state);
        let text = text.map_err(CheckpointError::state(&state_path))?;
        write(&state_path, &text)?;
        Self::open(path)
    }

    /// Gives the folder its name.
    pub(super) fn rename(self, path: PathBuf) -> Result<Self, CheckpointError> {
        fs::rename(&self.path, &path).map_err(CheckpointError::at(&path))?;
        Ok(Self { path, ..self })
    }

    fn trained(&self) -> Result<Vec<u8>, CheckpointError> {
        read(&self.path.join(TRAINED), &self.state.trained_sha256)
    }

    fn optimizer(&self) -> Result<Vec<u8>, CheckpointError> {
        read(&self.path.join(OPTIMIZER), &self.state.optimizer_sha256)
    }
}

type Full = NamedMpkBytesRecorder<FullPrecisionSettings>;
type Double = NamedMpkBytesRecorder<DoublePrecisionSettings>;

/// What every version writes.
#[derive(Deserialize)]
struct Schema {
    schema: u32,
}

/// The float type of a device: that in which Burn brings records back.
fn float_type<B: Backend>(device: &B::Device) -> DType {
    Tensor::<B, 1>::empty([1], device).dtype()
}

/// A record in the precision of `float`; what is narrower than float32 fits into that.
fn to_bytes<B: Backend, R: Record<B>>(record: R, float: DType) -> Result<Vec<u8>, RecorderError> {
    match float {
        DType::F64 => Recorder::<B>::record(&Double::new(), record, ()),
        _ => Recorder::<B>::record(&Full::new(), record, ()),
    }
}

fn from_bytes<B: Backend, R: Record<B>>(
    bytes: Vec<u8>,
    device: &B::Device,
) -> Result<R, RecorderError> {
    match float_type::<B>(device) {
        DType::F64 => Recorder::<B>::load(&Double::new(), bytes, device),
        _ => Recorder::<B>::load(&Full::new(), bytes, device),
    }
}

/// Writes a file, brings it to the disk and returns its hash.
fn write(path: &Path, bytes: &[u8]) -> Result<String, CheckpointError> {
    let written = File::create_new(path).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    written.map_err(CheckpointError::at(path))?;
    Ok(sha256(bytes))
}

/// Reads a file that has to have this hash.
fn read(path: &Path, expected: &str) -> Result<Vec<u8>, CheckpointError> {
    let bytes = fs::read(path).map_err(CheckpointError::at(path))?;
    if sha256(&bytes) == expected {
        Ok(bytes)
    } else {
        Err(CheckpointError::Damaged {
            path: path.to_owned(),
            what: "not the file that was saved, its SHA-256 differs",
            source: None,
        })
    }
}
