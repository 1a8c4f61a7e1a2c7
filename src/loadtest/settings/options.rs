//! What a load test runs by.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use url::Url;

use super::super::dialect::Dialect;
use super::super::source::Source;
use super::{Assertion, RedisUrl};

/// What users do while the run measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scenario {
    /// Users stream frames at a fixed rate.
    Stream,
    /// Users are connected and silent.
    Idle,
    /// Connections come and go.
    Storm,
    /// Sockets take each other's slot.
    Overwrite,
    /// Receivers are behind a link that is too thin.
    Slow,
    /// Users stream while instances leave and come back.
    Rolling,
}

impl Scenario {
    /// All of them, in the order of the help.
    pub const ALL: [Self; 6] =
        [Self::Stream, Self::Idle, Self::Storm, Self::Overwrite, Self::Slow, Self::Rolling];

    /// The name on the command line.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Stream => "stream",
            Self::Idle => "idle",
            Self::Storm => "storm",
            Self::Overwrite => "overwrite",
            Self::Slow => "slow",
            Self::Rolling => "rolling",
        }
    }

    /// What it does, for the help.
    #[must_use]
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::Stream => "every user's two devices stream to each other",
            Self::Idle => "connections stay open and silent: memory for each",
            Self::Storm => "connections come and go at a rate: time and CPU for each handshake",
            Self::Overwrite => {
                "a desktop takes over from another; two at the same instant: who is left, when are they notified"
            }
            Self::Slow => "receivers behind a thin link: the age of frames on arrival",
            Self::Rolling => {
                "streams go on while instances leave and come back: longest silence, lost frames"
            }
        }
    }

    /// True when users stream frames.
    #[must_use]
    pub const fn streams(self) -> bool {
        matches!(self, Self::Stream | Self::Slow | Self::Rolling)
    }
}

/// Where a user's two sockets are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placement {
    /// On two different instances.
    Cross,
    /// On one instance, so that Redis carries no frame.
    Same,
    /// Every second user on two, the others on one.
    Mixed,
}

/// The devices that send frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Both devices of each user.
    Both,
    /// Desktops only, to their mobiles.
    ToMobile,
    /// Mobiles only, to their desktops.
    ToDesktop,
}

/// The stream ids that every sender uses, sorted, at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamSet(pub Vec<u8>);

/// What throttles a slow receiver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    /// Bytes that it reads a second once it is welcomed; 0: it has stopped reading.
    pub bytes_per_second: usize,
    /// `SO_RCVBUF` as Linux reports it (it doubles what is set, socket(7)).
    pub receive_buffer: usize,
    /// `TCP_MAXSEG` (tcp(7)), which makes loopback's segments as small as a path's.
    pub maxseg: Option<usize>,
}

/// Where ID tokens come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenSource {
    /// The demo's `POST /demo/token`.
    Demo(Url),
    /// Signed here with RS256.
    SigningKey {
        /// The private key, PKCS #8 in PEM.
        path: PathBuf,
        /// The tokens' `iss`, as the instances expect it.
        issuer: String,
        /// The tokens' `aud`, as the instances expect it.
        audience: String,
        /// The header's `kid`: names the key among the issuer's.
        kid: String,
    },
    /// The Firebase Authentication emulator's sign-up.
    Emulator(Url),
    /// A command that prints one token for each uid that it is given.
    Command(String),
}

/// Where the figures go as JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Standard output; the table moves to standard error.
    Stdout,
    /// A file, which is overwritten.
    File(PathBuf),
}

/// What `duorelay loadtest` runs by.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// What users do while the run measures.
    pub scenario: Scenario,
    /// The instances, at least one.
    pub urls: Vec<Url>,
    /// Where receivers connect: a balancer in front of the instances. It is the last of the `urls`, too.
    pub through: Option<Url>,
    /// Where each instance's metrics are read.
    pub metrics: Vec<Url>,
    /// Other ways to figures, for servers without such metrics.
    pub sources_of_figures: Vec<Arc<dyn Source>>,
    /// What the instances speak: the relay's protocol v1, unless the caller chooses another.
    pub dialect: &'static dyn Dialect,
    /// The Redis of which the run reads `INFO`.
    pub redis: Option<RedisUrl>,
    /// Local addresses to connect from, in turn; the system's choice without.
    pub sources: Vec<IpAddr>,
    /// Users, each with two devices.
    pub users: usize,
    /// Frames a second from each sender on each stream.
    pub fps: f64,
    /// Size of a frame, stream id included; at least [`Self::SMALLEST_FRAME`].
    pub frame_bytes: usize,
    /// The streams of every sender.
    pub streams: StreamSet,
    /// The devices that send frames.
    pub direction: Direction,
    /// Where a user's two sockets are.
    pub placement: Placement,
    /// How long is measured.
    pub duration: Duration,
    /// How long before that everything runs unmeasured.
    pub warmup: Duration,
    /// Connections opened a second.
    pub connect_rate: usize,
    /// Handshakes or takeovers a second.
    pub rate: usize,
    /// What throttles slow receivers.
    pub link: Link,
    /// Sockets report what they have read, where the relay lists that among its features.
    pub reports: bool,
    /// Run by `sh -c` when a rolling measurement begins.
    pub roll_command: Option<String>,
    /// Where ID tokens come from.
    pub tokens: TokenSource,
    /// What the uids begin with.
    pub user_prefix: String,
    /// Where the figures go as JSON.
    pub json: Option<Output>,
    /// Where the HTML page goes.
    pub report: Option<PathBuf>,
    /// The demands of `--assert`; one that fails is exit code 1.
    pub assertions: Vec<Assertion>,
    /// Threads that users are spread over, at least 1.
    pub threads: usize,
    /// Progress bars; on a terminal when not said.
    pub progress: Option<bool>,
}

impl LoadOptions {
    /// What a frame carries at least: its stream id and what is counted by.
    pub const SMALLEST_FRAME: usize = 26;

    /// Names of those whose CPU and memory are read, in the order of a reading.
    #[must_use]
    pub fn watched(&self) -> Vec<String> {
        let metrics = self.metrics.iter().map(|url| url.authority().to_owned());
        metrics.chain(self.sources_of_figures.iter().map(|source| source.name())).collect()
    }

    /// The instances of a user's desktop and mobile, as indices into [`Self::urls`].
    #[must_use]
    pub fn places(&self, user: usize) -> [usize; 2] {
        let through = usize::from(self.through.is_some());
        let count = (self.urls.len() - through).max(1);
        let cross = match self.placement {
            Placement::Cross => true,
            Placement::Same => false,
            Placement::Mixed => user % 2 == 1,
        };
        let desktop = user % count;
        // Receivers that go through a balancer find it behind the instances.
        let mobile = if through == 1 { count } else { (desktop + usize::from(cross)) % count };
        [desktop, mobile]
    }
}
