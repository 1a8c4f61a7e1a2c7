//! From text to a checked configuration. Every value is read before the first `?`, so that no
//! mistake hides another.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::Duration;

use ipnet::IpNet;
use secrecy::SecretString;
use url::{Host, Url};

use super::table::{self, Setting};
use super::values::Values;
use super::{Config, DemoOptions, Features, HealthCheck, Limits, Machine, Redis, Times, sign_in};
use crate::auth::settings::Issuer;
use crate::telemetry::{LogFormat, Settings, TraceSettings, check_filter};

/// Where demos keep what they share, so that a real relay on the same Redis never meets them.
const DEMO_PREFIX: &str = "duo-demo";

pub(super) const DAY: u64 = 24 * 60 * 60;

/// Everything that `duorelay serve` needs.
pub(super) fn serve(values: &mut Values, machine: Machine) -> Option<Config> {
    let common = common(values, machine);
    let auth = sign_in::read(values);
    let enforce_expiry = values.required(&table::ENFORCE_EXPIRY, true, truth);
    let redis = redis(values);
    let (mut common, auth) = (common?, auth?);
    if common.telemetry.project.is_none()
        && let Issuer::Firebase { project_id, .. } | Issuer::Emulator { project_id, .. } = &auth.issuer
    {
        common.telemetry.project = Some(project_id.clone());
    }
    Some(Config { redis: redis?, enforce_expiry: enforce_expiry?, ..common.into_config(auth) })
}

/// Everything that `duorelay demo` needs.
pub(super) fn demo(values: &mut Values, machine: Machine) -> Option<DemoOptions> {
    let common = common(values, machine);
    let url = if values.is_flag(&table::REDIS_URL) {
        values.optional(&table::REDIS_URL, redis_url)
    } else {
        Some(None)
    };
    let redis = url?.map(|url| Redis { url, prefix: DEMO_PREFIX.to_owned() });
    Some(DemoOptions { redis, ..common? })
}

/// What both run by; the demo's one instance, alone.
fn common(values: &mut Values, machine: Machine) -> Option<DemoOptions> {
    let addresses = addresses(values, machine);
    let admin_token = values.optional(&table::ADMIN_TOKEN, header_secret);
    let allowed_origins = values.optional(&table::ALLOWED_ORIGINS, |text| list(text, origin));
    let trusted_proxies = values.required(&table::TRUSTED_PROXIES, Vec::new(), |text| list(text, network));
    let features = features(values);
    let limits = limits(values);
    let workers = values.required(&table::WORKERS, machine.cores.max(1) as u64, number(1..=1024));
    let times = times(values);
    let telemetry = telemetry(values, machine);
    let (listen, admin_listen) = addresses?;
    Some(DemoOptions {
        listen,
        admin_listen,
        redis: None,
        admin_token: admin_token?,
        allowed_origins: allowed_origins?,
        trusted_proxies: trusted_proxies?,
        features: features?,
        limits: limits?,
        workers: size(workers?),
        times: times?,
        telemetry: telemetry?,
    })
}

fn telemetry(values: &mut Values, machine: Machine) -> Option<Settings> {
    let terminal = if machine.terminal { LogFormat::Pretty } else { LogFormat::Json };
    let format = values.required(&table::LOG_FORMAT, terminal, log_format);
    let filter = values.required(&table::RUST_LOG, String::new(), log_filter);
    let project = values.optional(&table::GOOGLE_CLOUD_PROJECT, |text| Ok(text.to_owned()));
    let endpoint = values.optional(&table::OTLP_ENDPOINT, collector);
    let service_name = values.optional(&table::OTEL_SERVICE_NAME, |text| Ok(text.to_owned()));
    let service_name = service_name?;
    let traces = endpoint?.map(|endpoint| TraceSettings { endpoint, service_name });
    Some(Settings { format: format?, filter: filter?, project: project?, traces })
}

/// An HTTP URL without a password in it, on any host: collectors are often neighbours, without TLS.
fn collector(text: &str) -> Result<String, String> {
    let url = Url::parse(text).map_err(|error| format!("is not a URL ({error})"))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err("must not hold a user or a password; OTEL_EXPORTER_OTLP_HEADERS may".to_owned());
    }
    match url.scheme() {
        "http" | "https" if url.has_host() && url.query().is_none() => Ok(text.to_owned()),
        _ => Err("must be an http:// or https:// URL, such as http://localhost:4318".to_owned()),
    }
}

/// Everything that `duorelay health` needs.
pub(super) fn health(values: &mut Values, machine: Machine, ready: bool) -> Option<HealthCheck> {
    let (listen, _) = addresses(values, machine)?;
    Some(HealthCheck { listen, path: if ready { "/healthz/ready" } else { "/healthz/live" } })
}

fn addresses(values: &mut Values, machine: Machine) -> Option<(SocketAddr, SocketAddr)> {
    let any =
        if machine.ipv6 { IpAddr::V6(Ipv6Addr::UNSPECIFIED) } else { IpAddr::V4(Ipv4Addr::UNSPECIFIED) };
    let at_port = values.required(&table::PORT, SocketAddr::new(any, 0), |text| match text.parse() {
        Ok(port) => Ok(SocketAddr::new(any, port)),
        Err(_) => Err(format!("must be a port from 0 (any free one) to 65535, but is {text:?}")),
    });
    let at_address = values.optional(&table::LISTEN, address);
    let admin_listen = values.required(&table::ADMIN_LISTEN, SocketAddr::new(any, 0), address);

    // A port on the command line was meant; an address that the environment happens to have was not.
    let port_flag_wins = values.is_flag(&table::PORT) && !values.is_flag(&table::LISTEN);
    let (at_port, at_address, admin_listen) = (at_port?, at_address?, admin_listen?);
    let listen = at_address.filter(|_| !port_flag_wins).unwrap_or(at_port);

    let meet = listen.ip() == admin_listen.ip()
        || listen.ip().is_unspecified()
        || admin_listen.ip().is_unspecified();
    if meet && listen.port() != 0 && listen.port() == admin_listen.port() {
        values.mistake(
            &table::ADMIN_LISTEN,
            format!("must differ from the public address {listen}, but is {admin_listen}"),
        );
    }
    Some((listen, admin_listen))
}

fn features(values: &mut Values) -> Option<Features> {
    let pacing = values.required(&table::PACING, true, truth);
    let direct = values.required(&table::DIRECT, true, truth);
    let stun_urls = values.required(&table::STUN_URLS, Vec::new(), |text| list(text, stun_url));
    Some(Features { pacing: pacing?, direct: direct?, stun_urls: stun_urls? })
}

fn limits(values: &mut Values) -> Option<Limits> {
    let mut count = |setting: &'static Setting| values.required(setting, None, count);
    let max_connections = count(&table::MAX_CONNECTIONS);
    let messages_per_second = count(&table::MESSAGES_PER_SECOND);
    let bytes_per_second = count(&table::BYTES_PER_SECOND);
    let handshakes_per_second_per_ip = count(&table::HANDSHAKES_PER_SECOND_PER_IP);
    let mut bytes = |setting: &'static Setting| values.required(setting, 0, number(1..=1 << 30)).map(size);
    let message_bytes = bytes(&table::MESSAGE_BYTES);
    let queue_bytes = bytes(&table::QUEUE_BYTES);
    if let (Some(message), Some(queue)) = (message_bytes, queue_bytes)
        && message > queue
    {
        let problem = format!(
            "must be at least DUORELAY_MESSAGE_BYTES ({message}), or the largest message fits no queue, but is {queue}"
        );
        values.mistake(&table::QUEUE_BYTES, problem);
    }
    Some(Limits {
        max_connections: max_connections?,
        message_bytes: message_bytes?,
        queue_bytes: queue_bytes?,
        messages_per_second: messages_per_second?,
        bytes_per_second: bytes_per_second?,
        handshakes_per_second_per_ip: handshakes_per_second_per_ip?,
    })
}

fn times(values: &mut Values) -> Option<Times> {
    let mut seconds = |setting: &'static Setting, range| {
        values.required(setting, 0, number(range)).map(Duration::from_secs)
    };
    let heartbeat = seconds(&table::HEARTBEAT_SECONDS, 1..=DAY);
    // Shorter than a backplane call may take (2 s), slots would end while they are being renewed.
    let lease = seconds(&table::LEASE_SECONDS, 3..=DAY);
    let drain_delay = seconds(&table::DRAIN_DELAY_SECONDS, 0..=DAY);
    let drain = seconds(&table::DRAIN_SECONDS, 0..=DAY);
    let max_lifetime = seconds(&table::MAX_LIFETIME_SECONDS, 0..=365 * DAY);
    Some(Times {
        heartbeat: heartbeat?,
        lease: lease?,
        drain_delay: drain_delay?,
        drain: drain?,
        max_lifetime: Some(max_lifetime?).filter(|lifetime| !lifetime.is_zero()),
    })
}

fn redis(values: &mut Values) -> Option<Option<Redis>> {
    let url = values.optional(&table::REDIS_URL, redis_url);
    let prefix = values.required(&table::REDIS_PREFIX, String::new(), |text| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.:".contains(c);
        if text.len() <= 64 && text.chars().all(plain) {
            Ok(text.to_owned())
        } else {
            Err(format!("must be at most 64 of A-Z a-z 0-9 - _ . : but is {text:?}"))
        }
    });
    let (url, prefix) = (url?, prefix?);
    Some(url.map(|url| Redis { url, prefix }))
}

/// A Redis URL that names a server; no problem repeats any of it, because of the password.
pub(super) fn redis_url(text: &str) -> Result<SecretString, String> {
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

/// An HTTP URL without a password in it; unencrypted only to this machine.
pub(super) fn http_url(text: &str) -> Result<String, String> {
    let url = Url::parse(text).map_err(|error| format!("is not a URL ({error})"))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err("must not hold a user or a password".to_owned());
    }
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

fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| format!("must be IP:PORT, such as 0.0.0.0:3000 or [::]:3000, but is {text:?}"))
}

/// A whole number in `range`.
pub(super) fn number(range: RangeInclusive<u64>) -> impl FnOnce(&str) -> Result<u64, String> {
    move |text| {
        text.parse().ok().filter(|number| range.contains(number)).ok_or_else(|| {
            format!("must be a whole number from {} to {}, but is {text:?}", range.start(), range.end())
        })
    }
}

/// A limit, where 0 is none.
fn count(text: &str) -> Result<Option<u32>, String> {
    match text.parse() {
        Ok(0) => Ok(None),
        Ok(limit) => Ok(Some(limit)),
        Err(_) => {
            Err(format!("must be a whole number up to {}, or 0 for no limit, but is {text:?}", u32::MAX))
        }
    }
}

/// For numbers that were checked to be small.
fn size(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

/// A yes or a no, in the ways that people write it.
pub(super) fn truth(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" | "on" => Ok(true),
        "false" | "0" | "no" | "off" => Ok(false),
        _ => Err(format!("must be true or false, but is {text:?}")),
    }
}

/// A secret that fits an `Authorization: Bearer` header.
fn header_secret(text: &str) -> Result<SecretString, String> {
    if text.bytes().all(|byte| byte.is_ascii_graphic()) {
        Ok(text.into())
    } else {
        Err("must be printable ASCII without white space, as it is sent in a header".to_owned())
    }
}

/// What stands between commas, at least one.
fn list<T>(text: &str, check: impl Fn(&str) -> Result<T, String>) -> Result<Vec<T>, String> {
    let items: Vec<T> = text
        .split(',')
        .map(str::trim)
        .filter(|item| !item.is_empty())
        .map(check)
        .collect::<Result<_, _>>()?;
    if items.is_empty() { Err("lists nothing".to_owned()) } else { Ok(items) }
}

/// An origin as a browser writes it in its `Origin` header (RFC 6454 section 6.2).
fn origin(text: &str) -> Result<String, String> {
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
fn network(text: &str) -> Result<IpNet, String> {
    let network = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    match network {
        Ok(network) => Ok(network.trunc()),
        Err(_) => {
            Err(format!("must list networks such as 10.0.0.0/8 or 2001:db8::/32, but {text:?} is not one"))
        }
    }
}

/// A STUN server (RFC 7064) as browsers take it: `stun:HOST[:PORT]` or `stuns:HOST[:PORT]`.
fn stun_url(text: &str) -> Result<String, String> {
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

fn log_format(text: &str) -> Result<LogFormat, String> {
    match text.to_ascii_lowercase().as_str() {
        "pretty" => Ok(LogFormat::Pretty),
        "json" => Ok(LogFormat::Json),
        "gcp" => Ok(LogFormat::Gcp),
        _ => Err(format!("must be pretty, json or gcp, but is {text:?}")),
    }
}

fn log_filter(text: &str) -> Result<String, String> {
    check_filter(text)?;
    Ok(text.to_owned())
}
