//! A TCP proxy between a relay and its Redis that can be slowed down, held and cut.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// The state of the line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Line {
    Open,
    /// Nothing more is read from the server.
    Held,
    /// So many bytes a second, each way and for each connection.
    Slow(u32),
    /// Connections are closed, and new ones are at once.
    Cut,
}

/// Forwards connections.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    line: watch::Sender<Line>,
    server: watch::Sender<SocketAddr>,
    task: JoinHandle<()>,
}

impl Proxy {
    /// A proxy to `server`.
    pub async fn start(server: SocketAddr) -> Self {
        Self::start_slow(server, b"", Duration::ZERO).await
    }

    /// A proxy to `server` on which everything behind a request with this word takes this much longer.
    pub async fn start_slow(server: SocketAddr, word: &'static [u8], delay: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (line, state) = watch::channel(Line::Open);
        let (server, target) = watch::channel(server);
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (state, server) = (state.clone(), *target.borrow());
                tokio::spawn(async move {
                    let mut cut = state.clone();
                    tokio::select! {
                        biased;
                        _ = async { drop(cut.wait_for(|line| *line == Line::Cut).await) } => {}
                        () = forward(client, server, state, word, delay) => {}
                    }
                });
            }
        });
        Self { address, line, server, task }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// New connections go to another server; those that are there stay.
    pub fn point_to(&self, server: SocketAddr) {
        self.server.send_replace(server);
    }

    /// Reads nothing more from the server, or goes on.
    pub fn hold(&self, held: bool) {
        self.line.send_replace(if held { Line::Held } else { Line::Open });
    }

    /// Lets so many bytes through each second, each way and for each connection.
    pub fn slow_down(&self, bytes_per_second: u32) {
        self.line.send_replace(Line::Slow(bytes_per_second));
    }

    /// Closes all connections, and new ones at once.
    pub fn cut(&self) {
        self.line.send_replace(Line::Cut);
    }

    /// Lets everything through again.
    pub fn heal(&self) {
        self.line.send_replace(Line::Open);
    }
}

async fn forward(
    client: TcpStream,
    server: SocketAddr,
    line: watch::Receiver<Line>,
    word: &[u8],
    delay: Duration,
) {
    let Ok(server) = TcpStream::connect(server).await else {
        return;
    };
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    tokio::select! {
        () = forth(&mut from_client, &mut to_server, line.clone(), word, delay) => {}
        () = back(&mut from_server, &mut to_client, line) => {}
    }
}

async fn forth(
    from: &mut (impl AsyncReadExt + Unpin),
    to: &mut (impl AsyncWriteExt + Unpin),
    line: watch::Receiver<Line>,
    word: &[u8],
    delay: Duration,
) {
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        let request = &buffer[..read];
        if !delay.is_zero() && request.windows(word.len()).any(|window| window == word) {
            tokio::time::sleep(delay).await;
        }
        if to.write_all(request).await.is_err() {
            return;
        }
        let state = *line.borrow();
        take_time(state, read).await;
    }
}

async fn back(
    from: &mut (impl AsyncReadExt + Unpin),
    to: &mut (impl AsyncWriteExt + Unpin),
    mut line: watch::Receiver<Line>,
) {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        if line.wait_for(|line| *line != Line::Held).await.is_err() {
            return;
        }
        let read = tokio::select! {
            read = from.read(&mut buffer) => read.unwrap_or(0),
            // Held before anything came.
            _ = line.wait_for(|line| *line == Line::Held) => continue,
        };
        if read == 0 || to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
        let state = *line.borrow();
        take_time(state, read).await;
    }
}

/// The time that so many bytes take on this line.
async fn take_time(line: Line, bytes: usize) {
    if let Line::Slow(bytes_per_second) = line {
        let seconds = bytes as f64 / f64::from(bytes_per_second);
        tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}
