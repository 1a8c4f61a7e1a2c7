//! The pure core: no await, no clock, no randomness, no socket, no environment.

pub mod close;
pub mod ids;
pub mod refusal;
