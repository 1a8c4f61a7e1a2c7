//! Each timer by itself, to the nanosecond, and what holds for all of them together.

use proptest::prelude::*;

use super::*;

const SETTINGS: SessionSettings = SessionSettings {
    heartbeat: s(25),
    enforce_expiry: true,
    leave_within: s(30),
    quotas: Quotas::new(240, 1 << 20),
};
const HOUR: Duration = s(3600);
/// Just before a timer is due.
const TICK: Duration = Duration::from_nanos(1);

const fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A session, and the time in which it began.
struct Life {
    session: Session,
    start: Instant,
    is_reading: bool,
    is_flushed: bool,
    protocol: Protocol,
    settings: SessionSettings,
}

impl Life {
    fn new(expires: Duration, lifetime: Option<Duration>, check: Option<Duration>) -> Self {
        let start = Instant::now();
        let at = |after: Option<Duration>| after.map(|after| start + after);
        let session = Session::new(start, start + expires, at(lifetime), at(check), &SETTINGS);
        Self {
            session,
            start,
            is_reading: true,
            is_flushed: true,
            protocol: Protocol::V1,
            settings: SETTINGS,
        }
    }

    fn due(&mut self, at: Duration) -> Vec<Due> {
        let now = self.start + at;
        let due = std::iter::from_fn(|| {
            self.session.poll(now, self.is_reading, self.is_flushed, self.protocol, &self.settings)
        });
        due.collect()
    }

    /// Nothing is due before `at`, where the session wakes, and then this is.
    fn expect(&mut self, at: Duration, due: &[Due]) {
        let mut wakes = Vec::new();
        while let Some(deadline) = self.session.deadline().map(|deadline| deadline - self.start)
            && deadline < at
        {
            wakes.push((deadline, self.due(deadline)));
            assert!(wakes.len() < 100, "{wakes:?}");
        }
        assert!(wakes.iter().all(|(_, due)| due.is_empty()), "{wakes:?}");
        assert_eq!(self.due(at - TICK), [], "before {at:?}");
        assert_eq!(self.due(at), due, "at {at:?}");
    }

    fn at(&self, after: Duration) -> Instant {
        self.start + after
    }
}

#[test]
fn a_silent_client_is_pinged_looked_at_once_more_and_dropped() {
    let mut life = Life::new(HOUR, None, None);
    life.expect(s(25), &[Due::Ping]);
    life.expect(s(50) + LAST_LOOK, &[Due::NoHeartbeat]);
    life.expect(HOUR - EXPIRING_AHEAD, &[Due::Expiring]);
}

#[test]
fn a_byte_is_a_sign_of_life_in_each_state() {
    let mut life = Life::new(HOUR, None, None);
    life.session.on_bytes(life.at(s(24)));
    life.expect(s(49), &[Due::Ping]);
    life.session.on_bytes(life.at(s(60)));
    life.expect(s(85), &[Due::Ping]);
    life.expect(s(110), &[]);
    life.session.on_bytes(life.at(s(110) + LAST_LOOK / 2));
    life.expect(s(135) + LAST_LOOK / 2, &[Due::Ping]);
}

#[test]
fn while_the_relay_does_not_read_silence_proves_nothing() {
    let mut life = Life::new(HOUR, None, None);
    life.expect(s(25), &[Due::Ping]);
    life.is_reading = false;
    life.expect(s(74), &[]);
    life.is_reading = true;
    life.expect(s(75) + LAST_LOOK, &[Due::NoHeartbeat]);
}

#[test]
fn a_token_is_announced_to_expire_and_expires() {
    let mut life = Life::new(s(310), None, None);
    life.session.on_bytes(life.at(s(9)));
    life.expect(s(10), &[Due::Expiring]);
    for at in (20..310).step_by(20) {
        life.session.on_bytes(life.at(s(at)));
    }
    life.expect(s(310), &[Due::Expired]);
}

#[test]
fn a_short_token_is_announced_at_once_and_only_once() {
    let mut life = Life::new(s(20), None, None);
    assert_eq!(life.due(s(0)), [Due::Expiring]);
    life.expect(s(20), &[Due::Expired]);
    let mut life = Life::new(s(0), None, None);
    assert_eq!(life.due(s(0)), [Due::Expired]);
}

#[test]
fn a_refresh_begins_anew() {
    let mut life = Life::new(s(20), None, None);
    assert_eq!(life.due(s(0)), [Due::Expiring]);
    life.session.on_refreshed(life.at(s(318)), life.at(s(5)));
    life.expect(s(18), &[Due::Expiring]);
    life.session.on_refreshed(life.at(s(30)), life.at(s(18)));
    assert_eq!(life.due(s(18)), [Due::Expiring]);
    life.expect(s(25), &[Due::Ping]);
    life.expect(s(30), &[Due::Expired]);
}

#[test]
fn without_enforcement_a_token_is_only_announced() {
    let mut life = Life::new(s(10), None, None);
    life.settings.enforce_expiry = false;
    assert_eq!(life.due(s(0)), [Due::Expiring]);
    life.expect(s(25), &[Due::Ping]);
    life.expect(s(50) + LAST_LOOK, &[Due::NoHeartbeat]);
    assert_eq!(life.session.deadline(), None);
}

#[test]
fn a_lifetime_ends_with_a_question_and_then_a_restart() {
    for (protocol, deadline) in [(Protocol::V1, s(40)), (Protocol::Classic, s(10))] {
        let mut life = Life::new(HOUR, Some(s(10)), None);
        life.protocol = protocol;
        let (at, until) = (life.at(s(10)), life.at(deadline));
        let asked = Due::Reconnect { reason: ReconnectReason::Lifetime, at, deadline: until };
        if protocol == Protocol::Classic {
            life.expect(s(10), &[asked, Due::Restart]);
        } else {
            life.expect(s(10), &[asked]);
            life.session.on_bytes(life.at(s(30)));
            life.expect(s(40), &[Due::Restart]);
        }
    }
}

#[test]
fn a_drain_has_its_turn_and_its_end_and_comes_once() {
    for (protocol, end) in [(Protocol::V1, s(20)), (Protocol::Classic, s(8))] {
        let mut life = Life::new(HOUR, Some(s(15)), None);
        life.protocol = protocol;
        let (at, deadline, until) = (life.at(s(8)), life.at(s(20)), life.at(end));
        let asked = Due::Reconnect { reason: ReconnectReason::Draining, at, deadline: until };
        assert!(!life.session.is_leaving());
        assert_eq!(life.session.on_drain(at, deadline, protocol), Some(asked));
        assert!(life.session.is_leaving());
        assert_eq!(life.session.on_drain(at, deadline, protocol), None);
        life.expect(end, &[Due::Restart]);
    }
}

#[test]
fn sessions_are_checked_again_and_again() {
    let mut life = Life::new(HOUR, None, Some(s(7)));
    life.expect(s(7), &[Due::CheckSession]);
    life.session.on_checked(life.at(s(19)));
    life.expect(s(19), &[Due::CheckSession]);
}

#[test]
fn a_parked_message_goes_on_in_time_and_keeps_its_time() {
    let mut life = Life::new(HOUR, None, None);
    life.session.park(life.at(s(3)));
    life.session.park(life.at(s(9)));
    life.expect(s(3), &[Due::Unpark]);
    life.session.park(life.at(s(9)));
    life.session.unpark();
    life.expect(s(25), &[Due::Ping]);
}

#[test]
fn a_ping_is_answered_in_time() {
    let mut life = Life::new(HOUR, None, None);
    life.session.on_ping(Some(life.at(s(1))));
    life.expect(s(1), &[Due::Pong]);
    life.session.on_ping(Some(life.at(s(2))));
    life.session.on_ping(None);
    life.expect(s(25), &[Due::Ping]);
}

#[test]
fn a_receiver_that_takes_nothing_is_stalled_and_a_slow_one_is_not() {
    let mut life = Life::new(HOUR, None, None);
    life.settings.heartbeat = HOUR;
    life.session.on_bytes(life.at(s(1)));
    life.session.on_output(true, true, life.at(s(1)));
    // It takes a little; then it takes nothing, whatever is written.
    life.session.on_output(true, true, life.at(s(50)));
    life.session.on_output(true, false, life.at(s(70)));
    life.session.on_output(true, false, life.at(s(109)));
    life.expect(s(50) + STALL_LIMIT, &[Due::Stalled]);

    let mut life = Life::new(HOUR, None, None);
    life.settings.heartbeat = HOUR;
    life.session.on_output(true, false, life.at(s(1)));
    life.session.on_output(false, true, life.at(s(60)));
    life.expect(HOUR - EXPIRING_AHEAD, &[Due::Expiring]);
}

#[test]
fn a_goodbye_has_a_second_then_five_then_none() {
    let mut life = Life::new(s(100), None, Some(s(2)));
    life.session.on_goodbye(false, life.at(s(1)));
    assert!(!life.session.is_open() && life.session.may_write());
    life.expect(s(1) + GOODBYE_LIMIT, &[Due::DropQueue]);
    assert!(life.session.may_write());
    life.expect(s(1) + GOODBYE_LIMIT + CLOSE_LIMIT, &[Due::Reset]);
    assert_eq!(life.session.deadline(), None);

    let mut life = Life::new(s(100), None, None);
    life.session.on_goodbye(true, life.at(s(1)));
    life.expect(s(1) + CLOSE_LIMIT, &[Due::Reset]);
}

#[test]
fn a_close_ends_in_order_unless_it_is_to_be_reset_or_did_not_leave() {
    for (reset, flushed, end) in [
        (false, true, Due::Close),
        (false, false, Due::Reset),
        (true, true, Due::Reset),
        (true, false, Due::Reset),
    ] {
        let mut life = Life::new(s(100), None, None);
        life.is_flushed = flushed;
        life.session.on_close_sent(s(5), reset, life.at(s(1)));
        assert!(!life.session.may_write() && !life.session.is_broken());
        life.expect(s(6), &[end]);
    }
}

#[test]
fn a_broken_client_is_listened_to_for_a_second() {
    for (flushed, end) in [(true, Due::Close), (false, Due::Reset)] {
        let mut life = Life::new(s(100), None, None);
        life.is_flushed = flushed;
        life.session.on_broken(life.at(s(1)));
        assert!(life.session.is_broken() && !life.session.may_write());
        // What happens late changes nothing.
        life.session.on_output(true, false, life.at(s(1)));
        life.session.on_refreshed(life.at(s(50)), life.at(s(1)));
        life.session.on_checked(life.at(s(1)));
        assert_eq!(life.session.on_drain(life.at(s(1)), life.at(s(1)), Protocol::V1), None);
        life.expect(s(1) + GOODBYE_LIMIT, &[end]);
    }
}

#[test]
fn errors_are_counted_for_ten_seconds_and_then_nothing_is_kept_of_them() {
    let mut life = Life::new(HOUR, None, None);
    for n in 0..20 {
        assert!(!life.session.on_error(life.at(s(n) / 10)));
        assert!(life.session.on_absent(StreamId(0x80 + n as u8), life.at(s(n) / 10)));
    }
    life.expect(s(2) + ERROR_WINDOW, &[]);
    assert!(life.session.faults.is_none());
    assert!((0..21).map(|_| life.session.on_error(life.at(s(13)))).last() == Some(true));
}

#[test]
fn messages_and_bytes_have_one_verdict() {
    let quotas = Quotas::new(10, 1000);
    let (mut inflow, now) = (Inflow::default(), Instant::now());
    assert_eq!(inflow.on_message(4000, &quotas, now), Verdict::Pass);
    // By its bytes, and not by its number.
    assert_eq!(
        inflow.on_message(100, &quotas, now),
        Verdict::Limited { until: now + s(1) / 10, report: true }
    );
    assert_eq!(inflow.on_control(50, &quotas, now)[0], Verdict::Pass);
    assert!(matches!(inflow.on_control(50, &quotas, now)[1], Verdict::Limited { .. }));
    for _ in 0..9 {
        inflow.on_held(0, &quotas, now);
    }
    let Verdict::Limited { until, .. } = inflow.on_message(0, &quotas, now) else { panic!() };
    assert_eq!(until, now + s(1) / 10, "both have to let it pass");
}

#[derive(Debug, Clone)]
enum Happens {
    Heard,
    Output(bool, bool),
    Park(u64),
    Unpark,
    Ping(Option<u64>),
    Refreshed(u64),
    Checked(u64),
    Drain(u64, u64),
    Goodbye(bool),
    CloseSent(bool),
    Broken,
    Reading(bool),
    Flushed(bool),
}

fn happens() -> impl Strategy<Value = Happens> {
    let time = || 0_u64..400;
    prop_oneof![
        4 => Just(Happens::Heard),
        4 => (any::<bool>(), any::<bool>()).prop_map(|(waits, progress)| Happens::Output(waits, progress)),
        2 => time().prop_map(Happens::Park),
        2 => Just(Happens::Unpark),
        2 => prop::option::of(time()).prop_map(Happens::Ping),
        2 => time().prop_map(Happens::Refreshed),
        2 => time().prop_map(Happens::Checked),
        1 => (time(), time()).prop_map(|(at, deadline)| Happens::Drain(at, deadline)),
        1 => any::<bool>().prop_map(Happens::Goodbye),
        1 => any::<bool>().prop_map(Happens::CloseSent),
        1 => Just(Happens::Broken),
        2 => any::<bool>().prop_map(Happens::Reading),
        1 => any::<bool>().prop_map(Happens::Flushed),
    ]
}

proptest! {
    #[test]
    fn after_all_that_is_due_the_next_deadline_lies_in_the_future(
        expires in 0_u64..1000,
        lifetime in prop::option::of(0_u64..1000),
        steps in prop::collection::vec((0_u64..60_000, happens()), 1..60),
    ) {
        let mut life = Life::new(s(expires), lifetime.map(s), Some(s(180)));
        let mut now = Duration::ZERO;
        for (pause, step) in steps {
            now += Duration::from_millis(pause);
            let (at, then) = (life.at(now), |seconds: u64| Some(s(seconds)));
            let time = |seconds| life.start + then(seconds).unwrap();
            match step {
                Happens::Heard => life.session.on_bytes(at),
                Happens::Output(waits, progress) => life.session.on_output(waits, progress, at),
                Happens::Park(until) => life.session.park(time(until)),
                Happens::Unpark => life.session.unpark(),
                Happens::Ping(until) => life.session.on_ping(until.map(time)),
                Happens::Refreshed(until) => life.session.on_refreshed(time(until), at),
                Happens::Checked(next) => life.session.on_checked(time(next)),
                Happens::Drain(turn, end) => {
                    let _ = life.session.on_drain(time(turn), time(end), Protocol::V1);
                }
                Happens::Goodbye(forced) if life.session.is_open() => life.session.on_goodbye(forced, at),
                Happens::CloseSent(reset) if life.session.may_write() => life.session.on_close_sent(s(5), reset, at),
                Happens::Broken => life.session.on_broken(at),
                Happens::Reading(is_reading) => life.is_reading = is_reading,
                Happens::Flushed(is_flushed) => life.is_flushed = is_flushed,
                Happens::Goodbye(_) | Happens::CloseSent(_) => {}
            }
            let due = life.due(now);
            prop_assert!(due.len() < 10, "{:?}", due);
            prop_assert!(life.session.deadline().is_none_or(|deadline| deadline > at));
        }
    }
}

#[test]
fn errors_and_notices_are_remembered_while_they_count() {
    let mut life = Life::new(HOUR, None, None);
    let stream = StreamId(0x80);
    assert!(life.session.on_absent(stream, life.at(s(1))));
    assert_eq!(life.due(s(1)), []);
    assert!(!life.session.on_absent(stream, life.at(s(1))), "once a second");
    let mut life = Life::new(HOUR, None, None);
    for _ in 0..20 {
        assert!(!life.session.on_error(life.at(s(1))));
        assert_eq!(life.due(s(1)), []);
    }
    assert!(life.session.on_error(life.at(s(1))));
}

#[test]
fn a_message_that_goes_on_takes_the_place_that_it_waited_for() {
    let mut life = Life::new(HOUR, None, None);
    let now = life.at(s(1));
    let until = loop {
        match life.session.on_message(0, now, &SETTINGS) {
            Verdict::Pass => {}
            Verdict::Limited { until, .. } => break until,
            Verdict::Abuse => panic!("at once"),
        }
    };
    life.session.on_unparked(0, until, &SETTINGS);
    assert!(matches!(life.session.on_message(0, until, &SETTINGS), Verdict::Limited { .. }));
}
