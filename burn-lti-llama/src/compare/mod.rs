//! One recipe carried out from several starts, with several seeds each, and compared.
//!
//! Every pair of a start and a seed is an ordinary run in a folder of its own, by the same
//! [`Job`](crate::distill::Job) that carries out a single recipe. What ends up in the output folder:
//!
//! | file | what |
//! |---|---|
//! | `START-seedN/` | the run from this start with this seed |
//! | `compare.json` | all numbers: [`Comparison`] |
//! | `compare.csv` | a line a run |
//! | `curves.csv` | a line an evaluation |
//! | `compare.svg` | held-out KL against training tokens |
//!
//! | where to look | |
//! |---|---|
//! | `job` | what runs, in which order, and what is taken over |
//! | `folder` | the output folder |
//! | `report` | numbers of runs brought together |
//! | `table` | the numbers for people, and as CSV |
//! | `chart` | the curves |

mod chart;
mod error;
mod folder;
mod job;
mod report;
mod table;

use burn_lti::map::Start;

pub use error::CompareError;
pub use folder::CompareDir;
pub use job::CompareJob;
pub use report::{Comparison, CurvePoint, RunPoint, RunReport, Spread, StartReport};

use crate::recipe::suggest::UnknownName;

/// The start of this name.
///
/// ```
/// use burn_lti::map::Start;
/// use burn_lti_llama::compare::start_named;
///
/// assert_eq!(start_named("grouped")?, Start::Grouped);
/// let error = start_named("groupd").unwrap_err();
/// assert!(error.to_string().contains("did you mean `grouped`?"));
/// # Ok::<(), burn_lti_llama::compare::CompareError>(())
/// ```
///
/// # Errors
///
/// [`CompareError::Refused`], which names the nearest or all.
pub fn start_named(name: &str) -> Result<Start, CompareError> {
    let found = Start::ALL
        .into_iter()
        .find(|start| start.to_string() == name);
    found.ok_or_else(|| {
        let unknown = UnknownName {
            name: name.to_owned(),
            known: names(),
        };
        let way_out = unknown.way_out("starts");
        CompareError::Refused(format!("there is no start `{name}`: {way_out}"))
    })
}

/// The names of all starts.
fn names() -> Vec<String> {
    Start::ALL.iter().map(Start::to_string).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_start_has_its_name() {
        for start in Start::ALL {
            assert_eq!(start_named(&start.to_string()).unwrap(), start);
        }
    }

    #[test]
    fn an_unknown_start_is_named_with_the_nearest_or_with_all() {
        let error = start_named("lecunn").unwrap_err();
        assert!(
            error.to_string().contains("did you mean `lecun`?"),
            "{error}"
        );
        for name in ["zzz", ""] {
            let error = start_named(name).unwrap_err();
            let text = error.to_string();
            assert!(text.contains("the starts are "), "{text}");
            assert!(names().iter().all(|name| text.contains(name)), "{text}");
        }
    }
}
