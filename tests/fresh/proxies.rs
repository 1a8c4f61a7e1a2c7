//! Each balancer, and none, before a relay: thin ways down and up, with reports and without.

use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use tokio::process::Command;
use tokio::time::Instant;

use crate::device::{FPS, Habit, Record, stream};
use crate::path::{Carries, Path};
use crate::support::{
    Balancer, Config, Handshake, Issuer, Key, Kind, LIMIT, PROJECT, Relay, Token, program, request, within,
};

/// How long each measurement takes, in seconds.
fn seconds() -> u32 {
    std::env::var("FRESH_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(12)
}

/// The bound that must hold, in the long form. A machine that runs other tests beside the short one gets the second.
fn bound(true_one: f64, on_a_busy_machine: f64) -> f64 {
    if std::env::var_os("FRESH_SECONDS").is_some() { true_one } else { on_a_busy_machine }
}

/// Which way of the mobile's path carries half of what the frames need.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Thin {
    Down,
    Up,
}

/// One measurement. Ages are in seconds.
#[derive(Debug, Clone, Copy)]
struct Case {
    name: &'static str,
    thin: Thin,
    frame_bytes: usize,
    buffer: u32,
    maxseg: Option<u32>,
    /// What the oldest of 100 frames may be at the end; none for a raw client, which reports nothing.
    age: Option<f64>,
}

/// The receive buffer of a thin way for small frames, as Linux reports it. With 2,304 some connections stood still for 0.2
/// to 13 s, also of clients without reports: Linux closes so small a window again and again.
const SMALL: u32 = 4_608;

const CASES: [Case; 5] = [
    Case { name: "down", thin: Thin::Down, frame_bytes: 300, buffer: SMALL, maxseg: None, age: Some(0.5) },
    Case {
        name: "down",
        thin: Thin::Down,
        frame_bytes: 4_000,
        buffer: 16_384,
        maxseg: Some(1_400),
        age: Some(0.3),
    },
    Case { name: "up", thin: Thin::Up, frame_bytes: 300, buffer: SMALL, maxseg: None, age: Some(0.5) },
    Case {
        name: "up",
        thin: Thin::Up,
        frame_bytes: 4_000,
        buffer: 16_384,
        maxseg: Some(1_400),
        age: Some(0.3),
    },
    Case {
        name: "down, raw",
        thin: Thin::Down,
        frame_bytes: 4_000,
        buffer: 16_384,
        maxseg: Some(1_400),
        age: None,
    },
];

/// A relay, and what is before it.
struct Place {
    name: &'static str,
    relay: Relay,
    public: SocketAddr,
    _balancer: Option<Balancer>,
    _issuer: Issuer,
    folder: TempDir,
}

impl Place {
    async fn start(name: &'static str, kind: Option<Kind>) -> Self {
        let issuer = Issuer::start();
        let config = Config::new(&issuer).set("RUST_LOG", "warn");
        let (balancer, relay) = match kind {
            None => (None, config.start().await),
            Some(kind) => {
                let balancer = Balancer::start(kind, 1).await;
                let relay = config.set("DUORELAY_LISTEN", balancer.relay(0)).start().await;
                (Some(balancer), relay)
            }
        };
        let public = balancer.as_ref().map_or(relay.public, |balancer| balancer.address);
        let folder = TempDir::new().unwrap();
        std::fs::write(folder.path().join("key.pem"), Key::Rsa.private_pem()).unwrap();
        let ready = async {
            let mut pause = tokio::time::interval(Duration::from_millis(20));
            loop {
                pause.tick().await;
                let answer = request(public, "GET", "/healthz/ready", &[], b"").await;
                if answer.is_ok_and(|answer| answer.status == 200) {
                    break;
                }
            }
        };
        within(LIMIT, "the balancer", ready).await;
        Self { name, relay, public, _balancer: balancer, _issuer: issuer, folder }
    }

    /// The desktop is straight at the relay, the mobile behind a thin path and the balancer. Both stream.
    async fn measure(&self, case: Case) {
        let Case { thin, frame_bytes, buffer, maxseg, .. } = case;
        // A server's frame has no mask.
        let head = if thin == Thin::Down { 4 } else { 8 };
        let rate = (frame_bytes + head) as f64 * FPS / 2.0;
        let carries = match thin {
            Thin::Down => Carries { down: Some(rate), up: None, buffer, maxseg },
            Thin::Up => Carries { up: Some(rate), down: None, buffer, maxseg },
        };
        let path = Path::start(self.public, carries);
        let user = format!("{} {} {frame_bytes}", self.name, case.name);
        let token = Token::firebase(&user).sign();
        let mut desktop = self.relay.v1_desktop(&user).await;
        let mobile = Handshake::new(path.address).offer(&["duorelay.v1"]).bearer(&token).open_v1().await;
        desktop.expect_json("peer").await;
        let habit = Habit { frame_bytes, reports: true };
        let start = Instant::now();
        let until = start + Duration::from_secs(seconds().into());
        let (desktop, mobile) = tokio::join!(
            // `welcome` and `peer`; `welcome`.
            stream(desktop, habit, 2, start, until),
            stream(mobile, Habit { reports: case.age.is_some(), ..habit }, 1, start, until)
        );
        self.judge(case, &desktop, &mobile);
    }

    fn judge(&self, case: Case, desktop: &Record, mobile: &Record) {
        let what = format!("{}, {} B {}", self.name, case.frame_bytes, case.name);
        for record in [desktop, mobile] {
            assert_eq!(record.ended, None, "{what}: {:?}", record.texts);
            assert!(!record.texts.contains_key("error"), "{what}: {:?}", record.texts);
        }
        let (thin, other) = match case.thin {
            Thin::Down => (Way { from: desktop, to: mobile }, Way { from: mobile, to: desktop }),
            Thin::Up => (Way { from: mobile, to: desktop }, Way { from: desktop, to: mobile }),
        };
        let end = f64::from(seconds());
        let (earlier, later) = (thin.ages(end * 0.5, end * 0.75), thin.ages(end * 0.75, end));
        let used = 2.0 * thin.share(end * 0.5, end);
        let (aside, innocent) = (other.ages(end * 0.5, end), other.share(end * 0.5, end));
        println!(
            "| {what} | {:.2} s | {:.2} s | {:.0} % | {:.3} s | {:.0} % |",
            at(&later, 50),
            at(&later, 99),
            100.0 * used,
            at(&aside, 99),
            100.0 * innocent
        );
        assert!(used >= bound(0.9, 0.75), "{what}: {used} of what the link carries arrived");
        assert!(innocent >= bound(0.98, 0.8), "{what}: {innocent} of the other way's frames arrived");
        assert!(
            at(&aside, 90) <= bound(0.1, 0.4),
            "{what}: the other way's frames are {} s old",
            at(&aside, 90)
        );
        match case.age {
            Some(age) => {
                assert!(at(&later, 99) <= bound(age, age + 0.5), "{what}: {} s", at(&later, 99));
                assert!(at(&later, 50) <= at(&earlier, 50) + bound(0.15, 0.4), "{what}: the age grows");
            }
            // Without reports the relay knows of its own hop alone: what the balancer takes is old when it arrives.
            None if self.public == self.relay.public => assert!(at(&later, 99) <= bound(0.6, 1.2), "{what}"),
            None => assert!(at(&later, 50) >= 1.5, "{what}: {}", at(&later, 50)),
        }
    }

    /// The load tester's receivers behind the balancer.
    async fn load(&self, frame_bytes: usize, age: f64, more: &[&str]) {
        let mut command = Command::new(program());
        command.args(["loadtest", "slow", "--users=1", "--warmup=2s", "--json=-", "--progress=false"]);
        // The receiver streams, too, as a phone does. Its packets carry its window: with so small a buffer, Linux holds back
        // the updates of a window for 200 ms and more.
        command.arg("--direction=both");
        command.arg(format!("--url=ws://{}/ws", self.relay.public));
        if self.public != self.relay.public {
            command.arg(format!("--through=ws://{}/ws", self.public));
        }
        command.arg(format!("--duration={}s", seconds() - 2)).arg(format!("--frame-bytes={frame_bytes}"));
        command.arg(format!("--user-prefix=load-{frame_bytes}-")).args(more);
        command.arg("--signing-key").arg(self.folder.path().join("key.pem"));
        command.arg(format!("--issuer=https://securetoken.google.com/{PROJECT}"));
        command.args(["--audience", PROJECT, "--kid", Key::Rsa.id()]);
        command.stdin(Stdio::null()).kill_on_drop(true);
        let limit = Duration::from_secs(u64::from(seconds()) + 20);
        let output = within(limit, "the load test", command.output()).await.unwrap();
        let what = format!("{}, {frame_bytes} B, load tester", self.name);
        assert!(output.status.success(), "{what}: {}", String::from_utf8_lossy(&output.stderr));
        let results: Value = serde_json::from_slice(&output.stdout).unwrap();
        let figure = |name: &str| {
            results["figures"][name].as_f64().unwrap_or_else(|| panic!("{what}: {name}: {results}"))
        };
        // The other way's frames all arrive.
        let used = (2.0 * figure("delivered") - figure("sent")) / (figure("sent") / 2.0);
        println!(
            "| {what} | {:.2} s | {:.2} s | {:.0} % | | |",
            figure("p50"),
            figure("age_end_p99"),
            100.0 * used
        );
        assert!(figure("age_end_p99") <= bound(age, age + 0.5), "{what}: {results}");
        assert!(used >= bound(0.9, 0.75), "{what}: {used} of what the link carries arrived");
        for name in ["wrong_user", "duplicates", "out_of_order", "refused", "failed", "reconnects"] {
            assert_eq!(figure(name), 0.0, "{what}: {name}");
        }
    }

    async fn all(name: &'static str, kind: Option<Kind>) {
        let place = Self::start(name, kind).await;
        let [a, b, c, d, e] = CASES.map(|case| place.measure(case));
        let buffer = format!("--receive-buffer={SMALL}");
        let (buffer, large) = ([buffer.as_str()], ["--receive-buffer=16384", "--maxseg=1400"]);
        let (small, large) = (place.load(300, 0.5, &buffer), place.load(4_000, 0.3, &large));
        tokio::join!(a, b, c, d, e, small, large);
    }
}

/// One way, with what both ends know of it.
struct Way<'a> {
    from: &'a Record,
    to: &'a Record,
}

impl Way<'_> {
    /// How old the frames were that arrived in that time.
    fn ages(&self, from: f64, to: f64) -> Vec<f64> {
        let arrived = self.to.arrived.iter().filter(|(at, _)| (from..to).contains(at));
        let mut ages: Vec<_> = arrived.map(|(_, age)| *age).collect();
        ages.sort_by(f64::total_cmp);
        ages
    }

    /// What arrived of as many frames as were made in that time.
    fn share(&self, from: f64, to: f64) -> f64 {
        let made = self.from.made.iter().filter(|at| (from..to).contains(*at)).count();
        self.ages(from, to).len() as f64 / made as f64
    }
}

fn at(ages: &[f64], percent: usize) -> f64 {
    ages.get(ages.len() * percent / 100).copied().unwrap_or(f64::INFINITY)
}

#[tokio::test]
async fn straight_at_the_relay() {
    Place::all("straight", None).await;
}

#[tokio::test]
async fn behind_nginx() {
    Place::all("nginx", Some(Kind::Nginx)).await;
}

#[tokio::test]
async fn behind_haproxy() {
    Place::all("HAProxy", Some(Kind::HaProxy)).await;
}

#[tokio::test]
async fn behind_envoy() {
    Place::all("Envoy", Some(Kind::Envoy)).await;
}

#[tokio::test]
async fn behind_caddy() {
    Place::all("Caddy", Some(Kind::Caddy)).await;
}
