//! The results on a terminal.

use std::fmt::Write as _;

use super::super::settings::FIGURES;
use super::{Report, words};

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
    for (what, count) in report.events() {
        writeln!(text, "  {what} x {count}")?;
    }
    for hint in report.hints() {
        writeln!(text, "  note: {hint}")?;
    }
    for verdict in &report.verdicts {
        let word = if verdict.holds { "holds " } else { "BROKEN" };
        writeln!(text, "  {word} {} ({})", verdict.demand, verdict.value_in_words())?;
    }
    Ok(())
}
