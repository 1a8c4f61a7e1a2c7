//! The settings of `duorelay loadtest`. They have no environment variables: a load test is started by one line.

mod assertion;
mod options;
#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::PossibleValuesParser;
use clap::{Arg, ArgAction, ArgMatches};
use ipnet::IpNet;
use secrecy::SecretString;
use url::Url;

pub use self::assertion::{Assertion, FIGURES, Figure, Unit};
pub use self::options::{Direction, Link, LoadOptions, Output, Placement, Scenario, StreamSet, TokenSource};
use super::dialect::V1;
use crate::config::parse::truth;
use crate::config::{Mistake, check_redis_url};

/// One flag; several of them take their default in words, in the help.
struct Flag {
    name: &'static str,
    value: &'static str,
    default: &'static str,
    help: &'static str,
    heading: &'static str,
}

macro_rules! flags {
    ($($heading:literal { $($name:literal $value:literal $default:literal $help:literal;)* })*) => {
        static FLAGS: &[Flag] = &[$($(Flag {
            name: $name, value: $value, default: $default, help: $help, heading: $heading,
        }),*),*];
    };
}

flags! {
    "Targets" {
        "url" "URL" "ws://127.0.0.1:3000/ws" "Instances or a balancer, ws:// or wss://; repeatable, or comma-separated";
        "through" "URL" "" "slow: a balancer in front of the instances, where the receivers connect";
        "metrics" "URL" "" "The instances' metrics, such as http://127.0.0.1:9091/metrics; repeatable";
        "redis-url" "URL" "" "Read CPU, commands and memory of this Redis with INFO";
        "source" "ADDRESS" "" "Connect from these addresses in turn, or from networks such as 127.0.0.8/29";
    }
    "Load" {
        "users" "N" "100" "Users, each with a desktop and a mobile";
        "fps" "N" "30" "Frames a second from each sender and stream";
        "frame-bytes" "N" "300" "Size of a frame, its stream id included";
        "stream" "ID" "" "Stream ids: 0-127 volatile, 128-255 reliable, hexadecimal too; repeatable [default: 1; rolling: 1,128]";
        "direction" "WAY" "" "both, to-mobile or to-desktop [default: both; slow: to-mobile]";
        "placement" "PLACE" "cross" "A user's two sockets: cross (two instances), same, or mixed";
        "duration" "TIME" "20s" "How long is measured";
        "warmup" "TIME" "2s" "How long before that everything runs unmeasured";
        "connect-rate" "N" "500" "Connections opened a second";
        "rate" "N" "100" "storm: handshakes a second; overwrite: takeovers a second";
        "link" "BYTES" "" "slow: bytes a second that a receiver takes, 0: none at all [default: half of what it is sent]";
        "receive-buffer" "BYTES" "2304" "slow: the kernel's receive buffer (SO_RCVBUF as Linux reports it)";
        "maxseg" "BYTES" "" "slow: TCP_MAXSEG on the receivers' sockets, so that loopback behaves like a path";
        "no-reports" "BOOL" "false" "Report nothing of what is read, as a raw client would";
        "roll-command" "COMMAND" "" "rolling: run by sh once the measurement has begun, such as one that restarts the instances";
    }
    "Tokens (one of them; the demo at the first URL by default)" {
        "tokens" "demo:URL" "" "The demo's identity provider, such as demo:http://127.0.0.1:3000";
        "signing-key" "FILE" "" "Sign tokens (RS256) with this private key, PKCS #8 in PEM";
        "issuer" "ISSUER" "" "iss of signed tokens";
        "audience" "AUDIENCE" "" "aud of signed tokens";
        "kid" "KID" "" "kid of signed tokens";
        "emulator" "URL" "" "Sign users up at a Firebase Authentication emulator, such as http://127.0.0.1:9099";
        "token-command" "COMMAND" "" "A command that prints one token a line for the uids that it gets as arguments";
        "user-prefix" "TEXT" "load" "What the uids begin with";
    }
    "Results" {
        "json" "FILE" "" "Write the figures as JSON, - for standard output";
        "report" "FILE" "" "Write one self-contained HTML page";
        "assert" "DEMANDS" "" "Exit with 1 unless all hold, such as 'p99<20ms,lost=0'";
    }
    "This process" {
        "threads" "N" "1" "Threads that users are spread over";
        "progress" "BOOL" "" "Show progress bars [default: on a terminal]";
    }
}

/// The command with its flags.
pub fn command() -> clap::Command {
    let names = Scenario::ALL.map(Scenario::as_str);
    let scenario = Arg::new("scenario")
        .value_name("SCENARIO")
        .default_value("stream")
        .value_parser(PossibleValuesParser::new(names))
        .help("What is done");
    let flags = FLAGS.iter().map(|Flag { name, value, default, help, heading }| {
        let default = if default.is_empty() { String::new() } else { format!(" [default: {default}]") };
        let arg = Arg::new(*name).long(*name).value_name(*value).help(format!("{help}{default}"));
        let arg = arg.help_heading(*heading).allow_negative_numbers(true).action(ArgAction::Append);
        if *value == "BOOL" { arg.num_args(0..=1).default_missing_value("true") } else { arg }
    });
    let figures = FIGURES
        .iter()
        .fold(String::new(), |text, figure| format!("{text}\n  {:<24} {}", figure.name, figure.meaning));
    let scenarios = Scenario::ALL.iter().fold(String::new(), |text, scenario| {
        format!("{text}\n  {:<10} {}", scenario.as_str(), scenario.meaning())
    });
    clap::Command::new("loadtest")
        .about("Measure running instances: latency from the scheduled send time, drops, CPU, memory")
        .after_help(format!(
            "Scenarios:{scenarios}\n\nFigures of --assert and --json (times need a unit: us, ms, s):{figures}\n\n\
             Exit codes: 0; 1 when a demand of --assert is broken or the run failed; 2 for a bad command line.\n\
             Instances limit handshakes for each address: start them with --handshakes-per-second-per-ip 0."
        ))
        .next_line_help(true)
        .disable_help_flag(true)
        .arg(scenario)
        .args(flags)
        .arg(Arg::new("help").short('h').long("help").action(ArgAction::Help).help("Print this").help_heading("Help"))
}

/// What was given, and the mistakes in it.
struct Given<'a> {
    matches: &'a ArgMatches,
    mistakes: Vec<Mistake>,
}

impl Given<'_> {
    fn mistake(&mut self, name: &str, problem: impl Into<String>) {
        self.mistakes.push(Mistake { setting: format!("--{name}"), problem: problem.into() });
    }

    /// The last value, or the default.
    fn text(&self, name: &str) -> Option<String> {
        let given = self.matches.get_many::<String>(name).and_then(|mut values| values.next_back());
        let default = || FLAGS.iter().find(|flag| flag.name == name).map_or("", |flag| flag.default);
        let text = given.map_or_else(default, String::as_str).trim();
        (!text.is_empty()).then(|| text.to_owned())
    }

    /// The checked value; `None` when nothing was given or after a mistake.
    fn checked<T>(&mut self, name: &str, check: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        check(&self.text(name)?).map_err(|problem| self.mistake(name, problem)).ok()
    }

    /// Every value, split at commas; the default when there is none.
    fn checked_list<T>(&mut self, name: &str, check: impl Fn(&str) -> Result<T, String>) -> Vec<T> {
        let given = self.matches.get_many::<String>(name).into_iter().flatten().cloned().collect::<Vec<_>>();
        let all = Some(given.join(",")).filter(|text| !text.replace(',', "").trim().is_empty());
        let all = all.or_else(|| self.text(name)).unwrap_or_default();
        let parts = all.split(',').map(str::trim).filter(|part| !part.is_empty());
        let checked =
            parts.filter_map(|part| check(part).map_err(|problem| self.mistake(name, problem)).ok());
        checked.collect()
    }
}

/// Reads the flags.
///
/// # Errors
/// Every mistake in them.
pub fn read(matches: &ArgMatches) -> Result<LoadOptions, Vec<Mistake>> {
    let mut given = Given { matches, mistakes: Vec::new() };
    let options = read_all(&mut given);
    match options {
        Some(options) if given.mistakes.is_empty() => Ok(options),
        _ => Err(given.mistakes),
    }
}

fn read_all(given: &mut Given<'_>) -> Option<LoadOptions> {
    let scenario = given
        .matches
        .get_one::<String>("scenario")
        .and_then(|name| Scenario::ALL.into_iter().find(|s| s.as_str() == name))?;
    let mut urls = given.checked_list("url", |text| url(text, &["ws", "wss"]));
    let through = given.checked("through", |text| url(text, &["ws", "wss"]));
    let metrics = given.checked_list("metrics", |text| url(text, &["http", "https"]));
    let redis = given.checked("redis-url", check_redis_url);
    let sources: Vec<IpAddr> = given.checked_list("source", sources).concat();
    let users = given.checked("users", number(1, 1_000_000));
    let fps = given.checked("fps", |text| match text.parse::<f64>() {
        Ok(fps) if (0.01..=1000.0).contains(&fps) => Ok(fps),
        _ => Err(format!("must be a number from 0.01 to 1000, but is {text:?}")),
    });
    let frame_bytes = given.checked("frame-bytes", number(LoadOptions::SMALLEST_FRAME, 1 << 24));
    let streams = streams(given, scenario);
    let directions =
        [("both", Direction::Both), ("to-mobile", Direction::ToMobile), ("to-desktop", Direction::ToDesktop)];
    let direction = given.checked("direction", |text| named(text, &directions));
    let direction = direction.unwrap_or(match scenario {
        Scenario::Slow => Direction::ToMobile,
        _ => Direction::Both,
    });
    let places = [("cross", Placement::Cross), ("same", Placement::Same), ("mixed", Placement::Mixed)];
    let placement = given.checked("placement", |text| named(text, &places));
    let longer = |time: Duration| (!time.is_zero()).then_some(time);
    let duration = given.checked("duration", |text| {
        longer(time(text)?).ok_or_else(|| "must be longer than nothing".to_owned())
    });
    let warmup = given.checked("warmup", time);
    let connect_rate = given.checked("connect-rate", number(1, 1_000_000));
    let rate = given.checked("rate", number(1, 1_000_000));
    let link_rate = given.checked("link", number(0, 1 << 30));
    let receive_buffer = given.checked("receive-buffer", number(1, 1 << 30));
    let maxseg = given.checked("maxseg", number(88, 32767));
    let no_reports = given.checked("no-reports", truth);
    let roll_command = given.text("roll-command");
    let tokens = tokens(given, urls.first());
    if through.is_some() && scenario != Scenario::Slow {
        given.mistake("through", "is only for slow");
    }
    urls.extend(through.clone());
    let user_prefix = given.checked("user-prefix", |text| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
        if text.len() <= 32 && text.chars().all(plain) {
            Ok(text.to_owned())
        } else {
            Err(format!("must be at most 32 of A-Z a-z 0-9 - _, but is {text:?}"))
        }
    });
    let json = given.text("json").map(|text| match text.as_str() {
        "-" => Output::Stdout,
        path => Output::File(PathBuf::from(path)),
    });
    let report = given.text("report").map(PathBuf::from);
    let assertions = given.checked_list("assert", Assertion::parse);
    let threads = given.checked("threads", number(1, 256));
    let progress = given.checked("progress", truth);
    let (frame_bytes, fps, streams) = (frame_bytes?, fps?, streams?);
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "bytes a second, rounded"
    )]
    let half = ((frame_bytes * streams.0.len()) as f64 * fps / 2.0).max(1.0) as usize;
    Some(LoadOptions {
        scenario,
        urls,
        through,
        metrics,
        sources_of_figures: Vec::new(),
        dialect: &V1,
        redis,
        sources,
        users: users?,
        fps,
        frame_bytes,
        streams,
        direction,
        placement: placement?,
        duration: duration?,
        warmup: warmup?,
        connect_rate: connect_rate?,
        rate: rate?,
        link: Link { bytes_per_second: link_rate.unwrap_or(half), receive_buffer: receive_buffer?, maxseg },
        reports: !no_reports?,
        roll_command,
        tokens: tokens?,
        user_prefix: user_prefix?,
        json,
        report,
        assertions,
        threads: threads?,
        progress,
    })
}

fn streams(given: &mut Given<'_>, scenario: Scenario) -> Option<StreamSet> {
    let before = given.mistakes.len();
    let mut ids = given.checked_list("stream", |text| {
        let id = match text.strip_prefix("0x") {
            Some(hex) => u8::from_str_radix(hex, 16),
            None => text.parse(),
        };
        id.map_err(|_| format!("must be stream ids from 0 to 255 or 0x00 to 0xff, but is {text:?}"))
    });
    if given.mistakes.len() > before {
        return None;
    }
    if ids.is_empty() {
        ids = match scenario {
            Scenario::Rolling => vec![1, 0x80],
            _ => vec![1],
        };
    }
    ids.sort_unstable();
    ids.dedup();
    Some(StreamSet(ids))
}

fn tokens(given: &mut Given<'_>, first: Option<&Url>) -> Option<TokenSource> {
    let before = given.mistakes.len();
    let mut sources = Vec::new();
    let demo = |text: &str| match text.strip_prefix("demo:") {
        Some(rest) => url(rest, &["http", "https"]),
        None => Err(format!("must be demo:URL, such as demo:http://127.0.0.1:3000, but is {text:?}")),
    };
    sources.extend(given.checked("tokens", demo).map(TokenSource::Demo));
    let emulator = given.checked("emulator", |text| url(text, &["http", "https"]));
    sources.extend(emulator.map(TokenSource::Emulator));
    sources.extend(given.text("token-command").map(TokenSource::Command));
    let (issuer, audience, kid) = (given.text("issuer"), given.text("audience"), given.text("kid"));
    match given.text("signing-key") {
        Some(path) => {
            let (Some(issuer), Some(audience), Some(kid)) = (issuer, audience, kid) else {
                given.mistake("signing-key", "needs --issuer, --audience and --kid beside it");
                return None;
            };
            sources.push(TokenSource::SigningKey { path: path.into(), issuer, audience, kid });
        }
        None => {
            for (name, value) in [("issuer", issuer), ("audience", audience), ("kid", kid)] {
                if value.is_some() {
                    given.mistake(name, "is only for --signing-key");
                }
            }
        }
    }
    if given.mistakes.len() > before {
        return None;
    }
    if sources.len() > 1 {
        given.mistake("tokens", "only one of --tokens, --signing-key, --emulator and --token-command");
        return None;
    }
    if let Some(source) = sources.pop() {
        return Some(source);
    }
    let mut origin = first?.clone();
    let scheme = if origin.scheme() == "wss" { "https" } else { "http" };
    origin.set_scheme(scheme).ok()?;
    Some(TokenSource::Demo(origin))
}

fn url(text: &str, schemes: &[&str]) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|error| format!("{text:?} is not a URL ({error})"))?;
    if !schemes.contains(&url.scheme()) || url.host_str().is_none_or(str::is_empty) {
        return Err(format!("{text:?} must be {}://HOST…", schemes.join(":// or ")));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("must not hold a user or a password".to_owned());
    }
    Ok(url)
}

/// An address, or the addresses of a network.
fn sources(text: &str) -> Result<Vec<IpAddr>, String> {
    if let Ok(address) = text.parse() {
        return Ok(vec![address]);
    }
    match text.parse::<IpNet>() {
        Ok(network) => Ok(network.hosts().take(4096).collect()),
        Err(_) => Err(format!("{text:?} is neither an address nor a network")),
    }
}

fn number(least: usize, most: usize) -> impl Fn(&str) -> Result<usize, String> {
    move |text| {
        text.replace('_', "")
            .parse()
            .ok()
            .filter(|number| (least..=most).contains(number))
            .ok_or_else(|| format!("must be a whole number from {least} to {most}, but is {text:?}"))
    }
}

fn named<T: Copy>(text: &str, names: &[(&str, T)]) -> Result<T, String> {
    names.iter().find(|(name, _)| *name == text).map(|(_, value)| *value).ok_or_else(|| {
        let names: Vec<_> = names.iter().map(|(name, _)| *name).collect();
        format!("must be one of {}, but is {text:?}", names.join(", "))
    })
}

/// `20s`, `500ms`, `1.5m`, `1h`.
fn time(text: &str) -> Result<Duration, String> {
    let end = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let units = [("ms", 0.001), ("s", 1.0), ("m", 60.0), ("min", 60.0), ("h", 3600.0)];
    let factor = units.iter().find(|(name, _)| *name == unit).map(|(_, factor)| *factor);
    let seconds = number.trim().parse::<f64>().ok().zip(factor).map(|(number, factor)| number * factor);
    let time = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    time.filter(|time| *time <= Duration::from_secs(7 * 86_400))
        .ok_or_else(|| format!("must be a time such as 500ms, 20s, 5m or 1h, but is {text:?}"))
}

/// So that the URL's password shows up nowhere.
pub(super) type RedisUrl = SecretString;
