//! Held-out KL against training tokens, as SVG.
//!
//! The words stay text in the file, set in whatever font its viewer has: nothing is drawn with a font
//! here, so none has to be installed.

use std::io;
use std::iter::once;
use std::ops::Range;

use plotters::prelude::*;

use super::{CompareError, Comparison, StartReport};

const SIZE: (u32, u32) = (900, 560);
/// Where the line below the chart begins, from the top.
const FOOT: i32 = 532;
/// Colours that people with any colour vision can tell apart (Okabe and Ito), one a start.
const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    BLACK,
];
const FONT: &str = "sans-serif";
const INK: RGBColor = RGBColor(60, 60, 60);
/// Of the lines of single runs.
const THIN: u32 = 1;
/// Of the lines of means.
const THICK: u32 = 3;
/// The part of its height by which the chart is higher and lower than its lines.
const MARGIN: f64 = 0.05;
/// What the axis shows if there is nothing to draw.
const NOTHING: Range<f64> = 0.1..1.0;

/// Tokens and KL.
type Point = (f64, f64);

impl Comparison {
    /// Held-out KL against training tokens seen, on a logarithmic axis, as an SVG file: one thick line a
    /// start for the mean over its runs, drawn where all of them have a value, and a thin one a run.
    ///
    /// # Errors
    ///
    /// [`CompareError::Chart`] if the drawing library fails.
    pub fn chart(&self) -> Result<String, CompareError> {
        let mut svg = String::new();
        let drawn = draw(SVGBackend::with_string(&mut svg, SIZE), &Curves::of(self));
        drawn.map_err(|source| CompareError::Chart {
            source: source.into(),
        })?;
        Ok(svg)
    }
}

/// What is drawn. A line is a list of pieces, between which a value is missing.
struct Curves {
    starts: Vec<StartCurves>,
    /// Runs from each start.
    runs: usize,
    tokens: Range<f64>,
    kl: Range<f64>,
    /// Whether there is a value at all.
    is_empty: bool,
    /// Values that a logarithmic axis cannot show.
    not_positive: usize,
}

struct StartCurves {
    name: String,
    mean: Vec<Vec<Point>>,
    runs: Vec<Vec<Vec<Point>>>,
}

impl Curves {
    fn of(comparison: &Comparison) -> Self {
        let starts: Vec<StartCurves> = comparison.starts.iter().map(StartCurves::of).collect();
        let points: Vec<Point> = starts.iter().flat_map(StartCurves::points).collect();
        let known = comparison.starts.iter().flat_map(|start| &start.runs);
        let known = known.flat_map(|run| &run.curve).filter_map(|p| p.kl);
        let last = points.iter().map(|(tokens, _)| *tokens).fold(0.0, f64::max);
        let kl = || points.iter().map(|(_, kl)| *kl);
        let (low, high) = (kl().fold(f64::INFINITY, f64::min), kl().fold(0.0, f64::max));
        Self {
            runs: comparison.seeds.len(),
            // A chart of starts alone has no width of its own.
            tokens: 0.0..if last > 0.0 { last } else { 1.0 },
            kl: match points.is_empty() {
                true => NOTHING,
                false => widened(low..high),
            },
            is_empty: points.is_empty(),
            not_positive: known.filter(|&kl| kl <= 0.0).count(),
            starts,
        }
    }

    /// What has to be said of the lines.
    fn foot(&self) -> String {
        let mut foot = Vec::new();
        if self.is_empty {
            foot.push("No held-out KL above 0 is known.".to_owned());
        } else if self.runs > 1 {
            foot.push(format!(
                "Thick: mean over {} seeds, where all have a value. Thin: each seed.",
                self.runs
            ));
        }
        if self.not_positive > 0 {
            foot.push(format!(
                "Not shown: {} not above 0, which no logarithmic axis has.",
                match self.not_positive {
                    1 => "1 value".to_owned(),
                    count => format!("{count} values"),
                }
            ));
        }
        foot.join(" ")
    }
}

impl StartCurves {
    fn of(report: &StartReport) -> Self {
        let all = report.runs.len();
        let of_all = report.curve.iter().map(|point| {
            let whole = point.kl.filter(|spread| spread.runs == all);
            (point.tokens_seen, whole.map(|spread| spread.mean))
        });
        let runs = report.runs.iter().map(|run| {
            let points = run.curve.iter();
            pieces(points.map(|point| (point.tokens_seen, point.kl)))
        });
        Self {
            name: report.start.to_string(),
            mean: pieces(of_all),
            runs: runs.collect(),
        }
    }

    fn points(&self) -> impl Iterator<Item = Point> {
        let of_runs = self.runs.iter().flatten().flatten();
        of_runs.chain(self.mean.iter().flatten()).copied()
    }
}

fn draw(backend: SVGBackend<'_>, curves: &Curves) -> Result<(), DrawingAreaErrorKind<io::Error>> {
    let root = backend.into_drawing_area();
    root.fill(&WHITE)?;
    let (upper, lower) = root.split_vertically(FOOT);
    let ticks = ticks(&curves.kl);
    let mut chart = ChartBuilder::on(&upper)
        .caption("Held-out KL to the teacher", (FONT, 22).with_color(INK))
        .margin(12)
        .margin_right(32)
        .x_label_area_size(52)
        .y_label_area_size(72)
        .build_cartesian_2d(
            curves.tokens.clone(),
            curves.kl.clone().log_scale().with_key_points(ticks),
        )?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(INK.mix(0.15))
        .axis_style(INK)
        .label_style((FONT, 15).with_color(INK))
        .axis_desc_style((FONT, 16).with_color(INK))
        .x_labels(8)
        .x_desc("training tokens seen")
        .y_desc("nats per token, logarithmic")
        .x_label_formatter(&|tokens| short(*tokens))
        .y_label_formatter(&|kl| decimal(*kl))
        .draw()?;

    let coloured = || curves.starts.iter().zip(COLOURS.iter().cycle());
    for (start, colour) in coloured() {
        for piece in start.runs.iter().flatten() {
            let style = colour.mix(0.45).stroke_width(THIN);
            chart.draw_series(once(PathElement::new(piece.clone(), style)))?;
        }
    }
    for (start, colour) in coloured() {
        let style = colour.stroke_width(THICK);
        for piece in &start.mean {
            chart.draw_series(once(PathElement::new(piece.clone(), style)))?;
        }
        let points = start.mean.iter().flatten();
        chart
            .draw_series(points.map(|&point| Circle::new(point, 4, colour.filled())))?
            .label(&start.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 26, y)], style));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .margin(14)
        .legend_area_size(36)
        .background_style(WHITE.mix(0.85))
        .border_style(INK.mix(0.3))
        .label_font((FONT, 16).with_color(INK))
        .draw()?;
    let foot = curves.foot();
    if !foot.is_empty() {
        let style = (FONT, 14).with_color(INK).into_text_style(&lower);
        lower.draw_text(&foot, &style, (84, 4))?;
    }
    root.present()
}

/// The points of a line, in pieces between which a value is missing, or is none that a logarithmic axis
/// has.
fn pieces(points: impl IntoIterator<Item = (usize, Option<f64>)>) -> Vec<Vec<Point>> {
    let points: Vec<Option<Point>> = points
        .into_iter()
        .map(|(tokens, kl)| Some((tokens as f64, kl.filter(|&kl| kl > 0.0)?)))
        .collect();
    let pieces = points.split(Option::is_none);
    pieces
        .filter(|piece| !piece.is_empty())
        .map(|piece| piece.iter().copied().flatten().collect())
        .collect()
}

/// A range of KL with room above and below, never without height.
fn widened(range: Range<f64>) -> Range<f64> {
    let room = (range.end / range.start).powf(MARGIN).max(1.02);
    range.start / room..range.end * room
}

/// Where a logarithmic axis is labelled: at round numbers, as far apart as leaves at least four.
fn ticks(range: &Range<f64>) -> Vec<f64> {
    const FEW: usize = 4;
    /// Of a decade, from the sparsest, in tenths.
    const LADDERS: [&[u32]; 5] = [
        &[10],
        &[10, 30],
        &[10, 20, 50],
        &[10, 15, 20, 30, 50, 70],
        &[
            10, 12, 14, 16, 18, 20, 25, 30, 35, 40, 45, 50, 60, 70, 80, 90,
        ],
    ];
    let decades = range.start.log10().floor() as i32..=range.end.log10().ceil() as i32;
    let on = |ladder: &[u32]| -> Vec<f64> {
        let steps = decades.clone().flat_map(|decade| {
            let rung = move |tenths: &u32| f64::from(*tenths) / 10.0 * 10_f64.powi(decade);
            ladder.iter().map(rung).collect::<Vec<f64>>()
        });
        steps.filter(|tick| range.contains(tick)).collect()
    };
    let ladder = LADDERS.map(on).into_iter().find(|ticks| ticks.len() >= FEW);
    ladder.unwrap_or_else(|| evenly(range))
}

/// Round numbers the same distance apart, for a range so small that its logarithm is nearly a line.
fn evenly(range: &Range<f64>) -> Vec<f64> {
    let rough = (range.end - range.start) / 10.0;
    let decade = 10_f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * decade);
    let step = step.into_iter().find(|step| *step >= rough);
    let step = step.unwrap_or(rough);
    let first = (range.start / step).ceil() as u64;
    let last = (range.end / step).floor() as u64;
    (first..=last).map(|count| count as f64 * step).collect()
}

/// A number with as few digits as say it.
fn decimal(value: f64) -> String {
    let says_it = |text: &String| {
        let read = text.parse::<f64>();
        read.is_ok_and(|read| (read - value).abs() <= 1e-9 * value.abs())
    };
    let digits = 0..=12;
    let found = match value == 0.0 || (1e-4..1e6).contains(&value.abs()) {
        true => digits.map(|n| format!("{value:.n$}")).find(says_it),
        false => digits.map(|n| format!("{value:.n$e}")).find(says_it),
    };
    found.unwrap_or_else(|| value.to_string())
}

/// A number of tokens: `0`, `500`, `20k`, `1.5M`.
fn short(tokens: f64) -> String {
    match tokens {
        tokens if tokens >= 1e9 => decimal(tokens / 1e9) + "G",
        tokens if tokens >= 1e6 => decimal(tokens / 1e6) + "M",
        tokens if tokens >= 1e3 => decimal(tokens / 1e3) + "k",
        tokens => decimal(tokens),
    }
}

#[cfg(test)]
mod tests;
