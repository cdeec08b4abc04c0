//! [`Site`]: where in a decoder a weight stands.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Axis;

/// What a weight is to its decoder.
///
/// The list is open: a family of decoders may bring roles that are not here yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Role {
    /// Query projection.
    Query,
    /// Key projection.
    Key,
    /// Value projection.
    Value,
    /// Output projection of the attention.
    Out,
    /// Gate of a gated feed-forward block.
    Gate,
    /// First projection of a feed-forward block.
    Up,
    /// Last projection of a feed-forward block.
    Down,
    /// Table of the tokens' embeddings.
    Embedding,
    /// Projection from the last hidden states to logits.
    Head,
    /// Table of learned positions, in decoders without a rotary embedding.
    Position,
}

impl Role {
    /// The projections of an attention block, in the order in which it uses them.
    pub const ATTENTION: [Role; 4] = [Role::Query, Role::Key, Role::Value, Role::Out];
    /// The projections of a gated feed-forward block.
    pub const FEED_FORWARD: [Role; 3] = [Role::Gate, Role::Up, Role::Down];

    /// The axes of a weight `[d_input, d_output]` in this role: of its inputs and of its outputs.
    pub const fn axes(self) -> [Axis; 2] {
        match self {
            Role::Query => [Axis::Width, Axis::QueryHeads],
            Role::Key | Role::Value => [Axis::Width, Axis::KeyValueHeads],
            Role::Out => [Axis::QueryHeads, Axis::Width],
            Role::Gate | Role::Up => [Axis::Width, Axis::Hidden],
            Role::Down => [Axis::Hidden, Axis::Width],
            Role::Embedding => [Axis::Vocabulary, Axis::Width],
            Role::Head => [Axis::Width, Axis::Vocabulary],
            Role::Position => [Axis::Positions, Axis::Width],
        }
    }

    /// The axis on the other side of the model's width.
    pub const fn mapped_axis(self) -> Axis {
        match self.axes() {
            [Axis::Width, axis] | [axis, _] => axis,
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::Query => "query",
            Role::Key => "key",
            Role::Value => "value",
            Role::Out => "out",
            Role::Gate => "gate",
            Role::Up => "up",
            Role::Down => "down",
            Role::Embedding => "embedding",
            Role::Head => "head",
            Role::Position => "position",
        })
    }
}

/// A weight's place: its layer, counted from 0, and its role there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Site {
    /// The layer; 0 for the embeddings and the head, which belong to none.
    pub layer: usize,
    /// The role.
    pub role: Role,
}

impl Site {
    /// The embedding of the tokens.
    pub const EMBEDDING: Site = Site::new(0, Role::Embedding);
    /// The head.
    pub const HEAD: Site = Site::new(0, Role::Head);
    /// The table of learned positions.
    pub const POSITION: Site = Site::new(0, Role::Position);

    /// `role` in `layer`.
    pub const fn new(layer: usize, role: Role) -> Self {
        Self { layer, role }
    }

    /// A seed of its own for every site, so that no two begin with the same numbers.
    pub const fn seed(self, seed: u64) -> u64 {
        // The four attention roles are numbered by layers of four. What came later stands in rows of
        // its own behind them, one for each role, so that no number of old changed.
        let site = match self.role as u64 {
            role @ 0..4 => self.layer as u64 * 4 + role + 1,
            role => (role << 32) + self.layer as u64,
        };
        // SplitMix64 (Steele, Lea and Flood 2014): neighbouring inputs give unrelated outputs.
        let mut z = seed.wrapping_add(site.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.role {
            Role::Embedding | Role::Head => write!(f, "the {}", self.role),
            Role::Position => f.write_str("the table of positions"),
            role => write!(f, "the {role} projection of layer {}", self.layer),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    /// Seeds of attention sites are those of every run so far.
    #[test]
    fn no_two_sites_share_a_seed_and_old_ones_stay() {
        assert_eq!(Site::new(0, Role::Query).seed(0), 0xE220_A839_7B1D_CDAF);
        let roles = Role::ATTENTION.into_iter().chain([
            Role::Gate,
            Role::Up,
            Role::Down,
            Role::Embedding,
            Role::Head,
            Role::Position,
        ]);
        let sites = roles.flat_map(|role| (0..200).map(move |layer| Site::new(layer, role)));
        let seeds: HashSet<u64> = sites.clone().map(|site| site.seed(7)).collect();
        assert_eq!(seeds.len(), sites.count());
    }

    #[test]
    fn a_role_lies_between_the_width_and_its_own_axis() {
        assert_eq!(Role::Query.mapped_axis(), Axis::QueryHeads);
        assert_eq!(Role::Out.mapped_axis(), Axis::QueryHeads);
        assert_eq!(Role::Down.mapped_axis(), Axis::Hidden);
        assert_eq!(Role::Embedding.mapped_axis(), Axis::Vocabulary);
        assert_eq!(Role::Head.mapped_axis(), Axis::Vocabulary);
        assert_eq!(Role::Position.mapped_axis(), Axis::Positions);
    }
}
