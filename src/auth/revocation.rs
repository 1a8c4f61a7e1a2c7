//! Does a session still stand? Asked of Google's Identity Toolkit, or of the emulator.
//!
//! The verdict is that of the Admin SDKs' `verifyIdToken(token, checkRevoked = true)`: a disabled user, then
//! a sign-in older than `validSince`. A user who is gone counts as disabled; the SDKs have an
//! error of its own for that.

use std::fmt;
use std::time::Instant;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::{Client, StatusCode, Url};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Deserializer};
use serde_json::json;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::AuthError;
use super::calls::{self, CALL_TIME, CallError};
use super::claims::Identity;
use super::grant::Grant;
use super::settings::Credentials;
use crate::relay::refusal::Refusal;
use crate::telemetry::Seldom;

/// Lookups that are under way at once; those past it wait, within their own time limit.
const LOOKUPS: usize = 64;
/// Checks that are under way or wait. One past it ends at once without an answer.
const CHECKS: usize = 4096;

/// What is escaped in a path segment; a project id has dashes.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-');

/// Asks one project's identity service about its users.
pub(super) struct Checker {
    client: Client,
    /// The project's users; a tenant's are looked up below it.
    project: Url,
    access: Access,
    checks: Semaphore,
    lookups: Semaphore,
    /// For log lines that every handshake could cause.
    crowded: Seldom,
    unanswered: Seldom,
}

impl fmt::Debug for Checker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Checker").field("project", &self.project.as_str()).finish_non_exhaustive()
    }
}

/// What the lookup is authorized with.
enum Access {
    /// The emulator takes this word for a project owner.
    Owner,
    Granted(Box<Grant>),
}

impl Checker {
    /// Asks Google about this project's users. The account may belong to another project that was given the role.
    pub(super) fn google(credentials: &Credentials, project_id: &str) -> Result<Self, AuthError> {
        Self::google_at("https://identitytoolkit.googleapis.com", credentials, project_id)
    }

    fn google_at(base: &str, credentials: &Credentials, project_id: &str) -> Result<Self, AuthError> {
        Self::new(base, project_id, Access::Granted(Box::new(Grant::new(credentials)?)))
    }

    /// Asks the emulator at `HOST:PORT`.
    pub(super) fn emulator(host: &str, project_id: &str) -> Result<Self, AuthError> {
        super::emulator::check_host(host)?;
        let base = format!("http://{host}/identitytoolkit.googleapis.com");
        Self::new(&base, project_id, Access::Owner)
    }

    fn new(base: &str, project_id: &str, access: Access) -> Result<Self, AuthError> {
        let project = utf8_percent_encode(project_id, ESCAPED);
        let project = Url::parse(&format!("{base}/v1/projects/{project}/"))
            .map_err(|error| AuthError::Url { what: "the identity service", problem: error.to_string() })?;
        Ok(Self {
            client: calls::client(&project)?,
            project,
            access,
            checks: Semaphore::new(CHECKS),
            lookups: Semaphore::new(LOOKUPS),
            crowded: Seldom::default(),
            unanswered: Seldom::default(),
        })
    }

    /// The identity service's verdict, within [`CALL_TIME`].
    pub(super) async fn check(&self, identity: &Identity) -> Result<(), Refusal> {
        let Ok(_counted) = self.checks.try_acquire() else {
            if self.crowded.is_due(Instant::now()) {
                tracing::warn!(checks = CHECKS, "too many revocation checks are under way");
            }
            return Err(Refusal::KeysUnavailable);
        };
        let account = timeout(CALL_TIME, self.account(identity)).await.unwrap_or(Err(CallError::TimedOut));
        match account {
            Ok(account) => verdict(account.as_ref(), identity),
            Err(error) => {
                if self.unanswered.is_due(Instant::now()) {
                    tracing::warn!(%error, "the identity service gave no answer about a session");
                }
                Err(Refusal::KeysUnavailable)
            }
        }
    }

    /// Where users are looked up. The project itself knows nothing of its tenants' users
    /// (<https://cloud.google.com/identity-platform/docs/reference/rest/v1/projects.tenants.accounts/lookup>).
    fn lookup(&self, tenant: Option<&str>) -> Url {
        let path = match tenant {
            Some(tenant) => format!("tenants/{}/accounts:lookup", utf8_percent_encode(tenant, ESCAPED)),
            None => "accounts:lookup".to_owned(),
        };
        let mut url = self.project.clone();
        url.set_path(&format!("{}{path}", self.project.path()));
        url
    }

    async fn account(&self, identity: &Identity) -> Result<Option<Account>, CallError> {
        let _turn = self.lookups.acquire().await.map_err(|_| CallError::Nonsense("closed"))?;
        let token = match &self.access {
            Access::Owner => SecretString::from("owner"),
            Access::Granted(grant) => grant.token().await?,
        };
        let uid = identity.user.uid();
        let request =
            self.client.post(self.lookup(identity.user.tenant())).bearer_auth(token.expose_secret());
        let response = request.json(&json!({"localId": [uid]})).send().await?;
        if let (StatusCode::UNAUTHORIZED, Access::Granted(grant)) = (response.status(), &self.access) {
            grant.forget(&token).await;
        }
        account_in(&calls::body(response).await?, uid)
    }
}

fn account_in(answer: &[u8], uid: &str) -> Result<Option<Account>, CallError> {
    let found: Found =
        serde_json::from_slice(answer).map_err(|_| CallError::Nonsense("not a list of accounts"))?;
    Ok(found.users.into_iter().find(|account| account.local_id == uid))
}

#[cfg(fuzzing)]
pub(super) fn read(answer: &[u8], identity: &Identity) -> Result<(), Refusal> {
    let account = account_in(answer, identity.user.uid()).map_err(|_| Refusal::KeysUnavailable)?;
    verdict(account.as_ref(), identity)
}

/// No answer about a user is an answer: the user is gone.
fn verdict(account: Option<&Account>, identity: &Identity) -> Result<(), Refusal> {
    match account {
        None | Some(Account { disabled: true, .. }) => Err(Refusal::UserDisabled),
        Some(account) => {
            let signed_in = identity.auth_time.unwrap_or(identity.issued_at);
            if signed_in < account.valid_since { Err(Refusal::TokenRevoked) } else { Ok(()) }
        }
    }
}

/// `GetAccountInfoResponse`, as far as it matters
/// (<https://cloud.google.com/identity-platform/docs/reference/rest/v1/projects.accounts/lookup>).
#[derive(Deserialize)]
struct Found {
    #[serde(default)]
    users: Vec<Account>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Account {
    local_id: String,
    #[serde(default)]
    disabled: bool,
    /// Unix seconds; 0 where the user's sessions were never revoked.
    #[serde(default, deserialize_with = "int64")]
    valid_since: u64,
}

/// An `int64` in Google's JSON: a string of digits.
fn int64<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Int64 {
        Text(String),
        Number(u64),
    }
    match Int64::deserialize(deserializer)? {
        Int64::Text(digits) => digits.parse().map_err(serde::de::Error::custom),
        Int64::Number(number) => Ok(number),
    }
}

#[cfg(test)]
#[path = "revocation_tests.rs"]
mod tests;
