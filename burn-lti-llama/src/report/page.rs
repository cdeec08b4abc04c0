//! The template of the page, and how it writes numbers.

use minijinja::Environment;
use minijinja::value::Serde;
use serde::Serialize;

use super::ReportError;
use super::curves::curves;
use super::data::Run;

const NAME: &str = "page.html"; // by its end, what is put in is escaped
const TEMPLATE: &str = include_str!("page.html");
const STYLE: &str = include_str!("page.css");

/// What the template takes.
#[derive(Serialize)]
struct Page<'a> {
    runs: Vec<Part<'a>>,
    style: &'static str,
}

/// A run and its pictures.
#[derive(Serialize)]
struct Part<'a> {
    #[serde(flatten)]
    run: &'a Run,
    curves: Vec<(&'static str, String)>,
}

pub(super) fn html(runs: &[Run]) -> Result<String, ReportError> {
    let mut environment = Environment::new();
    environment.add_filter("number", number);
    environment.add_filter("whole", whole);
    environment.add_filter("percent", percent);
    environment.add_filter("bytes", bytes);
    environment.add_filter("seconds", seconds);
    environment.add_template(NAME, TEMPLATE)?;
    let mut page = Page {
        runs: Vec::new(),
        style: STYLE,
    };
    for run in runs {
        let curves = curves(&run.metrics)?;
        page.runs.push(Part { run, curves });
    }
    Ok(environment.get_template(NAME)?.render(Serde(&page))?)
}

/// Four digits that say something.
fn number(value: f64) -> String {
    let size = value.abs();
    if size != 0.0 && !(1e-4..1e6).contains(&size) {
        return format!("{value:.2e}");
    }
    let before = if size >= 1.0 {
        size.log10().floor() as usize + 1
    } else {
        1
    };
    let digits = 4_usize.saturating_sub(before);
    format!("{value:.digits$}")
}

/// A whole number, a thin space between thousands.
fn whole(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push('\u{202f}');
        }
        text.push(digit);
    }
    text
}

fn percent(part: f64) -> String {
    format!("{:.1} %", 100.0 * part)
}

fn bytes(bytes: f64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1024.0 {
        return format!("{bytes:.0} B");
    }
    let mut size = bytes / 1024.0;
    let mut unit = 0;
    while size >= 1024.0 && unit + 1 < UNITS.len() {
        size /= 1024.0;
        unit += 1;
    }
    let text = format!("{size:.2}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    format!("{text} {}", UNITS[unit])
}

fn seconds(seconds: f64) -> String {
    match seconds {
        long if long >= 7200.0 => format!("{:.1} h", long / 3600.0),
        long if long >= 180.0 => format!("{:.1} min", long / 60.0),
        short => format!("{short:.1} s"),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use plotters::style::RGBColor;

    use super::*;
    use crate::report::curves::{FIRST, GRID, INK, SECOND};

    /// The least contrast that WCAG 2.2 asks of text (1.4.3).
    const LEAST: f64 = 4.5;

    #[test]
    fn numbers_are_written_for_people() {
        assert_eq!(
            [0.32402, 12.3456, 0.0, 2.5e-8].map(number),
            ["0.324", "12.35", "0.000", "2.50e-8"]
        );
        assert_eq!([7.0, 260_032.0].map(whole), ["7", "260\u{202f}032"]);
        assert_eq!(percent(0.7442), "74.4 %");
        assert_eq!(
            [512.0, 1280.0, 3e9].map(bytes),
            ["512 B", "1.25 KiB", "2.79 GiB"]
        );
        assert_eq!(
            [9.0, 600.0, 9000.0].map(seconds),
            ["9.0 s", "10.0 min", "2.5 h"]
        );
    }

    /// The variables of the light theme, then of the dark one.
    fn themes() -> [BTreeMap<&'static str, [f64; 3]>; 2] {
        let (light, dark) = STYLE.split_once("prefers-color-scheme: dark").unwrap();
        [light, dark].map(|part| {
            let variables = part.split("--").filter_map(|variable| {
                let (name, value) = variable.split_once(": #")?;
                let byte = |at: usize| u8::from_str_radix(value.get(at..at + 2)?, 16).ok();
                Some((
                    name,
                    [0, 2, 4].map(|at| f64::from(byte(at).unwrap()) / 255.0),
                ))
            });
            variables.collect()
        })
    }

    /// Relative luminance, as WCAG 2.2 defines it.
    fn luminance(colour: [f64; 3]) -> f64 {
        let linear = colour.map(|part| match part <= 0.04045 {
            true => part / 12.92,
            false => ((part + 0.055) / 1.055).powf(2.4),
        });
        0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    }

    fn contrast(one: [f64; 3], other: [f64; 3]) -> f64 {
        let (one, other) = (luminance(one), luminance(other));
        (one.max(other) + 0.05) / (one.min(other) + 0.05)
    }

    #[test]
    fn what_is_read_stands_out_in_both_themes() {
        assert!((contrast([0.0; 3], [1.0; 3]) - 21.0).abs() < 1e-9);
        for theme in themes() {
            for ink in ["ink", "soft", "first", "second"] {
                for ground in ["paper", "card"] {
                    let found = contrast(theme[ink], theme[ground]);
                    assert!(found >= LEAST, "{ink} on {ground}: {found:.2}");
                }
            }
        }
    }

    #[test]
    fn each_colour_of_a_curve_has_one_in_the_style_sheet() {
        for RGBColor(red, green, blue) in [INK, GRID, FIRST, SECOND] {
            let colour = format!("stroke=\"#{red:02X}{green:02X}{blue:02X}\"");
            assert!(STYLE.contains(&colour), "{colour}");
        }
    }
}
