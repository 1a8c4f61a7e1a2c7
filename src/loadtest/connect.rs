//! From an address to a welcomed WebSocket.

use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls_platform_verifier::ConfigVerifierExt as _;
use serde::Deserialize;
use tokio::net::TcpSocket;
use tokio::time::timeout;
use tokio_tungstenite::{Connector, client_async_tls_with_config};
use tungstenite::client::IntoClientRequest as _;
use tungstenite::handshake::client::Request;
use tungstenite::protocol::WebSocketConfig;
use url::Url;

use super::dialect::{Caller, Heard};
use super::settings::LoadOptions;
use super::socket::{Link, Socket};
use crate::relay::ids::Device;
use crate::relay::private::Private;

/// From the first SYN to the welcome.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// What one read takes at most: a few frames, and little enough for tens of thousands of sockets.
const READ_BUFFER: usize = 4096;
/// What may wait when the relay reads too slowly; more is not sent.
const WRITE_LIMIT: usize = 1 << 20;

/// One URL with its addresses, resolved once at the start.
pub(super) struct Target {
    url: Url,
    addresses: Vec<SocketAddr>,
    connector: Connector,
}

impl Target {
    /// Looks the host up, once.
    ///
    /// # Errors
    /// The resolver's, or that no certificates can be checked.
    pub(super) fn resolve(url: &Url) -> Result<Self, Box<dyn Error>> {
        let addresses = url.socket_addrs(|| None).map_err(|error| format!("--url {url}: {error}"))?;
        let connector = if url.scheme() == "wss" {
            let provider = rustls::crypto::aws_lc_rs::default_provider();
            // Where another part of the process was first, its choice stands.
            let _ = provider.install_default();
            Connector::Rustls(Arc::new(rustls::ClientConfig::with_platform_verifier()?))
        } else {
            Connector::Plain
        };
        Ok(Self { url: url.clone(), addresses, connector })
    }
}

/// One user, signed in.
#[derive(Debug, Clone)]
pub(super) struct User {
    /// Its place among all users.
    pub(super) number: u32,
    pub(super) token: Private<Arc<str>>,
}

impl User {
    pub(super) fn calls<'a>(&'a self, device: Device, client: &'a str) -> Caller<'a> {
        Caller { user: self.number, device, client, token: &self.token }
    }
}

/// A welcomed socket, or why there is none.
pub(super) type Connected = Result<Socket, Failure>;

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

impl From<tungstenite::Error> for Failure {
    fn from(error: tungstenite::Error) -> Self {
        #[derive(Deserialize)]
        struct Problem {
            code: String,
        }
        match error {
            tungstenite::Error::Io(error) => error.into(),
            tungstenite::Error::Http(answer) => {
                let status = format!("status {}", answer.status().as_u16());
                let problem: Result<Problem, _> =
                    serde_json::from_slice(answer.body().as_deref().unwrap_or_default());
                let seconds =
                    answer.headers().get("retry-after").and_then(|value| value.to_str().ok()?.parse().ok());
                Self::Refused {
                    code: problem.map_or(status, |problem| problem.code),
                    retry_after: seconds.map(Duration::from_secs),
                }
            }
            _ => Self::Failed("broken handshake".to_owned()),
        }
    }
}

/// Connects, shakes hands and waits for the welcome.
///
/// # Errors
/// [`Failure`], after 10 s at the latest.
pub(super) async fn connect(target: &Target, options: &LoadOptions, caller: Caller<'_>) -> Connected {
    let connecting = async {
        let socket = open(target, options, caller).await?;
        loop {
            match socket.receive().await {
                Ok(Heard::Open) => {
                    // What a socket does not take, its reader hears as its end.
                    let _ = options.dialect.sign_in(&caller).map(|sign_in| socket.send(sign_in));
                }
                Ok(Heard::Welcome { features }) => {
                    if !options.no_reports && features.iter().any(|feature| feature == "received") {
                        socket.start_reports();
                    }
                    break;
                }
                Ok(Heard::Refused(code)) => return Err(Failure::Refused { code, retry_after: None }),
                Ok(_) => return Err(Failure::Failed("no welcome".to_owned())),
                Err(ended) => {
                    return Err(Failure::Failed(format!("closed with {} before the welcome", ended.0)));
                }
            }
        }
        if let Some(bytes_per_second) = options.link_of(caller.device) {
            socket.throttle(bytes_per_second);
        }
        Ok(socket)
    };
    timeout(CONNECT_LIMIT, connecting)
        .await
        .unwrap_or_else(|_| Err(Failure::Failed("no answer in 10 s".to_owned())))
}

async fn open(target: &Target, options: &LoadOptions, caller: Caller<'_>) -> Connected {
    let turn = caller.user as usize * 2 + usize::from(caller.device == Device::Mobile);
    let address = target.addresses[turn % target.addresses.len()];
    let tcp = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    tcp.set_nodelay(true)?;
    if options.link_of(caller.device).is_some() {
        tcp.set_recv_buffer_size(u32::try_from(options.receive_buffer / 2).unwrap_or(u32::MAX))?;
        #[cfg(target_os = "linux")]
        if let Some(maxseg) = options.maxseg {
            socket2::SockRef::from(&tcp).set_tcp_mss(u32::try_from(maxseg).unwrap_or(u32::MAX))?;
        }
    }
    if let Some(source) = options.sources.get(turn % options.sources.len().max(1)) {
        tcp.bind(SocketAddr::new(*source, 0))?;
    }
    let link = Link::new(tcp.connect(address).await?);
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER)
        .write_buffer_size(0)
        .max_write_buffer_size(WRITE_LIMIT);
    let request = request(target.url.clone(), options, caller)?;
    let (ws, _) =
        client_async_tls_with_config(request, link, Some(config), Some(target.connector.clone())).await?;
    Ok(Socket::new(ws, options.dialect))
}

fn request(mut url: Url, options: &LoadOptions, caller: Caller<'_>) -> Result<Request, tungstenite::Error> {
    let (query, headers) = options.dialect.handshake(&caller);
    url.set_query(Some(&query));
    let mut request = url.as_str().into_client_request()?;
    for (name, value) in headers {
        request.headers_mut().insert(name, value.parse()?);
    }
    Ok(request)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_named_by_their_code_or_else_by_their_status() {
        let refused = |status: u16, body: &str| {
            let answer = http::Response::builder().status(status).header("retry-after", "2");
            let answer = answer.body(Some(body.as_bytes().to_vec())).unwrap();
            match Failure::from(tungstenite::Error::Http(answer.into())) {
                Failure::Refused { code, retry_after: Some(pause) } => (code, pause.as_secs()),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(refused(429, r#"{"code":"too_many_attempts"}"#), ("too_many_attempts".to_owned(), 2));
        assert_eq!(refused(404, "Not Found"), ("status 404".to_owned(), 2));
        assert_eq!(refused(503, ""), ("status 503".to_owned(), 2));
    }
}
