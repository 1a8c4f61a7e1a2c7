//! HTTP and WebSockets: what comes from outside.

pub mod limits;
pub mod socket;
pub mod stream;
