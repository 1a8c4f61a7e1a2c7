//! A Redis of its own for a test: a real redis-server without persistence, on a free port.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use tokio::time::Instant;

use super::{LIMIT, ask, free_address};

/// The server: Debian's, or the one that `REDIS_SERVER` names (another version, or Valkey).
fn program() -> String {
    std::env::var("REDIS_SERVER").unwrap_or_else(|_| "redis-server".to_owned())
}

fn spawn(program: &str, address: SocketAddr, directory: &Path, arguments: &[&str]) -> Child {
    Command::new(program)
        .args(["--bind", &address.ip().to_string(), "--port", &address.port().to_string()])
        .args(["--save", "", "--appendonly", "no", "--dir"])
        .arg(directory)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("redis-server is installed, or REDIS_SERVER names another one")
}

/// A running redis-server; killed when dropped.
#[derive(Debug)]
pub struct RedisServer {
    child: Child,
    address: SocketAddr,
    directory: TempDir,
}

impl RedisServer {
    /// Starts a server and waits for its PONG. Debian's package `redis-server` has the program.
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// Starts a server with more arguments.
    pub async fn start_with(arguments: &[&str]) -> Self {
        for _ in 0..5 {
            if let Some(server) = Self::try_start_with(free_address(), arguments).await {
                return server;
            }
        }
        panic!("no port stayed free")
    }

    /// Starts a server on this address (an earlier one's, to bring it back empty).
    pub async fn try_start(address: SocketAddr) -> Option<Self> {
        Self::try_start_with(address, &[]).await
    }

    /// Starts a server on this address with more arguments.
    pub async fn try_start_with(address: SocketAddr, arguments: &[&str]) -> Option<Self> {
        Self::try_start_of(&program(), address, arguments).await
    }

    /// Starts a server that speaks TLS as well, and where it does. It is always Debian's: the servers that come from
    /// PyPI are built without TLS.
    pub async fn start_tls(certificate: &Path, key: &Path, ca: &Path) -> (Self, SocketAddr) {
        let [certificate, key, ca] = [certificate, key, ca].map(|path| path.display().to_string());
        for _ in 0..5 {
            let (plain, tls) = (free_address(), free_address());
            let port = tls.port().to_string();
            let arguments = [
                ["--tls-port", &port],
                ["--tls-cert-file", &certificate],
                ["--tls-key-file", &key],
                ["--tls-ca-cert-file", &ca],
                ["--tls-auth-clients", "yes"],
            ];
            if let Some(server) = Self::try_start_of("redis-server", plain, arguments.as_flattened()).await {
                return (server, tls);
            }
        }
        panic!("no port stayed free")
    }

    async fn try_start_of(program: &str, address: SocketAddr, arguments: &[&str]) -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let child = spawn(program, address, directory.path(), arguments);
        let server = Self { child, address, directory };
        server.wait().await
    }

    /// Starts a Sentinel that watches `master` under the name `mymaster`, alone.
    pub(super) async fn start_sentinel(master: SocketAddr, down_after: Duration) -> Self {
        for _ in 0..5 {
            let (address, directory) = (free_address(), tempfile::tempdir().unwrap());
            let file = directory.path().join("sentinel.conf");
            let settings = format!(
                "bind {ip}\nport {port}\ndir {dir}\nsentinel monitor mymaster {host} {master_port} 1\n\
                 sentinel down-after-milliseconds mymaster {down_after}\nsentinel failover-timeout mymaster 5000\n",
                ip = address.ip(),
                port = address.port(),
                dir = directory.path().display(),
                host = master.ip(),
                master_port = master.port(),
                down_after = down_after.as_millis(),
            );
            std::fs::write(&file, settings).unwrap();
            let child = Command::new(program())
                .arg(&file)
                .arg("--sentinel")
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .expect("redis-server is installed, or REDIS_SERVER names another one");
            if let Some(server) = (Self { child, address, directory }).wait().await {
                return server;
            }
        }
        panic!("no port stayed free")
    }

    async fn wait(mut self) -> Option<Self> {
        let deadline = Instant::now() + LIMIT;
        let mut pause = tokio::time::interval(Duration::from_millis(2));
        loop {
            pause.tick().await;
            if self.child.try_wait().unwrap().is_some() {
                return None;
            }
            match ask(self.address, &["PING"]).await {
                // Another process's server may have taken the port a moment before.
                Ok(_) if !self.is_itself().await => {}
                Ok(_) => return Some(self),
                // One that asks for a password, or loads its data, is there, too.
                Err(error) if error.to_string().starts_with("NOAUTH") => return Some(self),
                Err(error) if error.to_string().starts_with("LOADING") => return Some(self),
                Err(_) => assert!(Instant::now() < deadline, "redis-server does not answer"),
            }
        }
    }

    /// True when what answers here is the process that was started.
    async fn is_itself(&self) -> bool {
        let info = ask(self.address, &["INFO", "server"]).await;
        let id = format!("process_id:{}\r", self.child.id());
        info.is_ok_and(|info| info.as_str().is_some_and(|info| info.contains(&id)))
    }

    /// Asks it one thing; an error fails the test.
    pub async fn ask(&self, command: &[&str]) -> Value {
        match ask(self.address, command).await {
            Ok(answer) => answer,
            Err(error) => panic!("{command:?}: {error}"),
        }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where it would save.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// For `REDIS_URL`.
    pub fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    /// Sends a signal (`STOP` and `CONT` make it half-open and bring it back).
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").args(["-s", name, &self.child.id().to_string()]).status().unwrap();
        assert!(status.success());
    }

    /// `master`, `slave`, or nothing while it does not answer.
    pub async fn role(&self) -> String {
        let role = ask(self.address, &["ROLE"]).await;
        role.ok().and_then(|role| role[0].as_str().map(str::to_owned)).unwrap_or_default()
    }

    /// True for a node whose cluster serves all slots, as far as it knows.
    pub async fn is_well(&self) -> bool {
        let info = ask(self.address, &["CLUSTER", "INFO"]).await;
        info.is_ok_and(|info| info.as_str().is_some_and(|info| info.contains("cluster_state:ok")))
    }

    /// Takes note of the end of one that was killed.
    pub fn reap(&mut self) {
        self.child.wait().unwrap();
    }

    /// Kills it and starts an empty one in its place.
    pub async fn restart(self) -> Self {
        let address = self.address;
        drop(self);
        let started = Self::try_start(address).await;
        started.unwrap_or_else(|| panic!("{address} did not stay free"))
    }

    /// Kills it and starts one in its place that reads its data again; `arguments` may make that slow.
    pub async fn restart_with_data(mut self, arguments: &[&str]) -> Self {
        self.ask(&["SAVE"]).await;
        self.child.kill().unwrap();
        self.reap();
        self.child = spawn(&program(), self.address, self.directory.path(), arguments);
        self.wait().await.expect("the port stayed free")
    }

    /// What has to go when the test process has ended.
    pub(super) fn remains(&self) -> [String; 2] {
        [self.child.id().to_string(), self.directory.path().display().to_string()]
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        // It can only have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// For servers that all tests of a process share, and that nobody drops: a shell waits for this process's end and
/// clears away after it.
pub(super) fn clear_away_at_exit(servers: &[&RedisServer]) {
    let child = Command::new("sh")
        .args([
            "-c",
            "read _; for it; do case $it in /*) rm -rf \"$it\";; *) kill -9 \"$it\";; esac; done",
            "sh",
        ])
        .args(servers.iter().flat_map(|server| server.remains()))
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // Its standard input ends with this process.
    std::mem::forget(child);
}

/// A free port whose cluster bus port (10000 above it) exists.
pub(super) fn cluster_address() -> SocketAddr {
    loop {
        let address = free_address();
        if std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, address.port() + 10_000)).is_ok() {
            return address;
        }
    }
}
