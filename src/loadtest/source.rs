//! What instances and Redis say of themselves, and other ways to it.

use std::collections::BTreeMap;
use std::fmt::Debug;

use serde::Serialize;

/// One instance at one moment.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
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

/// Redis at one moment; of a cluster, all nodes together.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(super) struct RedisState {
    /// CPU since its start, in seconds.
    pub(super) cpu: f64,
    /// Commands since its start.
    pub(super) commands: f64,
    /// Memory in use, in bytes.
    pub(super) memory: f64,
}

/// Everything at one moment; what did not answer in time is absent.
#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct Reading {
    /// Seconds since the measurement began.
    pub(super) at: f64,
    /// In the order of `LoadOptions::watched`.
    pub(super) instances: Vec<Option<Instance>>,
    /// The Redis of `--redis-url`, if there is one.
    pub(super) redis: Option<RedisState>,
}

impl Reading {
    /// The sum over the instances, if all answered.
    pub(super) fn sum(&self, of: impl Fn(&Instance) -> Option<f64>) -> Option<f64> {
        let all = self.instances.iter().map(|instance| instance.as_ref().and_then(&of));
        all.sum::<Option<f64>>().filter(|_| !self.instances.is_empty())
    }
}
