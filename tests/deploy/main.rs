//! Real relays as they are shipped: demos that share a Redis, and the health check of the image.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::print_stderr, reason = "tests")]
#![allow(unreachable_pub, reason = "the support is shared with other test binaries")]

#[path = "../support/mod.rs"]
mod support;

mod affinity;
mod demo;
mod health;
mod pairs;
mod rolling;
