//! `duorelay health`: asks the instance on this machine how it is. Container engines run their health checks
//! inside an image that has no other HTTP client.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::config::HealthCheck;

/// How long the answer may take: less than the 5 s after which Docker kills the check.
const LIMIT: Duration = Duration::from_secs(3);

/// Why an instance is not well.
#[derive(Debug, thiserror::Error)]
pub enum HealthError {
    /// Nothing listens there, or it does not speak HTTP.
    #[error("{address} cannot be asked: {source}")]
    Unreachable {
        /// The address of the health check.
        address: SocketAddr,
        /// What the system says.
        source: std::io::Error,
    },
    /// It takes too long.
    #[error("{address} does not answer within {} s", LIMIT.as_secs())]
    Silent {
        /// The address of the health check.
        address: SocketAddr,
    },
    /// It says no; the text is its answer's status line.
    #[error("{0}")]
    Unwell(String),
}

/// Asks `check.path` of the instance that listens on `check.listen`.
///
/// # Errors
/// [`HealthError`] unless the answer is 200.
pub async fn run(check: HealthCheck) -> Result<(), HealthError> {
    let address = reachable(check.listen);
    let answer = timeout(LIMIT, ask(address, check.path)).await;
    let status = answer
        .map_err(|_| HealthError::Silent { address })?
        .map_err(|source| HealthError::Unreachable { address, source })?;
    if status.starts_with("HTTP/1.1 200") {
        Ok(())
    } else {
        Err(HealthError::Unwell(format!("{}: {status}", check.path)))
    }
}

/// The status line of the answer to `GET path`.
async fn ask(address: SocketAddr, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(4096).read_to_end(&mut answer).await?;
    let answer = String::from_utf8_lossy(&answer);
    Ok(answer.lines().next().unwrap_or_default().to_owned())
}

/// A relay on every address is reached on IPv4's loopback: `[::]` takes IPv4 too, and containers without
/// IPv6 have no `::1`.
fn reachable(listen: SocketAddr) -> SocketAddr {
    if listen.ip().is_unspecified() {
        SocketAddr::new(Ipv4Addr::LOCALHOST.into(), listen.port())
    } else {
        listen
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use tokio::net::TcpListener;

    use super::*;

    /// What [`run`] says of a server that answers `answer` to the request that it returns.
    async fn asked(answer: &'static str) -> (Result<(), HealthError>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let serving = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 4096];
            let length = stream.read(&mut request).await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
            request.truncate(length);
            String::from_utf8(request).unwrap()
        });
        let check = HealthCheck {
            listen: SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port),
            path: "/healthz/ready",
        };
        (run(check).await, serving.await.unwrap())
    }

    #[tokio::test]
    async fn only_200_is_well() {
        let (result, request) = asked("HTTP/1.1 200 OK\r\n\r\nready").await;
        result.unwrap();
        assert!(request.starts_with("GET /healthz/ready HTTP/1.1\r\n"));
        let (result, _) = asked("HTTP/1.1 503 Service Unavailable\r\n\r\ndraining").await;
        assert_eq!(result.unwrap_err().to_string(), "/healthz/ready: HTTP/1.1 503 Service Unavailable");
        assert!(asked("").await.0.is_err());
    }

    #[tokio::test]
    async fn nobody_there_is_not_well() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let listen = listener.local_addr().unwrap();
        drop(listener);
        let check = HealthCheck { listen, path: "/healthz/live" };
        assert!(matches!(run(check).await, Err(HealthError::Unreachable { .. })));
    }
}
