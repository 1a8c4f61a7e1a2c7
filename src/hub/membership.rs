//! A connection's way into its room and out of it, its lease, and an instance that leaves.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Instant;

use tokio::time::timeout;
use tracing::field::Empty;
use tracing::{Instrument as _, debug, info_span};

pub(super) use crate::backplane::CALL_LIMIT;
use crate::backplane::Renewal;
use crate::metrics::{ClaimResult, RenewResult};
use crate::relay::ids::{ConnectionId, Device};
use crate::relay::protocol::{BackplaneState, Protocol, ServerMessage};
use crate::relay::record::{Claim, ClaimOutcome, Claimed, Renewed};
use crate::relay::refusal::Refusal;
use crate::relay::renewals;
use crate::relay::room::Left;
use crate::telemetry::STEPS;

use super::{Drain, Hub, Joining, Seat, SharedRoom};

impl Hub {
    /// Claims a slot for a new connection; its outbox begins with its `welcome`.
    ///
    /// # Errors
    /// [`Refusal::BackplaneUnavailable`] within [`CALL_LIMIT`], [`Refusal::TooManyAttempts`], or
    /// [`Refusal::Superseded`].
    pub async fn join(
        self: &Rc<Self>,
        joining: Joining,
        connection: ConnectionId,
    ) -> Result<Rc<Seat>, Refusal> {
        if !self.backplane.may_claim(&joining.user) {
            // Nothing was asked for, so that there is nothing to release: while Redis is away each release would wait.
            self.metrics.claimed(ClaimResult::BackplaneUnavailable);
            return Err(Refusal::BackplaneUnavailable);
        }
        let room = self.rooms.borrow_mut().entry(joining.user.clone()).or_default().clone();
        let seat = Rc::new(Seat {
            connection,
            user: joining.user,
            device: joining.device,
            protocol: joining.protocol,
            client: joining.client,
            attempt: joining.attempt,
            room,
            label: RefCell::new(joining.label),
            generation: Cell::default(),
            outbox: RefCell::default(),
            waker: RefCell::default(),
            renew_at: Cell::new(Instant::now() + self.settings.lease),
            unanswered: Cell::default(),
            other_missing: Cell::new(None),
            drain: Cell::new(None),
            buffered: Cell::default(),
            held: Cell::default(),
            share: Rc::clone(&self.share),
            published: Cell::new(false),
            losses: RefCell::default(),
            direct: RefCell::default(),
        });
        let known = {
            let mut room = seat.room.borrow_mut();
            room.on_claiming(seat.device, connection, Rc::clone(&seat));
            room.known()
        };
        let claim = Claim {
            device: seat.device,
            connection,
            instance: self.settings.instance,
            client: seat.client.clone(),
            attempt: seat.attempt,
            known,
        };
        let asked = Instant::now();
        let span = info_span!(target: STEPS, "claim", connection.id = %connection, result = Empty);
        let claiming = self.backplane.claim(&seat.user, claim).instrument(span.clone());
        let outcome = timeout(CALL_LIMIT, claiming).await;
        self.metrics.claim_seconds.observe(asked.elapsed());
        let (result, refusal) = match outcome {
            Ok(Ok(ClaimOutcome::Claimed(claimed))) => {
                self.metrics.claimed(ClaimResult::Claimed);
                span.record("result", "claimed");
                self.welcome(&seat, &claimed, joining.expires_at);
                return Ok(seat);
            }
            Ok(Ok(ClaimOutcome::TooManyEvictions { retry_after_ms })) => {
                let retry_after = u32::try_from(retry_after_ms.div_ceil(1000)).unwrap_or(u32::MAX);
                (ClaimResult::TooManyAttempts, Refusal::TooManyAttempts { retry_after })
            }
            Ok(Ok(ClaimOutcome::Superseded { attempt })) => {
                (ClaimResult::Superseded, Refusal::Superseded { attempt })
            }
            Ok(Err(_)) | Err(_) => (ClaimResult::BackplaneUnavailable, Refusal::BackplaneUnavailable),
        };
        self.metrics.claimed(result);
        span.record("result", refusal.code());
        let mut effects = Vec::new();
        // The claim may have been carried out although its answer did not come: it is released all the same.
        let left = seat.room.borrow_mut().on_claim_failed(seat.device, connection, &mut effects);
        self.apply(effects);
        self.release(&seat, left);
        Err(refusal)
    }

    pub(super) fn welcome(self: &Rc<Self>, seat: &Rc<Seat>, claimed: &Claimed, expires_at: u64) {
        seat.generation.set(claimed.generation);
        seat.renew_at.set(Instant::now() + self.settings.lease / 3);
        let holder = seat.holder(self.settings.instance, claimed.generation);
        let mut effects = Vec::new();
        let peer = {
            let mut room = seat.room.borrow_mut();
            room.on_claim_answered(seat.device, holder, claimed, &mut effects);
            if let Some(other) =
                claimed.other.as_ref().filter(|other| self.backplane.is_silent(other.instance))
            {
                room.on_instance(other.instance, true, &mut effects);
            }
            room.on_welcomed(seat.device, seat.connection)
        };
        if seat.protocol == Protocol::V1 {
            let welcome = ServerMessage::Welcome {
                connection: seat.connection,
                device: seat.device,
                generation: claimed.generation,
                uid: seat.user.uid(),
                peer,
                expires_at,
                heartbeat_ms: u64::try_from(self.settings.heartbeat.as_millis()).unwrap_or(u64::MAX),
                limits: self.settings.limits,
                instance: self.settings.instance,
                features: &self.settings.features,
                tenant: seat.user.tenant(),
                stun: &self.settings.stun,
            };
            seat.with_outbox(|outbox| outbox.push_first(welcome.encode()));
            if !self.backplane.is_up(&seat.user) {
                self.control(seat, &ServerMessage::Backplane { state: BackplaneState::Down });
            }
        }
        if let Some(deadline) = self.leaving.get() {
            // Its handshake was let in before the end of the drain delay.
            let now = Instant::now();
            let at = now + deadline.saturating_duration_since(now).mul_f64(0.8 * fastrand::f64());
            seat.drain.set(Some(Drain { at, deadline }));
        }
        self.apply(effects);
        self.release_unused(seat);
        self.metrics.connected(seat.device, seat.protocol);
    }

    /// A connection leaves its room, at once and for good; leaving twice changes nothing.
    pub fn leave(self: &Rc<Self>, seat: &Rc<Seat>) {
        let mut effects = Vec::new();
        let left = seat.room.borrow_mut().on_left(seat.device, seat.connection, &mut effects);
        self.apply(effects);
        self.release(seat, left);
    }

    pub(super) fn release(self: &Rc<Self>, seat: &Rc<Seat>, left: Left) {
        match left {
            Left::Overwritten => self.release_unused(seat),
            Left::Current | Left::Claiming => {
                // The room's channel stays subscribed for another connection of this device. The slow
                // release, which notifies other instances, goes on beside.
                self.release_unused(seat);
                let (hub, seat) = (Rc::clone(self), Rc::clone(seat));
                tokio::task::spawn_local(async move {
                    let release = hub.backplane.release(&seat.user, seat.device, seat.connection);
                    if timeout(CALL_LIMIT, release).await.is_err() {
                        debug!(connection.id = %seat.connection, "a release got no answer; the lease will end");
                    }
                });
            }
        }
    }

    /// Drops the room and unsubscribes its channels when nobody here needs them any more.
    pub(super) fn release_unused(&self, seat: &Seat) {
        // A connection that has joined since may have made the room anew: its channels are not this seat's to
        // unsubscribe.
        let known = self.room(&seat.user);
        if !known.is_some_and(|room| Rc::ptr_eq(&room, &seat.room)) {
            return;
        }
        let (listens, is_idle) = {
            let room = seat.room.borrow();
            (Device::ALL.map(|device| room.listens(device)), room.is_idle())
        };
        for (device, listens) in Device::ALL.into_iter().zip(listens) {
            if !listens {
                self.backplane.unsubscribe(&seat.user, device);
            }
        }
        if is_idle {
            self.rooms.borrow_mut().remove(&seat.user);
        }
    }

    /// Every local connection that holds its slot.
    #[must_use]
    pub fn seats(&self) -> Vec<Rc<Seat>> {
        let rooms = self.rooms.borrow();
        let here = |room: &SharedRoom| {
            let room = room.borrow();
            Device::ALL.map(|device| room.here(device).cloned())
        };
        rooms.values().flat_map(here).flatten().collect()
    }

    /// Renews the slots whose turn it is; called about once a second.
    pub async fn renew(self: &Rc<Self>) {
        let now = Instant::now();
        let due: Vec<Rc<Seat>> = self.seats().into_iter().filter(|seat| seat.renew_at.get() <= now).collect();
        let mut slots = Vec::with_capacity(due.len());
        let mut asked = Vec::with_capacity(due.len());
        for seat in due {
            seat.renew_at.set(now + renewals::turn(self.settings.lease, fastrand::f64()));
            let room = seat.room.borrow();
            let Some((_, holder)) = room.renewable(seat.device) else {
                continue;
            };
            let renewal = Renewal {
                user: seat.user.clone(),
                device: seat.device,
                holder: holder.clone(),
                attempt: seat.attempt,
            };
            let known = room.known();
            drop(room);
            slots.push(renewal);
            asked.push((seat, known));
        }
        let answers = self.backplane.renew(&slots).await;
        let failed = answers.iter().filter(|answer| answer.is_err()).count();
        for ((seat, known), renewed) in asked.into_iter().zip(answers) {
            self.metrics.renewed(match &renewed {
                Ok(Renewed::Kept { .. }) => RenewResult::Kept,
                Ok(Renewed::Overwritten { .. }) => RenewResult::Overwritten,
                Err(_) => RenewResult::Failed,
            });
            let Ok(renewed) = renewed else {
                self.renew_again(&seat, failed);
                continue;
            };
            seat.unanswered.set(0);
            if self.may_come_back(&seat, &renewed) {
                continue;
            }
            let mut effects = Vec::new();
            seat.room.borrow_mut().on_renewed(seat.device, seat.connection, known, renewed, &mut effects);
            self.apply(effects);
            self.release_unused(&seat);
        }
    }

    /// Without an answer the lease goes on, and the next try comes before the next turn.
    fn renew_again(&self, seat: &Seat, failed: usize) {
        // Nobody was asked, or nobody will answer: all are renewed once the way is up.
        if !self.backplane.is_up(&seat.user) {
            return;
        }
        seat.unanswered.set(seat.unanswered.get().saturating_add(1));
        let pause = renewals::again(seat.unanswered.get(), failed, self.settings.lease, fastrand::f64());
        // A break that ended meanwhile may have brought it nearer.
        seat.renew_at.set(seat.renew_at.get().min(Instant::now() + pause));
    }

    /// After a break, or when Redis has lost its data, the other slot may only not have been renewed yet. The
    /// hub believes that it is free once its holder has had the time, two thirds of a lease.
    fn may_come_back(&self, seat: &Seat, renewed: &Renewed) -> bool {
        let is_missing = matches!(renewed, Renewed::Kept { other: None })
            && seat.room.borrow().visible(seat.device.other()).is_some();
        if !is_missing {
            seat.other_missing.set(None);
            return false;
        }
        let now = Instant::now();
        let since = seat.other_missing.get().unwrap_or(now);
        seat.other_missing.set(Some(since));
        now.duration_since(since) < self.settings.lease * 2 / 3
    }

    /// This instance is leaving: connections come back elsewhere, spread evenly with jitter until
    /// shortly before the deadline.
    pub fn drain(&self, now: Instant, deadline: Instant) {
        self.leaving.set(Some(deadline));
        let seats = self.seats();
        // The last clients need time to move, too.
        let step = deadline.saturating_duration_since(now).mul_f64(0.8)
            / u32::try_from(seats.len().max(1)).unwrap_or(u32::MAX);
        for (turn, seat) in (0u32..).zip(&seats) {
            let at = now + step * turn + step.mul_f64(fastrand::f64());
            seat.drain.set(Some(Drain { at, deadline }));
            seat.wake();
        }
    }
}
