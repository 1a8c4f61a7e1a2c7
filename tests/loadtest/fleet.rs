//! The load tester against several instances on one Redis: every scenario's figures say what it is for.

use std::process::Stdio;

use serde_json::Value;
use tempfile::TempDir;
use tokio::process::Command;

use super::LIMIT;
use super::support::{Config, Issuer, Key, PROJECT, RedisServer, Relay, within};

/// Instances on a Redis of their own.
struct Fleet {
    relays: Vec<Relay>,
    redis: RedisServer,
    _issuer: Issuer,
    folder: TempDir,
}

impl Fleet {
    async fn start(count: usize, settings: &[(&str, &str)]) -> Self {
        let (redis, issuer) = (RedisServer::start().await, Issuer::start());
        let mut relays = Vec::new();
        for _ in 0..count {
            let config = Config::new(&issuer).set("REDIS_URL", redis.url()).set("RUST_LOG", "info");
            let config = settings.iter().fold(config, |config, (name, value)| config.set(name, value));
            relays.push(config.start().await);
        }
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("key.pem"), Key::Rsa.private_pem()).unwrap();
        Self { relays, redis, _issuer: issuer, folder }
    }

    /// The figures of a run, whose demands must hold.
    async fn figures(&self, arguments: &[&str]) -> Value {
        let mut command = Command::new(env!("CARGO_BIN_EXE_duorelay"));
        command.arg("loadtest").args(arguments).args(["--json=-", "--warmup=200ms", "--redis-url"]);
        command.arg(self.redis.url()).arg("--signing-key").arg(self.folder.path().join("key.pem"));
        command.arg(format!("--issuer=https://securetoken.google.com/{PROJECT}"));
        command.args(["--audience", PROJECT, "--kid", Key::Rsa.id()]);
        for relay in &self.relays {
            command.arg(format!("--url=ws://{}/ws", relay.public));
            command.arg(format!("--metrics=http://{}/metrics", relay.admin));
        }
        command.stdin(Stdio::null()).kill_on_drop(true);
        let output = within(LIMIT, "the load test", command.output()).await.unwrap();
        let written = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{written}");
        let mut results: Value = serde_json::from_slice(&output.stdout).unwrap();
        results["figures"].take()
    }
}

fn number(figures: &Value, name: &str) -> f64 {
    figures[name].as_f64().unwrap_or_else(|| panic!("{name}: {figures}"))
}

const WHOLE: &str = "--assert=lost=0,vanished=0,wrong_user=0,duplicates=0,out_of_order=0,failed=0,refused=0";

#[tokio::test]
async fn streams_cross_redis_only_where_the_devices_are_apart() {
    let fleet = Fleet::start(2, &[]).await;
    let stream = ["stream", "--users=10", "--stream=1,0x80", "--duration=1s", WHOLE];
    let mut commands = Vec::new();
    for placement in ["--placement=cross", "--placement=mixed", "--placement=same"] {
        let figures = fleet.figures(&[&stream[..], &[placement]].concat()).await;
        assert!((number(&figures, "sent") - 1200.0).abs() < 0.5, "{figures}");
        assert!(number(&figures, "cpu_per_frame") > 0.0 && number(&figures, "rss") > 1e6, "{figures}");
        commands.push(number(&figures, "redis_commands_per_frame"));
    }
    // One PUBLISH for each frame that crosses, unless several travel together; what remains are renewals and probes.
    assert!(commands[0] > commands[1] && commands[1] > commands[2], "{commands:?}");
    assert!(commands[2] < 0.2, "{commands:?}");
}

#[tokio::test]
async fn idle_connections_and_storms_are_spread_over_both_instances() {
    let fleet = Fleet::start(2, &[]).await;
    let figures =
        fleet.figures(&["idle", "--users=20", "--duration=500ms", "--assert=failed=0,refused=0"]).await;
    assert!((number(&figures, "connected") - 40.0).abs() < 0.5, "{figures}");
    assert!(figures["rss_per_connection"].is_number(), "{figures}");
    let figures = fleet
        .figures(&["storm", "--users=20", "--rate=50", "--duration=1s", "--assert=failed=0,refused=0"])
        .await;
    // Those of the warm-up as well.
    assert!((number(&figures, "welcomed") - 60.0).abs() < 1.5, "{figures}");
    for relay in &fleet.relays {
        assert!(relay.metric("duorelay_handshakes_total", &[r#"result="accepted""#]).await > 0.0);
    }
}

#[tokio::test]
async fn of_two_desktops_at_the_same_instant_on_two_instances_exactly_one_is_left() {
    let fleet = Fleet::start(2, &[]).await;
    let demands = "--assert=none_left=0,one_left=20,both_left=0,told_p99<2s,failed=0";
    fleet.figures(&["overwrite", "--users=20", "--rate=100", "--duration=5s", demands]).await;
}

/// With a smaller receive buffer some connections stand still for seconds on a busy machine: Linux closes so small a window
/// again and again.
pub(super) const LINUX_KEEPS_OPEN: &str = "--receive-buffer=4608";

#[tokio::test]
async fn a_thin_link_behind_another_instance_gets_fresh_frames() {
    let fleet = Fleet::start(2, &[]).await;
    let figures = fleet
        .figures(&[
            "slow",
            "--users=2",
            "--duration=4s",
            LINUX_KEEPS_OPEN,
            "--assert=age_end_p99<2s,out_of_order=0,duplicates=0",
        ])
        .await;
    assert!(number(&figures, "superseded") > 40.0, "{figures}");
}

#[tokio::test]
async fn streams_move_when_an_instance_leaves_and_lose_nothing_reliable() {
    let fleet =
        Fleet::start(3, &[("DUORELAY_DRAIN_DELAY_SECONDS", "0"), ("DUORELAY_DRAIN_SECONDS", "2")]).await;
    let roll = format!("--roll-command=kill -TERM {}", fleet.relays[0].id());
    let figures = fleet
        .figures(&[
            "rolling",
            "--users=6",
            "--duration=5s",
            &roll,
            WHOLE,
            "--assert=silence<2s,reconnects>=4",
        ])
        .await;
    assert!(number(&figures, "delivered") > 0.0, "{figures}");
}

/// Receivers that stop reading cost their queues and no more, although what is sent to them would be many times as much.
#[tokio::test]
async fn stalled_receivers_take_no_more_memory_than_their_queues() {
    const USERS: f64 = 50.0;
    const QUEUE: f64 = 65_536.0;
    let fleet = Fleet::start(2, &[("DUORELAY_QUEUE_BYTES", "65536"), ("DUORELAY_WORKERS", "1")]).await;
    let stalled = ["slow", "--link=0", "--users=50", "--frame-bytes=30000", "--fps=20", "--duration=4s"];
    for streams in ["--stream=0,1,2", "--stream=0,1,2,0x80"] {
        let figures = fleet.figures(&[&stalled[..], &[streams]].concat()).await;
        let (sent, grown) =
            (number(&figures, "sent") * 30_000.0, number(&figures, "rss_per_connection") * 2.0 * USERS);
        // Both halves of each queue, and what instances, sockets and Redis's answers need beside them. Each
        // instance goes up and down by 12 MiB, as its allocator takes and gives back.
        let bound = USERS * 2.0 * QUEUE + 40e6;
        assert!(sent > 5.0 * bound, "{sent} {bound}");
        assert!(grown < bound, "grew by {grown}, sent {sent}, {streams}");
    }
    // Who does not take what is reliable is let go: what follows has no receiver.
    for relay in &fleet.relays {
        assert!(relay.metric("duorelay_dropped_total", &[r#"cause="peer_absent""#]).await > 0.0);
    }
}
