//! Every setting once: its variable, its flag, its default, its help.

/// One setting: an environment variable and a flag of the same meaning.
#[derive(Debug)]
pub(super) struct Setting {
    /// The environment variable, as documented.
    pub(super) variable: &'static str,
    /// The flag, without its two hyphens.
    pub(super) flag: &'static str,
    /// What stands for the flag's value in `--help`.
    pub(super) value_name: &'static str,
    /// What counts when neither the flag nor the variable is given.
    pub(super) fallback: Fallback,
    /// One line for `--help`.
    pub(super) help: &'static str,
    /// Where it stands in `--help`.
    pub(super) group: Group,
}

/// What counts when a setting is not given.
#[derive(Debug, Clone, Copy)]
pub(super) enum Fallback {
    /// This text, read like any other value.
    Value(&'static str),
    /// Something that depends on the machine or on another setting, in words.
    Words(&'static str),
    /// No default: the setting may be absent.
    Nothing,
}

/// A heading of `--help`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Group {
    Ports,
    SignIn,
    Backplane,
    Clients,
    Limits,
    Times,
    Process,
}

impl Group {
    /// The heading in `--help`.
    pub(super) const fn heading(self) -> &'static str {
        match self {
            Self::Ports => "Ports",
            Self::SignIn => "Sign-in (Firebase, its emulator, or any OpenID Connect issuer)",
            Self::Backplane => "Backplane (what joins instances)",
            Self::Clients => "Access",
            Self::Limits => "Limits",
            Self::Times => "Times",
            Self::Process => "Process and logs",
        }
    }

    /// The demo signs in by its own means and joins others only by a flag. So no variable of the environment
    /// makes it touch real users or a real Redis.
    pub(super) const fn is_for_demo(self) -> bool {
        !matches!(self, Self::SignIn | Self::Backplane)
    }
}

use Fallback::{Nothing, Value, Words};
use Group::{Backplane, Clients, Limits, Ports, Process, SignIn, Times};

macro_rules! settings {
    ($($name:ident = ($group:expr, $variable:literal, $flag:literal, $value_name:literal, $fallback:expr, $help:literal);)*) => {
        $(pub(super) static $name: Setting = Setting {
            group: $group, variable: $variable, flag: $flag, value_name: $value_name, fallback: $fallback, help: $help,
        };)*
        /// All settings, in the order of `--help`.
        pub(super) static ALL: &[&Setting] = &[$(&$name),*];
    };
}

settings! {
    PORT = (Ports, "PORT", "port", "PORT", Value("3000"), "Public port, on all addresses (IPv4 and IPv6)");
    LISTEN = (Ports, "DUORELAY_LISTEN", "listen", "IP:PORT", Words("every address, at PORT"), "Public address and port");
    ADMIN_LISTEN = (Ports, "DUORELAY_ADMIN_LISTEN", "admin-listen", "IP:PORT", Value("127.0.0.1:9091"), "Metrics and operator calls");
    ADMIN_TOKEN = (Ports, "DUORELAY_ADMIN_TOKEN", "admin-token", "TOKEN", Words("none, so no operator calls"), "Secret of operators");

    FIREBASE_PROJECT_ID = (SignIn, "FIREBASE_PROJECT_ID", "firebase-project-id", "ID", Words("the credentials file's"), "The project of the users");
    CREDENTIALS = (SignIn, "GOOGLE_APPLICATION_CREDENTIALS", "google-application-credentials", "FILE", Nothing, "Service account's file, to check revocation");
    METADATA_HOST = (SignIn, "GCE_METADATA_HOST", "gce-metadata-host", "HOST", Words("Google's there"), "Its metadata server, in place of a file");
    EMULATOR = (SignIn, "FIREBASE_AUTH_EMULATOR_HOST", "firebase-auth-emulator-host", "HOST:PORT", Nothing, "Accept this emulator's unsigned tokens");
    ISSUER = (SignIn, "DUORELAY_ISSUER", "issuer", "ISS", Words("Firebase's"), "Another OpenID Connect issuer");
    AUDIENCE = (SignIn, "DUORELAY_AUDIENCE", "audience", "AUD", Words("Firebase's"), "Its tokens' audience");
    JWKS_URL = (SignIn, "DUORELAY_JWKS_URL", "jwks-url", "URL", Words("Firebase's"), "Where the signing keys come from");
    CHECK_REVOKED = (SignIn, "DUORELAY_CHECK_REVOKED", "check-revoked", "BOOL", Value("false"), "Refuse revoked sessions and disabled users");
    REVOCATION_SECONDS = (SignIn, "DUORELAY_REVOCATION_SECONDS", "revocation-seconds", "SECONDS", Value("180"), "How often it asks about open sockets");
    ENFORCE_EXPIRY = (SignIn, "DUORELAY_ENFORCE_EXPIRY", "enforce-expiry", "BOOL", Value("true"), "Close when the token expires");

    REDIS_URL = (Backplane, "REDIS_URL", "redis-url", "URL", Words("in memory"), "redis://, redis-cluster:// or redis-sentinel://");
    REDIS_URL_FILE = (Backplane, "REDIS_URL_FILE", "redis-url-file", "FILE", Nothing, "A file with the URL, read at each connection");
    REDIS_CA = (Backplane, "DUORELAY_REDIS_CA", "redis-ca", "FILE", Words("the system's"), "More roots for Redis's certificate (PEM)");
    REDIS_CERT = (Backplane, "DUORELAY_REDIS_CERT", "redis-cert", "FILE", Nothing, "A client certificate for Redis (PEM)");
    REDIS_KEY = (Backplane, "DUORELAY_REDIS_KEY", "redis-key", "FILE", Nothing, "Its key (PEM)");
    REDIS_PREFIX = (Backplane, "DUORELAY_REDIS_PREFIX", "redis-prefix", "PREFIX", Value("duo"), "Start of all keys and channels");

    ALLOWED_ORIGINS = (Clients, "DUORELAY_ALLOWED_ORIGINS", "allowed-origins", "ORIGINS", Words("any"), "Origins whose pages may connect");
    PACING = (Clients, "DUORELAY_PACING", "pacing", "BOOL", Value("true"), "Let clients report what they have received");
    DIRECT = (Clients, "DUORELAY_DIRECT", "direct", "BOOL", Value("true"), "Let clients arrange a direct path");
    STUN_URLS = (Clients, "DUORELAY_STUN_URLS", "stun-urls", "URLS", Words("none"), "STUN servers for direct paths");
    TRUSTED_PROXIES = (Clients, "DUORELAY_TRUSTED_PROXIES", "trusted-proxies", "CIDRS", Words("none"), "Networks whose X-Forwarded-For is believed");

    MAX_CONNECTIONS = (Limits, "DUORELAY_MAX_CONNECTIONS", "max-connections", "N", Value("100000"), "Open connections; 0: any number");
    MESSAGE_BYTES = (Limits, "DUORELAY_MESSAGE_BYTES", "message-bytes", "BYTES", Value("65536"), "The largest message");
    QUEUE_BYTES = (Limits, "DUORELAY_QUEUE_BYTES", "queue-bytes", "BYTES", Value("1048576"), "What may wait for one receiver");
    MESSAGES_PER_SECOND = (Limits, "DUORELAY_MESSAGES_PER_SECOND", "messages-per-second", "N", Value("240"), "From one connection; 0: any number");
    BYTES_PER_SECOND = (Limits, "DUORELAY_BYTES_PER_SECOND", "bytes-per-second", "BYTES", Value("1048576"), "From one connection; 0: any number");
    HANDSHAKES_PER_SECOND_PER_IP = (Limits, "DUORELAY_HANDSHAKES_PER_SECOND_PER_IP", "handshakes-per-second-per-ip", "N", Value("20"), "From one address; 0: any");

    HEARTBEAT_SECONDS = (Times, "DUORELAY_HEARTBEAT_SECONDS", "heartbeat-seconds", "SECONDS", Value("25"), "Silence before a ping");
    LEASE_SECONDS = (Times, "DUORELAY_LEASE_SECONDS", "lease-seconds", "SECONDS", Value("45"), "How long a lost instance holds its slots");
    DRAIN_DELAY_SECONDS = (Times, "DUORELAY_DRAIN_DELAY_SECONDS", "drain-delay-seconds", "SECONDS", Value("5"), "From SIGTERM to the drain");
    DRAIN_SECONDS = (Times, "DUORELAY_DRAIN_SECONDS", "drain-seconds", "SECONDS", Value("20"), "Over which connections move away");
    MAX_LIFETIME_SECONDS = (Times, "DUORELAY_MAX_LIFETIME_SECONDS", "max-lifetime-seconds", "SECONDS", Value("2700"), "When a socket must move; 0: never");

    WORKERS = (Process, "DUORELAY_WORKERS", "workers", "N", Words("the usable cores, at most 4"), "Worker threads");
    LOG_FORMAT = (Process, "LOG_FORMAT", "log-format", "FORMAT", Words("pretty on a terminal, else json"), "pretty, json or gcp");
    RUST_LOG = (Process, "RUST_LOG", "rust-log", "FILTER", Value("info"), "Levels, such as info,duorelay=debug");
    GOOGLE_CLOUD_PROJECT = (Process, "GOOGLE_CLOUD_PROJECT", "google-cloud-project", "ID", Words("Firebase's"), "Project of traces in gcp logs");
    OTLP_ENDPOINT = (Process, "OTEL_EXPORTER_OTLP_ENDPOINT", "otel-exporter-otlp-endpoint", "URL", Nothing, "Where traces go (OTLP)");
    OTEL_SERVICE_NAME = (Process, "OTEL_SERVICE_NAME", "otel-service-name", "NAME", Words("duorelay"), "Name in traces");
}
