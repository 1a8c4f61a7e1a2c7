//! Many instances on one Redis, and what may happen to them: real processes, killed, stopped, cut off and moved.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::print_stderr, reason = "tests")]
#![allow(unreachable_pub, reason = "the support is shared with other test binaries")]

#[path = "../support/mod.rs"]
mod support;

mod cluster;
mod fleet;
mod handover;
mod instances;
mod losses;
mod moves;
mod operators;
mod redis;
mod rights;
mod startup;
mod states;
mod tls;
mod together;
mod traffic;
