//! The contract, checked from outside: the real binary, real sockets, and nothing of the relay's code.
//!
//! `tests/README.md` has the table of contract lines and the tests that hold them.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::print_stderr, reason = "tests")]
#![allow(unreachable_pub, reason = "the support is shared with other test binaries")]

#[path = "../support/mod.rs"]
mod support;

mod acks;
mod attempts;
mod bounds;
mod classic;
mod cli;
mod crowd;
mod demo;
mod drain;
mod expiry;
mod gate;
mod handshake;
mod heartbeat;
mod http2;
mod limits;
mod logs;
mod memory;
mod operator;
mod pressure;
mod receivers;
mod reports;
mod revocation;
mod session;
mod slow;
mod takeover;
mod tenants;
mod tokens;
mod traces;
mod v1_control;
mod v1_frames;
