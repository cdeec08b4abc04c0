//! What a run does when it is asked to stop: by Ctrl-C, by a terminal that closes, by a system that ends.

use std::process;
use std::time::{Duration, Instant};

use anyhow::Result;
use burn_lti_llama::distill::Interrupt;

use crate::streams::tell;

/// The exit status of a program that Ctrl-C ended, as a shell has it (128 + SIGINT).
const INTERRUPTED: i32 = 130;
/// Signals so soon after the first are the same: a terminal that closes sends several.
const SAME: Duration = Duration::from_millis(300);

/// What a signal asks of a run. The answer comes at once. Where no step is under way, the program ends, and says by
/// `way_on` how to go on; it also does when asked once more.
pub(crate) fn interrupted_by_signals(way_on: &'static str) -> Result<Interrupt> {
    let interrupt = Interrupt::default();
    let asked = interrupt.clone();
    let mut first: Option<Instant> = None;
    let hangup = Hangup::as_found();
    ctrlc::set_handler(move || {
        asked.end_search(|| {
            tell!(
                "interrupted in the search for a shape, of which nothing is kept: the same command searches again"
            );
            process::exit(INTERRUPTED);
        });
        if !asked.has_work() {
            tell!(
                "interrupted with no step under way: what was calculated so far is saved; {way_on}"
            );
            process::exit(INTERRUPTED);
        }
        match first {
            Some(first) if first.elapsed() < SAME => {}
            Some(_) => process::exit(INTERRUPTED), // who asks twice does not want to wait
            None => {
                first = Some(Instant::now());
                asked.ask();
                tell!(
                    "interrupted: after the step under way the run saves a checkpoint and a student, and \
                     ends; once more ends it at once"
                );
            }
        }
    })?;
    hangup.restore();
    Ok(interrupt)
}

/// Whether a terminal that closes is to be ignored, as `nohup` has it.
#[derive(Clone, Copy, Debug)]
struct Hangup {
    is_ignored: bool,
}

#[cfg(unix)]
impl Hangup {
    fn as_found() -> Self {
        // SAFETY: all zeros are a value of this struct of numbers, a pointer and a set.
        let mut now: libc::sigaction = unsafe { std::mem::zeroed() };
        // SAFETY: it asks for what there is, writes it where it may, and changes nothing.
        let status = unsafe { libc::sigaction(libc::SIGHUP, std::ptr::null(), &raw mut now) };
        Self {
            is_ignored: status == 0 && now.sa_sigaction == libc::SIG_IGN,
        }
    }

    fn restore(self) {
        if self.is_ignored {
            // SAFETY: to ignore a signal calls nothing.
            unsafe { libc::signal(libc::SIGHUP, libc::SIG_IGN) };
        }
    }
}

#[cfg(not(unix))]
impl Hangup {
    const fn as_found() -> Self {
        Self { is_ignored: false }
    }

    const fn restore(self) {
        let Self { is_ignored: _ } = self;
    }
}
