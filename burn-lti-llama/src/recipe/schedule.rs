//! How a recipe writes a [`Schedule`]: a number, or `{ start = 0.9, end = 0.5, schedule = "linear" }`.

use std::fmt;

use burn_lti::loss::{Curve, Schedule};
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub(crate) fn serialize<S: Serializer>(
    schedule: &Schedule,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let Some((curve, end)) = schedule.to() else {
        return serializer.serialize_f64(schedule.start());
    };
    let table = ScheduleTable {
        start: schedule.start(),
        end: Some(end),
        schedule: CurveName::of(curve),
    };
    table.serialize(serializer)
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Schedule, D::Error> {
    struct ScheduleVisitor;

    impl<'de> Visitor<'de> for ScheduleVisitor {
        type Value = Schedule;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(
                "a number or a table such as { start = 0.9, end = 0.5, schedule = \"linear\" }",
            )
        }

        fn visit_f64<E: de::Error>(self, value: f64) -> Result<Schedule, E> {
            Ok(Schedule::constant(value))
        }

        fn visit_i64<E: de::Error>(self, value: i64) -> Result<Schedule, E> {
            Ok(Schedule::constant(value as f64))
        }

        fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Schedule, A::Error> {
            ScheduleTable::deserialize(MapAccessDeserializer::new(map))?.schedule()
        }
    }

    deserializer.deserialize_any(ScheduleVisitor)
}

/// For people: `0.9 -> 0.5 (linear)`, or the number of a constant.
pub(crate) fn describe(schedule: &Schedule) -> String {
    let start = schedule.start();
    match schedule.to() {
        None => start.to_string(),
        Some((Curve::Linear, end)) => format!("{start} -> {end} (linear)"),
        Some((Curve::Cosine, end)) => format!("{start} -> {end} (cosine)"),
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ScheduleTable {
    start: f64,
    end: Option<f64>,
    schedule: CurveName,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum CurveName {
    Constant,
    Linear,
    Cosine,
}

impl CurveName {
    const fn of(curve: Curve) -> Self {
        match curve {
            Curve::Linear => Self::Linear,
            Curve::Cosine => Self::Cosine,
        }
    }
}

impl ScheduleTable {
    fn schedule<E: de::Error>(self) -> Result<Schedule, E> {
        let Self {
            start,
            end,
            schedule,
        } = self;
        let to = |curve| match end {
            Some(end) => Ok(Schedule::new(curve, start, end)),
            None => Err(E::missing_field("end")),
        };
        match schedule {
            CurveName::Linear => to(Curve::Linear),
            CurveName::Cosine => to(Curve::Cosine),
            CurveName::Constant if end.is_none_or(|end| end == start) => {
                Ok(Schedule::constant(start))
            }
            CurveName::Constant => Err(E::custom(
                "is constant, but its end is not its start: leave `end` out, or set `schedule` to \
                 \"linear\" or \"cosine\"",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct One {
        #[serde(with = "super")]
        alpha: Schedule,
    }

    fn read(text: &str) -> Result<One, toml::de::Error> {
        toml::from_str(&format!("alpha = {text}"))
    }

    #[test]
    fn reads_every_form_and_what_it_writes() {
        for (text, alpha, described) in [
            ("0.5", Schedule::constant(0.5), "0.5"),
            ("2", Schedule::constant(2.0), "2"),
            (
                "{ start = 3, schedule = 'constant' }",
                Schedule::constant(3.0),
                "3",
            ),
            (
                "{ start = 3, end = 3.0, schedule = 'constant' }",
                Schedule::constant(3.0),
                "3",
            ),
            (
                "{ start = 0.9, end = 0.5, schedule = 'linear' }",
                Schedule::new(Curve::Linear, 0.9, 0.5),
                "0.9 -> 0.5 (linear)",
            ),
            (
                "{ start = 4, end = 1, schedule = 'cosine' }",
                Schedule::new(Curve::Cosine, 4.0, 1.0),
                "4 -> 1 (cosine)",
            ),
        ] {
            let one = read(text).unwrap();
            assert_eq!(one, One { alpha });
            assert_eq!(toml::from_str(&toml::to_string(&one).unwrap()), Ok(one));
            assert_eq!(describe(&alpha), described);
        }
    }

    #[test]
    fn says_what_is_wrong() {
        for (text, part) in [
            ("'warm'", "a number or a table such as"),
            ("[1.0]", "a number or a table such as"),
            ("{ start = 1, schedule = 'linear' }", "missing field `end`"),
            ("{ start = 1, schedule = 'cosine' }", "missing field `end`"),
            ("{ start = 1, end = 0 }", "missing field `schedule`"),
            ("{ end = 0, schedule = 'linear' }", "missing field `start`"),
            (
                "{ start = 1, end = 0, schedule = 'constant' }",
                "leave `end` out",
            ),
            (
                "{ start = 1, end = nan, schedule = 'constant' }",
                "leave `end` out",
            ),
            (
                "{ start = 1, end = 0, schedule = 'line' }",
                "unknown variant `line`",
            ),
            (
                "{ begin = 1, end = 0, schedule = 'linear' }",
                "unknown field `begin`",
            ),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.message().contains(part), "{text}: {error}");
        }
    }
}
