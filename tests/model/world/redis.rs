//! What Redis does, and a crash.

use duorelay::relay::ids::{Device, Generation};
use duorelay::relay::record::{Claim, ClaimOutcome, Holder, Record};

use super::{
    Answer, Call, Instance, LEASE, Message, Mutation, Phase, Setup, World, Wrong, attempt_of, connection_id,
    instance_id,
};

impl World {
    pub(super) fn hand_out(&mut self, channels: &[Device], message: &Message) {
        for instance in self.instances.iter_mut().filter(|it| !it.crashed) {
            for channel in channels {
                if instance.subscribed[*channel as usize] {
                    instance.inbox.push_back((*channel, message.clone()));
                }
            }
        }
    }

    pub(super) fn carry_out(&mut self, setup: &Setup, at: usize, call: Call) {
        match call {
            Call::Claim(seat, known) => {
                let (device, _) = setup.seats[usize::from(seat)];
                self.claims += 1;
                let forgets = setup.mutation == Some(Mutation::GenerationsForgotten);
                let (now_us, known) =
                    if forgets { (0, Generation::NONE) } else { (self.clock * 1000 + self.claims, known) };
                let (client, attempt) = attempt_of(setup, seat).unzip();
                let claim = Claim {
                    device,
                    connection: connection_id(seat),
                    instance: instance_id(at),
                    client: client.clone(),
                    attempt: attempt.filter(|_| setup.mutation != Some(Mutation::AttemptsIgnored)),
                    known,
                };
                let claimed = match self.record.claim(now_us, LEASE, claim) {
                    ClaimOutcome::Claimed(claimed) => claimed,
                    ClaimOutcome::Superseded { .. } => return self.answer(at, Answer::Superseded(seat)),
                    ClaimOutcome::TooManyEvictions { .. } => return,
                };
                self.connection_mut(seat).generation = claimed.generation;
                let holder = Holder { member: self.member(seat), instance: instance_id(at), client };
                self.hand_out(&Device::ALL, &Message::Claimed(device, holder.clone()));
                self.answer(at, Answer::Claimed(seat, holder, claimed));
            }
            Call::Renew(seat, holder, asked) => {
                let (device, _) = setup.seats[usize::from(seat)];
                if setup.mutation == Some(Mutation::RenewalOverNewer) {
                    let other = self.record.holder(device.other(), self.clock).cloned();
                    self.record = Record::default();
                    if let Some(other) = other {
                        let holder = &other.holder;
                        let _ = self.record.renew(self.clock, LEASE, device.other(), holder, other.attempt);
                    }
                }
                let attempt = attempt_of(setup, seat).map(|(_, attempt)| attempt);
                let (renewed, put_back) = self.record.renew(self.clock, LEASE, device, &holder, attempt);
                if put_back {
                    self.hand_out(&Device::ALL, &Message::Claimed(device, holder));
                }
                self.answer(at, Answer::Renewed(seat, asked, renewed));
            }
            Call::Release(seat) => {
                let (device, _) = setup.seats[usize::from(seat)];
                let before = self.record.holder(device, self.clock).cloned();
                let released = match &before {
                    Some(lease) if setup.mutation == Some(Mutation::ReleaseOfAnybody) => {
                        self.record.release(device, lease.holder.member.connection)
                    }
                    Some(_) | None => self.record.release(device, connection_id(seat)),
                };
                if let Some(member) = released {
                    self.hand_out(&Device::ALL, &Message::Released(device, member));
                }
                let is_other = |connection| connection != connection_id(seat);
                if before.is_some_and(|lease| is_other(lease.holder.member.connection)) && released.is_some()
                {
                    self.blame(Wrong::Disturbed);
                }
            }
        }
    }

    pub(super) fn answer(&mut self, at: usize, answer: Answer) {
        if !self.instances[at].crashed {
            self.instances[at].answers.push(answer);
        }
    }

    pub(super) fn crash(&mut self, setup: &Setup, at: usize) {
        let instance = &mut self.instances[at];
        // What has left already is still carried out.
        let (calls, publishes) =
            (std::mem::take(&mut instance.calls), std::mem::take(&mut instance.publishes));
        *instance = Instance { crashed: true, calls, publishes, ..Instance::default() };
        for (connection, (_, seat_at)) in self.connections.iter_mut().zip(&setup.seats) {
            if *seat_at == at && connection.phase != Phase::New {
                connection.phase = Phase::Gone;
            }
        }
    }
}
