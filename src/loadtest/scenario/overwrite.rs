//! Desktops take over from each other: one after the other, then two at the same instant.

use std::io;
use std::rc::Rc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};

use super::super::alarm::{Alarm, Beat};
use super::super::connect::User;
use super::super::dialect::Heard;
use super::super::shard::Shard;
use super::super::socket::Socket;
use crate::relay::ids::Device;

/// The time from two simultaneous handshakes to the count of those left: longer than any message takes,
/// shorter than a lease.
const SETTLE: Duration = Duration::from_secs(2);
/// How long the old socket may wait for its notice, and a ping for its answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// Every user once: connects, is taken over from another instance, then twice at the same instant.
pub(super) async fn run(shard: &Rc<Shard>) {
    let Some(start) = shard.ready().await else {
        return;
    };
    let mut takeovers = JoinSet::new();
    let done = async {
        if pace(shard, &mut takeovers, start).await.is_ok() {
            while takeovers.join_next().await.is_some() {}
        }
    };
    shard.until_stopped(done).await;
}

async fn pace(shard: &Rc<Shard>, takeovers: &mut JoinSet<()>, start: Instant) -> io::Result<()> {
    let mut alarm = Alarm::new()?;
    let mut beat = Beat::new(start + shard.options().warmup, shard.share(shard.options().rate));
    for user in &shard.users {
        alarm.until(beat.next()).await?;
        takeovers.spawn_local(take_over(shard.clone(), user.clone()));
    }
    Ok(())
}

async fn take_over(shard: Rc<Shard>, user: User) {
    let [here, there] = Device::ALL.map(|device| shard.options().place(user.number as usize, device));
    let connect = async |client: &str, place, due| {
        shard.connect(user.calls(Device::Desktop, client), place, due).await.ok()
    };
    let Some(old) = connect("a", here, Instant::now()).await else {
        return;
    };
    let due = Instant::now();
    let (notified, new) = tokio::join!(notified(&old, ANSWER_LIMIT), connect("b", there, due));
    shard.ended(None);
    match notified {
        Some(at) => shard.tally.borrow_mut().notified.record(at.saturating_duration_since(due)),
        None if new.is_some() => shard.tally.borrow_mut().fail("never notified of a takeover"),
        None => {}
    }
    if let Some(new) = new {
        shard.goodbye(&new).await;
    }
    race(&shard, &user, here, there).await;
}

/// Connects two desktops of one user at the same instant, and counts those left.
async fn race(shard: &Shard, user: &User, here: usize, there: usize) {
    let due = Instant::now();
    let deadline = due + ANSWER_LIMIT + SETTLE;
    let contender = async |client: &'static str, place| {
        let Ok(socket) = shard.connect(user.calls(Device::Desktop, client), place, due).await else {
            return None;
        };
        let notified = notified(&socket, SETTLE).await;
        if let Some(at) = notified {
            shard.tally.borrow_mut().notified.record(at.saturating_duration_since(due));
        }
        let alive = notified.is_none() && timeout_at(deadline, answers(&socket)).await == Ok(true);
        Some((socket, alive))
    };
    let contenders: [_; 2] = tokio::join!(contender("c", here), contender("d", there)).into();
    if contenders.iter().all(Option::is_some) {
        let left = contenders.iter().flatten().filter(|(_, alive)| *alive).count();
        *shard.tally.borrow_mut().left.entry(left).or_default() += 1;
    }
    for (socket, alive) in contenders.iter().flatten() {
        if *alive {
            shard.goodbye(socket).await;
        } else {
            shard.ended(None);
        }
    }
}

/// When the socket heard that it was overwritten, or was closed, within `limit`.
async fn notified(socket: &Socket, limit: Duration) -> Option<Instant> {
    let hearing = async {
        while !matches!(socket.receive().await, Ok(Heard::Overwritten) | Err(_)) {}
        Instant::now()
    };
    timeout(limit, hearing).await.ok()
}

async fn answers(socket: &Socket) -> bool {
    if socket.ping().is_err() {
        return false;
    }
    loop {
        match socket.receive().await {
            Ok(Heard::Pong) => return true,
            Ok(Heard::Overwritten) | Err(_) => return false,
            Ok(_) => {}
        }
    }
}
