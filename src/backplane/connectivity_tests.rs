use super::*;

const TICK: Duration = Duration::from_millis(100);

struct Way {
    it: Connectivity,
    now: Instant,
}

impl Way {
    fn new() -> Self {
        let now = Instant::now();
        Self { it: Connectivity::new(now), now }
    }

    /// A way on which probes come back.
    fn up() -> Self {
        let mut way = Self::new();
        way.it.on_connected(way.now);
        way.it.on_whole();
        assert_eq!(way.due(), [Action::Probe]);
        way.answer();
        assert_eq!(way.due(), [Action::Up]);
        assert_eq!(way.run(seconds(5), Self::answer), []);
        way
    }

    fn answer(&mut self) {
        self.it.on_delivered(self.now, true);
        self.it.on_written(self.now);
    }

    fn refuse(&mut self, words: &str) {
        self.it.on_delivered(self.now, false);
        self.it.on_refused(self.now, Cause::of(words), words);
    }

    /// What is due now; afterwards nothing is.
    fn due(&mut self) -> Vec<Action> {
        let mut due = Vec::new();
        while let Some(action) = self.it.poll(self.now) {
            due.push(action);
            assert!(due.len() < 10, "{due:?}");
        }
        due
    }

    /// What becomes due within `time`, without probes; `see` is called at each tick.
    fn run(&mut self, time: Duration, mut see: impl FnMut(&mut Self)) -> Vec<(u128, Action)> {
        let (start, mut all) = (self.now, Vec::new());
        while self.now - start < time {
            self.now += TICK;
            see(self);
            let at = (self.now - start).as_millis();
            let due = self.due().into_iter().filter(|action| *action != Action::Probe);
            all.extend(due.map(|action| (at, action)));
        }
        all
    }
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn a_way_is_up_when_it_is_whole_and_a_probe_is_back() {
    let mut way = Way::new();
    assert_eq!(way.due(), []);
    way.it.on_connected(way.now);
    assert_eq!(way.due(), [Action::Probe]);
    way.answer();
    assert_eq!(way.due(), [], "not everything is subscribed");
    way.it.on_whole();
    assert_eq!(way.due(), [Action::Probe, Action::Up]);
    assert!(way.it.is_ready(way.now) && way.it.may_claim() && way.it.may_publish());
}

#[test]
fn probes_leave_twice_a_second_and_only_on_a_connection() {
    let mut way = Way::up();
    let mut probes = 0;
    for _ in 0..20 {
        way.now += TICK;
        way.answer();
        probes += way.due().iter().filter(|action| **action == Action::Probe).count();
    }
    assert_eq!(probes, 4);
    way.it.on_disconnected(way.now, Cause::Unreachable, "refused");
    assert_eq!(way.run(seconds(1), |_| ()), []);
}

#[test]
fn silence_is_down_then_a_new_connection_then_not_ready() {
    let mut way = Way::up();
    let start = way.now;
    let seen = way.run(seconds(7), |_| ());
    let silent = Action::Begin(Cause::Silent, "no answer".to_owned());
    let expected =
        [(2300, Action::Down), (2300, silent), (3000, Action::Reconnect), (6000, Action::Reconnect)];
    assert_eq!(seen, expected);
    assert!(way.it.is_ready(start + SILENT_AFTER - TICK));
    assert!(!way.it.is_ready(start + SILENT_AFTER));
}

#[test]
fn a_short_break_is_a_gap() {
    let mut way = Way::up();
    way.it.on_disconnected(way.now, Cause::Unreachable, "reset");
    assert_eq!(way.run(seconds(1), |_| ()), []);
    way.it.on_connected(way.now);
    way.it.on_whole();
    assert_eq!(way.due(), [Action::Probe, Action::Gap]);
    way.answer();
    assert_eq!(way.due(), []);
}

#[test]
fn a_long_break_is_no_gap_and_ends_with_up() {
    let mut way = Way::up();
    way.it.on_disconnected(way.now, Cause::Unreachable, "Connection refused");
    let begin = Action::Begin(Cause::Unreachable, "Connection refused".to_owned());
    assert_eq!(way.run(seconds(20), |_| ()), [(2300, Action::Down), (2300, begin)]);
    assert!(!way.it.is_ready(way.now));
    way.it.on_connected(way.now);
    way.it.on_whole();
    assert_eq!(way.due(), [Action::Probe], "a new connection has its own time");
    way.answer();
    assert_eq!(way.due(), [Action::Up, Action::End(Cause::Unreachable)]);
    assert!(way.it.is_ready(way.now));
}

#[test]
fn a_server_that_refuses_to_write_still_delivers() {
    for words in [
        "OOM command not allowed when used memory > 'maxmemory'.",
        "NOREPLICAS Not enough good replicas to write.",
        "MISCONF Redis is configured to save RDB snapshots",
        "ERR Error running script: @user_script:1: -OOM command not allowed",
    ] {
        let mut way = Way::up();
        let cause = Cause::of(words);
        let seen = way.run(seconds(30), |way| way.refuse(words));
        assert_eq!(seen, [(100, Action::Begin(cause, words.to_owned()))]);
        assert!(way.it.is_up() && way.it.may_publish() && !way.it.may_claim() && !way.it.is_ready(way.now));
        way.it.on_written(way.now);
        assert_eq!(way.due().last(), Some(&Action::End(cause)));
        assert!(way.it.may_claim() && way.it.is_ready(way.now));
        way.answer();
        assert_eq!(way.run(seconds(1), Way::answer), []);
    }
}

#[test]
fn ready_ends_within_five_seconds_of_a_refusal() {
    let mut way = Way::up();
    way.run(REFUSED_AFTER, |way| way.refuse("OOM"));
    assert!(way.it.is_ready(way.now));
    way.run(TICK, |way| way.refuse("OOM"));
    assert!(!way.it.is_ready(way.now));
}

#[test]
fn the_wrong_server_is_left_at_once_and_again_and_delivers_only_to_itself() {
    for words in ["READONLY You can't write against a read only replica.", "LOADING Redis is loading"] {
        let mut way = Way::up();
        let begin = Action::Begin(Cause::of(words), words.to_owned());
        let seen = way.run(seconds(3), |way| way.refuse(words));
        let expected = [
            (100, begin),
            (100, Action::Reconnect),
            (1100, Action::Reconnect),
            (2100, Action::Reconnect),
            (2300, Action::Down),
        ];
        assert_eq!(seen, expected);
        assert!(!way.it.may_publish() && !way.it.may_claim() && !way.it.is_ready(way.now));
        way.it.on_connected(way.now);
        way.it.on_written(way.now);
        assert!(!way.it.is_ready(way.now), "claims are refused until the way is up");
        way.it.on_whole();
        way.answer();
        assert_eq!(way.due(), [Action::Probe, Action::Up, Action::End(Cause::of(words))]);
    }
}

#[test]
fn a_refused_connection_is_a_refusal() {
    let mut way = Way::up();
    let words = "WRONGPASS invalid username-password pair or user is disabled.";
    let seen = way.run(seconds(3), |way| way.it.on_disconnected(way.now, Cause::of(words), words));
    let begin = Action::Begin(Cause::Password, words.to_owned());
    assert_eq!(seen, [(100, begin), (2300, Action::Down)]);
    assert!(!way.it.is_ready(way.now));
}

#[test]
fn what_is_written_and_not_delivered_is_down() {
    let mut way = Way::up();
    let seen = way.run(seconds(3), |way| way.it.on_written(way.now));
    let begin = Action::Begin(Cause::Undelivered, "what is published does not come back".to_owned());
    assert_eq!(seen, [(2300, Action::Down), (2300, begin), (3000, Action::Reconnect)]);
}

#[test]
fn another_cause_ends_the_first() {
    let mut way = Way::up();
    way.refuse("LOADING");
    assert_eq!(way.due(), [Action::Begin(Cause::Loading, "LOADING".to_owned()), Action::Reconnect]);
    way.refuse("OOM");
    let begin = Action::Begin(Cause::OutOfMemory, "OOM".to_owned());
    assert_eq!(way.due(), [Action::End(Cause::Loading), begin]);
}

#[test]
fn codes_are_words_of_their_own() {
    for (words, cause) in [
        ("READONLY You can't write against a read only replica.", Cause::ReadOnly),
        ("-MASTERDOWN Link with MASTER is down", Cause::MasterDown),
        ("BUSY Redis is busy running a script.", Cause::Busy),
        ("NOPERM User relay has no permissions to run the 'evalsha' command", Cause::Permission),
        ("ERR ACL failure in script: User relay has no permissions", Cause::Permission),
        ("ERR The user executing the script can't run this command (hset)", Cause::Permission),
        ("ERR AUTH <password> called without any password configured", Cause::Password),
        ("CLUSTERDOWN Hash slot not served", Cause::ClusterDown),
        ("BUSYGROUP Consumer Group name already exists", Cause::Other),
        ("ROOM", Cause::Other),
        ("", Cause::Other),
    ] {
        assert_eq!(Cause::of(words), cause, "{words}");
    }
}

#[test]
fn every_cause_has_a_metric_of_its_own() {
    assert_eq!(Cause::ALL.map(Cause::as_str), crate::metrics::TROUBLES);
}

#[test]
fn a_connection_to_the_wrong_server_is_worth_leaving_and_no_other() {
    let wrong = [Cause::ReadOnly, Cause::MasterDown, Cause::Loading, Cause::Password];
    for cause in Cause::ALL {
        assert_eq!(cause.is_wrong_server(), wrong.contains(&cause), "{cause:?}");
    }
}

#[test]
fn lost_messages_are_a_gap_only_while_the_way_is_up() {
    let mut way = Way::up();
    way.it.on_gap();
    assert_eq!(way.due(), [Action::Gap]);
    assert_eq!(way.due(), [], "once");
    let mut way = Way::new();
    way.it.on_gap();
    way.it.on_connected(way.now);
    way.it.on_whole();
    way.due();
    way.answer();
    assert_eq!(way.due(), [Action::Up], "there was nothing to lose");
    // A gap that is not reported before the way is down is no gap any more: `Up` renews everything.
    let mut way = Way::up();
    way.now += DOWN_AFTER;
    way.it.on_gap();
    assert_eq!(way.due().iter().filter(|action| **action == Action::Gap).count(), 0);
}

#[test]
fn a_way_that_is_given_up_ends_its_trouble_once() {
    let mut way = Way::up();
    assert_eq!(way.it.forget_trouble(), None);
    way.refuse("OOM");
    way.due();
    assert_eq!(way.it.forget_trouble(), Some(Cause::OutOfMemory));
    assert_eq!(way.it.forget_trouble(), None);
}

#[test]
fn a_connection_that_cannot_be_made_is_unreachable_in_its_own_words() {
    for (cause, named) in [(Cause::Silent, Cause::Silent), (Cause::Other, Cause::Unreachable)] {
        let mut way = Way::new();
        way.it.on_disconnected(way.now, cause, "words");
        let begin = Action::Begin(named, "words".to_owned());
        assert_eq!(
            way.run(seconds(4), |_| ()),
            [(2300, begin)],
            "it is not connected, so nothing is made anew"
        );
    }
}

#[test]
fn a_second_whole_subscription_is_no_gap_and_probes_nothing() {
    let mut way = Way::up();
    way.it.on_whole();
    assert_eq!(way.due(), []);
}

#[test]
fn a_closed_connection_is_neither_probed_nor_made_anew() {
    let mut way = Way::up();
    way.it.on_closed();
    let seen = way.run(seconds(4), |_| ());
    assert!(!seen.iter().any(|(_, action)| *action == Action::Reconnect), "{seen:?}");
    way.it.on_connected(way.now);
    way.answer();
    assert_eq!(way.due().iter().filter(|action| **action == Action::Up).count(), 0, "nothing is subscribed");
}

#[test]
fn ready_needs_a_write_and_a_delivery_that_are_recent() {
    let mut way = Way::up();
    let start = way.now;
    // Only writes go on.
    while way.now < start + SILENT_AFTER - TICK {
        way.now += TICK;
        way.it.on_written(way.now);
    }
    assert!(way.it.is_ready(way.now));
    way.now += TICK;
    way.it.on_written(way.now);
    assert!(!way.it.is_ready(way.now));
    // Only deliveries go on.
    let mut way = Way::up();
    let start = way.now;
    while way.now < start + SILENT_AFTER - TICK {
        way.now += TICK;
        way.it.on_delivered(way.now, true);
    }
    assert!(way.it.is_ready(way.now));
    way.now += TICK;
    way.it.on_delivered(way.now, true);
    assert!(!way.it.is_ready(way.now));
}

#[test]
fn a_way_that_is_down_takes_no_publish_and_an_up_one_only_at_the_right_server() {
    let mut way = Way::new();
    assert!(!way.it.is_up() && !way.it.may_publish() && !way.it.may_claim());
    way = Way::up();
    assert!(way.it.is_up() && way.it.may_publish());
    way.refuse("READONLY");
    assert!(way.it.is_up() && !way.it.may_publish());
    let mut way = Way::up();
    way.run(seconds(3), |_| ());
    assert!(!way.it.is_up() && !way.it.may_publish());
}

#[test]
fn each_cause_of_a_refusal_has_its_own_time() {
    let mut way = Way::up();
    let almost = REFUSED_AFTER - TICK;
    way.run(almost, |way| way.refuse("OOM"));
    way.run(almost, |way| way.refuse("NOREPLICAS"));
    assert!(way.it.is_ready(way.now));
    way.run(2 * TICK, |way| way.refuse("NOREPLICAS"));
    assert!(!way.it.is_ready(way.now));
}
