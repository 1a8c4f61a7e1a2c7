//! Access tokens for the identity service: by a service account's key, from the metadata server of Google's platforms,
//! or by workload identity federation.

use std::time::Duration;

use reqwest::header::CONTENT_TYPE;
use reqwest::{Client, RequestBuilder, Url};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::calls::{self, CallError};
use super::settings::{Credentials, ExternalAccount, ServiceAccount, SubjectToken, SubjectTokenSource};
use super::signer::Signer;
use super::{AuthError, unix_now};

/// Lets one call look up users, and no more than that family of calls.
const SCOPE: &str = "https://www.googleapis.com/auth/identitytoolkit";
/// What a federated identity asks for: what it may do is decided by the roles that it was given.
const CLOUD_SCOPE: &str = "https://www.googleapis.com/auth/cloud-platform";
/// How long an assertion may be used, in seconds; Google allows an hour.
const ASSERTION_SECONDS: u64 = 300;
/// How long an impersonated account's token is asked for, in seconds; an hour is the longest without a policy.
const IMPERSONATION_SECONDS: u64 = 3600;
/// An access token is given up this long before its end.
const ACCESS_MARGIN: Duration = Duration::from_secs(60);
/// After a refused or failed grant, the pause before the next one.
const GRANT_PAUSE: Duration = Duration::from_secs(1);

/// Grants access tokens, one at a time, and keeps the last one.
pub(super) struct Grant {
    source: Source,
    /// Held while a grant is asked for: those who come meanwhile wait for that one.
    granted: Mutex<Granted>,
}

/// Where access tokens come from.
enum Source {
    Key(Box<KeySource>),
    Metadata { client: Client, url: Url },
    External(Box<External>),
}

/// The JWT bearer grant (RFC 7523 section 2.1;
/// <https://developers.google.com/identity/protocols/oauth2/service-account#authorizingrequests>).
struct KeySource {
    client: Client,
    token_uri: Url,
    account: String,
    signer: Signer,
}

/// Token exchange (RFC 8693; <https://google.aip.dev/auth/4117>), then the service account that it may speak for.
struct External {
    client: Client,
    token_url: Url,
    impersonation_url: Option<Url>,
    audience: String,
    subject_token_type: String,
    subject: SubjectToken,
}

enum Granted {
    Nothing,
    Token {
        token: SecretString,
        until: Instant,
    },
    /// So that those who waited do not each repeat what just failed.
    Failed {
        until: Instant,
    },
}

#[derive(Deserialize)]
struct TokenAnswer {
    #[serde(deserialize_with = "secret")]
    access_token: SecretString,
    /// Seconds from the answer.
    expires_in: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Impersonated {
    #[serde(deserialize_with = "secret")]
    access_token: SecretString,
}

fn secret<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SecretString, D::Error> {
    String::deserialize(deserializer).map(SecretString::from)
}

impl Grant {
    pub(super) fn new(credentials: &Credentials) -> Result<Self, AuthError> {
        let source = match credentials {
            Credentials::ServiceAccount(account) => Source::Key(Box::new(KeySource::new(account)?)),
            Credentials::Metadata { host } => {
                // Plain HTTP, as Google has it: the address leads to the machine itself, and to no network.
                let url = format!("http://{host}/computeMetadata/v1/instance/service-accounts/default/token");
                let url = Url::parse(&url).map_err(|error| AuthError::Url {
                    what: "GCE_METADATA_HOST",
                    problem: error.to_string(),
                })?;
                Source::Metadata { client: calls::client(&url)?, url }
            }
            Credentials::External(account) => Source::External(Box::new(External::new(account)?)),
        };
        Ok(Self { source, granted: Mutex::new(Granted::Nothing) })
    }

    pub(super) async fn token(&self) -> Result<SecretString, CallError> {
        let mut granted = self.granted.lock().await;
        match &*granted {
            Granted::Token { token, until } if Instant::now() < *until => return Ok(token.clone()),
            Granted::Failed { until } if Instant::now() < *until => {
                return Err(CallError::Nonsense("no access token was granted a moment ago"));
            }
            Granted::Nothing | Granted::Token { .. } | Granted::Failed { .. } => {}
        }
        match self.ask().await {
            Ok(answer) => {
                let life = Duration::from_secs(answer.expires_in.min(24 * 3600));
                let until = Instant::now() + life.saturating_sub(ACCESS_MARGIN);
                *granted = Granted::Token { token: answer.access_token.clone(), until };
                Ok(answer.access_token)
            }
            Err(error) => {
                *granted = Granted::Failed { until: Instant::now() + GRANT_PAUSE };
                Err(error)
            }
        }
    }

    /// Drops a token that was not accepted, unless another one has taken its place.
    pub(super) async fn forget(&self, refused: &SecretString) {
        let mut granted = self.granted.lock().await;
        if matches!(&*granted, Granted::Token { token, .. } if token.expose_secret() == refused.expose_secret())
        {
            *granted = Granted::Nothing;
        }
    }

    async fn ask(&self) -> Result<TokenAnswer, CallError> {
        match &self.source {
            Source::Key(key) => key.ask().await,
            Source::Metadata { client, url } => {
                // Without the header the server refuses: a page that was led here cannot set it
                // (<https://cloud.google.com/compute/docs/metadata/querying-metadata>).
                token_of(client.get(url.clone()).header("Metadata-Flavor", "Google")).await
            }
            Source::External(external) => external.ask().await,
        }
    }
}

async fn token_of(request: RequestBuilder) -> Result<TokenAnswer, CallError> {
    serde_json::from_slice(&calls::body(request.send().await?).await?)
        .map_err(|_| CallError::Nonsense("not an access token"))
}

fn form(client: &Client, url: &Url, fields: &[(&str, &str)]) -> RequestBuilder {
    let body = form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish();
    client.post(url.clone()).body(body).header(CONTENT_TYPE, "application/x-www-form-urlencoded")
}

impl KeySource {
    fn new(account: &ServiceAccount) -> Result<Self, AuthError> {
        let token_uri =
            calls::endpoint("the token_uri in GOOGLE_APPLICATION_CREDENTIALS", &account.token_uri)?;
        let kid = account.private_key_id.clone();
        Ok(Self {
            client: calls::client(&token_uri)?,
            token_uri,
            account: account.client_email.clone(),
            signer: Signer::from_pem(account.private_key.expose_secret(), kid)
                .map_err(|_| AuthError::PrivateKey)?,
        })
    }

    async fn ask(&self) -> Result<TokenAnswer, CallError> {
        let now = unix_now();
        let assertion = self
            .signer
            .sign(&json!({
                "iss": self.account,
                "scope": SCOPE,
                "aud": self.token_uri.as_str(),
                "iat": now,
                "exp": now + ASSERTION_SECONDS,
            }))
            .map_err(|_| CallError::Nonsense("the assertion could not be signed"))?;
        let grant_type = ("grant_type", "urn:ietf:params:oauth:grant-type:jwt-bearer");
        token_of(form(&self.client, &self.token_uri, &[grant_type, ("assertion", &assertion)])).await
    }
}

impl External {
    fn new(account: &ExternalAccount) -> Result<Self, AuthError> {
        let endpoint = |what, url: &str| calls::endpoint(what, url);
        let token_url = endpoint("the token_url in GOOGLE_APPLICATION_CREDENTIALS", &account.token_url)?;
        let what = "the service_account_impersonation_url in GOOGLE_APPLICATION_CREDENTIALS";
        let impersonation_url =
            account.impersonation_url.as_deref().map(|url| endpoint(what, url)).transpose()?;
        Ok(Self {
            client: calls::client(&token_url)?,
            token_url,
            impersonation_url,
            audience: account.audience.clone(),
            subject_token_type: account.subject_token_type.clone(),
            subject: account.subject.clone(),
        })
    }

    async fn ask(&self) -> Result<TokenAnswer, CallError> {
        let subject = self.subject_token().await?;
        let exchanged = token_of(form(
            &self.client,
            &self.token_url,
            &[
                ("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange"),
                ("audience", &self.audience),
                ("scope", CLOUD_SCOPE),
                ("requested_token_type", "urn:ietf:params:oauth:token-type:access_token"),
                ("subject_token_type", &self.subject_token_type),
                ("subject_token", subject.expose_secret()),
            ],
        ))
        .await?;
        let Some(url) = &self.impersonation_url else {
            return Ok(exchanged);
        };
        let request = self.client.post(url.clone()).bearer_auth(exchanged.access_token.expose_secret());
        let asked = json!({"scope": [SCOPE], "lifetime": format!("{IMPERSONATION_SECONDS}s")});
        let answer = calls::body(request.json(&asked).send().await?).await?;
        let Impersonated { access_token } = serde_json::from_slice(&answer)
            .map_err(|_| CallError::Nonsense("not an impersonated account's access token"))?;
        Ok(TokenAnswer { access_token, expires_in: IMPERSONATION_SECONDS })
    }

    /// What the platform says who this is; read anew each time, since platforms replace it.
    async fn subject_token(&self) -> Result<SecretString, CallError> {
        const UNREADABLE: CallError = CallError::Nonsense("the credential_source has no subject token");
        let text = match &self.subject.source {
            SubjectTokenSource::File(path) => {
                let path = path.clone();
                let read = tokio::task::spawn_blocking(move || std::fs::read_to_string(path)).await;
                read.map_err(std::io::Error::other).flatten().map_err(|_| UNREADABLE)?
            }
            SubjectTokenSource::Url { url, headers } => {
                let url = Url::parse(url).map_err(|_| UNREADABLE)?;
                let mut request = calls::client(&url).map_err(|_| UNREADABLE)?.get(url);
                for (name, value) in headers {
                    request = request.header(name, value);
                }
                String::from_utf8(calls::body(request.send().await?).await?).map_err(|_| UNREADABLE)?
            }
        };
        let token = match &self.subject.field {
            None => text.trim().to_owned(),
            Some(field) => {
                let answer: Value = serde_json::from_str(&text).map_err(|_| UNREADABLE)?;
                answer.get(field).and_then(Value::as_str).unwrap_or_default().to_owned()
            }
        };
        if token.is_empty() { Err(UNREADABLE) } else { Ok(token.into()) }
    }
}
