//! Users stream, or are silent (`idle`).

use std::io;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::{JoinSet, yield_now};
use tokio::time::{Instant, sleep, timeout_at};

use super::super::alarm::{Alarm, Beat};
use super::super::settings::{Direction, Scenario};
use super::super::shard::Shard;
use super::member::Member;
use crate::relay::ids::Device;

/// How many late frames leave before sockets are read again.
const BATCH: usize = 16;
/// How long closing may take.
const CLOSE_LIMIT: Duration = Duration::from_secs(2);

/// Connects all, streams, waits for what is on its way, closes.
pub(super) async fn run(shard: &Rc<Shard>) {
    let mut pairs = Vec::new();
    for user in &shard.users {
        pairs.push(Device::ALL.map(|device| Rc::new(Member::new(shard, user, device))));
    }
    let mut lives = JoinSet::new();
    let connected = tokio::select! {
        connected = connect_all(shard, &pairs, &mut lives) => connected,
        () = shard.stopped() => return,
    };
    if let Err(error) = connected {
        *shard.tally.borrow_mut().failed.entry(error.to_string()).or_default() += 1;
    }
    let Some(start) = shard.ready().await else {
        return;
    };
    let end = start + shard.options().warmup + shard.options().duration;
    let senders = senders(shard, &pairs);
    tokio::select! {
        // Without a timer there is no clock to send by.
        _ = pace(shard, &senders, start, end) => {}
        () = shard.stopped() => {}
    }
    settle(shard, &senders).await;
    for [desktop, mobile] in &pairs {
        let direction = shard.options().direction;
        let streams = shard.options().scenario.streams();
        desktop.finish(streams && direction != Direction::ToMobile);
        mobile.finish(streams && direction != Direction::ToDesktop);
    }
    shard.ending.set(true);
    pairs.iter().flatten().for_each(|member| member.close());
    let deadline = Instant::now() + CLOSE_LIMIT;
    while let Ok(Some(_)) = timeout_at(deadline, lives.join_next()).await {}
}

/// Every device connects and lives on; returns when none is still trying.
async fn connect_all(
    shard: &Rc<Shard>,
    pairs: &[[Rc<Member>; 2]],
    lives: &mut JoinSet<()>,
) -> io::Result<()> {
    let mut alarm = Alarm::new()?;
    let mut beat = Beat::new(Instant::now(), shard.share(shard.options().connect_rate));
    let (trying, mut tried) = mpsc::channel::<()>(1);
    for [desktop, mobile] in pairs {
        for (member, peer) in [(desktop, mobile), (mobile, desktop)] {
            alarm.until(beat.next()).await?;
            let (member, peer, trying) = (member.clone(), peer.clone(), trying.clone());
            lives.spawn_local(async move {
                let connected = member.connect().await;
                drop(trying);
                if connected {
                    member.live(peer).await;
                }
            });
        }
    }
    drop(trying);
    // Nothing is sent; the channel ends with the last that tries.
    while tried.recv().await.is_some() {}
    Ok(())
}

/// In the order of their turns: a user's two devices half an interval apart.
fn senders(shard: &Shard, pairs: &[[Rc<Member>; 2]]) -> Vec<Rc<Member>> {
    if shard.options().scenario == Scenario::Idle {
        return Vec::new();
    }
    let desktops = pairs.iter().map(|[desktop, _]| desktop.clone());
    let mobiles = pairs.iter().map(|[_, mobile]| mobile.clone());
    match shard.options().direction {
        Direction::Both => desktops.chain(mobiles).collect(),
        Direction::ToMobile => desktops.collect(),
        Direction::ToDesktop => mobiles.collect(),
    }
}

/// Sends by the clock: one timer, whose beats go round the senders.
async fn pace(shard: &Shard, senders: &[Rc<Member>], start: Instant, end: Instant) -> io::Result<()> {
    let mut alarm = Alarm::new()?;
    if senders.is_empty() {
        alarm.until(end).await?;
        return Ok(());
    }
    let options = shard.options();
    let measured_from = start + options.warmup;
    #[expect(clippy::cast_precision_loss, reason = "users and threads are few")]
    let (count, offset) = (senders.len() as f64, shard.index as f64 / options.threads as f64);
    // Threads take their turns between each other's.
    let offset = Duration::from_secs_f64(offset / options.fps / count);
    let mut late = 0;
    for round in 0_u32.. {
        for (turn, sender) in senders.iter().enumerate() {
            #[expect(clippy::cast_precision_loss, reason = "senders are few")]
            let beats = f64::from(round) + turn as f64 / count;
            let due = start + offset + Duration::from_secs_f64(beats / options.fps);
            if due >= end {
                return Ok(());
            }
            if Instant::now() < due {
                late = 0;
                alarm.until(due).await?;
            } else {
                late += 1;
                if late % BATCH == 0 {
                    yield_now().await;
                }
            }
            sender.send(due, due >= measured_from);
        }
    }
    Ok(())
}

/// Waits for what is on its way.
async fn settle(shard: &Shard, senders: &[Rc<Member>]) {
    let limit = match shard.options().scenario {
        Scenario::Slow | Scenario::Rolling => Duration::from_secs(5),
        _ => Duration::from_secs(2),
    };
    let deadline = Instant::now() + limit;
    while Instant::now() < deadline && senders.iter().any(|sender| sender.outstanding() > 0) {
        sleep(Duration::from_millis(5)).await;
    }
}
