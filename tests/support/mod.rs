//! What the black-box tests are made of: a relay process, an issuer of ID tokens, clients, a Redis.
//!
//! Nothing here knows the relay's code: only the contract and the wire.

#![allow(unused_imports, dead_code, reason = "each test binary uses its part of the support")]

mod balancer;
mod client;
mod cluster;
mod dns;
mod haproxy;
mod http;
mod issuer;
mod proxy;
mod raw;
mod redis;
mod relay;
mod resp;
mod sentinel;

use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub use balancer::{Balancer, Kind};
pub use client::{Client, Event};
pub use cluster::Cluster;
pub use haproxy::HaProxy;
pub use http::{Handshake, Response, request};
pub use issuer::{Issuer, Key, PROJECT, Token, email};
pub use proxy::Proxy;
pub use raw::{RawClient, RawEvent, RawFrame};
pub use redis::RedisServer;
pub use relay::{ADMIN_TOKEN, Config, Relay, program};
pub use resp::{Subscriber, ask};
pub use sentinel::Sentinel;

/// How long a test waits for one thing that has to happen at once.
pub const LIMIT: Duration = Duration::from_secs(20);

/// Waits for `future` for at most `limit`; past it the test fails and says what it waited for.
pub async fn within<F: Future>(limit: Duration, what: &str, future: F) -> F::Output {
    match tokio::time::timeout(limit, future).await {
        Ok(output) => output,
        Err(_) => panic!("waited {limit:?} for {what}"),
    }
}

/// Seconds since the Unix epoch.
pub fn now() -> i64 {
    i64::try_from(since_epoch().as_secs()).unwrap()
}

/// Time since the Unix epoch.
pub fn since_epoch() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap()
}

/// A free port of 127.0.0.1, below the range from which the kernel takes the ports of outgoing connections.
/// So another test's client cannot take it before its server listens. Another process still can, so whoever
/// listens on it must be ready to try again.
pub fn free_port() -> u16 {
    const FIRST: u32 = 12_000;
    const PORTS: u32 = 20_000;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    for _ in 0..PORTS {
        let next = std::process::id().wrapping_mul(251).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = u16::try_from(FIRST + next % PORTS).unwrap();
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
    panic!("no free port");
}

/// `127.0.0.1:PORT` with a [`free_port`].
pub fn free_address() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, free_port()).into()
}
