//! `GOOGLE_APPLICATION_CREDENTIALS`: what kind of file it is, and what Google is asked with by it.
//!
//! Problems complete the sentence "SETTING: ...", and repeat nothing that is in the file.

use std::collections::BTreeMap;
use std::fs;

use secrecy::SecretString;
use serde::Deserialize;

use super::calls::http_url;
use super::firebase::project_id;
use super::settings::{Credentials, ExternalAccount, ServiceAccount, SubjectToken, SubjectTokenSource};
use super::signer::Signer;

/// The metadata server's name on all of Google's platforms.
pub(crate) const METADATA_HOST: &str = "metadata.google.internal";

/// A credentials file; what only revocation checks need is asked for only then.
#[derive(Deserialize)]
pub(crate) struct File {
    #[serde(rename = "type")]
    kind: Option<String>,
    pub(crate) project_id: Option<String>,
    client_email: Option<String>,
    private_key: Option<String>,
    private_key_id: Option<String>,
    token_uri: Option<String>,
    audience: Option<String>,
    subject_token_type: Option<String>,
    token_url: Option<String>,
    service_account_impersonation_url: Option<String>,
    credential_source: Option<CredentialSource>,
}

#[derive(Deserialize)]
struct CredentialSource {
    file: Option<String>,
    url: Option<String>,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    format: Option<Format>,
}

#[derive(Deserialize)]
struct Format {
    r#type: Option<String>,
    subject_token_field_name: Option<String>,
}

impl File {
    /// Reads and parses the file at `path`.
    pub(crate) fn read(path: &str) -> Result<Self, String> {
        let text = fs::read_to_string(path).map_err(|error| format!("{path:?} cannot be read: {error}"))?;
        let file: Self = serde_json::from_str(&text).map_err(|error| {
            let (line, column) = (error.line(), error.column());
            format!("{path:?} is not a JSON file with credentials of Google (line {line}, column {column})")
        })?;
        match file.project_id.as_deref().map(project_id) {
            Some(Err(problem)) => Err(format!("the project_id in {path:?} {problem}")),
            None if file.is_service_account() => {
                Err(format!("{path:?} is not a service account's file: it has no project_id"))
            }
            Some(Ok(_)) | None => Ok(file),
        }
    }

    /// Google's own kind, with a key.
    pub(crate) fn is_service_account(&self) -> bool {
        self.kind.as_deref().is_none_or(|kind| kind == "service_account")
    }

    /// What revocation checks ask Google with, by a file of this kind; or everything that is wrong with it.
    pub(crate) fn credentials(&self) -> Result<Credentials, Vec<String>> {
        let mut problems = Problems(Vec::new());
        let credentials = match self.kind.as_deref() {
            None | Some("service_account") => self.service_account(&mut problems),
            Some("external_account") => self.external_account(&mut problems),
            Some(_) => problems.take(Err(
                "is neither a service account's file (\"type\": \"service_account\") nor one of workload identity \
                 federation (\"external_account\"), which DUORELAY_CHECK_REVOKED could use"
                    .to_owned(),
            )),
        };
        credentials.ok_or(problems.0)
    }

    fn service_account(&self, problems: &mut Problems) -> Option<Credentials> {
        let project_id = problems.field("project_id", self.project_id.as_ref());
        let client_email = problems.field("client_email", self.client_email.as_ref());
        let private_key = problems.field("private_key", self.private_key.as_ref()).and_then(|key| {
            let problem = "the file's private_key is not an RSA key in PEM (PKCS #8)";
            problems.take(Signer::from_pem(&key, None).map(|_| key).map_err(|_| problem.to_owned()))
        });
        let token_uri = self.token_uri.as_deref().unwrap_or("https://oauth2.googleapis.com/token");
        let token_uri = problems.url("token_uri", token_uri);
        Some(Credentials::ServiceAccount(ServiceAccount {
            project_id: project_id?,
            client_email: client_email?,
            private_key: SecretString::from(private_key?),
            private_key_id: self.private_key_id.clone(),
            token_uri: token_uri?,
        }))
    }

    fn external_account(&self, problems: &mut Problems) -> Option<Credentials> {
        let audience = problems.field("audience", self.audience.as_ref());
        let subject_token_type = problems.field("subject_token_type", self.subject_token_type.as_ref());
        let token_url = self.token_url.as_deref().unwrap_or("https://sts.googleapis.com/v1/token");
        let token_url = problems.url("token_url", token_url);
        let impersonation_url = match &self.service_account_impersonation_url {
            Some(url) => problems.url("service_account_impersonation_url", url).map(Some),
            None => Some(None),
        };
        let subject = self.credential_source.as_ref().and_then(subject_token).ok_or_else(|| {
            "the file's credential_source must have a file or a url with the token; sources of AWS and programs are \
             not supported"
                .to_owned()
        });
        let subject = problems.take(subject);
        Some(Credentials::External(ExternalAccount {
            audience: audience?,
            subject_token_type: subject_token_type?,
            token_url: token_url?,
            impersonation_url: impersonation_url?,
            subject: subject?,
        }))
    }
}

struct Problems(Vec<String>);

impl Problems {
    fn take<T>(&mut self, checked: Result<T, String>) -> Option<T> {
        checked.map_err(|problem| self.0.push(problem)).ok()
    }

    fn field(&mut self, name: &str, value: Option<&String>) -> Option<String> {
        let value = value.filter(|value| !value.is_empty()).cloned();
        self.take(value.ok_or_else(|| format!("the file has no {name}, which DUORELAY_CHECK_REVOKED needs")))
    }

    /// A field with an address that is asked.
    fn url(&mut self, name: &str, url: &str) -> Option<String> {
        self.take(http_url(url).map_err(|problem| format!("the file's {name} {problem}")))
    }
}

fn subject_token(source: &CredentialSource) -> Option<SubjectToken> {
    let field = match &source.format {
        Some(format) if format.r#type.as_deref() == Some("json") => {
            Some(format.subject_token_field_name.clone()?)
        }
        Some(_) | None => None,
    };
    let source = match (&source.file, &source.url) {
        (Some(path), None) => SubjectTokenSource::File(path.clone()),
        (None, Some(url)) => {
            let headers = source.headers.iter().map(|(name, value)| (name.clone(), value.clone()));
            SubjectTokenSource::Url { url: url.clone(), headers: headers.collect() }
        }
        (Some(_), Some(_)) | (None, None) => return None,
    };
    Some(SubjectToken { source, field })
}
