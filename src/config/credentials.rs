//! `GOOGLE_APPLICATION_CREDENTIALS`: what kind of file it is, and what can be done with it.

use std::collections::BTreeMap;
use std::fs;

use base64::Engine as _;
use secrecy::SecretString;
use serde::Deserialize;

use super::parse::{http_url, project_id};
use super::table;
use super::values::{Read, Values};
use crate::auth::settings::{Credentials, ExternalAccount, ServiceAccount, SubjectToken, SubjectTokenSource};

/// A credentials file; what only revocation checks need is asked for only then.
#[derive(Deserialize)]
pub(super) struct File {
    #[serde(rename = "type")]
    kind: Option<String>,
    pub(super) project_id: Option<String>,
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
    /// Google's own kind, with a key.
    pub(super) fn is_service_account(&self) -> bool {
        self.kind.as_deref().is_none_or(|kind| kind == "service_account")
    }
}

/// Reads the file; no problem repeats what is in it.
pub(super) fn read(path: &str) -> Result<File, String> {
    let text = fs::read_to_string(path).map_err(|error| format!("{path:?} cannot be read: {error}"))?;
    let file: File = serde_json::from_str(&text).map_err(|error| {
        format!(
            "{path:?} is not a JSON file with credentials of Google (line {}, column {})",
            error.line(),
            error.column()
        )
    })?;
    match file.project_id.as_deref().map(project_id) {
        Some(Err(problem)) => Err(format!("the project_id in {path:?} {problem}")),
        Some(Ok(_)) => Ok(file),
        None if !file.is_service_account() => Ok(file),
        None => Err(format!("{path:?} is not a service account's file: it has no project_id")),
    }
}

/// What Google is asked with, by a file of this kind.
pub(super) fn credentials(values: &mut Values, file: &File) -> Read<Credentials> {
    match file.kind.as_deref() {
        None | Some("service_account") => service_account(values, file).map(Credentials::ServiceAccount),
        Some("external_account") => external_account(values, file).map(Credentials::External),
        Some(_) => {
            let problem = "is neither a service account's file (\"type\": \"service_account\") nor one of workload \
                 identity federation (\"external_account\"), which DUORELAY_CHECK_REVOKED could use";
            Err(values.mistake(&table::CREDENTIALS, problem))
        }
    }
}

/// A field that is needed.
fn field(values: &mut Values, name: &str, value: Option<&String>) -> Read<String> {
    value.filter(|value| !value.is_empty()).cloned().ok_or_else(|| {
        let problem = format!("the file has no {name}, which DUORELAY_CHECK_REVOKED needs");
        values.mistake(&table::CREDENTIALS, problem)
    })
}

/// A field with an address that is asked.
fn url(values: &mut Values, name: &str, url: &str) -> Read<String> {
    http_url(url)
        .map_err(|problem| values.mistake(&table::CREDENTIALS, format!("the file's {name} {problem}")))
}

fn service_account(values: &mut Values, file: &File) -> Read<ServiceAccount> {
    let project_id = field(values, "project_id", file.project_id.as_ref());
    let client_email = field(values, "client_email", file.client_email.as_ref());
    let private_key = field(values, "private_key", file.private_key.as_ref()).and_then(|key| {
        let problem = "the file's private_key is not an RSA key in PEM (PKCS #8)";
        if is_rsa_key(&key) { Ok(key) } else { Err(values.mistake(&table::CREDENTIALS, problem)) }
    });
    let token_uri = file.token_uri.as_deref().unwrap_or("https://oauth2.googleapis.com/token");
    let token_uri = url(values, "token_uri", token_uri);
    Ok(ServiceAccount {
        project_id: project_id?,
        client_email: client_email?,
        private_key: SecretString::from(private_key?),
        private_key_id: file.private_key_id.clone(),
        token_uri: token_uri?,
    })
}

fn external_account(values: &mut Values, file: &File) -> Read<ExternalAccount> {
    let audience = field(values, "audience", file.audience.as_ref());
    let subject_token_type = field(values, "subject_token_type", file.subject_token_type.as_ref());
    let token_url = file.token_url.as_deref().unwrap_or("https://sts.googleapis.com/v1/token");
    let token_url = url(values, "token_url", token_url);
    let impersonation_url = file.service_account_impersonation_url.as_deref();
    let impersonation_url =
        impersonation_url.map(|it| url(values, "service_account_impersonation_url", it)).transpose();
    let subject = file.credential_source.as_ref().and_then(subject_token).ok_or_else(|| {
        let problem = "the file's credential_source must have a file or a url with the token; sources of AWS and programs \
             are not supported";
        values.mistake(&table::CREDENTIALS, problem)
    });
    Ok(ExternalAccount {
        audience: audience?,
        subject_token_type: subject_token_type?,
        token_url: token_url?,
        impersonation_url: impersonation_url?,
        subject: subject?,
    })
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

fn is_rsa_key(pem: &str) -> bool {
    let base64 = pem.trim().strip_prefix("-----BEGIN PRIVATE KEY-----");
    let base64 = base64.and_then(|rest| rest.strip_suffix("-----END PRIVATE KEY-----"));
    let base64: String = base64.unwrap_or_default().split_whitespace().collect();
    base64::engine::general_purpose::STANDARD
        .decode(base64)
        .is_ok_and(|der| aws_lc_rs::rsa::KeyPair::from_pkcs8(&der).is_ok())
}
