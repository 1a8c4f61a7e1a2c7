//! HTTP and WebSockets: what comes from outside.

pub mod http;
pub mod limits;
pub mod listen;
pub mod memory;
pub mod operator;
pub mod socket;
pub mod stream;
pub mod upgrade;
pub mod workers;
