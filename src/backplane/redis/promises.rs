//! The promises of a backplane, kept by Redis.

use std::cell::RefCell;
use std::collections::HashMap;
use std::iter;
use std::rc::Rc;
use std::time::Instant;

use fred::error::Error;
use futures_util::future::{FutureExt as _, LocalBoxFuture, join_all, try_join};
use tokio::sync::oneshot;
use tokio::time::{timeout, timeout_at};
use tracing::{Instrument as _, debug, info_span};

use super::queue::Queue;
use super::scripts::Done;
use super::{RENEWALS, Redis, SECOND, TURN_LIMIT, tasks};
use crate::backplane::{
    Backplane, Barrier, CALL_LIMIT, InstanceInfo, OWN_CLAIM_LIMIT, Published, Renewal, RoomSnapshot,
    Unavailable,
};
use crate::relay::envelope::Envelope;
use crate::relay::ids::{ConnectionId, Device, InstanceId, StreamId, UserId};
use crate::relay::parcel::Parcel;
use crate::relay::record::{Claim, ClaimOutcome, Renewed};
use crate::telemetry::STEPS;

impl Redis {
    async fn claim_slot(&self, user: &UserId, claim: Claim) -> Result<ClaimOutcome, Unavailable> {
        let claimable = || {
            let node = self.node_of(user).filter(|node| node.health.borrow().may_claim());
            node.filter(|_| !self.settings.readiness.is_foreign()).ok_or(Unavailable)
        };
        let node = claimable()?;
        // A claim that Redis carries out after its client has given up costs as much as one that counts. The
        // client comes again, and a Redis that is behind would never catch up. A claim that waits here costs
        // Redis nothing.
        let Ok(Ok(turn)) = timeout(TURN_LIMIT, node.claims.acquire()).await else {
            return Err(Unavailable);
        };
        // The node may be down by now, or another one serves the slot.
        if !Rc::ptr_eq(&claimable()?, &node) {
            return Err(Unavailable);
        }
        let failed = |error: Error| {
            self.note("a claim failed", &error);
            Unavailable
        };
        let channel = self.names.channel(user, claim.device);
        let subscribing = self.subscriptions.subscribe(user, claim.device, channel);
        let subscribing = subscribing.instrument(info_span!(target: STEPS, "subscribe"));
        let (done, own_claim) = oneshot::channel();
        self.own_claims.borrow_mut().insert(claim.connection, done);
        // The entry goes with this future, however it ends.
        let _forget = OnDrop(|| drop(self.own_claims.borrow_mut().remove(&claim.connection)));
        let claiming = self.scripts.claim(&self.nodes, user, &claim);
        let outcome = if self.nodes.is_cluster() {
            subscribing.await.map_err(failed)?;
            let Done { outcome, unheard } = claiming.await.map_err(failed)?;
            self.publish_again(user, unheard);
            outcome
        } else {
            // One write: they take their places on the one connection in this order, when they are first polled.
            let epoch = node.subscriber.epoch();
            let ((), Done { outcome, .. }) = try_join(subscribing, claiming).await.map_err(failed)?;
            if node.subscriber.epoch() != epoch {
                // The connection was made anew in between: the claim may have come before the subscription.
                return Err(Unavailable);
            }
            outcome
        };
        drop(turn);
        if let ClaimOutcome::Claimed(claimed) = &outcome {
            for holder in claimed.replaced.iter().chain(&claimed.other) {
                self.settings.shared.presence().note(holder.instance, Instant::now());
            }
            if timeout(OWN_CLAIM_LIMIT, own_claim).await.is_err() {
                debug!("a claim's own message was lost; its answer stands in for it");
            }
        }
        Ok(outcome)
    }

    /// The usual way knows where a moving slot's subscribers are, and waits for those that follow it. Who has heard it
    /// already ignores it: no room acts on a member twice.
    fn publish_again(&self, user: &UserId, unheard: Option<Envelope>) {
        for (channel, envelope) in Device::ALL.into_iter().zip(iter::repeat(unheard)) {
            let Some(envelope) = envelope else { return };
            // What does not fit is healed by the next renewal.
            let _ = self.publish(user, channel, envelope, Instant::now());
        }
    }

    async fn renew_one(&self, renewal: &Renewal) -> Result<Renewed, Unavailable> {
        let Renewal { user, device, holder, attempt } = renewal;
        let renewed = self.scripts.renew(&self.nodes, user, *device, holder, *attempt).await;
        let renewed = renewed.map(|Done { outcome, unheard }| {
            self.publish_again(user, unheard);
            outcome
        });
        if let Ok(Renewed::Kept { other: Some(other) }) = &renewed {
            self.settings.shared.presence().note(other.instance, Instant::now());
        }
        renewed.map_err(|error| {
            self.note("a renewal failed", &error);
            Unavailable
        })
    }
}

struct OnDrop<F: FnMut()>(F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

impl Backplane for Redis {
    fn claim<'a>(
        &'a self,
        user: &'a UserId,
        claim: Claim,
    ) -> LocalBoxFuture<'a, Result<ClaimOutcome, Unavailable>> {
        // Its parts have limits, too, but one after the other.
        let claiming = timeout(CALL_LIMIT, self.claim_slot(user, claim));
        claiming.map(|claimed| claimed.unwrap_or(Err(Unavailable))).boxed_local()
    }

    fn renew<'a>(&'a self, renewals: &'a [Renewal]) -> LocalBoxFuture<'a, Vec<Result<Renewed, Unavailable>>> {
        async move {
            // Each node's on its own: one that stands still fails nobody else's.
            let mut by_node: HashMap<Option<u16>, Vec<usize>> = HashMap::new();
            for (place, renewal) in renewals.iter().enumerate() {
                let node = self.node_of(&renewal.user).filter(|node| node.health.borrow().is_up());
                by_node.entry(node.map(|node| node.number)).or_default().push(place);
            }
            // Without a node there is nobody to ask.
            by_node.remove(&None);
            let deadline = tokio::time::Instant::now() + CALL_LIMIT;
            let answers = RefCell::new(vec![Err(Unavailable); renewals.len()]);
            let asked = by_node.values().map(async |places| {
                for batch in places.chunks(RENEWALS) {
                    let renewed = join_all(batch.iter().map(async |place| {
                        let renewed = self.renew_one(&renewals[*place]).await;
                        answers.borrow_mut()[*place] = renewed;
                    }));
                    if timeout_at(deadline, renewed).await.is_err() {
                        return;
                    }
                }
            });
            join_all(asked).await;
            answers.into_inner()
        }
        .boxed_local()
    }

    fn release<'a>(
        &'a self,
        user: &'a UserId,
        device: Device,
        connection: ConnectionId,
    ) -> LocalBoxFuture<'a, ()> {
        async move {
            match self.scripts.release(&self.nodes, user, device, connection).await {
                Ok(Done { unheard, .. }) => self.publish_again(user, unheard),
                Err(error) => self.note("a release failed", &error),
            }
        }
        .boxed_local()
    }

    fn unsubscribe(&self, user: &UserId, channel: Device) {
        self.subscriptions.unsubscribe(self.names.channel(user, channel));
    }

    fn publish(&self, user: &UserId, channel: Device, envelope: Envelope, since: Instant) -> Published {
        let stream = match &envelope {
            Envelope::Parcel { parcel: Parcel::Frame(bytes), .. } => {
                bytes.first().copied().map(StreamId).filter(|stream| !stream.is_reliable())
            }
            Envelope::Parcel { .. }
            | Envelope::Claimed { .. }
            | Envelope::Released { .. }
            | Envelope::Marker { .. }
            | Envelope::ServerMessage { .. }
            | Envelope::Disconnect { .. }
            | Envelope::Undelivered { .. } => None,
        };
        let name = self.names.channel(user, channel);
        let slot = self.nodes.slot(&name);
        let Some(node) = self.nodes.of_slot(slot) else { return Published::Full };
        let (detours, envelope) = (self.nodes.detours(), envelope.encode());
        let queue = || Queue::new(user.clone(), channel, name.as_str().into());
        match detours.of(slot, &node.publisher, Instant::now(), &name, queue) {
            Some(detour) => detours.publish(&detour, envelope.len(), |queue| {
                let Self { settings, .. } = self;
                queue.push(envelope, stream, since, settings.queue_bytes, &settings.metrics)
            }),
            None => node.publisher.publish((user, channel), name, envelope, stream, since),
        }
    }

    fn barrier(&self, user: &UserId, channel: Device) -> Option<Barrier> {
        let name = self.names.channel(user, channel);
        let slot = self.nodes.slot(&name);
        let behind = self.nodes.detours().barrier(slot, &name);
        behind.or_else(|| self.nodes.of_slot(slot)?.publisher.barrier(&name))
    }

    fn is_up(&self, user: &UserId) -> bool {
        self.served.borrow().get(self.slot_of(user)).copied().unwrap_or(false)
    }

    fn may_claim(&self, user: &UserId) -> bool {
        let node = self.node_of(user);
        node.is_some_and(|node| node.health.borrow().may_claim()) && !self.settings.readiness.is_foreign()
    }

    fn room<'a>(&'a self, user: &'a UserId) -> LocalBoxFuture<'a, Result<RoomSnapshot, Unavailable>> {
        async move {
            if !self.is_up(user) {
                return Err(Unavailable);
            }
            self.scripts.room(&self.nodes, user).await.map_err(|error| {
                self.note("a room could not be read", &error);
                Unavailable
            })
        }
        .boxed_local()
    }

    fn instances(&self) -> Vec<InstanceInfo> {
        self.settings.shared.presence().list()
    }

    fn is_silent(&self, instance: InstanceId) -> bool {
        self.silent.borrow().contains(&instance)
    }

    fn close(&self) -> LocalBoxFuture<'_, ()> {
        async move {
            self.is_closing.set(true);
            let nodes = self.nodes.all();
            // What is queued leaves first: releases, and the last frames.
            let deadline = Instant::now() + SECOND;
            let is_idle =
                || self.nodes.detours().is_idle() && nodes.iter().all(|node| node.publisher.is_idle());
            while !is_idle() && Instant::now() < deadline {
                tokio::time::sleep(tasks::TICK / 10).await;
            }
            self.tasks.borrow_mut().clear();
            let quits = nodes.iter().map(|node| async {
                node.commands.quit().await;
                node.subscriber.quit().await;
            });
            let _ = timeout(SECOND, join_all(quits)).await;
            for node in nodes {
                node.tasks.borrow_mut().clear();
            }
        }
        .boxed_local()
    }
}
