//! A Redis of its own for a test: a real redis-server without persistence, on a free port.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::{LIMIT, free_address};

/// A running redis-server; killed when dropped.
#[derive(Debug)]
pub struct RedisServer {
    child: Child,
    address: SocketAddr,
    _directory: TempDir,
}

impl RedisServer {
    /// Starts a server and waits for its PONG. Debian's package `redis-server` has the program.
    pub async fn start() -> Self {
        for _ in 0..5 {
            if let Some(server) = Self::try_start(free_address()).await {
                return server;
            }
        }
        panic!("no port stayed free")
    }

    /// Starts a server on this address (an earlier one's, to bring it back empty).
    pub async fn try_start(address: SocketAddr) -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let child = Command::new("redis-server")
            .args([
                "--bind",
                &address.ip().to_string(),
                "--port",
                &address.port().to_string(),
            ])
            .args(["--save", "", "--appendonly", "no", "--dir"])
            .arg(directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("redis-server is installed");
        let mut server = Self {
            child,
            address,
            _directory: directory,
        };
        let deadline = Instant::now() + LIMIT;
        let mut pause = tokio::time::interval(Duration::from_millis(2));
        loop {
            pause.tick().await;
            if server.child.try_wait().unwrap().is_some() {
                return None;
            }
            if server.answers().await {
                return Some(server);
            }
            assert!(Instant::now() < deadline, "redis-server does not answer");
        }
    }

    async fn answers(&self) -> bool {
        let Ok(mut stream) = TcpStream::connect(self.address).await else {
            return false;
        };
        let mut pong = [0; 7];
        stream.write_all(b"PING\r\n").await.is_ok()
            && stream.read_exact(&mut pong).await.is_ok()
            && &pong == b"+PONG\r\n"
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// For `REDIS_URL`.
    pub fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    /// Sends a signal (`STOP` and `CONT` make it half-open and bring it back).
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill")
            .args(["-s", name, &self.child.id().to_string()])
            .status()
            .unwrap();
        assert!(status.success());
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        // It can only have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
