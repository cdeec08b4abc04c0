//! What can be wrong with a generation.

use super::Place;

/// Why a text could not be generated.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GenerationError {
    /// The temperature divides by nothing, or turns likely into unlikely.
    #[error("the temperature is {temperature}: give a finite number above 0")]
    Temperature {
        /// What was asked for.
        temperature: f64,
    },
    /// The nucleus would hold no token, or more than all.
    #[error("top-p is {top_p}: give a share above 0, at most 1")]
    TopP {
        /// What was asked for.
        top_p: f64,
    },
    /// The model's numbers overflowed, or its weights are none.
    #[error(
        "the model's logits for token {position} of text {row} are not finite{}: its weights are damaged or too \
         large for the float type; get them again, or compute in float32",
        first(place)
    )]
    NotFinite {
        /// The row's number.
        row: u64,
        /// The token's position in its text, the prompt included, from 0.
        position: usize,
        /// Where in the model it begins; `None` if the text read at once has finite logits.
        place: Option<Place>,
    },
}

fn first(place: &Option<Place>) -> String {
    place.map_or_else(String::new, |place| format!(", first in {place}"))
}
