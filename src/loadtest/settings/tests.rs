//! The load tester's command line.

use std::ffi::OsString;

use super::*;
use crate::config::{Additions, Command, Machine, Stop, load};
use crate::relay::ids::Device;

const MACHINE: Machine = Machine { terminal: false, cores: 1, ipv6: false, google: false };

fn load_on(arguments: &[&str]) -> Result<LoadOptions, Stop> {
    let arguments = ["duorelay", "loadtest"].iter().chain(arguments).map(OsString::from);
    // Settings of an instance in the environment are not the load tester's.
    let environment = [("PORT".into(), "not a port".into()), ("DUORELAY_WORKERS".into(), "x".into())];
    let additions = Additions { commands: vec![command()], ..Additions::default() };
    match load(arguments, environment, MACHINE, additions)?.command {
        Command::Other(given) => read(&given).map_err(Stop::Mistakes),
        other @ (Command::Serve(_) | Command::Demo(..) | Command::Health(_)) => panic!("{other:?}"),
    }
}

fn options(arguments: &[&str]) -> LoadOptions {
    load_on(arguments).unwrap()
}

fn mistakes(arguments: &[&str]) -> Vec<String> {
    let stop = load_on(arguments).unwrap_err();
    assert_eq!(stop.exit_code(), 2);
    let Stop::Mistakes(mistakes) = stop else { panic!("{stop}") };
    mistakes.iter().map(ToString::to_string).collect()
}

#[test]
fn without_flags_it_streams_against_a_demo_on_this_machine() {
    let options = options(&[]);
    assert_eq!(options.scenario, Scenario::Stream);
    assert_eq!(options.urls, [Url::parse("ws://127.0.0.1:3000/ws").unwrap()]);
    let url = options.demo_url().unwrap();
    assert_eq!((url.scheme(), url.host_str(), url.port()), ("http", Some("127.0.0.1"), Some(3000)));
    assert_eq!((options.users, options.frame_bytes, options.threads), (100, 300, 1));
    assert_eq!((options.duration, options.warmup), (Duration::from_secs(20), Duration::from_secs(2)));
    assert_eq!(options.streams, [1]);
}

#[test]
fn lists_are_repeated_flags_or_commas() {
    let options = options(&[
        "--url",
        "ws://a/ws,ws://b/ws",
        "--url=wss://c",
        "--stream",
        "0x81,1",
        "--stream",
        "1",
        "--source",
        "127.0.0.1,127.0.0.8/30",
        "--assert",
        "p99<1ms,lost=0",
        "--assert",
        "max<1s",
    ]);
    let hosts: Vec<_> = options.urls.iter().filter_map(Url::host_str).collect();
    assert_eq!(hosts, ["a", "b", "c"]);
    assert_eq!(options.streams, [1, 0x81]);
    let sources: Vec<_> = options.sources.iter().map(ToString::to_string).collect();
    assert_eq!(sources, ["127.0.0.1", "127.0.0.9", "127.0.0.10"]);
    let demands: Vec<_> = options.assertions.iter().map(ToString::to_string).collect();
    assert_eq!(demands, ["p99<1ms", "lost=0", "max<1s"]);
}

#[test]
fn scenarios_have_their_own_defaults() {
    let slow = options(&["slow", "--fps", "30", "--frame-bytes", "300"]);
    assert_eq!(slow.direction, Direction::ToMobile);
    assert_eq!(Device::ALL.map(|device| slow.link_of(device)), [None, Some(4500)]);
    assert_eq!((slow.receive_buffer, slow.maxseg), (2304, None));
    let given = options(&["slow", "--link", "0", "--direction", "both"]);
    assert_eq!((given.link_of(Device::Mobile), given.direction), (Some(0), Direction::Both));
    assert_eq!(options(&["stream", "--link", "9"]).link_of(Device::Mobile), None);
    assert_eq!(options(&["rolling"]).streams, [1, 0x80]);
    assert_eq!(options(&["rolling", "--stream", "2"]).streams, [2]);
}

#[test]
fn every_source_of_tokens_can_be_named_once() {
    let key = ["--signing-key", "k.pem", "--issuer", "i", "--audience", "a", "--kid", "k"];
    assert_eq!(options(&key).signing_key.as_deref(), Some("k.pem"));
    assert!(options(&["--emulator", "http://127.0.0.1:9099"]).emulator.is_some());
    assert_eq!(options(&["--token-command", "./t"]).token_command.as_deref(), Some("./t"));
    let demo = options(&["--tokens", "demo:http://h:1", "--url", "wss://a/ws"]);
    assert_eq!(demo.demo_url().unwrap().as_str(), "http://h:1/");
    assert_eq!(options(&["--url", "wss://a/ws"]).demo_url().unwrap().as_str(), "https://a/ws");
    let refusal = |arguments: &[&str]| {
        let stop = load_on(arguments).unwrap_err();
        assert_eq!(stop.exit_code(), 2);
        let Stop::CommandLine(error) = stop else { panic!("{stop}") };
        error.render().to_string()
    };
    let both = refusal(&["--token-command", "./t", "--tokens", "demo:http://h:1"]);
    assert!(both.contains("cannot be used with") && both.contains("--tokens"), "{both}");
    let alone = refusal(&["--signing-key", "k.pem"]);
    assert!(["--issuer", "--audience", "--kid"].iter().all(|name| alone.contains(name)), "{alone}");
    assert!(refusal(&["--kid", "k"]).contains("--signing-key"));
}

#[test]
fn all_mistakes_are_reported_together() {
    let lines = mistakes(&[
        "--url",
        "http://a",
        "--users",
        "0",
        "--fps",
        "x",
        "--frame-bytes",
        "25",
        "--stream",
        "256",
        "--duration",
        "20",
        "--warmup",
        "1x",
        "--placement",
        "far",
        "--direction",
        "up",
        "--source",
        "h",
        "--assert",
        "p99<1",
        "--tokens",
        "http://a",
        "--threads",
        "0",
        "--redis-url",
        "http://x",
        "--user-prefix",
        "a b",
        "--progress=maybe",
    ]);
    let names: Vec<_> = lines.iter().map(|line| line.split(':').next().unwrap()).collect();
    for name in [
        "url",
        "users",
        "fps",
        "frame-bytes",
        "stream",
        "duration",
        "warmup",
        "placement",
        "direction",
        "source",
        "assert",
        "tokens",
        "threads",
        "redis-url",
        "user-prefix",
        "progress",
    ] {
        assert!(names.contains(&format!("--{name}").as_str()), "{name}: {lines:?}");
    }
    assert_eq!(lines.len(), 16, "{lines:?}");
}

#[test]
fn placement_spreads_users_over_all_instances() {
    let urls = "ws://a,ws://b,ws://c";
    let places = |placement| {
        let options = options(&["--url", urls, "--placement", placement]);
        let places = |user| Device::ALL.map(|device| options.place(user, device));
        (0..4).map(places).collect::<Vec<_>>()
    };
    assert_eq!(places("cross"), [[0, 1], [1, 2], [2, 0], [0, 1]]);
    assert_eq!(places("same"), [[0, 0], [1, 1], [2, 2], [0, 0]]);
    assert_eq!(places("mixed"), [[0, 0], [1, 2], [2, 2], [0, 1]]);
    assert_eq!(options(&["--placement", "cross"]).place(5, Device::Mobile), 0);
}

#[test]
fn help_lists_scenarios_figures_and_defaults() {
    let Err(Stop::CommandLine(help)) = load_on(&["--help"]) else { panic!() };
    let help = help.render().to_string();
    let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
    for scenario in Scenario::value_variants() {
        let value = scenario.to_possible_value().unwrap();
        let line = format!(" {} {}", value.get_name(), value.get_help().unwrap());
        assert!(help.contains(&line), "{line}");
    }
    for figure in FIGURES {
        assert!(help.contains(&format!(" {} {}", figure.name, figure.meaning)), "{}", figure.name);
    }
    assert!(help.contains("[default: ws://127.0.0.1:3000/ws]"));
}
