//! What a thread's users do.

mod member;
mod overwrite;
mod storm;
mod stream;

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;

use tokio::sync::{mpsc, watch};
use tokio::task::LocalSet;
use tokio::time::Instant;

use super::connect::User;
use super::settings::Scenario;
use super::shard::{Event, Phase, Plan, Shard};

/// Starts a thread that plays these users; its end is the end of `events`.
///
/// # Errors
/// When the system has no thread or no runtime for it.
pub(super) fn start(
    plan: Arc<Plan>,
    index: usize,
    users: Vec<User>,
    phase: watch::Receiver<Phase>,
    events: mpsc::Sender<Event>,
) -> io::Result<JoinHandle<()>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name(format!("load-{index}")).spawn(move || {
        let (tally, ending) = (RefCell::default(), Cell::new(false));
        let shard = Rc::new(Shard { plan, index, users, tally, ending, phase, events });
        LocalSet::new().block_on(&runtime, async {
            let reporting = shard.clone();
            let reporting = tokio::task::spawn_local(async move { reporting.report_every_second().await });
            match shard.options().scenario {
                Scenario::Storm => storm::run(&shard).await,
                Scenario::Overwrite => overwrite::run(&shard).await,
                Scenario::Stream | Scenario::Idle | Scenario::Slow | Scenario::Rolling => {
                    stream::run(&shard).await;
                }
            }
            reporting.abort();
            // The second in which everything ended.
            shard.report(shard.second(Instant::now())).await;
        });
    })
}
