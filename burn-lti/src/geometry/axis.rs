//! [`Axis`]: along which features of a model a side of a weight lies.

use std::fmt;

/// An axis of features along which a side of a weight lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Axis {
    /// The residual stream.
    Width,
    /// All query heads.
    QueryHeads,
    /// All key/value heads.
    KeyValueHeads,
    /// Inside a feed-forward block.
    Hidden,
    /// The tokens.
    Vocabulary,
    /// The positions of tokens in a text.
    Positions,
}

impl fmt::Display for Axis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Width => "width",
            Self::QueryHeads => "query heads",
            Self::KeyValueHeads => "key/value heads",
            Self::Hidden => "hidden",
            Self::Vocabulary => "vocabulary",
            Self::Positions => "positions",
        })
    }
}
