//! HTTP/1.1 by hand: what goes over the wire is exactly what a test wrote.

use std::io;
use std::net::{IpAddr, SocketAddr};

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use super::{Client, LIMIT, RawClient, within};

/// The key of RFC 6455, section 1.3, and what a server must answer to it.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// An HTTP response.
#[derive(Debug, Clone)]
pub struct Response {
    /// Status code.
    pub status: u16,
    /// Header fields in their order, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body; after 101 the bytes of the WebSocket so far.
    pub body: Vec<u8>,
}

impl Response {
    /// The first header field of that (lower-case) name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(field, _)| field == name).map(|(_, value)| value.as_str())
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error} in {:?}", String::from_utf8_lossy(&self.body)))
    }

    /// Checks that this is the refusal `code` with `status`, in the form of RFC 9457.
    #[track_caller]
    pub fn expect_refusal(&self, status: u16, code: &str) {
        let body = String::from_utf8_lossy(&self.body);
        assert_eq!(self.status, status, "expected {code}: {body}");
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{body}");
        let problem = self.json();
        assert_eq!(problem["code"], code, "{problem}");
        assert_eq!(problem["status"], status, "{problem}");
        assert!(problem["title"].is_string() && problem["detail"].is_string(), "{problem}");
        let passes_by_itself = matches!(status, 429 | 503);
        let retry_after = self.header("retry-after").map(|seconds| seconds.parse::<u32>().unwrap());
        assert_eq!(retry_after.is_some(), passes_by_itself, "Retry-After: {retry_after:?}");
        if status == 426 {
            assert_eq!(self.header("upgrade").map(str::to_lowercase).as_deref(), Some("websocket"));
            assert_eq!(self.header("sec-websocket-version"), Some("13"));
        }
    }
}

/// Sends one request and reads the whole response.
pub async fn request(
    to: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> io::Result<Response> {
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if !body.is_empty() {
        head.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    head.push_str("\r\n");
    let exchange = async {
        let mut stream = TcpStream::connect(to).await?;
        stream.write_all(head.as_bytes()).await?;
        stream.write_all(body).await?;
        read_response(&mut stream).await
    };
    within(LIMIT, &format!("the answer to {method} {path}"), exchange).await
}

/// Reads a response: its head, then as much body as it announces, or all until the end.
pub(super) async fn read_response(stream: &mut TcpStream) -> io::Result<Response> {
    let mut bytes = Vec::new();
    let head_end = loop {
        if let Some(at) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break at;
        }
        if stream.read_buf(&mut bytes).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    };
    let head = String::from_utf8(bytes[..head_end].to_vec()).map_err(io::Error::other)?;
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).and_then(|status| status.parse().ok());
    let status = status.ok_or_else(|| io::Error::other("no status line"))?;
    let headers: Vec<_> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_lowercase(), value.trim().to_owned()))
        .collect();
    let mut response = Response { status, headers, body: bytes.split_off(head_end + 4) };
    match response.header("content-length").map(|length| length.parse::<usize>().unwrap()) {
        _ if status == 101 || status == 204 => {}
        Some(length) => {
            while response.body.len() < length {
                if stream.read_buf(&mut response.body).await? == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
        }
        None => {
            stream.read_to_end(&mut response.body).await?;
            if response.header("transfer-encoding") == Some("chunked") {
                response.body = unchunk(&response.body);
            }
        }
    }
    Ok(response)
}

fn unchunk(mut rest: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(line_end) = rest.windows(2).position(|window| window == b"\r\n") {
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..line_end]).unwrap(), 16).unwrap();
        let start = line_end + 2;
        body.extend_from_slice(&rest[start..start + size]);
        rest = &rest[start + size + 2..];
        if size == 0 {
            break;
        }
    }
    body
}

/// A WebSocket handshake to be filled in and sent.
#[derive(Debug, Clone)]
pub struct Handshake {
    to: SocketAddr,
    from: Option<IpAddr>,
    receive_buffer: Option<u32>,
    method: String,
    path: String,
    query: Vec<String>,
    headers: Vec<(String, String)>,
}

impl Handshake {
    /// A well-formed request to `/ws` without a token.
    pub fn new(to: SocketAddr) -> Self {
        let host = to.to_string();
        let headers = [
            ("Host", host.as_str()),
            ("Connection", "Upgrade"),
            ("Upgrade", "websocket"),
            ("Sec-WebSocket-Version", "13"),
            ("Sec-WebSocket-Key", KEY),
        ];
        Self {
            to,
            from: None,
            receive_buffer: None,
            method: "GET".into(),
            path: "/ws".into(),
            query: Vec::new(),
            headers: headers.map(|(name, value)| (name.into(), value.into())).to_vec(),
        }
    }

    /// Another method than GET.
    pub fn method(mut self, method: &str) -> Self {
        self.method = method.into();
        self
    }

    /// Another path than `/ws`.
    pub fn path(mut self, path: &str) -> Self {
        self.path = path.into();
        self
    }

    /// Adds a query parameter, as it stands.
    pub fn query(mut self, parameter: &str) -> Self {
        self.query.push(parameter.into());
        self
    }

    /// Adds `?device=`.
    pub fn device(self, device: &str) -> Self {
        self.query(&format!("device={device}"))
    }

    /// Adds `?client=`.
    pub fn client(self, client: &str) -> Self {
        self.query(&format!("client={client}"))
    }

    /// Adds a header field.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Takes header fields away.
    pub fn without(mut self, name: &str) -> Self {
        self.headers.retain(|(field, _)| !field.eq_ignore_ascii_case(name));
        self
    }

    /// Offers these protocols, in one header field as browsers do.
    pub fn offer(self, protocols: &[&str]) -> Self {
        self.header("Sec-WebSocket-Protocol", &protocols.join(", "))
    }

    /// Adds `Authorization: Bearer`.
    pub fn bearer(self, token: &str) -> Self {
        self.header("Authorization", &format!("Bearer {token}"))
    }

    /// Connects from this loopback address.
    pub fn from(mut self, address: IpAddr) -> Self {
        self.from = Some(address);
        self
    }

    /// Lets the kernel keep only about so many received bytes.
    pub fn receive_buffer(mut self, bytes: u32) -> Self {
        self.receive_buffer = Some(bytes);
        self
    }

    /// Sends the request; the response is 101 or a refusal.
    pub async fn send(&self) -> (TcpStream, Response) {
        within(LIMIT, "the answer to the handshake", self.try_send()).await.unwrap()
    }

    async fn try_send(&self) -> io::Result<(TcpStream, Response)> {
        let mut stream = self.connect().await?;
        stream.write_all(self.head().as_bytes()).await?;
        let response = read_response(&mut stream).await?;
        Ok((stream, response))
    }

    /// Sends the request and closes the connection without waiting for an answer.
    pub async fn send_and_leave(&self) {
        let mut stream = self.connect().await.unwrap();
        stream.write_all(self.head().as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
    }

    /// A connection whose first message has not been read, or the refusal; an error where nobody answers.
    pub async fn try_open(&self) -> io::Result<Result<Client, Response>> {
        let (stream, response) = self.try_send().await?;
        Ok(if response.status == 101 { Ok(Client::new(stream, response).await) } else { Err(response) })
    }

    async fn connect(&self) -> io::Result<TcpStream> {
        let socket = TcpSocket::new_v4()?;
        if let Some(from) = self.from {
            socket.bind((from, 0).into())?;
        }
        if let Some(bytes) = self.receive_buffer {
            socket.set_recv_buffer_size(bytes)?;
        }
        let stream = socket.connect(self.to).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// The request's bytes.
    pub fn head(&self) -> String {
        let query = if self.query.is_empty() { String::new() } else { format!("?{}", self.query.join("&")) };
        let mut head = format!("{} {}{query} HTTP/1.1\r\n", self.method, self.path);
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        head
    }

    /// The response of a handshake that must be refused.
    pub async fn refused(&self) -> Response {
        let (_, response) = self.send().await;
        assert_ne!(response.status, 101, "was let in");
        response
    }

    async fn upgraded(&self) -> (TcpStream, Response) {
        let (stream, response) = self.send().await;
        assert_eq!(response.status, 101, "refused: {}", String::from_utf8_lossy(&response.body));
        assert_eq!(response.header("upgrade").map(str::to_lowercase).as_deref(), Some("websocket"));
        assert_eq!(response.header("sec-websocket-accept"), Some(ACCEPT));
        assert_eq!(response.header("sec-websocket-extensions"), None, "none was offered");
        (stream, response)
    }

    /// A connection whose first message has not been read.
    pub async fn open(&self) -> Client {
        let (stream, response) = self.upgraded().await;
        Client::new(stream, response).await
    }

    /// A v1 connection that was welcomed.
    pub async fn open_v1(&self) -> Client {
        let mut client = self.open().await;
        assert_eq!(client.protocol.as_deref(), Some("duorelay.v1"));
        client.welcome = client.expect_json("welcome").await;
        client
    }

    /// A connection whose frames are read and written by hand.
    pub async fn open_raw(&self) -> RawClient {
        let (stream, response) = self.upgraded().await;
        RawClient::new(stream, response.body)
    }
}
