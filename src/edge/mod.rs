//! HTTP and WebSockets: what comes from outside.

pub mod admin;
pub mod client_files;
pub mod gate;
pub mod http;
pub mod listen;
pub mod places;
pub mod socket;
pub mod stream;
pub mod upgrade;
pub mod watched;
pub mod workers;

use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::Request;

use crate::auth::Verifier;
use crate::hub::Readiness;
use crate::metrics::Metrics;

use self::gate::Gate;
use self::workers::Workers;

/// What every request may need.
#[derive(Debug)]
pub struct Edge {
    /// Refuses handshakes that may not come in.
    pub gate: Arc<Gate>,
    /// Verifies the tokens of handshakes.
    pub verifier: Verifier,
    /// Where their rooms are.
    pub workers: Workers,
    /// What this process counts.
    pub metrics: Arc<Metrics>,
    /// The backplane's first probe is back, and no later one is missing.
    pub readiness: Readiness,
}

/// Where a request's TCP connection comes from.
#[derive(Debug, Clone, Copy)]
pub struct PeerAddress(pub SocketAddr);

/// Where a request comes from.
fn peer_of(request: &Request) -> SocketAddr {
    let unknown = SocketAddr::from(([0, 0, 0, 0], 0));
    request.extensions().get::<PeerAddress>().map_or(unknown, |peer| peer.0)
}
