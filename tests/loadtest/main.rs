//! The load tester against a real demo: its figures, its exit codes, its files.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::print_stderr, reason = "tests")]
#![allow(unreachable_pub, reason = "the support is shared with other test binaries")]

mod fleet;
#[path = "../peers/socket_io.rs"]
mod socket_io;
#[path = "../support/mod.rs"]
mod support;

use std::net::SocketAddr;
use std::process::{Output, Stdio};
use std::time::Duration;

use fleet::LINUX_KEEPS_OPEN;
use serde_json::Value;
use support::{free_address, request, within};
use tokio::process::{Child, Command};

/// Longer than any run here takes, on a busy machine, too.
const LIMIT: Duration = Duration::from_secs(60);

/// A demo process; killed when dropped.
struct Demo {
    _process: Child,
    public: SocketAddr,
    admin: SocketAddr,
}

impl Demo {
    async fn start() -> Self {
        let (public, admin) = (free_address(), free_address());
        let process = Command::new(env!("CARGO_BIN_EXE_duorelay"))
            .arg("demo")
            .env_clear()
            .env("DUORELAY_LISTEN", public.to_string())
            .env("DUORELAY_ADMIN_LISTEN", admin.to_string())
            .env("DUORELAY_HANDSHAKES_PER_SECOND_PER_IP", "0")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut pause = tokio::time::interval(Duration::from_millis(10));
        let ready = async {
            loop {
                pause.tick().await;
                let answer = request(public, "GET", "/healthz/ready", &[], b"").await;
                if answer.is_ok_and(|answer| answer.status == 200) {
                    break;
                }
            }
        };
        within(LIMIT, "the demo to be ready", ready).await;
        Self { _process: process, public, admin }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_duorelay"));
        command
            .arg("loadtest")
            .args(arguments)
            .arg(format!("--url=ws://{}/ws", self.public))
            .arg(format!("--metrics=http://{}/metrics", self.admin))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    async fn load(&self, arguments: &[&str]) -> Output {
        let run = self.command(arguments).output();
        within(LIMIT, "the load test", run).await.unwrap()
    }

    /// With `--json -`: standard output is JSON and nothing else.
    async fn figures(&self, arguments: &[&str]) -> (Value, Option<i32>) {
        let arguments: Vec<_> = arguments.iter().copied().chain(["--json=-"]).collect();
        let output = self.load(&arguments).await;
        let json = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
        (json, output.status.code())
    }
}

#[tokio::test]
async fn a_stream_is_measured_judged_and_reported() {
    let demo = Demo::start().await;
    let folder = tempfile::tempdir().unwrap();
    let report = folder.path().join("report.html");
    let report_flag = format!("--report={}", report.display());
    let (json, code) = demo
        .figures(&[
            "stream",
            "--users=5",
            "--duration=1s",
            "--warmup=200ms",
            "--stream=1,0x80",
            &report_flag,
            "--assert=lost=0,wrong_user=0,duplicates=0,out_of_order=0,p99<10s,delivered>=300",
        ])
        .await;
    assert_eq!(code, Some(0), "{json}");
    let figures = &json["figures"];
    // 5 users x 2 devices x 2 streams x 30 frames, each sent exactly when it is due.
    assert_eq!(figures["sent"], 600.0);
    assert_eq!(figures["connected"], 10.0);
    let arrived = figures["delivered"].as_f64().unwrap() + figures["superseded"].as_f64().unwrap();
    assert!((arrived - 600.0).abs() < 0.5, "{figures}");
    for name in ["p50", "p99", "max", "cpu_per_frame", "rss", "handshake_p99"] {
        assert!(figures[name].as_f64().unwrap() > 0.0, "{name}: {figures}");
    }
    assert_eq!(json["scenario"], "stream");
    assert_eq!(json["interrupted"], false);
    assert_eq!(json["assertions"].as_array().unwrap().len(), 6);
    assert!(!json["timeline"].as_array().unwrap().is_empty());
    assert_eq!(json["readings"].as_array().unwrap().len(), 2, "{json}");

    let page = std::fs::read_to_string(report).unwrap();
    assert!(page.starts_with("<!doctype html>") && page.ends_with("</html>\n"));
    assert!(!page.contains("{{") && !page.contains("<script") && !page.contains("src="));
    assert!(page.matches("<svg").count() >= 5 && page.contains("Latency percentiles"));
}

#[tokio::test]
async fn a_broken_demand_is_reported_and_is_exit_code_1() {
    let demo = Demo::start().await;
    let output = demo
        .load(&["--users=1", "--duration=300ms", "--warmup=0s", "--assert=p50<1ns,lost=0,told_p99<1s"])
        .await;
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("BROKEN p50<1ns") && text.contains("holds  lost=0"), "{text}");
    assert!(text.contains("BROKEN told_p99<1s (not measured in this run)"), "{text}");
}

#[tokio::test]
async fn a_bad_demand_is_exit_code_2_before_anything_is_sent() {
    let command = Command::new(env!("CARGO_BIN_EXE_duorelay"))
        .args(["loadtest", "--url=ws://127.0.0.1:1", "--assert=p99<20", "--assert=latency<1ms"])
        .output();
    let output = within(LIMIT, "the refusal", command).await.unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("2 mistakes") && text.contains("a time needs its unit"), "{text}");
    assert!(output.stdout.is_empty());
}

#[tokio::test]
async fn a_takeover_is_reported_and_a_race_leaves_exactly_one() {
    let demo = Demo::start().await;
    let (json, code) =
        demo.figures(&["overwrite", "--users=5", "--rate=50", "--warmup=0s", "--duration=5s"]).await;
    assert_eq!(code, Some(0), "{json}");
    let figures = &json["figures"];
    assert_eq!(figures["one_left"], 5.0, "{json}");
    assert_eq!((&figures["none_left"], &figures["both_left"]), (&Value::from(0.0), &Value::from(0.0)));
    assert!(figures["told_p99"].as_f64().unwrap() > 0.0);
}

#[tokio::test]
async fn slow_receivers_get_newer_frames_instead_of_old_ones() {
    let demo = Demo::start().await;
    let (json, code) = demo
        .figures(&[
            "slow",
            "--users=2",
            "--duration=4s",
            "--warmup=1s",
            LINUX_KEEPS_OPEN,
            "--assert=age_end_p99<2s",
        ])
        .await;
    assert_eq!(code, Some(0), "{json}");
    let figures = &json["figures"];
    assert_eq!(figures["sent"], 240.0);
    assert!(figures["superseded"].as_f64().unwrap() > 40.0, "{figures}");
}

#[tokio::test]
async fn a_storm_counts_its_handshakes() {
    let demo = Demo::start().await;
    let (json, code) =
        demo.figures(&["storm", "--users=10", "--rate=50", "--duration=1s", "--warmup=0s"]).await;
    assert_eq!(code, Some(0), "{json}");
    assert_eq!(
        (&json["figures"]["welcomed"], &json["figures"]["refused"]),
        (&Value::from(50.0), &Value::from(0.0))
    );
}

#[cfg(unix)]
#[tokio::test]
async fn ctrl_c_ends_a_run_with_the_figures_so_far() {
    use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
    let demo = Demo::start().await;
    let mut child =
        demo.command(&["--users=2", "--duration=300s", "--warmup=0s", "--json=-"]).spawn().unwrap();
    // Measured is what the relay's metrics show: frames.
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    within(LIMIT, "the announcement", lines.next_line()).await.unwrap();
    let flowing = async {
        let mut pause = tokio::time::interval(Duration::from_millis(20));
        loop {
            pause.tick().await;
            let metrics = request(demo.admin, "GET", "/metrics", &[], b"").await.unwrap();
            let text = String::from_utf8_lossy(&metrics.body).into_owned();
            let frames = text.lines().filter(|line| line.starts_with("duorelay_frames_total"));
            if frames.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum::<u64>() > 20 {
                break;
            }
        }
    };
    within(LIMIT, "frames", flowing).await;
    let pid = rustix::process::Pid::from_raw(child.id().unwrap().cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let mut text = String::new();
    let mut stdout = child.stdout.take().unwrap();
    within(LIMIT, "the results", stdout.read_to_string(&mut text)).await.unwrap();
    let status = within(LIMIT, "the end", child.wait()).await.unwrap();
    assert_eq!(status.code(), Some(0));
    let json: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(json["interrupted"], true);
    assert!(json["figures"]["delivered"].as_f64().unwrap() > 0.0, "{json}");
}
