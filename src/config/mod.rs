//! Every setting: its name, default and check. The whole configuration is read before anything
//! starts, and all its mistakes are reported together.
//!
//! A setting comes from its flag, else from its environment variable, else from its default.
//! An empty value counts as not given; an empty flag so hides the variable.

mod command_line;
pub(crate) mod parse;
mod read;
mod sign_in;
mod table;
#[cfg(test)]
mod tests;
mod values;

use std::ffi::OsString;
use std::net::SocketAddr;

use clap::ArgMatches;
use ipnet::IpNet;
use secrecy::SecretString;

use self::command_line::Name;
pub use self::parse::Mistake;
pub use self::read::{Features, Limits, Times};
use crate::auth::settings::Settings;
pub use crate::backplane::redis::{RedisSource, RedisTls, check_redis_url};
pub use crate::host::Machine;
use crate::telemetry;

/// What `duorelay serve` runs by.
#[derive(Debug, Clone)]
pub struct Config {
    /// What any instance runs by.
    pub instance: Instance,
    /// The issuer of accepted ID tokens.
    pub auth: Settings,
    /// Close a connection when its token expires and was not refreshed.
    pub enforce_expiry: bool,
}

/// What any instance runs by: everything but sign-in, which `duorelay demo` brings itself.
#[derive(Debug, Clone)]
pub struct Instance {
    /// The public address. `[::]` stands for IPv6 and IPv4 together (`IPV6_V6ONLY` off), where
    /// IPv4 clients show up as `::ffff:a.b.c.d`; a machine without IPv6 gets `0.0.0.0`.
    pub listen: SocketAddr,
    /// The address for metrics and operator calls.
    pub admin_listen: SocketAddr,
    /// What operator calls must present; without it there are none.
    pub admin_token: Option<SecretString>,
    /// The Redis backplane; the memory backplane without it.
    pub redis: Option<Redis>,
    /// Origins as browsers write them (lower case, no path, no default port); any without.
    pub allowed_origins: Option<Vec<String>>,
    /// Networks of proxies; the relay believes their `X-Forwarded-For`.
    pub trusted_proxies: Vec<IpNet>,
    /// What clients are offered.
    pub features: Features,
    /// What clients may use.
    pub limits: Limits,
    /// Worker threads, at least 1.
    pub workers: usize,
    /// How long things last.
    pub times: Times,
    /// Log format and filter, and the collector of traces.
    pub telemetry: telemetry::Settings,
}

impl Instance {
    /// No other instance shares the backplane.
    #[must_use]
    pub const fn is_alone(&self) -> bool {
        self.redis.is_none()
    }
}

/// The Redis backplane: its URL, its files and its prefix.
#[derive(Debug, Clone)]
pub struct Redis {
    /// Where the URL comes from: `redis[s]://`, `redis[s]-cluster://` or `redis[s]-sentinel://`, with its password.
    pub source: RedisSource,
    /// Certificates for connections to Redis alone.
    pub tls: RedisTls,
    /// The start of all keys and channels.
    pub prefix: String,
}

/// What the command line asks for.
#[derive(Debug, Clone)]
pub enum Command {
    /// `duorelay serve`, or no command.
    Serve(Box<Config>),
    /// `duorelay demo`, whose own flags are among what was given.
    Demo(Box<Instance>, ArgMatches),
    /// `duorelay health`, and which one.
    Health(HealthCheck),
    /// One of the commands in [`Additions`].
    Other(ArgMatches),
}

/// What `duorelay health` asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HealthCheck {
    /// Where the instance listens, as [`Instance::listen`].
    pub listen: SocketAddr,
    /// Which of its health checks.
    pub path: &'static str,
}

/// A command that may start, and what should be said first.
#[derive(Debug, Clone)]
pub struct Launch {
    /// The command with its checked settings.
    pub command: Command,
    /// For the log, once there is one.
    pub notices: Vec<Notice>,
}

impl Launch {
    /// Its logs and traces; a command of the caller's prints for itself.
    #[must_use]
    pub fn telemetry(&self) -> Option<telemetry::Settings> {
        match &self.command {
            Command::Serve(config) => Some(config.instance.telemetry.clone()),
            Command::Demo(instance, _) => Some(instance.telemetry.clone()),
            Command::Other(_) => None,
            // A check reports nothing but why it failed.
            Command::Health(_) => Some(telemetry::Settings::errors()),
        }
    }
}

/// Not a mistake, but worth a line in the log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Notice {
    /// A `DUORELAY_` variable that no setting has; Kubernetes injects some for each service.
    #[error("the environment variable {name} is not a setting and has no effect{}", did_you_mean(.suggestion))]
    UnknownVariable {
        /// The variable that no setting has.
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
    /// A credentials file that nothing is needed of.
    #[error("GOOGLE_APPLICATION_CREDENTIALS is not used: {0}")]
    UnusedCredentials(String),
}

fn did_you_mean(suggestion: &Option<&'static str>) -> String {
    suggestion.map(|name| format!("; did you mean {name}?")).unwrap_or_default()
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

    /// Prints it, on standard output for `--help` and `--version`, else on standard error.
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
    let count =
        if mistakes.len() == 1 { "1 mistake".to_owned() } else { format!("{} mistakes", mistakes.len()) };
    let lines: String = mistakes.iter().map(|mistake| format!("\n  {mistake}")).collect();
    format!("error: {count} in the configuration, so nothing was started{lines}")
}

/// What other rooms add to the command line, to read it themselves.
#[derive(Debug, Default)]
pub struct Additions {
    /// Flags of `duorelay demo`.
    pub demo: Vec<clap::Arg>,
    /// Commands with settings of their own.
    pub commands: Vec<clap::Command>,
}

/// Reads the command line (the program's name first) and the environment.
///
/// # Errors
/// [`Stop`]: `--help`, `--version`, or everything that is wrong.
pub fn load(
    arguments: impl IntoIterator<Item = OsString>,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
    machine: Machine,
    additions: Additions,
) -> Result<Launch, Stop> {
    let (name, given) = command_line::parse(arguments, additions)?;
    let mut values = values::Values::new(command_line::flags(&given), environment);
    let command = match name {
        Name::Serve => read::serve(&mut values, machine).map(Box::new).map(Command::Serve),
        Name::Demo => read::demo(&mut values, machine).map(|it| Command::Demo(Box::new(it), given)),
        Name::Health { path } => read::health(&mut values, machine, path).map(Command::Health),
        Name::Other => return Ok(Launch { command: Command::Other(given), notices: Vec::new() }),
    };
    let (mistakes, notices) = values.finish(name);
    match command {
        Ok(command) if mistakes.is_empty() => Ok(Launch { command, notices }),
        _ => Err(Stop::Mistakes(mistakes)),
    }
}
