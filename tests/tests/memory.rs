//! What a backward pass and the loss keep at most: a program of its own, because it counts every byte.
//!
//! Burn works out the gradient of a `Linear` on an input of more than two axes as one product a row
//! of the batch, `[batch, d_input, d_output]`, and sums afterwards. The layers here join the axes
//! first. The loss reads as many tokens at a time as make so many logits, however large the vocabulary.
//! Only backends that allocate through Rust can be watched.
#![cfg(any(feature = "flex", feature = "ndarray"))]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use burn::nn::LinearConfig;
use burn::prelude::*;
use burn::tensor::backend::AutodiffBackend;
use burn_lti::decoder::{Head, Project, Projection};
use burn_lti::geometry::HeadGrid;
use burn_lti::loss::{DistillationLoss, LossInput, TeacherTokens};
use burn_lti::map::{MapKind, ProjectionKind};
use burn_lti_llama::config::LlamaConfig;
use burn_lti_llama::model::PlainLlama;
use burn_lti_tests::dense::dense_config;
use burn_lti_tests::llama::causal_batch;
use burn_lti_tests::numbers::{Numbers, int_tensor};

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
    let config = dense_config(ProjectionKind::Qkv, WIDTH, grid, grid, MapKind::Factored);
    let c = Numbers::new(2).tensor::<A, 2>(config.c_shape(), device);
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

/// Beyond its inputs, heads among them, what the loss has at a time with its gradient.
fn a_loss<B: Backend>(tokens: usize, vocab: usize, device: &B::Device) -> usize {
    const D_MODEL: usize = 8;
    let mut numbers = Numbers::new(4);
    let mut hidden = || numbers.tensor::<B, 2>([tokens, D_MODEL], device);
    let (student_hidden, hidden) = (hidden(), hidden());
    let mut head = || Head {
        weight: numbers.tensor::<B, 2>([D_MODEL, vocab], device),
        trains: false,
        cap: None,
    };
    let (student_head, head) = (head(), head());
    let input = LossInput {
        student_hidden,
        student_head,
        teacher: TeacherTokens::Hidden { hidden, head },
        features: Vec::new(),
        targets: int_tensor(&numbers.ids(tokens, vocab), [tokens], device),
        mask: Tensor::ones([tokens], device),
    };
    let loss = DistillationLoss::new(0.9, 2.0, tokens).expect("settings");
    peak(|| drop(loss.gradient(input)))
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

    let loss = |tokens, vocab| a_loss::<A::InnerBackend>(tokens, vocab, &device);
    // As many logits as are read at a time, of a small vocabulary, of a large one, and of more tokens
    // of the large one.
    let (small, large, longer) = (loss(12288, 1 << 10), loss(96, 1 << 17), loss(300, 1 << 17));
    eprintln!("{}: loss {small}, {large}, {longer}", A::name(&device));
    assert!(small > 12288 * (1 << 10) * 4, "{small} bytes are no logits");
    // No third array as large beside the logits of both models.
    assert!(small < 5 * 12288 * (1 << 10) * 2, "{small} bytes");
    for other in [large, longer] {
        assert!(
            other * 5 <= small * 6,
            "{other} bytes, {small} of a small vocabulary"
        );
    }
}

/// One test, because what others allocate at the same time would count.
#[test]
fn memory_is_bounded_in_rows_tokens_and_vocabulary() {
    #[cfg(feature = "flex")]
    check::<burn_lti_tests::backend::Flex>();
    #[cfg(feature = "ndarray")]
    check::<burn_lti_tests::backend::NdArray>();
}
