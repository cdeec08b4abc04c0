//! All that CI runs, with the time that each part took.

use std::time::Instant;

use anyhow::Result;
use xshell::Shell;

use crate::suite::{self, Suite};
use crate::{CiArgs, check_steps};

/// Runs all checks and all tests, as far as `args` do not leave them out; stops at the first
/// failure. Ends with a table either way.
pub(crate) fn run(shell: &Shell, args: CiArgs) -> Result<()> {
    let mut steps = check_steps(args.check);
    let mut left_out = Vec::new();
    if args.tested {
        left_out.push("unit, laws and parity: --tested says that they have just passed");
    } else {
        steps.extend(suite::steps(shell, &suite::DEFAULT)?);
    }
    if args.without_real {
        left_out.push("real: --without-real");
    } else {
        steps.extend(Suite::Real.steps(shell)?);
    }

    let began = Instant::now();
    let mut lines = Vec::new();
    let mut result = Ok(());
    for step in &steps {
        let began = Instant::now();
        result = step.run(shell);
        lines.push(line(&step.name, began, result.is_ok()));
        if result.is_err() {
            break;
        }
    }
    lines.push(line("all", began, result.is_ok()));

    println!("\n{:<14} {:>8}", "part", "seconds");
    lines.iter().for_each(|line| println!("{line}"));
    let not_reached = steps.iter().skip(lines.len() - 1);
    not_reached.for_each(|step| println!("{:<14}  not run", step.name));
    left_out
        .iter()
        .for_each(|what| println!("left out: {what}"));
    result
}

fn line(name: &str, began: Instant, passed: bool) -> String {
    let seconds = began.elapsed().as_secs_f64();
    let outcome = if passed { "" } else { "   FAILED" };
    format!("{name:<14} {seconds:>8.1}{outcome}")
}
