//! The scenarios.

use std::fmt;

use clap::ValueEnum;
use clap::builder::PossibleValue;

/// What users do while the run measures. The help prints the sentences.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Scenario {
    /// every user's two devices stream to each other
    #[default]
    Stream,
    /// connections stay open and silent: memory for each
    Idle,
    /// connections come and go at a rate: time and CPU for each handshake
    Storm,
    /// a desktop takes over from another; two at the same instant: who is left, when are they notified
    Overwrite,
    /// receivers behind a thin link: the age of frames on arrival
    Slow,
    /// streams go on while instances leave and come back: longest silence, lost frames
    Rolling,
}

impl Scenario {
    /// True when users stream frames.
    #[must_use]
    pub const fn streams(self) -> bool {
        matches!(self, Self::Stream | Self::Slow | Self::Rolling)
    }
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.to_possible_value().as_ref().map_or("", PossibleValue::get_name))
    }
}
