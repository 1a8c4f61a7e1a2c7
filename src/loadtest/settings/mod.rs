//! The settings of `duorelay loadtest`. They have no environment variables: a load test is started by one line.

mod assertion;
mod options;
pub(super) mod scenario;
#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use clap::{Arg, ArgAction, ArgGroup, ArgMatches, ValueEnum, value_parser};
use ipnet::IpNet;
use secrecy::SecretString;
use url::Url;

pub use self::assertion::Assertion;
use self::assertion::{TIMES, scaled};
pub use self::options::{Direction, Placement};
pub use self::scenario::Scenario;
use super::dialect::{Dialect, V1};
use super::figure::FIGURES;
use super::source::Source;
use crate::config::parse::truth;
use crate::config::{Mistake, check_redis_url};

/// One flag. Its default is a value, with others for single scenarios: `1; rolling: 1,128`.
struct Flag {
    name: &'static str,
    value: &'static str,
    default: &'static str,
    help: &'static str,
    heading: &'static str,
}

macro_rules! options {
    ($($heading:literal { $(
        $name:literal $value:literal $default:literal $help:literal
            => $field:ident: $type:ty = $how:ident($check:expr);
    )* })*) => {
        static FLAGS: &[Flag] = &[$($(Flag {
            name: $name, value: $value, default: $default, help: $help, heading: $heading,
        }),*),*];

        /// What `duorelay loadtest` runs by.
        #[derive(Debug, Clone)]
        pub struct LoadOptions {
            /// What users do while the run measures.
            pub scenario: Scenario,
            /// Other ways to figures, for servers without such metrics.
            pub sources_of_figures: Vec<Arc<dyn Source>>,
            /// What the instances speak: the relay's protocol v1, unless the caller chooses another.
            pub dialect: &'static dyn Dialect,
            $($(#[doc = concat!("`--", $name, "`, as its help says.")] pub $field: $type,)*)*
        }

        fn read_all(given: &mut Given<'_>) -> LoadOptions {
            LoadOptions {
                scenario: given.scenario,
                sources_of_figures: Vec::new(),
                dialect: &V1,
                $($($field: given.$how($name, $check),)*)*
            }
        }
    };
}

options! {
    "Targets" {
        "url" "URL" "ws://127.0.0.1:3000/ws" "Instances or a balancer, ws:// or wss://; repeatable, or comma-separated"
            => urls: Vec<Url> = list(url(&["ws", "wss"]));
        "through" "URL" "" "slow: a balancer in front of the instances, where the receivers connect"
            => through: Option<Url> = optional(url(&["ws", "wss"]));
        "metrics" "URL" "" "The instances' metrics, such as http://127.0.0.1:9091/metrics; repeatable"
            => metrics: Vec<Url> = list(url(&["http", "https"]));
        "redis-url" "URL" "" "Read CPU, commands and memory of this Redis with INFO"
            => redis: Option<SecretString> = optional(check_redis_url);
        "source" "ADDRESS" "" "Connect from these addresses in turn, or from networks such as 127.0.0.8/29"
            => sources: Vec<IpAddr> = lists(sources);
    }
    "Load" {
        "users" "N" "100" "Users, each with a desktop and a mobile"
            => users: usize = value(number(1, 1_000_000));
        "fps" "N" "30" "Frames a second from each sender and stream"
            => fps: f64 = value(fps);
        "frame-bytes" "N" "300" "Size of a frame, its stream id included"
            => frame_bytes: usize = value(number(LoadOptions::SMALLEST_FRAME, 1 << 24));
        "stream" "ID" "1; rolling: 1,128" "Stream ids: 0-127 volatile, 128-255 reliable, hexadecimal too; repeatable"
            => streams: Vec<u8> = list(stream_id);
        "direction" "WAY" "both; slow: to-mobile" "both, to-mobile or to-desktop"
            => direction: Direction = value(named);
        "placement" "PLACE" "cross" "A user's two sockets: cross (two instances), same, or mixed"
            => placement: Placement = value(named);
        "duration" "TIME" "20s" "How long is measured"
            => duration: Duration = value(some_time);
        "warmup" "TIME" "2s" "How long before that everything runs unmeasured"
            => warmup: Duration = value(time);
        "connect-rate" "N" "500" "Connections opened a second"
            => connect_rate: usize = value(number(1, 1_000_000));
        "rate" "N" "100" "storm: handshakes a second; overwrite: takeovers a second"
            => rate: usize = value(number(1, 1_000_000));
        "link" "BYTES" "" "slow: bytes a second that a receiver takes, 0: none at all [default: half of what it is sent]"
            => link: Option<usize> = optional(number(0, 1 << 30));
        "receive-buffer" "BYTES" "2304" "slow: the kernel's receive buffer (SO_RCVBUF as Linux reports it)"
            => receive_buffer: usize = value(number(1, 1 << 30));
        "maxseg" "BYTES" "" "slow: TCP_MAXSEG on the receivers' sockets, so that loopback behaves like a path"
            => maxseg: Option<usize> = optional(number(88, 32767));
        "no-reports" "BOOL" "false" "Report nothing of what is read, as a raw client would"
            => no_reports: bool = value(truth);
        "roll-command" "COMMAND" "" "rolling: run by sh once the measurement has begun, such as one that restarts the instances"
            => roll_command: Option<String> = optional(text);
    }
    "Tokens (one of them; the demo at the first URL by default)" {
        "tokens" "demo:URL" "" "The demo's identity provider, such as demo:http://127.0.0.1:3000"
            => demo: Option<Url> = optional(demo);
        "signing-key" "FILE" "" "Sign tokens (RS256) with this private key, PKCS #8 in PEM"
            => signing_key: Option<String> = optional(text);
        "issuer" "ISSUER" "" "iss of signed tokens"
            => issuer: Option<String> = optional(text);
        "audience" "AUDIENCE" "" "aud of signed tokens"
            => audience: Option<String> = optional(text);
        "kid" "KID" "" "kid of signed tokens"
            => kid: Option<String> = optional(text);
        "emulator" "URL" "" "Sign users up at a Firebase Authentication emulator, such as http://127.0.0.1:9099"
            => emulator: Option<Url> = optional(url(&["http", "https"]));
        "token-command" "COMMAND" "" "A command that prints one token a line for the uids that it gets as arguments"
            => token_command: Option<String> = optional(text);
        "user-prefix" "TEXT" "load" "What the uids begin with"
            => user_prefix: String = value(prefix);
    }
    "Results" {
        "json" "FILE" "" "Write the figures as JSON, - for standard output"
            => json: Option<String> = optional(text);
        "report" "FILE" "" "Write one self-contained HTML page"
            => report: Option<String> = optional(text);
        "assert" "DEMANDS" "" "Exit with 1 unless all hold, such as 'p99<20ms,lost=0'"
            => assertions: Vec<Assertion> = list(Assertion::parse);
    }
    "This process" {
        "threads" "N" "1" "Threads that users are spread over"
            => threads: usize = value(number(1, 256));
        "progress" "BOOL" "" "Show progress bars [default: on a terminal]"
            => progress: Option<bool> = optional(truth);
    }
}

/// The command with its flags.
pub fn command() -> clap::Command {
    let scenario = Arg::new("scenario").value_name("SCENARIO").default_value("stream").help("What is done");
    let flags = FLAGS.iter().map(|Flag { name, value, default, help, heading }| {
        let default = if default.is_empty() { String::new() } else { format!(" [default: {default}]") };
        let arg = Arg::new(*name).long(*name).value_name(*value).help(format!("{help}{default}"));
        let arg = arg.help_heading(*heading).allow_negative_numbers(true).action(ArgAction::Append);
        if *value == "BOOL" { arg.num_args(0..=1).default_missing_value("true") } else { arg }
    });
    let figures = FIGURES
        .iter()
        .fold(String::new(), |text, figure| format!("{text}\n  {:<24} {}", figure.name, figure.meaning));
    let scenarios = Scenario::value_variants().iter().filter_map(Scenario::to_possible_value);
    let scenarios = scenarios.fold(String::new(), |text, scenario| {
        format!("{text}\n  {:<10} {}", scenario.get_name(), scenario.get_help().cloned().unwrap_or_default())
    });
    let command = clap::Command::new("loadtest")
        .about("Measure running instances: latency from the scheduled send time, drops, CPU, memory")
        .after_help(format!(
            "Scenarios:{scenarios}\n\nFigures of --assert and --json (times need a unit: us, ms, s):{figures}\n\n\
             Exit codes: 0; 1 when a demand of --assert is broken or the run failed; 2 for a bad command line.\n\
             Instances limit handshakes for each address: start them with --handshakes-per-second-per-ip 0."
        ))
        .next_line_help(true)
        .disable_help_flag(true)
        .arg(scenario.value_parser(value_parser!(Scenario)).hide_possible_values(true))
        .args(flags)
        .arg(Arg::new("help").short('h').long("help").action(ArgAction::Help).help("Print this").help_heading("Help"))
        .group(ArgGroup::new("source of tokens").args(["tokens", "signing-key", "emulator", "token-command"]))
        .mut_arg("signing-key", |key| key.requires("issuer").requires("audience").requires("kid"));
    let of_key = ["issuer", "audience", "kid"];
    of_key.into_iter().fold(command, |command, name| command.mut_arg(name, |arg| arg.requires("signing-key")))
}

/// What was given, and the mistakes in it.
struct Given<'a> {
    matches: &'a ArgMatches,
    scenario: Scenario,
    mistakes: Vec<Mistake>,
}

impl<'a> Given<'a> {
    /// What was given, or the scenario's default.
    fn texts(&self, name: &str) -> Vec<&'a str> {
        let given = self.matches.get_many::<String>(name).into_iter().flatten().map(|text| text.trim());
        let given: Vec<_> = given.filter(|text| !text.is_empty()).collect();
        let flag = FLAGS.iter().find(|flag| flag.name == name).filter(|_| given.is_empty());
        let Some(mut defaults) = flag.map(|flag| flag.default.split("; ")) else { return given };
        let (first, own) = (defaults.next(), format!("{}: ", self.scenario));
        let default = defaults.find_map(|default| default.strip_prefix(&own)).or(first);
        default.filter(|text| !text.is_empty()).into_iter().collect()
    }

    fn check<T>(&mut self, name: &str, value: Result<T, String>) -> Option<T> {
        value.map_err(|problem| self.mistakes.push(Mistake::of(&format!("--{name}"), problem))).ok()
    }

    /// The last value; `None` when nothing was given or after a mistake.
    fn optional<T>(&mut self, name: &str, read: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        let text = self.texts(name).pop()?;
        self.check(name, read(text))
    }

    /// The last value; after a mistake any, as nothing runs by it.
    fn value<T: Default>(&mut self, name: &str, read: impl Fn(&str) -> Result<T, String>) -> T {
        self.optional(name, read).unwrap_or_default()
    }

    /// Every value, split at commas.
    fn list<T>(&mut self, name: &str, read: impl Fn(&str) -> Result<T, String>) -> Vec<T> {
        let texts = self.texts(name).join(",");
        let parts = texts.split(',').map(str::trim).filter(|part| !part.is_empty());
        parts.filter_map(|part| self.check(name, read(part))).collect()
    }

    fn lists<T: Clone>(&mut self, name: &str, read: impl Fn(&str) -> Result<Vec<T>, String>) -> Vec<T> {
        self.list(name, read).concat()
    }
}

/// Reads the flags.
///
/// # Errors
/// Every mistake in them.
pub fn read(matches: &ArgMatches) -> Result<LoadOptions, Vec<Mistake>> {
    let scenario = matches.get_one("scenario").copied().unwrap_or_default();
    let mut given = Given { matches, scenario, mistakes: Vec::new() };
    let mut options = read_all(&mut given);
    if options.through.is_some() && scenario != Scenario::Slow {
        given.mistakes.push(Mistake::of("--through", "is only for slow"));
    }
    options.urls.extend(options.through.clone());
    options.streams.sort_unstable();
    options.streams.dedup();
    if given.mistakes.is_empty() { Ok(options) } else { Err(given.mistakes) }
}

fn url(schemes: &[&str]) -> impl Fn(&str) -> Result<Url, String> {
    move |text| {
        let url = Url::parse(text).map_err(|error| format!("{text:?} is not a URL ({error})"))?;
        if !schemes.contains(&url.scheme()) || url.host_str().is_none_or(str::is_empty) {
            return Err(format!("{text:?} must be {}://HOST…", schemes.join(":// or ")));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err("must not hold a user or a password".to_owned());
        }
        Ok(url)
    }
}

fn demo(text: &str) -> Result<Url, String> {
    let wrong = || format!("must be demo:URL, such as demo:http://127.0.0.1:3000, but is {text:?}");
    url(&["http", "https"])(text.strip_prefix("demo:").ok_or_else(wrong)?)
}

/// An address, or the addresses of a network.
fn sources(text: &str) -> Result<Vec<IpAddr>, String> {
    let network = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    let network = network.map_err(|_| format!("{text:?} is neither an address nor a network"))?;
    Ok(network.hosts().take(4096).collect())
}

fn number(least: usize, most: usize) -> impl Fn(&str) -> Result<usize, String> {
    move |text| {
        let number = text.replace('_', "").parse().ok().filter(|number| (least..=most).contains(number));
        number.ok_or_else(|| format!("must be a whole number from {least} to {most}, but is {text:?}"))
    }
}

fn fps(text: &str) -> Result<f64, String> {
    let fps = text.parse().ok().filter(|fps| (0.01..=1000.0).contains(fps));
    fps.ok_or_else(|| format!("must be a number from 0.01 to 1000, but is {text:?}"))
}

fn stream_id(text: &str) -> Result<u8, String> {
    let id = text.strip_prefix("0x").map_or_else(|| text.parse(), |hex| u8::from_str_radix(hex, 16));
    id.map_err(|_| format!("must be stream ids from 0 to 255 or 0x00 to 0xff, but is {text:?}"))
}

fn named<T: ValueEnum>(text: &str) -> Result<T, String> {
    T::from_str(text, false).map_err(|_| {
        let names = T::value_variants().iter().filter_map(ValueEnum::to_possible_value);
        let names: Vec<_> = names.map(|value| value.get_name().to_owned()).collect();
        format!("must be one of {}, but is {text:?}", names.join(", "))
    })
}

/// `20s`, `500ms`, `1.5m`, `1h`.
fn time(text: &str) -> Result<Duration, String> {
    let (number, factor) = scaled(text, TIMES);
    let seconds = number.zip(factor).map(|(number, factor)| number * factor);
    let time = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    time.filter(|time| *time <= Duration::from_secs(7 * 86_400))
        .ok_or_else(|| format!("must be a time such as 500ms, 20s, 5m or 1h, but is {text:?}"))
}

fn some_time(text: &str) -> Result<Duration, String> {
    let time = Some(time(text)?).filter(|time| !time.is_zero());
    time.ok_or_else(|| "must be longer than nothing".to_owned())
}

fn prefix(text: &str) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
    let good = Some(text).filter(|text| text.len() <= 32 && text.chars().all(plain));
    good.map(str::to_owned).ok_or_else(|| format!("must be at most 32 of A-Z a-z 0-9 - _, but is {text:?}"))
}

fn text(text: &str) -> Result<String, String> {
    Ok(text.to_owned())
}
