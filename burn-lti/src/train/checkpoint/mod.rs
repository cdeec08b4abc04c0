//! Checkpoints inside a training, from which it goes on as if it had never stopped.
//!
//! A [`CheckpointDir`] holds one folder for each checkpoint, `step-00000200` for instance:
//!
//! | file | what |
//! |---|---|
//! | `trained.safetensors` | every parameter that trains, in its own float type, under its dotted name; the metadata has each one's Burn id. What does not train, the teacher's kernels `C` above all, is not there: it is made again |
//! | `optimizer.bin` | the optimizer's state, as Burn records it in full precision |
//! | `state.json` | step, score, the SHA-256 of both files, and whatever the caller wants to find again |
//!
//! A folder is written under another name, flushed to the disk and then renamed. So one that bears
//! the name of a step is whole; and should a file system do these in another order, the hashes tell.
//!
//! ```no_run
//! # use burn::module::AutodiffModule;
//! # use burn::optim::Optimizer;
//! # use burn::tensor::backend::AutodiffBackend;
//! # use burn_lti::train::{CheckpointDir, CheckpointError, RunState};
//! # use std::num::NonZeroUsize;
//! # fn example<B, M, O>(model: M, optimizer: O) -> Result<(), CheckpointError>
//! # where B: AutodiffBackend, M: AutodiffModule<B>, O: Optimizer<M, B> {
//! # let two = NonZeroUsize::MIN.saturating_add(1);
//! let mut checkpoints = CheckpointDir::open("out/checkpoints", two)?;
//! let (model, optimizer) = match checkpoints.latest() {
//!     Some(latest) => latest.restore_into(model, optimizer)?,
//!     None => (model, optimizer),
//! };
//! // ... train, and in the hook:
//! checkpoints.save(&model, &optimizer, RunState::at(200))?;
//! # Ok(())
//! # }
//! ```

mod dir;
mod error;
mod message_pack;
mod saved;
mod trained;

pub use dir::{Broken, CheckpointDir};
pub use error::CheckpointError;
pub use saved::{Checkpoint, RunState};
