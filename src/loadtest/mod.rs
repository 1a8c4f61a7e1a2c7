//! `duorelay loadtest`: measures running instances from outside.
//!
//! It is an open loop: frames leave by the clock, whatever became of the ones before, and latency counts
//! from the instant at which a frame was due. A generator that cannot keep up so shows in its own figure,
//! `lag_p99`, and is not taken for a fast relay (Gil Tene's "coordinated omission").
//!
//! One thread plays all users unless more are asked for: the generator shares the machine with what it
//! measures. Its pacer writes straight to the sockets; a task for each socket only reads.

mod alarm;
mod connect;
pub mod dialect;
mod frame;
mod progress;
mod report;
mod result;
mod scenario;
pub mod settings;
mod shard;
mod socket;
mod source;
mod tally;
mod tokens;
mod watch;

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use tokio::sync::{mpsc, watch as signal};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use self::connect::Target;
use self::progress::Progress;
use self::report::Report;
use self::result::{Results, judge};
use self::settings::{LoadOptions, Output, Placement, Scenario};
use self::shard::{Event, Phase, Plan, User};
pub use self::source::{Instance, Source};
use self::tokens::mint;
use self::watch::{Reading, Watch};
use crate::host::open_files::raise_limit;

/// Between "all are connected" and the first frame.
const RUN_UP: Duration = Duration::from_millis(100);

/// Why nothing was measured.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A URL leads nowhere.
    #[error("--url {url}: {problem}")]
    Target {
        /// As it was given to `--url` or `--through`.
        url: String,
        /// The resolver's words, or the parser's.
        problem: String,
    },
    /// There are no tokens.
    #[error("no tokens: {0}")]
    Tokens(String),
    /// Metrics or Redis's figures cannot be read.
    #[error("{who}: {problem}")]
    Watch {
        /// The instance's authority, or Redis.
        who: String,
        /// Its answer, or the error of the connection.
        problem: String,
    },
    /// Nobody got a connection.
    #[error("nobody could connect: {0}")]
    NobodyConnected(String),
    /// A result cannot be written.
    #[error("{}: {error}", path.display())]
    Write {
        /// The path of `--json` or `--report`.
        path: PathBuf,
        /// The system's error.
        error: io::Error,
    },
    /// A thread or a terminal cannot be had.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Ctrl-C before anything was measured.
    #[error("interrupted before anything was measured")]
    Interrupted,
}

/// Runs the load test and prints its results. Exit code 1: a demand is broken, or nothing was measured.
pub async fn main(options: LoadOptions) -> ExitCode {
    match run(options).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            // Where nothing can be printed, the exit code still says it.
            let _ = writeln!(io::stderr(), "error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// True when all demands hold.
async fn run(options: LoadOptions) -> Result<bool, LoadError> {
    let mut progress = Progress::new(&options);
    progress.say(&announcement(&options, open_files(&options)));
    let mut interrupted = std::pin::pin!(tokio::signal::ctrl_c());
    let prepare = async {
        let mut targets = Vec::new();
        for url in &options.urls {
            targets.push(Target::resolve(url).await?);
        }
        progress.begin("signing in", options.users);
        let tokens = mint(&options, |count| progress.at(count)).await?;
        let (watch, before) = Watch::start(&options).await?;
        Ok::<_, LoadError>((targets, tokens, watch, before))
    };
    let (targets, tokens, watch, before) = tokio::select! {
        prepared = prepare => prepared?,
        _ = &mut interrupted => return Err(LoadError::Interrupted),
    };
    let plan = Arc::new(Plan { options, targets, run: fastrand::u32(..), epoch: Instant::now() });
    let mut run = Run::start(&plan, &tokens, before)?;
    let started = SystemTime::now();
    tokio::select! {
        () = run.connect(&plan.options, &progress) => {}
        _ = &mut interrupted => run.stop(),
    }
    if run.results.total.welcomed == 0
        && plan.options.scenario != Scenario::Storm
        && plan.options.scenario != Scenario::Overwrite
    {
        let total = &run.results.total;
        let reasons = total.refused.keys().chain(total.failed.keys()).cloned().collect::<Vec<_>>();
        run.stop();
        return Err(LoadError::NobodyConnected(reasons.join(", ")));
    }
    progress.begin_measuring();
    let watch = Arc::new(watch);
    let measured = tokio::select! {
        measured = run.measure(&plan.options, &watch, &progress) => measured,
        _ = &mut interrupted => run.stop_and_collect(&plan.options, &watch).await,
    };
    progress.end();
    run.join();
    let Run { mut results, interrupted, .. } = run;
    results.finish(plan.options.scenario);
    let figures = results.figures(&plan.options, measured);
    let verdicts = judge(&plan.options.assertions, &figures);
    let holds = verdicts.iter().all(|verdict| verdict.holds);
    let report = Report {
        options: &plan.options,
        started,
        measured,
        interrupted,
        results: &results,
        figures,
        verdicts,
    };
    write_all(&report)?;
    Ok(holds)
}

fn write_all(report: &Report<'_>) -> Result<(), LoadError> {
    let write = |path: &PathBuf, text: String| {
        std::fs::write(path, text).map_err(|error| LoadError::Write { path: path.clone(), error })
    };
    let table = report::table::text(report);
    match &report.options.json {
        Some(Output::Stdout) => {
            write!(io::stderr(), "{table}")?;
            writeln!(io::stdout(), "{}", report::json::text(report))?;
        }
        Some(Output::File(path)) => {
            write!(io::stdout(), "{table}")?;
            write(path, report::json::text(report))?;
        }
        None => write!(io::stdout(), "{table}")?,
    }
    if let Some(path) = &report.options.report {
        write(path, report::html::text(report))?;
    }
    Ok(())
}

/// The limit of open files, raised as far as it goes, if it is too low.
fn open_files(options: &LoadOptions) -> Option<u64> {
    raise_limit().filter(|most| *most < options.users as u64 * 2 + 64)
}

/// What will be done, for a person who may want to stop it.
fn announcement(options: &LoadOptions, too_few_files: Option<u64>) -> String {
    let LoadOptions { scenario, users, fps, frame_bytes, duration, warmup, rate, .. } = options;
    let urls: Vec<_> = options.urls.iter().map(ToString::to_string).collect();
    let streams = options.streams.0.len();
    let what = match scenario {
        Scenario::Stream | Scenario::Slow | Scenario::Rolling => format!(
            "{users} users (up to {} connections), {fps} frames a second of {frame_bytes} bytes from each sender on {streams} stream{}",
            users * 2,
            if streams == 1 { "" } else { "s" },
        ),
        Scenario::Idle => format!("{users} users ({} silent connections)", users * 2),
        Scenario::Storm => format!("{rate} handshakes a second by {users} users"),
        Scenario::Overwrite => {
            format!("{users} users, {rate} takeovers a second, then two at the same instant")
        }
    };
    let mut text = format!(
        "duorelay loadtest {}: {what}\n  against {}\n  for {duration:?} after a warm-up of {warmup:?}",
        scenario.as_str(),
        urls.join(", "),
    );
    if options.placement != Placement::Same
        && urls.len() < 2
        && (scenario.streams() || *scenario == Scenario::Overwrite)
    {
        text.push_str("\n  note: with one --url where a user's two sockets are is up to what answers there");
    }
    if let Some(most) = too_few_files {
        text.push_str(&format!(
            "\n  note: this process may open only {most} files (ulimit -n); use several processes with their own --user-prefix"
        ));
    }
    text
}

/// The threads, and the channel of their reports.
struct Run {
    threads: Vec<JoinHandle<()>>,
    phase: signal::Sender<Phase>,
    events: mpsc::Receiver<Event>,
    results: Results,
    begin: Option<Instant>,
    interrupted: bool,
}

impl Run {
    fn start(plan: &Arc<Plan>, tokens: &[Arc<str>], before: Reading) -> Result<Self, LoadError> {
        let (phase, phases) = signal::channel(Phase::Connecting);
        let (reports, events) = mpsc::channel(64);
        let count = plan.options.threads;
        let mut shares: Vec<Vec<User>> = vec![Vec::new(); count];
        for (number, token) in (0_u32..).zip(tokens) {
            if let Some(share) = shares.get_mut(number as usize % count) {
                share.push(User { number, token: token.clone().into() });
            }
        }
        let mut threads = Vec::new();
        for (index, users) in shares.into_iter().enumerate() {
            threads.push(scenario::start(plan.clone(), index, users, phases.clone(), reports.clone())?);
        }
        let results = Results::after(before);
        Ok(Self { threads, phase, events, results, begin: None, interrupted: false })
    }

    fn take(&mut self, event: Event, options: &LoadOptions) {
        match event {
            Event::Before(tally) => self.results.before(&tally),
            Event::Second(second, tally) => self.results.second(second, &tally, options),
            Event::Ready => {}
        }
    }

    /// Until all are connected, as far as they can be.
    async fn connect(&mut self, options: &LoadOptions, progress: &Progress) {
        progress.begin("connecting", options.users * 2);
        let mut ready = 0;
        while ready < self.threads.len()
            && let Some(event) = self.events.recv().await
        {
            ready += usize::from(matches!(event, Event::Ready));
            self.take(event, options);
            progress.at(usize::try_from(self.results.total.welcomed).unwrap_or(0));
        }
    }

    /// Starts everything at once, reads what the instances say, and ends when the threads do.
    async fn measure(&mut self, options: &LoadOptions, watch: &Arc<Watch>, progress: &Progress) -> Duration {
        let start = Instant::now() + RUN_UP;
        let begin = start + options.warmup;
        let end = begin + options.duration;
        if !self.interrupted {
            self.phase.send_replace(Phase::Running(start));
            self.begin = Some(begin);
        }
        let mut due = Some(begin);
        let mut asking = JoinSet::new();
        let mut rolling = options.roll_command.as_ref().filter(|_| options.scenario == Scenario::Rolling);
        loop {
            tokio::select! {
                event = self.events.recv() => match event {
                    Some(event) => self.take(event, options),
                    None => break,
                },
                () = sleep_until(due.unwrap_or(end)), if due.is_some() => {
                    let at = due.unwrap_or(end);
                    ask(&mut asking, watch, begin, at);
                    due = (at < end).then(|| end.min(at + Duration::from_secs(1)));
                    if let Some(command) = rolling.take() {
                        roll(command);
                    }
                }
                Some(Ok(reading)) = asking.join_next() => self.results.readings.push(reading),
            }
            progress.measuring(Instant::now().saturating_duration_since(begin), &self.results, options);
        }
        // A run that has no fixed end, or that was cut short, is read when it is over.
        if Instant::now() < end {
            ask(&mut asking, watch, begin, Instant::now());
        }
        let readings = asking.join_all().await;
        self.results.readings.extend(readings);
        Instant::now().min(end).saturating_duration_since(begin)
    }

    fn stop(&mut self) {
        self.interrupted = true;
        self.phase.send_replace(Phase::Stopping);
    }

    /// Ends the threads, and takes what they have counted.
    async fn stop_and_collect(&mut self, options: &LoadOptions, watch: &Arc<Watch>) -> Duration {
        let now = Instant::now();
        let measured = self.begin.map(|begin| now.saturating_duration_since(begin));
        if let Some(begin) = self.begin.filter(|begin| *begin < now) {
            let reading = watch.read_last().await;
            self.results.readings.push(((now - begin).as_secs_f64(), reading));
        }
        self.stop();
        while let Some(event) = self.events.recv().await {
            self.take(event, options);
        }
        measured.unwrap_or_default().min(options.duration)
    }

    fn join(&mut self) {
        for thread in self.threads.drain(..) {
            // A thread that panicked has said so.
            let _ = thread.join();
        }
    }
}

fn ask(asking: &mut JoinSet<(f64, Reading)>, watch: &Arc<Watch>, begin: Instant, at: Instant) {
    let watch = watch.clone();
    asking.spawn(async move {
        let reading = watch.read().await;
        (at.saturating_duration_since(begin).as_secs_f64(), reading)
    });
}

/// Starts the operator's command, which runs beside the measurement.
fn roll(command: &str) {
    let child =
        tokio::process::Command::new("sh").arg("-c").arg(command).stdin(std::process::Stdio::null()).spawn();
    if let Err(error) = child {
        let _ = writeln!(io::stderr(), "--roll-command: {error}");
    }
}
