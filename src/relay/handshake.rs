//! What a WebSocket handshake asks for: which device, which client, which protocol, by which token.

use http::header::{
    AUTHORIZATION, CONNECTION, CONTENT_LENGTH, HOST, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
    SEC_WEBSOCKET_VERSION, TRANSFER_ENCODING, UPGRADE,
};
use http::uri::Authority;
use http::{HeaderMap, HeaderName, HeaderValue, Method};

use super::ids::{Attempt, ClientId, Device};
use super::private::Private;
use super::protocol::{Protocol, V1};
use super::record::Lease;
use super::refusal::Refusal;

/// The header in which native apps send the token.
pub const CLIENT_ID_HEADER: HeaderName = HeaderName::from_static("clientid");

/// A handshake of the right form. Its token is not verified yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handshake {
    /// The slot that is asked for.
    pub device: Device,
    /// The client's own name, if it gave one.
    pub client: Option<ClientId>,
    /// Which of its attempts the client says that this is.
    pub attempt: Option<Attempt>,
    /// What will be spoken.
    pub protocol: Protocol,
    /// The ID token, not verified; none where none was found.
    pub token: Option<Private<String>>,
    /// A web page may have sent it. A page's WebSocket can set no header: a token in a header alone is no page's.
    pub may_be_a_pages: bool,
    /// The one subprotocol to answer with.
    pub selected: Option<HeaderValue>,
}

/// Reads a handshake: `GET` with `Upgrade: websocket` (RFC 6455 section 4.2.1). With `tunnel` it is the
/// extended CONNECT of HTTP/2 (RFC 8441 section 5), which has neither upgrade nor key.
///
/// # Errors
/// The refusal for its form, the first that applies in the order of [`Refusal`].
pub fn read(method: &Method, query: &str, headers: &HeaderMap, tunnel: bool) -> Result<Handshake, Refusal> {
    if tunnel {
        is_version_13(headers)?;
    } else {
        is_upgrade(method, headers)?;
    }
    let Parameters { device, client, attempt } = Parameters::read(query)?;
    let offer = Offer::read(headers)?;
    let in_a_header = header_token(headers)?;
    let (token, by_place) = match offer.token {
        Some(token) => (Some(token), Device::Desktop),
        None => (in_a_header, Device::Mobile),
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
        attempt,
        protocol,
        token: token.map(|token| token.to_owned().into()),
        may_be_a_pages: offer.token.is_some() || in_a_header.is_none(),
        selected,
    })
}

/// The one value of a header that must not be given twice.
fn only<'a>(
    headers: &'a HeaderMap,
    name: &HeaderName,
    twice: &'static str,
) -> Result<Option<&'a HeaderValue>, Refusal> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (value, None) => Ok(value),
        (_, Some(_)) => Err(Refusal::BadRequest(twice)),
    }
}

fn is_version_13(headers: &HeaderMap) -> Result<(), Refusal> {
    // RFC 6455 section 11.3.5.
    let version = only(headers, &SEC_WEBSOCKET_VERSION, "Sec-WebSocket-Version is given twice")?;
    if version.is_some_and(|version| version == "13") { Ok(()) } else { Err(Refusal::UpgradeRequired) }
}

fn is_upgrade(method: &Method, headers: &HeaderMap) -> Result<(), Refusal> {
    let has = |name: HeaderName, token: &str| {
        headers
            .get_all(name)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .any(|value| value.split(',').any(|part| part.trim().eq_ignore_ascii_case(token)))
    };
    if method != Method::GET || !has(UPGRADE, "websocket") {
        return Err(Refusal::UpgradeRequired);
    }
    is_version_13(headers)?;
    if !has(CONNECTION, "upgrade") {
        return Err(Refusal::BadRequest("an upgrade needs Connection: Upgrade"));
    }
    // RFC 9112 section 3.2: a server must refuse what names no host, or more than one. Whatever stands before this relay
    // may have believed another one of them.
    let host = only(headers, &HOST, "Host is given twice")?.and_then(|host| host.to_str().ok());
    if host.is_none_or(|host| host.parse::<Authority>().is_err()) {
        return Err(Refusal::BadRequest("Host is missing, or names none"));
    }
    // RFC 6455 section 11.3.1.
    let key = only(headers, &SEC_WEBSOCKET_KEY, "Sec-WebSocket-Key is given twice")?;
    if !key.is_some_and(is_nonce) {
        return Err(Refusal::BadRequest("Sec-WebSocket-Key must be 16 bytes in base64"));
    }
    // What stands behind the handshake is WebSocket; what some proxy takes for a body must not be read as that.
    let length = only(headers, &CONTENT_LENGTH, "Content-Length is given twice")?;
    if headers.contains_key(TRANSFER_ENCODING) || length.is_some_and(|length| length != "0") {
        return Err(Refusal::BadRequest("an upgrade has no body"));
    }
    Ok(())
}

/// The token of a native app, or of `GET /v1/session`.
///
/// # Errors
/// [`Refusal::BadRequest`] when a header is not text, or given twice.
pub fn header_token(headers: &HeaderMap) -> Result<Option<&str>, Refusal> {
    const NOT_TEXT: Refusal = Refusal::BadRequest("a header that carries the token is not text");
    if let Some(value) = only(headers, &CLIENT_ID_HEADER, "clientid is given twice")? {
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
/// [`Refusal::BadRequest`] when the header is not text, or given twice.
pub fn bearer(headers: &HeaderMap) -> Result<Option<&str>, Refusal> {
    let Some(value) = only(headers, &AUTHORIZATION, "Authorization is given twice")? else {
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

/// What the query of a handshake, or of `GET /v1/session`, says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Parameters {
    /// The query's `device`; without it the token's place decides.
    pub device: Option<Device>,
    /// The query's `client`: 1 to 64 characters.
    pub client: Option<ClientId>,
    /// The query's `attempt`, below 2^53 and with `client` only.
    pub attempt: Option<Attempt>,
}

impl Parameters {
    /// Reads a query. `affinity` is the balancer's business, and other names are nobody's.
    ///
    /// # Errors
    /// [`Refusal::BadDevice`] and [`Refusal::BadRequest`]
    pub fn read(query: &str) -> Result<Self, Refusal> {
        const ATTEMPT: Refusal = Refusal::BadRequest("attempt must be a number from 0 to 2^53 - 1");
        let mut read = Self::default();
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            match name.as_ref() {
                "device" => {
                    let known = Device::parse(&value).ok_or(Refusal::BadDevice)?;
                    if read.device.replace(known).is_some() {
                        return Err(Refusal::BadDevice);
                    }
                }
                "client" => {
                    let known = ClientId::new(&value)
                        .ok_or(Refusal::BadRequest("client must be 1 to 64 of A-Z a-z 0-9 - _"))?;
                    if read.client.replace(known).is_some() {
                        return Err(Refusal::BadRequest("client is given twice"));
                    }
                }
                "attempt" => {
                    let known = Attempt::parse(&value).ok_or(ATTEMPT)?;
                    if read.attempt.replace(known).is_some() {
                        return Err(Refusal::BadRequest("attempt is given twice"));
                    }
                }
                _ => {}
            }
        }
        if read.attempt.is_some() && read.client.is_none() {
            return Err(Refusal::BadRequest("attempt counts the attempts of a client: give client too"));
        }
        Ok(read)
    }

    /// The attempt of the slot's holder, if a claim of these parameters would be refused for it. Where no device is named,
    /// it is the one that the client holds: `GET /v1/session` has its token in a header, whose place says nothing here.
    #[must_use]
    pub fn later_attempt(&self, device: Device, lease: &Lease) -> Option<Attempt> {
        let is_mine = self.client.is_some() && lease.holder.client == self.client;
        let is_asked = is_mine && self.device.is_none_or(|asked| asked == device);
        lease.attempt.filter(|held| is_asked && self.attempt.is_some_and(|attempt| attempt < *held))
    }
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

    const UPGRADE_HEADERS: [(&str, &str); 5] = [
        ("host", "relay.example.org"),
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
    fn the_place_of_the_token_decides_the_device_and_the_offer_the_protocol() {
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
            assert_eq!(**handshake.token.as_ref().unwrap(), token, "{more:?}");
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
        for none in [
            vec![],
            vec![(p, "duorelay.v1")],
            vec![("authorization", "Basic abc")],
            vec![("authorization", "Bearer")],
        ] {
            assert_eq!(ask("", &none).unwrap().token, None, "{none:?}");
        }
        assert_eq!(ask("", &[(p, "duorelay.v2, tok")]), Err(Refusal::UnsupportedProtocol));
        assert!(matches!(ask("", &[(p, "a, b")]), Err(Refusal::BadRequest(_))));
        assert!(matches!(ask("", &[(p, "a"), (p, "a")]), Err(Refusal::BadRequest(_))));
    }

    #[test]
    fn what_is_no_upgrade_is_refused_with_426() {
        let without = |name: &str| {
            let list: Vec<_> = UPGRADE_HEADERS.into_iter().filter(|(n, _)| *n != name).collect();
            read(&Method::GET, "", &headers(&list), false)
        };
        assert_eq!(without("upgrade"), Err(Refusal::UpgradeRequired));
        assert_eq!(without("sec-websocket-version"), Err(Refusal::UpgradeRequired));
        assert!(matches!(without("connection"), Err(Refusal::BadRequest(_))));
        assert!(matches!(without("host"), Err(Refusal::BadRequest(_))));
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
        assert_eq!(read(&Method::CONNECT, "", &list, true).unwrap().token, Some("t".to_owned().into()));
    }

    #[test]
    fn an_attempt_is_a_clients_number_below_2_to_the_53() {
        let bearer = [("authorization", "Bearer t")];
        let attempt = |query: &str| ask(query, &bearer).map(|handshake| handshake.attempt);
        assert_eq!(attempt("client=a&attempt=0"), Ok(Attempt::new(0)));
        assert_eq!(attempt("attempt=9007199254740991&client=a"), Ok(Attempt::new((1 << 53) - 1)));
        assert_eq!(attempt("client=a&affinity=38390dbb"), Ok(None));
        assert_eq!(attempt("affinity=&client=a"), Ok(None));
        for bad in [
            "attempt=1",
            "client=a&attempt=",
            "client=a&attempt=-1",
            "client=a&attempt=%2B1",
            "client=a&attempt=1.5",
            "client=a&attempt=9007199254740992",
            "client=a&attempt=1&attempt=1",
        ] {
            assert!(matches!(attempt(bad), Err(Refusal::BadRequest(_))), "{bad}");
        }
    }

    #[test]
    fn only_pages_are_held_to_their_origin() {
        let p = "sec-websocket-protocol";
        type Case<'a> = (&'a [(&'a str, &'a str)], bool);
        let table: [Case<'_>; 6] = [
            (&[(p, "duorelay.v1, tok")], true),
            (&[(p, "tok"), ("authorization", "Bearer t")], true),
            (&[(p, "duorelay.v1")], true),
            (&[], true),
            (&[(p, "duorelay.v1"), ("clientid", "t")], false),
            (&[("authorization", "Bearer t")], false),
        ];
        for (more, may_be_a_pages) in table {
            assert_eq!(ask("", more).unwrap().may_be_a_pages, may_be_a_pages, "{more:?}");
        }
    }

    #[test]
    fn what_two_readers_could_read_differently_is_refused() {
        let with = |more: &[(&str, &str)]| ask("", more);
        for more in [
            ("host", "relay.example.org"),
            ("host", "other.example.org"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ("sec-websocket-version", "13"),
            ("content-length", "5"),
            ("transfer-encoding", "chunked"),
        ] {
            assert!(
                matches!(with(&[more, ("authorization", "Bearer t")]), Err(Refusal::BadRequest(_))),
                "{more:?}"
            );
        }
        for twice in [("authorization", "Bearer t"), ("clientid", "t")] {
            assert!(matches!(with(&[twice, twice]), Err(Refusal::BadRequest(_))), "{twice:?}");
        }
        assert!(with(&[("content-length", "0"), ("authorization", "Bearer t")]).is_ok());
        for host in ["", "a b", "http://relay.example.org/"] {
            let mut headers = headers(&UPGRADE_HEADERS);
            headers.insert("host", HeaderValue::from_str(host).unwrap());
            assert!(
                matches!(read(&Method::GET, "", &headers, false), Err(Refusal::BadRequest(_))),
                "{host:?}"
            );
        }
    }
}
