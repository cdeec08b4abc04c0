//! [`StartSummary`]: a student that was made and not trained.

use std::fmt;

use burn_lti::calibration::{FittedOn, LayerReport};
use serde_json::{Value, json};

use crate::eval::Evaluation;
use crate::plan::report::write_table;

/// A student at its start. Its `Display` is a table of its layers, if they were calibrated.
#[derive(Clone, Debug)]
pub struct StartSummary {
    /// What it is worth on the held-out text.
    pub evaluation: Evaluation,
    /// How each layer was calibrated; empty with other starts.
    pub layers: Vec<LayerReport>,
    /// How long it took, loading and evaluation included.
    pub seconds: f64,
}

impl StartSummary {
    /// As an object with the keys `evaluation`, `layers` and `seconds`.
    pub fn to_json(&self) -> Value {
        json!({
            "evaluation": self.evaluation,
            "layers": self.layers,
            "seconds": self.seconds,
        })
    }
}

const TITLES: [&str; 12] = [
    "layer",
    "fitted on",
    "value | out",
    "output",
    "rounds",
    "residual",
    "feed-forward",
    "ridge",
    "strength",
    "uneven",
    "seconds",
    "heads kept: key/value | query",
];

impl fmt::Display for StartSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.layers.is_empty() {
            return Ok(());
        }
        let titles = TITLES.map(str::to_owned).to_vec();
        let rows: Vec<_> = [titles]
            .into_iter()
            .chain(self.layers.iter().map(row))
            .collect();
        write_table(f, &rows)
    }
}

fn row(report: &LayerReport) -> Vec<String> {
    let known = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
    vec![
        report.layer.to_string(),
        match report.stream {
            FittedOn::Teacher => "teacher".to_owned(),
            FittedOn::Student => "student".to_owned(),
        },
        format!("{} | {}", report.value, report.out),
        format!("{:.4}", report.residual_of_output),
        report.rounds.to_string(),
        format!("{:.4}", report.residual),
        known(
            report
                .feed_forward_residual
                .map(|left| format!("{left:.4}")),
        ),
        known(report.ridge.map(|ridge| ridge.to_string())),
        report.strength.to_string(),
        known(report.uneven.map(|ratio| format!("{ratio:.1}"))),
        format!("{:.1}", report.seconds),
        format!(
            "{} | {}",
            groups(&report.heads.key_value),
            numbers(&report.heads.query)
        ),
    ]
}

/// Merged heads with a plus between them.
fn groups(heads: &[Vec<usize>]) -> String {
    let merged = |group: &Vec<usize>| {
        let heads: Vec<_> = group.iter().map(ToString::to_string).collect();
        heads.join("+")
    };
    let groups: Vec<_> = heads.iter().map(merged).collect();
    groups.join(" ")
}

fn numbers(heads: &[usize]) -> String {
    let heads: Vec<_> = heads.iter().map(ToString::to_string).collect();
    heads.join(" ")
}

#[cfg(test)]
mod tests {
    use burn_lti::calibration::HeadChoice;
    use burn_lti::loss::LossSums;
    use burn_lti::map::MapKind;

    use super::*;

    #[test]
    fn every_layer_has_a_row_and_what_was_not_done_is_no_zero() {
        let layer = |layer, feed_forward_residual| LayerReport {
            layer,
            heads: HeadChoice {
                query: vec![2, 3],
                key_value: vec![vec![1, 3]],
            },
            stream: FittedOn::Teacher,
            value: MapKind::Kronecker(2),
            out: MapKind::General,
            residual_of_output: 0.5,
            residual: 0.25,
            rounds: 2,
            ridge: None,
            strength: 1.0,
            uneven: Some(3.25),
            feed_forward_residual,
            units: None,
            seconds: 0.04,
        };
        let mut summary = StartSummary {
            evaluation: LossSums::default().into(),
            layers: vec![layer(0, None), layer(1, Some(0.75))],
            seconds: 1.0,
        };
        let text = summary.to_string();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(
            lines[1].contains("1+3 | 2 3") && lines[1].contains(" - "),
            "{text}"
        );
        for part in ["teacher", "kronecker 2 | general", " 3.2"] {
            assert!(lines[1].contains(part), "{part}: {text}");
        }
        assert!(lines[2].contains("0.7500"), "{text}");
        assert!(summary.to_json()["evaluation"].get("kl").is_none());
        summary.layers.clear();
        assert_eq!(summary.to_string(), "");
    }
}
