//! A checkpoint: its state, the parameters that train, the optimizer.

use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use burn::backend::{Autodiff, Flex};
use burn::nn::{Linear, LinearConfig};
use burn::optim::adaptor::OptimizerAdaptor;
use burn::optim::{Adam, AdamConfig, GradientsParams, Optimizer};
use burn::prelude::*;
use burn_lti::files::sha256;
use burn_lti::train::{Checkpoint, CheckpointDir, RunState};
use tempfile::TempDir;

use super::{folder, more_seeds, sealed, weights, write};
use crate::Target;
use crate::memory::BOUND;

type B = Autodiff<Flex>;
type AdamOf = OptimizerAdaptor<Adam, Linear<B>, B>;

const STATE: &str = "state.json";
const TRAINED: &str = "trained.safetensors";
const OPTIMIZER: &str = "optimizer.bin";

/// `state.json`. One that is read says what it said.
pub fn checkpoint_state() -> Target {
    let (dir, path) = checkpoint();
    let (module, optimizer) = modules();
    let read = |name: &str| fs::read(path.join(name)).expect("a file of a checkpoint");
    let state = read(STATE);
    Target {
        seeds: [vec![state], more_seeds("checkpoint_state")].concat(),
        words: &[
            "\"schema\"",
            "\"step\"",
            "\"score\"",
            "\"caller\"",
            "\"trained_sha256\"",
            "\"optimizer_sha256\"",
        ],
        bound: BOUND,
        check: Box::new(move |bytes| {
            let _kept = &dir;
            write(&path.join(STATE), bytes);
            restores(&path, &module, &optimizer)
        }),
    }
}

/// The parameters, whose hash in the state is right.
pub fn checkpoint_trained() -> Target {
    part(
        "checkpoint_trained",
        TRAINED,
        "/trained_sha256",
        weights::WORDS,
    )
}

/// The optimizer, whose hash in the state is right.
pub fn checkpoint_optimizer() -> Target {
    let words = &["shape", "bytes", "dtype", "F32", "item"];
    Target {
        // Burn's autodiff keeps a note of every parameter that it was ever given: after a million files they
        // take more than the bound of others, whatever is in the files.
        bound: 512 << 20,
        ..part(
            "checkpoint_optimizer",
            OPTIMIZER,
            "/optimizer_sha256",
            words,
        )
    }
}

fn part(
    target: &str,
    name: &'static str,
    hash: &'static str,
    words: &'static [&'static str],
) -> Target {
    let (dir, path) = checkpoint();
    let (module, optimizer) = modules();
    let read = |name: &str| fs::read(path.join(name)).expect("a file of a checkpoint");
    let (state, seed) = (read(STATE), read(name));
    Target {
        seeds: [vec![seed], more_seeds(target)].concat(),
        words,
        bound: BOUND,
        check: Box::new(move |bytes| {
            let _kept = &dir;
            write(&path.join(name), bytes);
            write(&path.join(STATE), &sealed(&state, hash, &sha256(bytes)));
            restores(&path, &module, &optimizer)
        }),
    }
}

/// Whether the checkpoint is one, and goes into the modules that it was made of.
fn restores(path: &Path, module: &Linear<B>, optimizer: &AdamOf) -> bool {
    let Ok(checkpoint) = Checkpoint::open(path) else {
        return false;
    };
    let (module, optimizer) = (module.clone(), optimizer.clone());
    let Ok((module, _)) = checkpoint.restore_into::<B, _, AdamOf>(module, optimizer) else {
        return false;
    };
    assert_eq!(module.weight.dims(), [2, 3]);
    true
}

fn modules() -> (Linear<B>, AdamOf) {
    let linear = LinearConfig::new(2, 3).init(&Default::default());
    (linear, AdamConfig::new().init())
}

/// The folder of a checkpoint of one step, and what keeps it.
fn checkpoint() -> (TempDir, PathBuf) {
    let dir = folder();
    let (module, mut optimizer) = modules();
    let input = Tensor::<B, 2>::ones([1, 2], &Default::default());
    let gradients = module.forward(input).sum().backward();
    let gradients = GradientsParams::from_grads(gradients, &module);
    let module = optimizer.step(1e-3, module, gradients);
    let mut checkpoints = CheckpointDir::open(dir.path(), NonZeroUsize::MIN).expect("a folder");
    let state = RunState {
        score: Some(0.5),
        ..RunState::at(1)
    };
    let saved = checkpoints
        .save(&module, &optimizer, state)
        .expect("a checkpoint");
    let path = saved.path().to_owned();
    (dir, path)
}
