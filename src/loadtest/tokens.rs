//! One ID token for each user.

use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, StreamExt as _};
use serde::Deserialize;
use serde_json::json;
use tokio::time::timeout;
use url::Url;

use super::LoadError;
use super::settings::{LoadOptions, TokenSource};
use crate::auth::signer::Signer;
use crate::auth::unix_now;

/// Requests under way at once.
const AT_ONCE: usize = 16;
/// How long one request may take.
const REQUEST_LIMIT: Duration = Duration::from_secs(10);
/// Uids that a token command gets at once.
const ARGUMENTS: usize = 100;
/// How long it may take for them.
const COMMAND_LIMIT: Duration = Duration::from_secs(60);

fn failed(problem: impl Into<String>) -> LoadError {
    LoadError::Tokens(problem.into())
}

/// The uids, in the order of the users.
fn uids(options: &LoadOptions) -> Vec<String> {
    (0..options.users).map(|number| format!("{}-{number}", options.user_prefix)).collect()
}

/// A token for each user; `done` hears how many there are.
///
/// # Errors
/// [`LoadError::Tokens`]
pub(super) async fn mint(options: &LoadOptions, done: impl Fn(usize)) -> Result<Vec<Arc<str>>, LoadError> {
    let uids = uids(options);
    match &options.tokens {
        TokenSource::Demo(url) => {
            let url = join(url, "/demo/token")?;
            let body = |uid: &str| json!({"user": uid}).to_string();
            ask_for_all(&uids, &url, body, done).await
        }
        TokenSource::Emulator(url) => {
            // https://firebase.google.com/docs/reference/rest/auth#section-create-email-password: the emulator
            // takes any key. Every call makes a new user.
            let url = join(url, "/identitytoolkit.googleapis.com/v1/accounts:signUp?key=loadtest")?;
            ask_for_all(&uids, &url, |_| json!({"returnSecureToken": true}).to_string(), done).await
        }
        TokenSource::SigningKey { path, issuer, audience, kid } => {
            let pem = std::fs::read_to_string(path)
                .map_err(|error| failed(format!("{}: {error}", path.display())))?;
            let signer = Signer::from_pem(&pem, Some(kid.clone())).map_err(|error| {
                failed(format!("{}: {error} (wanted is an RSA key, PKCS #8, in PEM)", path.display()))
            })?;
            let now = unix_now();
            let lifetime = 3600 + options.duration.as_secs() + options.warmup.as_secs();
            let mut tokens: Vec<Arc<str>> = Vec::with_capacity(uids.len());
            for uid in &uids {
                let claims = json!({
                    "iss": issuer, "aud": audience, "sub": uid, "user_id": uid,
                    "auth_time": now, "iat": now, "exp": now + lifetime,
                });
                tokens.push(signer.sign(&claims).map_err(|error| failed(error.to_string()))?.into());
                done(tokens.len());
            }
            Ok(tokens)
        }
        TokenSource::Command(command) => {
            let mut tokens = Vec::with_capacity(uids.len());
            for uids in uids.chunks(ARGUMENTS) {
                tokens.extend(run(command, uids).await?);
                done(tokens.len());
            }
            Ok(tokens)
        }
    }
}

fn join(url: &Url, path: &str) -> Result<Url, LoadError> {
    url.join(path).map_err(|error| failed(error.to_string()))
}

async fn ask_for_all(
    uids: &[String],
    url: &Url,
    body: impl Fn(&str) -> String,
    done: impl Fn(usize),
) -> Result<Vec<Arc<str>>, LoadError> {
    let http = reqwest::Client::builder()
        .timeout(REQUEST_LIMIT)
        .build()
        .map_err(|error| failed(error.to_string()))?;
    let asking = uids.iter().map(|uid| {
        let request = http.post(url.clone()).header("content-type", "application/json").body(body(uid));
        async move { ask(request).await.map_err(|problem| failed(format!("{url}: {problem}"))) }
    });
    let mut answers = stream::iter(asking).buffered(AT_ONCE);
    let mut tokens = Vec::with_capacity(uids.len());
    while let Some(token) = answers.next().await {
        tokens.push(token?);
        done(tokens.len());
    }
    Ok(tokens)
}

async fn ask(request: reqwest::RequestBuilder) -> Result<Arc<str>, String> {
    #[derive(Deserialize)]
    struct Answer {
        // The demo says `token`, the emulator `idToken`.
        #[serde(alias = "idToken")]
        token: String,
    }
    let without_url = |error: reqwest::Error| error.without_url().to_string();
    let response = request.send().await.map_err(without_url)?.error_for_status().map_err(without_url)?;
    let answer: Answer = response.json().await.map_err(without_url)?;
    Ok(answer.token.into())
}

/// Runs `command UID...`, which prints one token a line.
async fn run(command: &str, uids: &[String]) -> Result<Vec<Arc<str>>, LoadError> {
    let output = tokio::process::Command::new("sh")
        .arg("-c")
        .arg(format!("{command} \"$@\""))
        .arg("sh")
        .args(uids)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .kill_on_drop(true)
        .output();
    let output = timeout(COMMAND_LIMIT, output)
        .await
        .map_err(|_| failed(format!("{command}: not done after {COMMAND_LIMIT:?}")))?
        .map_err(|error| failed(format!("{command}: {error}")))?;
    if !output.status.success() {
        return Err(failed(format!("{command}: {}", output.status)));
    }
    let text = String::from_utf8(output.stdout)
        .map_err(|_| failed(format!("{command}: prints something else than text")))?;
    let tokens: Vec<Arc<str>> = text.split_whitespace().map(Arc::from).collect();
    if tokens.len() == uids.len() {
        Ok(tokens)
    } else {
        Err(failed(format!("{command}: printed {} tokens for {} uids", tokens.len(), uids.len())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_command_prints_one_token_for_each_uid() {
        let uids = ["a-1".to_owned(), "b 2".to_owned()];
        let tokens = run("printf 'token-%s\\n' x", &uids).await;
        assert!(tokens.unwrap_err().to_string().contains("printed 4 tokens for 2 uids"));
        let tokens = run("printf '%.1s-token\\n'", &uids).await.unwrap();
        assert_eq!(tokens, [Arc::from("a-token"), Arc::from("b-token")]);
        assert!(run("exit 3;", &uids).await.unwrap_err().to_string().contains("exit status: 3"));
    }
}
