//! A private WebSocket relay for two devices of one person. The desktop and the mobile of a signed-in user
//! stream to each other, through any number of instances.
//!
//! ```text
//! desktop socket -> edge/socket/ -> hub/ -> relay/room.rs: "mobile is at B" -> backplane/ -.
//!                   `------------------------------ instance A ----------------------------'   | Redis
//!                   .------------------------------ instance B ----------------------------.   |
//! mobile socket  <- edge/socket/ <- relay/outbox.rs <- relay/room.rs: "current?" <- hub/ <- backplane/
//! ```
//!
//! If both sockets are on one instance, the frame goes through memory, and Redis is not touched.
//!
//! # The map
//!
//! Imports point down, never up (`tests/layering.rs`):
//!
//! - [`server`]: one instance's life. [`demo`]: the same with a sign-in and a page of its own.
//! - [`worker`]: a thread, and the users whose sockets live on it.
//! - [`edge`]: HTTP, upgrades, limits, operators; [`edge::socket`] is one socket's task.
//! - [`hub`]: a worker's rooms; asks [`relay::room::Room`] what to do, and does it.
//! - [`backplane`]: what joins instances, as promises; [`backplane::memory`] and [`backplane::redis`] keep them.
//! - [`relay`]: the pure core, without clock, randomness or I/O: everything that can be decided is
//!   decided there.
//! - [`auth`]: who signed in. [`config`]: every setting. [`metrics`] and [`telemetry`]: what it says of itself.
//!
//! `README.md` is for users, `src/README.md` for those who change the code, and `src/relay/README.md` is the wire
//! protocol.

pub mod auth;
pub mod backplane;
pub mod config;
pub mod demo;
pub mod edge;
pub mod health;
pub mod host;
pub mod hub;
pub mod loadtest;
pub mod metrics;
pub mod relay;
pub mod server;
pub mod telemetry;
pub mod worker;
