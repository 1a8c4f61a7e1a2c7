//! A TCP proxy between a relay and its Redis that can be slowed down.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Forwards connections; what comes back from the server can be held.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    held: watch::Sender<bool>,
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
        let (held, hold) = watch::channel(false);
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let hold = hold.clone();
                tokio::spawn(async move {
                    let Ok(server) = TcpStream::connect(server).await else {
                        return;
                    };
                    let (mut from_client, mut to_client) = client.into_split();
                    let (mut from_server, mut to_server) = server.into_split();
                    let forth =
                        tokio::spawn(
                            async move { forth(&mut from_client, &mut to_server, word, delay).await },
                        );
                    back(&mut from_server, &mut to_client, hold).await;
                    forth.abort();
                });
            }
        });
        Self { address, held, task }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Reads nothing more from the server, or goes on.
    pub fn hold(&self, held: bool) {
        self.held.send_replace(held);
    }
}

async fn forth(
    from: &mut (impl AsyncReadExt + Unpin),
    to: &mut (impl AsyncWriteExt + Unpin),
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
    }
}

async fn back(
    from: &mut (impl AsyncReadExt + Unpin),
    to: &mut (impl AsyncWriteExt + Unpin),
    mut hold: watch::Receiver<bool>,
) {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        if hold.wait_for(|held| !held).await.is_err() {
            return;
        }
        let read = tokio::select! {
            read = from.read(&mut buffer) => read.unwrap_or(0),
            // Held before anything came.
            _ = hold.wait_for(|held| *held) => continue,
        };
        if read == 0 || to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}
