//! From a setting's text to its value. Problems complete the sentence "SETTING: ...", and repeat no secret.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::Duration;

use ipnet::IpNet;
use secrecy::SecretString;
use url::Url;

use crate::auth::is_host_and_port;

/// A day in seconds.
pub(crate) const DAY: u64 = 24 * 60 * 60;

/// One mistake in the configuration: the setting, and what is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{setting}: {problem}")]
pub struct Mistake {
    /// The variable, and the flag where the value came from there.
    pub setting: String,
    /// What is wrong; never a secret's value.
    pub problem: String,
}

impl Mistake {
    pub(crate) fn of(setting: &str, problem: impl Into<String>) -> Self {
        Self { setting: setting.to_owned(), problem: problem.into() }
    }
}

/// A whole number in `range`.
pub(crate) fn number<T: TryFrom<u64>>(range: RangeInclusive<u64>) -> impl FnOnce(&str) -> Result<T, String> {
    move |text| {
        let number = text.parse().ok().filter(|number| range.contains(number));
        number.and_then(|number| number.try_into().ok()).ok_or_else(|| {
            format!("must be a whole number from {} to {}, but is {text:?}", range.start(), range.end())
        })
    }
}

/// A time in whole seconds.
pub(crate) fn seconds(range: RangeInclusive<u64>) -> impl FnOnce(&str) -> Result<Duration, String> {
    move |text| number(range)(text).map(Duration::from_secs)
}

/// A limit, where 0 is none.
pub(crate) fn count(text: &str) -> Result<Option<u32>, String> {
    let limit = text.parse().map(|limit| (limit > 0).then_some(limit));
    limit
        .map_err(|_| format!("must be a whole number up to {}, or 0 for no limit, but is {text:?}", u32::MAX))
}

/// A yes or a no, in the ways that people write it.
pub(crate) fn truth(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" | "on" => Ok(true),
        "false" | "0" | "no" | "off" => Ok(false),
        _ => Err(format!("must be true or false, but is {text:?}")),
    }
}

/// The items between commas, at least one.
pub(crate) fn list<T>(text: &str, check: impl Fn(&str) -> Result<T, String>) -> Result<Vec<T>, String> {
    let items: Vec<T> = text
        .split(',')
        .map(str::trim)
        .filter(|item| !item.is_empty())
        .map(check)
        .collect::<Result<_, _>>()?;
    if items.is_empty() { Err("lists nothing".to_owned()) } else { Ok(items) }
}

/// The text itself, if it is what is wanted.
fn accept(text: &str, is_good: bool, wanted: &str) -> Result<String, String> {
    if is_good { Ok(text.to_owned()) } else { Err(format!("{wanted}, but is {text:?}")) }
}

pub(crate) fn word(text: &str) -> Result<String, String> {
    accept(text, !text.contains(char::is_whitespace), "must not contain white space")
}

/// A secret that fits an `Authorization: Bearer` header.
pub(crate) fn header_secret(text: &str) -> Result<SecretString, String> {
    if text.bytes().all(|byte| byte.is_ascii_graphic()) {
        Ok(text.into())
    } else {
        Err("must be printable ASCII without white space, as it is sent in a header".to_owned())
    }
}

/// A port; 0 is any free one.
pub(crate) fn port(text: &str) -> Result<u16, String> {
    text.parse().map_err(|_| format!("must be a port from 0 (any free one) to 65535, but is {text:?}"))
}

pub(crate) fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| format!("must be IP:PORT, such as 0.0.0.0:3000 or [::]:3000, but is {text:?}"))
}

/// An origin as a browser writes it in its `Origin` header (RFC 6454 section 6.2).
pub(crate) fn origin(text: &str) -> Result<String, String> {
    let wrong = |why: &str| format!("must list origins such as https://app.example.com, but {text:?} {why}");
    if text == "null" {
        return Err(wrong("is what any sandboxed page sends"));
    }
    if text.contains('*') {
        return Err(wrong("has a *, which is not supported; leave the setting empty to allow every page"));
    }
    let url = Url::parse(text).map_err(|_| wrong("is not one"))?;
    let host = url.host_str().filter(|host| !host.is_empty()).ok_or_else(|| wrong("has no host"))?;
    if !matches!(url.path(), "" | "/") || url.query().is_some() || url.fragment().is_some() {
        return Err(wrong("has more than scheme, host and port"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("must list origins, without a user or a password".to_owned());
    }
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    Ok(format!("{}://{host}{port}", url.scheme()).to_ascii_lowercase())
}

/// A network, or a single address.
pub(crate) fn network(text: &str) -> Result<IpNet, String> {
    let network = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    network.map(|network| network.trunc()).map_err(|_| {
        format!("must list networks such as 10.0.0.0/8 or 2001:db8::/32, but {text:?} is not one")
    })
}

/// A host, with a port or without, and nothing else. It is read as a URL, so that the url crate checks it.
fn is_host(text: &str) -> bool {
    let is_bare = !text.contains(['/', '@', '?', '#']);
    is_bare && Url::parse(&format!("http://{text}")).is_ok_and(|url| url.has_host())
}

/// A STUN server (RFC 7064) as browsers take it: `stun:HOST[:PORT]` or `stuns:HOST[:PORT]`.
pub(crate) fn stun_url(text: &str) -> Result<String, String> {
    match text.split_once(':') {
        Some(("stun" | "stuns", server)) if is_host(server) => Ok(text.to_owned()),
        _ => {
            Err(format!("must list STUN servers such as stun:stun.example.org:3478, but {text:?} is not one"))
        }
    }
}

/// `HOST` or `HOST:PORT`, as Google's own libraries want it.
pub(crate) fn metadata_host(text: &str) -> Result<String, String> {
    accept(text, is_host(text), "must be HOST or HOST:PORT without a scheme")
}

/// `HOST:PORT`, as Firebase's own libraries want it.
pub(crate) fn emulator_host(text: &str) -> Result<String, String> {
    accept(text, is_host_and_port(text), "must be HOST:PORT without a scheme, such as 127.0.0.1:9099")
}
