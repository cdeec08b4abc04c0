//! How a step's time and memory grow with tokens, sequences, vocabulary and layers.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use xshell::Shell;

use crate::backend::Backend;

use super::program::{Program, Programs, Task};
use super::statistics::digits;

/// What stays as it is while something else grows: as wide as SmolLM2-135M, and smaller.
const BASE: Point = Point {
    batch_size: 2,
    seq_len: 256,
    vocab: 8192,
    layers: 4,
};

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Point {
    batch_size: usize,
    seq_len: usize,
    vocab: usize,
    layers: usize,
}

/// A quantity that grows.
struct Axis {
    name: &'static str,
    values: &'static [usize],
    /// The point where it has a value.
    at: fn(usize) -> Point,
}

const AXES: [Axis; 4] = [
    Axis {
        name: "tokens, in sequences of 256",
        values: &[256, 512, 1024, 2048, 4096],
        at: |tokens| Point {
            batch_size: tokens / BASE.seq_len,
            ..BASE
        },
    },
    Axis {
        name: "tokens, in one sequence",
        values: &[256, 512, 1024, 2048, 4096],
        at: |seq_len| Point {
            batch_size: 1,
            seq_len,
            ..BASE
        },
    },
    Axis {
        name: "vocabulary",
        values: &[512, 2048, 8192, 32768, 131_072],
        at: |vocab| Point { vocab, ..BASE },
    },
    Axis {
        name: "layers",
        values: &[1, 2, 4, 8, 16, 30],
        at: |layers| Point { layers, ..BASE },
    },
];

/// Measures every point once, in a process of its own; with fewer `values`, only the first of each axis.
/// The result is what `plot_growth` reads.
pub(crate) fn run(
    programs: &Programs<'_>,
    backends: &[Backend],
    steps: usize,
    values: Option<usize>,
) -> Result<Value> {
    let dir = tempfile::tempdir().context("cannot make a temporary folder")?;
    let mut axes = Vec::new();
    for axis in &AXES {
        let mut lines = vec![Vec::new(); backends.len()];
        for &value in axis.values.iter().take(values.unwrap_or(usize::MAX)) {
            let point = (axis.at)(value);
            point.write_teacher(programs, dir.path())?;
            let args = point.args(dir.path(), steps);
            for (backend, line) in backends.iter().zip(&mut lines) {
                let program = Program::Ours(*backend);
                let measured = programs.measure(program, Task::Step, &args)?;
                let seconds = measured.step_seconds();
                let shown = seconds.map(digits).unwrap_or_default();
                println!("{} {value}: {}: {shown} s", axis.name, program.name());
                line.push(json!({
                    "value": value,
                    "seconds": seconds,
                    "peak_mib": measured.step_peak_mib,
                }));
            }
        }
        let lines = backends.iter().zip(lines);
        let lines = lines.map(|(backend, points)| {
            json!({ "program": Program::Ours(*backend).name(), "points": points })
        });
        axes.push(json!({ "name": axis.name, "lines": lines.collect::<Vec<_>>() }));
    }
    Ok(json!({
        "base": {
            "batch_size": BASE.batch_size,
            "seq_len": BASE.seq_len,
            "vocab": BASE.vocab,
            "layers": BASE.layers,
        },
        "axes": axes,
    }))
}

/// Draws the result at `json` to `svg`.
pub(crate) fn plot(programs: &Programs<'_>, shell: &Shell, json: &Path, svg: &Path) -> Result<()> {
    let paths = [json, svg].map(|path| shell.current_dir().join(path).display().to_string());
    programs.run("plot_growth", &paths)
}

/// As rows of a table in Markdown.
pub(crate) fn table(growth: &Value) -> String {
    let mut text = "| what grows | program | value | seconds a step | peak MiB of the steps |\n\
                    |---|---|---|---|---|\n"
        .to_owned();
    let list = |value: &Value, key: &str| value[key].as_array().cloned().unwrap_or_default();
    let number = |value: &Value| value.as_f64().map_or("-".to_owned(), digits);
    for axis in list(growth, "axes") {
        for line in list(&axis, "lines") {
            for point in list(&line, "points") {
                text += &format!(
                    "| {} | {} | {} | {} | {} |\n",
                    axis["name"].as_str().unwrap_or_default(),
                    line["program"].as_str().unwrap_or_default(),
                    point["value"],
                    number(&point["seconds"]),
                    number(&point["peak_mib"]),
                );
            }
        }
    }
    text
}

impl Point {
    fn write_teacher(&self, programs: &Programs<'_>, dir: &Path) -> Result<()> {
        let mut args = vec![dir.display().to_string()];
        args.extend(["--shape", "smollm2-135m", "--layers"].map(str::to_owned));
        args.extend([
            self.layers.to_string(),
            "--vocab".to_owned(),
            self.vocab.to_string(),
        ]);
        programs.run("random_teacher", &args)
    }

    fn args(&self, teacher: &Path, steps: usize) -> Vec<String> {
        let others = super::step_args([3, 1], [self.batch_size, self.seq_len], steps);
        super::teacher_args(teacher)
            .into_iter()
            .chain(others)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_axis_changes_one_thing_and_meets_the_base() {
        for axis in &AXES {
            let points = || axis.values.iter().map(|&value| (axis.at)(value));
            assert!(axis.values.is_sorted(), "{}", axis.name);
            assert!(axis.values.len() >= 5);
            assert!(points().all(|point| point.batch_size > 0));
            // All but the single sequence, which is half as many at the same length.
            let meets = points().any(|point| point == BASE);
            assert_eq!(meets, !axis.name.contains("one sequence"), "{}", axis.name);
        }
    }

    #[test]
    fn the_table_has_a_row_a_point_and_no_zero_for_what_is_unknown() {
        let growth = json!({ "axes": [{ "name": "layers", "lines": [{ "program": "burn-lti, flex",
            "points": [{ "value": 2, "seconds": 0.5, "peak_mib": null }] }] }] });
        let text = table(&growth);
        assert!(
            text.ends_with("| layers | burn-lti, flex | 2 | 0.500 | - |\n"),
            "{text}"
        );
    }
}
