//! What CI runs: the checks, then the tests, on backends that must all be there.

use std::path::Path;

use anyhow::Result;

use crate::backend::{self, Backend, TESTABLE};
use crate::setup::Installed;
use crate::step::Step;
use crate::suite::{self, Suite};
use crate::{CiArgs, check};

/// The steps of `cargo xtask ci`, and what is left out. That a backend is not set up is an error
/// here, before anything has run.
pub(crate) fn steps(
    args: &CiArgs,
    installed: &Installed,
    root: &Path,
) -> Result<(Vec<Step>, Vec<String>)> {
    let wanted: &[Backend] = match args.backends.as_slice() {
        [] => &TESTABLE,
        some => some,
    };
    let backends = backend::require(wanted, installed)?;
    let suites: &[Suite] = match args.without_real {
        true => &suite::DEFAULT,
        false => &[Suite::All],
    };
    let tests = suite::steps(suites, &backends, root)?;
    let (mut steps, mut left_out) = check::steps(&backends, installed, args.with_cpu);
    steps.extend(tests);
    if args.without_real {
        left_out.push("the suite real: --without-real".to_owned());
    }
    let others = TESTABLE
        .iter()
        .filter(|backend| !backends.contains(backend));
    left_out.extend(others.map(|other| format!("the backend {}: not named", other.name())));
    Ok((steps, left_out))
}
