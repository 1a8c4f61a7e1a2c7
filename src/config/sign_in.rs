//! Whose tokens are accepted: one of Firebase, its emulator, and another OpenID Connect issuer.

use std::fs;
use std::time::Duration;

use base64::Engine as _;
use secrecy::SecretString;
use serde::Deserialize;

use super::read::{DAY, http_url, number, truth};
use super::values::Values;
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

pub(super) fn read(values: &mut Values) -> Option<Settings> {
    let file = values.optional(&table::CREDENTIALS, credentials_file);
    let project_id = values.optional(&table::FIREBASE_PROJECT_ID, project_id);
    let emulator = values.optional(&table::EMULATOR, emulator_host);
    let issuer = values.optional(&table::ISSUER, word);
    let audience = values.optional(&table::AUDIENCE, word);
    let jwks_url = values.optional(&table::JWKS_URL, http_url);
    let check_revoked = values.required(&table::CHECK_REVOKED, false, truth);
    let pause = values.required(&table::REVOCATION_SECONDS, 0, number(1..=DAY)).map(Duration::from_secs);

    let conflicts = conflicts(values);
    let service_account = match (&file, check_revoked) {
        (Some(Some(file)), Some(true)) => service_account(values, file),
        _ => None,
    };
    // Told beside all other mistakes, not after them.
    let nobody = [&table::FIREBASE_PROJECT_ID, &table::CREDENTIALS, &table::ISSUER]
        .into_iter()
        .all(|setting| values.given(setting).is_none());
    if nobody {
        values.mistake(&table::FIREBASE_PROJECT_ID, NOBODY);
    }
    let (file, project_id, emulator, issuer) = (file?, project_id?, emulator?, issuer?);
    let (audience, jwks_url, check_revoked, pause) = (audience?, jwks_url?, check_revoked?, pause?);
    if conflicts {
        return None;
    }

    let issuer = match (issuer, emulator) {
        (Some(issuer), _) => Issuer::OpenId { issuer, audience: audience?, jwks_url: jwks_url? },
        (None, emulator) => {
            let Some(project_id) = project_id.or_else(|| file.and_then(|file| file.project_id)) else {
                if !nobody {
                    values.mistake(&table::FIREBASE_PROJECT_ID, NOBODY);
                }
                return None;
            };
            match emulator {
                Some(host) => {
                    values.notice(Notice::UnsignedTokens);
                    Issuer::Emulator { project_id, host }
                }
                None => Issuer::Firebase { project_id, jwks_url },
            }
        }
    };
    let service = match (check_revoked, &issuer) {
        (false, _) => None,
        (true, Issuer::Emulator { .. }) => Some(IdentityService::Emulator),
        (true, Issuer::Firebase { .. } | Issuer::OpenId { .. }) => {
            Some(IdentityService::Google(service_account?))
        }
    };
    Some(Settings { issuer, revocation: service.map(|service| Revocation { service, pause }) })
}

/// Settings that are fine alone and wrong together; true when there are any.
fn conflicts(values: &mut Values) -> bool {
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
    let mut any = false;
    for (broken, setting, problem) in rules {
        if broken {
            values.mistake(setting, problem);
            any = true;
        }
    }
    any
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

fn service_account(values: &mut Values, file: &CredentialsFile) -> Option<ServiceAccount> {
    let mut field = |name: &str, value: Option<&String>| {
        let value = value.filter(|value| !value.is_empty());
        if value.is_none() {
            let problem = format!("the file has no {name}, which DUORELAY_CHECK_REVOKED needs");
            values.mistake(&table::CREDENTIALS, problem);
        }
        value.cloned()
    };
    let project_id = field("project_id", file.project_id.as_ref());
    let client_email = field("client_email", file.client_email.as_ref());
    let private_key = field("private_key", file.private_key.as_ref());
    let private_key = private_key.filter(|key| {
        let readable = is_rsa_key(key);
        if !readable {
            let problem = "the file's private_key is not an RSA key in PEM (PKCS #8)";
            values.mistake(&table::CREDENTIALS, problem);
        }
        readable
    });
    let token_uri = file.token_uri.as_deref().unwrap_or("https://oauth2.googleapis.com/token");
    let token_uri = http_url(token_uri)
        .map_err(|problem| values.mistake(&table::CREDENTIALS, format!("the file's token_uri {problem}")))
        .ok();
    Some(ServiceAccount {
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

fn project_id(text: &str) -> Result<String, String> {
    // Old projects are scoped by their owner's domain: `example.com:project`.
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.:".contains(c);
    if text.chars().all(plain) && !text.is_empty() {
        Ok(text.to_owned())
    } else {
        Err(format!("must be a project's id, such as my-project-1234 (not its name), but is {text:?}"))
    }
}

/// `HOST:PORT`, as Firebase's own libraries want it.
fn emulator_host(text: &str) -> Result<String, String> {
    let wrong = || format!("must be HOST:PORT without a scheme, such as 127.0.0.1:9099, but is {text:?}");
    let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    let valid = url::Host::parse(host).is_ok() && port.parse::<u16>().is_ok_and(|port| port > 0);
    if valid { Ok(text.to_owned()) } else { Err(wrong()) }
}

fn word(text: &str) -> Result<String, String> {
    if text.contains(char::is_whitespace) {
        Err(format!("must not contain white space, but is {text:?}"))
    } else {
        Ok(text.to_owned())
    }
}
