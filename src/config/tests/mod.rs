//! The configuration against the contract, with an environment made up here.

mod command_line;
mod sign_in;

use std::io::Write as _;
use std::time::Duration;

use secrecy::ExposeSecret as _;
use tempfile::NamedTempFile;

use super::table::ALL;
use super::*;
use crate::auth::settings::Issuer;
use crate::telemetry::LogFormat;

const MACHINE: Machine = Machine { terminal: false, cores: 6, ipv6: true, google: false };
const PROJECT: (&str, &str) = ("FIREBASE_PROJECT_ID", "my-project");

fn load_on(machine: Machine, arguments: &[&str], environment: &[(&str, &str)]) -> Result<Launch, Stop> {
    let arguments = std::iter::once("duorelay").chain(arguments.iter().copied()).map(OsString::from);
    load(
        arguments,
        environment.iter().map(|(name, value)| (name.into(), value.into())),
        machine,
        Additions::default(),
    )
}

fn launch(arguments: &[&str], environment: &[(&str, &str)]) -> Launch {
    load_on(MACHINE, arguments, environment).unwrap()
}

/// `duorelay` with nothing but a project and these variables.
fn config(environment: &[(&str, &str)]) -> Config {
    let environment: Vec<_> = std::iter::once(PROJECT).chain(environment.iter().copied()).collect();
    match launch(&[], &environment).command {
        Command::Serve(config) => *config,
        other => panic!("{other:?}"),
    }
}

fn demo(arguments: &[&str], environment: &[(&str, &str)]) -> Instance {
    let arguments: Vec<_> = std::iter::once("demo").chain(arguments.iter().copied()).collect();
    match launch(&arguments, environment).command {
        Command::Demo(instance, _) => *instance,
        other => panic!("{other:?}"),
    }
}

/// The lines of the report that name mistakes.
fn mistakes(arguments: &[&str], environment: &[(&str, &str)]) -> Vec<String> {
    match load_on(MACHINE, arguments, environment) {
        Err(Stop::Mistakes(mistakes)) => mistakes.iter().map(ToString::to_string).collect(),
        other => panic!("{other:?}"),
    }
}

/// The one mistake of `duorelay` with a project and this variable.
fn mistake(variable: &str, value: &str) -> String {
    let mut all = mistakes(&[], &[PROJECT, (variable, value)]);
    assert_eq!(all.len(), 1, "{all:?}");
    all.remove(0)
}

fn help(command: &str) -> String {
    match load_on(MACHINE, &[command, "--help"], &[]) {
        Err(Stop::CommandLine(error)) => error.render().to_string(),
        other => panic!("{other:?}"),
    }
}

/// The URL of a Redis that is named by its URL.
fn url(redis: &Redis) -> &str {
    match &redis.source {
        RedisSource::Url(url) => url.expose_secret(),
        RedisSource::File(path) => panic!("{}", path.display()),
    }
}

fn file(content: &str) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(content.as_bytes()).unwrap();
    file
}

/// A service account's file with a key that was made for this test.
fn service_account() -> NamedTempFile {
    use aws_lc_rs::encoding::{AsDer as _, Pkcs8V1Der};
    use base64::Engine as _;
    let key = aws_lc_rs::rsa::KeyPair::generate(aws_lc_rs::rsa::KeySize::Rsa2048).unwrap();
    let der: Pkcs8V1Der<'_> = key.as_der().unwrap();
    let base64 = base64::engine::general_purpose::STANDARD.encode(der.as_ref());
    let content = serde_json::json!({
        "type": "service_account",
        "project_id": "from-file",
        "private_key_id": "key-1",
        "private_key": format!("-----BEGIN PRIVATE KEY-----\n{base64}\n-----END PRIVATE KEY-----\n"),
        "client_email": "relay@from-file.iam.gserviceaccount.com",
        "token_uri": "https://oauth2.googleapis.com/token",
    });
    file(&content.to_string())
}

#[test]
fn defaults_are_those_of_the_contract() {
    let config = config(&[]);
    assert_eq!(config.instance.listen.to_string(), "[::]:3000");
    assert_eq!(config.instance.admin_listen.to_string(), "127.0.0.1:9091");
    assert!(config.instance.admin_token.is_none());
    assert!(config.instance.redis.is_none());
    assert!(config.auth.revocation.is_none());
    assert!(config.enforce_expiry);
    assert_eq!(config.instance.allowed_origins, None);
    assert_eq!(config.instance.trusted_proxies, []);
    assert_eq!(config.instance.features, Features { pacing: true, direct: true, stun_urls: Vec::new() });
    assert_eq!(
        config.instance.limits,
        Limits {
            max_connections: Some(100_000),
            message_bytes: 65_536,
            queue_bytes: 1_048_576,
            messages_per_second: Some(240),
            bytes_per_second: Some(1_048_576),
            handshakes_per_second_per_ip: Some(20),
        }
    );
    assert_eq!(config.instance.workers, 4, "of 6 cores");
    assert_eq!(
        config.instance.times,
        Times {
            heartbeat: Duration::from_secs(25),
            lease: Duration::from_secs(45),
            drain_delay: Duration::from_secs(5),
            drain: Duration::from_secs(20),
            max_lifetime: Some(Duration::from_secs(2700)),
        }
    );
    assert_eq!(config.instance.telemetry.format, LogFormat::Json);
    assert_eq!(config.instance.telemetry.filter, "info");
    let Issuer::Firebase { project_id, jwks_url: None } = config.auth.issuer else { panic!() };
    assert_eq!(project_id, "my-project");
}

#[test]
fn redis_prefix_defaults_to_duo() {
    let redis = config(&[("REDIS_URL", "redis://127.0.0.1")]).instance.redis.unwrap();
    assert_eq!((url(&redis), redis.prefix.as_str()), ("redis://127.0.0.1", "duo"));
}

#[test]
fn logs_are_pretty_on_a_terminal_only() {
    let terminal = Machine { terminal: true, ..MACHINE };
    assert_eq!(load_on(terminal, &[], &[PROJECT]).unwrap().telemetry().unwrap().format, LogFormat::Pretty);
    assert_eq!(
        load_on(terminal, &[], &[PROJECT, ("LOG_FORMAT", "gcp")]).unwrap().telemetry().unwrap().format,
        LogFormat::Gcp
    );
    assert_eq!(config(&[("LOG_FORMAT", "pretty")]).instance.telemetry.format, LogFormat::Pretty);
}

#[test]
fn every_variable_and_every_flag_has_its_effect() {
    let base = format!("{:?}", config(&[]));
    let effects = [
        ("PORT", "4000"),
        ("DUORELAY_LISTEN", "127.0.0.1:4000"),
        ("DUORELAY_ADMIN_LISTEN", "0.0.0.0:9999"),
        ("DUORELAY_ADMIN_TOKEN", "s3cret"),
        ("REDIS_URL", "rediss://user:pass@redis.example.com:6380/3"),
        ("DUORELAY_JWKS_URL", "http://127.0.0.1:8080/keys"),
        ("DUORELAY_ENFORCE_EXPIRY", "false"),
        ("DUORELAY_ALLOWED_ORIGINS", "https://app.example.com"),
        ("DUORELAY_TRUSTED_PROXIES", "10.0.0.0/8"),
        ("DUORELAY_MAX_CONNECTIONS", "7"),
        ("DUORELAY_MESSAGE_BYTES", "7"),
        ("DUORELAY_QUEUE_BYTES", "70000"),
        ("DUORELAY_MESSAGES_PER_SECOND", "7"),
        ("DUORELAY_HANDSHAKES_PER_SECOND_PER_IP", "7"),
        ("DUORELAY_WORKERS", "7"),
        ("DUORELAY_HEARTBEAT_SECONDS", "7"),
        ("DUORELAY_LEASE_SECONDS", "7"),
        ("DUORELAY_DRAIN_DELAY_SECONDS", "7"),
        ("DUORELAY_DRAIN_SECONDS", "7"),
        ("DUORELAY_MAX_LIFETIME_SECONDS", "7"),
        ("LOG_FORMAT", "gcp"),
        ("RUST_LOG", "warn"),
    ];
    for (variable, value) in effects {
        let by_variable = config(&[(variable, value)]);
        assert_ne!(format!("{by_variable:?}"), base, "{variable}");
        let setting = ALL.iter().find(|setting| setting.variable == variable).unwrap();
        let flag = format!("--{}={value}", setting.flag);
        let by_flag = launch(&["serve", &flag], &[PROJECT]).command;
        assert_eq!(format!("{by_flag:?}"), format!("Serve({by_variable:?})"), "{variable}");
    }
}

#[test]
fn all_mistakes_are_reported_together_with_their_variables() {
    let environment = [
        ("PORT", "http"),
        ("DUORELAY_LISTEN", "localhost"),
        ("DUORELAY_ADMIN_LISTEN", "9091"),
        ("DUORELAY_ADMIN_TOKEN", "two words"),
        ("REDIS_URL", "http://127.0.0.1"),
        ("DUORELAY_REDIS_PREFIX", "a{b}"),
        ("DUORELAY_ISSUER", "https://id.example.com"),
        ("GOOGLE_APPLICATION_CREDENTIALS", "/does/not/exist.json"),
        ("DUORELAY_CHECK_REVOKED", "maybe"),
        ("DUORELAY_REVOCATION_SECONDS", "0"),
        ("DUORELAY_ENFORCE_EXPIRY", "2"),
        ("DUORELAY_ALLOWED_ORIGINS", "null"),
        ("DUORELAY_TRUSTED_PROXIES", "proxy"),
        ("DUORELAY_MAX_CONNECTIONS", "-1"),
        ("DUORELAY_MESSAGE_BYTES", "0"),
        ("DUORELAY_QUEUE_BYTES", "0"),
        ("DUORELAY_MESSAGES_PER_SECOND", "many"),
        ("DUORELAY_HANDSHAKES_PER_SECOND_PER_IP", "1.5"),
        ("DUORELAY_WORKERS", "0"),
        ("DUORELAY_HEARTBEAT_SECONDS", "0"),
        ("DUORELAY_LEASE_SECONDS", "2"),
        ("DUORELAY_DRAIN_DELAY_SECONDS", "5s"),
        ("DUORELAY_DRAIN_SECONDS", "-5"),
        ("DUORELAY_MAX_LIFETIME_SECONDS", "1h"),
        ("LOG_FORMAT", "xml"),
        ("RUST_LOG", "duorelay=loud"),
    ];
    let lines = mistakes(&[], &environment);
    for (variable, _) in environment.iter().filter(|(variable, _)| *variable != "DUORELAY_ISSUER") {
        let of_it = lines.iter().filter(|line| line.starts_with(&format!("{variable}: "))).count();
        assert_eq!(of_it, 1, "{variable} in {lines:#?}");
    }
    for missing in ["DUORELAY_AUDIENCE: is missing", "DUORELAY_JWKS_URL: is missing"] {
        assert!(lines.iter().any(|line| line.starts_with(missing)), "{missing} in {lines:#?}");
    }
    assert!(lines.iter().all(|line| !line.contains('\n')), "{lines:#?}");

    let stop = load_on(MACHINE, &[], &environment).unwrap_err();
    assert_eq!(stop.exit_code(), 2);
    assert_eq!(stop.to_string().lines().count(), 1 + lines.len());
}

#[test]
fn listen_wins_over_port_except_over_a_port_flag() {
    let listen = ("DUORELAY_LISTEN", "127.0.0.1:5000");
    assert_eq!(config(&[("PORT", "4000"), listen]).instance.listen.to_string(), "127.0.0.1:5000");
    for (arguments, expected) in [
        (&["--port=4000"][..], "[::]:4000"),
        (&["--port=4000", "--listen=127.0.0.2:6000"][..], "127.0.0.2:6000"),
    ] {
        let Command::Serve(config) = launch(arguments, &[PROJECT, listen]).command else { panic!() };
        assert_eq!(config.instance.listen.to_string(), expected);
    }
}

#[test]
fn port_listens_on_ipv4_where_there_is_no_ipv6() {
    let launch = load_on(Machine { ipv6: false, ..MACHINE }, &[], &[PROJECT, ("PORT", "8080")]).unwrap();
    let Command::Serve(config) = launch.command else { panic!() };
    assert_eq!(config.instance.listen.to_string(), "0.0.0.0:8080");
}

#[test]
fn admin_port_must_differ_from_the_public_port() {
    assert!(mistake("PORT", "9091").starts_with("DUORELAY_ADMIN_LISTEN: must differ"));
    config(&[("DUORELAY_LISTEN", "127.0.0.2:9091")]);
    config(&[("DUORELAY_LISTEN", "127.0.0.1:0"), ("DUORELAY_ADMIN_LISTEN", "127.0.0.1:0")]);
}

#[test]
fn zero_is_no_limit_for_counts_and_lifetime() {
    let config = config(&[
        ("DUORELAY_MAX_CONNECTIONS", "0"),
        ("DUORELAY_MESSAGES_PER_SECOND", "0"),
        ("DUORELAY_HANDSHAKES_PER_SECOND_PER_IP", "0"),
        ("DUORELAY_MAX_LIFETIME_SECONDS", "0"),
        ("DUORELAY_DRAIN_SECONDS", "0"),
    ]);
    let Limits { max_connections, messages_per_second, handshakes_per_second_per_ip, .. } =
        config.instance.limits;
    assert_eq!((max_connections, messages_per_second, handshakes_per_second_per_ip), (None, None, None));
    assert_eq!((config.instance.times.max_lifetime, config.instance.times.drain), (None, Duration::ZERO));
}

#[test]
fn the_largest_message_must_fit_into_the_queue() {
    config(&[("DUORELAY_MESSAGE_BYTES", "1048576")]);
    let line = mistake("DUORELAY_MESSAGE_BYTES", "1048577");
    assert!(
        line.starts_with("DUORELAY_QUEUE_BYTES: must be at least DUORELAY_MESSAGE_BYTES (1048577)"),
        "{line}"
    );
}

#[test]
fn redis_urls_are_checked_and_never_repeated() {
    for good in [
        "redis://127.0.0.1",
        "redis://:p%40ss@redis:6379/15",
        "rediss://user:pass@redis.example.com:6380",
        "redis-cluster://user:pass@a:7000?node=b:7001&node=c:7002",
        "rediss-cluster://a:7000",
        "redis-sentinel://user:pass@s1:26379?sentinelServiceName=main&node=s2:26379",
        "rediss-sentinel://s1:26379/1?sentinelServiceName=main",
        "redis://[::1]:6379",
    ] {
        let redis = config(&[("REDIS_URL", good)]).instance.redis.unwrap();
        assert_eq!(url(&redis), good);
        fred::types::config::Config::from_url(good).unwrap();
    }
    for bad in [
        "hunter2",
        "127.0.0.1:6379",
        "http://:hunter2@redis",
        "redis://",
        "redis://:hunter2@",
        "redis:hunter2",
        "redis:///hunter2",
        "redis://:hunter2@redis:99999",
        "redis://:hunter2@redis:0",
        "redis://:hunter2@redis/zero",
        "redis://:hunter2@redis/256",
        "redis://:hunter2@redis/1/",
        "redis-cluster://:hunter2@redis/1",
        "redis-cluster://:hunter2@redis?node=b",
        "redis-sentinel://:hunter2@redis",
        "redis-sentinel://:hunter2@redis?sentinelServiceName=",
        "redis+unix:///hunter2",
    ] {
        let line = mistake("REDIS_URL", bad);
        assert!(line.starts_with("REDIS_URL: ") && !line.contains("hunter2"), "{line}");
    }
}

#[test]
fn stun_servers_are_written_as_browsers_take_them() {
    let list = "stun:stun.example.org, stuns:[2001:db8::1]:5349";
    assert_eq!(
        config(&[("DUORELAY_STUN_URLS", list)]).instance.features.stun_urls,
        ["stun:stun.example.org", "stuns:[2001:db8::1]:5349"]
    );
    for bad in [
        "stun.example.org",
        "turn:relay.example.org",
        "stun://stun.example.org",
        "stun:",
        "stun:host:port",
        "stun:host:65536",
        "stun:user@host",
        "stun:host?transport=udp",
        "stun:host/",
    ] {
        let mistake = mistake("DUORELAY_STUN_URLS", bad);
        assert!(mistake.contains("must list STUN servers"), "{bad}: {mistake}");
    }
}

#[test]
fn origins_are_written_as_browsers_write_them() {
    let text =
        " https://App.Example.com , http://localhost:8080,https://a.example:443/,capacitor://localhost,";
    assert_eq!(
        config(&[("DUORELAY_ALLOWED_ORIGINS", text)]).instance.allowed_origins.unwrap(),
        ["https://app.example.com", "http://localhost:8080", "https://a.example", "capacitor://localhost"]
    );
    for bad in [
        "null",
        "*",
        "https://*.example.com",
        "app.example.com",
        "https://a.example/path",
        "https://a.example?q",
        "file:///",
        ",",
    ] {
        assert!(mistake("DUORELAY_ALLOWED_ORIGINS", bad).contains("list"), "{bad}");
    }
    assert!(!mistake("DUORELAY_ALLOWED_ORIGINS", "https://user:hunter2@a.example").contains("hunter2"));
}

#[test]
fn trusted_proxies_are_networks_or_addresses() {
    let config = config(&[("DUORELAY_TRUSTED_PROXIES", "10.1.2.3/8, 192.0.2.7,2001:db8::1/32")]);
    let texts: Vec<_> = config.instance.trusted_proxies.iter().map(ToString::to_string).collect();
    assert_eq!(texts, ["10.0.0.0/8", "192.0.2.7/32", "2001:db8::/32"]);
    assert!(mistake("DUORELAY_TRUSTED_PROXIES", "10.0.0.0/33").contains("10.0.0.0/33"));
}
