//! The settings of sign-in: issuers, credentials, contradictions.

use super::*;
use crate::auth::settings::{Credentials, IdentityService, SubjectTokenSource};

#[test]
fn nobody_to_sign_in_is_a_mistake_that_helps() {
    let lines = mistakes(&[], &[]);
    assert_eq!(lines.len(), 1, "{lines:?}");
    for word in ["FIREBASE_PROJECT_ID: is missing", "DUORELAY_ISSUER", "duorelay demo"] {
        assert!(lines[0].contains(word), "{word}");
    }
}

#[test]
fn project_defaults_to_the_credentials_file() {
    let file = file(r#"{"type": "service_account", "project_id": "from-file"}"#);
    let credentials = ("GOOGLE_APPLICATION_CREDENTIALS", file.path().to_str().unwrap());
    let project = |environment: &[(&str, &str)]| match launch(&[], environment).command {
        Command::Serve(config) => match config.auth.issuer {
            Issuer::Firebase { project_id, .. } => project_id,
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    };
    assert_eq!(project(&[credentials]), "from-file");
    assert_eq!(project(&[credentials, PROJECT]), "my-project");
}

#[test]
fn a_bad_credentials_file_is_a_mistake_that_repeats_nothing_of_it() {
    for content in
        ["hunter2", r#"{"private_key": "hunter2"}"#, r#"{"project_id": 5, "private_key": "hunter2"}"#, "[]"]
    {
        let file = file(content);
        let path = file.path().to_str().unwrap();
        let mut lines = mistakes(&[], &[("GOOGLE_APPLICATION_CREDENTIALS", path)]);
        let line = lines.remove(0);
        assert!(line.starts_with("GOOGLE_APPLICATION_CREDENTIALS: ") && line.contains(path), "{line}");
        assert!(!line.contains("hunter2"), "{line}");
    }
    let lines = mistakes(&[], &[("GOOGLE_APPLICATION_CREDENTIALS", "/does/not/exist")]);
    assert!(lines[0].contains("cannot be read"), "{lines:?}");
}

/// Workload identity federation by a projected token.
const EXTERNAL: &str = r#"{
    "type": "external_account", "audience": "//iam.googleapis.com/pools/p", "token_url": "https://sts.googleapis.com/v1/token",
    "subject_token_type": "urn:ietf:params:oauth:token-type:jwt", "credential_source": {"file": "/var/run/token"}
}"#;

#[test]
fn credentials_of_another_kind_are_unused_where_nothing_is_needed_of_them() {
    let authorized_user = r#"{"type": "authorized_user", "client_id": "x", "refresh_token": "hunter2"}"#;
    for content in [EXTERNAL, authorized_user, r#"{"type": "impersonated_service_account"}"#] {
        let file = file(content);
        let credentials = ("GOOGLE_APPLICATION_CREDENTIALS", file.path().to_str().unwrap());
        let launch = launch(&[], &[PROJECT, credentials]);
        assert!(matches!(&launch.notices[..], [Notice::UnusedCredentials(_)]), "{:?}", launch.notices);
        let Command::Serve(config) = launch.command else { panic!() };
        assert!(config.auth.revocation.is_none());
        // Without a project of its own it cannot stand in for one that is not named.
        let lines = mistakes(&[], &[credentials]);
        assert!(lines.len() == 1 && lines[0].starts_with("FIREBASE_PROJECT_ID:"), "{lines:?}");
    }
    for content in ["hunter2", "[]", r#"{"type": "service_account"}"#] {
        let file = file(content);
        let credentials = ("GOOGLE_APPLICATION_CREDENTIALS", file.path().to_str().unwrap());
        let notices = launch(&[], &[PROJECT, credentials]).notices;
        assert!(matches!(&notices[..], [Notice::UnusedCredentials(_)]), "{notices:?}");
        assert!(!notices[0].to_string().contains("hunter2"));
    }
    let notices = launch(&[], &[PROJECT, ("GOOGLE_APPLICATION_CREDENTIALS", "/does/not/exist")]).notices;
    assert!(notices[0].to_string().contains("is not used"), "{notices:?}");
}

#[test]
fn revocation_checks_ask_with_a_workloads_identity() {
    let file = file(EXTERNAL);
    let credentials = ("GOOGLE_APPLICATION_CREDENTIALS", file.path().to_str().unwrap());
    let config = config(&[credentials, ("DUORELAY_CHECK_REVOKED", "true")]);
    let service = config.auth.revocation.unwrap().service;
    let IdentityService::Google(Credentials::External(account)) = service else { panic!("{service:?}") };
    assert_eq!(account.audience, "//iam.googleapis.com/pools/p");
    assert!(matches!(account.subject.source, SubjectTokenSource::File(path) if path == "/var/run/token"));
}

#[test]
fn credentials_that_cannot_check_revocation_are_a_mistake_with_checks_on() {
    for (content, word) in [
        (r#"{"type": "authorized_user", "refresh_token": "hunter2"}"#, "external_account"),
        (
            r#"{"type": "external_account", "credential_source": {"environment_id": "aws1"}}"#,
            "credential_source",
        ),
        (&EXTERNAL.replace("https://sts", "http://sts"), "token_url"),
        (&EXTERNAL.replace(r#""file""#, r#""format": {"type": "json"}, "file""#), "credential_source"),
    ] {
        let file = file(content);
        let credentials = ("GOOGLE_APPLICATION_CREDENTIALS", file.path().to_str().unwrap());
        let lines = mistakes(&[], &[PROJECT, credentials, ("DUORELAY_CHECK_REVOKED", "true")]);
        assert!(lines.iter().any(|line| line.contains(word)), "{word}: {lines:?}");
        assert!(lines.iter().all(|line| !line.contains("hunter2")), "{lines:?}");
    }
    let missing = ("GOOGLE_APPLICATION_CREDENTIALS", "/does/not/exist");
    let lines = mistakes(&[], &[PROJECT, missing, ("DUORELAY_CHECK_REVOKED", "true")]);
    assert!(lines.len() == 1 && lines[0].contains("cannot be read"), "{lines:?}");
}

#[test]
fn without_a_file_googles_platforms_have_their_metadata_server() {
    let check = ("DUORELAY_CHECK_REVOKED", "true");
    let host_of = |machine: Machine, environment: &[(&str, &str)]| {
        let Command::Serve(config) = load_on(machine, &[], environment).unwrap().command else { panic!() };
        match config.auth.revocation.unwrap().service {
            IdentityService::Google(Credentials::Metadata { host }) => host,
            other => panic!("{other:?}"),
        }
    };
    let google = Machine { google: true, ..MACHINE };
    assert_eq!(host_of(google, &[PROJECT, check]), "metadata.google.internal");
    let elsewhere = ("GCE_METADATA_HOST", "127.0.0.1:8080");
    assert_eq!(host_of(google, &[PROJECT, check, elsewhere]), "127.0.0.1:8080");
    assert_eq!(host_of(MACHINE, &[PROJECT, check, elsewhere]), "127.0.0.1:8080");
    for bad in ["http://metadata", "metadata/x", "a b", "u@metadata", "metadata:x"] {
        assert!(mistake("GCE_METADATA_HOST", bad).contains("HOST"), "{bad}");
    }
}

#[test]
fn revocation_checks_take_the_whole_service_account() {
    let account = service_account();
    let config = config(&[
        ("DUORELAY_CHECK_REVOKED", "true"),
        ("GOOGLE_APPLICATION_CREDENTIALS", account.path().to_str().unwrap()),
    ]);
    let revocation = config.auth.revocation.unwrap();
    assert_eq!(revocation.pause, Duration::from_secs(180));
    let IdentityService::Google(Credentials::ServiceAccount(account)) = revocation.service else { panic!() };
    assert_eq!(account.project_id, "from-file");
    assert_eq!(account.client_email, "relay@from-file.iam.gserviceaccount.com");
    assert_eq!(account.private_key_id.as_deref(), Some("key-1"));
    assert_eq!(account.token_uri, "https://oauth2.googleapis.com/token");
    assert!(account.private_key.expose_secret().starts_with("-----BEGIN PRIVATE KEY-----"));
}

#[test]
fn revocation_checks_name_all_that_is_missing() {
    let file =
        file(r#"{"project_id": "from-file", "private_key": "hunter2", "token_uri": "http://example.com"}"#);
    let path = file.path().to_str().unwrap();
    let lines = mistakes(&[], &[("GOOGLE_APPLICATION_CREDENTIALS", path), ("DUORELAY_CHECK_REVOKED", "1")]);
    assert_eq!(lines.len(), 3, "{lines:#?}");
    for word in ["client_email", "private_key", "token_uri"] {
        assert!(lines.iter().any(|line| line.contains(word)), "{word} in {lines:#?}");
    }
    assert!(!lines.concat().contains("hunter2"));
    assert!(mistake("DUORELAY_CHECK_REVOKED", "true").contains("needs GOOGLE_APPLICATION_CREDENTIALS"));
}

#[test]
fn emulator_warns_and_is_refused_beside_credentials() {
    let emulator = ("FIREBASE_AUTH_EMULATOR_HOST", "127.0.0.1:9099");
    let launch = launch(
        &[],
        &[PROJECT, emulator, ("DUORELAY_CHECK_REVOKED", "true"), ("DUORELAY_REVOCATION_SECONDS", "7")],
    );
    assert_eq!(launch.notices, [Notice::UnsignedTokens]);
    let Command::Serve(config) = launch.command else { panic!() };
    let Issuer::Emulator { project_id, host } = config.auth.issuer else { panic!() };
    assert_eq!((project_id.as_str(), host.as_str()), ("my-project", "127.0.0.1:9099"));
    let revocation = config.auth.revocation.unwrap();
    assert!(matches!(revocation.service, IdentityService::Emulator));
    assert_eq!(revocation.pause, Duration::from_secs(7));

    let account = service_account();
    let credentials = ("GOOGLE_APPLICATION_CREDENTIALS", account.path().to_str().unwrap());
    let lines = mistakes(&[], &[emulator, credentials]);
    assert!(lines.len() == 1 && lines[0].starts_with("FIREBASE_AUTH_EMULATOR_HOST: is refused"), "{lines:?}");
    for bad in ["127.0.0.1", "http://127.0.0.1:9099", "host:0", ":9099"] {
        assert!(mistake("FIREBASE_AUTH_EMULATOR_HOST", bad).contains("HOST:PORT"), "{bad}");
    }
}

#[test]
fn another_issuer_needs_audience_and_keys() {
    let issuer = ("DUORELAY_ISSUER", "https://id.example.com");
    let audience = ("DUORELAY_AUDIENCE", "relay");
    let keys = ("DUORELAY_JWKS_URL", "https://id.example.com/keys");
    let Command::Serve(config) = launch(&[], &[issuer, audience, keys]).command else { panic!() };
    let Issuer::OpenId { issuer: iss, audience: aud, jwks_url } = config.auth.issuer else { panic!() };
    assert_eq!((iss.as_str(), aud.as_str(), jwks_url.as_str()), (issuer.1, audience.1, keys.1));

    let first_words = |environment: &[(&str, &str)]| {
        let lines = mistakes(&[], environment);
        lines.iter().map(|line| line.split(':').next().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(first_words(&[issuer]), ["DUORELAY_AUDIENCE", "DUORELAY_JWKS_URL"]);
    assert_eq!(first_words(&[issuer, audience, keys, PROJECT]), ["DUORELAY_ISSUER"]);
    assert_eq!(first_words(&[audience, PROJECT]), ["DUORELAY_ISSUER"]);
    let emulator = ("FIREBASE_AUTH_EMULATOR_HOST", "127.0.0.1:9099");
    assert_eq!(first_words(&[issuer, audience, keys, emulator]), ["FIREBASE_AUTH_EMULATOR_HOST"]);
    assert_eq!(first_words(&[PROJECT, keys, emulator]), ["DUORELAY_JWKS_URL"]);
    let check = ("DUORELAY_CHECK_REVOKED", "true");
    assert_eq!(first_words(&[issuer, audience, keys, check]), ["DUORELAY_CHECK_REVOKED"]);
}

#[test]
fn keys_come_over_tls_except_from_this_machine() {
    for good in
        ["https://keys.example.com/jwks", "http://127.0.0.1:1/k", "http://localhost/k", "http://[::1]:8080/k"]
    {
        let Issuer::Firebase { jwks_url, .. } = config(&[("DUORELAY_JWKS_URL", good)]).auth.issuer else {
            panic!()
        };
        assert_eq!(jwks_url.as_deref(), Some(good));
    }
    for bad in [
        "http://keys.example.com",
        "http://127.0.0.1.example.com",
        // A resolver may know this name as any address.
        "http://keys.localhost",
        "ftp://127.0.0.1/k",
        "keys",
        "https://u:hunter2@k",
    ] {
        let line = mistake("DUORELAY_JWKS_URL", bad);
        assert!(line.starts_with("DUORELAY_JWKS_URL: ") && !line.contains("hunter2"), "{line}");
    }
}
