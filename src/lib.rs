//! duorelay

pub mod auth;
pub mod relay;
