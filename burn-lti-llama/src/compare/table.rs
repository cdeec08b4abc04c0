//! A comparison for people, and as CSV for other programs.

use std::fmt;

use burn_lti::map::Start;

use super::{Comparison, RunReport, Spread, StartReport};
use crate::plan::report::{thousands, write_table};

/// A row a start: means, and in brackets the range over its runs.
impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head = [
            "start",
            "KL before",
            "KL after",
            "top-1",
            "seconds",
            "tokens seen",
        ];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        rows.extend(self.starts.iter().map(row));
        write_table(f, &rows)?;
        match self.seeds.as_slice() {
            [seed] => write!(f, "\nSeed {seed}. ")?,
            seeds => write!(
                f,
                "\nMeans over {} seeds, with the lowest and the highest. ",
                seeds.len()
            )?,
        }
        writeln!(
            f,
            "KL is to the teacher, in nats per token, on held-out text."
        )
    }
}

impl Comparison {
    /// A line a run, under a line with the names of the columns. What is unknown is empty.
    pub fn runs_csv(&self) -> String {
        let mut csv = String::from(
            "start,seed,steps,tokens_seen,kl_start,kl_end,top1_agreement,student_ce,seconds\n",
        );
        for (start, run) in self.runs() {
            let summary = &run.summary;
            push_line(
                &mut csv,
                [
                    start.to_string(),
                    summary.seed.to_string(),
                    summary.steps.to_string(),
                    run.tokens_seen.to_string(),
                    field(summary.kl_start),
                    field(summary.kl_end),
                    field(summary.top1_agreement),
                    field(summary.student_ce),
                    summary.seconds.to_string(),
                ],
            );
        }
        csv
    }

    /// A line an evaluation, under a line with the names of the columns. What is unknown is empty.
    pub fn curves_csv(&self) -> String {
        let mut csv = String::from("start,seed,step,tokens_seen,kl,top1_agreement,student_ce\n");
        for (start, run) in self.runs() {
            for point in &run.curve {
                push_line(
                    &mut csv,
                    [
                        start.to_string(),
                        run.summary.seed.to_string(),
                        point.step.to_string(),
                        point.tokens_seen.to_string(),
                        field(point.kl),
                        field(point.top1_agreement),
                        field(point.student_ce),
                    ],
                );
            }
        }
        csv
    }

    fn runs(&self) -> impl Iterator<Item = (Start, &RunReport)> {
        self.starts
            .iter()
            .flat_map(|report| report.runs.iter().map(|run| (report.start, run)))
    }
}

fn row(report: &StartReport) -> Vec<String> {
    let runs = report.runs.len();
    let nats = |kl: f64| format!("{kl:.4}");
    vec![
        report.start.to_string(),
        cell(report.kl_start, runs, nats),
        cell(report.kl_end, runs, nats),
        cell(report.top1_agreement, runs, |share| {
            format!("{:.1} %", share * 100.0)
        }),
        cell(report.seconds, runs, |seconds| format!("{seconds:.1}")),
        cell(report.tokens_seen, runs, |tokens| {
            thousands(tokens as usize)
        }),
    ]
}

/// `2.5000 (1.0000 to 4.0000)`; without a range where it would say nothing, and with the number of runs
/// that have a value where it is not all of them.
fn cell(spread: Option<Spread>, runs: usize, show: impl Fn(f64) -> String) -> String {
    let Some(spread) = spread else {
        return "-".to_owned();
    };
    let (min, max) = (show(spread.min), show(spread.max));
    let mut text = show(spread.mean);
    if min != max {
        text = format!("{text} ({min} to {max})");
    }
    if spread.runs < runs {
        text = format!("{text}, {} of {runs}", spread.runs);
    }
    text
}

fn field(value: Option<f64>) -> String {
    value.map_or_else(String::new, |value| value.to_string())
}

/// No field holds a comma or a quote: they are numbers and names of starts.
fn push_line<const N: usize>(csv: &mut String, fields: [String; N]) {
    csv.push_str(&fields.join(","));
    csv.push('\n');
}

#[cfg(test)]
mod tests {
    use super::super::report::fixture::comparison;
    use super::*;

    const GAP: [Option<f64>; 2] = [Some(4.0), None];
    const WHOLE: [Option<f64>; 2] = [Some(5.0), Some(3.0)];

    #[test]
    fn a_row_says_mean_range_and_what_is_missing() {
        let comparison = comparison(&[
            (Start::Lecun, &[&WHOLE, &GAP]),
            (Start::Grouped, &[&WHOLE, &WHOLE]),
        ]);
        let text = comparison.to_string();
        let lines: Vec<&str> = text.lines().collect();
        let cells = |line: &str| -> Vec<String> {
            let cells = line.split("  ").map(|cell| cell.trim().to_owned());
            cells.filter(|cell| !cell.is_empty()).collect()
        };
        assert_eq!(
            cells(lines[1]),
            [
                "lecun",
                "4.5000 (4.0000 to 5.0000)",
                "3.0000, 1 of 2",
                "25.0 %, 1 of 2",
                "2.5 (2.0 to 3.0)",
                "1,000"
            ]
        );
        assert_eq!(
            cells(lines[2])[..4],
            ["grouped", "5.0000", "3.0000", "25.0 %"]
        );
        assert!(text.contains("Means over 2 seeds"), "{text}");
    }

    #[test]
    fn what_nobody_knows_is_a_dash() {
        let unknown = [None];
        let text = comparison(&[(Start::Lecun, &[&unknown])]).to_string();
        let row = text.lines().nth(1).unwrap();
        let cells: Vec<&str> = row.split_whitespace().collect();
        assert_eq!(cells, ["lecun", "-", "-", "-", "2.0", "0"]);
        assert!(text.contains("Seed 0."), "{text}");
    }

    #[test]
    fn csv_has_a_line_a_run_and_a_line_an_evaluation() {
        let comparison = comparison(&[(Start::Lecun, &[&WHOLE, &GAP])]);
        let runs = comparison.runs_csv();
        let lines: Vec<&str> = runs.lines().collect();
        assert_eq!(lines[1], "lecun,0,10,1000,5,3,0.25,4,2");
        assert_eq!(lines[2], "lecun,1,10,1000,4,,,,3");
        let curves = comparison.curves_csv();
        assert_eq!(
            curves,
            "start,seed,step,tokens_seen,kl,top1_agreement,student_ce\n\
             lecun,0,0,0,5,,\n\
             lecun,0,10,1000,3,0.25,4\n\
             lecun,1,0,0,4,,\n\
             lecun,1,10,1000,,,\n"
        );
        for csv in [runs, curves] {
            let columns = |line: &str| line.split(',').count();
            let expected = columns(csv.lines().next().unwrap());
            assert!(csv.lines().all(|line| columns(line) == expected));
        }
    }
}
