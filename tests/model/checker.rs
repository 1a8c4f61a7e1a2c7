//! What must be true of a [`World`], and the search for a way in which it is not.

use duorelay::relay::ids::{Device, Generation};
use duorelay::relay::room::Route;
use stateright::{Checker as _, HasDiscoveries, Model, Property};

use crate::world::{Action, Phase, Seat, Setup, World, Wrong, seat_of};

impl Model for Setup {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        vec![World::new(self)]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        world.actions(self, actions);
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        let mut next = world.clone();
        next.act(self, action);
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        fn never(world: &World, wrong: &[Wrong]) -> bool {
            !world.wrong.is_some_and(|found| wrong.contains(&found))
        }
        vec![
            Property::always("newest wins", |setup: &Self, world: &World| {
                never(world, &[Wrong::FalselyOverwritten])
                    && (!world.is_quiet() || settled(setup, world.clone()).is_ok())
            }),
            Property::always("an old end disturbs nobody", |_, world| never(world, &[Wrong::Disturbed])),
            Property::always("only who is open holds a slot", |_, world: &World| {
                // What a crash leaves is freed by its lease; after a flush, what is put back wrongly too.
                let is_excused = world.spent.crashes + world.spent.flushes > 0;
                is_excused || !world.is_quiet() || held_by_open(world)
            }),
            Property::always("fencing", |_, world| never(world, &[Wrong::Fence, Wrong::Route])),
            Property::always("order, and none twice", |_, world| {
                never(world, &[Wrong::Order, Wrong::TwoReceivers])
            }),
            Property::always("an earlier attempt ends no later one", |_, world| {
                never(world, &[Wrong::Superseded])
            }),
            Property::always("peers are announced truly", |_, world| never(world, &[Wrong::Peer])),
        ]
    }
}

fn held_by_open(world: &World) -> bool {
    Device::ALL.into_iter().all(|device| {
        world.record.holder(device, world.clock).is_none_or(|lease| {
            world.connection(seat_of(lease.holder.member.connection)).phase == Phase::Open
        })
    })
}

/// Lets the world come to rest without further trouble: everything arrives, everybody renews, leases of
/// those who are gone end. Then exactly the newest are open, know each other and reach each other.
///
/// # Errors
/// What is not as it has to be.
pub(crate) fn settled(setup: &Setup, mut world: World) -> Result<(), String> {
    if setup.seats.iter().zip(&world.connections).all(|(_, it)| it.phase == Phase::New) {
        return Ok(());
    }
    let is_calm = world.spent.is_calm();
    drain(setup, &mut world);
    for at in 0..world.instances.len() {
        for of in world.instances[at].silent.clone() {
            if !world.instances[at].crashed && !world.instances[of].crashed {
                world.act(setup, Action::Heard(at, of));
            }
        }
    }
    for _ in 0..3 {
        world.clock += 1;
        for seat in open(&world) {
            world.renew(setup, seat);
        }
        drain(setup, &mut world);
    }
    for seat in open(&world) {
        world.send(setup, seat);
    }
    drain(setup, &mut world);
    if let Some(wrong) = world.wrong {
        return Err(format!("while settling: {wrong:?}"));
    }
    Device::ALL.into_iter().try_for_each(|device| newest_wins(setup, &world, device))?;
    if is_calm {
        no_gap(&world)?;
    }
    Ok(())
}

fn open(world: &World) -> Vec<Seat> {
    let all = 0..u8::try_from(world.connections.len()).unwrap();
    all.filter(|seat| world.connection(*seat).phase == Phase::Open).collect()
}

/// Everything that is on its way arrives.
fn drain(setup: &Setup, world: &mut World) {
    let mut actions = Vec::new();
    loop {
        world.actions(setup, &mut actions);
        let is_move = |action: &Action| {
            matches!(
                action,
                Action::Call(..) | Action::Publish(..) | Action::Arrive(_) | Action::Answered(..)
            )
        };
        match actions.drain(..).find(is_move) {
            Some(action) => world.act(setup, action),
            None => break,
        }
    }
    // A marker that was lost is noticed by the clock.
    for seat in open(world) {
        if world.route(setup, seat) == Route::Wait {
            world.overdue(setup, seat);
        }
    }
}

fn newest_wins(setup: &Setup, world: &World, device: Device) -> Result<(), String> {
    let of_device = |device: Device| move |seat: &Seat| setup.seats[usize::from(*seat)].0 == device;
    let all = 0..u8::try_from(world.connections.len()).unwrap();
    let newest = all
        .filter(of_device(device))
        .max_by_key(|seat| world.connection(*seat).generation)
        .filter(|seat| world.connection(*seat).generation > Generation::NONE);
    let standing: Vec<Seat> = open(world).into_iter().filter(of_device(device)).collect();
    let newest_is_open = newest.is_some_and(|newest| standing.contains(&newest));
    // After a loss of all data nobody knows of a newest connection that has gone, and the one before it
    // may go on.
    let is_allowed = match standing[..] {
        [] => newest.is_none_or(|newest| world.connection(newest).phase == Phase::Gone),
        [_] => newest_is_open || world.spent.flushes > 0,
        _ => false,
    };
    if !is_allowed {
        return Err(format!("{device}: {standing:?} are open, the newest is {newest:?}"));
    }
    let Some(seat) = standing.first().copied() else {
        return Ok(());
    };
    let at = setup.seats[usize::from(seat)].1;
    let lease = world.record.holder(device, world.clock);
    if lease.map(|lease| lease.holder.member) != Some(world.member(seat)) {
        return Err(format!("{device}: {seat} is open, but the record has {lease:?}"));
    }
    if world.instances[at].room.here(device) != Some(&seat) {
        return Err(format!("{device}: {seat} is open, but not here"));
    }
    let peer = open(world).into_iter().find(of_device(device.other()));
    let reported = world.connection(seat).reported;
    if reported != peer.map(|peer| world.member(peer)) {
        return Err(format!("{device}: {seat} believes in {reported:?}, there is {peer:?}"));
    }
    let Some(peer) = peer else { return Ok(()) };
    let connection = world.connection(seat);
    let last = connection.receivers.last().copied().unwrap_or_default();
    if last & 1 << peer == 0 {
        return Err(format!("{device}: what {seat} sends does not reach {peer}"));
    }
    Ok(())
}

/// Nothing was lost on the way: each frame of those who are still open has arrived.
fn no_gap(world: &World) -> Result<(), String> {
    for seat in open(world) {
        if world.connection(seat).receivers.contains(&0) {
            return Err(format!("a frame of {seat} got lost"));
        }
    }
    Ok(())
}

/// Searches everything that can happen in a world. It prints the number of states. That must be at least
/// `floor`, so that no mistake in the model makes the proof empty.
pub(crate) fn explore(floor: usize, setup: Setup) {
    let began = std::time::Instant::now();
    let checker = setup.checker().threads(2).finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    let (setup, states) = (checker.model(), checker.unique_state_count());
    println!(
        "{states} unique states explored, depth {}, in {:.1} s: {setup:?}",
        checker.max_depth(),
        began.elapsed().as_secs_f64()
    );
    if let Some((property, path)) = checker.discoveries().into_iter().next() {
        let world = path.last_state();
        panic!(
            "\"{property}\" does not hold: {:?}, settled: {:?}\n{:#?}\n{world:#?}",
            world.wrong,
            settled(setup, world.clone()),
            path.clone().into_actions(),
        );
    }
    assert!(states >= floor, "only {states} states: the model has lost its actions");
}

/// Searches until a property fails, and returns which.
pub(crate) fn counterexample(setup: Setup) -> Option<&'static str> {
    let checker = setup.checker().finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    // A block of states is checked at a time, in which several properties may fail.
    let discoveries = checker.discoveries().into_iter();
    let (property, path) = discoveries.min_by_key(|(property, _)| *property)?;
    let world = path.last_state();
    println!(
        "found after {} unique states: \"{property}\", {:?}, settled: {:?}, by {:?}",
        checker.unique_state_count(),
        world.wrong,
        settled(checker.model(), world.clone()),
        path.clone().into_actions()
    );
    Some(property)
}
