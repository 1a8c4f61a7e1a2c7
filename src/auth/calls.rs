//! Asking issuers: a client that follows nobody elsewhere, and answers of a bounded size.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use reqwest::redirect::Policy;
use reqwest::{Client, Response, StatusCode, Url};
use thiserror::Error;

use super::AuthError;

/// The longest that one call to an issuer takes, the body included.
pub(super) const CALL_TIME: Duration = Duration::from_secs(3);

/// The longest answer that is read, in bytes: a hundred keys with their certificates.
const MAX_ANSWER_BYTES: usize = 256 * 1024;

/// Why a call gave no answer. The text holds no credentials.
#[derive(Debug, Error)]
pub(super) enum CallError {
    #[error("no answer within {} s", CALL_TIME.as_secs())]
    TimedOut,
    #[error("the call failed: {0}")]
    Failed(#[source] reqwest::Error),
    #[error("the answer's status is {0}")]
    Status(StatusCode),
    #[error("the answer is longer than {MAX_ANSWER_BYTES} bytes")]
    TooLong,
    #[error("the answer makes no sense: {0}")]
    Nonsense(&'static str),
}

impl From<reqwest::Error> for CallError {
    fn from(error: reqwest::Error) -> Self {
        Self::Failed(error.without_url())
    }
}

/// An address that may be asked: `https://` anywhere, `http://` on this machine only.
pub(super) fn endpoint(what: &'static str, address: &str) -> Result<Url, AuthError> {
    let fault = |problem: &str| AuthError::Url { what, problem: problem.to_owned() };
    let url = Url::parse(address).map_err(|error| fault(&error.to_string()))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(fault("it holds a user name or a password"));
    }
    let host = url.host_str().ok_or_else(|| fault("it has no host"))?;
    match url.scheme() {
        "https" => Ok(url),
        "http" if is_loopback(host) => Ok(url),
        "http" => Err(AuthError::PlainHttp { what, host: host.to_owned() }),
        scheme => Err(fault(&format!("it starts with {scheme}:"))),
    }
}

/// The same for a setting: the address as it stands, or a problem that completes the sentence "SETTING: ...".
pub(crate) fn http_url(text: &str) -> Result<String, String> {
    match endpoint("", text) {
        Ok(_) => Ok(text.to_owned()),
        Err(AuthError::PlainHttp { .. }) => {
            Err("must be https:// (plain http:// only to a loopback address)".to_owned())
        }
        Err(AuthError::Url { problem, .. }) => Err(format!("is not a URL to fetch from: {problem}")),
        Err(error) => Err(error.to_string()),
    }
}

fn is_loopback(host: &str) -> bool {
    let literal = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || literal.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback())
}

/// A client for calls to this machine (no proxy in between) or to the world (by `HTTPS_PROXY`, if set).
pub(super) fn client(url: &Url) -> Result<Client, AuthError> {
    let mut builder = Client::builder()
        .timeout(CALL_TIME)
        .redirect(Policy::none())
        .referer(false)
        .user_agent(concat!("duorelay/", env!("CARGO_PKG_VERSION")))
        // What `localhost` means is not left to a resolver: plain http goes there. Port 0 keeps the URL's.
        .resolve_to_addrs(
            "localhost",
            &[
                SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0),
                SocketAddr::new(IpAddr::V6(Ipv6Addr::LOCALHOST), 0),
            ],
        );
    if url.scheme() == "http" {
        builder = builder.no_proxy();
    }
    builder.build().map_err(AuthError::Client)
}

/// The body of a 200, at most [`MAX_ANSWER_BYTES`] of it.
pub(super) async fn body(mut response: Response) -> Result<Vec<u8>, CallError> {
    if response.status() != StatusCode::OK {
        return Err(CallError::Status(response.status()));
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        if body.len() + chunk.len() > MAX_ANSWER_BYTES {
            return Err(CallError::TooLong);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_is_for_this_machine_only() {
        for good in [
            "https://issuer.example/keys",
            "http://127.0.0.1:8080/keys",
            "http://127.9.9.9/",
            "http://[::1]:80/keys",
            "http://[::ffff:127.0.0.1]/keys",
            "http://localhost:3000/keys",
        ] {
            assert!(endpoint("x", good).is_ok(), "{good}");
        }
        for bad in [
            "http://issuer.example/keys",
            "http://10.0.0.1/keys",
            "http://0.0.0.0/keys",
            "http://localhost.example/keys",
            "http://127.0.0.1.example/keys",
            "http://[::ffff:10.0.0.1]/keys",
        ] {
            let refused = endpoint("DUORELAY_JWKS_URL", bad);
            assert!(
                matches!(&refused, Err(error @ AuthError::PlainHttp { .. })
                if error.to_string().contains("DUORELAY_JWKS_URL")),
                "{bad}: {refused:?}"
            );
        }
        for bad in
            ["", "keys", "ftp://127.0.0.1/", "file:///keys", "https://", "http://127.0.0.1@issuer.example/"]
        {
            assert!(matches!(endpoint("x", bad), Err(AuthError::Url { .. })), "{bad}");
        }
    }

    #[test]
    fn a_password_in_an_address_is_refused_and_not_repeated() {
        let refused =
            endpoint("x", "https://user:hunter2@issuer.example/").map_err(|error| error.to_string());
        assert!(refused.is_err_and(|text| !text.contains("hunter2")));
    }
}
