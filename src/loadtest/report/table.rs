//! The results on a terminal.

use super::Report;

/// Every figure with its meaning, what else happened, and the verdicts.
pub(in super::super) fn text(report: &Report<'_>) -> String {
    let cut = if report.interrupted { ", interrupted" } else { "" };
    let (scenario, measured) = (report.options.scenario, report.results.measured.as_secs_f64());
    let mut lines = vec![format!("\n{scenario}, {measured:.1} s measured{cut}")];
    let figures = report.figures_in_words();
    lines.extend(figures.map(|(name, value, meaning)| format!("  {name:<24} {value:>12}  {meaning}")));
    lines.extend(report.events().into_iter().map(|(what, count)| format!("  {what} x {count}")));
    lines.extend(report.hints().into_iter().map(|hint| format!("  note: {hint}")));
    lines.extend(report.verdicts().map(|(demand, value, holds)| {
        let word = if holds { "holds " } else { "BROKEN" };
        format!("  {word} {demand} ({value})")
    }));
    lines.join("\n") + "\n"
}
