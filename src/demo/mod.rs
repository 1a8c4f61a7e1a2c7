//! The demo: what stands in for the outside world on one machine.

pub mod identity;
