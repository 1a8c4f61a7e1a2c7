//! Line charts as inline SVG.

use std::fmt::Write as _;

/// Values over x; a gap where there is none.
#[derive(Debug)]
pub(super) struct Series {
    pub(super) name: String,
    /// `(x, y)`, in order.
    pub(super) points: Vec<(f64, Option<f64>)>,
}

/// How a value is placed on its axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scale {
    /// A linear axis from 0.
    Linear,
    /// By powers of ten.
    Log,
}

/// A line chart as SVG, with a legend.
pub(super) struct Chart<'a> {
    pub(super) title: &'a str,
    /// A sentence below the title.
    pub(super) note: &'a str,
    /// At most six, because there are six colours.
    pub(super) series: Vec<Series>,
    pub(super) scale: Scale,
    /// Of x: where, and what is written there.
    pub(super) ticks: Vec<(f64, String)>,
    /// How x is written in a tooltip.
    pub(super) at: &'a dyn Fn(f64) -> String,
    /// How y is written.
    pub(super) value: &'a dyn Fn(f64) -> String,
}

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 240.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 28.0;

impl Chart<'_> {
    /// The chart with its legend; nothing when there are no values.
    pub(super) fn svg(&self) -> String {
        let values = || self.series.iter().flat_map(|series| &series.points).filter_map(|(_, y)| *y);
        let (Some(most), Some(least)) = (values().reduce(f64::max), values().reduce(f64::min)) else {
            return String::new();
        };
        let mut html = String::new();
        // Writing to a string cannot fail.
        let _ = self.write(&mut html, &Axis::over(self.scale, least, most));
        html
    }

    fn write(&self, html: &mut String, axis: &Axis) -> std::fmt::Result {
        let xs = || self.series.iter().flat_map(|series| &series.points).map(|(x, _)| *x);
        let first = xs().reduce(f64::min).unwrap_or(0.0);
        let last = xs().reduce(f64::max).unwrap_or(1.0);
        let x = |at: f64| LEFT + (at - first) / (last - first).max(1e-9) * (WIDTH - LEFT - RIGHT);
        let y = |value: f64| HEIGHT - BOTTOM - axis.share(value) * (HEIGHT - TOP - BOTTOM);
        write!(
            html,
            "<figure><figcaption><b>{}</b> <span>{}</span><ul>",
            escape(self.title),
            escape(self.note)
        )?;
        for (index, series) in self.series.iter().enumerate() {
            write!(html, "<li class=s{index}>{}</li>", escape(&series.name))?;
        }
        write!(
            html,
            "</ul></figcaption><svg viewBox='0 0 {WIDTH} {HEIGHT}' role=img aria-label='{}'>",
            escape(self.title)
        )?;
        for value in &axis.ticks {
            let y = y(*value);
            write!(html, "<path class=grid d='M{LEFT} {y:.1}H{}'/>", WIDTH - RIGHT)?;
            write!(
                html,
                "<text x={} y={:.1} text-anchor=end>{}</text>",
                LEFT - 8.0,
                y + 4.0,
                escape(&(self.value)(*value))
            )?;
        }
        for (at, text) in self.ticks.iter().filter(|(at, _)| (first..=last).contains(at)) {
            write!(
                html,
                "<text x={:.1} y={} text-anchor=middle>{}</text>",
                x(*at),
                HEIGHT - 8.0,
                escape(text)
            )?;
        }
        for (index, series) in self.series.iter().enumerate() {
            let mut path = String::new();
            let mut pen_down = false;
            for (at, value) in &series.points {
                if let Some(value) = value {
                    write!(path, "{}{:.1} {:.1}", if pen_down { 'L' } else { 'M' }, x(*at), y(*value))?;
                }
                pen_down = value.is_some();
            }
            // A single point has no line: its round cap shows it.
            if series.points.len() == 1 {
                path.push_str("h0");
            }
            write!(html, "<path class='line s{index}' d='{path}'/>")?;
        }
        self.write_tooltips(html, x)?;
        html.push_str("</svg></figure>");
        Ok(())
    }

    /// A column for each x of the first series, which shows all values there.
    fn write_tooltips(&self, html: &mut String, x: impl Fn(f64) -> f64) -> std::fmt::Result {
        let Some(series) = self.series.first() else {
            return Ok(());
        };
        let xs: Vec<f64> = series.points.iter().map(|(at, _)| *at).collect();
        for (index, at) in xs.iter().enumerate() {
            let middle =
                |other: Option<&f64>, edge: f64| other.map_or(edge, |other| f64::midpoint(x(*at), x(*other)));
            let left = middle(index.checked_sub(1).and_then(|before| xs.get(before)), LEFT);
            let right = middle(xs.get(index + 1), WIDTH - RIGHT);
            write!(
                html,
                "<rect class=hit x={left:.1} y={TOP} width={:.1} height={}><title>{}",
                (right - left).max(0.5),
                HEIGHT - TOP - BOTTOM,
                escape(&(self.at)(*at))
            )?;
            for series in &self.series {
                if let Some((_, Some(value))) = series.points.get(index) {
                    write!(html, "\n{} {}", escape(&series.name), escape(&(self.value)(*value)))?;
                }
            }
            html.push_str("</title></rect>");
        }
        Ok(())
    }
}

/// The y axis: its scale and its end.
struct Axis {
    scale: Scale,
    from: f64,
    to: f64,
    ticks: Vec<f64>,
}

impl Axis {
    fn over(scale: Scale, least: f64, most: f64) -> Self {
        match scale {
            Scale::Linear => {
                let step = round_step(most.max(1e-12) / 4.0);
                let steps = (most / step).ceil().max(1.0);
                let ticks = (0..=8)
                    .map(|index| f64::from(index) * step)
                    .take_while(|tick| *tick <= steps * step * 1.001)
                    .collect();
                Self { scale, from: 0.0, to: steps * step, ticks }
            }
            Scale::Log => {
                let from = least.max(1e-9).log10().floor();
                let to = most.max(1e-9).log10().ceil().max(from + 1.0);
                let mut ticks = Vec::new();
                let mut at = from;
                while at <= to {
                    ticks.push(10_f64.powf(at));
                    at += 1.0;
                }
                Self { scale, from, to, ticks }
            }
        }
    }

    /// 0 at the bottom, 1 at the top.
    fn share(&self, value: f64) -> f64 {
        let at = match self.scale {
            Scale::Linear => value,
            Scale::Log => value.max(1e-9).log10(),
        };
        ((at - self.from) / (self.to - self.from)).clamp(0.0, 1.0)
    }
}

/// The next of 1, 2, 5 times a power of ten.
fn round_step(step: f64) -> f64 {
    let power = 10_f64.powf(step.log10().floor());
    let factor = [1.0, 2.0, 5.0].into_iter().find(|factor| step <= factor * power * 1.0001);
    factor.unwrap_or(10.0) * power
}

/// Text for HTML, attributes in single quotes included.
pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('\'', "&#39;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_end_at_round_numbers_above_the_largest_value() {
        for (most, to, ticks) in
            [(10.0, 10.0, 3), (100.0, 100.0, 3), (7.0, 8.0, 5), (0.0, 5e-13, 2), (1234.0, 1500.0, 4)]
        {
            let axis = Axis::over(Scale::Linear, 0.0, most);
            assert!(
                (axis.to - to).abs() < to * 1e-6 && axis.ticks.len() == ticks,
                "{most}: {} {:?}",
                axis.to,
                axis.ticks
            );
            assert!(axis.share(most) <= 1.0);
        }
        let axis = Axis::over(Scale::Log, 0.000_3, 0.02);
        assert_eq!((axis.from, axis.to, axis.ticks.len()), (-4.0, -1.0, 4));
        assert!((axis.share(0.01) - 2.0 / 3.0).abs() < 1e-9);
    }

    #[test]
    fn a_gap_lifts_the_pen_and_text_is_escaped() {
        let chart = Chart {
            title: "<b>",
            note: "",
            series: vec![Series {
                name: "a&b".to_owned(),
                points: vec![(0.0, Some(1.0)), (1.0, None), (2.0, Some(2.0)), (3.0, Some(1.0))],
            }],
            scale: Scale::Linear,
            ticks: vec![],
            at: &|at| at.to_string(),
            value: &|value| value.to_string(),
        };
        let svg = chart.svg();
        let line = svg.split("class='line s0' d='").nth(1).unwrap().split('\'').next().unwrap();
        assert_eq!((line.matches('M').count(), line.matches('L').count()), (2, 1), "{line}");
        assert!(svg.contains("&lt;b&gt;") && svg.contains("a&amp;b") && !svg.contains("<b><b>"));
        assert_eq!(Chart { series: vec![], ..chart }.svg(), "");
    }
}
