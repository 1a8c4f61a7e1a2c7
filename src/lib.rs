//! duorelay

pub mod auth;
pub mod demo;
pub mod relay;
