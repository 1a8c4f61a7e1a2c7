//! What `--assert` demands of a run: `p99<20ms,lost=0`.

use std::fmt;

/// How a figure is counted and written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Seconds; written with `ns`, `us`, `ms` or `s`.
    Time,
    /// Bytes; written plainly or with `KB`, `MB`, `KiB` or `MiB`.
    Bytes,
    /// A plain number, without a unit.
    Count,
}

/// One figure of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Figure {
    /// Its name in `--assert` and `--json`.
    pub name: &'static str,
    /// How it is counted.
    pub unit: Unit,
    /// The sentence of `--help`.
    pub meaning: &'static str,
}

const fn figure(name: &'static str, unit: Unit, meaning: &'static str) -> Figure {
    Figure { name, unit, meaning }
}

/// Every figure that a run may have.
pub const FIGURES: &[Figure] = &[
    figure("p50", Unit::Time, "latency, median"),
    figure("p90", Unit::Time, "latency, 90th percentile"),
    figure("p99", Unit::Time, "latency, 99th percentile"),
    figure("p999", Unit::Time, "latency, 99.9th percentile"),
    figure("max", Unit::Time, "latency, largest"),
    figure("mean", Unit::Time, "latency, mean"),
    figure("age_end_p99", Unit::Time, "age of frames on arrival, p99 of the last tenth"),
    figure("lag_p99", Unit::Time, "how late this generator sent, p99"),
    figure("sent", Unit::Count, "frames sent"),
    figure("delivered", Unit::Count, "frames that arrived"),
    figure("rate", Unit::Count, "frames that arrived, a second"),
    figure("superseded", Unit::Count, "volatile frames that a newer one replaced"),
    figure("lost", Unit::Count, "reliable frames that never arrived"),
    figure("vanished", Unit::Count, "last volatile frames that never arrived, nor a newer one"),
    figure("out_of_order", Unit::Count, "frames that arrived after a newer one"),
    figure("duplicates", Unit::Count, "frames that arrived twice"),
    figure("wrong_user", Unit::Count, "frames that reached someone else"),
    figure("unsent", Unit::Count, "frames due while their sender had no connection"),
    figure(
        "silence",
        Unit::Time,
        "longest time in which a receiver heard no frame (of the volatile ones, if any)",
    ),
    figure("connected", Unit::Count, "connections open at the same time, at most"),
    figure("welcomed", Unit::Count, "handshakes that were welcomed"),
    figure("refused", Unit::Count, "handshakes that were refused"),
    figure("failed", Unit::Count, "handshakes that failed otherwise"),
    figure("reconnects", Unit::Count, "connections that moved or came back"),
    figure("handshake_p50", Unit::Time, "from the due time of a handshake to its welcome, median"),
    figure("handshake_p99", Unit::Time, "the same, 99th percentile"),
    figure("told_p50", Unit::Time, "from a takeover's handshake until the old socket was notified, median"),
    figure("told_p99", Unit::Time, "the same, 99th percentile"),
    figure("none_left", Unit::Count, "simultaneous takeovers that left nobody"),
    figure("one_left", Unit::Count, "simultaneous takeovers that left exactly one"),
    figure("both_left", Unit::Count, "simultaneous takeovers that left both"),
    figure("cpu_per_frame", Unit::Time, "the instances' CPU for each delivered frame"),
    figure("cpu_per_handshake", Unit::Time, "the instances' CPU for each handshake (storm)"),
    figure("redis_cpu_per_frame", Unit::Time, "Redis's CPU for each delivered frame"),
    figure("redis_commands_per_frame", Unit::Count, "Redis commands for each delivered frame"),
    figure("rss_per_connection", Unit::Bytes, "what the instances' memory grew by for each connection"),
    figure("rss", Unit::Bytes, "the instances' largest memory, together"),
];

/// How a figure is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Comparison {
    Less,
    AtMost,
    More,
    AtLeast,
    /// Written `=` or `==`.
    Equal,
    Different,
}

impl Comparison {
    /// Longer ones first, so that `<=` is not read as `<`.
    const ALL: [(&'static str, Self); 7] = [
        ("<=", Self::AtMost),
        (">=", Self::AtLeast),
        ("!=", Self::Different),
        ("==", Self::Equal),
        ("<", Self::Less),
        (">", Self::More),
        ("=", Self::Equal),
    ];

    fn holds(self, value: f64, limit: f64) -> bool {
        let near = (value - limit).abs() <= f64::EPSILON * limit.abs().max(1.0);
        match self {
            Self::Less => value < limit && !near,
            Self::AtMost => value <= limit || near,
            Self::More => value > limit && !near,
            Self::AtLeast => value >= limit || near,
            Self::Equal => near,
            Self::Different => !near,
        }
    }
}

/// One demand: a figure, a comparison and a limit.
#[derive(Debug, Clone, PartialEq)]
pub struct Assertion {
    text: String,
    /// The figure that it judges.
    pub figure: Figure,
    comparison: Comparison,
    limit: f64,
}

impl fmt::Display for Assertion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Assertion {
    /// Whether `value` (seconds, bytes or a count) meets the demand.
    #[must_use]
    pub fn holds(&self, value: f64) -> bool {
        self.comparison.holds(value, self.limit)
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
        let (sign, comparison) = Comparison::ALL
            .into_iter()
            .find(|(sign, _)| rest.starts_with(sign))
            .ok_or_else(|| format!("{text:?} has no comparison (one of < <= > >= = !=)"))?;
        let name = name.trim();
        let figure = FIGURES.iter().find(|figure| figure.name == name).ok_or_else(|| unknown(name))?;
        let limit = quantity(rest.split_at(sign.len()).1.trim(), figure.unit)
            .map_err(|problem| format!("{text:?}: {problem}"))?;
        Ok(Self { text: text.to_owned(), figure: *figure, comparison, limit })
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
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let number: f64 = number.parse().map_err(|_| format!("{text:?} is not a number"))?;
    let factors: &[(&str, f64)] = match unit {
        Unit::Time => &[("ns", 1e-9), ("us", 1e-6), ("µs", 1e-6), ("ms", 1e-3), ("s", 1.0)],
        Unit::Bytes => &[
            ("", 1.0),
            ("B", 1.0),
            ("KB", 1e3),
            ("MB", 1e6),
            ("GB", 1e9),
            ("KiB", 1024.0),
            ("MiB", 1_048_576.0),
            ("GiB", 1_073_741_824.0),
        ],
        Unit::Count => &[("", 1.0)],
    };
    let suffix = suffix.trim();
    if let Some((_, factor)) = factors.iter().find(|(name, _)| *name == suffix) {
        return Ok(number * factor);
    }
    Err(match unit {
        Unit::Time => "a time needs its unit: ns, us, ms or s".to_owned(),
        Unit::Bytes => format!("{suffix:?} is no unit of memory (KB, MB, KiB, MiB)"),
        Unit::Count => format!("a count has no unit, but {suffix:?} follows"),
    })
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
            assert!(demand.holds(holds) && !demand.holds(breaks), "{text}");
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
