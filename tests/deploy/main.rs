//! Several real relays as they are shipped: demos that share a Redis, the health check of the image, and a
//! rolling restart behind a real HAProxy with the shipped configuration.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    reason = "tests"
)]
#![allow(
    unreachable_pub,
    reason = "the support is shared with other test binaries"
)]

#[path = "../support/mod.rs"]
mod support;

mod balancer;
mod demo;
mod device;
mod health;
mod rolling;
