//! A real HAProxy with the configuration that is shipped.

use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use tokio::time::Instant;

use super::dns::Dns;
use super::{LIMIT, free_address, free_port, request};

/// A running HAProxy (Debian's package `haproxy`) in front of relays that share a port; killed when dropped.
#[derive(Debug)]
pub struct HaProxy {
    child: Child,
    /// Where clients connect.
    pub address: SocketAddr,
    /// Where it looks for relays.
    pub relays: Vec<SocketAddr>,
    log: Arc<Mutex<String>>,
    dns: Dns,
}

impl HaProxy {
    /// In front of so many relays, which are to be started at [`Self::relays`].
    pub async fn start(relays: u8, affinity: &str) -> Self {
        let port = free_port();
        let addresses: Vec<_> = (0..relays).map(|number| Ipv4Addr::new(127, 0, 0, 2 + number)).collect();
        let dns = Dns::start(addresses.clone()).await;
        let address = free_address();
        // Where only root looks by itself.
        let path = format!("{}:/usr/sbin", std::env::var("PATH").unwrap_or_default());
        let mut child = Command::new("haproxy")
            .args(["-db", "-f", concat!(env!("CARGO_MANIFEST_DIR"), "/k8s/balancers/haproxy.cfg")])
            .env("PATH", path)
            .env("RELAYS", format!("relay:{port}"))
            .env("RELAY_SLOTS", "20")
            .env("RESOLVER", dns.address.to_string())
            .env("LISTEN", address.to_string())
            .env("AFFINITY", affinity)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("haproxy (Debian's package haproxy)");
        let log = Arc::new(Mutex::new(String::new()));
        let (stdout, lines) = (child.stdout.take().unwrap(), log.clone());
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                lines.lock().unwrap().push_str(&format!("{line}\n"));
            }
        });
        let relays = addresses.into_iter().map(|address| (address, port).into()).collect();
        Self { child, address, relays, log, dns }
    }

    /// From now on these are the relays.
    pub fn set_relays(&self, relays: Vec<Ipv4Addr>) {
        self.dns.set(relays);
    }

    /// Waits until this many relays take sockets.
    pub async fn wait_for(&self, relays: usize) {
        let deadline = Instant::now() + LIMIT;
        let mut pause = tokio::time::interval(std::time::Duration::from_millis(20));
        loop {
            pause.tick().await;
            let up = self.up();
            if up == relays
                && request(self.address, "GET", "/healthz/ready", &[], b"")
                    .await
                    .is_ok_and(|ready| ready.status == 200)
            {
                return;
            }
            assert!(Instant::now() < deadline, "{up} relays are up and not {relays}");
        }
    }

    /// Relays that it counts as up, by what it has said of each last.
    fn up(&self) -> usize {
        let log = self.log.lock().unwrap();
        let mut states = std::collections::BTreeMap::new();
        for line in log.lines() {
            let Some((_, rest)) = line.split_once("Server relays/") else { continue };
            let name = rest.split(' ').next().unwrap_or_default();
            if rest.contains(" is UP") || rest.contains(" is DOWN") {
                states.insert(name, rest.contains(" is UP"));
            }
        }
        states.values().filter(|is_up| **is_up).count()
    }
}

impl Drop for HaProxy {
    fn drop(&mut self) {
        // It can only have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- the balancer's log ---\n{}---", self.log.lock().unwrap());
        }
    }
}
