//! The Lua scripts decide as `relay::record` does: the same sequences get the same answers and say the same on the
//! channels. Clocks differ, so generations are compared by whose they are.

use std::cell::Cell;
use std::collections::HashMap;

use duorelay::relay::envelope::Envelope;
use duorelay::relay::ids::{Attempt, ConnectionId, Device, Generation, InstanceId, Member, UserId};
use duorelay::relay::record::{Claim, ClaimOutcome, Holder, Lease, Record, Renewed};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use uuid::Uuid;

use crate::support::since_epoch;
use crate::world::{LEASE, Worker, World, run, user};

/// Histories that are tried.
const CASES: usize = 200;

/// A step of a room's history. Connections are named by the number of their claim.
#[derive(Debug, Clone)]
enum Step {
    Claim {
        device: Device,
        instance: u8,
        client: Option<u8>,
        attempt: Option<u64>,
        ahead: bool,
    },
    Renew {
        device: Device,
        claim: prop::sample::Index,
    },
    Release {
        device: Device,
        claim: prop::sample::Index,
    },
    Look,
    /// The backplane loses the room.
    Lose,
    /// All leases end, and evictions are forgotten.
    TimePasses,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let device = || prop_oneof![3 => Just(Device::Desktop), 1 => Just(Device::Mobile)];
    let claim = || any::<prop::sample::Index>();
    let step = prop_oneof![
        8 => (device(), 0..3_u8, prop::option::of(0..2_u8), prop::option::of(0..6_u64), prop::bool::weighted(0.1))
            .prop_map(|(device, instance, client, attempt, ahead)| {
                Step::Claim { device, instance, client, attempt, ahead }
            }),
        6 => (device(), claim()).prop_map(|(device, claim)| Step::Renew { device, claim }),
        4 => (device(), claim()).prop_map(|(device, claim)| Step::Release { device, claim }),
        2 => Just(Step::Look),
        1 => Just(Step::Lose),
        1 => Just(Step::TimePasses),
    ];
    prop::collection::vec(step, 1..60)
}

/// Whose something is, without generations.
#[derive(Debug, Clone, PartialEq)]
enum Answer {
    Claimed { replaced: Option<Who>, other: Option<Who> },
    TooManyEvictions,
    Superseded(Attempt),
    Kept { other: Option<Who> },
    Overwritten { by: ConnectionId, holder: Option<Who> },
    Released,
    Room([Option<(Who, Option<Attempt>)>; 2]),
    Nothing,
}

type Who = (ConnectionId, InstanceId, Option<String>);

fn who(holder: Option<Holder>) -> Option<Who> {
    holder.map(|holder| {
        (holder.member.connection, holder.instance, holder.client.map(|client| client.as_str().to_owned()))
    })
}

fn of_claim(outcome: &ClaimOutcome) -> Answer {
    match outcome.clone() {
        ClaimOutcome::Claimed(claimed) => {
            Answer::Claimed { replaced: who(claimed.replaced), other: who(claimed.other) }
        }
        ClaimOutcome::TooManyEvictions { .. } => Answer::TooManyEvictions,
        ClaimOutcome::Superseded { attempt } => Answer::Superseded(attempt),
    }
}

fn of_renewal(renewed: Renewed) -> Answer {
    match renewed {
        Renewed::Kept { other } => Answer::Kept { other: who(other) },
        Renewed::Overwritten { by, holder } => Answer::Overwritten { by: by.connection, holder: who(holder) },
    }
}

/// The rules, with a clock that can jump.
struct Model {
    record: Record,
    skew_ms: u64,
    generations: HashMap<ConnectionId, Generation>,
    /// What is said on the channels: claimed or released, and whose.
    said: Vec<(Device, bool, ConnectionId)>,
}

impl Model {
    fn now_us(&self) -> u64 {
        u64::try_from(since_epoch().as_micros()).unwrap() + self.skew_ms * 1000
    }
}

async fn history(world: &World, worker: &Worker, user: &UserId, steps: &[Step]) -> Result<(), TestCaseError> {
    let lease_ms = u64::try_from(LEASE.as_millis()).unwrap();
    let mut model =
        Model { record: Record::default(), skew_ms: 0, generations: HashMap::new(), said: Vec::new() };
    let mut real: HashMap<ConnectionId, Generation> = HashMap::new();
    let mut claims: Vec<Claim> = Vec::new();
    let mut newest: Option<ConnectionId> = None;
    let mut forgets_ahead = false;
    worker.take();
    for (number, step) in steps.iter().enumerate() {
        let pick = |index: &prop::sample::Index| {
            let granted: Vec<_> =
                claims.iter().filter(|claim| real.contains_key(&claim.connection)).collect();
            (!granted.is_empty()).then(|| granted[index.index(granted.len())].clone())
        };
        let holder_of = |claim: &Claim, generations: &HashMap<ConnectionId, Generation>| Holder {
            member: Member { connection: claim.connection, generation: generations[&claim.connection] },
            instance: claim.instance,
            client: claim.client.clone(),
        };
        let (expected, got) = match step {
            Step::Claim { device, instance, client, attempt, ahead } => {
                let name = client.map(|client| format!("client{client}"));
                let claim = Claim {
                    instance: InstanceId(Uuid::from_u128(u128::from(*instance) + 1)),
                    attempt: attempt.and_then(Attempt::new),
                    ..worker.claim_of(*device, name.as_deref())
                };
                // Sometimes the claimer knows a generation that is ahead of every clock.
                let known = |generations: &HashMap<ConnectionId, Generation>| match newest {
                    Some(newest) if *ahead => Generation(generations[&newest].0 + 3_600_000_000),
                    _ => Generation::NONE,
                };
                let now_us = model.now_us();
                let expected = model.record.claim(
                    now_us,
                    lease_ms,
                    Claim { known: known(&model.generations), ..claim.clone() },
                );
                let got = worker
                    .backplane
                    .claim(user, Claim { known: known(&real), ..claim.clone() })
                    .await
                    .unwrap();
                if let (ClaimOutcome::Claimed(expected), ClaimOutcome::Claimed(got)) = (&expected, &got) {
                    // A room that is lost forgets what only a claimer knew.
                    if let Some(newest) = newest.filter(|_| !forgets_ahead) {
                        prop_assert!(got.generation > real[&newest], "step {}: generations grow", number);
                        prop_assert!(expected.generation > model.generations[&newest]);
                    }
                    model.generations.insert(claim.connection, expected.generation);
                    model.said.push((*device, true, claim.connection));
                    real.insert(claim.connection, got.generation);
                    newest = Some(claim.connection);
                    claims.push(claim);
                }
                (of_claim(&expected), of_claim(&got))
            }
            Step::Renew { device, claim } => match pick(claim) {
                Some(claim) if claim.device == *device => {
                    let now = model.now_us() / 1000;
                    let mine = holder_of(&claim, &model.generations);
                    let (expected, put_back) =
                        model.record.renew(now, lease_ms, *device, &mine, claim.attempt);
                    if put_back {
                        model.said.push((*device, true, claim.connection));
                    }
                    let mine = holder_of(&claim, &real);
                    let got = worker.renew_attempt(user, *device, &mine, claim.attempt).await;
                    (of_renewal(expected), of_renewal(got))
                }
                _ => (Answer::Nothing, Answer::Nothing),
            },
            Step::Release { device, claim } => match pick(claim) {
                Some(claim) => {
                    if let Some(member) = model.record.release(*device, claim.connection) {
                        prop_assert_eq!(member.generation, model.generations[&claim.connection]);
                        model.said.push((*device, false, claim.connection));
                    }
                    worker.backplane.release(user, *device, claim.connection).await;
                    (Answer::Released, Answer::Released)
                }
                None => (Answer::Nothing, Answer::Nothing),
            },
            Step::Look => {
                let now = model.now_us() / 1000;
                let seen = |lease: Option<Lease>| {
                    lease.and_then(|lease| Some((who(Some(lease.holder))?, lease.attempt)))
                };
                let expected = Device::ALL.map(|device| seen(model.record.holder(device, now).cloned()));
                let got = worker.backplane.room(user).await.unwrap().map(seen);
                (Answer::Room(expected), Answer::Room(got))
            }
            Step::Lose => {
                model.record = Record::default();
                forgets_ahead |=
                    steps[..number].iter().any(|step| matches!(step, Step::Claim { ahead: true, .. }));
                world.lose(user).await;
                (Answer::Nothing, Answer::Nothing)
            }
            Step::TimePasses => {
                model.skew_ms += lease_ms + 1000;
                world.end_leases(user).await;
                (Answer::Nothing, Answer::Nothing)
            }
        };
        prop_assert_eq!(expected, got, "step {}", number);
    }
    compare_lanes(worker, user, &claims, &model, &real).await
}

/// What was said on the desktop's channel, from its first claim on, is what the rules say.
async fn compare_lanes(
    worker: &Worker,
    user: &UserId,
    claims: &[Claim],
    model: &Model,
    real: &HashMap<ConnectionId, Generation>,
) -> Result<(), TestCaseError> {
    let Some(first) = claims.iter().find(|claim| claim.device == Device::Desktop) else {
        return Ok(());
    };
    let nonce = worker.mark(user, Device::Desktop);
    let heard = worker.until_marker(nonce).await;
    let said: Vec<_> = heard
        .into_iter()
        .filter(|(_, channel, _)| *channel == Device::Desktop)
        .filter_map(|(_, _, envelope)| match envelope {
            Envelope::Claimed { device, holder } => Some((device, true, holder.member)),
            Envelope::Released { device, member } => Some((device, false, member)),
            _ => None,
        })
        .collect();
    for (_, _, member) in &said {
        prop_assert_eq!(member.generation, real[&member.connection]);
    }
    let said: Vec<_> =
        said.into_iter().map(|(device, claimed, member)| (device, claimed, member.connection)).collect();
    let from = model.said.iter().position(|said| *said == (Device::Desktop, true, first.connection)).unwrap();
    prop_assert_eq!(&model.said[from..], said);
    Ok(())
}

#[test]
fn the_scripts_decide_as_the_rules_do() {
    run(async {
        let world = World::standalone().await;
        let worker = world.attach().await;
        let mut runner = TestRunner::default();
        let next = Cell::new(0);
        let check = async |steps: &[Step]| {
            next.set(next.get() + 1);
            history(&world, &worker, &user(&format!("user{}", next.get())), steps).await
        };
        for _ in 0..CASES {
            let mut tree = steps().new_tree(&mut runner).unwrap();
            let mut failure = None;
            let mut shrinks = true;
            while shrinks {
                let steps = tree.current();
                shrinks = match check(&steps).await {
                    Ok(()) if failure.is_none() => break,
                    Ok(()) => tree.complicate(),
                    Err(error) => {
                        failure = Some((error, steps));
                        tree.simplify()
                    }
                };
            }
            if let Some((error, steps)) = failure {
                panic!("{error}\nin {steps:#?}");
            }
        }
    });
}
