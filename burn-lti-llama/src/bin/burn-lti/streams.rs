//! What the command prints, to whoever still reads.

use std::fmt::Arguments;
use std::io::{self, ErrorKind, Write};
use std::process;

/// The exit status of a program that ends because nobody reads what it prints, as a shell has it (128 + SIGPIPE).
const NOBODY_READS: i32 = 141;

/// `println!`, which ends the program without a word where nobody reads its output any more.
macro_rules! say {
    () => { crate::streams::output(format_args!("\n")) };
    ($($part:tt)*) => { crate::streams::output(format_args!("{}\n", format_args!($($part)*))) };
}

/// `print!`, likewise, and at once.
macro_rules! say_on {
    ($($part:tt)*) => { crate::streams::output(format_args!($($part)*)) };
}

/// `eprintln!`, which goes on where nobody reads what it says: no run is lost for a closed window.
macro_rules! tell {
    ($($part:tt)*) => { crate::streams::note(format_args!("{}\n", format_args!($($part)*))) };
}

pub(crate) use {say, say_on, tell};

/// Writes to the standard output. A command prints what it has to say at its end, when all is saved.
pub(crate) fn output(text: Arguments<'_>) {
    let mut stdout = io::stdout().lock();
    match stdout.write_fmt(text).and_then(|()| stdout.flush()) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::BrokenPipe => process::exit(NOBODY_READS),
        Err(error) => {
            note(format_args!(
                "error: the output cannot be written: {error}\n"
            ));
            process::exit(1);
        }
    }
}

/// Writes to the standard error, if it can.
pub(crate) fn note(text: Arguments<'_>) {
    let _ = io::stderr().lock().write_fmt(text);
}

/// The command line, for the record of a run; what is no Unicode is replaced.
pub(crate) fn command_line() -> Vec<String> {
    let arguments = std::env::args_os();
    arguments
        .map(|argument| argument.to_string_lossy().into_owned())
        .collect()
}
