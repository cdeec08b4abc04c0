//! The choices of a recipe that are more than one word or number.

use std::fmt;

use burn_lti::dense::{MapKind, Slot};
use serde::de::value::{MapAccessDeserializer, StrDeserializer};
use serde::de::{self, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// What training changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Trained {
    /// The maps, and tensors that have no counterpart in the teacher.
    #[default]
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
        struct LayersVisitor;

        impl<'de> Visitor<'de> for LayersVisitor {
            type Value = Layers;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("\"all\" or a list of layer numbers")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Layers, E> {
                match text {
                    "all" => Ok(Layers::All),
                    _ => Err(E::unknown_variant(text, &["all"])),
                }
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Layers, A::Error> {
                let mut layers = Vec::new();
                while let Some(layer) = seq.next_element()? {
                    layers.push(layer);
                }
                Ok(Layers::These(layers))
            }
        }

        deserializer.deserialize_any(LayersVisitor)
    }
}

/// The form of the map in each projection: one word for all, or a table such as
/// `{ default = "factored", out = "general" }`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MapChoice {
    /// Form of the query projection's map.
    pub query: MapKind,
    /// Form of the key projection's map.
    pub key: MapKind,
    /// Form of the value projection's map.
    pub value: MapKind,
    /// Form of the output projection's map.
    pub out: MapKind,
}

impl MapChoice {
    /// The same form everywhere.
    pub const fn uniform(kind: MapKind) -> Self {
        Self {
            query: kind,
            key: kind,
            value: kind,
            out: kind,
        }
    }

    /// The form of the map in `slot`.
    pub const fn kind(&self, slot: Slot) -> MapKind {
        match slot {
            Slot::Query => self.query,
            Slot::Key => self.key,
            Slot::Value => self.value,
            Slot::Out => self.out,
        }
    }
}

impl From<MapTable> for MapChoice {
    fn from(table: MapTable) -> Self {
        let or_default = |kind: Option<MapKind>| kind.unwrap_or(table.default.unwrap_or_default());
        Self {
            query: or_default(table.query),
            key: or_default(table.key),
            value: or_default(table.value),
            out: or_default(table.out),
        }
    }
}

impl fmt::Display for MapChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::uniform(self.query) {
            return self.query.fmt(f);
        }
        let kinds = Slot::ALL.map(|slot| format!("{slot} {}", self.kind(slot)));
        f.write_str(&kinds.join(", "))
    }
}

impl Serialize for MapChoice {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if *self == Self::uniform(self.query) {
            return self.query.serialize(serializer);
        }
        serializer.collect_map(Slot::ALL.map(|slot| (slot, self.kind(slot))))
    }
}

impl<'de> Deserialize<'de> for MapChoice {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct MapVisitor;

        impl<'de> Visitor<'de> for MapVisitor {
            type Value = MapChoice;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("\"factored\", \"general\" or a table with one of them per projection")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<MapChoice, E> {
                MapKind::deserialize(StrDeserializer::new(text)).map(MapChoice::uniform)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<MapChoice, A::Error> {
                MapTable::deserialize(MapAccessDeserializer::new(map)).map(MapChoice::from)
            }
        }

        deserializer.deserialize_any(MapVisitor)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MapTable {
    query: Option<MapKind>,
    key: Option<MapKind>,
    value: Option<MapKind>,
    out: Option<MapKind>,
    default: Option<MapKind>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Both {
        map: MapChoice,
        layers: Layers,
    }

    fn read(map: &str, layers: &str) -> Result<Both, toml::de::Error> {
        toml::from_str(&format!("map = {map}\nlayers = {layers}"))
    }

    #[test]
    fn reads_every_form_and_what_it_writes() {
        let general_out = MapChoice {
            out: MapKind::General,
            ..MapChoice::default()
        };
        for (map, layers, choice, expected) in [
            ("'factored'", "'all'", MapChoice::default(), Layers::All),
            (
                "'general'",
                "[]",
                MapChoice::uniform(MapKind::General),
                Layers::These(vec![]),
            ),
            (
                "{ out = 'general' }",
                "[2, 0]",
                general_out,
                Layers::These(vec![2, 0]),
            ),
            (
                "{ default = 'general', query = 'factored', key = 'factored', value = 'factored' }",
                "[1]",
                general_out,
                Layers::These(vec![1]),
            ),
        ] {
            let both = read(map, layers).unwrap();
            assert_eq!(
                both,
                Both {
                    map: choice,
                    layers: expected
                }
            );
            assert_eq!(
                toml::from_str::<Both>(&toml::to_string(&both).unwrap()).unwrap(),
                both
            );
        }
    }

    #[test]
    fn names_the_form_of_each_projection() {
        let choice = MapChoice {
            out: MapKind::General,
            ..MapChoice::default()
        };
        assert_eq!(
            Slot::ALL.map(|slot| choice.kind(slot) == MapKind::General),
            [false, false, false, true]
        );
        let text = "query factored, key factored, value factored, out general";
        assert_eq!(choice.to_string(), text);
        assert_eq!(MapChoice::default().to_string(), "factored");
    }

    #[test]
    fn says_what_is_wrong() {
        for (map, layers, part) in [
            ("'factord'", "'all'", "unknown variant `factord`"),
            ("{ quer = 'general' }", "'all'", "unknown field `quer`"),
            ("{ query = 'x' }", "'all'", "unknown variant `x`"),
            ("3", "'all'", "\"factored\", \"general\" or a table"),
            ("'factored'", "'al'", "unknown variant `al`"),
            ("'factored'", "[-1]", "integer `-1`"),
            ("'factored'", "3", "\"all\" or a list"),
        ] {
            let error = read(map, layers).unwrap_err();
            assert!(error.message().contains(part), "{error}");
        }
    }
}
