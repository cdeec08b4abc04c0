//! What a backward pass keeps at most: a program of its own, because it counts every byte.
//!
//! Burn works out the gradient of a `Linear` on an input of more than two axes as one product a row
//! of the batch, `[batch, d_input, d_output]`, and sums afterwards. The layers here join the axes
//! first. Only backends that allocate through Rust can be watched.
#![cfg(any(feature = "flex", feature = "ndarray"))]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use burn::nn::LinearConfig;
use burn::prelude::*;
use burn::tensor::backend::AutodiffBackend;
use burn_lti::decoder::{Project, Projection};
use burn_lti::dense::{HeadGrid, LtiDenseConfig, ProjectionKind};
use burn_lti_llama::config::LlamaConfig;
use burn_lti_llama::model::PlainLlama;
use burn_lti_tests::llama::causal_batch;
use burn_lti_tests::numbers::Numbers;

struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

fn grown(bytes: usize) {
    let now = NOW.fetch_add(bytes, Ordering::Relaxed) + bytes;
    PEAK.fetch_max(now, Ordering::Relaxed);
}

// SAFETY: every call is handed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grown(layout.size());
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The most that `work` had allocated at a time, beyond what there was before.
fn peak(work: impl FnOnce()) -> usize {
    let before = NOW.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    work();
    PEAK.load(Ordering::Relaxed).saturating_sub(before)
}

const ROWS: usize = 96;
const TOKENS: usize = 4;
const WIDTH: usize = 128;
/// Bytes of a weight gradient for every row of the batch: 6 MiB.
const BATCHED: usize = ROWS * WIDTH * WIDTH * 4;

fn input<A: AutodiffBackend>(device: &A::Device) -> Tensor<A, 3> {
    Numbers::new(1).tensor([ROWS, TOKENS, WIDTH], device)
}

/// The trap itself, so that the checks below could fail.
fn burns_linear<A: AutodiffBackend>(device: &A::Device) -> usize {
    let linear = LinearConfig::new(WIDTH, WIDTH).init::<A>(device);
    let input = input::<A>(device);
    peak(|| drop(linear.forward(input).sum().backward()))
}

fn a_map<A: AutodiffBackend>(device: &A::Device) -> usize {
    let grid = HeadGrid::new(4, WIDTH / 4);
    let config = LtiDenseConfig::new(ProjectionKind::Qkv, WIDTH, grid, grid);
    let c = Numbers::new(2).tensor::<A, 3>(config.c_shape(), device);
    let map = Projection::Lti(config.init(c).expect("a projection"));
    let input = input::<A>(device);
    peak(|| drop(map.project(input).sum().backward()))
}

/// A whole Llama, all of which trains: its feed-forward gradients alone would be three times
/// `BATCHED`.
fn a_llama<A: AutodiffBackend>(device: &A::Device) -> usize {
    let text = format!(
        r#"{{"model_type": "llama", "hidden_size": {WIDTH}, "intermediate_size": {WIDTH},
            "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 4,
            "vocab_size": 64, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0, "tie_word_embeddings": true}}"#
    );
    let dir = tempfile::tempdir().expect("a folder");
    std::fs::write(dir.path().join("config.json"), text).expect("a file");
    let config = LlamaConfig::from_dir(dir.path()).expect("a configuration");
    let model = PlainLlama::<A>::init(&config, device);
    let tokens = Numbers::new(3).ids(ROWS * TOKENS, 64);
    let batch = causal_batch::<A>([ROWS, TOKENS], &tokens, device);
    let logits = model.logits(&batch);
    peak(|| drop(logits.sum().backward()))
}

fn check<A: AutodiffBackend>() {
    let device = A::Device::default();
    let trap = burns_linear::<A>(&device);
    assert!(trap > BATCHED, "Burn has changed: {trap} bytes");
    // Activations are `ROWS * TOKENS * WIDTH * 4` bytes each, a thirty-second of `BATCHED`.
    let (map, llama) = (a_map::<A>(&device), a_llama::<A>(&device));
    eprintln!(
        "{}: trap {trap}, map {map}, llama {llama}",
        A::name(&device)
    );
    assert!(map < BATCHED / 2, "a map: {map} bytes");
    assert!(llama < BATCHED, "a llama: {llama} bytes");
}

/// One test, because what others allocate at the same time would count.
#[test]
fn no_gradient_is_kept_for_every_row_of_the_batch() {
    #[cfg(feature = "flex")]
    check::<burn_lti_tests::backend::Flex>();
    #[cfg(feature = "ndarray")]
    check::<burn_lti_tests::backend::NdArray>();
}
