//! How long a step takes on a device of a given speed.

use std::fmt;

use serde::Serialize;

use super::report::{giga, write_table};
use super::{StepCosts, StepMemory};

/// How fast a device is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct DeviceSpeed {
    /// Operations of matrix products a second, two for each multiply-add.
    pub flops: f64,
    /// Bytes that go to memory and back a second, if it is known.
    pub bandwidth: Option<f64>,
}

/// How long a step takes: of each part the longer of two times, that of its operations and that of its
/// bytes. No program is faster; how much slower one is, is what can be gained.
///
/// Its `Display` is a table.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Prediction {
    /// On what.
    pub speed: DeviceSpeed,
    /// The parts, in their order.
    pub parts: Vec<PredictedPart>,
    /// Seconds of a step.
    pub seconds: f64,
    /// Training tokens a second.
    pub tokens_per_second: f64,
    /// What a step holds at its fullest.
    pub memory: StepMemory,
}

/// How long a part takes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct PredictedPart {
    /// What it is called.
    pub part: &'static str,
    /// Seconds.
    pub seconds: f64,
    /// Whether memory is what it waits for.
    pub waits_for_memory: bool,
}

impl StepCosts {
    /// How long a step takes on a device.
    pub fn predict(&self, speed: DeviceSpeed) -> Prediction {
        let parts = self.parts.iter().map(|part| {
            let computing = part.flops / speed.flops;
            let moving = speed
                .bandwidth
                .map_or(0.0, |bandwidth| part.bytes / bandwidth);
            PredictedPart {
                part: part.part,
                seconds: computing.max(moving),
                waits_for_memory: moving > computing,
            }
        });
        let parts: Vec<PredictedPart> = parts.collect();
        let seconds: f64 = parts.iter().map(|part| part.seconds).sum();
        Prediction {
            speed,
            seconds,
            tokens_per_second: self.tokens as f64 / seconds,
            memory: self.memory,
            parts,
        }
    }
}

impl fmt::Display for Prediction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at {} GFLOP/s", giga(self.speed.flops))?;
        match self.speed.bandwidth {
            None => writeln!(f, ", memory no hindrance")?,
            Some(bandwidth) => writeln!(f, " and {} GB/s", giga(bandwidth))?,
        }
        let head = ["part of a step", "seconds", "waits for"].map(String::from);
        let parts = self.parts.iter().map(|part| {
            let waits_for = if part.waits_for_memory {
                "memory"
            } else {
                "arithmetic"
            };
            [
                part.part.to_owned(),
                seconds(part.seconds),
                waits_for.to_owned(),
            ]
        });
        let all = ["together".to_owned(), seconds(self.seconds), String::new()];
        let rows = [head].into_iter().chain(parts).chain([all]);
        write_table(f, &rows.map(Vec::from).collect::<Vec<_>>())?;
        writeln!(
            f,
            "{:.1} tokens a second; runs where {} GB of memory are free",
            self.tokens_per_second,
            giga(self.memory.total())
        )
    }
}

fn seconds(value: f64) -> String {
    format!("{value:.4}")
}

#[cfg(test)]
mod tests {
    use super::super::PartCost;
    use super::*;

    fn costs() -> StepCosts {
        let part = |part, flops, bytes| PartCost { part, flops, bytes };
        StepCosts {
            tokens: 30,
            parts: vec![part("products", 4e9, 1e9), part("softmaxes", 1e9, 4e9)],
            memory: StepMemory {
                weights: 5e9,
                optimizer: 0.0,
                kernels: 0.0,
                activations: 1e9,
                logits: 0.0,
            },
        }
    }

    #[test]
    fn the_slower_of_arithmetic_and_memory_counts() {
        let speed = DeviceSpeed {
            flops: 2e9,
            bandwidth: Some(4e9),
        };
        let predicted = costs().predict(speed);
        let parts: Vec<_> = predicted
            .parts
            .iter()
            .map(|p| (p.seconds, p.waits_for_memory))
            .collect();
        assert_eq!(parts, [(2.0, false), (1.0, true)]);
        assert_eq!(
            (predicted.seconds, predicted.tokens_per_second),
            (3.0, 10.0)
        );
        let text = predicted.to_string();
        for part in [
            "at 2.000 GFLOP/s and 4.000 GB/s",
            "memory",
            "10.0 tokens",
            "6.000 GB",
        ] {
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn what_is_not_known_of_memory_hinders_nothing() {
        let speed = DeviceSpeed {
            flops: 1e9,
            bandwidth: None,
        };
        let predicted = costs().predict(speed);
        assert_eq!(predicted.seconds, 5.0);
        assert!(predicted.to_string().contains("no hindrance"));
    }
}
