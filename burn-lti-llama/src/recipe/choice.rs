//! The choices of a recipe that are more than one word or number.

use std::fmt;
use std::marker::PhantomData;

use burn_lti::geometry::Role;
use burn_lti::map::MapKind;
use burn_lti::train::LayerPair;
use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{self, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// What training changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Trained {
    /// The maps, and tensors that have no counterpart in the teacher.
    Maps,
    /// The projections that the maps would have made: each starts as its map's kernel and is
    /// trained itself; no map is kept.
    Projections,
    /// As `Projections`, and every other tensor of the student too.
    All,
}

impl fmt::Display for Trained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Trained::Maps => "maps",
            Trained::Projections => "projections",
            Trained::All => "all",
        })
    }
}

/// Where a step of training goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Optimizer {
    /// AdamW's, for all tensors.
    Adam,
    /// The matrices of the layers along their balanced momentum, all else by AdamW: see
    /// [`Adam::with_balanced`](burn_lti::train::Adam::with_balanced).
    Balanced,
}

impl Optimizer {
    /// Whether it moves the matrix of this name along its balanced momentum. Embedding and head it never does:
    /// most of their rows hear of most words seldom or never.
    pub fn balances(self, name: &str) -> bool {
        self == Self::Balanced && name.contains(".layers.")
    }
}

/// What maps of query and key may mix.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rotary {
    /// Whatever their form can.
    #[default]
    Free,
    /// What commutes with the rotary embedding, and nothing else: see
    /// [`MapKind::Rotary`](burn_lti::map::MapKind::Rotary). In layers without one, anything.
    Kept,
}

impl Rotary {
    /// A recipe that says nothing of it is written as it was before there was anything to say.
    pub(crate) fn is_free(&self) -> bool {
        *self == Self::Free
    }
}

/// In which coordinates maps learn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Coordinates {
    /// In those of their tensors.
    Plain,
    /// In those in which every direction counts alike: see
    /// [`Whitening`](burn_lti::calibration::Whitening). Of maps that are any linear map, or any that commutes with
    /// the rotary embedding.
    Whitened,
}

/// The text that a start is calibrated on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CalibrationText {
    /// A part of the training text.
    Train,
    /// What the teacher writes itself.
    Teacher,
}

/// What phase 2 trains.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase2Trained {
    /// The projections that the maps of phase 1 made, and what else phase 1 trained.
    #[default]
    Projections,
    /// Every tensor of the student.
    All,
}

/// The same without maps: by then there are none.
impl From<Phase2Trained> for Trained {
    fn from(trained: Phase2Trained) -> Self {
        match trained {
            Phase2Trained::Projections => Trained::Projections,
            Phase2Trained::All => Trained::All,
        }
    }
}

impl fmt::Display for Phase2Trained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Trained::from(*self).fmt(f)
    }
}

/// The layers that a feature loss compares: `"same"` or a list such as `[[0, 0], [1, 3]]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum LayerPairs {
    /// Every layer of the student with that of the same number.
    #[default]
    Same,
    /// These.
    These(Vec<LayerPair>),
}

impl Serialize for LayerPairs {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            LayerPairs::Same => serializer.serialize_str("same"),
            LayerPairs::These(pairs) => pairs.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for LayerPairs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let expecting = "\"same\" or a list of [student layer, teacher layer]";
        let list = word_or_list(deserializer, &["same"], expecting)?;
        Ok(list.map_or(LayerPairs::Same, LayerPairs::These))
    }
}

/// The decoder layers whose attention is learned: `"all"` or a list such as `[0, 2]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Layers {
    /// Every layer.
    #[default]
    All,
    /// These, counted from 0.
    These(Vec<usize>),
}

impl Serialize for Layers {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Layers::All => serializer.serialize_str("all"),
            Layers::These(layers) => layers.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Layers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let list = word_or_list(deserializer, &["all"], "\"all\" or a list of layer numbers")?;
        Ok(list.map_or(Layers::All, Layers::These))
    }
}

/// The layers of the teacher that a student keeps: so many, which are then chosen by what their absence costs, or
/// a list such as `[0, 1, 3, 4]`, counted from 0.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    untagged,
    expecting = "a number of layers, or a list of the teacher's layers to keep"
)]
pub enum KeptLayers {
    /// So many.
    Count(usize),
    /// These, ascending.
    These(Vec<usize>),
}

/// The tokens of the teacher that a student keeps. Beside those that are asked for, it keeps what the tokenizer needs
/// for them and for any other text, and tokens with a meaning.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    untagged,
    expecting = "\"text\", a number of tokens, or a list of the teacher's token ids to keep"
)]
pub enum KeptVocabulary {
    /// Those that occur in the recipe's texts.
    OfText(OfText),
    /// The most frequent of those, so many.
    Count(usize),
    /// These, and none that only the text has.
    These(Vec<u32>),
}

/// The word for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OfText {
    /// `"text"`
    Text,
}

/// What the weights along an axis without heads are made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AxisMaps {
    /// The start; they are weights.
    #[default]
    Weights,
    /// The teacher's and a general map, each its own.
    General,
    /// The teacher's and a general map that is one variable of all weights along the axis.
    Shared,
}

impl fmt::Display for AxisMaps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Weights => "weights",
            Self::General => "general",
            Self::Shared => "shared",
        })
    }
}

/// The form of the map in each projection. By default those of the attention are general, since a start is held best
/// by them and they learn best, and feed-forward blocks have none.
///
/// In a recipe: one for the attention, `"factored"`, `"general"` or
/// `{ kronecker = 4 }`, or a table such as `{ default = "factored", out = { kronecker = 4 }, hidden = "general" }`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapChoice {
    /// Form of the query projection's map.
    pub query: MapKind,
    /// Form of the key projection's map.
    pub key: MapKind,
    /// Form of the value projection's map.
    pub value: MapKind,
    /// Form of the output projection's map.
    pub out: MapKind,
    /// Maps of the units of a feed-forward block, in gate, up and down.
    pub hidden: AxisMaps,
    /// Maps of the features of the residual stream, in every weight.
    pub width: AxisMaps,
}

impl Default for MapChoice {
    fn default() -> Self {
        Self::uniform(MapKind::General)
    }
}

impl MapChoice {
    /// The same form in all of the attention, and nothing else.
    pub const fn uniform(kind: MapKind) -> Self {
        Self {
            query: kind,
            key: kind,
            value: kind,
            out: kind,
            hidden: AxisMaps::Weights,
            width: AxisMaps::Weights,
        }
    }

    /// Whether other axes than heads have maps.
    pub fn has_other_axes(&self) -> bool {
        [self.hidden, self.width] != [AxisMaps::Weights; 2]
    }

    /// The same with maps of heads alone.
    pub const fn of_heads(self) -> Self {
        Self {
            hidden: AxisMaps::Weights,
            width: AxisMaps::Weights,
            ..self
        }
    }

    /// Whether query or key has a map of factors, which mix the features of a head and cannot keep rotary pairs apart.
    pub(crate) const fn mixes_pairs(&self) -> bool {
        self.query.pairs().is_some() || self.key.pairs().is_some()
    }

    /// The form of the map in `role`, along the role's own axis; `None` where there is none.
    pub const fn kind(&self, role: Role) -> Option<MapKind> {
        match (role, self.hidden) {
            (Role::Query, _) => Some(self.query),
            (Role::Key, _) => Some(self.key),
            (Role::Value, _) => Some(self.value),
            (Role::Out, _) => Some(self.out),
            (Role::Gate | Role::Up | Role::Down, AxisMaps::General | AxisMaps::Shared) => {
                Some(MapKind::General)
            }
            _ => None,
        }
    }

    /// Every role that has a map, and its form.
    pub fn kinds(&self) -> impl Iterator<Item = (Role, MapKind)> + '_ {
        let roles = Role::ATTENTION.into_iter().chain(Role::FEED_FORWARD);
        roles.filter_map(|role| Some((role, self.kind(role)?)))
    }

    /// The one form of all attention maps, if they have one.
    fn of_attention(&self) -> Option<MapKind> {
        let others = [self.key, self.value, self.out];
        others
            .iter()
            .all(|kind| *kind == self.query)
            .then_some(self.query)
    }
}

impl TryFrom<MapTable> for MapChoice {
    type Error = &'static str;

    fn try_from(table: MapTable) -> Result<Self, Self::Error> {
        let MapTable {
            query,
            key,
            value,
            out,
            hidden,
            width,
            default,
            kronecker,
        } = table;
        let [hidden, width] = [hidden, width].map(Option::unwrap_or_default);
        let named = [query, key, value, out, default];
        if let Some(rank) = kronecker {
            return match named.iter().all(Option::is_none) {
                true => Ok(Self {
                    hidden,
                    width,
                    ..Self::uniform(MapKind::Kronecker(rank))
                }),
                false => Err(
                    "says kronecker for all projections and something else for some: write \
                     { default = { kronecker = 4 }, out = \"general\" }",
                ),
            };
        }
        // What is not named has `default`, or what it has in a recipe without maps.
        let others = default.map_or_else(Self::default, |OneMap(kind)| Self::uniform(kind));
        let of = |named: Option<OneMap>, other| named.map_or(other, |OneMap(kind)| kind);
        Ok(Self {
            query: of(query, others.query),
            key: of(key, others.key),
            value: of(value, others.value),
            out: of(out, others.out),
            hidden,
            width,
        })
    }
}

impl fmt::Display for MapChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.of_attention() {
            Some(kind) => kind.fmt(f)?,
            None => {
                let kinds = [
                    (Role::Query, self.query),
                    (Role::Key, self.key),
                    (Role::Value, self.value),
                    (Role::Out, self.out),
                ];
                let kinds = kinds.map(|(role, kind)| format!("{role} {kind}"));
                f.write_str(&kinds.join(", "))?;
            }
        }
        for (axis, maps) in [("hidden", self.hidden), ("width", self.width)] {
            if maps != AxisMaps::Weights {
                write!(f, ", {axis} {maps}")?;
            }
        }
        Ok(())
    }
}

impl Serialize for MapChoice {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if *self == Self::uniform(self.query) {
            return self.query.serialize(serializer);
        }
        MapTable {
            query: Some(OneMap(self.query)),
            key: Some(OneMap(self.key)),
            value: Some(OneMap(self.value)),
            out: Some(OneMap(self.out)),
            hidden: (self.hidden != AxisMaps::Weights).then_some(self.hidden),
            width: (self.width != AxisMaps::Weights).then_some(self.width),
            default: None,
            kronecker: None,
        }
        .serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for MapChoice {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct MapVisitor;

        impl<'de> Visitor<'de> for MapVisitor {
            type Value = MapChoice;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(
                    "\"factored\", \"general\", { kronecker = 4 } or a table with one of them per \
                     projection",
                )
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<MapChoice, E> {
                one_word(text).map(MapChoice::uniform)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<MapChoice, A::Error> {
                let table = MapTable::deserialize(MapAccessDeserializer::new(map))?;
                MapChoice::try_from(table).map_err(de::Error::custom)
            }
        }

        deserializer.deserialize_any(MapVisitor)
    }
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct MapTable {
    query: Option<OneMap>,
    key: Option<OneMap>,
    value: Option<OneMap>,
    out: Option<OneMap>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hidden: Option<AxisMaps>,
    #[serde(skip_serializing_if = "Option::is_none")]
    width: Option<AxisMaps>,
    #[serde(skip_serializing_if = "Option::is_none")]
    default: Option<OneMap>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kronecker: Option<usize>,
}

/// The form of one map.
#[derive(Clone, Copy, Serialize)]
struct OneMap(MapKind);

impl<'de> Deserialize<'de> for OneMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneVisitor;

        impl<'de> Visitor<'de> for OneVisitor {
            type Value = OneMap;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("\"factored\", \"general\" or { kronecker = 4 }")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<OneMap, E> {
                one_word(text).map(OneMap)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<OneMap, A::Error> {
                let Pairs { kronecker } = Pairs::deserialize(MapAccessDeserializer::new(map))?;
                Ok(OneMap(MapKind::Kronecker(kronecker)))
            }
        }

        deserializer.deserialize_any(OneVisitor)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Pairs {
    kronecker: usize,
}

/// A list, or `None` for the only word that may stand in its place.
fn word_or_list<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
    word: &'static [&'static str; 1],
    expecting: &'static str,
) -> Result<Option<Vec<T>>, D::Error> {
    struct WordOrList<T> {
        word: &'static [&'static str; 1],
        expecting: &'static str,
        of: PhantomData<T>,
    }

    impl<'de, T: Deserialize<'de>> Visitor<'de> for WordOrList<T> {
        type Value = Option<Vec<T>>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.expecting)
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
            match text == self.word[0] {
                true => Ok(None),
                false => Err(E::unknown_variant(text, self.word)),
            }
        }

        fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Self::Value, A::Error> {
            Vec::deserialize(SeqAccessDeserializer::new(seq)).map(Some)
        }
    }

    deserializer.deserialize_any(WordOrList {
        word,
        expecting,
        of: PhantomData,
    })
}

fn one_word<E: de::Error>(text: &str) -> Result<MapKind, E> {
    match text {
        "factored" => Ok(MapKind::Factored),
        "general" => Ok(MapKind::General),
        "kronecker" => Err(E::custom(
            "needs a number of pairs: write { kronecker = 4 }",
        )),
        _ => Err(E::unknown_variant(text, &["factored", "general"])),
    }
}

#[cfg(test)]
mod tests;
