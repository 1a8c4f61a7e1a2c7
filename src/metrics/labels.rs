//! The labels' values: one enum for each label, in which a value cannot be missing.

use prometheus_client::metrics::counter::Counter;

/// A label of a counter; each value has one place.
pub(super) trait Label: Copy + 'static {
    /// Every value, each at its place.
    const ALL: &'static [Self];

    /// The text in the label.
    fn as_str(self) -> &'static str;

    /// Where the value stands in [`Self::ALL`].
    fn place(self) -> usize;
}

macro_rules! label {
    ($(#[$about:meta])* $name:ident { $($(#[$meaning:meta])* $value:ident = $text:literal,)* }) => {
        $(#[$about])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name {
            $($(#[$meaning])* $value,)*
        }

        impl Label for $name {
            const ALL: &'static [Self] = &[$(Self::$value),*];

            fn as_str(self) -> &'static str {
                match self {
                    $(Self::$value => $text,)*
                }
            }

            fn place(self) -> usize {
                self as usize
            }
        }
    };
}

label! {
    /// Why a frame was not delivered.
    Dropped {
        /// A newer frame of its stream took its place.
        Superseded = "superseded",
        /// The same, while the window of its path held it.
        Window = "window",
        /// All waiting volatile frames together were past the limit.
        QueueFull = "queue_full",
        /// Nobody held the other slot.
        PeerAbsent = "peer_absent",
        /// The sender was past its rate.
        Rate = "rate",
        /// Its sender had lost its slot.
        Overwritten = "overwritten",
        /// The slot that it waited for changed hands.
        PeerChanged = "peer_changed",
        /// It waited too long for the backplane, or the backplane's queue was full.
        Backplane = "backplane",
        /// It came on a channel and was not readable.
        Unreadable = "unreadable",
        /// All queues of the process were past their budget.
        Budget = "budget",
    }
}

label! {
    /// Why a connection that speaks HTTP is closed, or not let in.
    HttpEnded {
        /// No whole request came in time.
        Overdue = "overdue",
        /// It did not take its answer.
        Untaken = "untaken",
        /// No request came within its time.
        Idle = "idle",
        /// It was idle longest when places were short.
        Cleared = "cleared",
        /// Its address holds its share of the places.
        Share = "share",
        /// All places are taken.
        Full = "full",
    }
}

label! {
    /// Which way a frame took.
    Path {
        /// In memory: both sockets are here.
        Local = "local",
        /// Over the backplane, counted where it is published.
        Backplane = "backplane",
    }
}

label! {
    /// Outcome of a claim.
    ClaimResult {
        /// The slot is the new connection's.
        Claimed = "claimed",
        /// Two clients took the slot from each other too often.
        TooManyAttempts = "too_many_attempts",
        /// A later attempt of the same client has claimed already.
        Superseded = "superseded",
        /// The backplane did not answer.
        BackplaneUnavailable = "backplane_unavailable",
    }
}

label! {
    /// Outcome of a renewal.
    RenewResult {
        /// The slot is still the connection's.
        Kept = "kept",
        /// A newer connection has the slot.
        Overwritten = "overwritten",
        /// The backplane did not answer.
        Failed = "failed",
    }
}

label! {
    /// Outcome of a publish.
    PublishResult {
        /// At least one subscriber received it.
        Heard = "heard",
        /// No subscriber received it.
        Unheard = "unheard",
        /// It was refused, or not answered.
        Failed = "failed",
    }
}

label! {
    /// How a connection lost its slot.
    TakeOver {
        /// The same client came back.
        HandOver = "hand_over",
        /// Another client took it.
        Eviction = "eviction",
    }
}

label! {
    /// Outcome of a fetch of the issuer's keys.
    KeyRefresh {
        /// The issuer answered with keys.
        Fetched = "fetched",
        /// The issuer did not answer, or its answer was unreadable.
        Failed = "failed",
    }
}

/// Counters that differ in the value of one label.
#[derive(Debug)]
pub(super) struct By<L> {
    counters: Vec<Counter>,
    label: std::marker::PhantomData<L>,
}

impl<L: Label> By<L> {
    /// A counter for each value.
    pub(super) fn new(counter: impl FnMut(L) -> Counter) -> Self {
        Self { counters: L::ALL.iter().copied().map(counter).collect(), label: std::marker::PhantomData }
    }

    pub(super) fn of(&self, value: L) -> &Counter {
        &self.counters[value.place()]
    }
}

/// Counters by codes that others choose; one that is not in the list counts as `other`.
#[derive(Debug)]
pub(super) struct ByCode {
    known: Vec<(&'static str, Counter)>,
    other: Counter,
}

impl ByCode {
    /// A counter for each code, and one for all others.
    pub(super) fn new(
        codes: impl IntoIterator<Item = &'static str>,
        mut counter: impl FnMut(&'static str) -> Counter,
    ) -> Self {
        let known = codes.into_iter().map(|code| (code, counter(code))).collect();
        Self { known, other: counter("other") }
    }

    pub(super) fn of(&self, code: &str) -> &Counter {
        self.known.iter().find(|(known, _)| *known == code).map_or(&self.other, |(_, counter)| counter)
    }
}
