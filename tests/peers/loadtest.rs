//! `duorelay loadtest` for servers that are no relay: it speaks Socket.IO, too, and reads CPU and memory of processes.

#![allow(unreachable_pub, reason = "tests/loadtest shares a file")]

mod socket_io;

use std::io::Write as _;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Arg, ArgAction, value_parser};
use duorelay::loadtest::{self, Instance, Source, settings};

use self::socket_io::SocketIo;

/// A process of this machine, as Linux shows it.
#[derive(Debug)]
struct Process(u32);

impl Source for Process {
    fn name(&self) -> String {
        format!("process {}", self.0)
    }

    fn read(&self) -> Option<Instance> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0)).ok()?;
        let statm = std::fs::read_to_string(format!("/proc/{}/statm", self.0)).ok()?;
        let pages: f64 = statm.split_whitespace().nth(1)?.parse().ok()?;
        #[expect(clippy::cast_precision_loss, reason = "both are small")]
        let (ticks_per_second, page) =
            (rustix::param::clock_ticks_per_second() as f64, rustix::param::page_size() as f64);
        // `utime` and `stime`, in clock ticks (proc(5)). The name before them may hold anything, `)` too.
        let (_, after_name) = stat.rsplit_once(')')?;
        let ticks = after_name.split_whitespace().skip(11).take(2).map(str::parse::<f64>);
        let ticks: Vec<f64> = ticks.collect::<Result<_, _>>().ok()?;
        let cpu = (ticks.len() == 2).then(|| ticks.iter().sum::<f64>() / ticks_per_second);
        Some(Instance { cpu: Some(cpu?), rss: Some(pages * page), ..Instance::default() })
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let dialect = Arg::new("dialect")
        .long("dialect")
        .value_parser(["v1", "socket.io"])
        .default_value("v1")
        .help("socket.io: binary events `f`, `ping` and `pong`, `overwritten`");
    let process = Arg::new("process")
        .long("process")
        .action(ArgAction::Append)
        .value_parser(value_parser!(u32))
        .help("Read CPU and memory of this process; repeatable");
    let given = settings::command().arg(dialect).arg(process).get_matches();
    let mut options = match settings::read(&given) {
        Ok(options) => options,
        Err(mistakes) => {
            for mistake in mistakes {
                let _ = writeln!(std::io::stderr(), "{mistake}");
            }
            return ExitCode::from(2);
        }
    };
    if given.get_one::<String>("dialect").is_some_and(|name| name == "socket.io") {
        options.dialect = &SocketIo;
    }
    let processes = given.get_many::<u32>("process").into_iter().flatten();
    options.sources_of_figures = processes.map(|pid| Arc::new(Process(*pid)) as Arc<dyn Source>).collect();
    loadtest::main(options).await
}
