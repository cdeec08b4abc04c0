//! Every parser on files that nobody wrote: a short pass with fixed random numbers, or as many executions as
//! `cargo xtask fuzz` asks for.

use std::panic::{AssertUnwindSafe, catch_unwind};

use burn_lti_fuzz::memory::{BOUND, Counting, peak};
use burn_lti_fuzz::{EXECUTIONS, Outcome, SEED, Target, from_environment, run, targets};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Executions of a target in a test run: all targets together take a few seconds.
const FEW: usize = 2000;

macro_rules! fuzz {
    ($($name:ident)+) => {
        $(#[test]
        fn $name() {
            fuzz(stringify!($name), &targets::$name());
        })+
    };
}

fuzz! {
    recipe overrides shard_size
    config
    weights weights_index tensor_file
    gguf
    cache_index cache_shard
    checkpoint_state checkpoint_trained checkpoint_optimizer
    start
    manifest metrics
    text_lines json_lines json_list csv_table packed_gzip packed_zstd columns
    tokenizer tokenizer_config chat_template
}

fn fuzz(name: &str, target: &Target) {
    let executions = from_environment(EXECUTIONS, FEW);
    let Outcome {
        executions,
        read,
        peak,
    } = run(target, executions, from_environment(SEED, 0));
    // A target whose files are all refused tests nothing behind the first refusal.
    assert!(read > 0, "no file of {name} is read");
    eprintln!(
        "{name}: {executions} executions, {read} read, at most {} KiB",
        peak >> 10
    );
}

#[test]
fn a_panic_a_waste_and_a_broken_promise_are_found() {
    let found = |check: fn(&[u8]) -> bool| {
        let target = Target {
            seeds: vec![b"a 1 b".to_vec()],
            words: &["magic"],
            bound: BOUND,
            check: Box::new(check),
        };
        let said = catch_unwind(AssertUnwindSafe(|| run(&target, 4000, 0))).unwrap_err();
        said.downcast_ref::<String>().expect("a message").clone()
    };
    let said = found(|bytes| !bytes.windows(5).any(|it| it == b"magic") || panic!("the word"));
    let file = said.rsplit("the file is ").next().expect("a file");
    assert!(
        said.contains("the word") && file.contains("magic"),
        "{said}"
    );
    let said = found(|bytes| {
        if bytes.len() > 20 {
            drop(Vec::<u8>::with_capacity(BOUND + 1));
        }
        true
    });
    assert!(said.contains("bytes were allocated"), "{said}");
}

#[test]
fn the_same_seed_gives_the_same_files() {
    let files = |seed| {
        let seen = std::rc::Rc::new(std::cell::RefCell::new(Vec::new()));
        let kept = seen.clone();
        let target = Target {
            seeds: vec![b"a 1 b".to_vec()],
            words: &[],
            bound: BOUND,
            check: Box::new(move |bytes| {
                kept.borrow_mut().push(bytes.to_vec());
                true
            }),
        };
        run(&target, 50, seed);
        seen.take()
    };
    assert_eq!(files(3), files(3));
    assert_ne!(files(3), files(4));
}

#[test]
fn memory_is_counted_and_given_back() {
    let (kept, bytes) = peak(|| {
        drop(vec![0_u8; 3 << 20]);
        vec![0_u8; 1 << 20]
    });
    assert!((3 << 20..4 << 20).contains(&bytes), "{bytes}");
    drop(kept);
}
