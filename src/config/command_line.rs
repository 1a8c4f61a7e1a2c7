//! The command line: which command, which flags. Values stay text, so that one bad value does not
//! hide the next; clap only sees unknown flags, `--help` and `--version`.

use std::collections::BTreeMap;
use std::ffi::OsString;

use clap::builder::Styles;
use clap::builder::styling::AnsiColor;
use clap::{Arg, ArgAction, ArgMatches};

use super::Additions;
use super::table::{ALL, Fallback, LISTEN, PORT, REDIS_URL, Setting};

/// The command that is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Name {
    /// `duorelay serve`: the relay.
    Serve,
    /// `duorelay demo`: the relay with its own sign-in and page.
    Demo,
    /// `duorelay health`: one health check.
    Health {
        /// Which health check is asked for.
        path: &'static str,
    },
    /// A command that has settings of its own.
    Other,
}

/// The settings that name the address of a health check.
static HEALTH: [&Setting; 2] = [&PORT, &LISTEN];

/// Values of flags, by their setting's variable.
pub(super) type Flags = BTreeMap<&'static str, String>;

/// Which command is asked for, and what was given to it.
pub(super) fn parse(
    arguments: impl IntoIterator<Item = OsString>,
    additions: Additions,
) -> Result<(Name, ArgMatches), clap::Error> {
    let mut arguments: Vec<OsString> = arguments.into_iter().collect();
    let first = arguments.get(1).and_then(|first| first.to_str()).unwrap_or("-");
    if first.starts_with('-') && !["-h", "--help", "-V", "--version"].contains(&first) {
        arguments.insert(1.min(arguments.len()), "serve".into());
    }
    let mut matches =
        program(additions.demo).subcommands(additions.commands).try_get_matches_from(arguments)?;
    let Some((command, given)) = matches.remove_subcommand() else {
        return Ok((Name::Serve, matches));
    };
    let name = match command.as_str() {
        "serve" => Name::Serve,
        "demo" => Name::Demo,
        "health" if given.get_flag("ready") => Name::Health { path: "/healthz/ready" },
        "health" => Name::Health { path: "/healthz/live" },
        _ => Name::Other,
    };
    Ok((name, given))
}

/// The flags that were given, of those that the command has.
pub(super) fn flags(given: &ArgMatches) -> Flags {
    let of = |setting: &&Setting| {
        let value = given.try_get_one::<String>(setting.flag).ok()??;
        Some((setting.variable, value.clone()))
    };
    ALL.iter().filter_map(of).collect()
}

fn program(of_demo: Vec<Arg>) -> clap::Command {
    let styles = Styles::styled()
        .header(AnsiColor::Green.on_default().bold())
        .usage(AnsiColor::Green.on_default().bold())
        .literal(AnsiColor::Cyan.on_default().bold())
        .placeholder(AnsiColor::Cyan.on_default());
    let ready = Arg::new("ready").long("ready").action(ArgAction::SetTrue);
    clap::Command::new("duorelay")
        .version(env!("CARGO_PKG_VERSION"))
        .about("A private two-device WebSocket relay: one user's phone and desktop stream to each other")
        .after_help(
            "Without a command, `serve` is meant. `duorelay COMMAND --help` lists a command's settings.",
        )
        .styles(styles)
        .max_term_width(110)
        .disable_help_subcommand(true)
        .subcommand(command("serve", ALL.iter().copied()).about("Run one instance of the relay").after_help(
            "A flag wins over its variable, and an empty value counts as not given.\n\
                     Who may sign in has no default: set FIREBASE_PROJECT_ID or DUORELAY_ISSUER.",
        ))
        .subcommand(
            command("demo", ALL.iter().copied().filter(|setting| setting.group.is_for_demo()))
                .about("Try it out: one instance with its own sign-in and a page for desktop and phone")
                // Not by its variable, which may name a real Redis.
                .arg(flag(&REDIS_URL).help("Join other demos over this Redis [default: one instance alone]"))
                .args(of_demo)
                .after_help("For development only: anyone who reaches the port can sign in."),
        )
        .subcommand(
            command("health", HEALTH.into_iter())
                .about("Ask the instance on this machine whether it works: exit code 0 or 1")
                .arg(ready.help("Ask whether clients may be sent to it, not only whether it lives")),
        )
}

fn command(name: &'static str, settings: impl Iterator<Item = &'static Setting>) -> clap::Command {
    let help = Arg::new("help").short('h').long("help").action(ArgAction::Help).help("Print this");
    clap::Command::new(name)
        .next_line_help(true)
        .args_override_self(true)
        .disable_help_flag(true)
        .args(settings.map(flag))
        .arg(help.help_heading("Help"))
}

fn flag(setting: &Setting) -> Arg {
    let default = match setting.fallback {
        Fallback::Value(text) | Fallback::Words(text) => format!(" [default: {text}]"),
        Fallback::Nothing => String::new(),
    };
    let arg = Arg::new(setting.flag)
        .long(setting.flag)
        .value_name(setting.value_name)
        .help(format!("{}{default} [env: {}]", setting.help, setting.variable))
        .help_heading(setting.group.heading())
        .allow_negative_numbers(true);
    if setting.value_name == "BOOL" { arg.num_args(0..=1).default_missing_value("true") } else { arg }
}
