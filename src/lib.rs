//! duorelay

pub mod auth;
pub mod config;
pub mod demo;
pub mod relay;
pub mod telemetry;
