//! Connections come and go at a rate.

use std::io;
use std::rc::Rc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use super::super::alarm::{Alarm, Beat};
use super::super::connect::User;
use super::super::shard::Shard;
use crate::relay::ids::Device;

/// Handshakes under way at once; one that would be more is counted as failed.
const UNDER_WAY: usize = 4096;
/// How long the last goodbyes may take.
const CLOSE_LIMIT: Duration = Duration::from_secs(2);

/// Opens connections by the clock, and closes each when it is welcomed.
pub(super) async fn run(shard: &Rc<Shard>) {
    let Some(start) = shard.ready().await else {
        return;
    };
    let end = start + shard.options().warmup + shard.options().duration;
    let mut attempts = JoinSet::new();
    // Without a timer there is no clock to connect by.
    let _ = shard.until_stopped(pace(shard, &mut attempts, start, end)).await;
    let deadline = Instant::now() + CLOSE_LIMIT;
    while let Ok(Some(_)) = timeout_at(deadline, attempts.join_next()).await {}
}

async fn pace(shard: &Rc<Shard>, attempts: &mut JoinSet<()>, start: Instant, end: Instant) -> io::Result<()> {
    let mut alarm = Alarm::new()?;
    let mut beat = Beat::new(start, shard.share(shard.options().rate));
    // Every user's desktop once, then every user's mobile, so that no slot is fought over.
    for device in Device::ALL.into_iter().cycle() {
        for user in &shard.users {
            let due = beat.next();
            if due >= end {
                return Ok(());
            }
            alarm.until(due).await?;
            while attempts.try_join_next().is_some() {}
            if attempts.len() >= UNDER_WAY {
                shard.tally.borrow_mut().fail("too many under way");
                continue;
            }
            attempts.spawn_local(come_and_go(shard.clone(), user.clone(), device, due));
        }
    }
    Ok(())
}

async fn come_and_go(shard: Rc<Shard>, user: User, device: Device, due: Instant) {
    let client = format!("load-{}", user.number);
    let place = shard.options().place(user.number as usize, device);
    // What comes of it is counted there.
    if let Ok(socket) = shard.connect(user.calls(device, &client), place, due).await {
        shard.goodbye(&socket).await;
    }
}
