//! duorelay

pub mod auth;
pub mod config;
pub mod relay;
pub mod telemetry;
