//! Whether one way to Redis works, decided from what was observed, with the time passed in. A server alone is one way,
//! and so is each node of a cluster: nodes fail one by one.
//!
//! A *probe* proves the whole way: Redis carries out a script that writes and publishes, and pub/sub delivers what it
//! published. The shell sends probes, reports what it sees, and carries out the [`Action`]s that [`Connectivity::poll`]
//! returns, until there are none.

use std::time::{Duration, Instant};

/// How often a way is probed.
pub const PROBE_EVERY: Duration = Duration::from_millis(500);
/// Without a delivered probe for this long, the way is down.
pub const DOWN_AFTER: Duration = Duration::from_millis(2300);
/// Without a delivered probe for this long, the connection is made anew: TCP alone may take minutes to notice that
/// nobody is there.
pub const RECONNECT_AFTER: Duration = Duration::from_secs(3);
/// A server that refuses because it is the wrong one is left this often: a new connection may find the right one.
pub const LEAVE_EVERY: Duration = Duration::from_secs(1);
/// After a refusal for this long, the instance is not ready.
pub const REFUSED_AFTER: Duration = Duration::from_millis(2300);
/// After silence for this long, the instance is not ready.
pub const SILENT_AFTER: Duration = Duration::from_secs(10);

/// Why Redis does not do what a handshake needs. The names are a metric's labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Cause {
    /// No probe came back in time.
    Silent,
    /// TCP or TLS could not be opened.
    Unreachable,
    /// The server is a replica (READONLY).
    ReadOnly,
    /// Its memory is full (OOM).
    OutOfMemory,
    /// Too few replicas follow it (NOREPLICAS).
    NoReplicas,
    /// It cannot save to its disk (MISCONF).
    Misconfigured,
    /// It reads its data set (LOADING).
    Loading,
    /// It is a replica that has lost its primary (MASTERDOWN).
    MasterDown,
    /// A node says that the cluster does not serve (CLUSTERDOWN).
    ClusterDown,
    /// A script or a module blocks it (BUSY).
    Busy,
    /// User or password are wrong (WRONGPASS, NOAUTH).
    Password,
    /// A right is missing (NOPERM).
    Permission,
    /// Redis answers, but what is published does not come back.
    Undelivered,
    /// The prefix belongs to instances of another issuer or audience.
    Owner,
    /// An error that has no cause of its own here.
    Other,
}

impl Cause {
    /// Every cause, in the order of the metric's labels.
    pub const ALL: [Self; 15] = [
        Self::Silent,
        Self::Unreachable,
        Self::ReadOnly,
        Self::OutOfMemory,
        Self::NoReplicas,
        Self::Misconfigured,
        Self::Loading,
        Self::MasterDown,
        Self::ClusterDown,
        Self::Busy,
        Self::Password,
        Self::Permission,
        Self::Undelivered,
        Self::Owner,
        Self::Other,
    ];

    /// Its name in metrics and logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Silent => "silent",
            Self::Unreachable => "unreachable",
            Self::ReadOnly => "readonly",
            Self::OutOfMemory => "oom",
            Self::NoReplicas => "noreplicas",
            Self::Misconfigured => "misconf",
            Self::Loading => "loading",
            Self::MasterDown => "masterdown",
            Self::ClusterDown => "clusterdown",
            Self::Busy => "busy",
            Self::Password => "password",
            Self::Permission => "noperm",
            Self::Undelivered => "undelivered",
            Self::Owner => "owner",
            Self::Other => "other",
        }
    }

    /// What Redis's words mean. An error from inside a script has its code somewhere in the text.
    #[must_use]
    pub fn of(words: &str) -> Self {
        const CODES: [(&str, Cause); 15] = [
            ("READONLY", Cause::ReadOnly),
            ("OOM", Cause::OutOfMemory),
            ("NOREPLICAS", Cause::NoReplicas),
            ("MISCONF", Cause::Misconfigured),
            ("LOADING", Cause::Loading),
            ("MASTERDOWN", Cause::MasterDown),
            ("CLUSTERDOWN", Cause::ClusterDown),
            ("BUSY", Cause::Busy),
            ("WRONGPASS", Cause::Password),
            ("NOAUTH", Cause::Password),
            ("NOPERM", Cause::Permission),
            ("ERR AUTH", Cause::Password),
            ("ERR invalid password", Cause::Password),
            ("ACL failure", Cause::Permission),
            ("The user executing the script", Cause::Permission),
        ];
        let begins = |code: &str| {
            words.match_indices(code).any(|(at, _)| {
                let before = words[..at].chars().next_back();
                let after = words[at + code.len()..].chars().next();
                let is_part = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
                !is_part(before) && !is_part(after)
            })
        };
        CODES.iter().find(|(code, _)| begins(code)).map_or(Self::Other, |(_, cause)| *cause)
    }

    /// True when another connection may reach a server that does not refuse. After a switch-over, the old
    /// server keeps its connections as a replica. What is published there reaches nobody.
    #[must_use]
    pub fn is_wrong_server(self) -> bool {
        match self {
            Self::ReadOnly | Self::MasterDown | Self::Loading | Self::Password => true,
            Self::Silent
            | Self::Unreachable
            | Self::OutOfMemory
            | Self::NoReplicas
            | Self::Misconfigured
            | Self::ClusterDown
            | Self::Busy
            | Self::Permission
            | Self::Undelivered
            | Self::Owner
            | Self::Other => false,
        }
    }
}

/// What the shell has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Send a probe on every connection.
    Probe,
    /// Make the connections anew.
    Reconnect,
    /// The way has ended: users learn of it, and publishes wait.
    Down,
    /// The way is there (again): users learn of it, everything is renewed, publishes leave.
    Up,
    /// The way was interrupted, too shortly to be down: messages may have been lost.
    Gap,
    /// A trouble begins: log its cause and Redis's words.
    Begin(Cause, String),
    /// The trouble has ended.
    End(Cause),
}

#[derive(Debug, Clone)]
struct Refusal {
    cause: Cause,
    words: String,
    since: Instant,
}

/// The health of one way to Redis.
#[derive(Debug, Clone)]
pub struct Connectivity {
    is_up: bool,
    is_connected: bool,
    /// Everything that is wanted is subscribed on the present connection.
    is_whole: bool,
    /// A probe has come back on the present connection.
    is_proven: bool,
    /// A break has healed before the way was down.
    gap: bool,
    /// When a probe that was written came back.
    delivered: Option<Instant>,
    /// When a probe last came back whose write was refused.
    delivered_unwritten: Option<Instant>,
    /// When Redis last carried out a probe.
    written: Option<Instant>,
    refusal: Option<Refusal>,
    /// The way was not ready, and has not been up since.
    must_come_up: bool,
    /// Why there was no connection, until the way is up again.
    failure: Option<(Cause, String)>,
    probed: Option<Instant>,
    reconnected: Option<Instant>,
    /// What the log says at present.
    trouble: Option<Cause>,
    started: Instant,
}

impl Connectivity {
    /// A way that was never up.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self {
            is_up: false,
            is_connected: false,
            is_whole: false,
            is_proven: false,
            gap: false,
            delivered: None,
            delivered_unwritten: None,
            written: None,
            refusal: None,
            must_come_up: true,
            failure: None,
            probed: None,
            reconnected: None,
            trouble: None,
            started: now,
        }
    }

    /// There is a new connection; nothing is subscribed on it.
    pub fn on_connected(&mut self, now: Instant) {
        self.is_connected = true;
        self.reconnected = Some(now);
        self.is_whole = false;
        self.is_proven = false;
        self.probed = None;
    }

    /// The connection has ended, or could not be made.
    pub fn on_disconnected(&mut self, now: Instant, cause: Cause, words: &str) {
        self.on_closed();
        match cause {
            Cause::Silent | Cause::Unreachable => self.failure = Some((cause, words.to_owned())),
            Cause::Other => self.failure = Some((Cause::Unreachable, words.to_owned())),
            _ => self.on_refused(now, cause, words),
        }
    }

    /// The connection was ended, to be made anew.
    pub fn on_closed(&mut self) {
        self.is_connected = false;
        self.is_whole = false;
    }

    /// Everything that is wanted is subscribed on the present connection (again).
    pub fn on_whole(&mut self) {
        if !self.is_whole {
            self.is_whole = true;
            // A probe from before has no way back.
            self.probed = None;
            // The first time there was nothing to lose.
            self.gap = self.is_up;
        }
    }

    /// A probe came back through pub/sub; `is_written` says whether Redis has written it.
    pub fn on_delivered(&mut self, now: Instant, is_written: bool) {
        if is_written {
            self.delivered = Some(now);
        } else {
            self.delivered_unwritten = Some(now);
        }
        self.is_proven = true;
    }

    /// Messages were lost although the connection has held.
    pub fn on_gap(&mut self) {
        self.gap = self.is_up;
    }

    /// Redis has carried out a probe, its write included.
    pub fn on_written(&mut self, now: Instant) {
        self.written = Some(now);
        // What a server that only refused to write has delivered still proves the way. The first probe that it has
        // written comes back behind this answer, and until then the way must not count as silent.
        self.delivered = self.last_delivery();
        self.refusal = None;
    }

    /// Redis refuses a probe, or what a handshake needs.
    pub fn on_refused(&mut self, now: Instant, cause: Cause, words: &str) {
        let since = match &self.refusal {
            Some(refusal) if refusal.cause == cause => refusal.since,
            _ => now,
        };
        self.refusal = Some(Refusal { cause, words: words.to_owned(), since });
    }

    /// The way is not needed any more: the trouble that the log knows.
    pub fn forget_trouble(&mut self) -> Option<Cause> {
        self.trouble.take()
    }

    /// True while messages cross.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.is_up
    }

    /// True while Redis carries out what a handshake needs, as far as is known.
    #[must_use]
    pub fn may_claim(&self) -> bool {
        self.is_up && self.refusal.is_none()
    }

    /// True while a publish would reach the other instances.
    #[must_use]
    pub fn may_publish(&self) -> bool {
        self.is_up && !self.is_at_wrong_server()
    }

    /// True while balancers may send users.
    #[must_use]
    pub fn is_ready(&self, now: Instant) -> bool {
        let is_refused = self.refusal.as_ref().is_some_and(|refusal| now - refusal.since >= REFUSED_AFTER);
        let is_recent = |at: Instant| now - at < SILENT_AFTER;
        let is_proven = self.written.is_some_and(is_recent) && self.last_delivery().is_some_and(is_recent);
        // A new connection may write before the way is up, and older deliveries are still recent: claims are refused
        // until then.
        is_proven && !is_refused && (self.is_up || !self.must_come_up)
    }

    fn is_at_wrong_server(&self) -> bool {
        self.refusal.as_ref().is_some_and(|refusal| refusal.cause.is_wrong_server())
    }

    /// The last proof that messages cross. A server that only refuses to write still delivers; the wrong server
    /// delivers to itself.
    fn last_delivery(&self) -> Option<Instant> {
        let unwritten =
            self.delivered_unwritten.filter(|_| self.refusal.is_some() && !self.is_at_wrong_server());
        self.delivered.max(unwritten)
    }

    /// What is due at `now`; call it again until there is nothing.
    pub fn poll(&mut self, now: Instant) -> Option<Action> {
        self.must_come_up = !self.is_ready(now);
        self.poll_probe(now)
            .or_else(|| self.poll_state(now))
            .or_else(|| self.poll_trouble(now))
            .or_else(|| self.poll_reconnect(now))
    }

    fn poll_probe(&mut self, now: Instant) -> Option<Action> {
        let is_due = self.is_connected && self.probed.is_none_or(|probed| now - probed >= PROBE_EVERY);
        is_due.then(|| {
            self.probed = Some(now);
            Action::Probe
        })
    }

    fn poll_state(&mut self, now: Instant) -> Option<Action> {
        let silent = self.last_delivery().map(|last| now - last);
        if self.is_up {
            if silent.is_none_or(|silent| silent >= DOWN_AFTER) {
                self.is_up = false;
                self.gap = false;
                return Some(Action::Down);
            }
            return std::mem::take(&mut self.gap).then_some(Action::Gap);
        }
        let is_back = self.is_connected && self.is_whole && self.is_proven && !self.is_at_wrong_server();
        if is_back && silent.is_some_and(|silent| silent < DOWN_AFTER) {
            self.is_up = true;
            self.failure = None;
            return Some(Action::Up);
        }
        None
    }

    fn poll_trouble(&mut self, now: Instant) -> Option<Action> {
        let present = self.present_trouble(now);
        let cause = present.as_ref().map(|(cause, _)| *cause);
        if cause == self.trouble {
            return None;
        }
        if let Some(ended) = self.trouble.take() {
            return Some(Action::End(ended));
        }
        self.trouble = cause;
        present.map(|(cause, words)| Action::Begin(cause, words))
    }

    fn present_trouble(&self, now: Instant) -> Option<(Cause, String)> {
        if let Some(refusal) = &self.refusal {
            return Some((refusal.cause, refusal.words.clone()));
        }
        let silent = now - self.last_delivery().unwrap_or(self.started);
        if self.is_up || silent < DOWN_AFTER {
            return None;
        }
        if let Some(failure) = &self.failure {
            return Some(failure.clone());
        }
        let answers = self.written.is_some_and(|written| now - written < DOWN_AFTER);
        Some(if answers {
            (Cause::Undelivered, "what is published does not come back".to_owned())
        } else {
            (Cause::Silent, "no answer".to_owned())
        })
    }

    fn poll_reconnect(&mut self, now: Instant) -> Option<Action> {
        if !self.is_connected {
            return None;
        }
        let pause = if self.is_at_wrong_server() {
            LEAVE_EVERY
        } else if now - self.last_delivery().unwrap_or(self.started) >= RECONNECT_AFTER {
            RECONNECT_AFTER
        } else {
            return None;
        };
        if self.reconnected.is_some_and(|last| now - last < pause) {
            return None;
        }
        self.reconnected = Some(now);
        Some(Action::Reconnect)
    }
}

#[cfg(test)]
#[path = "connectivity_tests.rs"]
mod tests;
