//! The pure core: no await, no clock, no randomness, no socket, no environment.

#![deny(clippy::wildcard_enum_match_arm)]
// Tests may start from any instant.
#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

pub mod address;
pub mod budget;
pub mod classic;
pub mod close;
pub mod direct;
pub mod envelope;
pub mod freshness;
pub mod handshake;
pub mod ids;
pub mod limits;
pub mod outbox;
pub mod pacing;
pub mod parcel;
pub mod private;
pub mod protocol;
pub mod record;
pub mod refusal;
pub mod renewals;
pub mod room;
pub mod session;
