//! How Redis is named: by a URL, with certificates, and with a prefix of all keys. No problem repeats any part of a URL,
//! because of its password.

use std::path::PathBuf;

use secrecy::SecretString;
use url::Url;

/// Where Redis's URL comes from.
#[derive(Debug, Clone)]
pub enum RedisSource {
    /// The URL of `REDIS_URL`, the same for the whole run.
    Url(SecretString),
    /// `REDIS_URL_FILE`: read again at each connection, so that the password may change.
    File(PathBuf),
}

/// PEM files for connections to Redis alone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RedisTls {
    /// Roots beside the system's.
    pub ca: Option<PathBuf>,
    /// A client certificate, with what it was signed by.
    pub cert: Option<PathBuf>,
    /// PEM file of the certificate's private key.
    pub key: Option<PathBuf>,
}

/// A Redis URL that names a server.
///
/// # Errors
/// What is wrong, to be read after the setting's name.
pub fn check_redis_url(text: &str) -> Result<SecretString, String> {
    const SCHEMES: [&str; 6] =
        ["redis", "rediss", "redis-cluster", "rediss-cluster", "redis-sentinel", "rediss-sentinel"];
    let url = Url::parse(text).map_err(|error| {
        format!("is not a URL ({error}); wanted is redis://[USER:PASSWORD@]HOST[:PORT], with other characters of a password percent-encoded")
    })?;
    let database = url.path().trim_matches('/');
    let is_number = database.parse::<u8>().is_ok() && !url.path().ends_with('/');
    let given = |wanted: &str| url.query_pairs().any(|(key, value)| key == wanted && !value.is_empty());
    let is_node = |node: &str| {
        node.split_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
    };
    let problems = [
        (
            !SCHEMES.contains(&url.scheme()),
            "must start with redis://, redis-cluster:// or redis-sentinel://, or with rediss… for TLS",
        ),
        (url.host_str().is_none_or(str::is_empty), "names no host"),
        (url.port() == Some(0), "names port 0"),
        (!database.is_empty() && !is_number, "has a path that is not the number of a database"),
        (
            url.scheme().ends_with("-cluster") && !database.is_empty(),
            "names a database, which a cluster does not have",
        ),
        (
            url.scheme().ends_with("-sentinel") && !given("sentinelServiceName"),
            "needs ?sentinelServiceName=NAME, the name of the master that the sentinels watch",
        ),
        (
            url.query_pairs().any(|(key, node)| key == "node" && !is_node(&node)),
            "has a node= that is not HOST:PORT",
        ),
    ];
    let problem = problems.into_iter().find(|(is_wrong, _)| *is_wrong);
    problem.map_or_else(|| Ok(text.into()), |(_, problem)| Err(problem.to_owned()))
}

/// The start of all keys and channels.
pub(crate) fn check_prefix(text: &str) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.:".contains(c);
    if text.len() <= 64 && text.chars().all(plain) {
        Ok(text.to_owned())
    } else {
        Err(format!("must be at most 64 of A-Z a-z 0-9 - _ . : but is {text:?}"))
    }
}
