//! duorelay

pub mod auth;
pub mod backplane;
pub mod config;
pub mod demo;
pub mod edge;
pub mod hub;
pub mod loadtest;
pub mod metrics;
pub mod relay;
pub mod server;
pub mod telemetry;
pub mod worker;
