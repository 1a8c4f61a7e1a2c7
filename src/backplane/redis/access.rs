//! How Redis is reached: what the URL says, from the environment or from a file, and certificates.

use std::borrow::Cow;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use fred::error::{Error, ErrorKind};
use fred::rustls::pki_types::pem::PemObject as _;
use fred::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use fred::rustls::{ClientConfig, RootCertStore};
use fred::rustls_native_certs::load_native_certs;
use fred::types::RespVersion;
use fred::types::config::{Config, TlsConfig, TlsConnector};
use percent_encoding::percent_decode_str;
use secrecy::{ExposeSecret as _, SecretString};
use tracing::warn;
use url::Url;

use super::settings::{RedisSource, RedisTls, check_redis_url};

/// Why the backplane cannot be used at all: no retry helps.
#[derive(Debug, thiserror::Error)]
pub enum RedisError {
    /// The URL, or a file that belongs to it, is not usable.
    #[error("{0}")]
    Setting(String),
    /// The server refuses what an instance needs.
    #[error("{0}")]
    Mistake(String),
    /// There is no agreement without Redis.
    #[error("Redis cannot be asked what others have chosen: {0}")]
    Away(String),
}

/// How Redis is reached.
pub struct Access {
    source: RedisSource,
    /// What does not change while the process runs: everything but user and password.
    pub(super) config: Config,
    fixed: String,
    warned: std::sync::atomic::AtomicBool,
}

impl Access {
    /// Reads what the source and the files say.
    ///
    /// # Errors
    /// [`RedisError::Setting`], which names the variable.
    pub fn open(source: RedisSource, files: &RedisTls) -> Result<Self, RedisError> {
        let variable = variable(&source);
        let url = read(&source).map_err(|problem| RedisError::Setting(format!("{variable} {problem}")))?;
        check_redis_url(url.expose_secret())
            .map_err(|problem| RedisError::Setting(format!("{variable} {problem}")))?;
        let mut config = config(url.expose_secret())
            .map_err(|problem| RedisError::Setting(format!("{variable} is not usable: {problem}")))?;
        if config.tls.is_some() {
            config.tls = Some(tls(files)?);
        } else if let Some((variable, _)) = named(files).first() {
            return Err(RedisError::Setting(format!("{variable} has no use without TLS (rediss://)")));
        }
        let fixed = without_credentials(url.expose_secret()).unwrap_or_default();
        Ok(Self { source, config, fixed, warned: false.into() })
    }

    /// The variable that names the URL.
    pub(super) fn variable(&self) -> &'static str {
        variable(&self.source)
    }

    pub(super) fn has_file(&self) -> bool {
        matches!(self.source, RedisSource::File(_))
    }

    /// What fred connects with, user and password as they are now.
    pub(super) fn config(&self) -> Result<Config, Error> {
        let refuse = |problem| Error::new(ErrorKind::Config, format!("{} {problem}", self.variable()));
        let url = read(&self.source).map_err(refuse)?;
        let url = url.expose_secret();
        if without_credentials(url).as_ref() != Some(&self.fixed)
            && !self.warned.swap(true, std::sync::atomic::Ordering::Relaxed)
        {
            warn!("{} has changed in more than user and password: that needs a restart", self.variable());
        }
        let (username, password) = credentials(url);
        Ok(Config { username, password, ..self.config.clone() })
    }
}

fn variable(source: &RedisSource) -> &'static str {
    match source {
        RedisSource::Url(_) => "REDIS_URL",
        RedisSource::File(_) => "REDIS_URL_FILE",
    }
}

fn read(source: &RedisSource) -> Result<SecretString, String> {
    match source {
        RedisSource::Url(url) => Ok(url.clone()),
        RedisSource::File(path) => match fs::read_to_string(path) {
            Ok(text) => Ok(text.trim().into()),
            Err(error) => Err(format!("({}) cannot be read: {error}", path.display())),
        },
    }
}

/// The URL without user and password.
fn without_credentials(url: &str) -> Option<String> {
    let mut url = Url::parse(url).ok()?;
    url.set_username("").ok()?;
    url.set_password(None).ok()?;
    Some(url.into())
}

/// What a URL asks for.
///
/// # Errors
/// What is wrong with it, without any part that may hold a password.
pub fn config(url: &str) -> Result<Config, String> {
    // fred decodes user and password itself, and refuses what is no UTF-8.
    let plain = without_credentials(url).ok_or_else(|| "it is no URL with a host".to_owned())?;
    let mut config = Config::from_url(&plain).map_err(|error| {
        // fred quotes the part that it does not understand, which may hold a password.
        error.details().split(": ").next().unwrap_or_default().to_owned()
    })?;
    // RESP3: a subscribed connection still takes commands.
    config.version = RespVersion::RESP3;
    (config.username, config.password) = credentials(url);
    Ok(config)
}

/// User and password, as fred puts them into its HELLO.
fn credentials(url: &str) -> (Option<String>, Option<String>) {
    let Ok(url) = Url::parse(url) else { return (None, None) };
    let part = |text: &str| (!text.is_empty()).then(|| inline(&Cow::from(percent_decode_str(text))));
    (part(url.username()), url.password().and_then(part))
}

/// An argument of an inline command, which is how fred sends HELLO. It is quoted where it is not plain: white
/// space, quotes, line feeds and every other byte reach Redis. Redis reads it with `sdssplitargs`.
fn inline(argument: &[u8]) -> String {
    let is_plain = |byte: u8| byte.is_ascii_graphic() && !b"\"'\\".contains(&byte);
    if argument.iter().copied().all(is_plain) {
        return argument.iter().copied().map(char::from).collect();
    }
    let mut quoted = String::from("\"");
    for byte in argument.iter().copied() {
        if is_plain(byte) {
            quoted.push(char::from(byte));
        } else {
            quoted.push_str(&format!("\\x{byte:02x}"));
        }
    }
    quoted.push('"');
    quoted
}

/// The files that are given, with their variables.
fn named(files: &RedisTls) -> Vec<(&'static str, &Path)> {
    let all = [
        ("DUORELAY_REDIS_CA", &files.ca),
        ("DUORELAY_REDIS_CERT", &files.cert),
        ("DUORELAY_REDIS_KEY", &files.key),
    ];
    all.into_iter().filter_map(|(variable, path)| Some((variable, path.as_deref()?))).collect()
}

fn tls(files: &RedisTls) -> Result<TlsConfig, RedisError> {
    let refuse = |variable: &str, path: &Path, problem: &dyn std::fmt::Display| {
        RedisError::Setting(format!("{variable} ({}) {problem}", path.display()))
    };
    let certificates = |variable, path: &Path| -> Result<Vec<CertificateDer<'static>>, RedisError> {
        let pem = CertificateDer::pem_file_iter(path)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(|error| refuse(variable, path, &format!("cannot be read: {error}")))?;
        if pem.is_empty() { Err(refuse(variable, path, &"holds no certificate")) } else { Ok(pem) }
    };
    let mut roots = RootCertStore::empty();
    // A broken certificate among the system's must not keep the others away.
    roots.add_parsable_certificates(load_native_certs().certs);
    if let Some(path) = &files.ca {
        for certificate in certificates("DUORELAY_REDIS_CA", path)? {
            roots.add(certificate).map_err(|error| {
                refuse("DUORELAY_REDIS_CA", path, &format!("holds no usable certificate: {error}"))
            })?;
        }
    }
    let builder = ClientConfig::builder().with_root_certificates(Arc::new(roots));
    let config = match (&files.cert, &files.key) {
        (None, None) => builder.with_no_client_auth(),
        (Some(cert), Some(key)) => {
            let certificates = certificates("DUORELAY_REDIS_CERT", cert)?;
            let private = PrivateKeyDer::from_pem_file(key)
                .map_err(|error| refuse("DUORELAY_REDIS_KEY", key, &format!("cannot be read: {error}")))?;
            builder.with_client_auth_cert(certificates, private).map_err(|error| {
                refuse("DUORELAY_REDIS_KEY", key, &format!("does not fit DUORELAY_REDIS_CERT: {error}"))
            })?
        }
        (Some(_), None) | (None, Some(_)) => {
            let problem = "DUORELAY_REDIS_CERT and DUORELAY_REDIS_KEY belong together".to_owned();
            return Err(RedisError::Setting(problem));
        }
    };
    Ok(TlsConnector::from(config).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_passwords_stay_as_they_are() {
        let config = config("redis://ann:s3cret-!@127.0.0.1:6379/3").unwrap();
        assert_eq!((config.username.as_deref(), config.password.as_deref()), (Some("ann"), Some("s3cret-!")));
        assert_eq!(config.database, Some(3));
    }

    #[test]
    fn every_byte_of_a_password_can_be_carried() {
        for (encoded, quoted) in [
            ("a%20b", r#""a\x20b""#),
            ("a%22b", r#""a\x22b""#),
            ("a%27b", r#""a\x27b""#),
            ("a%5Cb", r#""a\x5cb""#),
            ("a%0D%0Ab", r#""a\x0d\x0ab""#),
            ("%00", r#""\x00""#),
            ("%FF", r#""\xff""#),
            ("%C3%A9", r#""\xc3\xa9""#),
            ("p%40ss%3Aw%2Frd", "p@ss:w/rd"),
        ] {
            let config = config(&format!("redis://:{encoded}@127.0.0.1")).unwrap();
            assert_eq!(config.password.as_deref(), Some(quoted), "{encoded}");
            assert_eq!(config.username, None);
        }
    }

    #[test]
    fn no_problem_repeats_the_password() {
        for url in ["redis://:secret@", "redis:/secret", "secret", "redis://u:secret@h/x/y"] {
            assert!(config(url).is_err_and(|problem| !problem.contains("secret")), "{url}");
        }
    }

    #[test]
    fn certificates_without_tls_are_a_mistake() {
        let source = || RedisSource::Url("redis://127.0.0.1".to_owned().into());
        let files = RedisTls { ca: Some("/nowhere.pem".into()), ..RedisTls::default() };
        let problem = Access::open(source(), &files).map(drop).unwrap_err().to_string();
        assert_eq!(problem, "DUORELAY_REDIS_CA has no use without TLS (rediss://)");
        let source = RedisSource::Url("rediss://127.0.0.1".to_owned().into());
        let problem = Access::open(source, &files).map(drop).unwrap_err().to_string();
        assert!(problem.starts_with("DUORELAY_REDIS_CA (/nowhere.pem) cannot be read"), "{problem}");
    }
}
