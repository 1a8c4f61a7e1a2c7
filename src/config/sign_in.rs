//! The issuer of accepted tokens: one of Firebase, its emulator, and another OpenID Connect issuer.

use std::time::Duration;

use super::parse::{DAY, emulator_host, metadata_host, number, truth, word};
use super::table::{
    AUDIENCE, CHECK_REVOKED, CREDENTIALS, EMULATOR, FIREBASE_PROJECT_ID, ISSUER, JWKS_URL, METADATA_HOST,
    REVOCATION_SECONDS,
};
use super::values::{Read, Reported, Values};
use super::{Machine, Notice};
use crate::auth::credentials::{self, File};
use crate::auth::settings::{Credentials, IdentityService, Issuer, Revocation, Settings};
use crate::auth::{http_url, project_id};

const NOBODY: &str = "is missing, so nobody could sign in. Set it to your Firebase project's id, or \
     GOOGLE_APPLICATION_CREDENTIALS to a service account's file that has it, or DUORELAY_ISSUER, \
     DUORELAY_AUDIENCE and DUORELAY_JWKS_URL for another issuer; `duorelay demo` needs none of them";

const NO_PROJECT: &str = "is missing, and the file of GOOGLE_APPLICATION_CREDENTIALS names no project";

/// Settings that are fine alone and wrong together: `(is_broken, of which setting, what is wrong)`.
macro_rules! conflicts {
    ($values:ident: $($is_broken:expr => $setting:ident $problem:literal;)*) => {{
        let mut conflicts = Ok(());
        $(if $is_broken { conflicts = Err($values.mistake(&$setting, $problem)); })*
        conflicts
    }};
}

pub(super) fn read(values: &mut Values, machine: Machine) -> Read<Settings> {
    let file = credentials_file(values);
    let project = values.optional(&FIREBASE_PROJECT_ID, project_id);
    let emulator = values.optional(&EMULATOR, emulator_host);
    let issuer = values.optional(&ISSUER, word);
    let audience = values.optional(&AUDIENCE, word);
    let jwks_url = values.optional(&JWKS_URL, http_url);
    let check_revoked = values.value(&CHECK_REVOKED, truth);
    let pause = values.value(&REVOCATION_SECONDS, number(1..=DAY)).map(Duration::from_secs);
    let metadata = values.optional(&METADATA_HOST, metadata_host);
    let of_google = || machine.google.then(|| credentials::METADATA_HOST.to_owned());
    let metadata = metadata.map(|host| host.or_else(of_google));

    let conflicts = conflicts(values, matches!(metadata, Ok(Some(_))));
    let credentials = match (&file, check_revoked) {
        (Ok(Some(file)), Ok(true)) => file.credentials().map_err(|problems| {
            problems.into_iter().fold(Reported, |_, problem| values.mistake(&CREDENTIALS, problem))
        }),
        (Ok(None), Ok(true)) => {
            metadata.and_then(|host| Ok(Credentials::Metadata { host: host.ok_or(Reported)? }))
        }
        _ => Err(Reported),
    };
    // Reported beside all other mistakes, not after them.
    let given = |setting| values.given(setting).is_some();
    if ![&FIREBASE_PROJECT_ID, &CREDENTIALS, &ISSUER].into_iter().any(given) {
        return Err(values.mistake(&FIREBASE_PROJECT_ID, NOBODY));
    }
    conflicts?;
    let (issuer, emulator, audience, jwks_url) = (issuer?, emulator?, audience?, jwks_url?);
    let (project, file) = (project?, file?);
    let project_id = match project.or_else(|| file.and_then(|file| file.project_id)) {
        Some(project_id) => Ok(project_id),
        // Another issuer has an audience instead.
        None if issuer.is_some() => Err(Reported),
        None => Err(values.mistake(&FIREBASE_PROJECT_ID, NO_PROJECT)),
    };
    let issuer = match (issuer, emulator) {
        (Some(issuer), _) => {
            let (audience, jwks_url) = (audience.ok_or(Reported)?, jwks_url.ok_or(Reported)?);
            Issuer::OpenId { issuer, audience, jwks_url }
        }
        (None, Some(host)) => {
            values.notice(Notice::UnsignedTokens);
            Issuer::Emulator { project_id: project_id?, host }
        }
        (None, None) => Issuer::Firebase { project_id: project_id?, jwks_url },
    };
    let service = match (check_revoked?, &issuer) {
        (false, _) => None,
        (true, Issuer::Emulator { .. }) => Some(IdentityService::Emulator),
        (true, _) => Some(IdentityService::Google(credentials?)),
    };
    let pause = pause?;
    Ok(Settings { issuer, revocation: service.map(|service| Revocation { service, pause }) })
}

/// The credentials file. The relay needs it for revocation checks, and for the project where no setting names
/// that. Otherwise the file may be of any kind, or missing: a platform or a developer's shell may set it for
/// other programs.
fn credentials_file(values: &mut Values) -> Read<Option<File>> {
    let Some(path) = values.given(&CREDENTIALS).map(str::to_owned) else {
        return Ok(None);
    };
    let is_named = values.given(&FIREBASE_PROJECT_ID).or(values.given(&ISSUER)).is_some();
    let checks_off = values.given(&CHECK_REVOKED).is_none_or(|text| truth(text) == Ok(false));
    let is_optional = is_named && checks_off;
    let problem = match File::read(&path) {
        Ok(file) if !is_optional || file.is_service_account() => return Ok(Some(file)),
        Ok(_) => format!("{path:?} is no service account's file"),
        Err(problem) => problem,
    };
    if is_optional {
        values.notice(Notice::UnusedCredentials(problem));
        return Ok(None);
    }
    Err(values.mistake(&CREDENTIALS, problem))
}

fn conflicts(values: &mut Values, has_metadata: bool) -> Read<()> {
    let given = |setting| values.given(setting).is_some();
    let (project, file, emulator) = (given(&FIREBASE_PROJECT_ID), given(&CREDENTIALS), given(&EMULATOR));
    let (issuer, audience, keys) = (given(&ISSUER), given(&AUDIENCE), given(&JWKS_URL));
    let checks = values.given(&CHECK_REVOKED).is_some_and(|text| truth(text) == Ok(true));
    conflicts! { values:
        emulator && file => EMULATOR "is refused beside GOOGLE_APPLICATION_CREDENTIALS: a relay that accepts unsigned \
            tokens must not hold production credentials";
        emulator && issuer => EMULATOR "contradicts DUORELAY_ISSUER: choose one of them";
        emulator && keys && !issuer => JWKS_URL "has no use beside FIREBASE_AUTH_EMULATOR_HOST, whose tokens are not signed";
        issuer && project => ISSUER "contradicts FIREBASE_PROJECT_ID: choose one of them";
        issuer && !audience => AUDIENCE "is missing: DUORELAY_ISSUER needs it";
        issuer && !keys => JWKS_URL "is missing: DUORELAY_ISSUER needs it";
        audience && !issuer => ISSUER "is missing: DUORELAY_AUDIENCE is for it only";
        checks && issuer => CHECK_REVOKED "works with Firebase only, not with DUORELAY_ISSUER";
        checks && !issuer && !emulator && !file && !has_metadata => CHECK_REVOKED "needs GOOGLE_APPLICATION_CREDENTIALS, \
            a service account's or a workload identity's file, or one of Google's platforms (GCE_METADATA_HOST elsewhere), \
            to ask Google with";
    }
}
