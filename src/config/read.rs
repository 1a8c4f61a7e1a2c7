//! From what was given to a checked configuration.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use super::parse::{
    DAY, address, collector, count, header_secret, list, log_filter, log_format, network, number, origin,
    port, redis_prefix, redis_url, size, stun_url, truth,
};
use super::table::{self, Setting};
use super::values::{Read, Values};
use super::{
    Config, Features, HealthCheck, Instance, Limits, Machine, Redis, RedisSource, RedisTls, Times, sign_in,
};
use crate::auth::settings::Issuer;
use crate::telemetry::{LogFormat, Settings, TraceSettings};

/// Where demos keep what they share, so that a real relay on the same Redis never meets them.
const DEMO_PREFIX: &str = "duo-demo";

/// Reads every field before the first `?`, so that no mistake hides another.
macro_rules! read {
    ($name:ident { $($field:ident: $read:expr),* $(,)? }) => {{
        $(let $field = $read;)*
        Ok($name { $($field: $field?),* })
    }};
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
        let url = values.optional(&table::REDIS_URL, redis_url)?;
        Ok(url.map(|url| Redis {
            source: RedisSource::Url(url),
            tls: RedisTls::default(),
            prefix: DEMO_PREFIX.to_owned(),
        }))
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
        features: features(values),
        limits: limits(values),
        workers: values
            .value_or(&table::WORKERS, machine.cores.max(1), |text| number(1..=1024)(text).map(size)),
        times: times(values),
        telemetry: telemetry(values, machine),
    })
}

fn telemetry(values: &mut Values, machine: Machine) -> Read<Settings> {
    let words = |text: &str| Ok(text.to_owned());
    let terminal = if machine.terminal { LogFormat::Pretty } else { LogFormat::Json };
    let endpoint = values.optional(&table::OTLP_ENDPOINT, collector);
    let service_name = values.optional(&table::OTEL_SERVICE_NAME, words);
    read!(Settings {
        format: values.value_or(&table::LOG_FORMAT, terminal, log_format),
        filter: values.value(&table::RUST_LOG, log_filter),
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
    let any =
        if machine.ipv6 { IpAddr::V6(Ipv6Addr::UNSPECIFIED) } else { IpAddr::V4(Ipv4Addr::UNSPECIFIED) };
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

fn features(values: &mut Values) -> Read<Features> {
    read!(Features {
        pacing: values.value(&table::PACING, truth),
        direct: values.value(&table::DIRECT, truth),
        stun_urls: values.value_or(&table::STUN_URLS, Vec::new(), |text| list(text, stun_url)),
    })
}

fn limits(values: &mut Values) -> Read<Limits> {
    let bytes = |text: &str| number(1..=1 << 30)(text).map(size);
    let limits: Limits = read!(Limits {
        max_connections: values.value(&table::MAX_CONNECTIONS, count),
        message_bytes: values.value(&table::MESSAGE_BYTES, bytes),
        queue_bytes: values.value(&table::QUEUE_BYTES, bytes),
        messages_per_second: values.value(&table::MESSAGES_PER_SECOND, count),
        bytes_per_second: values.value(&table::BYTES_PER_SECOND, count),
        handshakes_per_second_per_ip: values.value(&table::HANDSHAKES_PER_SECOND_PER_IP, count),
    })?;
    let Limits { message_bytes: message, queue_bytes: queue, .. } = limits;
    if message > queue {
        let problem = format!(
            "must be at least DUORELAY_MESSAGE_BYTES ({message}), or the largest message fits no queue, but is {queue}"
        );
        return Err(values.mistake(&table::QUEUE_BYTES, problem));
    }
    Ok(limits)
}

fn times(values: &mut Values) -> Read<Times> {
    let mut seconds = |setting: &'static Setting, range: RangeInclusive<u64>| {
        values.value(setting, number(range)).map(Duration::from_secs)
    };
    read!(Times {
        heartbeat: seconds(&table::HEARTBEAT_SECONDS, 1..=DAY),
        // Shorter than a backplane call may take (2 s), slots would end while they are being renewed.
        lease: seconds(&table::LEASE_SECONDS, 3..=DAY),
        drain_delay: seconds(&table::DRAIN_DELAY_SECONDS, 0..=DAY),
        drain: seconds(&table::DRAIN_SECONDS, 0..=DAY),
        max_lifetime: seconds(&table::MAX_LIFETIME_SECONDS, 0..=365 * DAY)
            .map(|lifetime| (!lifetime.is_zero()).then_some(lifetime)),
    })
}

fn redis(values: &mut Values) -> Read<Option<Redis>> {
    let url = values.optional(&table::REDIS_URL, redis_url);
    let mut file = |setting| values.optional(setting, |text| Ok(PathBuf::from(text)));
    let url_file = file(&table::REDIS_URL_FILE);
    let tls: Read<RedisTls> = read!(RedisTls {
        ca: file(&table::REDIS_CA),
        cert: file(&table::REDIS_CERT),
        key: file(&table::REDIS_KEY),
    });
    let prefix = values.value(&table::REDIS_PREFIX, redis_prefix);
    let (url, url_file, tls, prefix) = (url?, url_file?, tls?, prefix?);
    let source = match (url, url_file) {
        (Some(_), Some(_)) => {
            let problem = "must not be set beside REDIS_URL: one of them names the server";
            return Err(values.mistake(&table::REDIS_URL_FILE, problem));
        }
        (Some(url), None) => RedisSource::Url(url),
        (None, Some(file)) => RedisSource::File(file),
        (None, None) if tls == RedisTls::default() => return Ok(None),
        (None, None) => {
            let problem = "has no use without a Redis (REDIS_URL), as every certificate for it";
            return Err(values.mistake(&table::REDIS_CA, problem));
        }
    };
    Ok(Some(Redis { source, tls, prefix }))
}
