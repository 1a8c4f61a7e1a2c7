//! duorelay

pub mod auth;
pub mod backplane;
pub mod config;
pub mod demo;
pub mod hub;
pub mod metrics;
pub mod relay;
pub mod telemetry;
