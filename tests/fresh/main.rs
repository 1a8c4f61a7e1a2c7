//! Frames stay fresh over thin links, through each balancer, both ways: real relays, real balancers, the load tester.
//!
//! `cargo test --test fresh` is the short form. `FRESH_SECONDS=40 cargo test --test fresh -- --nocapture` is the long
//! one, and prints the table that stands in `tests/README.md`.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, reason = "tests")]
#![allow(clippy::print_stderr, unreachable_pub, reason = "the support is shared with other test binaries")]

mod device;
mod path;
mod proxies;
#[path = "../support/mod.rs"]
mod support;
