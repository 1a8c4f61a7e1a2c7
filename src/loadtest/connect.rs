//! From an address to a welcomed WebSocket.

use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls_platform_verifier::ConfigVerifierExt as _;
use serde::Deserialize;
use tokio::io::ReadBuf;
use tokio::net::TcpSocket;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tungstenite::handshake::client::generate_key;
use tungstenite::handshake::derive_accept_key;
use url::Url;

use super::LoadError;
use super::dialect::{Caller, Dialect, Heard};
use super::settings::Link;
use super::socket::{Socket, Stream};

/// From the first SYN to the welcome.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// The largest answer to a handshake that is read.
const ANSWER_LIMIT: usize = 16 * 1024;

/// One URL with its addresses, resolved once at the start.
pub(super) struct Target {
    addresses: Vec<SocketAddr>,
    host: String,
    path: String,
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

impl std::fmt::Debug for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Target").field("host", &self.host).finish_non_exhaustive()
    }
}

impl Target {
    /// Looks the host up, once.
    ///
    /// # Errors
    /// [`LoadError::Target`]
    pub(super) async fn resolve(url: &Url) -> Result<Self, LoadError> {
        let wrong = |problem: String| LoadError::Target { url: url.to_string(), problem };
        let host = url.host_str().unwrap_or_default();
        let port = url.port_or_known_default().unwrap_or(80);
        let name = host.trim_start_matches('[').trim_end_matches(']');
        let addresses: Vec<_> =
            tokio::net::lookup_host((name, port)).await.map_err(|error| wrong(error.to_string()))?.collect();
        if addresses.is_empty() {
            return Err(wrong("has no address".to_owned()));
        }
        let tls = if url.scheme() == "wss" {
            let provider = rustls::crypto::aws_lc_rs::default_provider();
            // Where another part of the process was first, its choice stands.
            let _ = provider.install_default();
            let config =
                rustls::ClientConfig::with_platform_verifier().map_err(|error| wrong(error.to_string()))?;
            let name = ServerName::try_from(name.to_owned()).map_err(|error| wrong(error.to_string()))?;
            Some((TlsConnector::from(Arc::new(config)), name))
        } else {
            None
        };
        Ok(Self {
            addresses,
            host: url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}")),
            path: match url.path() {
                "" => "/".to_owned(),
                path => path.to_owned(),
            },
            tls,
        })
    }
}

/// One handshake: whose, and how it is made.
pub(super) struct Attempt<'a> {
    pub(super) caller: Caller<'a>,
    pub(super) dialect: &'static dyn Dialect,
    /// The local address to connect from; the system's choice without.
    pub(super) source: Option<IpAddr>,
    /// Only for receivers behind a thin link.
    pub(super) link: Option<Link>,
    /// It reports what it has read.
    pub(super) reports: bool,
    /// Which of the target's addresses.
    pub(super) turn: usize,
}

/// Why there is no connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Failure {
    /// The relay answered, and not with 101.
    Refused {
        /// Its code, or the status where the answer has none.
        code: String,
        /// When to come again.
        retry_after: Option<Duration>,
    },
    /// No answer, and why.
    Failed(String),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Failed(match error.raw_os_error() {
            // "Cannot assign requested address": no port is left.
            Some(99) => "no port left (--source)".to_owned(),
            Some(24) => "too many open files".to_owned(),
            _ => error.kind().to_string(),
        })
    }
}

/// Connects, shakes hands and waits for the welcome.
///
/// # Errors
/// [`Failure`], after 10 s at the latest.
pub(super) async fn connect(target: &Target, attempt: &Attempt<'_>) -> Result<Socket, Failure> {
    let connecting = async {
        let socket = open(target, attempt).await?;
        loop {
            match socket.receive().await {
                Ok(Heard::Open) => {
                    if let Some(sign_in) = attempt.dialect.sign_in(&attempt.caller) {
                        // What a socket does not take, its reader hears as its end.
                        let _ = socket.send(sign_in);
                    }
                }
                Ok(Heard::Welcome { received }) => {
                    if received && attempt.reports {
                        socket.start_reports();
                    }
                    break;
                }
                Ok(Heard::Refused(code)) => return Err(Failure::Refused { code, retry_after: None }),
                Ok(_) => return Err(Failure::Failed("no welcome".to_owned())),
                Err(ended) => {
                    return Err(Failure::Failed(format!("closed with {} before the welcome", ended.code)));
                }
            }
        }
        if let Some(link) = attempt.link {
            socket.throttle(link.bytes_per_second);
        }
        Ok(socket)
    };
    timeout(CONNECT_LIMIT, connecting)
        .await
        .unwrap_or_else(|_| Err(Failure::Failed("no answer in 10 s".to_owned())))
}

async fn open(target: &Target, attempt: &Attempt<'_>) -> Result<Socket, Failure> {
    let address = target.addresses[attempt.turn % target.addresses.len()];
    let tcp = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    tcp.set_nodelay(true)?;
    if let Some(link) = attempt.link {
        let size = u32::try_from(link.receive_buffer / 2).unwrap_or(u32::MAX);
        tcp.set_recv_buffer_size(size)?;
        #[cfg(target_os = "linux")]
        if let Some(maxseg) = link.maxseg {
            let maxseg = u32::try_from(maxseg).unwrap_or(u32::MAX);
            socket2::SockRef::from(&tcp).set_tcp_mss(maxseg)?;
        }
    }
    if let Some(source) = attempt.source {
        tcp.bind(SocketAddr::new(source, 0))?;
    }
    let tcp = tcp.connect(address).await?;
    let mut stream = match &target.tls {
        None => Stream::Plain(tcp),
        Some((tls, name)) => Stream::Tls(Box::new(tls.connect(name.clone(), tcp).await?)),
    };
    let key = generate_key();
    let request = request(target, attempt, &key);
    let mut rest = request.as_bytes();
    while !rest.is_empty() {
        let written = poll_fn(|cx| stream.poll_write(cx, rest)).await?;
        rest = rest.split_at(written).1;
    }
    let mut received = Vec::new();
    loop {
        if let Some(length) = upgraded(&received, &key)? {
            let early = received.split_off(length);
            return Ok(Socket::new(stream, early, attempt.dialect));
        }
        if received.len() > ANSWER_LIMIT || !read_more(&mut stream, &mut received).await? {
            return Err(Failure::Failed("broken handshake".to_owned()));
        }
    }
}

async fn read_more(stream: &mut Stream, received: &mut Vec<u8>) -> io::Result<bool> {
    let mut buffer = [0; 4096];
    let mut buffer = ReadBuf::new(&mut buffer);
    poll_fn(|cx| stream.poll_read(cx, &mut buffer)).await?;
    received.extend_from_slice(buffer.filled());
    Ok(!buffer.filled().is_empty())
}

fn request(target: &Target, attempt: &Attempt<'_>, key: &str) -> String {
    let (path, sign_in) = attempt.dialect.handshake(&target.path, &attempt.caller);
    format!(
        "GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n{sign_in}\r\n",
        target.host
    )
}

/// The length of a complete answer that accepts; `None` while it is incomplete.
fn upgraded(received: &[u8], key: &str) -> Result<Option<usize>, Failure> {
    #[derive(Deserialize)]
    struct Problem {
        code: String,
    }
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut response = httparse::Response::new(&mut headers);
    let broken = || Failure::Failed("broken handshake".to_owned());
    let length = match response.parse(received) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(_) => return Err(broken()),
    };
    let header = |name: &str| {
        let header = response.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
        header.and_then(|header| std::str::from_utf8(header.value).ok())
    };
    let status = response.code.unwrap_or_default();
    if status == 101 {
        let accepted = header("sec-websocket-accept") == Some(derive_accept_key(key.as_bytes()).as_str());
        return if accepted { Ok(Some(length)) } else { Err(broken()) };
    }
    let body = received.get(length..).unwrap_or_default();
    let wanted: usize = header("content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
    if body.len() < wanted && received.len() < ANSWER_LIMIT {
        return Ok(None);
    }
    let problem: Option<Problem> = serde_json::from_slice(body).ok();
    let seconds = header("retry-after").and_then(|text| text.parse().ok());
    Err(Failure::Refused {
        code: problem.map_or_else(|| format!("status {status}"), |problem| problem.code),
        retry_after: seconds.map(Duration::from_secs),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

    #[test]
    fn an_answer_is_read_once_it_is_whole() {
        // The key and its answer are RFC 6455's (section 1.3).
        let answer = "HTTP/1.1 101 Switching Protocols\r\nsec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\nrest";
        for end in 0..answer.len() - 4 {
            assert_eq!(upgraded(&answer.as_bytes()[..end], KEY), Ok(None));
        }
        assert_eq!(upgraded(answer.as_bytes(), KEY), Ok(Some(answer.len() - 4)));
        let wrong = answer.replace("s3p", "S3p");
        assert!(matches!(upgraded(wrong.as_bytes(), KEY), Err(Failure::Failed(_))));
    }

    #[test]
    fn refusals_are_named_by_their_code_or_else_by_their_status() {
        let body = r#"{"code":"too_many_attempts"}"#;
        let head =
            format!("HTTP/1.1 429 Too Many\r\nRetry-After: 2\r\nContent-Length: {}\r\n\r\n", body.len());
        assert_eq!(upgraded(head.as_bytes(), KEY), Ok(None));
        let refusal = Failure::Refused {
            code: "too_many_attempts".to_owned(),
            retry_after: Some(Duration::from_secs(2)),
        };
        assert_eq!(upgraded(format!("{head}{body}").as_bytes(), KEY), Err(refusal));
        let plain = Failure::Refused { code: "status 404".to_owned(), retry_after: None };
        assert_eq!(upgraded(b"HTTP/1.1 404 Not Found\r\n\r\n", KEY), Err(plain));
    }
}
