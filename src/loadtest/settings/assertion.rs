//! What `--assert` demands of a run: `p99<20ms,lost=0`.

use std::cmp::Ordering;
use std::fmt;

use super::super::figure::{FIGURES, Figure, Unit};

type Comparison = fn(Ordering) -> bool;

/// Longer ones first, so that `<=` is not read as `<`.
const COMPARISONS: [(&str, Comparison); 7] = [
    ("<=", Ordering::is_le),
    (">=", Ordering::is_ge),
    ("!=", Ordering::is_ne),
    ("==", Ordering::is_eq),
    ("<", Ordering::is_lt),
    (">", Ordering::is_gt),
    ("=", Ordering::is_eq),
];

/// One demand: a figure, a comparison and a limit.
#[derive(Debug, Clone)]
pub struct Assertion {
    text: String,
    /// The figure that it judges.
    pub figure: &'static Figure,
    comparison: Comparison,
    limit: f64,
}

impl fmt::Display for Assertion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Assertion {
    /// Whether `value` (seconds, bytes or a count) meets the demand; one that was not measured does not.
    #[must_use]
    pub fn holds(&self, value: Option<f64>) -> bool {
        value.is_some_and(|value| {
            let near = (value - self.limit).abs() <= f64::EPSILON * self.limit.abs().max(1.0);
            (self.comparison)(if near { Ordering::Equal } else { value.total_cmp(&self.limit) })
        })
    }

    /// Reads one demand: a figure's name, a comparison, a number with its unit.
    ///
    /// # Errors
    /// The problem, in words.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let at = text
            .find(['<', '>', '=', '!'])
            .ok_or_else(|| format!("{text:?} compares nothing; wanted is one such as p99<20ms"))?;
        let (name, rest) = text.split_at(at);
        let (rest, comparison) = COMPARISONS
            .iter()
            .find_map(|(sign, comparison)| Some((rest.strip_prefix(sign)?, *comparison)))
            .ok_or_else(|| format!("{text:?} has no comparison (one of < <= > >= = !=)"))?;
        let name = name.trim();
        let figure = FIGURES.iter().find(|figure| figure.name == name).ok_or_else(|| unknown(name))?;
        let limit = quantity(rest.trim(), figure.unit).map_err(|problem| format!("{text:?}: {problem}"))?;
        Ok(Self { text: text.to_owned(), figure, comparison, limit })
    }
}

fn unknown(name: &str) -> String {
    let nearest = FIGURES
        .iter()
        .map(|figure| (strsim::damerau_levenshtein(figure.name, name), figure.name))
        .min()
        .filter(|&(distance, _)| distance <= 2);
    match nearest {
        Some((_, nearest)) => format!("{name:?} is no figure; did you mean {nearest}?"),
        None => {
            let names: Vec<_> = FIGURES.iter().map(|figure| figure.name).collect();
            format!("{name:?} is no figure; there are {}", names.join(", "))
        }
    }
}

/// A number with its unit, in seconds, bytes or as it stands.
fn quantity(text: &str, unit: Unit) -> Result<f64, String> {
    let (factors, wanted): (&[_], _) = match unit {
        Unit::Time => (TIMES, "a time needs its unit: ns, us, ms or s"),
        Unit::Bytes => (SIZES, "memory has no unit or one of KB, MB, KiB, MiB"),
        Unit::Count => (&[("", 1.0)], "a count has no unit"),
    };
    let (number, factor) = scaled(text, factors);
    number.ok_or_else(|| format!("{text:?} is not a number"))?;
    number.zip(factor).map(|(number, factor)| number * factor).ok_or_else(|| wanted.to_owned())
}

/// Units of time, in seconds.
pub(super) const TIMES: &[(&str, f64)] = &[
    ("ns", 1e-9),
    ("us", 1e-6),
    ("µs", 1e-6),
    ("ms", 1e-3),
    ("s", 1.0),
    ("m", 60.0),
    ("min", 60.0),
    ("h", 3600.0),
];
/// Units of memory, in bytes.
const SIZES: &[(&str, f64)] = &[
    ("", 1.0),
    ("B", 1.0),
    ("KB", 1e3),
    ("MB", 1e6),
    ("GB", 1e9),
    ("KiB", 1024.0),
    ("MiB", 1_048_576.0),
    ("GiB", 1_073_741_824.0),
];

/// A number without a sign, and the factor of the unit behind it.
pub(super) fn scaled(text: &str, units: &[(&str, f64)]) -> (Option<f64>, Option<f64>) {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let factor = units.iter().find(|(name, _)| *name == unit.trim()).map(|(_, factor)| *factor);
    (number.parse().ok(), factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn demands_are_compared_in_base_units() {
        for (text, holds, breaks) in [
            ("p99<20ms", 0.019, 0.02),
            ("p99 <= 20 ms", 0.02, 0.0201),
            ("lost=0", 0.0, 1.0),
            ("lost == 0", 0.0, 1.0),
            ("delivered>=100", 100.0, 99.0),
            ("both_left!=1", 0.0, 1.0),
            ("cpu_per_frame<50us", 0.000_049, 0.000_051),
            ("rss_per_connection<=5KB", 5000.0, 5001.0),
            ("rss>1MiB", 1_048_577.0, 1_048_576.0),
            ("silence<1.5s", 1.4, 1.5),
        ] {
            let demand = Assertion::parse(text).unwrap();
            assert!(demand.holds(Some(holds)) && !demand.holds(Some(breaks)), "{text}");
            assert!(!demand.holds(None), "{text}");
            assert_eq!(demand.to_string(), text);
        }
    }

    #[test]
    fn what_cannot_be_read_is_explained() {
        for (text, part) in [
            ("p99", "compares nothing"),
            ("", "compares nothing"),
            ("p98<1ms", "did you mean p9"),
            ("latency<1ms", "there are p50"),
            ("p99<20", "needs its unit"),
            ("p99<ms", "is not a number"),
            ("p99<1.2.3ms", "is not a number"),
            ("lost=0ms", "has no unit"),
            ("lost!0", "has no comparison"),
            ("p99<-1ms", "is not a number"),
        ] {
            let problem = Assertion::parse(text).unwrap_err();
            assert!(problem.contains(part), "{text}: {problem}");
        }
    }

    #[test]
    fn names_of_figures_are_unique() {
        let mut names: Vec<_> = FIGURES.iter().map(|figure| figure.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), FIGURES.len());
    }
}
