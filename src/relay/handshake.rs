//! What a WebSocket handshake asks for: which device, which client, which protocol, by which token.

use http::header::{
    AUTHORIZATION, CONNECTION, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method};

use super::ids::{ClientId, Device};
use super::private::Private;
use super::protocol::{Protocol, V1};
use super::refusal::Refusal;

/// The header in which native apps send the token.
pub const CLIENT_ID_HEADER: HeaderName = HeaderName::from_static("clientid");

/// A handshake that has the right form; whose token it carries is not known yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handshake {
    /// The slot that is asked for.
    pub device: Device,
    /// The client's own name, if it gave one.
    pub client: Option<ClientId>,
    /// What will be spoken.
    pub protocol: Protocol,
    /// The ID token, not verified.
    pub token: Private<String>,
    /// The one subprotocol to answer with.
    pub selected: Option<HeaderValue>,
}

/// Reads a handshake: `GET` with `Upgrade: websocket` (RFC 6455 section 4.2.1), or with `tunnel` the
/// extended CONNECT of HTTP/2 (RFC 8441 section 5), which has neither upgrade nor key.
///
/// # Errors
/// The refusal for its form, the first that applies in the order of [`Refusal`].
pub fn read(method: &Method, query: &str, headers: &HeaderMap, tunnel: bool) -> Result<Handshake, Refusal> {
    let has = |name: HeaderName, token: &str| {
        headers
            .get_all(name)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .any(|value| value.split(',').any(|part| part.trim().eq_ignore_ascii_case(token)))
    };
    if !tunnel && (method != Method::GET || !has(UPGRADE, "websocket")) {
        return Err(Refusal::UpgradeRequired);
    }
    if headers.get(SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        return Err(Refusal::UpgradeRequired);
    }
    if !tunnel && !has(CONNECTION, "upgrade") {
        return Err(Refusal::BadRequest("an upgrade needs Connection: Upgrade"));
    }
    if !tunnel && !headers.get(SEC_WEBSOCKET_KEY).is_some_and(is_nonce) {
        return Err(Refusal::BadRequest("Sec-WebSocket-Key must be 16 bytes in base64"));
    }
    let (device, client) = read_query(query)?;
    let offer = Offer::read(headers)?;
    let (token, by_place) = match offer.token {
        Some(token) => (token, Device::Desktop),
        None => (header_token(headers)?.ok_or(Refusal::MissingToken)?, Device::Mobile),
    };
    let (protocol, selected) = if offer.v1 {
        (Protocol::V1, Some(HeaderValue::from_static(V1)))
    } else {
        // A browser fails a handshake whose offer is not answered: with only the token in it, the
        // token itself is the answer.
        let echo = offer.token.map(HeaderValue::from_str).transpose();
        let mut echo = echo.map_err(|_| Refusal::BadRequest("the token is not a header value"))?;
        // It is not printed, and no HTTP/2 compression remembers it (RFC 7541 section 7.1.3).
        echo.iter_mut().for_each(|token| token.set_sensitive(true));
        (Protocol::Classic, echo)
    };
    Ok(Handshake {
        device: device.unwrap_or(by_place),
        client,
        protocol,
        token: token.to_owned().into(),
        selected,
    })
}

/// The token of a native app, or of `GET /v1/session`.
///
/// # Errors
/// [`Refusal::BadRequest`] when a header is not text.
pub fn header_token(headers: &HeaderMap) -> Result<Option<&str>, Refusal> {
    const NOT_TEXT: Refusal = Refusal::BadRequest("a header that carries the token is not text");
    if let Some(value) = headers.get(CLIENT_ID_HEADER) {
        let token = value.to_str().map_err(|_| NOT_TEXT)?.trim();
        if !token.is_empty() {
            return Ok(Some(token));
        }
    }
    bearer(headers)
}

/// The token of `Authorization: Bearer` (RFC 6750 section 2.1; the scheme in any letter case, RFC 9110
/// section 11.1).
///
/// # Errors
/// [`Refusal::BadRequest`] when the header is not text.
pub fn bearer(headers: &HeaderMap) -> Result<Option<&str>, Refusal> {
    let Some(value) = headers.get(AUTHORIZATION) else {
        return Ok(None);
    };
    let value = value.to_str().map_err(|_| Refusal::BadRequest("Authorization is not text"))?;
    let Some((scheme, token)) = value.trim().split_once(' ') else {
        return Ok(None);
    };
    let token = token.trim();
    Ok((scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token))
}

fn is_nonce(value: &HeaderValue) -> bool {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.decode(value.as_bytes()).is_ok_and(|nonce| nonce.len() == 16)
}

fn read_query(query: &str) -> Result<(Option<Device>, Option<ClientId>), Refusal> {
    let (mut device, mut client) = (None, None);
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        match name.as_ref() {
            "device" => {
                let known = Device::parse(&value).ok_or(Refusal::BadDevice)?;
                if device.replace(known).is_some() {
                    return Err(Refusal::BadDevice);
                }
            }
            "client" => {
                let known = ClientId::new(&value)
                    .ok_or(Refusal::BadRequest("client must be 1 to 64 of A-Z a-z 0-9 - _"))?;
                if client.replace(known).is_some() {
                    return Err(Refusal::BadRequest("client is given twice"));
                }
            }
            _ => {}
        }
    }
    Ok((device, client))
}

struct Offer<'a> {
    v1: bool,
    token: Option<&'a str>,
}

impl<'a> Offer<'a> {
    fn read(headers: &'a HeaderMap) -> Result<Self, Refusal> {
        let (mut v1, mut unknown, mut token) = (false, false, None);
        for value in headers.get_all(SEC_WEBSOCKET_PROTOCOL) {
            let value =
                value.to_str().map_err(|_| Refusal::BadRequest("Sec-WebSocket-Protocol is not text"))?;
            for part in value.split(',').map(str::trim).filter(|part| !part.is_empty()) {
                if part == V1 {
                    v1 = true;
                } else if part.starts_with("duorelay.") {
                    unknown = true;
                } else if token.replace(part).is_some() {
                    return Err(Refusal::BadRequest("two tokens in Sec-WebSocket-Protocol"));
                }
            }
        }
        if unknown && !v1 {
            return Err(Refusal::UnsupportedProtocol);
        }
        Ok(Self { v1, token })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(list: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in list {
            let name: HeaderName = name.parse().unwrap();
            headers.append(name, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    const UPGRADE_HEADERS: [(&str, &str); 4] = [
        ("upgrade", "WebSocket"),
        ("connection", "keep-alive, Upgrade"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];

    fn ask(query: &str, more: &[(&str, &str)]) -> Result<Handshake, Refusal> {
        let mut list = UPGRADE_HEADERS.to_vec();
        list.extend_from_slice(more);
        read(&Method::GET, query, &headers(&list), false)
    }

    #[test]
    fn the_place_of_the_token_tells_the_device_and_the_offer_the_protocol() {
        use Device::{Desktop, Mobile};
        use Protocol::{Classic, V1 as V};
        let p = "sec-websocket-protocol";
        type Expected = (Device, Protocol, &'static str, Option<&'static str>);
        let table: [(&[(&str, &str)], Expected); 10] = [
            (&[(p, "tok")], (Desktop, Classic, "tok", Some("tok"))),
            (&[(p, "duorelay.v1, tok")], (Desktop, V, "tok", Some(V1))),
            (&[(p, "tok"), (p, "duorelay.v1")], (Desktop, V, "tok", Some(V1))),
            (&[(p, "duorelay.v9,duorelay.v1,tok")], (Desktop, V, "tok", Some(V1))),
            (&[("clientid", "tok")], (Mobile, Classic, "tok", None)),
            (&[("authorization", "bEARER tok")], (Mobile, Classic, "tok", None)),
            (&[("authorization", "Bearer tok"), (p, "duorelay.v1")], (Mobile, V, "tok", Some(V1))),
            (&[("clientid", "a"), ("authorization", "Bearer b")], (Mobile, Classic, "a", None)),
            (&[("clientid", "a"), (p, "b")], (Desktop, Classic, "b", Some("b"))),
            (&[("clientid", ""), ("authorization", "Bearer b")], (Mobile, Classic, "b", None)),
        ];
        for (more, (device, protocol, token, selected)) in table {
            let handshake = ask("", more).unwrap();
            assert_eq!((handshake.device, handshake.protocol), (device, protocol), "{more:?}");
            assert_eq!(*handshake.token, token, "{more:?}");
            assert_eq!(handshake.selected, selected.map(HeaderValue::from_static), "{more:?}");
        }
    }

    #[test]
    fn the_query_overrides_the_device_and_names_the_client() {
        let bearer = [("authorization", "Bearer t")];
        assert_eq!(ask("device=desktop", &bearer).unwrap().device, Device::Desktop);
        assert_eq!(ask("x=1&client=a-Z_9", &bearer).unwrap().client, ClientId::new("a-Z_9"));
        for query in ["device=Desktop", "device=", "device=mobile&device=mobile"] {
            assert_eq!(ask(query, &bearer), Err(Refusal::BadDevice), "{query}");
        }
        let long = format!("client={}", "a".repeat(65));
        for query in ["client=", "client=a%20b", "client=a&client=a", long.as_str()] {
            assert!(matches!(ask(query, &bearer), Err(Refusal::BadRequest(_))), "{query}");
        }
    }

    #[test]
    fn offers_that_cannot_be_answered_are_refused() {
        let p = "sec-websocket-protocol";
        assert_eq!(ask("", &[]), Err(Refusal::MissingToken));
        assert_eq!(ask("", &[(p, "duorelay.v1")]), Err(Refusal::MissingToken));
        assert_eq!(ask("", &[("authorization", "Basic abc")]), Err(Refusal::MissingToken));
        assert_eq!(ask("", &[("authorization", "Bearer")]), Err(Refusal::MissingToken));
        assert_eq!(ask("", &[(p, "duorelay.v2, tok")]), Err(Refusal::UnsupportedProtocol));
        assert!(matches!(ask("", &[(p, "a, b")]), Err(Refusal::BadRequest(_))));
        assert!(matches!(ask("", &[(p, "a"), (p, "a")]), Err(Refusal::BadRequest(_))));
    }

    #[test]
    fn what_is_no_upgrade_is_told_so() {
        let without = |name: &str| {
            let list: Vec<_> = UPGRADE_HEADERS.into_iter().filter(|(n, _)| *n != name).collect();
            read(&Method::GET, "", &headers(&list), false)
        };
        assert_eq!(without("upgrade"), Err(Refusal::UpgradeRequired));
        assert_eq!(without("sec-websocket-version"), Err(Refusal::UpgradeRequired));
        assert!(matches!(without("connection"), Err(Refusal::BadRequest(_))));
        assert!(matches!(without("sec-websocket-key"), Err(Refusal::BadRequest(_))));
        assert_eq!(read(&Method::POST, "", &headers(&UPGRADE_HEADERS), false), Err(Refusal::UpgradeRequired));
        let mut old = headers(&UPGRADE_HEADERS);
        old.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("8"));
        assert_eq!(read(&Method::GET, "", &old, false), Err(Refusal::UpgradeRequired));
        let mut short = headers(&UPGRADE_HEADERS);
        short.insert(SEC_WEBSOCKET_KEY, HeaderValue::from_static("c2hvcnQ="));
        assert!(matches!(read(&Method::GET, "", &short, false), Err(Refusal::BadRequest(_))));
    }

    #[test]
    fn a_tunnel_needs_no_upgrade_and_no_key() {
        let list = headers(&[("sec-websocket-version", "13"), ("authorization", "Bearer t")]);
        assert_eq!(*read(&Method::CONNECT, "", &list, true).unwrap().token, "t");
    }
}
