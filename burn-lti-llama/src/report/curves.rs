//! Lines of `metrics.jsonl` as SVG. The colours are names in disguise: the page's style sheet gives each
//! the colour of its theme.

use std::io;
use std::iter::once;

use plotters::prelude::*;
use serde_json::Value;

use super::ReportError;

const SIZE: (u32, u32) = (460, 280);
const FONT: &str = "sans-serif";
/// Axes and words.
pub(super) const INK: RGBColor = RGBColor(60, 60, 60);
/// Lines that help to read.
pub(super) const GRID: RGBColor = RGBColor(220, 220, 220);
/// Of what was trained on, or of the only line.
pub(super) const FIRST: RGBColor = RGBColor(0, 114, 178);
/// Of held-out text.
pub(super) const SECOND: RGBColor = RGBColor(213, 94, 0);

type Point = (f64, f64);

/// What a curve is called, the keys of a line that it takes, and whether an evaluation has it too.
const CURVES: [(&str, &str, bool); 4] = [
    ("Loss", "loss", false),
    ("KL to the teacher, nats per token", "kl", true),
    ("Learning rate", "learning_rate", false),
    ("Gradient norm", "grad_norm", false),
];

/// Each curve that has at least two points, by name.
pub(super) fn curves(metrics: &[Value]) -> Result<Vec<(&'static str, String)>, ReportError> {
    let mut curves = Vec::new();
    for (name, key, is_held_out) in CURVES {
        let trained = points(metrics, &format!("/{key}"));
        let held_out = match is_held_out {
            true => points(metrics, &format!("/eval/{key}")),
            false => Vec::new(),
        };
        if trained.len().max(held_out.len()) < 2 {
            continue;
        }
        let mut svg = String::new();
        let backend = SVGBackend::with_string(&mut svg, SIZE);
        draw(backend, &trained, &held_out).map_err(|source| ReportError::Chart {
            source: source.into(),
        })?;
        curves.push((name, svg));
    }
    Ok(curves)
}

/// A value by its place in a line, against the step.
fn points(metrics: &[Value], pointer: &str) -> Vec<Point> {
    let point = |line: &Value| Some((line["step"].as_f64()?, line.pointer(pointer)?.as_f64()?));
    metrics.iter().filter_map(point).collect()
}

fn draw(
    backend: SVGBackend<'_>,
    trained: &[Point],
    held_out: &[Point],
) -> Result<(), DrawingAreaErrorKind<io::Error>> {
    let all = || trained.iter().chain(held_out);
    let low = |of: fn(&Point) -> f64| all().map(of).fold(f64::INFINITY, f64::min);
    let high = |of: fn(&Point) -> f64| all().map(of).fold(f64::NEG_INFINITY, f64::max);
    let steps = low(|p| p.0)..high(|p| p.0).max(low(|p| p.0) + 1.0);
    let (bottom, top) = (low(|p| p.1).min(0.0), high(|p| p.1));
    // A line of zeros has a height too.
    let top = if top > bottom {
        top + (top - bottom) * 0.05
    } else {
        bottom + 1.0
    };
    let root = backend.into_drawing_area();
    let mut chart = ChartBuilder::on(&root)
        .margin(8)
        .margin_right(20)
        .x_label_area_size(40)
        .y_label_area_size(64)
        .build_cartesian_2d(steps, bottom..top)?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID)
        .disable_x_mesh()
        .axis_style(INK)
        .label_style((FONT, 16).with_color(INK))
        .axis_desc_style((FONT, 16).with_color(INK))
        .x_labels(6)
        .y_labels(5)
        .x_desc("step")
        .x_label_formatter(&|step| format!("{step:.0}"))
        .y_label_formatter(&|value| short(*value))
        .draw()?;
    let lines = [(trained, FIRST), (held_out, SECOND)];
    for (points, colour) in lines.into_iter().filter(|(points, _)| !points.is_empty()) {
        let line = PathElement::new(points, colour.stroke_width(2));
        chart.draw_series(once(line))?;
    }
    let marks = held_out.iter().take(200); // more are a line of their own
    chart.draw_series(marks.map(|&point| Circle::new(point, 3, SECOND.filled())))?;
    root.present()
}

/// A number of an axis.
fn short(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 0.01 => {
            let text = format!("{value:.3}");
            text.trim_end_matches('0').trim_end_matches('.').to_owned()
        }
        _ => format!("{value:.1e}"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_curve_is_there_if_the_run_has_its_points() {
        let metrics = [
            json!({"step": 1, "loss": 2.0, "learning_rate": 0.1}),
            json!({"step": 1, "eval": {"kl": 1.0}}),
            json!({"step": 2, "loss": 1.0, "learning_rate": 0.0, "kl": 1.0}),
            json!({"step": 2, "eval": {"kl": 0.5}}),
        ];
        let found = curves(&metrics).unwrap();
        let names: Vec<_> = found.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, ["Loss", CURVES[1].0, "Learning rate"]);
        assert!(!found[0].1.contains("#D55E00") && found[1].1.contains("#D55E00"));
        assert!(curves(&metrics[..1]).unwrap().is_empty());
    }

    #[test]
    fn a_number_of_an_axis_is_short() {
        let texts = [0.0, 250.0, 0.5, 1.25, 2e-5].map(short);
        assert_eq!(texts, ["0", "250", "0.5", "1.25", "2.0e-5"]);
    }
}
