//! An instance's figures, and ways to them.

use std::collections::BTreeMap;
use std::fmt::Debug;

/// One instance at one moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Instance {
    /// CPU since its start, in seconds; absent where the process does not report it.
    pub cpu: Option<f64>,
    /// Resident memory, in bytes; absent where the process does not report it.
    pub rss: Option<f64>,
    /// Open connections; absent where the process does not report them.
    pub connections: Option<f64>,
    /// What it dropped since its start, by cause.
    pub dropped: BTreeMap<String, f64>,
}

/// Another way to an instance's figures.
pub trait Source: Debug + Send + Sync {
    /// In reports and errors.
    fn name(&self) -> String;
    /// Its figures now; `None` when it has none.
    fn read(&self) -> Option<Instance>;
}
