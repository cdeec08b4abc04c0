//! How many tests passed, read from what cargo and its test programs print.

use std::ops::AddAssign;

/// Tests that ran, and tests that are marked as ignored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
    pub(crate) ignored: usize,
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
    }
}

/// Adds up the results in an output that arrives piece by piece.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    counts: Counts,
    /// The bytes after the last line break.
    line: Vec<u8>,
}

impl Tally {
    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.line.extend_from_slice(piece);
            if piece.ends_with(b"\n") {
                self.end_line();
            }
        }
    }

    /// The sum over all that was fed.
    pub(crate) fn finish(mut self) -> Counts {
        self.end_line();
        self.counts
    }

    fn end_line(&mut self) {
        if let Some(counts) = parse(&String::from_utf8_lossy(&self.line)) {
            self.counts += counts;
        }
        self.line.clear();
    }
}

/// The counts of a line such as `test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; ...`.
fn parse(line: &str) -> Option<Counts> {
    let (_, result) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let count = |what: &str| {
        let mut numbers = result.split("; ").filter_map(|part| part.split_once(' '));
        let (number, _) = numbers.find(|(_, name)| *name == what)?;
        number.parse().ok()
    };
    Some(Counts {
        passed: count("passed")?,
        failed: count("failed")?,
        ignored: count("ignored")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "\
running 3 tests
test on_tch::b ... ok
test result of a test that prints: 5 passed; 5 failed

test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.10s

test result: FAILED. 4 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.00s
";

    const SUM: Counts = Counts {
        passed: 16,
        failed: 2,
        ignored: 1,
    };

    #[test]
    fn results_add_up_wherever_the_output_is_cut() {
        for size in [1, 7, 64, OUTPUT.len()] {
            let mut tally = Tally::default();
            OUTPUT
                .as_bytes()
                .chunks(size)
                .for_each(|chunk| tally.feed(chunk));
            assert_eq!(tally.finish(), SUM, "in pieces of {size} bytes");
        }
    }

    #[test]
    fn the_last_line_needs_no_line_break() {
        let mut tally = Tally::default();
        tally.feed(OUTPUT.trim_end().as_bytes());
        assert_eq!(tally.finish(), SUM);
    }

    #[test]
    fn other_lines_count_nothing() {
        for line in [
            "",
            "test result: ok",
            "test result: ok. many passed; 0 failed; 0 ignored",
        ] {
            assert_eq!(parse(line), None, "{line}");
        }
    }
}
