//! What a thread's users do.

mod member;
mod overwrite;
mod storm;
mod stream;

use std::rc::Rc;

use super::settings::Scenario;
use super::shard::Shard;

/// Runs this thread's share of the scenario to its end, or until the run is stopped.
pub(super) async fn run(shard: &Rc<Shard>) {
    match shard.options().scenario {
        Scenario::Stream | Scenario::Idle | Scenario::Slow | Scenario::Rolling => stream::run(shard).await,
        Scenario::Storm => storm::run(shard).await,
        Scenario::Overwrite => overwrite::run(shard).await,
    }
}
