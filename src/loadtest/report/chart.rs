//! Line charts, in the coordinates in which the page draws them.

use serde::Serialize;

/// The width and the height of what the axes enclose.
const SIZE: (f64, f64) = (636.0, 200.0);

/// One line: its name, and its values over x in order, with gaps.
pub(super) type Line = (String, Vec<(f64, Option<f64>)>);

/// What a chart shows, and how.
pub(super) struct Plot<'a> {
    pub(super) title: &'a str,
    /// A sentence below the title.
    pub(super) note: &'a str,
    /// At most six, because there are six colours.
    pub(super) lines: Vec<Line>,
    /// The y axis goes by powers of ten; else it starts at 0.
    pub(super) log: bool,
    /// Of x: where, and what is written there.
    pub(super) ticks: Vec<(f64, String)>,
    /// How x is written in a tooltip.
    pub(super) at: &'a dyn Fn(f64) -> String,
    /// How y is written.
    pub(super) value: fn(f64) -> String,
}

/// A chart for the page's template.
#[derive(Debug, Serialize)]
pub(super) struct Chart {
    title: String,
    note: String,
    /// Names, and what SVG's `d` draws.
    lines: Vec<(String, String)>,
    /// Of the y axis: where, and what is written there.
    grid: Vec<(f64, String)>,
    ticks: Vec<(f64, String)>,
    /// For each x of the first line: from where, how wide, and all values there.
    columns: Vec<(f64, f64, String)>,
}

impl Plot<'_> {
    /// The chart; nothing when there are no values.
    pub(super) fn draw(self) -> Option<Chart> {
        let points = || self.lines.iter().flat_map(|(_, points)| points);
        let values = || points().filter_map(|(_, y)| *y);
        let axis = Axis::over(self.log, values().reduce(f64::min)?, values().reduce(f64::max)?);
        let xs = || points().map(|(x, _)| *x);
        let (first, last) = (xs().reduce(f64::min)?, xs().reduce(f64::max)?);
        let x = |at: f64| tenth((at - first) / (last - first).max(1e-9) * SIZE.0);
        let y = |value: f64| tenth(SIZE.1 - axis.share(value) * SIZE.1);
        let path = |points: &[(f64, Option<f64>)]| {
            let mut path = String::new();
            let mut pen = 'M';
            for (at, value) in points {
                if let Some(value) = value {
                    path += &format!("{pen}{} {}", x(*at), y(*value));
                }
                pen = if value.is_some() { 'L' } else { 'M' };
            }
            // A single point has no line: its round cap shows it.
            if points.len() == 1 { path + "h0" } else { path }
        };
        let column = |(index, (at, _)): (usize, &(f64, _))| {
            let points = &self.lines[0].1;
            let middle = |other: usize, edge: f64| {
                points.get(other).map_or(edge, |(other, _)| tenth(f64::midpoint(x(*at), x(*other))))
            };
            let (left, right) = (middle(index.wrapping_sub(1), 0.0), middle(index + 1, SIZE.0));
            let mut text = (self.at)(*at);
            for (name, points) in &self.lines {
                if let Some((_, Some(value))) = points.get(index) {
                    text += &format!("\n{name} {}", (self.value)(*value));
                }
            }
            (left, tenth((right - left).max(0.5)), text)
        };
        let seen = |(at, _): &&(f64, String)| (first..=last).contains(at);
        Some(Chart {
            title: self.title.to_owned(),
            note: self.note.to_owned(),
            lines: self.lines.iter().map(|(name, points)| (name.clone(), path(points))).collect(),
            grid: axis.ticks().map(|value| (y(value), (self.value)(value))).collect(),
            ticks: self.ticks.iter().filter(seen).map(|(at, text)| (x(*at), text.clone())).collect(),
            columns: self.lines[0].1.iter().enumerate().map(column).collect(),
        })
    }
}

fn tenth(number: f64) -> f64 {
    (number * 10.0).round() / 10.0
}

/// The y axis, which starts at `from` and has a line at each of its `steps`.
#[derive(Debug)]
struct Axis {
    log: bool,
    from: f64,
    step: f64,
    steps: u32,
}

impl Axis {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a few lines")]
    fn over(log: bool, least: f64, most: f64) -> Self {
        let scale = |value: f64| value.max(1e-9).log10();
        let (from, step, steps) = if log {
            let from = scale(least).floor();
            (from, 1.0, scale(most).ceil() - from)
        } else {
            let step = round_step(most.max(1e-12) / 4.0);
            (0.0, step, (most / step).ceil())
        };
        Self { log, from, step, steps: steps.max(1.0) as u32 }
    }

    /// 0 at the bottom, 1 at the top.
    fn share(&self, value: f64) -> f64 {
        let value = if self.log { value.max(1e-9).log10() } else { value };
        ((value - self.from) / (self.step * f64::from(self.steps))).clamp(0.0, 1.0)
    }

    fn ticks(&self) -> impl Iterator<Item = f64> {
        let at = |index| self.from + f64::from(index) * self.step;
        (0..=self.steps).map(move |index| if self.log { 10_f64.powf(at(index)) } else { at(index) })
    }
}

/// The next of 1, 2, 5 times a power of ten.
fn round_step(step: f64) -> f64 {
    let power = 10_f64.powf(step.log10().floor());
    let factor = [1.0, 2.0, 5.0].into_iter().find(|factor| step <= factor * power * 1.0001);
    factor.unwrap_or(10.0) * power
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_end_at_round_numbers_above_the_largest_value() {
        for (most, to, ticks) in
            [(10.0, 10.0, 3), (100.0, 100.0, 3), (7.0, 8.0, 5), (0.0, 5e-13, 2), (1234.0, 1500.0, 4)]
        {
            let axis = Axis::over(false, 0.0, most);
            let last = axis.ticks().last().unwrap();
            assert!((last - to).abs() < to * 1e-6 && axis.ticks().count() == ticks, "{most}: {axis:?}");
            assert!(axis.share(most) <= 1.0);
        }
        let axis = Axis::over(true, 0.000_3, 0.02);
        assert_eq!((axis.from, axis.steps, axis.ticks().count()), (-4.0, 3, 4));
        assert!((axis.share(0.01) - 2.0 / 3.0).abs() < 1e-9);
    }

    #[test]
    fn a_gap_lifts_the_pen() {
        let points = vec![(0.0, Some(1.0)), (1.0, None), (2.0, Some(2.0)), (3.0, Some(1.0))];
        let plot = |lines| Plot {
            title: "t",
            note: "",
            lines,
            log: false,
            ticks: vec![(0.0, "0 s".to_owned()), (4.0, "4 s".to_owned())],
            at: &|at| at.to_string(),
            value: |value| value.to_string(),
        };
        let chart = plot(vec![("a".to_owned(), points)]).draw().unwrap();
        assert_eq!(chart.lines[0].1, "M0 100M424 0L636 100");
        assert_eq!(chart.ticks, [(0.0, "0 s".to_owned())]);
        assert_eq!(chart.columns[3], (530.0, 106.0, "3\na 1".to_owned()));
        assert!(plot(vec![]).draw().is_none());
    }
}
