//! One ID token for each user.

use std::error::Error;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, StreamExt as _};
use serde::Deserialize;
use serde_json::json;
use tokio::time::timeout;

use super::settings::LoadOptions;
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

/// A token for each user; `done` hears how many there are.
///
/// # Errors
/// What gave no token, and why.
pub(super) async fn mint(
    options: &LoadOptions,
    done: impl Fn(usize),
) -> Result<Vec<Arc<str>>, Box<dyn Error>> {
    let uids: Vec<_> = (0..options.users).map(|number| format!("{}-{number}", options.user_prefix)).collect();
    let mut tokens: Vec<Arc<str>> = Vec::with_capacity(uids.len());
    if let Some(path) = &options.signing_key {
        let pem = std::fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))?;
        let signer = Signer::from_pem(&pem, options.kid.clone())
            .map_err(|error| format!("{path}: {error} (wanted is an RSA key, PKCS #8, in PEM)"))?;
        let now = unix_now();
        let lifetime = 3600 + options.duration.as_secs() + options.warmup.as_secs();
        for uid in &uids {
            let claims = json!({
                "iss": options.issuer, "aud": options.audience, "sub": uid, "user_id": uid,
                "auth_time": now, "iat": now, "exp": now + lifetime,
            });
            tokens.push(signer.sign(&claims)?.into());
            done(tokens.len());
        }
    } else if let Some(command) = &options.token_command {
        for uids in uids.chunks(ARGUMENTS) {
            tokens.extend(run(command, uids).await.map_err(|problem| format!("{command}: {problem}"))?);
            done(tokens.len());
        }
    } else {
        // https://firebase.google.com/docs/reference/rest/auth#section-create-email-password: the emulator takes any key.
        // Every call makes a new user.
        let sign_up = "/identitytoolkit.googleapis.com/v1/accounts:signUp?key=loadtest";
        let url = match &options.emulator {
            Some(url) => url.join(sign_up)?,
            None => options.demo_url().ok_or("no --url")?.join("/demo/token")?,
        };
        let body = |uid| match &options.emulator {
            Some(_) => json!({"returnSecureToken": true}),
            None => json!({"user": uid}),
        };
        let http = reqwest::Client::builder().timeout(REQUEST_LIMIT).build()?;
        let asking = uids.iter().map(|uid| ask(http.post(url.clone()).json(&body(uid))));
        let mut answers = stream::iter(asking).buffered(AT_ONCE);
        while let Some(token) = answers.next().await {
            tokens.push(token.map_err(|error| format!("no tokens: {url}: {}", error.without_url()))?);
            done(tokens.len());
        }
    }
    Ok(tokens)
}

async fn ask(request: reqwest::RequestBuilder) -> Result<Arc<str>, reqwest::Error> {
    #[derive(Deserialize)]
    struct Answer {
        // The demo says `token`, the emulator `idToken`.
        #[serde(alias = "idToken")]
        token: String,
    }
    let answer: Answer = request.send().await?.error_for_status()?.json().await?;
    Ok(answer.token.into())
}

/// Runs `command UID...`, which prints one token a line.
async fn run(command: &str, uids: &[String]) -> Result<Vec<Arc<str>>, Box<dyn Error>> {
    let output = tokio::process::Command::new("sh")
        .args(["-c", &format!("{command} \"$@\""), "sh"])
        .args(uids)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .kill_on_drop(true)
        .output();
    let output =
        timeout(COMMAND_LIMIT, output).await.map_err(|_| format!("not done after {COMMAND_LIMIT:?}"))??;
    if !output.status.success() {
        return Err(output.status.to_string().into());
    }
    let text = String::from_utf8(output.stdout).map_err(|_| "prints something else than text")?;
    let tokens: Vec<Arc<str>> = text.split_whitespace().map(Arc::from).collect();
    if tokens.len() != uids.len() {
        return Err(format!("printed {} tokens for {} uids", tokens.len(), uids.len()).into());
    }
    Ok(tokens)
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
