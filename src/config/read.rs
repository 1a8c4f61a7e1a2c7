//! From what was given to a checked configuration.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use super::parse::{
    DAY, address, count, header_secret, list, network, number, origin, port, seconds, stun_url, truth,
};
use super::table;
use super::values::{Read, Values};
use super::{Config, HealthCheck, Instance, Machine, Redis, RedisSource, RedisTls, sign_in};
use crate::auth::settings::Issuer;
use crate::backplane::redis::{check_prefix, check_redis_url};
use crate::telemetry::{LogFormat, Settings, TraceSettings, check_filter, collector};

/// Where demos keep what they share, so that a real relay on the same Redis never meets them.
const DEMO_PREFIX: &str = "duo-demo";

/// Workers by default, at most. Each costs memory and connections to Redis, and a node without a limit may have 64 cores.
const MOST_WORKERS: usize = 4;

const TWO_URLS: &str = "must not be set beside REDIS_URL: one of them names the server";
const NO_REDIS: &str = "has no use without a Redis (REDIS_URL), as every certificate for it";

/// Reads every field before the first `?`, so that no mistake hides another.
macro_rules! read {
    ($name:ident { $($field:ident: $read:expr),* $(,)? }) => {{
        $(let $field = $read;)*
        Ok($name { $($field: $field?),* })
    }};
}

/// A part of the settings: its fields, each with the setting that it comes from and how that is read.
macro_rules! part {
    ($(#[$doc:meta])* $name:ident {
        $($(#[$of:meta])* $field:ident: $type:ty = $read:ident($setting:ident, $($how:expr),+);)*
    }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct $name { $($(#[$of])* pub $field: $type,)* }
        impl $name {
            fn read(values: &mut Values) -> Read<Self> {
                read!($name { $($field: values.$read(&table::$setting, $($how),+)),* })
            }
        }
    };
}

part! {
    /// What clients are offered beyond the first version of the protocol.
    Features {
        /// They may report what they have received.
        pacing: bool = value(PACING, truth);
        /// They may arrange a direct path.
        direct: bool = value(DIRECT, truth);
        /// STUN servers for it.
        stun_urls: Vec<String> = value_or(STUN_URLS, Vec::new(), |text| list(text, stun_url));
    }
}

part! {
    /// What clients may use; `None` is no limit.
    Limits {
        /// Open connections on this instance.
        max_connections: Option<u32> = value(MAX_CONNECTIONS, count);
        /// One whole message, in bytes, still allowed.
        message_bytes: usize = value(MESSAGE_BYTES, number(1..=1 << 30));
        /// What may wait for one receiver, in bytes; at least [`Self::message_bytes`].
        queue_bytes: usize = value(QUEUE_BYTES, number(1..=1 << 30));
        /// Text and binary messages from one connection, with a burst of one second.
        messages_per_second: Option<u32> = value(MESSAGES_PER_SECOND, count);
        /// Bytes from one connection, with a burst of four seconds.
        bytes_per_second: Option<u32> = value(BYTES_PER_SECOND, count);
        /// Handshakes from one client address.
        handshakes_per_second_per_ip: Option<u32> = value(HANDSHAKES_PER_SECOND_PER_IP, count);
    }
}

part! {
    /// How long things last.
    Times {
        /// Silence after which a connection is pinged; after two of them it is dropped.
        heartbeat: Duration = value(HEARTBEAT_SECONDS, seconds(1..=DAY));
        /// How long an instance that is gone still holds its slots. Shorter than a backplane call may take (2 s), slots would
        /// end while they are being renewed.
        lease: Duration = value(LEASE_SECONDS, seconds(3..=DAY));
        /// From SIGTERM until handshakes are refused.
        drain_delay: Duration = value(DRAIN_DELAY_SECONDS, seconds(0..=DAY));
        /// Over which the connections are asked to move.
        drain: Duration = value(DRAIN_SECONDS, seconds(0..=DAY));
        /// After which a connection is asked to move; never without.
        max_lifetime: Option<Duration> = value(MAX_LIFETIME_SECONDS, |text| {
            seconds(0..=365 * DAY)(text).map(|lifetime| (!lifetime.is_zero()).then_some(lifetime))
        });
    }
}

/// Everything that `duorelay serve` needs.
pub(super) fn serve(values: &mut Values, machine: Machine) -> Read<Config> {
    let mut config: Config = read!(Config {
        instance: instance(values, machine, redis),
        auth: sign_in::read(values, machine),
        enforce_expiry: values.value(&table::ENFORCE_EXPIRY, truth),
    })?;
    if let Issuer::Firebase { project_id, .. } | Issuer::Emulator { project_id, .. } = &config.auth.issuer {
        config.instance.telemetry.project.get_or_insert_with(|| project_id.clone());
    }
    Ok(config)
}

/// Everything that `duorelay demo` needs.
pub(super) fn demo(values: &mut Values, machine: Machine) -> Read<Instance> {
    instance(values, machine, |values| {
        // Not by its variable, which may name a real Redis.
        if !values.is_flag(&table::REDIS_URL) {
            return Ok(None);
        }
        let (tls, prefix) = (RedisTls::default(), DEMO_PREFIX.to_owned());
        let source = values.optional(&table::REDIS_URL, check_redis_url)?.map(RedisSource::Url);
        Ok(source.map(|source| Redis { source, tls, prefix }))
    })
}

fn instance(
    values: &mut Values,
    machine: Machine,
    redis: impl FnOnce(&mut Values) -> Read<Option<Redis>>,
) -> Read<Instance> {
    let addresses = addresses(values, machine);
    read!(Instance {
        listen: addresses.map(|(listen, _)| listen),
        admin_listen: addresses.map(|(_, admin_listen)| admin_listen),
        admin_token: values.optional(&table::ADMIN_TOKEN, header_secret),
        redis: redis(values),
        allowed_origins: values.optional(&table::ALLOWED_ORIGINS, |text| list(text, origin)),
        trusted_proxies: values.value_or(&table::TRUSTED_PROXIES, Vec::new(), |text| list(text, network)),
        features: Features::read(values),
        limits: limits(values),
        workers: values.value_or(&table::WORKERS, machine.cores.clamp(1, MOST_WORKERS), number(1..=1024)),
        times: Times::read(values),
        telemetry: telemetry(values, machine),
    })
}

fn telemetry(values: &mut Values, machine: Machine) -> Read<Settings> {
    let words = |text: &str| Ok(text.to_owned());
    let terminal = if machine.terminal { LogFormat::Pretty } else { LogFormat::Json };
    let endpoint = values.optional(&table::OTLP_ENDPOINT, collector);
    let service_name = values.optional(&table::OTEL_SERVICE_NAME, words);
    read!(Settings {
        format: values.value_or(&table::LOG_FORMAT, terminal, LogFormat::parse),
        filter: values.value(&table::RUST_LOG, check_filter),
        project: values.optional(&table::GOOGLE_CLOUD_PROJECT, words),
        traces: service_name
            .and_then(|service_name| Ok(endpoint?.map(|endpoint| TraceSettings { endpoint, service_name }))),
    })
}

/// Everything that `duorelay health` needs.
pub(super) fn health(values: &mut Values, machine: Machine, path: &'static str) -> Read<HealthCheck> {
    addresses(values, machine).map(|(listen, _)| HealthCheck { listen, path })
}

fn addresses(values: &mut Values, machine: Machine) -> Read<(SocketAddr, SocketAddr)> {
    let any: IpAddr = if machine.ipv6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    let at_port = values.value(&table::PORT, port);
    let at_address = values.optional(&table::LISTEN, address);
    let admin_listen = values.value(&table::ADMIN_LISTEN, address)?;

    // A port on the command line was meant; an address that the environment happens to have was not.
    let port_flag_wins = values.is_flag(&table::PORT) && !values.is_flag(&table::LISTEN);
    let at_port = SocketAddr::new(any, at_port?);
    let listen = at_address?.filter(|_| !port_flag_wins).unwrap_or(at_port);

    let meet = listen.ip() == admin_listen.ip()
        || listen.ip().is_unspecified()
        || admin_listen.ip().is_unspecified();
    if meet && listen.port() != 0 && listen.port() == admin_listen.port() {
        let problem = format!("must differ from the public address {listen}, but is {admin_listen}");
        return Err(values.mistake(&table::ADMIN_LISTEN, problem));
    }
    Ok((listen, admin_listen))
}

fn limits(values: &mut Values) -> Read<Limits> {
    let limits = Limits::read(values)?;
    let (message, queue) = (limits.message_bytes, limits.queue_bytes);
    if message > queue {
        let problem = format!(
            "must be at least DUORELAY_MESSAGE_BYTES ({message}), or the largest message fits no queue, but is {queue}"
        );
        return Err(values.mistake(&table::QUEUE_BYTES, problem));
    }
    Ok(limits)
}

fn redis(values: &mut Values) -> Read<Option<Redis>> {
    let url = values.optional(&table::REDIS_URL, check_redis_url);
    let mut file = |setting| values.optional(setting, |text| Ok(PathBuf::from(text)));
    let url_file = file(&table::REDIS_URL_FILE);
    let tls: Read<RedisTls> = read!(RedisTls {
        ca: file(&table::REDIS_CA),
        cert: file(&table::REDIS_CERT),
        key: file(&table::REDIS_KEY),
    });
    let prefix = values.value(&table::REDIS_PREFIX, check_prefix);
    let (url, url_file, tls, prefix) = (url?, url_file?, tls?, prefix?);
    let source = match (url, url_file) {
        (Some(_), Some(_)) => return Err(values.mistake(&table::REDIS_URL_FILE, TWO_URLS)),
        (Some(url), None) => RedisSource::Url(url),
        (None, Some(file)) => RedisSource::File(file),
        (None, None) if tls == RedisTls::default() => return Ok(None),
        (None, None) => return Err(values.mistake(&table::REDIS_CA, NO_REDIS)),
    };
    Ok(Some(Redis { source, tls, prefix }))
}
