//! Every setting: its name, default and check. The whole configuration is read before anything
//! starts, and all its mistakes are told together.
//!
//! A setting comes from its flag, else from its environment variable, else from its default.
//! An empty value counts as not given; an empty flag so hides the variable.

mod command_line;
mod loadtest;
mod read;
mod sign_in;
mod table;
#[cfg(test)]
mod tests;
mod values;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::time::Duration;

use ipnet::IpNet;
use secrecy::SecretString;

pub use self::loadtest::{
    Assertion, Dialect, Direction, FIGURES, Figure, Link, LoadOptions, Output, Placement, Scenario,
    StreamSet, TokenSource, Unit,
};
use crate::auth::settings::Settings;
use crate::telemetry::{self, LogFormat};

/// What `duorelay serve` runs by.
#[derive(Debug, Clone)]
pub struct Config {
    /// The public address. `[::]` stands for IPv6 and IPv4 together (`IPV6_V6ONLY` off), where
    /// IPv4 clients show up as `::ffff:a.b.c.d`; a machine without IPv6 gets `0.0.0.0`.
    pub listen: SocketAddr,
    /// The address for metrics and operator calls.
    pub admin_listen: SocketAddr,
    /// What operator calls must present; without it there are none.
    pub admin_token: Option<SecretString>,
    /// The Redis backplane; the memory backplane without it.
    pub redis: Option<Redis>,
    /// Whose ID tokens are accepted.
    pub auth: Settings,
    /// Close a connection when its token expires and was not refreshed.
    pub enforce_expiry: bool,
    /// Origins as browsers write them (lower case, no path, no default port); any without.
    pub allowed_origins: Option<Vec<String>>,
    /// Whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<IpNet>,
    /// What clients are offered.
    pub features: Features,
    /// What clients may use.
    pub limits: Limits,
    /// Worker threads, at least 1.
    pub workers: usize,
    /// How long things last.
    pub times: Times,
    /// Logs and traces.
    pub telemetry: telemetry::Settings,
}

impl Config {
    /// No other instance shares the backplane.
    #[must_use]
    pub const fn is_alone(&self) -> bool {
        self.redis.is_none()
    }
}

/// The Redis backplane.
#[derive(Debug, Clone)]
pub struct Redis {
    /// `redis[s]://`, `redis[s]-cluster://` or `redis[s]-sentinel://`, with its password.
    pub url: SecretString,
    /// The start of all keys and channels.
    pub prefix: String,
}

/// What clients are offered beyond the first version of the protocol.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Features {
    /// They may report what they have received.
    pub pacing: bool,
    /// They may arrange a direct path.
    pub direct: bool,
    /// STUN servers for it.
    pub stun_urls: Vec<String>,
}

/// What clients may use; `None` is no limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Open connections on this instance.
    pub max_connections: Option<u32>,
    /// One whole message, in bytes, still allowed.
    pub message_bytes: usize,
    /// What may wait for one receiver, in bytes; at least [`Self::message_bytes`].
    pub queue_bytes: usize,
    /// Text and binary messages from one connection, with a burst of one second.
    pub messages_per_second: Option<u32>,
    /// Bytes from one connection, with a burst of four seconds.
    pub bytes_per_second: Option<u32>,
    /// Handshakes from one client address.
    pub handshakes_per_second_per_ip: Option<u32>,
}

/// How long things last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Times {
    /// Silence after which a connection is pinged; after two of them it is dropped.
    pub heartbeat: Duration,
    /// How long an instance that is gone still holds its slots.
    pub lease: Duration,
    /// From SIGTERM until handshakes are refused.
    pub drain_delay: Duration,
    /// Over which the connections are asked to move.
    pub drain: Duration,
    /// After which a connection is asked to move; never without.
    pub max_lifetime: Option<Duration>,
}

/// What `duorelay demo` runs by: everything but sign-in, which it brings itself.
#[derive(Debug, Clone)]
pub struct DemoOptions {
    /// As [`Config::listen`].
    pub listen: SocketAddr,
    /// As [`Config::admin_listen`].
    pub admin_listen: SocketAddr,
    /// Other demos are joined over it, under a prefix of their own; none without.
    pub redis: Option<Redis>,
    /// As [`Config::admin_token`].
    pub admin_token: Option<SecretString>,
    /// As [`Config::allowed_origins`].
    pub allowed_origins: Option<Vec<String>>,
    /// As [`Config::trusted_proxies`].
    pub trusted_proxies: Vec<IpNet>,
    /// As [`Config::features`].
    pub features: Features,
    /// As [`Config::limits`].
    pub limits: Limits,
    /// As [`Config::workers`].
    pub workers: usize,
    /// As [`Config::times`].
    pub times: Times,
    /// As [`Config::telemetry`].
    pub telemetry: telemetry::Settings,
}

impl DemoOptions {
    /// A relay that accepts the tokens of `auth` until they expire.
    #[must_use]
    pub fn into_config(self, auth: Settings) -> Config {
        Config {
            listen: self.listen,
            admin_listen: self.admin_listen,
            admin_token: self.admin_token,
            redis: self.redis,
            auth,
            enforce_expiry: true,
            allowed_origins: self.allowed_origins,
            trusted_proxies: self.trusted_proxies,
            features: self.features,
            limits: self.limits,
            workers: self.workers,
            times: self.times,
            telemetry: self.telemetry,
        }
    }
}

/// What the command line asks for.
#[derive(Debug, Clone)]
pub enum Command {
    /// `duorelay serve`, or no command.
    Serve(Box<Config>),
    /// `duorelay demo`.
    Demo(Box<DemoOptions>),
    /// `duorelay health`.
    Health(HealthCheck),
    /// `duorelay loadtest`.
    Loadtest(Box<LoadOptions>),
}

/// What `duorelay health` asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HealthCheck {
    /// Where the instance listens, as [`Config::listen`].
    pub listen: SocketAddr,
    /// Which of its health checks.
    pub path: &'static str,
}

/// A command that may start, and what should be said first.
#[derive(Debug, Clone)]
pub struct Launch {
    /// What to run.
    pub command: Command,
    /// For the log, once there is one.
    pub notices: Vec<Notice>,
}

impl Launch {
    /// Its logs and traces; the load tester has none, as its report is its output.
    #[must_use]
    pub fn telemetry(&self) -> Option<telemetry::Settings> {
        match &self.command {
            Command::Serve(config) => Some(config.telemetry.clone()),
            Command::Demo(options) => Some(options.telemetry.clone()),
            Command::Loadtest(_) => None,
            // A check has nothing to tell but why it failed.
            Command::Health(_) => Some(telemetry::Settings {
                format: LogFormat::Pretty,
                filter: "error".to_owned(),
                project: None,
                traces: None,
            }),
        }
    }
}

/// Not a mistake, but worth a line in the log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Notice {
    /// A `DUORELAY_` variable that no setting has; Kubernetes injects some for each service.
    #[error("the environment variable {name} is not a setting and has no effect{}", did_you_mean(.suggestion))]
    UnknownVariable {
        /// The variable.
        name: String,
        /// A setting of nearly the same name.
        suggestion: Option<&'static str>,
    },
    /// The demo never looks at variables that concern real users or a real Redis.
    #[error("`duorelay demo` ignores {0}: it has its own sign-in, and joins others only by --redis-url")]
    IgnoredByDemo(&'static str),
    /// Anyone can sign in as anyone.
    #[error(
        "FIREBASE_AUTH_EMULATOR_HOST is set: unsigned tokens are accepted, so anyone can sign in as anyone"
    )]
    UnsignedTokens,
}

fn did_you_mean(suggestion: &Option<&'static str>) -> String {
    suggestion.map(|name| format!("; did you mean {name}?")).unwrap_or_default()
}

/// One mistake in the configuration: the setting, and what is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{setting}: {problem}")]
pub struct Mistake {
    /// The variable, and the flag where the value came from there.
    pub setting: String,
    /// What is wrong; never a secret's value.
    pub problem: String,
}

/// Why nothing is started.
#[derive(Debug, thiserror::Error)]
pub enum Stop {
    /// `--help`, `--version`, or a command line that cannot be understood.
    #[error(transparent)]
    CommandLine(#[from] clap::Error),
    /// All that is wrong with the settings.
    #[error("{}", mistakes_text(.0))]
    Mistakes(Vec<Mistake>),
}

impl Stop {
    /// 0 for `--help` and `--version`, else 2.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::CommandLine(error) if !error.use_stderr() => 0,
            Self::CommandLine(_) | Self::Mistakes(_) => 2,
        }
    }

    /// Tells the person at the terminal, on standard output for `--help` and `--version`, else on standard error.
    ///
    /// # Errors
    /// When standard output or standard error cannot be written to.
    pub fn print(&self) -> std::io::Result<()> {
        use std::io::Write as _;
        match self {
            Self::CommandLine(error) => error.print(),
            Self::Mistakes(_) => writeln!(std::io::stderr(), "{self}"),
        }
    }
}

fn mistakes_text(mistakes: &[Mistake]) -> String {
    let count = match mistakes {
        [_] => "1 mistake".to_owned(),
        many => format!("{} mistakes", many.len()),
    };
    let mut text = format!("error: {count} in the configuration, so nothing was started");
    for mistake in mistakes {
        text.push_str(&format!("\n  {mistake}"));
    }
    text
}

/// What defaults depend on, so that tests can choose it.
#[derive(Debug, Clone, Copy)]
pub struct Machine {
    /// Standard output is a terminal.
    pub terminal: bool,
    /// Cores that the process may use.
    pub cores: usize,
    /// Sockets can be bound to IPv6 addresses.
    pub ipv6: bool,
}

impl Machine {
    /// This machine. Kernels booted with `ipv6.disable=1`, some containers' hosts among them, refuse `[::]`.
    #[must_use]
    pub fn this() -> Self {
        use std::io::IsTerminal as _;
        Self {
            terminal: std::io::stdout().is_terminal(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            ipv6: std::net::UdpSocket::bind("[::]:0").is_ok(),
        }
    }
}

/// Reads the command line (the program's name first) and the environment.
///
/// # Errors
/// [`Stop`]: `--help`, `--version`, or everything that is wrong.
pub fn load(
    arguments: impl IntoIterator<Item = OsString>,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
    machine: Machine,
) -> Result<Launch, Stop> {
    let (name, flags) = match command_line::parse(arguments)? {
        command_line::Parsed::Settings(name, flags) => (name, flags),
        command_line::Parsed::Loadtest(options) => {
            let command = Command::Loadtest(options.map_err(Stop::Mistakes)?);
            return Ok(Launch { command, notices: Vec::new() });
        }
    };
    let mut values = values::Values::new(flags, environment);
    let command = match name {
        command_line::Name::Serve => read::serve(&mut values, machine).map(Box::new).map(Command::Serve),
        command_line::Name::Demo => read::demo(&mut values, machine).map(Box::new).map(Command::Demo),
        command_line::Name::Health { ready } => {
            read::health(&mut values, machine, ready).map(Command::Health)
        }
    };
    let (mistakes, notices) = values.finish(name);
    match command {
        Some(command) if mistakes.is_empty() => Ok(Launch { command, notices }),
        _ => Err(Stop::Mistakes(mistakes)),
    }
}
