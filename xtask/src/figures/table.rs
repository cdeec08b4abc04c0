//! The table of a part, and where it stands in the documents.

use std::fmt::Write as _;

use anyhow::{Context, Result, bail};

use super::part::{Column, Part, Row, Run};
use super::results::{Outcome, Results};

/// The table, or the first run that it lacks.
pub(crate) fn table(part: &Part, results: &Results) -> Result<String> {
    let mut head = vec![part.title.clone()];
    head.extend(part.before.clone());
    head.extend(part.columns.iter().map(|column| column.name.clone()));
    let mut table = String::new();
    write_row(&mut table, &head);
    write_row(&mut table, &vec!["---".to_owned(); head.len()]);
    for row in &part.rows {
        let mut cells = vec![row.name.clone()];
        let figures: Result<Vec<_>> = part
            .columns
            .iter()
            .map(|column| outcomes(part, results, row, column))
            .collect();
        let figures = figures?;
        if part.before.is_some() {
            let first = figures.iter().flatten().next();
            cells.push(first.map_or_else(|| Ok(String::new()), |all| mean(all, before))?);
        }
        for (column, outcomes) in part.columns.iter().zip(&figures) {
            let Some(outcomes) = outcomes else {
                cells.push(String::new());
                continue;
            };
            let mut cell = mean(outcomes, |outcome| after(outcome, column))?;
            let back: u64 = outcomes.iter().map(|outcome| outcome.rollbacks()).sum();
            if back > 0 && column.at_step.is_none() {
                let times = if back == 1 { "time" } else { "times" };
                write!(cell, ", went back {back} {times}")?;
            }
            cells.push(cell);
        }
        write_row(&mut table, &cells);
    }
    Ok(table)
}

fn write_row(table: &mut String, cells: &[String]) {
    table.push_str(&format!("| {} |\n", cells.join(" | ")));
}

/// Those of a figure, one for each seed. None if the row leaves it out.
fn outcomes<'a>(
    part: &Part,
    results: &'a Results,
    row: &Row,
    column: &Column,
) -> Result<Option<Vec<&'a Outcome>>> {
    let Some(runs) = part.runs_of(row, column) else {
        return Ok(None);
    };
    let outcome = |run: &Run| {
        let line = run.args().join(" ");
        results.of(run).with_context(|| {
            format!(
                "there is no result of `{line}`: `cargo xtask figures {}`",
                part.name
            )
        })
    };
    runs.iter().map(outcome).collect::<Result<_>>().map(Some)
}

fn before(outcome: &Outcome) -> Option<f64> {
    outcome.number("kl_start")
}

fn after(outcome: &Outcome, column: &Column) -> Option<f64> {
    match column.at_step {
        None => outcome.number("kl_end"),
        Some(step) => {
            let found = outcome.curve.iter().find(|(at, _)| *at == step);
            found.map(|(_, kl)| *kl)
        }
    }
}

/// The mean over seeds, and the least and the greatest where they differ.
fn mean(outcomes: &[&Outcome], of: impl Fn(&Outcome) -> Option<f64>) -> Result<String> {
    let values: Option<Vec<f64>> = outcomes.iter().map(|outcome| of(outcome)).collect();
    let values = values.context("a run has not the figure that its column asks for")?;
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    let (least, greatest) = values
        .iter()
        .fold((f64::INFINITY, 0.0_f64), |(l, g), value| {
            (l.min(*value), g.max(*value))
        });
    let [mean, least, greatest] = [mean, least, greatest].map(|value| format!("{value:.3}"));
    Ok(match least == greatest {
        true => mean,
        false => format!("{mean} ({least} to {greatest})"),
    })
}

/// `document` with the table of every marked part as `table` makes it from the part's name and the table that
/// is there.
pub(crate) fn fill(document: &str, table: impl Fn(&str, &str) -> Result<String>) -> Result<String> {
    let mut filled = String::new();
    let mut rest = document;
    while let Some((ahead, from)) = rest.split_once(BEGIN) {
        let (name, behind) = from.split_once(" -->").context("a marker without an end")?;
        let Some((old, after)) = behind.split_once(END) else {
            bail!("nothing ends the table `{name}`: {END}");
        };
        let table = table(name, old.trim_start())?;
        write!(filled, "{ahead}{BEGIN}{name} -->\n{table}{END}")?;
        rest = after;
    }
    filled.push_str(rest);
    Ok(filled)
}

/// Before the name of a part.
const BEGIN: &str = "<!-- figures: ";
const END: &str = "<!-- end of figures -->";

#[cfg(test)]
mod tests {
    use super::*;

    const PART: &str = r#"
        title = "trains"
        recipe = "a.toml"
        seeds = [0, 1]
        before = "before"
        [[columns]]
        name = "after"
        [[columns]]
        name = "on the way"
        at_step = 5
        [[rows]]
        name = "all"
        [[rows]]
        name = "maps"
        set = ["lti.train=maps"]
        columns = ["after"]
    "#;

    #[test]
    fn a_table_has_means_and_spreads_or_says_what_it_lacks() {
        let part = Part::parse("p", PART).unwrap();
        let mut results = Results::default();
        let runs = part.runs();
        let last = runs.len() - 1;
        for (index, run) in runs.iter().enumerate().take(last) {
            results.push(Outcome::test(run.clone(), 0.5, 0.1 * (1 + index) as f64, 0));
        }
        let error = table(&part, &results).unwrap_err().to_string();
        assert!(
            error.contains("lti.train=maps --set train.seed=1"),
            "{error}"
        );
        assert!(error.contains("cargo xtask figures p"), "{error}");

        results.push(Outcome::test(runs[last].clone(), 0.5, 0.2, 1));
        assert_eq!(
            table(&part, &results).unwrap(),
            "| trains | before | after | on the way |\n| --- | --- | --- | --- |\n\
             | all | 0.500 | 0.200 (0.100 to 0.300) | 0.350 (0.300 to 0.400) |\n\
             | maps | 0.500 | 0.200, went back 1 time |  |\n"
        );
    }

    #[test]
    fn tables_stand_between_their_markers() {
        let document = "a\n<!-- figures: p -->\nold\n<!-- end of figures -->\nb";
        let filled = fill(document, |name, _| Ok(format!("{name}'s\n"))).unwrap();
        assert_eq!(
            filled,
            "a\n<!-- figures: p -->\np's\n<!-- end of figures -->\nb"
        );
        assert_eq!(fill(&filled, |_, old| Ok(old.to_owned())).unwrap(), filled);
        assert!(fill("<!-- figures: p -->\n", |_, _| Ok(String::new())).is_err());
        assert_eq!(fill("nothing", |_, _| bail!("unasked")).unwrap(), "nothing");
    }
}
