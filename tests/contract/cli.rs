//! Section 6: the command line and the configuration.

use std::process::{Command, Output};
use std::time::Duration;

use serde_json::Value;

use crate::support::{Config, Issuer, PROJECT, Token, free_address};

/// Every setting of section 6: its flag and its variable.
const SETTINGS: &[(&str, &str)] = &[
    ("--port", "PORT"),
    ("--listen", "DUORELAY_LISTEN"),
    ("--admin-listen", "DUORELAY_ADMIN_LISTEN"),
    ("--admin-token", "DUORELAY_ADMIN_TOKEN"),
    ("--redis-url", "REDIS_URL"),
    ("--redis-prefix", "DUORELAY_REDIS_PREFIX"),
    ("--firebase-project-id", "FIREBASE_PROJECT_ID"),
    ("--google-application-credentials", "GOOGLE_APPLICATION_CREDENTIALS"),
    ("--firebase-auth-emulator-host", "FIREBASE_AUTH_EMULATOR_HOST"),
    ("--issuer", "DUORELAY_ISSUER"),
    ("--audience", "DUORELAY_AUDIENCE"),
    ("--jwks-url", "DUORELAY_JWKS_URL"),
    ("--check-revoked", "DUORELAY_CHECK_REVOKED"),
    ("--revocation-seconds", "DUORELAY_REVOCATION_SECONDS"),
    ("--enforce-expiry", "DUORELAY_ENFORCE_EXPIRY"),
    ("--allowed-origins", "DUORELAY_ALLOWED_ORIGINS"),
    ("--trusted-proxies", "DUORELAY_TRUSTED_PROXIES"),
    ("--max-connections", "DUORELAY_MAX_CONNECTIONS"),
    ("--message-bytes", "DUORELAY_MESSAGE_BYTES"),
    ("--queue-bytes", "DUORELAY_QUEUE_BYTES"),
    ("--messages-per-second", "DUORELAY_MESSAGES_PER_SECOND"),
    ("--handshakes-per-second-per-ip", "DUORELAY_HANDSHAKES_PER_SECOND_PER_IP"),
    ("--workers", "DUORELAY_WORKERS"),
    ("--heartbeat-seconds", "DUORELAY_HEARTBEAT_SECONDS"),
    ("--lease-seconds", "DUORELAY_LEASE_SECONDS"),
    ("--drain-delay-seconds", "DUORELAY_DRAIN_DELAY_SECONDS"),
    ("--drain-seconds", "DUORELAY_DRAIN_SECONDS"),
    ("--max-lifetime-seconds", "DUORELAY_MAX_LIFETIME_SECONDS"),
    ("--log-format", "LOG_FORMAT"),
    ("--rust-log", "RUST_LOG"),
];

/// The defaults of section 6, as the help writes them.
const DEFAULTS: &[(&str, &str)] = &[
    ("PORT", "3000"),
    ("DUORELAY_ADMIN_LISTEN", "127.0.0.1:9091"),
    ("DUORELAY_REDIS_PREFIX", "duo"),
    ("DUORELAY_CHECK_REVOKED", "false"),
    ("DUORELAY_REVOCATION_SECONDS", "180"),
    ("DUORELAY_ENFORCE_EXPIRY", "true"),
    ("DUORELAY_MAX_CONNECTIONS", "100000"),
    ("DUORELAY_MESSAGE_BYTES", "65536"),
    ("DUORELAY_QUEUE_BYTES", "1048576"),
    ("DUORELAY_MESSAGES_PER_SECOND", "240"),
    ("DUORELAY_HANDSHAKES_PER_SECOND_PER_IP", "20"),
    ("DUORELAY_HEARTBEAT_SECONDS", "25"),
    ("DUORELAY_LEASE_SECONDS", "45"),
    ("DUORELAY_DRAIN_DELAY_SECONDS", "5"),
    ("DUORELAY_DRAIN_SECONDS", "20"),
    ("DUORELAY_MAX_LIFETIME_SECONDS", "2700"),
];

/// Runs the program to its end. It must end by itself, because a relay that started instead would hang the
/// test. So it gets ports of its own, and the time limit of `timeout` stops it.
fn run(args: &[&str], env: &[(&str, &str)]) -> Output {
    Command::new("timeout")
        .arg("10")
        .arg(env!("CARGO_BIN_EXE_duorelay"))
        .args(args)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap())
        .env("DUORELAY_LISTEN", free_address().to_string())
        .env("DUORELAY_ADMIN_LISTEN", free_address().to_string())
        .envs(env.iter().copied())
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn version_is_the_packages() {
    for flag in ["--version", "-V"] {
        let output = run(&[flag], &[]);
        assert!(output.status.success());
        assert_eq!(text(&output.stdout).trim(), format!("duorelay {}", env!("CARGO_PKG_VERSION")));
    }
}

#[test]
fn the_allocators_settings_are_in_the_program() {
    // jemalloc prints its settings when it is asked for statistics, and where each comes from.
    let output = run(&["--version"], &[("_RJEM_MALLOC_CONF", "stats_print:true")]);
    let printed = text(&output.stderr);
    let own =
        printed.lines().find(|line| line.contains("Global variable malloc_conf")).expect("its settings");
    for setting in ["narenas:2", "dirty_decay_ms:1000", "muzzy_decay_ms:0", "lg_tcache_max:12"] {
        assert!(own.contains(setting), "{setting} is not in {own}");
    }
    assert!(printed.contains("opt.narenas: 2"), "{printed}");
}

#[test]
fn help_names_the_commands() {
    for flag in ["--help", "-h"] {
        let output = run(&[flag], &[]);
        assert!(output.status.success());
        let help = text(&output.stdout);
        for command in ["serve", "demo", "loadtest"] {
            assert!(help.contains(command), "{command} is not in {help}");
        }
    }
}

#[test]
fn help_of_serve_has_every_setting_with_its_variable_and_default() {
    let output = run(&["serve", "--help"], &[]);
    assert!(output.status.success());
    let help = text(&output.stdout);
    for (flag, variable) in SETTINGS {
        let has = |word: &str| {
            help.split(|c: char| c.is_whitespace() || "[],".contains(c)).any(|part| part == word)
        };
        assert!(has(flag), "{flag} is missing");
        assert!(has(variable), "{variable} is missing");
    }
    // Each default stands in its setting's paragraph, which ends with its variable.
    let paragraphs: Vec<&str> = help.split("[env: ").collect();
    for (variable, default) in DEFAULTS {
        let at = paragraphs.iter().position(|part| part.split([']', '=']).next() == Some(*variable)).unwrap();
        let paragraph = paragraphs[at - 1].split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(paragraph.contains(&format!("[default: {default}")), "{variable}: {paragraph}");
    }
}

#[test]
fn secrets_never_reach_the_help() {
    let secrets = [
        ("DUORELAY_ADMIN_TOKEN", "very-secret-operator"),
        ("REDIS_URL", "redis://user:very-secret-password@127.0.0.1:1"),
    ];
    for args in [&["--help"][..], &["serve", "--help"], &["demo", "--help"], &["serve", "-h"]] {
        let output = run(args, &secrets);
        let all = text(&output.stdout) + &text(&output.stderr);
        assert!(!all.contains("very-secret"), "{all}");
    }
}

#[test]
fn all_mistakes_are_reported_together_each_with_its_variable() {
    let mistakes = [
        ("DUORELAY_LISTEN", "somewhere"),
        ("PORT", "eighty"),
        ("DUORELAY_ADMIN_LISTEN", "9091"),
        ("REDIS_URL", "http://very-secret@redis"),
        ("DUORELAY_JWKS_URL", "http://keys.example.org/jwks"),
        ("DUORELAY_CHECK_REVOKED", "perhaps"),
        ("DUORELAY_REVOCATION_SECONDS", "never"),
        ("DUORELAY_ENFORCE_EXPIRY", "2"),
        ("DUORELAY_ALLOWED_ORIGINS", "app.example.org"),
        ("DUORELAY_TRUSTED_PROXIES", "10.0.0.0/99"),
        ("DUORELAY_MAX_CONNECTIONS", "-1"),
        ("DUORELAY_MESSAGE_BYTES", "0"),
        ("DUORELAY_QUEUE_BYTES", "0"),
        ("DUORELAY_MESSAGES_PER_SECOND", "many"),
        ("DUORELAY_HANDSHAKES_PER_SECOND_PER_IP", "1.5"),
        ("DUORELAY_WORKERS", "0"),
        ("DUORELAY_HEARTBEAT_SECONDS", "0"),
        ("DUORELAY_LEASE_SECONDS", "soon"),
        ("DUORELAY_DRAIN_DELAY_SECONDS", "-5"),
        ("DUORELAY_DRAIN_SECONDS", "x"),
        ("DUORELAY_MAX_LIFETIME_SECONDS", "x"),
        ("LOG_FORMAT", "xml"),
    ];
    let output = run(&["serve"], &mistakes);
    assert!(!output.status.success());
    assert_ne!(output.status.code(), Some(124), "it started");
    let stderr = text(&output.stderr);
    for (variable, _) in mistakes {
        let lines = stderr.lines().filter(|line| line.trim_start().starts_with(variable)).count();
        assert_eq!(lines, 1, "{variable} in:\n{stderr}");
    }
    // Nobody to sign in was named either.
    assert!(stderr.contains("FIREBASE_PROJECT_ID"), "{stderr}");
    assert!(!stderr.contains("very-secret"), "{stderr}");
}

/// Several workers accept on one port, and yet it is no port that others may share.
#[tokio::test]
async fn a_second_process_on_a_port_is_refused() {
    let issuer = Issuer::start();
    let config = Config::new(&issuer).set("DUORELAY_WORKERS", 3);
    let first = config.start().await;
    let mut second = config.set("DUORELAY_LISTEN", first.public).spawn();
    assert_eq!(second.exit(Duration::from_secs(10)).await.code(), Some(1));
    let says = format!("cannot listen on {}: Address already in use", first.public);
    assert!(second.log().contains(&says), "{}", second.log());
    first.v1_desktop("ann").await;
}

#[test]
fn an_unknown_flag_is_a_mistake() {
    let output = run(&["serve", "--max-conections", "1"], &[("FIREBASE_PROJECT_ID", PROJECT)]);
    assert!(!output.status.success());
    assert!(text(&output.stderr).contains("--max-conections"));
    assert!(!run(&["dance"], &[]).status.success());
}

#[test]
fn revocation_checks_need_credentials() {
    let output = run(&["serve"], &[("FIREBASE_PROJECT_ID", PROJECT), ("DUORELAY_CHECK_REVOKED", "true")]);
    assert!(!output.status.success());
    assert!(text(&output.stderr).contains("GOOGLE_APPLICATION_CREDENTIALS"), "{}", text(&output.stderr));
}

#[tokio::test]
async fn credentials_of_another_kind_are_warned_of_and_unused_with_checks_off() {
    let directory = tempfile::tempdir().unwrap();
    let issuer = Issuer::start();
    let external = r#"{"type": "external_account", "audience": "a", "credential_source": {"file": "/x"}}"#;
    let user = r#"{"type": "authorized_user", "client_id": "c", "refresh_token": "very-secret"}"#;
    for (name, content) in [("external", Some(external)), ("user", Some(user)), ("missing", None)] {
        let path = directory.path().join(name);
        if let Some(content) = content {
            std::fs::write(&path, content).unwrap();
        }
        let config = Config::new(&issuer).set("GOOGLE_APPLICATION_CREDENTIALS", path.display());
        let relay = config.start().await;
        relay.v1_desktop("ann").await;
        let log = relay.log();
        let warned = |line: &&str| line.contains("WARN") && line.contains("GOOGLE_APPLICATION_CREDENTIALS");
        assert_eq!(log.lines().filter(warned).count(), 1, "{name}: {log}");
        assert!(!log.contains("very-secret"), "{log}");
    }
}

#[tokio::test]
async fn with_a_metadata_server_revocation_checks_need_no_file() {
    let issuer = Issuer::start();
    let relay = Config::new(&issuer)
        .set("DUORELAY_CHECK_REVOKED", "true")
        .set("GCE_METADATA_HOST", issuer.host())
        .start()
        .await;
    // Its token is asked for; Google itself is out of reach of this test.
    let refused = relay.handshake().bearer(&Token::firebase("ann").sign()).refused().await;
    assert!(matches!(refused.status, 403 | 503), "{refused:?}");
    assert_eq!(issuer.machine_tokens(), 1);
}

#[test]
fn the_emulator_is_refused_beside_a_production_credential_file() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("account.json");
    let account = serde_json::json!({
        "type": "service_account", "project_id": PROJECT, "private_key_id": "1", "private_key": "very-secret",
        "client_email": "relay@example.iam.gserviceaccount.com", "token_uri": "https://oauth2.googleapis.com/token",
    });
    std::fs::write(&file, account.to_string()).unwrap();
    let env = [
        ("FIREBASE_PROJECT_ID", PROJECT),
        ("GOOGLE_APPLICATION_CREDENTIALS", file.to_str().unwrap()),
        ("FIREBASE_AUTH_EMULATOR_HOST", "127.0.0.1:9099"),
    ];
    let output = run(&["serve"], &env);
    assert!(!output.status.success());
    let stderr = text(&output.stderr);
    assert!(stderr.contains("FIREBASE_AUTH_EMULATOR_HOST") && !stderr.contains("very-secret"), "{stderr}");
}

#[tokio::test]
async fn serve_is_the_default_command_and_flags_win_over_variables() {
    let issuer = Issuer::start();
    let relay = Config::new(&issuer)
        .without_command()
        .set("DUORELAY_MESSAGE_BYTES", 1000)
        .set("DUORELAY_MESSAGES_PER_SECOND", 7)
        .arg("--message-bytes")
        .arg("2000")
        .start()
        .await;
    let client = relay.v1_desktop("ann").await;
    assert_eq!(client.welcome["limits"]["message_bytes"], 2000);
    assert_eq!(client.welcome["limits"]["messages_per_second"], 7);
}

#[tokio::test]
async fn the_defaults_of_the_limits_are_those_of_the_contract() {
    let issuer = Issuer::start();
    let relay = Config::new(&issuer).unset("DUORELAY_HANDSHAKES_PER_SECOND_PER_IP").start().await;
    let client = relay.v1_desktop("ann").await;
    let limits = serde_json::json!({
        "message_bytes": 65536, "messages_per_second": 240, "queue_bytes": 1_048_576, "bytes_per_second": 1_048_576,
    });
    assert_eq!(client.welcome["limits"], limits);
    assert_eq!(client.welcome["heartbeat_ms"], 25_000);
}

#[tokio::test]
async fn an_unknown_variable_is_warned_about_and_has_no_effect() {
    let issuer = Issuer::start();
    let relay = Config::new(&issuer)
        .set("DUORELAY_SERVICE_HOST", "10.0.0.1")
        .set("DUORELAY_MAX_CONECTIONS", "1")
        .start()
        .await;
    for name in ["DUORELAY_SERVICE_HOST", "DUORELAY_MAX_CONECTIONS"] {
        relay.wait_for_log(name).await;
        let log = relay.log();
        let line: Value =
            serde_json::from_str(log.lines().find(|line| line.contains(name)).unwrap()).unwrap();
        assert_eq!(line["level"], "WARN", "{line}");
    }
    relay.v1_desktop("ann").await;
}

#[tokio::test]
async fn the_emulators_unsigned_tokens_are_accepted_only_where_it_is_set() {
    let issuer = Issuer::start();
    let relay = Config::new(&issuer)
        .unset("DUORELAY_JWKS_URL")
        .set("FIREBASE_AUTH_EMULATOR_HOST", "127.0.0.1:9099")
        .start()
        .await;
    relay.wait_for_log("FIREBASE_AUTH_EMULATOR_HOST").await;
    let unsigned = |token: Token| token.without_header("kid").unsigned();
    relay.handshake().bearer(&unsigned(Token::firebase("ann"))).open().await;
    // The claims' rules stand.
    for (code, token) in [
        ("token_expired", Token::firebase("ann").expires_in(-5)),
        ("wrong_audience", Token::firebase("ann").claim("aud", "x")),
        ("wrong_issuer", Token::firebase("ann").claim("iss", "x")),
        ("malformed_token", Token::firebase("ann").claim("sub", "")),
    ] {
        relay.handshake().bearer(&unsigned(token)).refused().await.expect_refusal(403, code);
    }
}

#[tokio::test]
async fn a_taken_port_stops_the_start() {
    let issuer = Issuer::start();
    let first = Config::new(&issuer).start().await;
    let second = [
        ("FIREBASE_PROJECT_ID", PROJECT.to_owned()),
        ("DUORELAY_JWKS_URL", issuer.jwks_url()),
        ("DUORELAY_LISTEN", first.public.to_string()),
    ];
    let env: Vec<(&str, &str)> = second.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let output = run(&["serve"], &env);
    assert!(!output.status.success());
    assert_ne!(output.status.code(), Some(124), "it went on without its port");
}

/// Starts the relay under a hard limit of open files, and reads what it says of itself.
async fn under_files(files: u32, connections: u32) -> (String, f64) {
    let issuer = Issuer::start();
    let relay = Config::new(&issuer)
        .set("DUORELAY_MAX_CONNECTIONS", connections)
        .open_files(files / 2, files)
        .start()
        .await;
    let limit = relay.metric("process_max_fds", &[]).await;
    (relay.log(), limit)
}

#[tokio::test]
async fn the_limit_of_open_files_is_raised_and_logged_when_too_low() {
    let (log, limit) = under_files(4000, 3001).await;
    assert!((limit - 4000.0).abs() < 0.5, "the soft limit is {limit}");
    let line = log.lines().find(|line| line.contains("DUORELAY_MAX_CONNECTIONS")).unwrap();
    assert!(line.contains("WARN") && line.contains("4000") && line.contains("4001"), "{line}");
    let (log, _) = under_files(4000, 3000).await;
    assert!(!log.contains("DUORELAY_MAX_CONNECTIONS"), "{log}");
}
