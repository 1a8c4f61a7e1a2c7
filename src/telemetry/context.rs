//! Reads from a request's headers to which trace it belongs. They come from anybody: what is not exactly of the form is
//! passed over, and nothing but numbers leaves here.

use std::num::{NonZeroU64, NonZeroU128};

use http::HeaderMap;

/// A request's place in a trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TraceContext {
    pub(super) trace: NonZeroU128,
    /// The caller's span: the new span's parent.
    pub(super) span: Option<NonZeroU64>,
    /// The caller keeps this trace.
    pub(super) sampled: bool,
}

impl TraceContext {
    /// `traceparent`, else `X-Cloud-Trace-Context`; each counts only when it is there once and well-formed.
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        let only = |name| {
            let mut values = headers.get_all(name).iter();
            values.next().filter(|_| values.next().is_none()).and_then(|value| value.to_str().ok())
        };
        only("traceparent")
            .and_then(Self::from_traceparent)
            .or_else(|| only("x-cloud-trace-context").and_then(Self::from_cloud))
    }

    /// `VERSION-TRACE-SPAN-FLAGS` (<https://www.w3.org/TR/trace-context/#traceparent-header>). Later versions may have
    /// more behind it.
    fn from_traceparent(text: &str) -> Option<Self> {
        let mut parts = text.split('-');
        let mut part = |digits| parts.next().filter(|part| part.len() == digits).and_then(lower_hex);
        let (version, trace, span, flags) = (part(2)?, part(32)?, part(16)?, part(2)?);
        if version == 0xff || (version == 0 && parts.next().is_some()) {
            return None;
        }
        let span = NonZeroU64::new(u64::try_from(span).ok()?)?;
        Some(Self { trace: NonZeroU128::new(trace)?, span: Some(span), sampled: flags & 1 == 1 })
    }

    /// `TRACE[/SPAN][;o=0|1]`, the span in decimal
    /// (<https://cloud.google.com/trace/docs/trace-context#legacy-http-header>).
    fn from_cloud(text: &str) -> Option<Self> {
        let (ids, sampled) = match text.split_once(";o=") {
            None => (text, false),
            Some((ids, "0")) => (ids, false),
            Some((ids, "1")) => (ids, true),
            Some(_) => return None,
        };
        let (trace, span) = ids.split_once('/').map_or((ids, None), |(trace, span)| (trace, Some(span)));
        if trace.len() != 32 {
            return None;
        }
        let trace = NonZeroU128::new(lower_hex(&trace.to_ascii_lowercase())?)?;
        let span = match span {
            None => None,
            Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
                NonZeroU64::new(digits.parse().ok()?)
            }
            Some(_) => return None,
        };
        Some(Self { trace, span, sampled })
    }
}

/// The standard library would take a sign and upper case as well.
fn lower_hex(digits: &str) -> Option<u128> {
    let is_digit = |byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    digits.bytes().all(is_digit).then(|| u128::from_str_radix(digits, 16).ok())?
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

    fn read(name: &'static str, value: &str) -> Option<(String, Option<u64>, bool)> {
        let mut headers = HeaderMap::new();
        headers.insert(name, value.parse().unwrap());
        let context = TraceContext::of(&headers)?;
        Some((format!("{:032x}", context.trace), context.span.map(NonZeroU64::get), context.sampled))
    }

    #[test]
    fn traceparent_is_read_as_the_standard_says() {
        let good = |span, sampled| Some((TRACE.to_owned(), Some(span), sampled));
        for (value, expected) in [
            (format!("00-{TRACE}-00f067aa0ba902b7-01"), good(0x00f0_67aa_0ba9_02b7, true)),
            (format!("00-{TRACE}-00f067aa0ba902b7-00"), good(0x00f0_67aa_0ba9_02b7, false)),
            (format!("00-{TRACE}-0000000000000001-fe"), good(1, false)),
            (format!("cc-{TRACE}-0000000000000001-03-what-comes"), good(1, true)),
            (format!("00-{TRACE}-0000000000000001-01-more"), None),
            (format!("ff-{TRACE}-0000000000000001-01"), None),
            (format!("00-{TRACE}-0000000000000000-01"), None),
            (format!("00-{}-0000000000000001-01", "0".repeat(32)), None),
            (format!("00-{}-0000000000000001-01", TRACE.to_uppercase()), None),
            (format!("00-+{}-0000000000000001-01", &TRACE[1..]), None),
            (format!("00-{TRACE}-000000000000001-01"), None),
            (format!("00-{TRACE}-0000000000000001"), None),
            (format!(" 00-{TRACE}-0000000000000001-1"), None),
            ("\"}{".to_owned(), None),
            (String::new(), None),
        ] {
            assert_eq!(read("traceparent", &value), expected, "{value}");
        }
    }

    #[test]
    fn googles_older_header_is_read_too() {
        for (value, expected) in [
            (format!("{TRACE}/74;o=1"), Some((Some(74), true))),
            (format!("{}/74;o=0", TRACE.to_uppercase()), Some((Some(74), false))),
            (format!("{TRACE}/18446744073709551615"), Some((Some(u64::MAX), false))),
            (format!("{TRACE}/0;o=1"), Some((None, true))),
            (format!("{TRACE};o=1"), Some((None, true))),
            (TRACE.to_owned(), Some((None, false))),
            (format!("{TRACE}/18446744073709551616"), None),
            (format!("{TRACE}/+1"), None),
            (format!("{TRACE}/"), None),
            (format!("{TRACE}/74;o=2"), None),
            (format!("{TRACE}0/74"), None),
            ("x".repeat(32), None),
            ("0".repeat(32), None),
        ] {
            let read = read("x-cloud-trace-context", &value).map(|(_, span, sampled)| (span, sampled));
            assert_eq!(read, expected, "{value}");
        }
    }

    #[test]
    fn the_standards_header_goes_first_if_it_is_usable() {
        let (parent, cloud) = (format!("00-{TRACE}-0000000000000001-01"), format!("{TRACE}/74"));
        let span = |parents: &[&str]| {
            let mut headers = HeaderMap::new();
            headers.insert("x-cloud-trace-context", cloud.parse().unwrap());
            for parent in parents {
                headers.append("traceparent", parent.parse().unwrap());
            }
            TraceContext::of(&headers).unwrap().span.unwrap().get()
        };
        assert_eq!(span(&[&parent]), 1);
        assert_eq!(span(&[&parent, &parent]), 74);
        assert_eq!(span(&["00-broken"]), 74);
    }

    proptest! {
        #[test]
        fn nothing_that_a_client_sends_can_panic(value in prop::collection::vec(any::<u8>(), 0..80), near in "[0-9a-f]{2}-[0-9a-f]{30,33}-[0-9a-f]{16}-[0-9a-f+]{2}") {
            for bytes in [&value[..], near.as_bytes()] {
                let Ok(value) = HeaderValue::from_bytes(bytes) else { continue };
                for name in ["traceparent", "x-cloud-trace-context"] {
                    let mut headers = HeaderMap::new();
                    headers.insert(name, value.clone());
                    let _ = TraceContext::of(&headers);
                }
            }
        }
    }
}
