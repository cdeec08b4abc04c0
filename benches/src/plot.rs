//! How a step grows, as SVG: time and memory, each against everything that grows, both axes logarithmic.
//!
//! The words stay text in the file, set in whatever font its viewer has.

use std::iter::once;
use std::ops::Range;

use anyhow::{Result, anyhow, ensure};
use plotters::prelude::*;
use serde::Deserialize;

/// Of one panel.
const PANEL: (u32, u32) = (360, 300);
/// Colours that people with any colour vision can tell apart (Okabe and Ito), one a program.
const COLOURS: [RGBColor; 4] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
];
const INK: RGBColor = RGBColor(60, 60, 60);
const FONT: &str = "sans-serif";

/// What `cargo xtask bench --growth` measured.
#[derive(Clone, Debug, Deserialize)]
pub struct Growth {
    axes: Vec<Axis>,
}

#[derive(Clone, Debug, Deserialize)]
struct Axis {
    name: String,
    lines: Vec<Line>,
}

#[derive(Clone, Debug, Deserialize)]
struct Line {
    program: String,
    points: Vec<Point>,
}

#[derive(Clone, Debug, Deserialize)]
struct Point {
    value: f64,
    seconds: Option<f64>,
    peak_mib: Option<f64>,
}

/// What is drawn against what grows.
#[derive(Clone, Copy)]
struct Quantity {
    name: &'static str,
    of: fn(&Point) -> Option<f64>,
}

const QUANTITIES: [Quantity; 2] = [
    Quantity {
        name: "seconds a step",
        of: |point| point.seconds,
    },
    Quantity {
        name: "peak MiB of the steps",
        of: |point| point.peak_mib,
    },
];

impl Growth {
    /// The drawing.
    ///
    /// # Errors
    ///
    /// If there is nothing to draw, or the drawing library fails.
    pub fn to_svg(&self) -> Result<String> {
        ensure!(!self.axes.is_empty(), "nothing was measured");
        let size = (
            PANEL.0 * self.axes.len() as u32,
            PANEL.1 * QUANTITIES.len() as u32,
        );
        let mut svg = String::new();
        let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        root.fill(&WHITE).map_err(failed)?;
        let panels = root.split_evenly((QUANTITIES.len(), self.axes.len()));
        let drawn = QUANTITIES
            .iter()
            .flat_map(|quantity| self.axes.iter().map(move |axis| (quantity, axis)));
        for (panel, (quantity, axis)) in panels.iter().zip(drawn) {
            axis.draw(quantity, panel)?;
        }
        root.present().map_err(failed)?;
        drop(panels);
        drop(root);
        Ok(svg)
    }
}

impl Axis {
    fn draw(
        &self,
        quantity: &Quantity,
        panel: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>,
    ) -> Result<()> {
        let lines: Vec<(&str, Vec<(f64, f64)>)> = self
            .lines
            .iter()
            .map(|line| (line.program.as_str(), line.known(quantity)))
            .collect();
        let points = || lines.iter().flat_map(|(_, points)| points);
        let (Some(x), Some(y)) = (
            widened(points().map(|(x, _)| *x)),
            widened(points().map(|(_, y)| *y)),
        ) else {
            return Ok(()); // a system that does not tell has an empty panel
        };
        let mut chart = ChartBuilder::on(panel)
            .margin(8)
            .margin_right(20)
            .x_label_area_size(40)
            .y_label_area_size(62)
            .build_cartesian_2d(x.log_scale(), y.log_scale())
            .map_err(failed)?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(INK.mix(0.15))
            .axis_style(INK)
            .label_style((FONT, 12).with_color(INK))
            .axis_desc_style((FONT, 13).with_color(INK))
            .x_labels(6)
            .y_labels(6)
            .x_desc(&self.name)
            .y_desc(quantity.name)
            .x_label_formatter(&|value| short(*value))
            .y_label_formatter(&|value| short(*value))
            .draw()
            .map_err(failed)?;
        for ((program, points), colour) in lines.into_iter().zip(COLOURS.iter().cycle()) {
            let style = colour.stroke_width(2);
            chart
                .draw_series(
                    points
                        .iter()
                        .map(|&point| Circle::new(point, 3, colour.filled())),
                )
                .map_err(failed)?;
            chart
                .draw_series(once(PathElement::new(points, style)))
                .map_err(failed)?
                .label(program)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style));
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .background_style(WHITE.mix(0.85))
            .label_font((FONT, 12).with_color(INK))
            .draw()
            .map_err(failed)
    }
}

impl Line {
    /// Its points that are known and that a logarithmic axis has.
    fn known(&self, quantity: &Quantity) -> Vec<(f64, f64)> {
        let points = self.points.iter();
        let known = points.filter_map(|point| Some((point.value, (quantity.of)(point)?)));
        known.filter(|(x, y)| *x > 0.0 && *y > 0.0).collect()
    }
}

/// The range of values with room on both sides; `None` without a value.
fn widened(values: impl Iterator<Item = f64>) -> Option<Range<f64>> {
    const ROOM: f64 = 1.3;
    let (mut low, mut high) = (f64::INFINITY, 0.0_f64);
    for value in values {
        (low, high) = (low.min(value), high.max(value));
    }
    (low <= high).then(|| low / ROOM..high * ROOM)
}

/// A number on an axis: `0.5`, `40`, `8k`.
fn short(value: f64) -> String {
    match value {
        value if value >= 1e3 => format!("{}k", short(value / 1e3)),
        value if value >= 10.0 => format!("{value:.0}"),
        value => {
            let text = format!("{value:.3}");
            text.trim_end_matches('0').trim_end_matches('.').to_owned()
        }
    }
}

fn failed(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("the drawing library failed: {error}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn growth(text: &str) -> Growth {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn every_axis_has_two_panels_and_every_program_a_line() {
        let svg = growth(
            r#"{ "settings": null, "axes": [
                { "name": "layers", "lines": [
                    { "program": "burn-lti, flex", "points": [
                        { "value": 1, "seconds": 0.1, "peak_mib": 100 },
                        { "value": 8, "seconds": 0.8, "peak_mib": null },
                        { "value": 16, "seconds": 1.6, "peak_mib": 400 } ] } ] } ] }"#,
        )
        .to_svg()
        .unwrap();
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
        for text in [
            "layers",
            "seconds a step",
            "peak MiB of the steps",
            "burn-lti, flex",
        ] {
            assert!(svg.contains(text), "{text}");
        }
        // Three points that are known of one, two of the other.
        assert_eq!(svg.matches("<circle").count(), 5);
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
    }

    #[test]
    fn without_a_measurement_there_is_no_drawing() {
        assert!(growth(r#"{ "axes": [] }"#).to_svg().is_err());
        let unknown = r#"{ "axes": [{ "name": "layers", "lines": [] }] }"#;
        assert!(growth(unknown).to_svg().is_ok());
    }

    #[test]
    fn labels_are_short() {
        for (value, text) in [
            (0.5, "0.5"),
            (2.0, "2"),
            (40.0, "40"),
            (8000.0, "8k"),
            (131_072.0, "131k"),
        ] {
            assert_eq!(short(value), text);
        }
    }
}
