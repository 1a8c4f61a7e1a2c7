//! Carries out detours: publishes on channels whose slot changes its node, one by one.

use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};

use fred::error::Error;
use tokio::time::{sleep, timeout_at};

use super::Redis;
use super::detours::{Answer, Detour, Verdict, verdict};
use super::nodes::Node;
use super::publisher::Publisher;
use super::queue::Departed;
use super::redirection::{Redirection, is_refused_for_its_slot};
use crate::backplane::LossCause;
use crate::metrics::Dropped;

/// The pause between two tries of one publish.
const AGAIN: Duration = Duration::from_millis(50);
/// The pause before anything leaves for another node. What the node before has delivered is on its way on
/// another connection. A receiver that reads both must read it first.
const SETTLES: Duration = Duration::from_millis(20);
/// A node that cannot be reached yet is looked at again after this time.
const LOOKS: Duration = Duration::from_secs(1);

fn answer_of(answer: &Result<u64, Error>) -> Answer {
    match answer {
        Ok(0) => Answer::Unheard,
        Ok(_) => Answer::Heard,
        Err(error) if is_refused_for_its_slot(error) => Answer::Refused,
        Err(_) => Answer::Unanswered,
    }
}

impl Redis {
    /// What became of a publish that left the usual way.
    pub(super) fn on_answer(&self, by: &Rc<Publisher>, departed: Departed, answer: Result<u64, Error>) {
        let (detours, kind) = (self.nodes.detours(), answer_of(&answer));
        if kind == Answer::Heard && detours.is_quiet() {
            return;
        }
        let slot = self.nodes.slot(&departed.channel);
        match (kind, answer) {
            (Answer::Heard, _) => self.on_overtaken(&departed),
            (Answer::Refused, Err(error)) if self.nodes.is_cluster() => {
                let node = self.nodes.all().into_iter().find(|node| Rc::ptr_eq(&node.publisher, by));
                self.follow(slot, node.as_deref(), &error);
                if !detours.knows(slot) {
                    // The node that serves it now is not known yet.
                    detours.on_moved(&[slot], by, Instant::now());
                }
                if let Err(departed) = detours.refuse(slot, by, departed, Instant::now()) {
                    self.on_lost(&departed, LossCause::Unheard);
                }
            }
            (Answer::Unheard, _) => {
                self.unheard.borrow_mut().add(&departed.user, departed.device);
                let kept = if detours.knows(slot) {
                    detours.refuse(slot, by, departed, Instant::now())
                } else {
                    Err(departed)
                };
                if let Err(departed) = kept {
                    self.on_lost(&departed, LossCause::Unheard);
                }
            }
            (Answer::Refused | Answer::Unanswered, answer) => {
                self.on_overtaken(&departed);
                if let Err(error) = answer {
                    self.note("a publish failed", &error);
                }
                self.on_lost(&departed, LossCause::Unanswered);
            }
        }
    }

    /// What was refused before this publish on the same channel would come behind it.
    fn on_overtaken(&self, departed: &Departed) {
        for overtaken in self.nodes.detours().on_overtaken(&departed.channel) {
            self.on_lost(&overtaken, LossCause::Unheard);
        }
    }

    /// A node says that it does not serve a slot.
    fn follow(&self, slot: u16, node: Option<&Node>, error: &Error) {
        let redirection = Redirection::of(error);
        let asked = node.and_then(|node| node.server.as_ref());
        match redirection.map(|redirection| redirection.seen_from(asked)) {
            Some(Redirection::Moved(server)) => self.nodes.learn(slot, &server),
            Some(Redirection::Ask(_) | Redirection::TryAgain) | None => self.settings.shared.refresh(),
        }
    }

    /// One try on a detour.
    async fn try_once(&self, detour: &Detour, node: &Node, departed: &Departed) -> Verdict {
        let answer = node.publisher.carry(departed).await;
        let kind = answer_of(&answer);
        match &answer {
            Ok(0) => self.unheard.borrow_mut().add(&departed.user, departed.device),
            Ok(_) => {}
            Err(error) if kind == Answer::Refused => self.follow(detour.slot, Some(node), error),
            Err(error) => self.note("a publish failed", error),
        }
        verdict(kind, detour.may_try(Instant::now()))
    }
}

/// Carries each detour that begins, in a task of its own.
pub(super) async fn carry_detours(me: Weak<Redis>) {
    let Some(nodes) = me.upgrade().map(|redis| Rc::clone(&redis.nodes)) else { return };
    loop {
        for detour in nodes.detours().begun().await {
            tokio::task::spawn_local(carry(me.clone(), detour));
        }
    }
}

/// Carries what waits on one detour until its time is over.
async fn carry(me: Weak<Redis>, detour: Rc<Detour>) {
    let Some(before) = me.upgrade().map(|redis| redis.nodes.detours().before(&detour)) else { return };
    for answered in before {
        // Given up is answered for as well.
        let _ = answered.await;
    }
    let mut last = None;
    loop {
        let Some(redis) = me.upgrade() else { return };
        let detours = redis.nodes.detours();
        if detour.is_over(Instant::now()) {
            // Nothing is under way: what waits keeps its order on the usual way, and what comes next follows it there.
            let node = redis.nodes.of_slot(detour.slot);
            match (node, detours.end(&detour)) {
                (Some(node), Some(waiter)) => node.publisher.adopt(waiter),
                (None, Some((mut queue, _))) => {
                    while let Some(departed) = queue.pop() {
                        redis.on_lost(&departed, LossCause::Unheard);
                    }
                }
                (_, None) => {}
            }
            return;
        }
        let Some(departed) = detours.next(&detour) else {
            drop(redis);
            // Its end is a time that passes.
            let _ = timeout_at(detour.until().into(), detour.more.notified()).await;
            continue;
        };
        drop(redis);
        carry_one(&me, &detour, &departed, &mut last).await;
    }
}

/// Publishes until somebody has heard it, or it is lost; `last` is the number of the node that got the one before.
async fn carry_one(me: &Weak<Redis>, detour: &Detour, departed: &Departed, last: &mut Option<u16>) {
    loop {
        let Some(redis) = me.upgrade() else { return };
        let now = Instant::now();
        if departed.is_stale(now) {
            return redis.settings.metrics.dropped(Dropped::Backplane, 1);
        }
        let Some(node) = redis.nodes.of_slot(detour.slot) else {
            // No node serves it: as long as that is so, it waits.
            redis.nodes.detours().extend(detour, now);
            drop(redis);
            sleep(AGAIN).await;
            continue;
        };
        if !node.publisher.may_send(now) {
            redis.nodes.detours().extend(detour, now);
            drop(redis);
            node.publisher.until_open(LOOKS).await;
            continue;
        }
        if *last != Some(node.number) {
            *last = Some(node.number);
            drop(redis);
            sleep(SETTLES).await;
            continue;
        }
        match redis.try_once(detour, &node, departed).await {
            Verdict::Done => return,
            Verdict::Lost(cause) => return redis.on_lost(departed, cause),
            Verdict::Again => {}
        }
        drop(redis);
        sleep(AGAIN).await;
    }
}
