//! This process, read when asked, under the names that Prometheus's own clients use
//! (<https://prometheus.io/docs/instrumenting/writing_clientlibs/#process-metrics>).

use std::fmt::Error;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeGaugeValue, EncodeMetric as _};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;
use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};

/// `process_…`: CPU, memory, threads, open files and their limit, the start.
#[derive(Debug)]
pub(super) struct Process {
    /// When the process started, in Unix seconds.
    started: f64,
}

impl Process {
    /// To be made when the process starts.
    pub(super) fn starting_now() -> Self {
        Self { started: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64() }
    }
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let cpu = ConstCounter::new(cpu_seconds());
        let help = "User and system CPU time spent.";
        let kind = cpu.metric_type();
        cpu.encode(encoder.encode_descriptor("process_cpu", help, Some(&Unit::Seconds), kind)?)?;
        let (seconds, bytes) = (Some(&Unit::Seconds), Some(&Unit::Bytes));
        gauge(
            &mut encoder,
            "process_start_time",
            "Start of the process since the Unix epoch.",
            seconds,
            self.started,
        )?;
        // Unlimited, it is left out.
        if let Some(limit) = getrlimit(Resource::Nofile).current {
            gauge(&mut encoder, "process_max_fds", "Most files that may be open.", None, limit)?;
        }
        // Systems without /proc have no such metrics.
        if let Some(open) = open_files() {
            gauge(&mut encoder, "process_open_fds", "Files that are open.", None, open)?;
        }
        if let Some(threads) = threads() {
            gauge(&mut encoder, "process_threads", "Threads.", None, threads)?;
        }
        if let Some([virtual_bytes, resident_bytes]) = memory() {
            gauge(&mut encoder, "process_virtual_memory", "Virtual memory size.", bytes, virtual_bytes)?;
            gauge(&mut encoder, "process_resident_memory", "Resident memory size.", bytes, resident_bytes)?;
        }
        Ok(())
    }
}

fn gauge(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    unit: Option<&Unit>,
    value: impl EncodeGaugeValue,
) -> Result<(), Error> {
    let gauge = ConstGauge::new(value);
    let kind = gauge.metric_type();
    gauge.encode(encoder.encode_descriptor(name, help, unit, kind)?)
}

/// Of all threads, those that ended included.
#[expect(clippy::cast_precision_loss, reason = "seconds and nanoseconds are below 2^52")]
fn cpu_seconds() -> f64 {
    let spent = clock_gettime(ClockId::ProcessCPUTime);
    spent.tv_sec as f64 + spent.tv_nsec as f64 / 1e9
}

/// The size of `/proc/self/fd`. Since Linux 6.2 that is the number of open files. Before, it is 0, and the
/// files are counted, which takes some 50 ms for 100,000 of them.
fn open_files() -> Option<u64> {
    match std::fs::metadata("/proc/self/fd").ok()?.len() {
        0 => Some(std::fs::read_dir("/proc/self/fd").ok()?.count() as u64),
        open => Some(open),
    }
}

/// The 20th number of `/proc/self/stat` (proc(5)); the second, the program's name, can hold anything.
fn threads() -> Option<u64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(17)?.parse().ok()
}

/// The first two numbers of `/proc/self/statm`, in pages (proc(5)).
fn memory() -> Option<[u64; 2]> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let mut pages = statm.split_ascii_whitespace().map(str::parse::<u64>);
    let [size, resident] = [pages.next()?.ok()?, pages.next()?.ok()?];
    Some([size, resident].map(|pages| pages * rustix::param::page_size() as u64))
}
