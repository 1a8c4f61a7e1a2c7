//! The results on a terminal.

use std::fmt::Write as _;

use super::{Report, words};
use crate::config::FIGURES;

/// Every figure with its meaning, what else happened, and the verdicts.
pub(in super::super) fn text(report: &Report<'_>) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = write(&mut text, report);
    text
}

fn write(text: &mut String, report: &Report<'_>) -> std::fmt::Result {
    let cut = if report.interrupted { ", interrupted" } else { "" };
    let scenario = report.options.scenario.as_str();
    writeln!(text, "\n{scenario}, {:.1} s measured{cut}", report.measured.as_secs_f64())?;
    for figure in FIGURES {
        if let Some(value) = report.figures.get(figure.name) {
            let value = words::figure(figure.unit, *value);
            writeln!(text, "  {:<24} {value:>12}  {}", figure.name, figure.meaning)?;
        }
    }
    let total = &report.results.total;
    for (name, counts) in [("refused", &total.refused), ("failed", &total.failed), ("errors told", &total.errors)] {
        for (what, count) in counts {
            writeln!(text, "  {name}: {what} x {count}")?;
        }
    }
    for (code, count) in &total.closes {
        writeln!(text, "  closed by the relay: {code} x {count}")?;
    }
    for hint in report.hints() {
        writeln!(text, "  note: {hint}")?;
    }
    for verdict in &report.verdicts {
        let word = if verdict.holds { "holds " } else { "BROKEN" };
        let unit = FIGURES.iter().find(|figure| verdict.demand.starts_with(figure.name));
        let value = match (verdict.value, unit) {
            (Some(value), Some(figure)) => words::figure(figure.unit, value),
            (Some(value), None) => value.to_string(),
            (None, _) => "not measured in this run".to_owned(),
        };
        writeln!(text, "  {word} {} ({value})", verdict.demand)?;
    }
    Ok(())
}
