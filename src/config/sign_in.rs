//! Whose tokens are accepted: one of Firebase, its emulator, and another OpenID Connect issuer.

use std::time::Duration;

use super::parse::{DAY, emulator_host, http_url, metadata_host, number, project_id, truth, word};
use super::values::{Read, Reported, Values};
use super::{Machine, Notice, credentials, table};
use crate::auth::settings::{Credentials, IdentityService, Issuer, Revocation, Settings};

/// The metadata server's name on all of Google's platforms.
const METADATA_HOST: &str = "metadata.google.internal";

const NOBODY: &str = "is missing, so nobody could sign in. Set it to your Firebase project's id, or \
     GOOGLE_APPLICATION_CREDENTIALS to a service account's file that has it, or DUORELAY_ISSUER, \
     DUORELAY_AUDIENCE and DUORELAY_JWKS_URL for another issuer; `duorelay demo` needs none of them";

const NO_PROJECT: &str = "is missing, and the file of GOOGLE_APPLICATION_CREDENTIALS names no project";

pub(super) fn read(values: &mut Values, machine: Machine) -> Read<Settings> {
    let file = credentials_file(values);
    let project = values.optional(&table::FIREBASE_PROJECT_ID, project_id);
    let emulator = values.optional(&table::EMULATOR, emulator_host);
    let issuer = values.optional(&table::ISSUER, word);
    let audience = values.optional(&table::AUDIENCE, word);
    let jwks_url = values.optional(&table::JWKS_URL, http_url);
    let check_revoked = values.value(&table::CHECK_REVOKED, truth);
    let pause = values.value(&table::REVOCATION_SECONDS, number(1..=DAY)).map(Duration::from_secs);

    let metadata = values.optional(&table::METADATA_HOST, metadata_host);
    let metadata = metadata.map(|host| host.or_else(|| machine.google.then(|| METADATA_HOST.to_owned())));

    let conflicts = conflicts(values, matches!(metadata, Ok(Some(_))));
    let credentials = match (&file, check_revoked) {
        (Ok(Some(file)), Ok(true)) => credentials::credentials(values, file),
        (Ok(None), Ok(true)) => {
            metadata.and_then(|host| host.map(|host| Credentials::Metadata { host }).ok_or(Reported))
        }
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
    let project_id = project.or_else(|| file.and_then(|file| file.project_id));
    let (issuer, emulator) = (issuer?, emulator?);
    let project_id = match project_id {
        Some(project_id) => Ok(project_id),
        // Another issuer has an audience instead.
        None if issuer.is_some() => Err(Reported),
        None => Err(values.mistake(&table::FIREBASE_PROJECT_ID, NO_PROJECT)),
    };
    let issuer = match (issuer, emulator) {
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
            Some(IdentityService::Google(credentials?))
        }
    };
    let pause = pause?;
    Ok(Settings { issuer, revocation: service.map(|service| Revocation { service, pause }) })
}

/// The credentials file. It is needed for revocation checks, and for the project where that is not named; otherwise it may
/// be of any kind, or missing: a platform or a developer's shell may set it for other programs.
fn credentials_file(values: &mut Values) -> Read<Option<credentials::File>> {
    let names = [&table::FIREBASE_PROJECT_ID, &table::ISSUER];
    let is_named = names.iter().any(|setting| values.given(setting).is_some());
    let checks_off = values.given(&table::CHECK_REVOKED).is_none_or(|text| truth(text) == Ok(false));
    let Some(path) = values.given(&table::CREDENTIALS).map(str::to_owned) else {
        return Ok(None);
    };
    match credentials::read(&path) {
        Ok(file) if is_named && checks_off && !file.is_service_account() => {
            values.notice(Notice::UnusedCredentials(format!("{path:?} is no service account's file")));
            Ok(None)
        }
        Ok(file) => Ok(Some(file)),
        Err(problem) if is_named && checks_off => {
            values.notice(Notice::UnusedCredentials(problem));
            Ok(None)
        }
        Err(problem) => Err(values.mistake(&table::CREDENTIALS, problem)),
    }
}

/// Settings that are fine alone and wrong together.
fn conflicts(values: &mut Values, has_metadata: bool) -> Read<()> {
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
            check_revoked && !issuer && !emulator && !file && !has_metadata,
            &table::CHECK_REVOKED,
            "needs GOOGLE_APPLICATION_CREDENTIALS, a service account's or a workload identity's file, or one of Google's \
             platforms (GCE_METADATA_HOST elsewhere), to ask Google with",
        ),
    ];
    let mut conflicts = Ok(());
    for (_, setting, problem) in rules.into_iter().filter(|(is_broken, ..)| *is_broken) {
        conflicts = Err(values.mistake(setting, problem));
    }
    conflicts
}
