//! Whose tokens are accepted: one of Firebase, its emulator, and another OpenID Connect issuer.

use std::fs;
use std::time::Duration;

use base64::Engine as _;
use secrecy::SecretString;
use serde::Deserialize;

use super::parse::{DAY, emulator_host, http_url, number, project_id, truth, word};
use super::values::{Read, Reported, Values};
use super::{Notice, table};
use crate::auth::settings::{IdentityService, Issuer, Revocation, ServiceAccount, Settings};

/// A credentials file; what only revocation checks need is asked for only then.
#[derive(Deserialize)]
struct CredentialsFile {
    project_id: Option<String>,
    client_email: Option<String>,
    private_key: Option<String>,
    private_key_id: Option<String>,
    token_uri: Option<String>,
}

const NOBODY: &str = "is missing, so nobody could sign in. Set it to your Firebase project's id, or \
     GOOGLE_APPLICATION_CREDENTIALS to a service account's file that has it, or DUORELAY_ISSUER, \
     DUORELAY_AUDIENCE and DUORELAY_JWKS_URL for another issuer; `duorelay demo` needs none of them";

pub(super) fn read(values: &mut Values) -> Read<Settings> {
    let file = values.optional(&table::CREDENTIALS, credentials_file);
    let project = values.optional(&table::FIREBASE_PROJECT_ID, project_id);
    let emulator = values.optional(&table::EMULATOR, emulator_host);
    let issuer = values.optional(&table::ISSUER, word);
    let audience = values.optional(&table::AUDIENCE, word);
    let jwks_url = values.optional(&table::JWKS_URL, http_url);
    let check_revoked = values.value(&table::CHECK_REVOKED, truth);
    let pause = values.value(&table::REVOCATION_SECONDS, number(1..=DAY)).map(Duration::from_secs);

    let conflicts = conflicts(values);
    let service_account = match (&file, check_revoked) {
        (Ok(Some(file)), Ok(true)) => service_account(values, file),
        _ => Err(Reported),
    };
    // Reported beside all other mistakes, not after them.
    if [&table::FIREBASE_PROJECT_ID, &table::CREDENTIALS, &table::ISSUER]
        .iter()
        .all(|setting| values.given(setting).is_none())
    {
        return Err(values.mistake(&table::FIREBASE_PROJECT_ID, NOBODY));
    }
    conflicts?;
    let (audience, jwks_url, project, file) = (audience?, jwks_url?, project?, file?);
    // Without conflicts, whoever gave no issuer has a project: its own, or its credentials file's.
    let project_id = project.or_else(|| file.and_then(|file| file.project_id)).ok_or(Reported);
    let issuer = match (issuer?, emulator?) {
        (Some(issuer), _) => Issuer::OpenId {
            issuer,
            audience: audience.ok_or(Reported)?,
            jwks_url: jwks_url.ok_or(Reported)?,
        },
        (None, Some(host)) => {
            values.notice(Notice::UnsignedTokens);
            Issuer::Emulator { project_id: project_id?, host }
        }
        (None, None) => Issuer::Firebase { project_id: project_id?, jwks_url },
    };
    let service = match (check_revoked?, &issuer) {
        (false, _) => None,
        (true, Issuer::Emulator { .. }) => Some(IdentityService::Emulator),
        (true, Issuer::Firebase { .. } | Issuer::OpenId { .. }) => {
            Some(IdentityService::Google(service_account?))
        }
    };
    let pause = pause?;
    Ok(Settings { issuer, revocation: service.map(|service| Revocation { service, pause }) })
}

/// Settings that are fine alone and wrong together.
fn conflicts(values: &mut Values) -> Read<()> {
    let given = |setting| values.given(setting).is_some();
    let (project, file, emulator) =
        (given(&table::FIREBASE_PROJECT_ID), given(&table::CREDENTIALS), given(&table::EMULATOR));
    let (issuer, audience, keys) = (given(&table::ISSUER), given(&table::AUDIENCE), given(&table::JWKS_URL));
    let check_revoked = values.given(&table::CHECK_REVOKED).is_some_and(|text| truth(text) == Ok(true));

    let rules = [
        (
            emulator && file,
            &table::EMULATOR,
            "is refused beside GOOGLE_APPLICATION_CREDENTIALS: who accepts unsigned tokens must not hold production credentials",
        ),
        (emulator && issuer, &table::EMULATOR, "contradicts DUORELAY_ISSUER: choose one of them"),
        (
            emulator && keys && !issuer,
            &table::JWKS_URL,
            "has no use beside FIREBASE_AUTH_EMULATOR_HOST, whose tokens are not signed",
        ),
        (issuer && project, &table::ISSUER, "contradicts FIREBASE_PROJECT_ID: choose one of them"),
        (issuer && !audience, &table::AUDIENCE, "is missing: DUORELAY_ISSUER needs it"),
        (issuer && !keys, &table::JWKS_URL, "is missing: DUORELAY_ISSUER needs it"),
        (audience && !issuer, &table::ISSUER, "is missing: DUORELAY_AUDIENCE is for it only"),
        (
            check_revoked && issuer,
            &table::CHECK_REVOKED,
            "works with Firebase only, not with DUORELAY_ISSUER",
        ),
        (
            check_revoked && !issuer && !emulator && !file,
            &table::CHECK_REVOKED,
            "needs GOOGLE_APPLICATION_CREDENTIALS, a service account's file, to ask Google with",
        ),
    ];
    let mut conflicts = Ok(());
    for (_, setting, problem) in rules.into_iter().filter(|(is_broken, ..)| *is_broken) {
        conflicts = Err(values.mistake(setting, problem));
    }
    conflicts
}

/// Reads the file; no problem repeats what is in it.
fn credentials_file(path: &str) -> Result<CredentialsFile, String> {
    let text = fs::read_to_string(path).map_err(|error| format!("{path:?} cannot be read: {error}"))?;
    let file: CredentialsFile = serde_json::from_str(&text).map_err(|error| {
        format!(
            "{path:?} is not a service account's JSON file (line {}, column {})",
            error.line(),
            error.column()
        )
    })?;
    match file.project_id.as_deref().map(project_id) {
        None => Err(format!("{path:?} is not a service account's file: it has no project_id")),
        Some(Err(problem)) => Err(format!("the project_id in {path:?} {problem}")),
        Some(Ok(_)) => Ok(file),
    }
}

fn service_account(values: &mut Values, file: &CredentialsFile) -> Read<ServiceAccount> {
    let mut field = |name: &str, value: Option<&String>| {
        value.filter(|value| !value.is_empty()).cloned().ok_or_else(|| {
            let problem = format!("the file has no {name}, which DUORELAY_CHECK_REVOKED needs");
            values.mistake(&table::CREDENTIALS, problem)
        })
    };
    let project_id = field("project_id", file.project_id.as_ref());
    let client_email = field("client_email", file.client_email.as_ref());
    let private_key = field("private_key", file.private_key.as_ref()).and_then(|key| {
        let problem = "the file's private_key is not an RSA key in PEM (PKCS #8)";
        if is_rsa_key(&key) { Ok(key) } else { Err(values.mistake(&table::CREDENTIALS, problem)) }
    });
    let token_uri = http_url(file.token_uri.as_deref().unwrap_or("https://oauth2.googleapis.com/token"))
        .map_err(|problem| values.mistake(&table::CREDENTIALS, format!("the file's token_uri {problem}")));
    Ok(ServiceAccount {
        project_id: project_id?,
        client_email: client_email?,
        private_key: SecretString::from(private_key?),
        private_key_id: file.private_key_id.clone(),
        token_uri: token_uri?,
    })
}

fn is_rsa_key(pem: &str) -> bool {
    let base64 = pem.trim().strip_prefix("-----BEGIN PRIVATE KEY-----");
    let base64 = base64.and_then(|rest| rest.strip_suffix("-----END PRIVATE KEY-----"));
    let base64: String = base64.unwrap_or_default().split_whitespace().collect();
    base64::engine::general_purpose::STANDARD
        .decode(base64)
        .is_ok_and(|der| aws_lc_rs::rsa::KeyPair::from_pkcs8(&der).is_ok())
}
