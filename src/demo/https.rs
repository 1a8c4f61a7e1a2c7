//! https for phones: browsers give camera and motion to no other page of another machine.
//!
//! A small TLS proxy stands before the demo's own relay, on one port with plain http. This computer's browser
//! takes `http://localhost` for secure, and needs no certificate.

use std::fmt::Write as _;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest::{SHA256, digest};
use rcgen::{CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, KeyPair, SanType};
use rustls::ServerConfig;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncRead, AsyncWrite, copy_bidirectional_with_sizes};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tracing::{debug, warn};

use super::flags::DemoTls;
use crate::edge::{listen, stream};
use crate::server::ServerError;

/// Connections at the same time: two devices need a few each.
const CONNECTIONS: usize = 1024;
/// How long the first byte, and then the TLS handshake, may take.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
/// The first byte of a TLS record that begins a handshake (RFC 8446, section 5.1); no method of http begins with it.
const TLS_HANDSHAKE: u8 = 0x16;
/// What waits here in each direction: a face is worth its newest frame.
const BUFFER: usize = 4096;
/// A certificate from yesterday, for phones whose clock is late, and for some weeks.
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const LASTS: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// Why the demo cannot speak https.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A certificate cannot be made.
    #[error("no certificate can be made: {0}")]
    Make(#[from] rcgen::Error),
    /// A file is not there, or is none of PEM.
    #[error("{path}: {problem}")]
    File {
        /// The file of `--tls-cert` or `--tls-key`.
        path: PathBuf,
        /// What is wrong with it.
        problem: pem::Error,
    },
    /// The certificate and the key do not work together.
    #[error("the certificate cannot be used: {0}")]
    Use(#[from] rustls::Error),
}

/// The door that people come in by.
pub(super) struct Front {
    listener: TcpListener,
    acceptor: TlsAcceptor,
    /// What a person has to know of the certificate.
    pub(super) advice: String,
}

impl Front {
    /// Opens the port, with a certificate for these addresses where one is to be made.
    pub(super) fn bind(
        address: SocketAddr,
        source: &DemoTls,
        addresses: &[IpAddr],
    ) -> Result<Self, super::DemoError> {
        let certificate = match source {
            DemoTls::Made => Certificate::make(addresses)?,
            DemoTls::Files { certificate, key } => Certificate::read(certificate, key)?,
        };
        let (advice, config) = (certificate.advice(), certificate.into_config()?);
        let listener = listen::bind(address)
            .and_then(TcpListener::from_std)
            .map_err(|source| ServerError::Listen { address, source })?;
        Ok(Self { listener, acceptor: TlsAcceptor::from(Arc::new(config)), advice })
    }

    /// Hands every connection to the relay at this address, for ever.
    pub(super) async fn serve(self, relay: SocketAddr) {
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else {
                return;
            };
            let client = match self.listener.accept().await {
                Ok((client, _)) => client,
                Err(error) => {
                    warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let acceptor = self.acceptor.clone();
            tokio::spawn(async move {
                if let Err(error) = hand_over(client, &acceptor, relay).await {
                    debug!(%error, "a connection through the https front ended early");
                }
                drop(place);
            });
        }
    }
}

/// One port, two protocols: the first byte decides between TLS and plain HTTP.
async fn hand_over(client: TcpStream, acceptor: &TlsAcceptor, relay: SocketAddr) -> io::Result<()> {
    stream::tune(&client)?;
    let mut first = [0];
    timeout(HANDSHAKE_LIMIT, client.peek(&mut first)).await??;
    if first[0] != TLS_HANDSHAKE {
        return join(client, relay).await;
    }
    let accepting = acceptor.accept_with(client, |session| session.set_buffer_limit(Some(BUFFER)));
    join(timeout(HANDSHAKE_LIMIT, accepting).await??, relay).await
}

/// Copies both ways until both have ended. The relay's own time limits hold for what says nothing.
async fn join(mut client: impl AsyncRead + AsyncWrite + Unpin, relay: SocketAddr) -> io::Result<()> {
    let mut relay = TcpStream::connect(relay).await?;
    stream::tune(&relay)?;
    copy_bidirectional_with_sizes(&mut client, &mut relay, BUFFER, BUFFER).await?;
    Ok(())
}

/// A certificate with its key.
struct Certificate {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    made: bool,
}

impl Certificate {
    /// One that vouches for itself, for this machine's addresses.
    fn make(addresses: &[IpAddr]) -> Result<Self, TlsError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(["localhost".to_owned()])?;
        params.subject_alt_names.extend(addresses.iter().copied().map(SanType::IpAddress));
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "duorelay demo");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let now = SystemTime::now();
        params.not_before = (now - DAY).into();
        params.not_after = (now + LASTS).into();
        let chain = vec![params.self_signed(&key)?.der().clone()];
        Ok(Self { chain, key: PrivatePkcs8KeyDer::from(key.serialize_der()).into(), made: true })
    }

    fn read(certificate: &Path, key: &Path) -> Result<Self, TlsError> {
        let at = |path: &Path| {
            let path = path.to_owned();
            move |problem| TlsError::File { path, problem }
        };
        let chain = CertificateDer::pem_file_iter(certificate)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .and_then(|chain| if chain.is_empty() { Err(pem::Error::NoItemsFound) } else { Ok(chain) })
            .map_err(at(certificate))?;
        let key = PrivateKeyDer::from_pem_file(key).map_err(at(key))?;
        Ok(Self { chain, key, made: false })
    }

    /// How a person makes sure that the phone talks to this program.
    fn advice(&self) -> String {
        let fingerprint = self.chain.first().map(|leaf| fingerprint(leaf)).unwrap_or_default();
        if self.made {
            format!(
                "the phone's browser will warn, since nobody vouches for this certificate (\"Your connection is not \
                 private\", \"This Connection Is Not Private\", \"Potential Security Risk\"): look at the certificate \
                 there, and go on if its SHA-256 fingerprint is {fingerprint}. A browser that does not let you go on \
                 needs a certificate that the phone trusts: --tls-cert and --tls-key take one of mkcert's"
            )
        } else {
            format!("https with the given certificate, SHA-256 fingerprint {fingerprint}")
        }
    }

    fn into_config(self) -> Result<ServerConfig, TlsError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(self.chain, self.key)?;
        Ok(config)
    }
}

/// As browsers show it.
fn fingerprint(certificate: &[u8]) -> String {
    let mut text = String::new();
    for (i, byte) in digest(&SHA256, certificate).as_ref().iter().enumerate() {
        let colon = if i == 0 { "" } else { ":" };
        // Writing to a string cannot fail.
        let _ = write!(text, "{colon}{byte:02X}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_made_certificate_works_and_its_advice_shows_the_fingerprint() {
        let address: IpAddr = "192.168.1.5".parse().unwrap();
        let certificate = Certificate::make(&[address, "::1".parse().unwrap()]).unwrap();
        let der = certificate.chain[0].to_vec();
        // An iPAddress of a subject alternative name: tag 7, four octets (RFC 5280, section 4.2.1.6).
        assert!(der.windows(6).any(|bytes| bytes == [0x87, 4, 192, 168, 1, 5]));
        let print = fingerprint(&der);
        assert_eq!(print.len(), 32 * 3 - 1);
        assert!(certificate.advice().contains(&print));
        assert!(certificate.into_config().is_ok());
        // Another start makes another one: its key is nowhere on disk.
        assert_ne!(fingerprint(&Certificate::make(&[address]).unwrap().chain[0]), print);
    }

    #[test]
    fn files_that_are_missing_or_hold_something_else_are_named() {
        let directory = tempfile::tempdir().unwrap();
        let (absent, empty) = (directory.path().join("absent.pem"), directory.path().join("empty.pem"));
        std::fs::write(&empty, "").unwrap();
        for path in [&absent, &empty] {
            let error = Certificate::read(path, path).err().unwrap().to_string();
            assert!(error.contains(path.to_str().unwrap()), "{error}");
        }
    }
}
