//! Users stream, or are silent (`idle`).

use std::io;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::{JoinSet, yield_now};
use tokio::time::{Instant, sleep, timeout_at};

use super::super::alarm::{Alarm, Beat};
use super::super::result::count;
use super::super::settings::Scenario;
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
    match shard.until_stopped(connect_all(shard, &pairs, &mut lives)).await {
        Some(Ok(())) => {}
        Some(Err(error)) => shard.tally.borrow_mut().fail(error.to_string()),
        None => return,
    }
    let Some(start) = shard.ready().await else {
        return;
    };
    let end = start + shard.options().warmup + shard.options().duration;
    let options = shard.options();
    // In the order of their turns: a user's two devices half an interval apart.
    let mut senders = Vec::new();
    for device in Device::ALL.into_iter().filter(|device| options.sends(*device)) {
        senders.extend(pairs.iter().map(|pair| pair[device as usize].clone()));
    }
    // Without a timer there is no clock to send by.
    let _ = shard.until_stopped(pace(shard, &senders, start, end)).await;
    settle(shard, &senders).await;
    pairs.iter().flatten().for_each(|member| member.finish());
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

/// Sends by the clock: one timer, whose beats go round the senders.
async fn pace(shard: &Shard, senders: &[Rc<Member>], start: Instant, end: Instant) -> io::Result<()> {
    let mut alarm = Alarm::new()?;
    if senders.is_empty() {
        alarm.until(end).await?;
        return Ok(());
    }
    let options = shard.options();
    let measured_from = start + options.warmup;
    let per_second = options.fps * count(senders.len() as u64);
    // Threads take their turns between each other's.
    let offset = count(shard.index as u64) / count(options.threads as u64) / per_second;
    let mut beat = Beat::new(start + Duration::from_secs_f64(offset), per_second);
    let mut late = 0;
    for sender in senders.iter().cycle() {
        let due = beat.next();
        if due >= end {
            break;
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
