//! What the log says about a failure: Redis's own words, or the system's, as one sentence without secrets.
//!
//! fred keeps an `io::Error` and rustls's errors as what `{:?}` makes of them, and nothing else.

use fred::error::{Error, ErrorKind};

use crate::backplane::connectivity::Cause;

/// Why something failed, and the words for it.
pub(super) fn cause_of(error: &Error) -> (Cause, String) {
    let details = error.details();
    // Redis's words begin with a code in capitals; everything else is what fred or the system says.
    let is_redis = details.trim_start_matches('-').split(' ').next().is_some_and(|code| {
        !code.is_empty() && code.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit())
    });
    let cause = match error.kind() {
        ErrorKind::Timeout => Cause::Silent,
        ErrorKind::IO if details.starts_with("Unresponsive") => Cause::Silent,
        ErrorKind::Parse | ErrorKind::Config => Cause::Other,
        _ if is_redis => Cause::of(details),
        _ => Cause::Unreachable,
    };
    (cause, words(error))
}

/// True when a handshake of TLS fails because of a certificate or a root, which no waiting mends. A
/// certificate that is too old or too new is a state: the clock may be wrong, or its server may renew it. A
/// handshake that was cut is a state as well.
pub(super) fn is_mistake_of_certificates(error: &Error) -> bool {
    const STATES: [&str; 2] = ["Expired", "NotValidYet"];
    // What a server says of the certificate that it was shown, or was not.
    const REFUSALS: [&str; 6] = [
        "CertificateRequired",
        "UnknownCA",
        "BadCertificate",
        "UnsupportedCertificate",
        "CertificateUnknown",
        "CertificateRevoked",
    ];
    if !matches!(error.kind(), ErrorKind::IO | ErrorKind::Tls) {
        return false;
    }
    let reason = |of: &str| error.details().split_once(of).map(|(_, reason)| reason);
    let begins = |reason: &str, with: &[&str]| with.iter().any(|name| reason.starts_with(name));
    reason("InvalidCertificate(").is_some_and(|reason| !begins(reason, &STATES))
        || reason("AlertReceived(").is_some_and(|reason| begins(reason, &REFUSALS))
}

/// An error as a sentence that the log may hold.
pub(super) fn words(error: &Error) -> String {
    let details = error.details();
    let sentence = match error.kind() {
        ErrorKind::Timeout => Some("no answer in time".to_owned()),
        ErrorKind::Tls => Some(of_tls(details)),
        _ => of_io(details),
    };
    printable(sentence.as_deref().unwrap_or(details))
}

/// The sentence in what `{:?}` makes of an `io::Error`.
fn of_io(debug: &str) -> Option<String> {
    if let Some(rest) = debug.strip_prefix("Os { code: ") {
        let (code, rest) = rest.split_once(", kind: ")?;
        let (_, message) = rest.split_once(", message: \"")?;
        return Some(format!("{} (os error {code})", message.strip_suffix("\" }")?));
    }
    if let Some(kind) = debug.strip_prefix("Kind(") {
        return Some(plain(kind));
    }
    let rest = debug.strip_prefix("Custom { kind: ").or_else(|| debug.strip_prefix("Error { kind: "))?;
    let (_, inner) = rest.split_once(", error: ").or_else(|| rest.split_once(", message: "))?;
    let inner = inner.strip_suffix(" }")?;
    Some(match inner.strip_prefix('"').and_then(|text| text.strip_suffix('"')) {
        Some(text) => text.replace("\\\"", "\""),
        None => of_tls(inner),
    })
}

/// The sentence in what `{:?}` makes of an error of rustls.
fn of_tls(debug: &str) -> String {
    const KNOWN: [(&str, &str); 7] = [
        ("UnknownIssuer", "no root of the system or of DUORELAY_REDIS_CA has signed Redis's certificate"),
        ("NotValidForName", "Redis's certificate names another host"),
        ("Expired", "Redis's certificate has expired"),
        ("NotValidYet", "Redis's certificate is not valid yet"),
        (
            "CertificateRequired",
            "Redis demands a client certificate (DUORELAY_REDIS_CERT, DUORELAY_REDIS_KEY)",
        ),
        ("UnknownCA", "Redis does not trust the client certificate (DUORELAY_REDIS_CERT)"),
        ("InvalidContentType", "the server does not speak TLS"),
    ];
    let known = KNOWN.iter().find(|(name, _)| debug.contains(name));
    known.map_or_else(|| format!("TLS failed: {}", plain(debug)), |(_, sentence)| (*sentence).to_owned())
}

/// `AlertReceived(UnknownCA)` as "alert received: unknown ca".
fn plain(debug: &str) -> String {
    let names = debug.split(['(', ')', '{', '}', ' ']).filter(|name| !name.is_empty());
    let spaced = names.map(|name| {
        let mut text = String::new();
        let mut before = ' ';
        for c in name.chars() {
            if c.is_ascii_uppercase() && before.is_ascii_lowercase() {
                text.push(' ');
            }
            text.push(c.to_ascii_lowercase());
            before = c;
        }
        text
    });
    spaced.collect::<Vec<_>>().join(": ")
}

/// Words that the log may hold: no names of keys, which hold users, no arguments, which hold passwords, and no more
/// than a line.
pub(super) fn printable(words: &str) -> String {
    const LENGTH: usize = 200;
    // A server without HELLO repeats its arguments, the password among them.
    let words = words.split(", with args beginning with").next().unwrap_or_default();
    let mut text = String::new();
    let mut is_hidden = false;
    for c in words.chars().take(LENGTH) {
        match c {
            '{' => {
                is_hidden = true;
                text.push('{');
            }
            '}' => {
                is_hidden = false;
                text.push('}');
            }
            _ if is_hidden => {}
            c if c.is_control() => text.push(' '),
            c => text.push(c),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn the_log_holds_no_names_of_keys_and_no_arguments() {
        let words = "NOPERM No permissions to access the 'duo:{ann@example.com}:desktop' key\r\n";
        assert_eq!(printable(words), "NOPERM No permissions to access the 'duo:{}:desktop' key  ");
        assert!(printable(&"x".repeat(1000)).len() <= 200);
        let words = "ERR unknown command 'HELLO', with args beginning with: '3' 'AUTH' 'default' 'secret' ";
        assert_eq!(printable(words), "ERR unknown command 'HELLO'");
    }

    #[test]
    fn errors_of_the_system_and_of_tls_are_sentences() {
        use fred::rustls::{AlertDescription, CertificateError, Error as Tls};
        let tls = |error: Tls| io::Error::new(io::ErrorKind::InvalidData, error);
        for (error, sentence) in [
            (io::Error::from_raw_os_error(111), "Connection refused (os error 111)"),
            (io::ErrorKind::UnexpectedEof.into(), "unexpected eof"),
            (
                io::Error::other("failed to lookup address information: Name or service not known"),
                "failed to lookup address information: Name or service not known",
            ),
            (
                tls(Tls::InvalidCertificate(CertificateError::UnknownIssuer)),
                "no root of the system or of DUORELAY_REDIS_CA has signed Redis's certificate",
            ),
            (
                tls(Tls::AlertReceived(AlertDescription::CertificateRequired)),
                "Redis demands a client certificate (DUORELAY_REDIS_CERT, DUORELAY_REDIS_KEY)",
            ),
            (
                tls(Tls::AlertReceived(AlertDescription::UnknownCA)),
                "Redis does not trust the client certificate (DUORELAY_REDIS_CERT)",
            ),
            (
                tls(Tls::AlertReceived(AlertDescription::HandshakeFailure)),
                "TLS failed: alert received: handshake failure",
            ),
        ] {
            assert_eq!(words(&Error::from(error)), sentence);
        }
        assert_eq!(words(&Tls::DecryptError.into()), "TLS failed: decrypt error");
        assert_eq!(words(&Error::new(ErrorKind::Timeout, "Request timed out.")), "no answer in time");
        assert_eq!(words(&Error::new(ErrorKind::Unknown, "OOM no")), "OOM no");
    }

    #[test]
    fn a_wrong_certificate_is_a_mistake_and_a_cut_handshake_is_none() {
        use fred::rustls::pki_types::{ServerName, UnixTime};
        use fred::rustls::{AlertDescription, CertificateError, Error as Tls, InvalidMessage};
        let refused = Tls::InvalidCertificate;
        let expected = ServerName::try_from("Expired.example").unwrap();
        let time = UnixTime::since_unix_epoch(std::time::Duration::ZERO);
        for (error, is_mistake) in [
            (refused(CertificateError::UnknownIssuer), true),
            (refused(CertificateError::NotValidForName), true),
            (refused(CertificateError::NotValidForNameContext { expected, presented: Vec::new() }), true),
            (refused(CertificateError::BadSignature), true),
            (refused(CertificateError::Expired), false),
            (refused(CertificateError::ExpiredContext { time, not_after: time }), false),
            (refused(CertificateError::NotValidYetContext { time, not_before: time }), false),
            (Tls::AlertReceived(AlertDescription::CertificateRequired), true),
            (Tls::AlertReceived(AlertDescription::UnknownCA), true),
            (Tls::AlertReceived(AlertDescription::CertificateExpired), false),
            (Tls::AlertReceived(AlertDescription::HandshakeFailure), false),
            (Tls::AlertReceived(AlertDescription::InternalError), false),
            (Tls::InvalidMessage(InvalidMessage::InvalidContentType), false),
        ] {
            // By tokio-rustls, as a handshake fails.
            let by_io = Error::from(io::Error::new(io::ErrorKind::InvalidData, error.clone()));
            assert_eq!(is_mistake_of_certificates(&by_io), is_mistake, "{error:?}");
            assert_eq!(is_mistake_of_certificates(&error.clone().into()), is_mistake, "{error:?}");
        }
        for cut in [
            io::Error::new(io::ErrorKind::UnexpectedEof, "tls handshake eof"),
            io::Error::from_raw_os_error(104),
        ] {
            assert!(!is_mistake_of_certificates(&cut.into()));
        }
        let said = Error::new(ErrorKind::Unknown, "ERR InvalidCertificate(UnknownIssuer)");
        assert!(!is_mistake_of_certificates(&said), "Redis's own words");
    }

    #[test]
    fn what_no_server_said_is_no_refusal() {
        let of = |kind, words: &'static str| cause_of(&Error::new(kind, words)).0;
        assert_eq!(of(ErrorKind::Timeout, "Request timed out."), Cause::Silent);
        assert_eq!(cause_of(&Error::from(io::Error::from_raw_os_error(111))).0, Cause::Unreachable);
        assert_eq!(of(ErrorKind::Sentinel, "Failed to connect to all sentinel nodes."), Cause::Unreachable);
        assert_eq!(of(ErrorKind::IO, "Unresponsive connection."), Cause::Silent);
        assert_eq!(of(ErrorKind::Unknown, "channel closed"), Cause::Unreachable);
        assert_eq!(of(ErrorKind::Canceled, "no connection to Redis"), Cause::Unreachable);
        assert_eq!(of(ErrorKind::Sentinel, "WRONGPASS invalid"), Cause::Password);
        assert_eq!(of(ErrorKind::Unknown, "-OOM command not allowed"), Cause::OutOfMemory);
        assert_eq!(of(ErrorKind::Unknown, "OOM command not allowed"), Cause::OutOfMemory);
    }
}
