//! Figures as people read them.

use super::super::figure::Unit;

/// Three digits and a unit: `412 us`, `1.27 ms`, `12.0 s`.
pub(in super::super) fn time(seconds: f64) -> String {
    if seconds == 0.0 {
        return "0".to_owned();
    }
    let (value, unit) = match seconds.abs() {
        s if s < 999.5e-9 => (seconds * 1e9, "ns"),
        s if s < 999.5e-6 => (seconds * 1e6, "us"),
        s if s < 0.9995 => (seconds * 1e3, "ms"),
        _ => (seconds, "s"),
    };
    format!("{} {unit}", digits(value))
}

/// Three digits: `7`, `7.25`, `42.1`, `412`.
fn digits(value: f64) -> String {
    match value.abs() {
        v if v >= 99.95 => format!("{value:.0}"),
        v if v >= 9.995 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// Decimal units, as `--assert`'s KB and MB.
pub(super) fn bytes(bytes: f64) -> String {
    let (value, unit) = match bytes.abs() {
        b if b < 1e3 => return format!("{bytes:.0} B"),
        b if b < 999.5e3 => (bytes / 1e3, "KB"),
        b if b < 999.5e6 => (bytes / 1e6, "MB"),
        _ => (bytes / 1e9, "GB"),
    };
    format!("{} {unit}", digits(value))
}

/// Whole numbers with commas; others with two decimals.
pub(super) fn count(count: f64) -> String {
    if count.fract() != 0.0 && count.abs() < 1000.0 {
        return format!("{count:.2}");
    }
    let digits = format!("{:.0}", count.abs());
    let groups: Vec<_> = digits.as_bytes().rchunks(3).rev().map(String::from_utf8_lossy).collect();
    format!("{}{}", if count < 0.0 { "-" } else { "" }, groups.join(","))
}

/// Writes a value by its unit.
pub(super) fn figure(unit: Unit, value: f64) -> String {
    match unit {
        Unit::Time => time(value),
        Unit::Bytes => bytes(value),
        Unit::Count => count(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_three_digits_and_the_unit_that_fits() {
        for (value, text) in [
            (0.0, "0"),
            (0.000_000_5, "500 ns"),
            (0.000_041_26, "41.3 us"),
            (0.000_999_7, "1.00 ms"),
            (0.001_274, "1.27 ms"),
            (12.0, "12.0 s"),
            (0.4123, "412 ms"),
        ] {
            assert_eq!(time(value), text);
        }
        for (value, text) in
            [(999.0, "999 B"), (3500.0, "3.50 KB"), (14_200_000.0, "14.2 MB"), (2e9, "2.00 GB")]
        {
            assert_eq!(bytes(value), text);
        }
        for (value, text) in [
            (0.0, "0"),
            (1234.0, "1,234"),
            (-1_234_567.0, "-1,234,567"),
            (0.25, "0.25"),
            (24_000.4, "24,000"),
        ] {
            assert_eq!(count(value), text);
        }
    }
}
