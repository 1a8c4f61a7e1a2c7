//! Names, precedence, commands, help, and what must never be shown.

use super::*;
use crate::config::table::Fallback;

#[test]
fn flags_are_named_after_their_variables() {
    for setting in ALL {
        let name = setting.variable.strip_prefix("DUORELAY_").unwrap_or(setting.variable);
        assert_eq!(setting.flag, name.to_lowercase().replace('_', "-"));
    }
}

#[test]
fn variables_are_those_of_the_contract_and_of_opentelemetry_and_google() {
    let of_the_contract = "PORT DUORELAY_LISTEN DUORELAY_ADMIN_LISTEN DUORELAY_ADMIN_TOKEN REDIS_URL \
        DUORELAY_REDIS_PREFIX REDIS_URL_FILE DUORELAY_REDIS_CA DUORELAY_REDIS_CERT DUORELAY_REDIS_KEY FIREBASE_PROJECT_ID GOOGLE_APPLICATION_CREDENTIALS FIREBASE_AUTH_EMULATOR_HOST \
        DUORELAY_ISSUER DUORELAY_AUDIENCE DUORELAY_JWKS_URL DUORELAY_CHECK_REVOKED DUORELAY_REVOCATION_SECONDS DUORELAY_ENFORCE_EXPIRY \
        DUORELAY_ALLOWED_ORIGINS DUORELAY_PACING DUORELAY_DIRECT DUORELAY_STUN_URLS DUORELAY_TRUSTED_PROXIES DUORELAY_MAX_CONNECTIONS DUORELAY_MESSAGE_BYTES \
        DUORELAY_QUEUE_BYTES DUORELAY_MESSAGES_PER_SECOND DUORELAY_BYTES_PER_SECOND DUORELAY_HANDSHAKES_PER_SECOND_PER_IP DUORELAY_WORKERS \
        DUORELAY_HEARTBEAT_SECONDS DUORELAY_LEASE_SECONDS DUORELAY_DRAIN_DELAY_SECONDS DUORELAY_DRAIN_SECONDS \
        DUORELAY_MAX_LIFETIME_SECONDS LOG_FORMAT RUST_LOG";
    let of_others =
        ["GCE_METADATA_HOST", "GOOGLE_CLOUD_PROJECT", "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_SERVICE_NAME"];
    let mut wanted: Vec<&str> = of_the_contract.split_whitespace().chain(of_others).collect();
    let mut ours: Vec<&str> = ALL.iter().map(|setting| setting.variable).collect();
    wanted.sort_unstable();
    ours.sort_unstable();
    assert_eq!(ours, wanted);
}

#[test]
fn empty_values_count_as_not_given() {
    let environment: Vec<_> = ALL.iter().map(|setting| (setting.variable, "  ")).collect();
    let lines = mistakes(&[], &environment);
    assert!(lines.len() == 1 && lines[0].starts_with("FIREBASE_PROJECT_ID: is missing"), "{lines:?}");
    assert!(config(&[("DUORELAY_ADMIN_TOKEN", "")]).instance.admin_token.is_none());
}

#[test]
fn flag_wins_over_variable_and_an_empty_flag_hides_it() {
    let environment = [PROJECT, ("DUORELAY_WORKERS", "2"), ("DUORELAY_ADMIN_TOKEN", "abc")];
    let Command::Serve(config) = launch(&["--workers", "3", "--admin-token="], &environment).command else {
        panic!()
    };
    assert_eq!(config.instance.workers, 3);
    assert!(config.instance.admin_token.is_none());
    // The bad variable is hidden too.
    launch(&["--workers", "3"], &[PROJECT, ("DUORELAY_WORKERS", "x")]);
}

#[test]
fn mistakes_in_flags_name_flag_and_variable() {
    assert_eq!(
        mistakes(&["serve", "--port", "x", "--drain-seconds", "-1"], &[PROJECT]),
        [
            "PORT (--port): must be a port from 0 (any free one) to 65535, but is \"x\"",
            "DUORELAY_DRAIN_SECONDS (--drain-seconds): must be a whole number from 0 to 86400, but is \"-1\"",
        ]
    );
}

#[test]
fn unknown_variables_get_a_warning_and_a_suggestion() {
    let notices = |name, value| launch(&[], &[PROJECT, (name, value)]).notices;
    for (name, value, suggestion) in [
        ("DUORELAY_MAX_CONECTIONS", "5", Some("DUORELAY_MAX_CONNECTIONS")),
        ("DUORELAY_REDIS_URL", "x", Some("REDIS_URL")),
        ("DUORELAY_PORT", "4000", Some("PORT")),
        ("DUORELAY_PORT", "tcp://10.0.0.1:80", None),
        ("DUORELAY_PORT_80_TCP_ADDR", "10.0.0.1", None),
        ("DUORELAY_SERVICE_HOST", "10.0.0.1", None),
        ("DUORELAY_COLOUR", "blue", None),
    ] {
        assert_eq!(notices(name, value), [Notice::UnknownVariable { name: name.to_owned(), suggestion }]);
    }
    let line = notices("DUORELAY_MAX_CONECTIONS", "5")[0].to_string();
    assert!(
        line.contains("DUORELAY_MAX_CONECTIONS") && line.ends_with("did you mean DUORELAY_MAX_CONNECTIONS?")
    );
    assert_eq!(notices("SOMETHING_ELSE", "1"), []);
}

#[cfg(unix)]
#[test]
fn a_value_that_is_not_utf8_is_a_mistake() {
    use std::os::unix::ffi::OsStringExt as _;
    let environment = [("PORT".into(), OsString::from_vec(vec![0xff]))];
    let stop =
        load(["duorelay".into(), "demo".into()], environment, MACHINE, Additions::default()).unwrap_err();
    assert!(stop.to_string().contains("PORT: is not UTF-8"), "{stop}");
}

#[test]
fn demo_has_the_shared_settings_and_ignores_the_others() {
    let environment = [
        ("PORT", "4000"),
        ("DUORELAY_MESSAGE_BYTES", "99"),
        ("REDIS_URL", "not looked at"),
        ("FIREBASE_PROJECT_ID", "NOT LOOKED AT"),
        ("DUORELAY_CHECK_REVOKED", ""),
    ];
    let options = demo(&["--drain-seconds=1"], &environment);
    assert_eq!(options.listen.port(), 4000);
    assert_eq!((options.limits.message_bytes, options.times.drain), (99, Duration::from_secs(1)));
    assert_eq!(
        launch(&["demo"], &environment).notices,
        [Notice::IgnoredByDemo("FIREBASE_PROJECT_ID"), Notice::IgnoredByDemo("REDIS_URL")]
    );
    assert_eq!(demo(&[], &[]).listen.port(), 3000);
    for flag in ["--redis-prefix=a", "--firebase-project-id=a", "--issuer=a"] {
        assert!(matches!(load_on(MACHINE, &["demo", flag], &[]), Err(Stop::CommandLine(_))), "{flag}");
    }
}

#[test]
fn demo_joins_others_only_by_its_flag_and_under_its_own_prefix() {
    let environment = [("REDIS_URL", "redis://real"), ("DUORELAY_REDIS_PREFIX", "duo")];
    assert!(demo(&[], &environment).redis.is_none());
    let redis = demo(&["--redis-url=redis://demo"], &environment).redis.unwrap();
    assert_eq!(url(&redis), "redis://demo");
    assert_eq!(redis.prefix, "duo-demo");
    assert_eq!(
        mistakes(&["demo", "--redis-url=http://x"], &[]),
        [
            "REDIS_URL (--redis-url): must start with redis://, redis-cluster:// or redis-sentinel://, or with rediss… for TLS"
        ]
    );
}

#[test]
fn no_variable_turns_serve_into_demo() {
    for setting in ALL {
        if let Ok(launch) = load_on(MACHINE, &["serve"], &[PROJECT, (setting.variable, "demo")]) {
            assert!(matches!(launch.command, Command::Serve(_)), "{}", setting.variable);
        }
    }
}

#[test]
fn health_asks_where_the_instance_of_the_same_environment_listens() {
    let asks = |arguments: &[&str], environment| match launch(arguments, environment).command {
        Command::Health(check) => (check.listen.to_string(), check.path),
        other => panic!("{other:?}"),
    };
    let live = |listen: &str| (listen.to_owned(), "/healthz/live");
    assert_eq!(asks(&["health"], &[]), live("[::]:3000"));
    assert_eq!(asks(&["health"], &[("PORT", "4000")]), live("[::]:4000"));
    assert_eq!(
        asks(&["health", "--ready"], &[("DUORELAY_LISTEN", "10.0.0.1:5000")]),
        ("10.0.0.1:5000".to_owned(), "/healthz/ready")
    );
    assert_eq!(asks(&["health", "--port=6000"], &[]), live("[::]:6000"));
}

#[test]
fn serve_is_the_default_command() {
    for arguments in [&[][..], &["serve"][..], &["--workers", "1"][..]] {
        assert!(matches!(launch(arguments, &[PROJECT]).command, Command::Serve(_)), "{arguments:?}");
    }
    assert!(matches!(
        load([], [(PROJECT.0.into(), PROJECT.1.into())], MACHINE, Additions::default()).unwrap().command,
        Command::Serve(_)
    ));
}

#[test]
fn a_switch_needs_no_value() {
    let emulator = ("FIREBASE_AUTH_EMULATOR_HOST", "127.0.0.1:9099");
    let Command::Serve(config) = launch(&["--check-revoked", "--workers=1"], &[PROJECT, emulator]).command
    else {
        panic!()
    };
    assert!(config.auth.revocation.is_some());
}

#[test]
fn exit_codes_are_0_for_help_and_2_for_a_bad_command_line() {
    for (arguments, code) in [
        (&["--help"][..], 0),
        (&["--version"][..], 0),
        (&["serve", "--help"][..], 0),
        (&["demo", "-h"][..], 0),
        (&["dance"][..], 2),
        (&["--no-such-flag"][..], 2),
        (&["serve", "--port"][..], 2),
    ] {
        assert_eq!(load_on(MACHINE, arguments, &[PROJECT]).unwrap_err().exit_code(), code, "{arguments:?}");
    }
}

#[test]
fn help_names_each_variable_and_default_on_one_line() {
    let serve = help("serve");
    for setting in ALL {
        let env = format!("[env: {}]", setting.variable);
        let line =
            serve.lines().find(|line| line.contains(&env)).unwrap_or_else(|| panic!("{env} in {serve}"));
        match setting.fallback {
            Fallback::Value(text) | Fallback::Words(text) => {
                assert!(line.contains(&format!("[default: {text}]")), "{line}")
            }
            Fallback::Nothing => {}
        }
        assert!(line.contains(setting.help), "{line}");
        assert_eq!(help("demo").contains(&env), setting.group.is_for_demo(), "{env}");
    }
}

#[test]
fn no_secret_is_in_help_in_debug_or_in_a_mistake() {
    let account = service_account();
    let environment = [
        ("DUORELAY_ADMIN_TOKEN", "hunter2-admin"),
        ("REDIS_URL", "redis://user:hunter2-redis@redis.example.com"),
        ("GOOGLE_APPLICATION_CREDENTIALS", account.path().to_str().unwrap()),
        ("DUORELAY_CHECK_REVOKED", "true"),
    ];
    let launched = launch(&[], &environment);
    let debug = format!("{launched:?} {launched:#?}");
    assert!(!debug.contains("hunter2") && !debug.contains("PRIVATE KEY"), "{debug}");

    for arguments in
        [&["--help"][..], &["serve", "--help"], &["serve", "--admin-token=hunter2-flag", "--help"]]
    {
        let Err(Stop::CommandLine(error)) = load_on(MACHINE, arguments, &environment) else { panic!() };
        assert!(!error.render().to_string().contains("hunter2"));
    }
    let mut with_a_mistake = environment.to_vec();
    with_a_mistake.push(("PORT", "x"));
    let stop = load_on(MACHINE, &[], &with_a_mistake).unwrap_err();
    assert!(!format!("{stop} {stop:?}").contains("hunter2"));
}
