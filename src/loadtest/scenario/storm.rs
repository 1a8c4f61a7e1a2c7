//! Connections come and go at a rate.

use std::io;
use std::rc::Rc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};

use super::super::alarm::{Alarm, Beat};
use super::super::shard::{Shard, User, Who};
use crate::relay::ids::Device;

/// Handshakes under way at once; one that would be more is counted as failed.
const UNDER_WAY: usize = 4096;
/// How long a goodbye may take.
const CLOSE_LIMIT: Duration = Duration::from_secs(2);

/// Opens connections by the clock, and closes each when it is welcomed.
pub(super) async fn run(shard: &Rc<Shard>) {
    let Some(start) = shard.ready().await else {
        return;
    };
    let end = start + shard.options().warmup + shard.options().duration;
    let mut attempts = JoinSet::new();
    tokio::select! {
        // Without a timer there is no clock to connect by.
        _ = pace(shard, &mut attempts, start, end) => {}
        () = shard.stopped() => {}
    }
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
                let why = "too many under way".to_owned();
                *shard.tally.borrow_mut().failed.entry(why).or_default() += 1;
                continue;
            }
            attempts.spawn_local(come_and_go(shard.clone(), user.clone(), device, due));
        }
    }
    Ok(())
}

async fn come_and_go(shard: Rc<Shard>, user: User, device: Device, due: Instant) {
    let client = format!("load-{}", user.number);
    let [desktop, mobile] = shard.options().places(user.number as usize);
    let place = match device {
        Device::Desktop => desktop,
        Device::Mobile => mobile,
    };
    let who = Who { user: &user, device, client: &client, link: None };
    // What comes of it is counted there.
    let Ok(socket) = shard.connect(who, place, due).await else {
        return;
    };
    socket.close();
    let goodbye = async { while socket.receive().await.is_ok() {} };
    let _ = timeout(CLOSE_LIMIT, goodbye).await;
    shard.ended(None);
}
