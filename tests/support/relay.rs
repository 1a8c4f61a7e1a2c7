//! A relay process of its own for a test.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::issuer::{Issuer, PROJECT, Token};
use super::{Client, Handshake, LIMIT, Response, free_address, request};

/// The operators' token of the relays under test.
pub const ADMIN_TOKEN: &str = "operator-of-the-contract-tests";

/// The program under test: `$DUORELAY_BIN`, or the one that Cargo built.
pub fn program() -> String {
    std::env::var("DUORELAY_BIN").unwrap_or_else(|_| env!("CARGO_BIN_EXE_duorelay").to_owned())
}

/// How a relay is to be started; the environment is empty but for what is set here.
#[derive(Debug, Clone)]
pub struct Config {
    env: BTreeMap<String, String>,
    args: Vec<String>,
    program: String,
    /// What a shell does before it becomes the relay.
    before: Vec<String>,
}

impl Config {
    /// `duorelay serve` with the memory backplane, for the tokens of `issuer`, without a limit on
    /// handshakes (all tests come from one address).
    pub fn new(issuer: &Issuer) -> Self {
        Self { env: BTreeMap::new(), args: vec!["serve".into()], program: program(), before: Vec::new() }
            .set("FIREBASE_PROJECT_ID", PROJECT)
            .set("DUORELAY_JWKS_URL", issuer.jwks_url())
            .set("DUORELAY_ADMIN_TOKEN", ADMIN_TOKEN)
            .set("DUORELAY_HANDSHAKES_PER_SECOND_PER_IP", "0")
            .set("LOG_FORMAT", "json")
            .set("RUST_LOG", "info,duorelay=debug")
    }

    /// Sets an environment variable.
    pub fn set(mut self, name: &str, value: impl ToString) -> Self {
        self.env.insert(name.into(), value.to_string());
        self
    }

    /// Takes an environment variable away.
    pub fn unset(mut self, name: &str) -> Self {
        self.env.remove(name);
        self
    }

    /// Starts another program, such as an older version.
    pub fn program(mut self, path: &str) -> Self {
        self.program = path.into();
        self
    }

    /// Starts the program without a command.
    pub fn without_command(mut self) -> Self {
        self.args.clear();
        self
    }

    /// Adds a command line argument.
    pub fn arg(mut self, arg: &str) -> Self {
        self.args.push(arg.into());
        self
    }

    /// Starts it under these limits of open files, the soft and the hard one.
    pub fn open_files(mut self, soft: u32, hard: u32) -> Self {
        self.before.push(format!("ulimit -Sn {soft} && ulimit -Hn {hard}"));
        self
    }

    /// Starts it in this control group.
    pub fn in_group(mut self, group: &Path) -> Self {
        self.before.push(format!("echo $$ >{}/cgroup.procs", group.display()));
        self
    }

    /// The command, with free ports unless the test chose its own.
    fn command(&self, public: SocketAddr, admin: SocketAddr) -> Command {
        let program = &self.program;
        let mut command = if self.before.is_empty() {
            Command::new(program)
        } else {
            let mut shell = Command::new("/bin/sh");
            shell.args(["-c", &format!("{} && exec {program} \"$@\"", self.before.join(" && ")), "duorelay"]);
            shell
        };
        command
            .args(&self.args)
            .env_clear()
            .env("DUORELAY_LISTEN", public.to_string())
            .env("DUORELAY_ADMIN_LISTEN", admin.to_string())
            .envs(&self.env)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Starts the relay and waits until it is ready.
    pub async fn start(&self) -> Relay {
        self.start_until("/healthz/ready").await
    }

    /// Starts the relay and waits until `path` answers 200 (`/healthz/live` for one that cannot get ready).
    pub async fn start_until(&self, path: &str) -> Relay {
        for _ in 0..5 {
            let mut relay = self.spawn();
            match relay.wait_for(path).await {
                Ok(()) => return relay,
                // Another process took the port between the look and the start.
                Err(Gone) if relay.log().to_lowercase().contains("in use") => {}
                Err(Gone) => panic!("the relay ended: {}", relay.log()),
            }
        }
        panic!("no port stayed free")
    }

    /// Starts the process and waits for nothing.
    pub fn spawn(&self) -> Relay {
        // A test that chose the address knows that it is free.
        let chosen = self.env.get("DUORELAY_LISTEN");
        let public = chosen.map_or_else(free_address, |address| address.parse().unwrap());
        let admin = free_address();
        let mut child = self.command(public, admin).spawn().unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let stdout = collect(child.stdout.take().unwrap(), &log);
        let stderr = collect(child.stderr.take().unwrap(), &log);
        Relay { child, public, admin, log, collecting: vec![stdout, stderr] }
    }
}

/// Appends a child's lines to `log` until it ends.
fn collect(pipe: impl Read + Send + 'static, log: &Arc<Mutex<String>>) -> JoinHandle<()> {
    let log = log.clone();
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            let mut log = log.lock().unwrap();
            log.push_str(&line);
            log.push('\n');
        }
    })
}

/// The process ended before it answered.
struct Gone;

/// A running relay; killed when dropped. Its log is printed when the test fails.
#[derive(Debug)]
pub struct Relay {
    child: Child,
    /// Where clients connect.
    pub public: SocketAddr,
    /// Where operators connect.
    pub admin: SocketAddr,
    log: Arc<Mutex<String>>,
    collecting: Vec<JoinHandle<()>>,
}

impl Relay {
    async fn wait_for(&mut self, path: &str) -> Result<(), Gone> {
        let deadline = Instant::now() + LIMIT;
        let mut pause = tokio::time::interval(Duration::from_millis(5));
        loop {
            pause.tick().await;
            if self.child.try_wait().unwrap().is_some() {
                return Err(Gone);
            }
            if let Ok(response) = request(self.public, "GET", path, &[], b"").await
                && response.status == 200
            {
                return Ok(());
            }
            assert!(Instant::now() < deadline, "{path} is not 200 after {LIMIT:?}");
        }
    }

    /// Everything that the process wrote so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Waits until the log contains `text`.
    pub async fn wait_for_log(&self, text: &str) {
        let deadline = Instant::now() + LIMIT;
        let mut pause = tokio::time::interval(Duration::from_millis(5));
        while !self.log().contains(text) {
            assert!(Instant::now() < deadline, "no {text:?} in the log");
            pause.tick().await;
        }
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Resident memory of the process, in bytes (proc(5), `VmRSS`).
    pub fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }

    /// What the process has used of the processors so far (`/proc/PID/task/*/schedstat`, sched-stats.rst of Linux).
    pub fn cpu(&self) -> Duration {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.id())).unwrap();
        let used = tasks.map(|task| {
            let stat = std::fs::read_to_string(task.unwrap().path().join("schedstat")).unwrap();
            Duration::from_nanos(stat.split(' ').next().unwrap().parse().unwrap())
        });
        used.sum()
    }

    /// Waits until the process holds at most this; returns what it holds. Its memory goes up and down by some
    /// MiB, as the allocator takes pages and gives back free ones. It does so within seconds, or later on a
    /// busy machine. What is kept stays.
    pub async fn wait_for_resident(&self, most: u64) -> u64 {
        let deadline = Instant::now() + 2 * LIMIT;
        let mut pause = tokio::time::interval(Duration::from_millis(50));
        let mut least = u64::MAX;
        loop {
            pause.tick().await;
            let held = self.resident();
            least = least.min(held);
            if held <= most {
                return held;
            }
            assert!(
                Instant::now() < deadline,
                "keeps {} KiB, {} too many",
                least >> 10,
                (least - most) >> 10
            );
        }
    }

    /// Sends a signal (`TERM`, `STOP`, `CONT`).
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").args(["-s", name, &self.child.id().to_string()]).status().unwrap();
        assert!(status.success());
    }

    /// Waits for the process to end; its log is whole then.
    pub async fn exit(&mut self, limit: Duration) -> ExitStatus {
        let deadline = Instant::now() + limit;
        let mut pause = tokio::time::interval(Duration::from_millis(5));
        loop {
            pause.tick().await;
            if let Some(status) = self.child.try_wait().unwrap() {
                // Its pipes have ended with it, so this does not wait.
                self.collecting.drain(..).for_each(|thread| thread.join().unwrap());
                return status;
            }
            assert!(Instant::now() < deadline, "still running after {limit:?}");
        }
    }

    /// `GET path` on the public port.
    pub async fn get(&self, path: &str) -> Response {
        request(self.public, "GET", path, &[], b"").await.unwrap()
    }

    /// A call of the operators' API with the right token.
    pub async fn operate(&self, method: &str, path: &str, body: &Value) -> Response {
        let bearer = format!("Bearer {ADMIN_TOKEN}");
        let headers = [("authorization", bearer.as_str()), ("content-type", "application/json")];
        let body = if body.is_null() { String::new() } else { body.to_string() };
        request(self.admin, method, path, &headers, body.as_bytes()).await.unwrap()
    }

    /// The sum of a metric's samples whose labels contain all of `labels`; 0 when there is none.
    pub async fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let text = request(self.admin, "GET", "/metrics", &[], b"").await.unwrap().text();
        let matching = text.lines().filter(|line| {
            line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']))
                && labels.iter().all(|label| line.contains(label))
        });
        matching.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
    }

    /// Waits until a metric is at least this; returns it.
    pub async fn wait_for_metric(&self, name: &str, labels: &[&str], least: f64) -> f64 {
        let deadline = Instant::now() + LIMIT;
        let mut pause = tokio::time::interval(Duration::from_millis(20));
        loop {
            pause.tick().await;
            let value = self.metric(name, labels).await;
            if value >= least {
                return value;
            }
            assert!(Instant::now() < deadline, "{name} is {value} and not {least}");
        }
    }

    /// A handshake to be filled in.
    pub fn handshake(&self) -> Handshake {
        Handshake::new(self.public)
    }

    /// A v1 connection as a browser makes it: a desktop, the token in the offer. Its `welcome` has been read.
    pub async fn v1_desktop(&self, uid: &str) -> Client {
        self.handshake().offer(&["duorelay.v1", &Token::firebase(uid).sign()]).open_v1().await
    }

    /// A v1 connection as a native app makes it: a mobile, the token in `clientid`. Its `welcome` has been read.
    pub async fn v1_mobile(&self, uid: &str) -> Client {
        self.handshake()
            .offer(&["duorelay.v1"])
            .header("clientid", &Token::firebase(uid).sign())
            .open_v1()
            .await
    }

    /// A desktop and a mobile of one user who know of each other.
    pub async fn v1_pair(&self, uid: &str) -> (Client, Client) {
        let mut desktop = self.v1_desktop(uid).await;
        let mobile = self.v1_mobile(uid).await;
        let peer = desktop.expect_json("peer").await;
        assert_eq!(peer["connection"], mobile.welcome["connection"]);
        (desktop, mobile)
    }

    /// A classic connection as a browser makes it.
    pub async fn classic_desktop(&self, uid: &str) -> Client {
        self.handshake().offer(&[&Token::firebase(uid).sign()]).open().await
    }

    /// A classic connection as a native app makes it.
    pub async fn classic_mobile(&self, uid: &str) -> Client {
        self.handshake().header("clientid", &Token::firebase(uid).sign()).open().await
    }

    /// Who holds the room's slots, asked through the operators' API.
    pub async fn room(&self, uid: &str) -> Value {
        let response = self.operate("GET", &format!("/v1/rooms/{uid}"), &json!(null)).await;
        assert_eq!(response.status, 200);
        response.json()
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        // It can only have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = self.log();
            let from = log.len().saturating_sub(8000);
            let tail: String = log.char_indices().filter(|(at, _)| *at >= from).map(|(_, c)| c).collect();
            eprintln!("--- the relay's log (its end) ---\n{tail}---");
        }
    }
}
