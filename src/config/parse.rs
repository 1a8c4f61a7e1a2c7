//! From a setting's text to its value. Problems complete the sentence "SETTING: ...", and repeat no secret.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;

use ipnet::IpNet;
use secrecy::SecretString;
use url::{Host, Url};

use crate::telemetry::{LogFormat, check_filter};

/// In seconds.
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

/// A whole number in `range`.
pub(crate) fn number(range: RangeInclusive<u64>) -> impl FnOnce(&str) -> Result<u64, String> {
    move |text| {
        text.parse().ok().filter(|number| range.contains(number)).ok_or_else(|| {
            format!("must be a whole number from {} to {}, but is {text:?}", range.start(), range.end())
        })
    }
}

/// A limit, where 0 is none.
pub(crate) fn count(text: &str) -> Result<Option<u32>, String> {
    match text.parse() {
        Ok(0) => Ok(None),
        Ok(limit) => Ok(Some(limit)),
        Err(_) => {
            Err(format!("must be a whole number up to {}, or 0 for no limit, but is {text:?}", u32::MAX))
        }
    }
}

/// For numbers that were checked to be small.
pub(crate) fn size(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
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

pub(crate) fn word(text: &str) -> Result<String, String> {
    if text.contains(char::is_whitespace) {
        Err(format!("must not contain white space, but is {text:?}"))
    } else {
        Ok(text.to_owned())
    }
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
    match network {
        Ok(network) => Ok(network.trunc()),
        Err(_) => {
            Err(format!("must list networks such as 10.0.0.0/8 or 2001:db8::/32, but {text:?} is not one"))
        }
    }
}

/// A STUN server (RFC 7064) as browsers take it: `stun:HOST[:PORT]` or `stuns:HOST[:PORT]`.
pub(crate) fn stun_url(text: &str) -> Result<String, String> {
    let wrong =
        || format!("must list STUN servers such as stun:stun.example.org:3478, but {text:?} is not one");
    let (scheme, server) = text.split_once(':').ok_or_else(wrong)?;
    // Read as a URL with an authority, so that the url crate checks host and port.
    let url = Url::parse(&format!("http://{server}")).map_err(|_| wrong())?;
    let is_server = url.host_str().is_some_and(|host| !host.is_empty())
        && (url.path(), url.query(), url.fragment()) == ("/", None, None)
        && (url.username(), url.password()) == ("", None)
        && !server.contains('/');
    if matches!(scheme, "stun" | "stuns") && is_server { Ok(text.to_owned()) } else { Err(wrong()) }
}

/// A Redis URL that names a server; no problem repeats any of it, because of the password.
pub(crate) fn redis_url(text: &str) -> Result<SecretString, String> {
    const SCHEMES: [&str; 6] =
        ["redis", "rediss", "redis-cluster", "rediss-cluster", "redis-sentinel", "rediss-sentinel"];
    let url = Url::parse(text).map_err(|error| {
        format!("is not a URL ({error}); wanted is redis://[USER:PASSWORD@]HOST[:PORT], with other characters of a password percent-encoded")
    })?;
    if !SCHEMES.contains(&url.scheme()) {
        return Err(
            "must start with redis://, redis-cluster:// or redis-sentinel://, or with rediss… for TLS"
                .to_owned(),
        );
    }
    if url.host_str().is_none_or(str::is_empty) {
        return Err("names no host".to_owned());
    }
    if url.port() == Some(0) {
        return Err("names port 0".to_owned());
    }
    let database = url.path().trim_matches('/');
    if !database.is_empty() && (database.parse::<u8>().is_err() || url.path().ends_with('/')) {
        return Err("has a path that is not the number of a database".to_owned());
    }
    if url.scheme().ends_with("-cluster") && !database.is_empty() {
        return Err("names a database, which a cluster does not have".to_owned());
    }
    let given = |wanted: &str| url.query_pairs().any(|(key, value)| key == wanted && !value.is_empty());
    if url.scheme().ends_with("-sentinel") && !given("sentinelServiceName") {
        return Err(
            "needs ?sentinelServiceName=NAME, the name of the master that the sentinels watch".to_owned()
        );
    }
    for (_, node) in url.query_pairs().filter(|(key, _)| key == "node") {
        if node.split_once(':').is_none_or(|(host, port)| host.is_empty() || port.parse::<u16>().is_err()) {
            return Err("has a node= that is not HOST:PORT".to_owned());
        }
    }
    Ok(text.into())
}

/// The start of all keys and channels.
pub(crate) fn redis_prefix(text: &str) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.:".contains(c);
    if text.len() <= 64 && text.chars().all(plain) {
        Ok(text.to_owned())
    } else {
        Err(format!("must be at most 64 of A-Z a-z 0-9 - _ . : but is {text:?}"))
    }
}

/// A URL without a user or a password in it.
pub(crate) fn public_url(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|error| format!("is not a URL ({error})"))?;
    if url.username().is_empty() && url.password().is_none() {
        Ok(url)
    } else {
        Err("must not hold a user or a password".to_owned())
    }
}

/// An HTTP URL without a password in it; unencrypted only to this machine.
pub(crate) fn http_url(text: &str) -> Result<String, String> {
    let url = public_url(text)?;
    let loopback = match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(ip)) => ip.is_loopback(),
        Some(Host::Ipv6(ip)) => ip.is_loopback(),
        None => false,
    };
    match url.scheme() {
        "https" => Ok(text.to_owned()),
        "http" if loopback => Ok(text.to_owned()),
        "http" => Err("must be https:// (plain http:// only to a loopback address)".to_owned()),
        _ => Err("must be an https:// URL".to_owned()),
    }
}

/// An HTTP URL without a password in it, on any host: collectors are often neighbours, without TLS.
pub(crate) fn collector(text: &str) -> Result<String, String> {
    let url = Url::parse(text).map_err(|error| format!("is not a URL ({error})"))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err("must not hold a user or a password; OTEL_EXPORTER_OTLP_HEADERS may".to_owned());
    }
    match url.scheme() {
        "http" | "https" if url.has_host() && url.query().is_none() => Ok(text.to_owned()),
        _ => Err("must be an http:// or https:// URL, such as http://localhost:4318".to_owned()),
    }
}

pub(crate) fn log_format(text: &str) -> Result<LogFormat, String> {
    match text.to_ascii_lowercase().as_str() {
        "pretty" => Ok(LogFormat::Pretty),
        "json" => Ok(LogFormat::Json),
        "gcp" => Ok(LogFormat::Gcp),
        _ => Err(format!("must be pretty, json or gcp, but is {text:?}")),
    }
}

pub(crate) fn log_filter(text: &str) -> Result<String, String> {
    check_filter(text).map(|()| text.to_owned())
}

pub(crate) fn project_id(text: &str) -> Result<String, String> {
    // Old projects are scoped by their owner's domain: `example.com:project`.
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.:".contains(c);
    if text.chars().all(plain) && !text.is_empty() {
        Ok(text.to_owned())
    } else {
        Err(format!("must be a project's id, such as my-project-1234 (not its name), but is {text:?}"))
    }
}

/// `HOST` or `HOST:PORT`, as Google's own libraries want it.
pub(crate) fn metadata_host(text: &str) -> Result<String, String> {
    let wrong = || format!("must be HOST or HOST:PORT without a scheme, but is {text:?}");
    let url = Url::parse(&format!("http://{text}")).map_err(|_| wrong())?;
    let is_host = url.has_host() && (url.path(), url.query(), url.fragment()) == ("/", None, None);
    if is_host && !text.ends_with('/') && !text.contains('@') { Ok(text.to_owned()) } else { Err(wrong()) }
}

/// `HOST:PORT`, as Firebase's own libraries want it.
pub(crate) fn emulator_host(text: &str) -> Result<String, String> {
    let wrong = || format!("must be HOST:PORT without a scheme, such as 127.0.0.1:9099, but is {text:?}");
    let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    let valid = url::Host::parse(host).is_ok() && port.parse::<u16>().is_ok_and(|port| port > 0);
    if valid { Ok(text.to_owned()) } else { Err(wrong()) }
}
