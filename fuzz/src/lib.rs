//! Files that nobody wrote, for every parser of burn-lti.
//!
//! A [`Target`] is a parser with files that it reads, its *seeds*. An execution gives it a seed that was
//! changed in some places ([`mutation`]). Three things must hold: nothing panics, nothing allocates more than
//! its bound, and what is read keeps its promise, as a rule that it is written and read again the
//! same.
//!
//! `tests/targets.rs` runs each target a few times with a fixed seed, in every test run; `cargo xtask fuzz`
//! runs it a million times. What is found becomes a seed, in `seeds`, once it is mended.
//!
//! It is proptest and no fuzzer that is led by coverage: those need a nightly compiler or an instrumented
//! build of Burn. Seeds, words of the format and many executions take the place of the lead. Nor bolero: its
//! engine on a stable compiler cannot be given a seed for all of a run.

pub mod memory;
pub mod mutation;
pub mod targets;

use std::env;

use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};

/// The variable that says how many executions a target has.
pub const EXECUTIONS: &str = "BURN_LTI_FUZZ_EXECUTIONS";
/// The variable that says which random numbers they have. Another number is another run.
pub const SEED: &str = "BURN_LTI_FUZZ_SEED";

/// A parser and what it is given.
pub struct Target {
    /// Files that it reads, more or less. They are given to it as they are before any is changed.
    pub seeds: Vec<Vec<u8>>,
    /// Words of the format, which are put in.
    pub words: &'static [&'static str],
    /// The most bytes that a file may make it allocate: [`memory::BOUND`], if there is no reason for another.
    pub bound: usize,
    /// Reads the bytes of a file, and panics if what it read breaks a promise. Says whether it was read.
    pub check: Check,
}

/// What a target does with a file.
pub type Check = Box<dyn Fn(&[u8]) -> bool>;

/// What a run of a target came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Files that were given.
    pub executions: usize,
    /// Those of them that were read without an error.
    pub read: usize,
    /// The most bytes that one took.
    pub peak: usize,
}

/// Runs a target `executions` times, and its seeds before.
///
/// # Panics
///
/// With the smallest file found that makes it panic, take too much memory, or break a promise.
pub fn run(target: &Target, executions: usize, seed: u64) -> Outcome {
    let (read, peak) = (std::cell::Cell::new(0), std::cell::Cell::new(0));
    let execute = |bytes: &[u8]| {
        let (was_read, allocated) = memory::peak(|| (target.check)(bytes));
        read.set(read.get() + usize::from(was_read));
        peak.set(peak.get().max(allocated));
        assert!(
            allocated <= target.bound,
            "{allocated} bytes were allocated for a file of {}, more than {}",
            bytes.len(),
            target.bound
        );
    };
    for bytes in &target.seeds {
        execute(bytes);
    }

    let config = Config {
        cases: u32::try_from(executions).expect("executions fit into 32 bits"),
        failure_persistence: None,
        max_shrink_iters: 4096,
        ..Config::default()
    };
    let mut numbers = [0; 32];
    numbers[..8].copy_from_slice(&seed.to_le_bytes());
    let numbers = TestRng::from_seed(RngAlgorithm::ChaCha, &numbers);
    let strategy = mutation::files(&target.seeds, target.words);
    let found = TestRunner::new_with_rng(config, numbers).run(&strategy, |file| {
        execute(&file.0);
        Ok::<(), TestCaseError>(())
    });
    match found {
        Ok(()) => Outcome {
            executions: executions + target.seeds.len(),
            read: read.get(),
            peak: peak.get(),
        },
        Err(TestError::Fail(why, file)) => panic!("{why}\nthe file is {file:?}"),
        Err(TestError::Abort(why)) => panic!("{why}"),
    }
}

/// A number that the environment may give.
///
/// # Panics
///
/// If it is none.
pub fn from_environment<T: std::str::FromStr>(variable: &str, otherwise: T) -> T {
    match env::var(variable) {
        Ok(text) => text
            .parse()
            .unwrap_or_else(|_| panic!("{variable} is {text:?}: give a number")),
        Err(_) => otherwise,
    }
}
