//! `duorelay loadtest`: measures running instances from outside.
//!
//! It is an open loop: frames leave by the clock, whatever became of the ones before. Latency counts from the
//! instant at which a frame was due. A generator that cannot keep up so shows in its own figure, `lag_p99`,
//! and is not taken for a fast relay (Gil Tene's "coordinated omission").
//!
//! One thread plays all users unless more are asked for: the generator shares the machine with what it
//! measures. Its pacer writes straight to the sockets; a task for each socket only reads.

mod alarm;
mod connect;
pub mod dialect;
mod figure;
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

use std::error::Error;
use std::io::{self, Write as _};
use std::process::ExitCode;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use tokio::sync::{mpsc, watch as signal};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use self::connect::{Target, User};
use self::progress::Progress;
use self::report::Report;
use self::result::Results;
use self::settings::{LoadOptions, Placement, Scenario};
use self::shard::{Event, Phase, Plan};
use self::source::Reading;
pub use self::source::{Instance, Source};
use self::tokens::mint;
use self::watch::Watch;
use crate::host::open_files::raise_limit;

/// Between "all are connected" and the first frame.
const RUN_UP: Duration = Duration::from_millis(100);

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
async fn run(options: LoadOptions) -> Result<bool, Box<dyn Error>> {
    let progress = Progress::new(&options);
    // The limit of open files is raised as far as it goes.
    let too_few_files = raise_limit().filter(|most| *most < options.users as u64 * 2 + 64);
    writeln!(io::stderr(), "{}", announcement(&options, too_few_files))?;
    let mut interrupted = std::pin::pin!(tokio::signal::ctrl_c());
    let prepare = async {
        let targets = options.urls.iter().map(Target::resolve).collect::<Result<_, _>>()?;
        progress.begin("signing in", options.users);
        let tokens = mint(&options, |count| progress.at(count)).await?;
        let (watch, before) = Watch::start(&options).await?;
        Ok::<_, Box<dyn Error>>((targets, tokens, Arc::new(watch), before))
    };
    let (targets, tokens, watch, before) = tokio::select! {
        prepared = prepare => prepared?,
        _ = &mut interrupted => return Err("interrupted before anything was measured".into()),
    };
    let plan = Arc::new(Plan { options, targets, run: fastrand::u32(..), epoch: Instant::now() });
    let options = &plan.options;
    let mut run = Run::start(&plan, &tokens, before)?;
    let started = SystemTime::now();
    tokio::select! {
        () = run.connect(options, &progress) => {}
        _ = &mut interrupted => run.stop(),
    }
    let total = &run.results.total;
    if total.welcomed == 0 && !matches!(options.scenario, Scenario::Storm | Scenario::Overwrite) {
        let reasons: Vec<_> = total.refused.keys().chain(total.failed.keys()).cloned().collect();
        run.stop();
        return Err(format!("nobody could connect: {}", reasons.join(", ")).into());
    }
    run.measure(options, &watch, &progress, interrupted).await;
    progress.end();
    let Run { threads, results, interrupted, .. } = run;
    // A thread that panicked has said so.
    threads.into_iter().for_each(|thread| drop(thread.join()));
    let figures = figure::figures(&results);
    let report = Report { options, started, interrupted, results: &results, figures };
    write_all(&report)?;
    Ok(report.verdicts().all(|(_, _, holds)| holds))
}

fn write_all(report: &Report<'_>) -> Result<(), Box<dyn Error>> {
    let write = |path, text| std::fs::write(path, text).map_err(|error| format!("{path}: {error}"));
    let (table, json) = (report::table::text(report), report::json::text(report));
    match report.options.json.as_deref() {
        Some("-") => {
            write!(io::stderr(), "{table}")?;
            writeln!(io::stdout(), "{json}")?;
        }
        path => {
            write!(io::stdout(), "{table}")?;
            path.map_or(Ok(()), |path| write(path, json))?;
        }
    }
    if let Some(path) = report.options.report.as_deref() {
        write(path, report::html::text(report)?)?;
    }
    Ok(())
}

/// What will be done, for a person who may want to stop it.
fn announcement(options: &LoadOptions, too_few_files: Option<u64>) -> String {
    let LoadOptions { scenario, users, fps, frame_bytes, duration, warmup, rate, .. } = options;
    let urls: Vec<_> = options.urls.iter().map(ToString::to_string).collect();
    let streams = options.streams.len();
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
        "duorelay loadtest {scenario}: {what}\n  against {}\n  for {duration:?} after a warm-up of {warmup:?}",
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
    interrupted: bool,
}

impl Run {
    fn start(plan: &Arc<Plan>, tokens: &[Arc<str>], before: Reading) -> io::Result<Self> {
        let (phase, phases) = signal::channel(Phase::Connecting);
        let (reports, events) = mpsc::channel(64);
        let start = |index| {
            let share = (0_u32..).zip(tokens).skip(index).step_by(plan.options.threads);
            let users = share.map(|(number, token)| User { number, token: token.clone().into() }).collect();
            scenario::start(plan.clone(), index, users, phases.clone(), reports.clone())
        };
        let threads = (0..plan.options.threads).map(start).collect::<io::Result<_>>()?;
        let (scenario, duration) = (plan.options.scenario, plan.options.duration);
        let results = Results { scenario, duration, before, ..Results::default() };
        Ok(Self { threads, phase, events, results, interrupted: false })
    }

    fn take(&mut self, event: Event) {
        if let Event::Counted(second, tally) = event {
            self.results.add(second, &tally);
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
            self.take(event);
            progress.at(usize::try_from(self.results.total.welcomed).unwrap_or(0));
        }
    }

    /// Starts everything at once, reads what the instances say, and ends when the threads do.
    async fn measure(
        &mut self,
        options: &LoadOptions,
        watch: &Arc<Watch>,
        progress: &Progress,
        mut interrupted: impl Future<Output = io::Result<()>> + Unpin,
    ) {
        progress.begin_measuring();
        let start = Instant::now() + RUN_UP;
        let begin = start + options.warmup;
        let mut end = begin + options.duration;
        let since_begin = move |at: Instant| at.saturating_duration_since(begin);
        if !self.interrupted {
            self.phase.send_replace(Phase::Running(start));
        }
        let mut due = Some(begin);
        let mut asking = JoinSet::new();
        let mut rolling = options.roll_command.as_ref().filter(|_| options.scenario == Scenario::Rolling);
        loop {
            tokio::select! {
                event = self.events.recv() => match event {
                    Some(event) => self.take(event),
                    None => break,
                },
                () = sleep_until(due.unwrap_or(end)), if due.is_some() => {
                    let at = due.unwrap_or(end);
                    let watch = watch.clone();
                    let tries = if at == begin || at == end { watch::TRIES } else { 1 };
                    asking.spawn(async move { watch.read(since_begin(at), tries).await });
                    due = (at < end).then(|| end.min(at + Duration::from_secs(1)));
                    if let Some(command) = rolling.take() {
                        roll(command);
                    }
                }
                Some(Ok(reading)) = asking.join_next() => self.results.readings.push(reading),
                _ = &mut interrupted, if !self.interrupted => {
                    (end, due) = (end.min(Instant::now()), None);
                    // The connections are still open.
                    self.read_last(watch, since_begin(end)).await;
                    self.stop();
                }
            }
            progress.measuring(since_begin(Instant::now()), &self.results);
        }
        self.results.readings.extend(asking.join_all().await);
        // A reading that answered late may come after the next one.
        self.results.readings.sort_by(|one, other| one.at.total_cmp(&other.at));
        // A run that has no fixed end is read when it is over.
        let over = end.min(Instant::now());
        if over < end && !self.interrupted {
            self.read_last(watch, since_begin(over)).await;
        }
        self.results.complete(0);
        self.results.measured = since_begin(over);
    }

    async fn read_last(&mut self, watch: &Watch, at: Duration) {
        if !at.is_zero() {
            self.results.readings.push(watch.read(at, watch::TRIES).await);
        }
    }

    fn stop(&mut self) {
        self.interrupted = true;
        self.phase.send_replace(Phase::Stopping);
    }
}

/// Starts the operator's command, which runs beside the measurement.
fn roll(command: &str) {
    let child =
        tokio::process::Command::new("sh").arg("-c").arg(command).stdin(std::process::Stdio::null()).spawn();
    if let Err(error) = child {
        let _ = writeln!(io::stderr(), "--roll-command: {error}");
    }
}
