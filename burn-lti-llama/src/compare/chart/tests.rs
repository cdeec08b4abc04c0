//! Tests of the chart.

use burn_lti::map::Start;

use super::super::report::fixture::comparison;
use super::*;

/// The lines of a colour and a width, each a list of pixels, in the order in which they were drawn.
fn lines(svg: &str, colour: RGBColor, width: u32) -> Vec<Vec<(i32, i32)>> {
    let RGBColor(r, g, b) = colour;
    let colour = format!("stroke=\"#{r:02X}{g:02X}{b:02X}\"");
    let width = format!("stroke-width=\"{width}\"");
    let tags = svg.split('<').filter(|tag| tag.starts_with("polyline"));
    tags.filter(|tag| tag.contains(&colour) && tag.contains(&width))
        .map(|tag| {
            let points = tag.split("points=\"").nth(1).unwrap();
            let points = points.split('"').next().unwrap().split_whitespace();
            let pixel = |point: &str| {
                let (x, y) = point.split_once(',').unwrap();
                (x.parse().unwrap(), y.parse().unwrap())
            };
            points.map(pixel).collect()
        })
        .collect()
}

/// The line of means of the start that was named as this one.
fn mean(svg: &str, index: usize) -> Vec<(i32, i32)> {
    lines(svg, COLOURS[index], THICK).swap_remove(0)
}

fn known(values: &[f64]) -> Vec<Option<f64>> {
    values.iter().copied().map(Some).collect()
}

#[test]
fn the_chart_is_an_svg_that_names_every_start() {
    let runs = known(&[4.0, 2.0]);
    let runs: &[&[Option<f64>]] = &[&runs];
    let all = Start::ALL.map(|start| (start, runs));
    let svg = comparison(&all).chart().unwrap();
    assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
    assert!(svg.contains("xmlns=\"http://www.w3.org/2000/svg\""));
    let texts: Vec<&str> = svg
        .split("<text")
        .skip(1)
        .map(|text| text.split(['>', '<']).nth(1).unwrap().trim())
        .collect();
    for start in Start::ALL {
        assert!(texts.contains(&start.to_string().as_str()), "{texts:?}");
    }
    assert!(texts.contains(&"training tokens seen"), "{texts:?}");
    assert!(!svg.contains("NaN") && !svg.contains("inf"));
}

#[test]
fn higher_kl_is_drawn_higher_and_equal_factors_equally_far_apart() {
    let (low, high) = (known(&[100.0, 10.0, 1.0]), known(&[200.0, 20.0, 2.0]));
    let svg = comparison(&[(Start::Lecun, &[&low]), (Start::Grouped, &[&high])])
        .chart()
        .unwrap();
    let (low, high) = (mean(&svg, 0), mean(&svg, 1));
    // Pixels count from the top.
    assert!(low.iter().zip(&high).all(|(low, high)| high.1 < low.1));
    assert!(low.is_sorted_by(|a, b| a.1 < b.1 && a.0 < b.0));
    let drop = |line: &[(i32, i32)], i: usize| line[i + 1].1 - line[i].1;
    for line in [&low, &high] {
        // Both ends of a distance are rounded to a pixel.
        assert!((drop(line, 0) - drop(line, 1)).abs() <= 2, "{line:?}");
    }
    let gaps: Vec<i32> = low.iter().zip(&high).map(|(l, h)| l.1 - h.1).collect();
    assert!(
        gaps.iter().all(|gap| (gap - gaps[0]).abs() <= 2),
        "{gaps:?}"
    );
    let across: Vec<i32> = low.windows(2).map(|pair| pair[1].0 - pair[0].0).collect();
    assert!((across[0] - across[1]).abs() <= 2, "{across:?}");
}

#[test]
fn the_mean_lies_between_its_runs() {
    let (one, two) = (known(&[8.0, 2.0]), known(&[9.0, 4.0]));
    let svg = comparison(&[(Start::Lecun, &[&one, &two])])
        .chart()
        .unwrap();
    let runs = lines(&svg, COLOURS[0], THIN);
    let mean = mean(&svg, 0);
    assert_eq!(runs.len(), 2);
    for (index, (_, y)) in mean.iter().enumerate() {
        assert!(runs[1][index].1 < *y && *y < runs[0][index].1);
    }
    assert!(svg.contains("mean over 2 seeds"));
}

#[test]
fn a_line_has_a_gap_where_a_value_is_missing() {
    let gap = [Some(5.0), Some(4.0), None, Some(3.0), Some(2.0)];
    let whole = known(&[5.0, 4.0, 3.5, 3.0, 2.0]);
    let svg = comparison(&[(Start::Lecun, &[&gap, &whole])])
        .chart()
        .unwrap();
    let lengths =
        |lines: Vec<Vec<(i32, i32)>>| -> Vec<usize> { lines.iter().map(Vec::len).collect() };
    assert_eq!(lengths(lines(&svg, COLOURS[0], THIN)), [2, 2, 5]);
    // The last line is that of the legend.
    assert_eq!(lengths(lines(&svg, COLOURS[0], THICK)), [2, 2, 2]);
}

#[test]
fn what_has_no_logarithm_is_said_to_be_missing() {
    let zero = known(&[0.0, 1e-3, 1e-2]);
    let svg = comparison(&[(Start::Grouped, &[&zero])]).chart().unwrap();
    assert!(svg.contains("Not shown: 1 value not above 0"));
    assert_eq!(mean(&svg, 0).len(), 2);

    let nothing = [None, Some(-1e-9)];
    let svg = comparison(&[(Start::Grouped, &[&nothing])])
        .chart()
        .unwrap();
    assert!(svg.contains("No held-out KL above 0 is known."));
    assert!(!svg.contains("NaN") && !svg.contains("inf"));
}

#[test]
fn one_value_alone_has_a_place() {
    let one = known(&[0.7]);
    let svg = comparison(&[(Start::Grouped, &[&one])]).chart().unwrap();
    let (x, y) = mean(&svg, 0)[0];
    assert!((0..SIZE.0 as i32).contains(&x) && (0..SIZE.1 as i32).contains(&y));
}

#[test]
fn an_axis_has_a_few_round_labels() {
    for (low, high) in [
        (0.65, 4.07),
        (1.0, 1.0),
        (2.0, 2.1),
        (1e-9, 5.0),
        (0.98, 9.9),
        (3.0, 40.0),
        (0.5, 0.9),
    ] {
        let range = widened(low..high);
        let ticks = ticks(&range);
        assert!((4..=13).contains(&ticks.len()), "{range:?}: {ticks:?}");
        assert!(ticks.is_sorted_by(|a, b| a < b), "{ticks:?}");
        let within = range.start..=range.end;
        assert!(ticks.iter().all(|tick| within.contains(tick)), "{ticks:?}");
        let labels: Vec<String> = ticks.iter().copied().map(decimal).collect();
        assert!(labels.iter().all(|label| label.len() <= 6), "{labels:?}");
    }
}

#[test]
fn numbers_are_written_with_few_digits() {
    for (value, text) in [
        (0.0, "0"),
        (3.0, "3"),
        (7.0 * 0.1, "0.7"),
        (0.015, "0.015"),
        (3e-9, "3e-9"),
    ] {
        assert_eq!(decimal(value), text);
    }
    for (tokens, text) in [
        (0.0, "0"),
        (500.0, "500"),
        (20_000.0, "20k"),
        (1.5e6, "1.5M"),
        (2e9, "2G"),
    ] {
        assert_eq!(short(tokens), text);
    }
}
